//! The primitives of `single_flight`, which `tests/loom` replaces.

pub(super) use parking_lot::{Mutex, MutexGuard};
pub(super) use tokio::sync::watch;
