//! Parity with Hugging Face transformers, in f32 on the CPU: the goldens in tests/goldens, made by
//! `make_goldens.py` there, against a tiny random model of several shapes and the embedded one, on
//! candle and on every set of kernels that this CPU can run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cutline::blip::{BlipConfig, Weights};
use cutline::engine::local::LocalEngine;
use cutline::engine::{
    Backend, DeviceChoice, Encoded, Engine, EngineOptions, Event, Job, JobId, KernelChoice,
    PixelValues, Precision, Sequence,
};
use cutline::generate::{EarlyStopping, FinishReason, GenerationParams};
use cutline::kernels::Tier;
use safetensors::SafeTensors;
use serde::Deserialize;

const VISION: f32 = 1e-4;
const LOGITS: f32 = 1e-3;
const TINY: [&str; 3] = ["tied", "untied", "half"];

const CANDLE: (KernelChoice, Precision) = (KernelChoice::Candle, Precision::F32);

/// Every way to compute in f32 here.
fn full_precision() -> Vec<(KernelChoice, Precision)> {
    let tiers = Tier::available().iter().map(|&tier| (KernelChoice::Tier(tier), Precision::F32));
    std::iter::once(CANDLE).chain(tiers).collect()
}

/// Every set of kernels in every precision.
fn every_way() -> Vec<(KernelChoice, Precision)> {
    let mut ways = full_precision();
    for &tier in Tier::available() {
        ways.extend([Precision::Bf16, Precision::Int8].map(|p| (KernelChoice::Tier(tier), p)));
    }
    ways
}

/// The fastest kernels here.
fn best(precision: Precision) -> (KernelChoice, Precision) {
    (KernelChoice::Auto, precision)
}

/// A model with what transformers made of it.
struct Set {
    name: String,
    model: Backend,
    goldens: Goldens,
    tensors: Vec<u8>,
}

