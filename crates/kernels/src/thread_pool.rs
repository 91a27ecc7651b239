//! Spreads the tasks of a kernel over threads, fast enough for the small products of a decode step.
//!
//! A decode step consists of about a hundred parallel operations of some ten microseconds each.
//! Waking sleeping threads for every operation would cost more than the work itself.
//! [`with_thread_pool`] therefore borrows the threads of rayon's pool for a whole forward pass: they
//! spin until the next operation, and one atomic store starts it.

mod operation;
mod sync;

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use self::operation::Operation;

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
        operation.stop();
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
        Self { threads, operation: Operation::new(), not_sync: PhantomData }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
