//! Runs every model; a panic or a deadlock in any interleaving ends the program with an error.

mod cache;
mod pool;

use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A model, and how often it may switch threads where none has to wait. Races need one or two such
/// switches; with more, three threads have too many interleavings.
type Model = (&'static str, usize, fn());

const MODELS: [Model; 9] = [
    ("pool: every task of every operation runs once", 3, pool::every_task_runs_once),
    ("pool: tasks see what was written before them", 3, pool::tasks_see_earlier_writes),
    ("pool: two borrowed threads", 1, pool::two_borrowed_threads),
    ("pool: a panic reaches the caller", 3, pool::a_panic_reaches_the_caller),
    ("flight: two callers, one computation", 3, cache::two_callers_share_one_computation),
    ("flight: all callers leave while one joins", 3, cache::a_late_caller_is_never_lost),
    ("flight: the leader is dropped while one joins", 3, cache::a_dropped_leader_is_noticed),
    ("flight: a newer one replaces an older one", 3, cache::only_the_newest_is_kept),
    ("flight: a value is stored before its flight is gone", 3, cache::flight_or_value),
];

static INTERLEAVINGS: AtomicU64 = AtomicU64::new(0);

fn main() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // One model has this panic in every interleaving.
        if panic.payload_as_str() != Some("a task of a parallel kernel panicked") {
            print(panic);
        }
    }));
    for (name, switches, model) in MODELS {
        let begin = Instant::now();
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 100_000;
        builder.preemption_bound = Some(switches);
        builder.check(move || {
            INTERLEAVINGS.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let count = INTERLEAVINGS.swap(0, Ordering::Relaxed);
        println!("{name}: {count} interleavings, {:.1} s", begin.elapsed().as_secs_f64());
    }
}
