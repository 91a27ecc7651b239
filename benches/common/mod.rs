//! What the benches share: the settings of this process (`MODEL=… PRECISION=… cargo bench`), and
//! measurements short enough to be repeated after every change.

// Every bench is a crate of its own and uses a part of this.
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

/// The example photos, by name.
pub(crate) const PHOTOS: [&str; 4] = ["astronaut", "cat", "coffee", "rocket"];

/// Few samples: on a machine that does other things more of them show its noise, not ours.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args()
}

pub(crate) fn settings() -> Result<CaptionerSettings> {
    captioner_settings(&Values::of_process()?)
}

/// The engine that the settings ask for, the embedded model unless there is a `MODEL`.
pub(crate) fn engine() -> Result<LocalEngine> {
    let settings = settings()?;
    let files = source::open(&settings.model, &settings.hub)?;
    engine::load(&files, settings.engine)
}

/// Greedy work of exactly `new_tokens` tokens.
pub(crate) fn job(id: u64, pixels: &Arc<PixelValues>, new_tokens: usize) -> Job {
    let params = GenerationParams {
        min_new_tokens: new_tokens,
        max_new_tokens: new_tokens,
        ..GenerationParams::default()
    };
    Job { id: JobId(id), image: Arc::clone(pixels).into(), prompt: Vec::new(), params }
}

/// An image of the model's own size.
pub(crate) fn image(engine: &LocalEngine) -> Arc<PixelValues> {
    Arc::new(engine::bench::image(0, engine.info().image_size))
}

pub(crate) fn photo(name: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{name}.jpg")))
}
