//! Spreads the tasks of a kernel over threads, fast enough for the small products of a decode step.
//!
//! A decode step consists of about a hundred parallel operations of some ten microseconds each.
//! Waking sleeping threads for every operation would cost more than the work itself.
//! [`with_thread_pool`] therefore borrows the threads of rayon's pool for a whole forward pass: they
//! spin until the next operation, and one atomic store starts it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Task index of a state in which no task can be taken; also the mask of the index in the state.
const CLOSED: u64 = u32::MAX as u64;

/// After so many turns of its loop a waiting thread yields to other threads.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// How the type-erased closure of an operation is called with the index of a task.
type Call = unsafe fn(*const (), usize);

/// The threads that a forward pass may use; see [`with_thread_pool`].
///
/// It cannot be shared between threads, so operations neither overlap nor nest:
///
/// ```compile_fail,E0277
/// use cutline_kernels::thread_pool::with_thread_pool;
///
/// with_thread_pool(|pool| pool.run(2, |_| pool.run(2, |_| ())));
/// ```
#[derive(Debug)]
pub struct ThreadPool {
    threads: usize,
    operation: Operation,
    not_sync: PhantomData<Cell<()>>,
}

/// The current operation, as all threads see it.
#[derive(Debug, Default)]
struct Operation {
    /// Number of the operation in the upper half, index of its next task in the lower half.
    state: AtomicU64,
    tasks: AtomicUsize,
    finished: AtomicUsize,
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

/// Runs `work` with the threads of rayon's global pool and the calling thread.
///
/// Only one call at a time gets rayon's threads. Others run on the calling thread alone: two passes
/// that wait for each other's threads would both be slower. Results do not depend on the number of
/// threads.
///
/// # Panics
/// `work` or one of its tasks panicked; the threads have returned to rayon by then.
pub fn with_thread_pool<R>(work: impl FnOnce(&ThreadPool) -> R) -> R {
    let threads = rayon::current_num_threads();
    let Some(_lock) = RayonLock::try_lock().filter(|_| threads > 1) else {
        return work(&ThreadPool::new(1));
    };
    let pool = ThreadPool::new(threads);
    let operation = &pool.operation;
    let result = rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(move |_, context| {
            // The calling thread takes the place of one of rayon's.
            if context.index() > 0 {
                operation.work_until_stopped();
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| work(&pool)));
        operation.stop.store(true, Ordering::Release);
        result
    });
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// The exclusive use of rayon's threads.
struct RayonLock;

static RAYON_IS_LOCKED: AtomicBool = AtomicBool::new(false);

impl RayonLock {
    fn try_lock() -> Option<Self> {
        // Not `then_some`: it would make a lock in any case, and drop it, which unlocks.
        (!RAYON_IS_LOCKED.swap(true, Ordering::Acquire)).then(|| Self)
    }
}

impl Drop for RayonLock {
    fn drop(&mut self) {
        RAYON_IS_LOCKED.store(false, Ordering::Release);
    }
}

impl ThreadPool {
    fn new(threads: usize) -> Self {
        let operation = Operation { state: AtomicU64::new(CLOSED), ..Operation::default() };
        Self { threads, operation, not_sync: PhantomData }
    }

    /// A pool of the calling thread alone.
    #[cfg(test)]
    pub(crate) fn single_threaded() -> Self {
        Self::new(1)
    }

    /// Threads, the calling one included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task` with every index below `tasks`, in any order and on any thread; returns when all
    /// calls have returned.
    ///
    /// # Panics
    /// A task panicked.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if self.threads == 1 || tasks <= 1 {
            (0..tasks).for_each(task);
        } else {
            self.operation.run(tasks, &task);
        }
    }
}

impl Operation {
    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: &F) {
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

    /// What a borrowed thread does until the pass ends.
    fn work_until_stopped(&self) {
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

fn spin(turns: &mut u32) {
    *turns += 1;
    if *turns < SPINS_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_operation_runs_once() {
        with_thread_pool(|pool| {
            for operation in 0..2_000 {
                let tasks = operation % 7;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        });
    }

    #[test]
    fn concurrent_passes_do_not_disturb_each_other() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sum = AtomicUsize::new(0);
                        with_thread_pool(|pool| {
                            pool.run(10, |task| {
                                sum.fetch_add(task, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_pass_inside_a_task_works_alone() {
        let sum = AtomicUsize::new(0);
        with_thread_pool(|pool| {
            pool.run(4, |_| {
                with_thread_pool(|inner| {
                    inner.run(3, |task| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                });
            });
        });
        assert_eq!(sum.into_inner(), 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_remain_usable() {
        let failed = catch_unwind(|| {
            with_thread_pool(|pool| pool.run(8, |task| assert!(task != 5, "task five fails")));
        });
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        with_thread_pool(|pool| {
            pool.run(4, |_| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 4);
    }
}
