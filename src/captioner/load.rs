//! From settings to a warm captioner.

use std::num::NonZero;
use std::path::Path;
use std::time::Instant;

use super::{
    AppearanceOptions, Captioner, CaptionerParts, Decoders, GenerationDefaults, Gpu, ImageMemory,
    MemoryLimits, ModelExtras, ModelInfo,
};
use crate::engine::batch_size::{self, Known, recall};
use crate::engine::local::LocalEngine;
use crate::engine::source::{self, ModelFiles, ModelSource};
use crate::engine::{EngineInfo, EngineOptions, Family, HubOptions, MAX_BEAMS};
use crate::metrics::{Metrics, milliseconds, resident_bytes};
use crate::scheduler::VisionOrder;
use crate::tokenizer::{Tokenizer, TokenizerSource};
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::{DecodeLimits, PreprocessConfig};

/// Images that may wait for a CPU, and at least for a GPU.
const QUEUE_CAPACITY: usize = 64;

/// Batches that may wait for a GPU.
const BATCHES_IN_QUEUE: usize = 8;

/// Images that are decoded at a time while the model runs on the CPU: the model needs the cores itself.
pub const WORKERS_ON_CPU: usize = 2;

/// Everything that configures a [`Captioner`].
#[derive(Debug, Clone)]
pub struct CaptionerSettings {
    /// The model to load.
    pub model: ModelSource,
    /// Access to the Hugging Face hub.
    pub hub: HubOptions,
    /// Device, precision and CPU kernels.
    pub engine: EngineOptions,
    /// Width of the model's input in pixels; `None` for the model's own.
    pub target_width: Option<usize>,
    /// Height of the model's input in pixels; `None` for the model's own.
    pub target_height: Option<usize>,
    /// Largest image in bytes.
    pub max_image_bytes: usize,
    /// Largest image in pixels.
    pub max_image_pixels: u64,
    /// Images that are decoded at a time; `None` for the device's default.
    pub max_workers: Option<usize>,
    /// Rows that are decoded together; `None` for the device's default.
    pub max_batch_size: Option<usize>,
    /// When images are encoded while others are decoded.
    pub vision_order: VisionOrder,
    /// Images that may wait; `None` for what suits the device.
    pub queue_capacity: Option<usize>,
    /// Limits of caches and image memory.
    pub memory: MemoryLimits,
    /// Memory for images that is shared with others; `None` for its own, within the limits of
    /// [`memory`](Self::memory).
    pub image_memory: Option<ImageMemory>,
    /// Threads that decode images for another captioner as well, within its limits; `None` for its own.
    pub decoders: Option<Decoders>,
    /// Bytes that the files of the weights may have; `None` for no limit.
    pub max_weight_bytes: Option<u64>,
    /// The alternative text of a photo for which the model finds no description.
    pub fallback_text: String,
    /// What is found out about how photos look, for a library; `None` for nothing.
    pub appearance: Option<AppearanceOptions>,
    /// Where stages, steps and failures are counted.
    pub metrics: Metrics,
}

impl Default for CaptionerSettings {
    /// The embedded model on the best device, with the defaults of the server.
    fn default() -> Self {
        let DecodeLimits { max_bytes, max_pixels } = DecodeLimits::default();
        Self {
            model: ModelSource::Embedded,
            hub: HubOptions::default(),
            engine: EngineOptions::default(),
            target_width: None,
            target_height: None,
            max_image_bytes: max_bytes,
            max_image_pixels: max_pixels,
            max_workers: None,
            max_batch_size: None,
            vision_order: VisionOrder::default(),
            queue_capacity: None,
            memory: MemoryLimits::default(),
            image_memory: None,
            decoders: None,
            max_weight_bytes: None,
            fallback_text: "Image description not available".to_owned(),
            appearance: None,
            metrics: Metrics::new(),
        }
    }
}

impl CaptionerSettings {
    /// The same settings, counting in `metrics`.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// The same settings, with memory for images that is shared with others.
    #[must_use]
    pub fn with_image_memory(self, memory: ImageMemory) -> Self {
        Self { image_memory: Some(memory), ..self }
    }
}