#[derive(Deserialize)]
struct Goldens {
    /// Height and width of the images that are computed, not stored.
    #[serde(default)]
    sizes: Vec<[usize; 2]>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image: usize,
    prompt: Vec<u32>,
    params: serde_json::Map<String, serde_json::Value>,
    sequences: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
    generated: usize,
    finish_reason: String,
    score: Option<f32>,
    confidence: f32,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Set {
    fn tiny(name: &str, way: (KernelChoice, Precision)) -> Self {
        let folder = root().join("tests/goldens").join(name);
        Self::load(name, &folder, &folder, way)
    }

    fn embedded(way: (KernelChoice, Precision)) -> Self {
        let goldens = root().join("tests/goldens/embedded");
        Self::load("embedded", &root().join("models/cutline-small"), &goldens, way)
    }

    fn load(
        name: &str,
        checkpoint: &Path,
        goldens: &Path,
        (kernels, precision): (KernelChoice, Precision),
    ) -> Self {
        let read = |path: PathBuf| {
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let config = BlipConfig::from_json(&read(checkpoint.join("config.json"))).unwrap();
        let bytes = read(checkpoint.join("model.safetensors"));
        let weights = Weights::from_safetensors_bytes(name, bytes.into()).unwrap();
        let options = EngineOptions { device: DeviceChoice::Cpu, precision, kernels };
        Self {
            name: format!("{name} ({kernels:?}, {precision})"),
            model: Backend::load(&config, &weights, options).unwrap(),
            goldens: serde_json::from_slice(&read(goldens.join("goldens.json"))).unwrap(),
            tensors: read(goldens.join("goldens.safetensors")),
        }
    }

    fn images(&self) -> usize {
        1 + self.goldens.cases.iter().map(|case| case.image).max().unwrap()
    }

    fn bytes(&self, name: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        tensors.tensor(name).ok().map(|view| (view.shape().to_vec(), view.data().to_vec()))
    }

    /// A stored tensor as rows of its last dimension.
    fn rows(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        let (shape, bytes) = self.bytes(name)?;
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some(values.chunks(*shape.last().unwrap()).map(<[f32]>::to_vec).collect())
    }

    /// The token ids whose logits are stored.
    fn ids(&self, image: usize) -> Vec<u32> {
        let (_, bytes) = self.bytes(&format!("ids.{image}")).unwrap();
        bytes.chunks_exact(8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn pixels(&self, image: usize) -> PixelValues {
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

    fn engine(self) -> (LocalEngine, Vec<Case>, Vec<Arc<PixelValues>>) {
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

fn params(case: &Case) -> GenerationParams {
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

fn job(id: usize, case: &Case, pixels: &[Arc<PixelValues>]) -> Job {
    Job {
        id: JobId(id as u64),
        image: pixels[case.image].clone().into(),
        prompt: case.prompt.clone(),
        params: params(case),
    }
}

/// What became of a job: its sequences, and the tokens that were reported on the way.
type Outcome = (Vec<Sequence>, Vec<u32>);

/// Runs the jobs, starting `each` of them before every step, to their ends.
fn run(engine: &mut LocalEngine, jobs: Vec<Job>, each: usize) -> BTreeMap<u64, Outcome> {
    let (mut waiting, mut outcomes) = (jobs.into_iter(), BTreeMap::<u64, Outcome>::new());
    loop {
        for job in waiting.by_ref().take(each) {
            engine.start(job).unwrap();
        }
        if engine.active() == 0 {
            return outcomes;
        }
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        for event in events {
            match event {
                Event::Token { job, token } => outcomes.entry(job.0).or_default().1.push(token),
                Event::Done { job, sequences } => outcomes.entry(job.0).or_default().0 = sequences,
                Event::Failed { job, error } => panic!("job {}: {error}", job.0),
            }
        }
    }
}

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Greatest differences of the vision tower's output and of the logits, over all images.
fn check_numbers(mut set: Set) {
    let set = &mut set;
    let (mut vision, mut logits) = (0_f32, 0_f32);
    for image in 0..set.images() {
        let pixels = set.pixels(image);
        let states = set.model.encode(&pixels.data, pixels.width, pixels.height).unwrap();
        vision = vision.max(vision_difference(set, image, &states.states().unwrap()));
        logits = logits.max(logits_difference(set, image, &states));
    }
    println!("{}: vision {vision:.1e}, logits {logits:.1e}", set.name);
    assert!(vision < VISION, "{}: vision output differs by {vision}", set.name);
    assert!(logits < LOGITS, "{}: logits differ by {logits}", set.name);
}

fn vision_difference(set: &Set, image: usize, states: &[f32]) -> f32 {
    if let Some(all) = set.rows(&format!("vision.{image}")) {
        return worst(states, &all.concat());
    }
    let width = set.model.config().vision.hidden_size;
    let states: Vec<&[f32]> = states.chunks(width).collect();
    let some: Vec<f32> = states.iter().step_by(32).copied().flatten().copied().collect();
    let power: Vec<f32> = states
        .iter()
        .map(|row| row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32)
        .collect();
    let rows = set.rows(&format!("vision_rows.{image}")).unwrap().concat();
    let powers = set.rows(&format!("vision_power.{image}")).unwrap().concat();
    worst(&some, &rows).max(worst(&power, &powers))
}

/// Token by token with the cache, and every prefix at once without: both are compared with the
/// logits that transformers computes without a cache.
fn logits_difference(set: &mut Set, image: usize, states: &Encoded) -> f32 {
    let ids = set.ids(image);
    let mut item = set.model.begin(states, ids.len()).unwrap();
    let first = set.model.prefill(&mut item, &ids[..1]).unwrap();
    let mut difference = 0_f32;
    let mut cached = first;
    for place in 0..ids.len() {
        if place > 0 {
            cached = set.model.step(&mut [&mut item], &ids[place..=place]).unwrap();
        }
        let mut fresh = set.model.begin(states, ids.len()).unwrap();
        let at_once = set.model.prefill(&mut fresh, &ids[..=place]).unwrap();
        for logits in [&cached, &at_once] {
            difference = difference.max(one_position(set, image, place, logits));
        }
    }
    difference
}

fn one_position(set: &Set, image: usize, place: usize, logits: &[f32]) -> f32 {
    if let Some(all) = set.rows(&format!("logits.{image}")) {
        return worst(logits, &all[place]);
    }
    let columns: Vec<f32> = logits.iter().step_by(16).copied().collect();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let maxima = set.rows(&format!("logits_max.{image}")).unwrap().concat();
    let stored = set.rows(&format!("logits_columns.{image}")).unwrap();
    worst(&columns, &stored[place]).max((max - maxima[place]).abs())
}

fn check_captions(set: Set) {
    let name = set.name.clone();
    let (mut engine, cases, pixels) = set.engine();
    for case in &cases {
        let place = format!("{name}, image {}, {:?}", case.image, case.name);
        let outcome = run(&mut engine, vec![job(0, case, &pixels)], 1).remove(&0).unwrap();
        let (sequences, reported) = outcome;
        assert_eq!(sequences.len(), case.sequences.len(), "{place}");
        for (ours, theirs) in sequences.iter().zip(&case.sequences) {
            assert_eq!(ours.ids, theirs.ids, "{place}");
            assert_eq!(ours.generated, theirs.generated, "{place}");
            assert_eq!(ours.finish_reason.as_str(), theirs.finish_reason, "{place}");
            assert!((ours.confidence - theirs.confidence).abs() < 1e-3, "{place}");
            assert_eq!(ours.score.is_some(), theirs.score.is_some(), "{place}");
            let (score, expected) = (ours.score.unwrap_or(0.0), theirs.score.unwrap_or(0.0));
            let scale = expected.abs().max(1.0);
            assert!((score - expected).abs() < 1e-3 * scale, "{place}: {score} {expected}");
        }
        if params(case).num_beams == 1 {
            assert_eq!(reported, sequences[0].ids[1 + case.prompt.len()..], "{place}");
        }
    }
}

/// The same jobs alone, all at once, and joining two by two between steps.
fn check_batches(set: Set, every: usize) {
    let (mut engine, cases, pixels) = set.engine();
    let jobs: Vec<Job> =
        cases.iter().enumerate().step_by(every).map(|(id, case)| job(id, case, &pixels)).collect();
    let alone: BTreeMap<u64, Outcome> =
        jobs.iter().flat_map(|job| run(&mut engine, vec![job.clone()], 1)).collect();
    let together = run(&mut engine, jobs.clone(), jobs.len());
    let joining = run(&mut engine, jobs.into_iter().rev().collect(), 2);
    assert!(alone == together, "a job in a batch differs from the job alone");
    assert!(alone == joining, "a job that joined later differs from the job alone");
}

#[test]
fn tiny_models_compute_what_transformers_computes() {
    for way in full_precision() {
        TINY.into_iter().for_each(|name| check_numbers(Set::tiny(name, way)));
    }
}

#[test]
fn tiny_models_write_what_transformers_writes() {
    for way in full_precision() {
        TINY.into_iter().for_each(|name| check_captions(Set::tiny(name, way)));
    }
}

#[test]
fn an_item_in_a_batch_equals_the_item_alone_bit_for_bit() {
    for way in every_way() {
        TINY.into_iter().for_each(|name| check_batches(Set::tiny(name, way), 1));
    }
}

#[test]
fn the_embedded_model_computes_what_transformers_computes() {
    [CANDLE, best(Precision::F32)].into_iter().for_each(|way| check_numbers(Set::embedded(way)));
}

#[test]
fn the_embedded_model_writes_what_transformers_writes() {
    [CANDLE, best(Precision::F32)].into_iter().for_each(|way| check_captions(Set::embedded(way)));
}

#[test]
fn the_embedded_model_writes_the_same_in_a_batch() {
    for way in [CANDLE, best(Precision::F32), best(Precision::Bf16), best(Precision::Int8)] {
        check_batches(Set::embedded(way), 5);
    }
}

/// tests/goldens/full_size.sh makes the checkpoints, 2.8 GB, and runs this.
#[cfg(feature = "full-size-parity")]
#[test]
fn full_size_models_compute_and_write_what_transformers_does() {
    let sets = PathBuf::from(std::env::var_os("CUTLINE_FULL_SIZE_SETS").unwrap());
    for name in ["base", "large"] {
        let folder = sets.join(name);
        for way in [best(Precision::F32), CANDLE] {
            check_numbers(Set::load(name, &folder, &folder, way));
            check_captions(Set::load(name, &folder, &folder, way));
        }
    }
}

#[test]
fn sampling_does_not_depend_on_the_batch() {
    for way in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_sampling_batch(way);
    }
}

fn check_sampling_batch(way: (KernelChoice, Precision)) {
    let (mut engine, cases, pixels) = Set::tiny("tied", way).engine();
    let sampled = |id: u64, num_beams, num_return_sequences| Job {
        id: JobId(id),
        params: GenerationParams {
            do_sample: true,
            seed: Some(id / 2),
            top_k: 0,
            num_beams,
            num_return_sequences,
            ..GenerationParams::default()
        },
        ..job(0, &cases[0], &pixels)
    };
    let jobs = vec![sampled(0, 1, 1), sampled(1, 1, 4), sampled(2, 3, 2), sampled(3, 3, 2)];
    let alone: BTreeMap<u64, Outcome> =
        jobs.iter().flat_map(|job| run(&mut engine, vec![job.clone()], 1)).collect();
    assert!(alone == run(&mut engine, jobs, 1));
    // The same seed: the first of four rows is the only row; beams repeat.
    assert_eq!(alone[&0].0[0].ids, alone[&1].0[0].ids);
    assert_eq!(alone[&2], alone[&3]);
    assert_ne!(alone[&1].0[0].ids, alone[&1].0[1].ids);
}

#[test]
fn the_position_table_is_never_passed() {
    for way in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_the_passed(way);
    }
}

fn check_the_passed(way: (KernelChoice, Precision)) {
    let (mut engine, cases, pixels) = Set::tiny("tied", way).engine();
    let places = engine.info().max_positions;
    let mut long = job(0, &cases[0], &pixels);
    long.params = GenerationParams { min_new_tokens: 90, max_new_tokens: 90, ..long.params };
    for (prompt, beams) in [(0, 1), (5, 3), (places - 2, 2)] {
        long.prompt = vec![7; prompt];
        long.params.num_beams = beams;
        let (sequences, _) = run(&mut engine, vec![long.clone()], 1).remove(&0).unwrap();
        assert_eq!(sequences[0].ids.len(), places);
        assert_eq!(sequences[0].generated, places - 1 - prompt);
        assert_eq!(sequences[0].finish_reason, FinishReason::Length);
    }
    long.prompt = vec![7; places - 1];
    let error = engine.start(long).unwrap_err();
    assert_eq!(error.field(), Some("prompt"));
    assert_eq!(engine.active(), 0);
}

#[test]
fn jobs_can_be_cancelled_and_bad_ones_leave_the_others_alone() {
    for way in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_jobs_alone(way);
    }
}

fn check_jobs_alone(way: (KernelChoice, Precision)) {
    let (mut engine, cases, pixels) = Set::tiny("tied", way).engine();
    engine.warm_up(24, 16).unwrap();
    let expected = run(&mut engine, vec![job(1, &cases[0], &pixels)], 1);
    engine.start(job(0, &cases[1], &pixels)).unwrap();
    engine.start(job(2, &cases[10], &pixels)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    engine.cancel(JobId(2));
    engine.cancel(JobId(77));
    assert!(engine.start(Job { prompt: vec![u32::MAX], ..job(5, &cases[0], &pixels) }).is_err());
    let cut = PixelValues { width: 7, ..(*pixels[0]).clone() };
    assert!(engine.start(Job { image: cut.into(), ..job(6, &cases[0], &pixels) }).is_err());
    let outcomes = run(&mut engine, vec![job(1, &cases[0], &pixels)], 1);
    assert_eq!(outcomes[&1], expected[&1]);
    assert!(!outcomes.contains_key(&2));
}

#[test]
fn numbers_that_are_not_finite_fail_only_their_job() {
    for way in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_numbers_job(way);
    }
}

fn check_numbers_job(way: (KernelChoice, Precision)) {
    let (mut engine, cases, pixels) = Set::tiny("tied", way).engine();
    let expected = run(&mut engine, vec![job(1, &cases[0], &pixels)], 1);
    let mut broken = (*pixels[0]).clone();
    broken.data[0] = f32::NAN;
    engine.start(job(1, &cases[0], &pixels)).unwrap();
    engine.start(Job { image: broken.into(), ..job(2, &cases[0], &pixels) }).unwrap();
    let (mut failed, mut done) = (Vec::new(), Vec::new());
    while engine.active() > 0 {
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        for event in events {
            match event {
                Event::Failed { job, error } => failed.push((job, error)),
                Event::Done { sequences, .. } => done.push(sequences),
                Event::Token { .. } => {}
            }
        }
    }
    assert_eq!(done, [expected[&1].0.clone()]);
    assert_eq!(failed[0].0, JobId(2));
    assert!(failed[0].1.to_string().contains("not finite"));
}
