//! Many images through one model: how the batch size and the order of encoding and decoding change
//! throughput under load and the latency of one caller. The input is pixels; no image is decoded.

mod common;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, SamplingMode, Throughput};
use cutline::engine::{GenerationParams, PixelValues, bench};
use cutline::error::{Error as CutlineError, Result};
use cutline::metrics::Metrics;
use cutline::scheduler::{
    Handle, JobEvent, JobRequest, Priority, QueueSlot, SchedulerOptions, VisionOrder,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Images that arrive at once.
const BURST: usize = 32;
/// Images that arrive one by one, at random times.
const ARRIVALS: usize = 60;
const ORDERS: [(&str, VisionOrder); 2] =
    [("by backlog", VisionOrder::ByBacklog), ("all first", VisionOrder::AllFirst)];
const SIZES: [usize; 3] = [1, 8, 16];

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let side = common::engine()?.info().image_size;
    let images: Vec<_> = (0..16).map(|seed| Arc::new(bench::image(seed, side))).collect();
    // The same arrivals for all orders and sizes, so that the results can be compared.
    let rate = 0.7 * full_speed(&runtime, &images)?;
    let mut criterion = common::criterion();
    for size in SIZES {
        for (name, order) in ORDERS {
            let queue = Queue { handle: spawn(order, size)?, images: images.clone() };
            let mut group = criterion.benchmark_group("queue");
            group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(BURST as u64));
            let of = |what: &str| BenchmarkId::new(format!("{what}, {name}"), size);
            group.bench_function(of("32 at once"), |bencher| {
                bencher
                    .iter_custom(|times| must(repeat(times, || runtime.block_on(queue.burst()))));
            });
            group.throughput(Throughput::Elements(1));
            group.bench_function(of("one, joined by 7"), |bencher| {
                bencher
                    .iter_custom(|times| must(repeat(times, || runtime.block_on(queue.joined()))));
            });
            group.bench_function(of("p95 at 70 %"), |bencher| {
                bencher.iter_custom(|times| {
                    must(repeat(times, || runtime.block_on(queue.arrivals(rate))))
                });
            });
            group.finish();
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Images per second with a full queue. The best of three runs, because other load on the machine
/// can only slow a run down.
fn full_speed(runtime: &Runtime, images: &[Arc<PixelValues>]) -> Result<f64> {
    let handle = spawn(VisionOrder::default(), 8)?;
    let queue = Queue { handle, images: images.to_vec() };
    let mut best = Duration::MAX;
    for _ in 0..3 {
        best = best.min(runtime.block_on(queue.burst())?);
    }
    Ok(BURST as f64 / best.as_secs_f64())
}

/// Ends the program on an error: a time without a result would look like a success.
fn must(result: Result<Duration>) -> Duration {
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    })
}

fn repeat(times: u64, mut work: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    (0..times).map(|_| work()).sum()
}

fn spawn(vision_order: VisionOrder, max_batch_size: usize) -> Result<Handle> {
    let engine = common::engine()?;
    let vision_batch = engine.info().vision_batch;
    let options = SchedulerOptions {
        max_batch_size,
        queue_capacity: BURST,
        vision_order,
        vision_batch,
        metrics: Metrics::new(),
    };
    Handle::spawn(Box::new(engine), options)
}

struct Queue {
    handle: Handle,
    images: Vec<Arc<PixelValues>>,
}

impl Queue {
    /// Image `number`, with a caption of 7 to 13 tokens.
    fn request(&self, number: usize) -> JobRequest {
        let tokens = 7 + number * 5 % 7;
        let params = GenerationParams {
            min_new_tokens: tokens,
            max_new_tokens: tokens,
            ..GenerationParams::default()
        };
        let image = Arc::clone(&self.images[number % self.images.len()]).into();
        JobRequest { image, prompt: Vec::new(), task: params.into() }
    }

    fn slot(&self) -> Result<QueueSlot> {
        let mut slots = self.handle.reserve(1, Priority::Interactive)?;
        slots.pop().ok_or_else(|| CutlineError::internal("no slot"))
    }

    /// The time until all images that arrived at once are captioned.
    async fn burst(&self) -> Result<Duration> {
        let begin = Instant::now();
        let mut jobs = JoinSet::new();
        for number in 0..BURST {
            jobs.spawn(captioned(self.slot()?, self.request(number)));
        }
        latencies(jobs).await?;
        Ok(begin.elapsed())
    }

    /// The latency of an image during whose decoding seven others arrive.
    async fn joined(&self) -> Result<Duration> {
        let begin = Instant::now();
        let mut first = self.slot()?.submit(self.request(3))?;
        let mut others = JoinSet::new();
        let mut time = Duration::ZERO;
        while let Some(event) = first.next().await {
            match event {
                JobEvent::Token(_) if others.is_empty() => {
                    for number in 0..7 {
                        others.spawn(captioned(self.slot()?, self.request(number)));
                    }
                }
                JobEvent::Done { .. } => time = begin.elapsed(),
                JobEvent::Failed(error) => return Err(error),
                _ => {}
            }
        }
        latencies(others).await?;
        Ok(time)
    }

    /// The 95th percentile of latency with random arrivals at this mean rate.
    async fn arrivals(&self, per_second: f64) -> Result<Duration> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut jobs = JoinSet::new();
        let mut next = Instant::now();
        for number in 0..ARRIVALS {
            tokio::time::sleep_until(next.into()).await;
            jobs.spawn(captioned(self.slot()?, self.request(number)));
            let wait = -(1.0 - random.random::<f64>()).ln() / per_second;
            next += Duration::from_secs_f64(wait);
        }
        let mut times = latencies(jobs).await?;
        times.sort_unstable();
        Ok(times[ARRIVALS * 95 / 100])
    }
}

/// The latency of one image.
async fn captioned(slot: QueueSlot, request: JobRequest) -> Result<Duration> {
    let begin = Instant::now();
    let mut submission = slot.submit(request)?;
    while let Some(event) = submission.next().await {
        match event {
            JobEvent::Done { .. } => return Ok(begin.elapsed()),
            JobEvent::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Err(CutlineError::internal("a job ended without a result"))
}

async fn latencies(mut jobs: JoinSet<Result<Duration>>) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while let Some(joined) = jobs.join_next().await {
        let crashed = |error| CutlineError::internal("a caller crashed").with_source(error);
        times.push(joined.map_err(crashed)??);
    }
    Ok(times)
}
