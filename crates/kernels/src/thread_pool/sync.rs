//! The primitives of `operation`, which `tests/loom` replaces.

pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// After so many turns of its loop a waiting thread yields to other threads.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// Waits for a moment; `turns` counts the turns of the caller's loop.
pub(super) fn spin(turns: &mut u32) {
    *turns += 1;
    if *turns < SPINS_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}
