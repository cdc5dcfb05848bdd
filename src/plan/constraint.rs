//! Which schedules are legal for an operation on a device (gate V0).
