//! The code that the benches share: settings from the environment of this process (`MODEL=…`), and
//! measurements that are short enough to be repeated after every change.

// Every bench is a separate crate and uses a part of this.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use cutline::captioner::CaptionerSettings;
use cutline::config::{Values, captioner_settings};
use cutline::engine::local::LocalEngine;
use cutline::engine::{self, GenerationParams, Job, JobId, PixelValues, source};
use cutline::error::Result;
use cutline::image::{DecodeLimits, PreprocessConfig, decode};

/// The example photos, by name.
pub(crate) const PHOTOS: [&str; 4] = ["astronaut", "cat", "coffee", "rocket"];

/// Few samples: on a machine with other work, more of them would only measure its noise.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args()
}

pub(crate) fn settings() -> Result<CaptionerSettings> {
    captioner_settings(&Values::of_process())
}

/// The engine for the settings; without `MODEL`, with the embedded model.
pub(crate) fn engine() -> Result<LocalEngine> {
    let settings = settings()?;
    let files = source::open(&settings.model, &settings.hub)?;
    engine::load(&files, settings.engine)
}

/// A greedy job of exactly `new_tokens` tokens.
pub(crate) fn job(id: u64, pixels: &Arc<PixelValues>, new_tokens: usize) -> Job {
    let params = GenerationParams {
        min_new_tokens: new_tokens,
        max_new_tokens: new_tokens,
        ..GenerationParams::default()
    };
    Job::new(JobId(id), Arc::clone(pixels), Vec::new(), params)
}

/// An image of the model's own size.
pub(crate) fn image(engine: &LocalEngine) -> Arc<PixelValues> {
    Arc::new(engine::bench::image(0, engine.info().image_size))
}

pub(crate) fn photo(name: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/{name}.jpg")))
}

/// A JPEG like that of a camera, about 4 MB for 4000 × 3000 pixels: a scaled example photo, with
/// grain in two sizes instead of the missing detail; 4:2:0, quality 90.
pub(crate) fn camera_photo(
    width: usize,
    height: usize,
) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let small = decode(&photo("coffee")?, &DecodeLimits::default())?;
    let mut rgb = PreprocessConfig::default().with_size(width, height)?.resize(&small)?;
    for (index, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (x, y) = (index % width, index / width);
        let grain = noise(x, y) / 6 + noise(x / 2 + width, y / 2) / 4;
        *pixel = pixel.map(|sample| (i32::from(sample) + grain).clamp(0, 255) as u8);
    }
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(width, height);
    encoder.set_fastest_defaults();
    encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
    encoder.set_quality(90.0);
    let mut encoder = encoder.start_compress(Vec::new())?;
    encoder.write_scanlines(&rgb)?;
    Ok(encoder.finish()?)
}

/// The sum of four hashes of the coordinates: -64 to 63, with a bell-shaped distribution.
fn noise(x: usize, y: usize) -> i32 {
    let mut hash = (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
    hash ^= hash >> 15;
    hash.to_le_bytes().iter().map(|byte| i32::from(byte % 32)).sum::<i32>() - 64
}
