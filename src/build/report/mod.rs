//! What people and CI read: terminal table, JSON.
