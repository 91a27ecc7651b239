//! A model with the goldens that belong to it, and the implementations that run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cutline::blip::{BlipConfig, ImageStates, Model, Read, Scores, Slot, Weights};
use cutline::engine::local::LocalEngine;
use cutline::engine::{
    self, DeviceChoice, EngineOptions, Job, JobId, KernelChoice, PixelValues, Precision, Work,
};
use cutline::generate::{EarlyStopping, GenerationParams};
use cutline::kernels::Tier;
use safetensors::SafeTensors;
use serde::Deserialize;

/// Which implementation runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// Our kernels.
    Kernels(KernelChoice, Precision),
    /// candle on its CPU device, as on a GPU.
    Candle(Precision),
}

pub(super) const CANDLE: Backend = Backend::Candle(Precision::F32);

/// The slowest and simplest kernels, which every CPU has.
pub(super) const PORTABLE: Backend =
    Backend::Kernels(KernelChoice::Tier(Tier::Portable), Precision::F32);

/// Whether to run the comparisons that take minutes.
pub(super) const LONG: bool = cfg!(feature = "long-tests");

/// The distance between the cases of a tiny model that run in batches: all cases in long tests,
/// otherwise a third.
pub(super) const STEP: usize = if LONG { 1 } else { 3 };

/// All of `backends` in long tests, otherwise the last one: the embedded model takes candle
/// minutes.
pub(super) fn selected(backends: &[Backend]) -> &[Backend] {
    if LONG { backends } else { &backends[backends.len() - 1..] }
}

/// The instruction sets to test: all that this CPU has in long tests, otherwise the least and the
/// greatest of them.
fn tiers() -> Vec<Tier> {
    let mut tiers = Tier::available().to_vec();
    if !LONG && tiers.len() > 2 {
        tiers.drain(1..tiers.len() - 1);
    }
    tiers
}

/// Everything that computes in f32 on this CPU.
pub(super) fn full_precision() -> Vec<Backend> {
    let tiers = tiers().into_iter();
    let tiers = tiers.map(|tier| Backend::Kernels(KernelChoice::Tier(tier), Precision::F32));
    std::iter::once(CANDLE).chain(tiers).collect()
}

/// Every backend in every precision whose results do not depend on the batch, bit for bit.
pub(super) fn every_exact_backend() -> Vec<Backend> {
    let precisions = [Precision::F32, Precision::Bf16, Precision::Int8];
    let of_tier = |tier| precisions.map(|p| Backend::Kernels(KernelChoice::Tier(tier), p));
    tiers().into_iter().flat_map(of_tier).collect()
}

/// The fastest kernels of this CPU.
pub(super) fn best(precision: Precision) -> Backend {
    Backend::Kernels(KernelChoice::Auto, precision)
}

impl Backend {
    /// Whether a job's result does not depend on the other jobs in the batch, bit for bit. candle
    /// multiplies all rows at once, and rounding may depend on their number.
    pub(super) fn is_exact(self) -> bool {
        matches!(self, Self::Kernels(..))
    }
}

/// A model with what transformers computes for it.
pub(super) struct Set {
    pub(super) name: String,
    pub(super) model: Box<dyn Model>,
    goldens: Goldens,
    tensors: Vec<u8>,
}

#[derive(Deserialize)]
struct Goldens {
    /// Height and width of the images that are computed, not stored.
    #[serde(default)]
    sizes: Vec<[usize; 2]>,
    cases: Vec<Case>,
    #[serde(default)]
    rankings: Vec<Ranking>,
    #[serde(default)]
    texts: Vec<Text>,
    #[serde(default)]
    scores: Vec<ImageScores>,
}

/// A text, and its embedding.
#[derive(Deserialize)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
    pub(super) embedding: Vec<f32>,
}

/// The embedding of an image, and how well every text matches it.
#[derive(Deserialize)]
pub(super) struct ImageScores {
    pub(super) image: usize,
    pub(super) embedding: Vec<f32>,
    pub(super) pairs: Vec<Pair>,
}

