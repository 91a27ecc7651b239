//! Splitting a kernel's work over threads, cheaply enough for the small products of one token.
//!
//! A caption's token takes about a hundred parallel steps of some ten microseconds each; waking
//! sleeping threads for each of them would cost more than the work. A [`with_thread_pool`] therefore borrows
//! the threads of rayon's pool for as long as a whole forward pass takes: they wait for the next
//! step by spinning, and a step is handed out by one atomic store.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Index of a state in which no task can be taken.
const CLOSED: u64 = u32::MAX as u64;

/// Turns of spinning after which a waiting thread lets others run.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// A task list as the threads see it: the erased closure and how to call it.
type Call = unsafe fn(*const (), usize);

/// The threads of one session.
#[derive(Debug)]
pub struct ThreadPool {
    threads: usize,
    /// Number of the step in the upper half, next task in the lower one.
    state: AtomicU64,
    tasks: AtomicUsize,
    finished: AtomicUsize,
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

/// Runs `work` with the threads of rayon's global pool at hand, the caller being one of them.
///
/// A session beside another one works alone: two that wait for each other's threads would both be
/// slower. What is computed does not depend on the number of threads.
///
/// # Panics
/// `work` or one of its tasks did; the threads are back in their pool by then.
pub fn with_thread_pool<R>(work: impl FnOnce(&ThreadPool) -> R) -> R {
    let threads = rayon::current_num_threads();
    let Some(_pool) = RayonLock::take().filter(|_| threads > 1) else {
        return work(&ThreadPool::new(1));
    };
    let pool = &ThreadPool::new(threads);
    let result = rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(move |_, context| {
            // The caller is a member already; one of the pool's threads stays out for it.
            if context.index() > 0 {
                pool.help();
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| work(pool)));
        pool.stop.store(true, Ordering::Release);
        result
    });
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// The right to rayon's threads, which one session at a time has.
struct RayonLock;

static RAYON_TAKEN: AtomicBool = AtomicBool::new(false);

impl RayonLock {
    fn take() -> Option<Self> {
        (!RAYON_TAKEN.swap(true, Ordering::Acquire)).then_some(Self)
    }
}

impl Drop for RayonLock {
    fn drop(&mut self) {
        RAYON_TAKEN.store(false, Ordering::Release);
    }
}

impl ThreadPool {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            state: AtomicU64::new(CLOSED),
            tasks: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            closure: AtomicPtr::default(),
            call: AtomicPtr::default(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        }
    }

    /// A team of the caller alone.
    #[cfg(test)]
    pub fn single_threaded() -> Self {
        Self::new(1)
    }

    /// Members, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task` with every number below `tasks`, in any order and on any thread; returns when
    /// all have returned.
    ///
    /// # Panics
    /// A task panicked.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if self.threads == 1 || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        /// Calls the closure behind the pointer.
        unsafe fn call<F: Fn(usize)>(closure: *const (), index: usize) {
            // SAFETY: `run` put a pointer to its closure there, and waits while it is in use.
            unsafe { (*closure.cast::<F>())(index) }
        }
        let step = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        // Closed first: a late thread must not mix the old step's number with the new closure.
        self.state.store(step | CLOSED, Ordering::SeqCst);
        self.tasks.store(tasks, Ordering::SeqCst);
        self.finished.store(0, Ordering::SeqCst);
        self.closure.store((&raw const task).cast_mut().cast(), Ordering::SeqCst);
        self.call.store(call::<F> as Call as *mut (), Ordering::SeqCst);
        self.state.store(step, Ordering::SeqCst);
        self.take_tasks();
        let mut turns = 0;
        while self.finished.load(Ordering::Acquire) < tasks {
            wait(&mut turns);
        }
        if self.panicked.swap(false, Ordering::AcqRel) {
            // The first panic's message is printed already by the hook of the thread that had it.
            #[allow(clippy::panic, reason = "it hands on a task's panic")]
            {
                panic!("a task of a parallel kernel panicked");
            }
        }
    }

    /// What a borrowed thread does until the session ends.
    fn help(&self) {
        let (mut turns, mut seen) = (0, u64::MAX);
        while !self.stop.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            if state == seen || state & CLOSED == CLOSED {
                wait(&mut turns);
                continue;
            }
            self.take_tasks();
            seen = self.state.load(Ordering::Acquire);
            turns = 0;
        }
    }

    /// Takes tasks of the present step until none is left.
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
            // Succeeds only while the step is the one whose closure was read.
            let taken =
                self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            // SAFETY: only `run` stores here, and only values of this type; the state was open.
            let call: Call = unsafe { std::mem::transmute::<*mut (), Call>(call) };
            // SAFETY: the closure lives: its `run` waits for this task to be counted below.
            let task = AssertUnwindSafe(|| unsafe { call(closure, index as usize) });
            if catch_unwind(task).is_err() {
                self.panicked.store(true, Ordering::Release);
            }
            self.finished.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn wait(turns: &mut u32) {
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
    fn every_task_of_every_step_runs_once() {
        with_thread_pool(|pool| {
            for step in 0..2_000 {
                let tasks = step % 7;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        });
    }

    #[test]
    fn sessions_of_several_threads_do_not_disturb_each_other() {
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
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let failed = catch_unwind(|| {
            with_thread_pool(|pool| pool.run(8, |task| assert!(task != 5, "five is not for us")));
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
