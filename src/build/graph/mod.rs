//! Steps, edges, keys, stale reasons. Pure: no IO, no clock.
