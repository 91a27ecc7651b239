//! Times an engine on generated images, for `cutline bench` and the benches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::local::LocalEngine;
use super::{Engine, Event, GenerationParams, ImageInput, Job, JobId, PixelValues};
use cutline_blip::ImageStates;
use cutline_error::{Error, Result};

/// The work that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Images that are captioned together.
    pub batch: usize,
    /// Tokens of every caption, exactly.
    pub new_tokens: usize,
    /// Measured passes, after one warm-up pass.
    pub iterations: usize,
}

/// The time of one image's share of a pass: medians over the iterations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Pixels to the image's states.
    pub vision: Duration,
    /// The image's states to the cross-attention's keys and values.
    pub cross_kv: Duration,
    /// Reading and writing tokens.
    pub decode: Duration,
    /// The whole pass, from the first image's start to the last caption's end.
    pub end_to_end: Duration,
}

/// Times the workload on images of the model's own size.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): a number is 0, or there are
/// more tokens than the model has positions. Otherwise a pass failed.
pub fn measure(engine: &mut LocalEngine, workload: Workload) -> Result<Measured> {
    let side = engine.info().image_size;
    measure_sized(engine, workload, [side, side])
}

/// [`measure`] on images of this width and height, which must be multiples of the patch size.
///
/// # Errors
/// As [`measure`].
pub fn measure_sized(
    engine: &mut LocalEngine,
    workload: Workload,
    size: [usize; 2],
) -> Result<Measured> {
    check(engine, workload)?;
    // One image for all: the engine does not recognise equal images, and the pixels of many would
    // count as memory of the model.
    let image = Arc::new(image_sized(0, size));
    let images: Vec<_> = std::iter::repeat_n(image, workload.batch).collect();
    pass(engine, &images, workload.new_tokens)?;
    let mut stages: [Vec<Duration>; 4] = Default::default();
    for _ in 0..workload.iterations {
        let begin = Instant::now();
        let [vision, cross_kv, decode] = pass(engine, &images, workload.new_tokens)?;
        let times = [vision, cross_kv, decode, begin.elapsed()];
        stages.iter_mut().zip(times).for_each(|(stage, time)| stage.push(time));
    }
    let [vision, cross_kv, decode, end_to_end] =
        stages.map(|stage| median(stage).div_f64(workload.batch as f64));
    Ok(Measured { vision, cross_kv, decode, end_to_end })
}

/// A seeded image of soft blobs, normalised like a photo: mean about 0, deviation about 1.
///
/// White noise would not do, because kernels that quantise depend on the range of their input.
#[must_use]
pub fn image(seed: u64, side: usize) -> PixelValues {
    image_sized(seed, [side, side])
}

fn image_sized(seed: u64, [width, height]: [usize; 2]) -> PixelValues {
    const KNOTS: usize = 12;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut data = Vec::with_capacity(3 * width * height);
    for _ in 0..3 {
        let knots: Vec<f32> =
            (0..(KNOTS + 1) * (KNOTS + 1)).map(|_| random.random_range(-2.0..2.0)).collect();
        let between = |x: usize, side: usize| {
            let position = x as f32 * KNOTS as f32 / side as f32;
            (position as usize, position.fract())
        };
        for y in 0..height {
            let (row, down) = between(y, height);
            for x in 0..width {
                let (column, right) = between(x, width);
                let first = row * (KNOTS + 1) + column;
                let mix = |at: usize| knots[at] * (1.0 - right) + knots[at + 1] * right;
                data.push(mix(first) * (1.0 - down) + mix(first + KNOTS + 1) * down);
            }
        }
    }
    PixelValues { data, width, height }
}

fn check(engine: &LocalEngine, workload: Workload) -> Result<()> {
    let positions = engine.info().max_positions.saturating_sub(1);
    let numbers = [
        ("batch", workload.batch, usize::MAX),
        ("new_tokens", workload.new_tokens, positions),
        ("iterations", workload.iterations, usize::MAX),
    ];
    for (name, number, most) in numbers {
        if number == 0 || number > most {
            let range = if most == usize::MAX { "at least 1" } else { &format!("1 to {most}") };
            return Err(Error::parameter(name, format!("{name} is {number}, but must be {range}")));
        }
    }
    Ok(())
}

/// The vision tower's output for `image(0, …)`, token after token, to compare devices or
/// precisions.
///
/// # Errors
/// The arithmetic failed.
pub fn states(engine: &mut LocalEngine) -> Result<Vec<f32>> {
    let image = Arc::new(image(0, engine.info().image_size));
    let encoded = engine.encode_one(image)?;
    match encoded.content::<ImageStates>() {
        Some(states) => states.to_vec(),
        None => Err(Error::internal("the image was encoded by another kind of engine")),
    }
}

/// Captions all images together, greedily, with exactly `new_tokens` tokens each. Returns the times
/// of the vision tower, of the cross-attention's keys and values, and of decoding. A GPU works
/// asynchronously, so each stage ends by waiting for it.
fn pass(
    engine: &mut LocalEngine,
    images: &[Arc<PixelValues>],
    new_tokens: usize,
) -> Result<[Duration; 3]> {
    let params = GenerationParams {
        min_new_tokens: new_tokens,
        max_new_tokens: new_tokens,
        ..GenerationParams::default()
    };
    let (mut vision, mut cross_kv) = (Duration::ZERO, Duration::ZERO);
    // Encode as many images at once as the server does, so that memory use is the same.
    for images in images.chunks(engine.info().vision_batch.max(1)) {
        let begin = Instant::now();
        let encoded = engine.encode(images)?;
        engine.synchronize()?;
        vision += begin.elapsed();
        let begin = Instant::now();
        for image in encoded {
            let id = JobId(engine.active() as u64);
            let image = ImageInput::Encoded(Arc::new(image));
            engine.start(Job::new(id, image, Vec::new(), params.clone()))?;
        }
        engine.synchronize()?;
        cross_kv += begin.elapsed();
    }
    let begin = Instant::now();
    let mut events = Vec::new();
    while engine.active() > 0 {
        engine.step(&mut events)?;
    }
    let mut written = 0;
    for event in events {
        match event {
            Event::Failed { error, .. } => return Err(error),
            Event::Done { sequences, .. } => {
                written += sequences.iter().map(|sequence| sequence.generated).sum::<usize>();
            }
            Event::Token { .. } | Event::Compared { .. } => {}
        }
    }
    if written != new_tokens * images.len() {
        return Err(Error::internal(format!("a measured pass wrote {written} tokens")));
    }
    Ok([vision, cross_kv, begin.elapsed()])
}

/// The middle value, or the mean of the middle two.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let (low, high) = (times[(times.len() - 1) / 2], times[times.len() / 2]);
    (low + high) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let median =
            |times: &[u64]| median(times.iter().map(|&t| Duration::from_secs(t)).collect());
        assert_eq!(median(&[5, 1, 9]), Duration::from_secs(5));
        assert_eq!(median(&[4, 1, 9, 2]), Duration::from_secs(3));
    }

    #[test]
    fn images_are_smooth_distinct_and_reproducible() {
        let one = image(1, 48);
        assert_eq!(one, image(1, 48));
        assert_ne!(one, image(2, 48));
        assert_eq!(one.data.len(), 3 * 48 * 48);
        let steps = one.data.chunks(48).flat_map(|row| row.windows(2).map(|w| (w[1] - w[0]).abs()));
        assert!(steps.fold(0.0, f32::max) <= 1.0);
        assert!(one.data.iter().all(|value| value.abs() <= 2.0));
    }
}