impl Captioner {
    /// Opens the files, loads the model and runs it once. Blocks until that is done.
    ///
    /// # Errors
    /// [`Model`](ErrorKind::Model) or [`Config`](ErrorKind::Config); the detail names the problem and
    /// the remedy.
    pub fn load(settings: &CaptionerSettings) -> Result<Self> {
        let begin = Instant::now();
        let files = source::open(&settings.model, &settings.hub)?;
        check_weights(settings.max_weight_bytes, files.weights.file_bytes())?;
        let tokenizer = Tokenizer::load(TokenizerSource {
            json: files.tokenizer.json.as_deref(),
            vocab: files.tokenizer.vocab.as_deref(),
            config: files.tokenizer.config.as_deref(),
        })?;
        let extras = ModelExtras::from_json(files.extras.as_deref())?;
        let mut engine = crate::engine::load(&files, settings.engine)?;
        if settings.appearance.is_some() {
            engine.keep_features();
        }
        tokenizer.check_fits(engine.info().vocab_size)?;
        if engine.info().family.reads() {
            tokenizer.check_ends()?;
        }
        let preprocess = preprocessing(settings, &files, engine.info())?;
        check_memory(settings, &preprocess)?;
        let load_ms = milliseconds(begin.elapsed());

        let begin = Instant::now();
        engine.warm_up(preprocess.width, preprocess.height)?;
        let max_batch_size = match settings.max_batch_size {
            Some(rows) => rows,
            None => {
                fitting_batch(&mut engine, &preprocess, &files.digest, &settings.hub.cache_dir)?
            }
        };
        let warm_up_ms = milliseconds(begin.elapsed());

        let engine_info = engine.info().clone();
        let info = describe(files, &engine_info, &preprocess, &extras, (load_ms, warm_up_ms));
        let memory = settings.memory;
        let batch_bytes = engine.batch_bytes(max_batch_size, preprocess.width, preprocess.height);
        let limits = DecodeLimits {
            max_bytes: settings.max_image_bytes,
            max_pixels: settings.max_image_pixels,
        };
        let max_workers = settings.max_workers.unwrap_or_else(|| workers(&engine_info));
        let decoders = settings.decoders.clone().unwrap_or_else(|| {
            let images = settings.image_memory.clone().unwrap_or_else(|| {
                ImageMemory::new(memory.max_inflight_bytes, memory.max_decode_bytes)
            });
            Decoders::with_memory(limits, max_workers, images)
        });
        Self::assemble(
            Box::new(engine),
            CaptionerParts {
                tokenizer,
                preprocess,
                limits,
                info,
                extras,
                max_workers,
                max_batch_size,
                vision_order: settings.vision_order,
                vision_batch: engine_info.vision_batch,
                queue_capacity: settings
                    .queue_capacity
                    .unwrap_or_else(|| queue_capacity(engine_info.on_cpu(), max_batch_size)),
                memory,
                fallback_text: settings.fallback_text.clone(),
                appearance: settings.appearance,
                metrics: settings.metrics.clone(),
            },
            decoders,
            batch_bytes,
        )
    }
}

/// The largest useful batch of the device, measured unless it is known in `folder` for the weights with
/// this digest; logs what was measured.
fn fitting_batch(
    engine: &mut LocalEngine,
    preprocess: &PreprocessConfig,
    digest: &str,
    folder: &Path,
) -> Result<usize> {
    if engine.info().on_cpu() {
        return Ok(batch_size::ON_CPU);
    }
    let PreprocessConfig { width, height, .. } = *preprocess;
    let known = Known::of(folder, digest, engine.info(), [width, height]);
    let before = known.as_ref().and_then(|known| recall(engine, known, width, height));
    let (found, when) = match before {
        Some(found) => (found, "as measured at an earlier start"),
        None => (batch_size::find(engine, width, height)?, "as measured now"),
    };
    tracing::info!(
        max_batch_size = found.rows,
        images_per_second = found.images_per_second,
        "decoding up to {} captions together, {when}: {}",
        found.rows,
        found.limit.as_str()
    );
    if let (Some(known), None) = (&known, before)
        && let Err(error) = known.write(found)
    {
        let path = known.path().display();
        tracing::info!("the batch size cannot be kept for the next start: {path}: {error}");
    }
    Ok(found.rows)
}

/// Images that are decoded at a time. A GPU leaves all cores free and captions faster than a few cores
/// decode.
fn workers(engine: &EngineInfo) -> usize {
    if engine.on_cpu() {
        WORKERS_ON_CPU
    } else {
        std::thread::available_parallelism().map_or(WORKERS_ON_CPU, NonZero::get)
    }
}

/// Images that may wait. On a GPU they are several batches: the faster it is, the larger is the batch
/// that pays, and the sooner a queue that is enough for a CPU would run empty.
fn queue_capacity(on_cpu: bool, max_batch_size: usize) -> usize {
    let batches = if on_cpu { 0 } else { BATCHES_IN_QUEUE };
    QUEUE_CAPACITY.max(batches * max_batch_size)
}

