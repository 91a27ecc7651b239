//! Parallel operations, one after another, on the threads of a pass.
//!
//! `tests/loom` compiles this file with the atomics of loom and tries all interleavings.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, spin};

/// Task index of a state in which no task can be taken; also the mask of the index in the state.
const CLOSED: u64 = u32::MAX as u64;

/// How the type-erased closure of an operation is called with the index of a task.
type Call = unsafe fn(*const (), usize);

/// The current operation, as all threads see it.
#[derive(Debug, Default)]
pub(super) struct Operation {
    /// Number of the operation in the upper half, index of its next task in the lower half.
    state: AtomicU64,
    tasks: AtomicUsize,
    finished: AtomicUsize,
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

impl Operation {
    /// No operation; no task can be taken.
    pub(super) fn new() -> Self {
        Self { state: AtomicU64::new(CLOSED), ..Self::default() }
    }

    /// Calls `task` with every index below `tasks`, on this thread and on those in
    /// [`work_until_stopped`](Self::work_until_stopped).
    ///
    /// # Panics
    /// A task panicked.
    pub(super) fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: &F) {
        /// Calls the closure behind the pointer.
        unsafe fn call<F: Fn(usize)>(closure: *const (), index: usize) {
            // SAFETY: the pointer is that of a closure of this type, which `run` keeps alive.
            unsafe { (*closure.cast::<F>())(index) }
        }
        let number = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // Closed first: a late thread must not pair the old number with the new closure.
        self.state.store(number | CLOSED, Ordering::SeqCst);
        self.tasks.store(tasks, Ordering::SeqCst);
        self.finished.store(0, Ordering::SeqCst);
        self.closure.store((&raw const *task).cast_mut().cast(), Ordering::SeqCst);
        self.call.store(call::<F> as Call as *mut (), Ordering::SeqCst);
        self.state.store(number, Ordering::SeqCst);
        self.take_tasks();
        let mut turns = 0;
        while self.finished.load(Ordering::Acquire) < tasks {
            spin(&mut turns);
        }
        if self.panicked.swap(false, Ordering::AcqRel) {
            // The panic hook has already printed the message, on the thread of the task.
            #[allow(clippy::panic, reason = "it passes on the panic of a task")]
            {
                panic!("a task of a parallel kernel panicked");
            }
        }
    }

    /// Ends the pass.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// What a borrowed thread does until the pass ends.
    pub(super) fn work_until_stopped(&self) {
        let (mut turns, mut seen) = (0, u64::MAX);
        while !self.stop.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            if state == seen || state & CLOSED == CLOSED {
                spin(&mut turns);
                continue;
            }
            self.take_tasks();
            seen = self.state.load(Ordering::Acquire);
            turns = 0;
        }
    }

    /// Runs tasks of the current operation until none is left.
    fn take_tasks(&self) {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let tasks = self.tasks.load(Ordering::SeqCst);
            let closure = self.closure.load(Ordering::SeqCst);
            let call = self.call.load(Ordering::SeqCst);
            let index = state & CLOSED;
            if index == CLOSED || index as usize >= tasks {
                return;
            }
            // Succeeds only if the operation is still the one whose closure was read.
            let taken =
                self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            // SAFETY: only `run` stores here, and only values of this type; it had opened the state.
            let call: Call = unsafe { std::mem::transmute::<*mut (), Call>(call) };
            // SAFETY: the closure is alive: its `run` waits until this task is counted below.
            let task = AssertUnwindSafe(|| unsafe { call(closure, index as usize) });
            if catch_unwind(task).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
            self.finished.fetch_add(1, Ordering::AcqRel);
        }
    }
}