#[derive(Deserialize)]
pub(super) struct Pair {
    pub(super) logits: [f32; 2],
    #[serde(rename = "match")]
    pub(super) matching: f32,
    pub(super) similarity: f32,
}

/// Texts after a prompt, with the logarithms of their probabilities.
#[derive(Deserialize)]
pub(super) struct Ranking {
    pub(super) image: usize,
    pub(super) prompt: Vec<u32>,
    pub(super) texts: Vec<RankedText>,
}

#[derive(Deserialize)]
pub(super) struct RankedText {
    pub(super) ids: Vec<u32>,
    pub(super) score: f32,
}

#[derive(Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) image: usize,
    pub(super) prompt: Vec<u32>,
    /// For models that answer questions.
    #[serde(default)]
    pub(super) question: Vec<u32>,
    #[serde(default)]
    pub(super) question_text: Option<String>,
    params: serde_json::Map<String, serde_json::Value>,
    pub(super) sequences: Vec<Expected>,
}

#[derive(Deserialize)]
pub(super) struct Expected {
    pub(super) ids: Vec<u32>,
    pub(super) generated: usize,
    pub(super) finish_reason: String,
    pub(super) score: Option<f32>,
    pub(super) confidence: f32,
    /// In the sets that have a tokenizer.
    #[serde(default)]
    pub(super) text: Option<String>,
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Set {
    pub(super) fn tiny(name: &str, backend: Backend) -> Self {
        let folder = root().join("tests/goldens").join(name);
        Self::load(name, &folder, &folder, backend)
    }

    pub(super) fn embedded(backend: Backend) -> Self {
        let goldens = root().join("tests/goldens/embedded");
        Self::load("embedded", &root().join("models/cutline-small"), &goldens, backend)
    }

    pub(super) fn load(name: &str, checkpoint: &Path, goldens: &Path, backend: Backend) -> Self {
        let read = |path: PathBuf| {
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let config = BlipConfig::from_json(&read(checkpoint.join("config.json"))).unwrap();
        let whole = checkpoint.join("model.safetensors");
        let weights = if whole.exists() {
            Weights::from_safetensors_bytes(name, read(whole).into()).unwrap()
        } else {
            let files = std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path());
            let shards = files.filter(|path| path.to_str().unwrap().contains("-of-"));
            Weights::from_files(&shards.collect::<Vec<_>>()).unwrap()
        };
        let model = match backend {
            Backend::Kernels(kernels, precision) => {
                let device = DeviceChoice::Cpu;
                let options =
                    EngineOptions { device, precision, kernels, ..EngineOptions::default() };
                engine::load_model(&config, &weights, options)
            }
            Backend::Candle(precision) => {
                engine::load_gpu_model_on_cpu(&config, &weights, precision)
            }
        };
        Self {
            name: format!("{name} ({backend:?})"),
            model: model.unwrap(),
            goldens: serde_json::from_slice(&read(goldens.join("goldens.json"))).unwrap(),
            tensors: read(goldens.join("goldens.safetensors")),
        }
    }

    pub(super) fn images(&self) -> usize {
        1 + self.goldens.cases.iter().map(|case| case.image).max().unwrap()
    }

    fn bytes(&self, name: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        tensors.tensor(name).ok().map(|view| (view.shape().to_vec(), view.data().to_vec()))
    }

    /// A stored tensor as rows of its last dimension.
    pub(super) fn rows(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        let (shape, bytes) = self.bytes(name)?;
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some(values.chunks(*shape.last().unwrap()).map(<[f32]>::to_vec).collect())
    }

    /// The token ids whose logits are stored.
    pub(super) fn ids(&self, image: usize) -> Vec<u32> {
        let (_, bytes) = self.bytes(&format!("ids.{image}")).unwrap();
        bytes.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub(super) fn pixels(&self, image: usize) -> PixelValues {
        if let Some((shape, _)) = self.bytes(&format!("pixels.{image}")) {
            let data = self.rows(&format!("pixels.{image}")).unwrap().concat();
            return PixelValues { data, width: shape[2], height: shape[1] };
        }
        let [height, width] = self.goldens.sizes[image];
        let data = match self.bytes(&format!("u8.{image}")) {
            Some((_, bytes)) => normalised(&bytes),
            None => synthetic(image, width, height),
        };
        PixelValues { data, width, height }
    }

    /// The vision tower's states of an image.
    pub(super) fn encode(&mut self, pixels: &PixelValues) -> ImageStates {
        let (width, height) = (pixels.width, pixels.height);
        self.model.encode(&[&pixels.data], width, height).unwrap().remove(0)
    }

    /// All logits after these tokens of a slot.
    pub(super) fn read(&mut self, slot: &mut Slot, tokens: &[u32]) -> Vec<f32> {
        let scores = self.model.read(&mut [Read { slot, tokens, top: None }]).unwrap().remove(0);
        let Scores::Logits(logits) = scores else { panic!("{}: {scores:?}", self.name) };
        logits
    }

    pub(super) fn take_scores(&mut self) -> (Vec<Text>, Vec<ImageScores>) {
        (std::mem::take(&mut self.goldens.texts), std::mem::take(&mut self.goldens.scores))
    }

    pub(super) fn take_rankings(&mut self) -> Vec<Ranking> {
        std::mem::take(&mut self.goldens.rankings)
    }

    pub(super) fn engine(self) -> (LocalEngine, Vec<Case>, Vec<Arc<PixelValues>>) {
        let pixels = (0..self.images()).map(|image| Arc::new(self.pixels(image))).collect();
        (LocalEngine::new(self.model), self.goldens.cases, pixels)
    }
}

/// The synthetic images of make_goldens.py.
fn synthetic(n: usize, width: usize, height: usize) -> Vec<f32> {
    let mut data = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        for y in 0..height {
            for x in 0..width {
                let value = (3 + n) * x + (2 + n) * y * (channel + 1) + x * y / (8 + 5 * n);
                data.push((value % 256) as f32 / 64.0 - 2.0);
            }
        }
    }
    data
}

/// Interleaved bytes to normalised planes, with CLIP's mean and deviation.
fn normalised(bytes: &[u8]) -> Vec<f32> {
    const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
    let plane = |c: usize| {
        bytes
            .iter()
            .skip(c)
            .step_by(3)
            .map(move |b| (f32::from(*b) / 255.0 - MEAN[c]) / DEVIATION[c])
    };
    (0..3).flat_map(plane).collect()
}

pub(super) fn params(case: &Case) -> GenerationParams {
    let mut params = GenerationParams::default();
    for (name, value) in &case.params {
        let number = || value.as_u64().unwrap() as usize;
        let real = || value.as_f64().unwrap() as f32;
        match name.as_str() {
            "max_new_tokens" => params.max_new_tokens = number(),
            "min_new_tokens" => params.min_new_tokens = number(),
            "num_beams" => params.num_beams = number(),
            "num_return_sequences" => params.num_return_sequences = number(),
            "no_repeat_ngram_size" => params.no_repeat_ngram_size = number(),
            "length_penalty" => params.length_penalty = real(),
            "repetition_penalty" => params.repetition_penalty = real(),
            "early_stopping" if value == true => params.early_stopping = EarlyStopping::Always,
            "early_stopping" => params.early_stopping = EarlyStopping::Never,
            other => panic!("{other} is not translated"),
        }
    }
    params
}

pub(super) fn job(id: usize, case: &Case, pixels: &[Arc<PixelValues>]) -> Job {
    let image = Arc::clone(&pixels[case.image]);
    let task = match &case.question[..] {
        [] => params(case).into(),
        question => Work::Answer { question: question.to_vec(), task: params(case).into() },
    };
    Job::new(JobId(id as u64), image, case.prompt.clone(), task)
}