/// The checkpoint's preprocessing at the configured size.
fn preprocessing(
    settings: &CaptionerSettings,
    files: &ModelFiles,
    engine: &EngineInfo,
) -> Result<PreprocessConfig> {
    let config = PreprocessConfig::from_json(files.preprocessor.as_deref())?;
    let width = settings.target_width.unwrap_or(engine.image_size);
    let height = settings.target_height.unwrap_or(engine.image_size);
    for (name, side) in [("TARGET_IMAGE_WIDTH", width), ("TARGET_IMAGE_HEIGHT", height)] {
        if side == 0 || side % engine.patch_size != 0 {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{name}={side} cannot be used: this model cuts images into patches of \
                     {patch} pixels, so give a multiple of {patch}, or leave it out for {own}",
                    patch = engine.patch_size,
                    own = engine.image_size,
                ),
            ));
        }
    }
    config.with_size(width, height)
}

/// Checks that the largest allowed image and its input for the model fit into the memory of an idle
/// server.
fn check_memory(settings: &CaptionerSettings, preprocess: &PreprocessConfig) -> Result<()> {
    let needed = (settings.max_image_bytes + preprocess.input_bytes()) as u64;
    let given = settings.memory.max_inflight_bytes;
    if needed > given {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "MAX_INFLIGHT_BYTES={given} cannot be used: the largest image and the model's \
                 input take {needed} bytes; give at least that many"
            ),
        ));
    }
    Ok(())
}

/// Checks that the weights fit into what is left for them.
fn check_weights(left: Option<u64>, needed: u64) -> Result<()> {
    let Some(left) = left.filter(|left| *left < needed) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "its weights have {needed} bytes, and MAX_MODEL_BYTES leaves {left} for them; raise it, or              load fewer or smaller models"
        ),
    ))
}

/// The positions of the vision tower: one for each patch, and one for the whole image.
fn image_tokens(preprocess: &PreprocessConfig, patch: usize) -> usize {
    let patch = patch.max(1);
    (preprocess.width / patch) * (preprocess.height / patch) + 1
}

/// The names of what a model can do.
fn tasks(family: Family) -> Vec<String> {
    family.abilities().iter().map(|ability| ability.as_str().to_owned()).collect()
}

/// The licence of the checkpoint, with what it does not say.
fn license(license: Option<String>, family: Family) -> Option<String> {
    match (license, family.terms()) {
        (license, None) => license,
        (None, Some(terms)) => Some(terms.to_owned()),
        (Some(license), Some(terms)) => Some(format!("{license}; {terms}")),
    }
}

fn describe(
    files: ModelFiles,
    engine: &EngineInfo,
    preprocess: &PreprocessConfig,
    extras: &ModelExtras,
    (load_ms, warm_up_ms): (f64, f64),
) -> ModelInfo {
    let defaults = extras.generation;
    ModelInfo {
        weight_bytes: files.weights.file_bytes(),
        digest: files.digest,
        id: files.id,
        architecture: engine.family.architecture().to_owned(),
        tasks: tasks(engine.family),
        family: engine.family,
        embedding_size: engine.embedding_size,
        parameters: engine.parameters,
        precision: engine.precision.clone(),
        kernels: engine.kernels.clone(),
        device: engine.device.clone(),
        gpu: engine.gpu.clone().map(Gpu::from),
        threads: engine.threads,
        input_size: [preprocess.width, preprocess.height],
        image_tokens: image_tokens(preprocess, engine.patch_size),
        vocab_size: engine.vocab_size,
        max_positions: engine.max_positions,
        generation: GenerationDefaults {
            max_new_tokens: defaults.max_new_tokens.min(engine.max_positions),
            max_new_tokens_limit: engine.max_positions,
            min_new_tokens: defaults.min_new_tokens,
            num_beams: defaults.num_beams,
            num_beams_limit: MAX_BEAMS,
            num_captions_limit: MAX_BEAMS,
            length_penalty: defaults.length_penalty,
            repetition_penalty: defaults.repetition_penalty,
            no_repeat_ngram_size: defaults.no_repeat_ngram_size,
        },
        source: files.source,
        revision: files.revision,
        license: license(files.license, engine.family),
        load_ms,
        warm_up_ms,
        memory_bytes: resident_bytes(),
        others: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_a_queue_of_several_batches() {
        assert_eq!(queue_capacity(true, 1024), 64);
        assert_eq!(queue_capacity(false, 1), 64);
        assert_eq!(queue_capacity(false, 128), 1024);
    }
}
