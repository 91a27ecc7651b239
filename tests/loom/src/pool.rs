//! The operations of the thread pool.

#[path = "../../../crates/kernels/src/thread_pool/operation.rs"]
mod operation;

/// Loom's atomics. A thread that waits gives way to another, or there would be endlessly many
/// interleavings.
mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

    pub(super) fn spin(_turns: &mut u32) {
        loom::thread::yield_now();
    }
}

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use self::operation::Operation;

/// A pass with `workers` borrowed threads.
fn pass(workers: usize, work: impl FnOnce(&Operation)) {
    let operation = Arc::new(Operation::new());
    let borrowed: Vec<_> = (0..workers)
        .map(|_| {
            let operation = Arc::clone(&operation);
            thread::spawn(move || operation.work_until_stopped())
        })
        .collect();
    work(&operation);
    operation.stop();
    borrowed.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Runs an operation and checks that each of its tasks runs once.
fn counted(operation: &Operation, tasks: usize) {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    operation.run(tasks, &|task: usize| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
}

/// The second operation has another number of tasks and another closure: a late thread must not mix them.
pub(crate) fn every_task_runs_once() {
    pass(1, |operation| {
        counted(operation, 2);
        counted(operation, 3);
    });
}

pub(crate) fn two_borrowed_threads() {
    pass(2, |operation| counted(operation, 2));
}

/// Tasks write without atomics, each to its own place, and read what an earlier operation wrote. Loom's
/// cells report an access that is not ordered after the write.
pub(crate) fn tasks_see_earlier_writes() {
    struct Cells([UnsafeCell<usize>; 2]);
    // SAFETY: this is what the model checks.
    unsafe impl Sync for Cells {}
    pass(1, |operation| {
        let (first, second) = (Cells(Default::default()), Cells(Default::default()));
        let (from, to) = (&first, &second);
        // SAFETY: each task has its own cell.
        operation.run(2, &|task: usize| from.0[task].with_mut(|cell| unsafe { *cell = task + 1 }));
        operation.run(2, &|task: usize| {
            // SAFETY: the first operation has ended; each task has its own cell.
            let other = from.0[1 - task].with(|cell| unsafe { *cell });
            // SAFETY: as above.
            to.0[task].with_mut(|cell| unsafe { *cell = other });
        });
        // SAFETY: all tasks have ended.
        let read = |cells: &Cells, at: usize| cells.0[at].with(|cell| unsafe { *cell });
        assert_eq!((read(&second, 0), read(&second, 1)), (2, 1));
    });
}

pub(crate) fn a_panic_reaches_the_caller() {
    pass(1, |operation| {
        let failing = || {
            operation.run(2, &|task: usize| {
                if task == 1 {
                    // Not `panic!`: thousands of messages would be printed.
                    std::panic::resume_unwind(Box::new(()));
                }
            });
        };
        assert!(catch_unwind(AssertUnwindSafe(failing)).is_err());
        counted(operation, 2);
    });
}
