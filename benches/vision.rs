//! The stages that run once per image: the vision tower, and the cross-attention's keys and values.

mod common;

use std::error::Error;
use std::time::Duration;

use cutline::engine::local::LocalEngine;
use cutline::engine::{Engine, JobId, Timings};

/// The name of a stage, and its time.
type Stage = (&'static str, fn(&Timings) -> Duration);

fn main() -> Result<(), Box<dyn Error>> {
    let mut engine = common::engine()?;
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("image");
    let stages: [Stage; 2] = [
        ("vision tower", |timings| timings.vision),
        ("cross-attention keys and values", |timings| timings.cross_kv),
    ];
    for (name, time) in stages {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| time(&encode(&mut engine, times)));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// Encodes an image `times` times.
fn encode(engine: &mut LocalEngine, times: u64) -> Timings {
    let pixels = common::image(engine);
    engine.take_timings();
    for id in 0..times {
        if let Err(error) = engine.start(common::job(id, &pixels, 1)) {
            // Without this, a failure would look like a fast run.
            eprintln!("{error}");
            std::process::exit(1);
        }
        engine.cancel(JobId(id));
    }
    engine.take_timings()
}
