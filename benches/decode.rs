//! One decode step: every image in the batch gets its next token.

mod common;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Throughput};
use cutline::engine::local::LocalEngine;
use cutline::engine::{Engine, JobId, PixelValues};
use cutline::error::Result as CutlineResult;

/// Steps on the same images, as many as a caption has tokens.
const STEPS: u64 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut engine = common::engine()?;
    let pixels = common::image(&engine);
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("decode step");
    for batch in [1_u64, 4, 16] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter_custom(|steps| {
                steps_of(&mut engine, &pixels, batch, steps).unwrap_or_else(|error| {
                    // Without this, a failure would look like a fast run.
                    eprintln!("{error}");
                    std::process::exit(1)
                })
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// The time of `steps` steps of a batch, without the time for encoding images.
fn steps_of(
    engine: &mut LocalEngine,
    pixels: &Arc<PixelValues>,
    batch: u64,
    steps: u64,
) -> CutlineResult<Duration> {
    let (mut total, mut left, mut events) = (Duration::ZERO, steps, Vec::new());
    while left > 0 {
        for id in 0..batch {
            engine.start(common::job(id, pixels, STEPS as usize + 1))?;
        }
        let some = left.min(STEPS);
        let begin = Instant::now();
        for _ in 0..some {
            engine.step(&mut events)?;
        }
        total += begin.elapsed();
        left -= some;
        (0..batch).for_each(|id| engine.cancel(JobId(id)));
        events.clear();
    }
    Ok(total)
}
