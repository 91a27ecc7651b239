//! The model for GPUs on candle's CPU device: what is different from the kernels.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device};
use cutline::blip::{BlipConfig, CpuModel, GpuModel, ImageStates, Model, SlotSize, Weights};
use cutline::engine::hub::HubOptions;
use cutline::engine::local::LocalEngine;
use cutline::engine::quantize::{Destination, TensorType, quantize};
use cutline::engine::source::{self, ModelFiles, ModelSource};
use cutline::engine::{Engine, Job, JobId, PixelValues, Precision, Sequence};
use cutline::generate::GenerationParams;
use cutline::kernels::{self, Tier};

use super::TINY;
use super::checks::{Outcome, all_same, check_batches, run};
use super::set::{Backend, CANDLE, LONG, PORTABLE, STEP, Set, job};

/// Bounds for the vision tower's output and for the logits, as shares of their ranges. The tiny
/// models have random weights, so their logits are closer together than those of a trained one.
const HALF: [(Precision, f32, f32); 2] =
    [(Precision::F16, 2e-2, 2e-2), (Precision::Bf16, 2e-2, 1e-1)];

#[test]
fn a_caption_has_the_same_tokens_in_any_batch() {
    TINY.into_iter().for_each(|name| check_batches(Set::tiny(name, CANDLE), STEP, false));
    if LONG {
        check_batches(Set::embedded(CANDLE), 5, false);
    }
}

/// Jobs of several beam widths, with and without prompts, on images of several sizes, some with
/// scores that need all logits.
fn mixed(engine: &LocalEngine, pixels: &[Arc<PixelValues>]) -> Vec<Job> {
    let words = engine.info().vocab_size as u32;
    (0..18_u64)
        .map(|n| {
            let params = GenerationParams {
                max_new_tokens: 4 + n as usize % 9,
                min_new_tokens: n as usize % 3,
                num_beams: [1, 3, 1, 2, 5, 1][n as usize % 6],
                repetition_penalty: if n % 7 == 3 { 1.3 } else { 1.0 },
                no_repeat_ngram_size: if n % 8 == 5 { 2 } else { 0 },
                do_sample: n % 9 == 2,
                seed: Some(n),
                ..GenerationParams::default()
            };
            let prompt = (0..n as u32 % 4).map(|word| (7 * word + n as u32) % words).collect();
            let image = pixels[n as usize % pixels.len()].clone();
            Job::new(JobId(n), image, prompt, params)
        })
        .collect()
}

#[test]
fn captions_equal_those_of_the_kernels_whatever_the_batch() {
    for name in TINY {
        let (mut kernels, _, pixels) = Set::tiny(name, PORTABLE).engine();
        let (mut engine, ..) = Set::tiny(name, CANDLE).engine();
        let jobs = mixed(&engine, &pixels);
        let expected = run(&mut kernels, jobs.clone(), 3);
        for each in [1, 2, 5, jobs.len()] {
            let outcomes = run(&mut engine, jobs.clone(), each);
            assert!(all_same(&expected, &outcomes, false), "{name}, {each} before each step");
        }
    }
}

#[test]
fn cancelled_jobs_and_a_reset_leave_nothing_behind() {
    let (mut engine, _, pixels) = Set::tiny("tied", CANDLE).engine();
    let jobs = mixed(&engine, &pixels);
    let expected = run(&mut engine, jobs.clone(), jobs.len());
    for round in [0, 1, 2] {
        for job in &jobs {
            engine.start(job.clone()).unwrap();
        }
        for step in 0..4 {
            engine.step(&mut Vec::new()).unwrap();
            jobs.iter().skip(step).step_by(3).for_each(|job| engine.cancel(job.id));
        }
        if round == 1 {
            jobs.iter().for_each(|job| engine.cancel(job.id));
        } else {
            engine.reset();
        }
        assert_eq!(engine.active(), 0);
        let outcomes = run(&mut engine, jobs.clone(), 4);
        assert!(all_same(&expected, &outcomes, false), "round {round}");
    }
}

#[test]
fn what_a_slot_held_before_does_not_matter() {
    let (mut engine, cases, pixels) = Set::tiny("tied", CANDLE).engine();
    let expected = run(&mut engine, vec![job(1, &cases[0], &pixels)], 1);
    let mut broken = (*pixels[0]).clone();
    broken.data[0] = f32::NAN;
    let broken = Arc::new(broken);
    // Failures in a first step and in a prompt, because they are written in different ways.
    for prompt in [vec![], vec![5, 6, 7]] {
        for id in 2..8 {
            let image = Arc::clone(&broken);
            let task = job(id, &cases[0], &pixels).task;
            engine.start(Job::new(JobId(id as u64), image, prompt.clone(), task)).unwrap();
        }
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        assert_eq!((events.len(), engine.active()), (6, 0), "all of them fail");
        let outcomes: BTreeMap<u64, Outcome> =
            run(&mut engine, vec![job(1, &cases[0], &pixels)], 1);
        assert!(all_same(&expected, &outcomes, false));
    }
}

#[test]
fn images_of_several_sizes_are_encoded_together_like_alone() {
    let (mut engine, _, pixels) = Set::tiny("half", CANDLE).engine();
    assert!(engine.info().vision_batch > 1);
    let mut images: Vec<Arc<PixelValues>> = pixels.iter().chain(&pixels).cloned().collect();
    images.rotate_left(1);
    let together = engine.encode(&images).unwrap();
    assert_eq!(together.len(), images.len());
    let states = |image: &cutline::engine::EncodedImage| {
        image.content::<ImageStates>().unwrap().to_vec().unwrap()
    };
    for (pixels, image) in images.iter().zip(&together) {
        let alone = engine.encode_one(Arc::clone(pixels)).unwrap();
        assert_eq!(image.bytes(), alone.bytes(), "each has its own memory");
        let (ours, expected) = (states(image), states(&alone));
        assert_eq!(ours.len(), expected.len());
        assert!(ours.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    let cut = PixelValues { width: 7, ..(*pixels[0]).clone() };
    assert!(engine.encode(&[pixels[0].clone(), Arc::new(cut)]).is_err());
    assert!(engine.encode(&[]).unwrap().is_empty());
}

/// Half precision against f32, of the vision tower's output and of the logits: the greatest
/// difference over the range of the values.
fn relative_differences(mut full: Set, mut half: Set) -> (f32, f32) {
    let (mut vision, mut logits) = (0_f32, 0_f32);
    for image in 0..full.images() {
        let pixels = full.pixels(image);
        let ids = full.ids(image);
        let of = |set: &mut Set| {
            let states = set.encode(&pixels);
            let mut slot = set.model.begin(&states, SlotSize::new(ids.len(), 1)).unwrap();
            let all: Vec<f32> = ids.iter().flat_map(|id| set.read(&mut slot, &[*id])).collect();
            (states.to_vec().unwrap(), all)
        };
        let (expected, ours) = (of(&mut full), of(&mut half));
        vision = vision.max(over_range(&ours.0, &expected.0));
        logits = logits.max(over_range(&ours.1, &expected.1));
    }
    println!("{}: vision {vision:.1e}, logits {logits:.1e} of their ranges", half.name);
    (vision, logits)
}

fn over_range(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let differences = ours.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let range = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        - expected.iter().copied().fold(f32::INFINITY, f32::min);
    differences.fold(0.0, |worst, x| if x.is_finite() { x.max(worst) } else { f32::INFINITY })
        / range
}

#[test]
fn half_precision_is_close_to_full_precision() {
    for (precision, of_vision, of_logits) in HALF {
        for name in TINY {
            let half = Set::tiny(name, Backend::Candle(precision));
            let (vision, logits) = relative_differences(Set::tiny(name, CANDLE), half);
            let close = vision < of_vision && logits < of_logits;
            assert!(close, "{name} {precision}: {vision} {logits}");
        }
    }
    if !LONG {
        return;
    }
    let half = Set::embedded(Backend::Candle(Precision::F16));
    let (vision, logits) = relative_differences(Set::embedded(CANDLE), half);
    assert!(vision < 2e-2 && logits < 2e-2, "{vision} {logits}");
}

#[cfg(feature = "long-tests")]
#[test]
fn half_precision_writes_nearly_the_same_captions() {
    let (mut engine, cases, pixels) = Set::embedded(Backend::Candle(Precision::F16)).engine();
    let greedy = cases.iter().filter(|case| super::set::params(case).num_beams == 1);
    let (mut equal, mut all) = (0, 0);
    for case in greedy {
        let outcomes = run(&mut engine, vec![job(0, case, &pixels)], 1);
        equal += usize::from(outcomes[&0].0[0].ids == case.sequences[0].ids);
        all += 1;
    }
    println!("{equal} of {all} greedy captions are those of f32");
    assert!(all >= 10 && 10 * equal >= 9 * all, "{equal} of {all}");
}

#[test]
fn a_caption_that_is_started_again_begins_with_what_was_sent() {
    let (mut engine, cases, pixels) = Set::tiny("tied", CANDLE).engine();
    let begun = job(0, &cases[0], &pixels);
    let (whole, _) = run(&mut engine, vec![begun.clone()], 1).remove(&0).unwrap();
    let own = &whole[0].ids[1 + cases[0].prompt.len()..];
    // Once what it would write by itself, and once something else.
    for sent in [own[..2].to_vec(), vec![own[0] + 1, 9, 11]] {
        engine.start(Job { written: sent.clone(), ..begun.clone() }).unwrap();
        let (sequences, tokens) = run(&mut engine, Vec::new(), 1).remove(&0).unwrap();
        assert_eq!(tokens[..sent.len()], sent);
        assert_eq!(sequences[0].ids[1 + cases[0].prompt.len()..], tokens);
        assert_eq!(sequences[0].ids == whole[0].ids, sent == own[..2]);
    }
}

/// The step with which only the first case is chosen.
const FIRST: usize = usize::MAX;

/// The tiny model `untied` in a block format.
struct Blocks {
    config: BlipConfig,
    /// As a GGUF file.
    weights: Weights,
    /// The same numbers in f32, read and dequantised by candle alone.
    dequantised: Weights,
}

impl Blocks {
    fn write(kind: TensorType, folder: &Path) -> Self {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/untied");
        let destination = Destination::new(&folder.join(kind.to_string()), false);
        let written = quantize(&open(&original), kind, &destination, &mut |_| {}).unwrap();
        let mut file = File::open(&written.path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let mut values = HashMap::new();
        for name in content.tensor_infos.keys() {
            let blocks = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            values.insert(name.clone(), blocks.dequantize(&Device::Cpu).unwrap());
        }
        let dequantised = folder.join(format!("{kind}.safetensors"));
        candle_core::safetensors::save(&values, &dequantised).unwrap();
        let files = open(&written.path);
        Self {
            config: BlipConfig::from_json(&files.config).unwrap(),
            weights: files.weights,
            dequantised: Weights::from_files(&[dequantised]).unwrap(),
        }
    }

    /// The model on candle, with one of the two.
    fn on_candle(&self, weights: &Weights, dtype: DType) -> GpuModel {
        GpuModel::load(&self.config, weights, dtype, &Device::Cpu).unwrap()
    }
}

fn open(path: &Path) -> ModelFiles {
    let source: ModelSource = path.to_str().unwrap().parse().unwrap();
    source::open(&source, &HubOptions::default()).unwrap()
}

/// The captions of every `step`-th case of the goldens.
fn captions(model: impl Model + 'static, step: usize) -> Vec<Sequence> {
    let (_, cases, pixels) = Set::tiny("untied", PORTABLE).engine();
    let chosen = cases.iter().enumerate().step_by(step);
    let jobs = chosen.map(|(id, case)| job(id, case, &pixels));
    let outcomes = run(&mut LocalEngine::new(Box::new(model)), jobs.collect(), 1);
    outcomes.into_values().flat_map(|(sequences, _)| sequences).collect()
}

/// Checks that the captions have the same tokens, and returns the greatest difference of their
/// confidences.
#[track_caller]
fn difference(ours: &[Sequence], expected: &[Sequence]) -> f32 {
    let tokens = |all: &[Sequence]| all.iter().map(|one| one.ids.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(ours), tokens(expected));
    let differences = ours.iter().zip(expected).map(|(a, b)| (a.confidence - b.confidence).abs());
    differences.fold(0.0, f32::max)
}

#[test]
fn the_kernels_read_the_same_numbers_from_blocks_as_candle() {
    let dir = tempfile::TempDir::new().unwrap();
    // The rows are too short for the k types.
    for kind in TensorType::ALL.into_iter().filter(|kind| kind.block() == 32) {
        let blocks = Blocks::write(kind, dir.path());
        let full = kernels::Precision::F32;
        let ours = CpuModel::load(&blocks.config, &blocks.weights, Tier::Portable, full).unwrap();
        let expected = blocks.on_candle(&blocks.dequantised, DType::F32);
        assert_eq!(ours.describe().parameters, expected.describe().parameters);
        let difference = difference(&captions(ours, STEP), &captions(expected, STEP));
        println!("{kind}: {difference:.1e}");
        assert!(difference < 1e-5, "{kind}: {difference}");
    }
}

/// candle rounds the activations of each product to 8 bits, which moves the confidence of a model
/// with random weights by more than one with trained ones. That the products are exact apart from
/// this rounding is tested in crates/blip/src/gpu/layers.rs.
#[test]
fn candle_multiplies_the_blocks_of_the_file() {
    let dir = tempfile::TempDir::new().unwrap();
    // candle's debug assertions refuse the other types in rows of a single block.
    for kind in [TensorType::Q8_0, TensorType::Q4_0] {
        let blocks = Blocks::write(kind, dir.path());
        let expected = blocks.on_candle(&blocks.dequantised, DType::F32);
        let parameters = expected.describe().parameters;
        let expected = captions(expected, FIRST);
        for dtype in [DType::F32, DType::F16] {
            let model = blocks.on_candle(&blocks.weights, dtype);
            assert_eq!(model.describe().precision, kind.as_str());
            assert_eq!(model.describe().parameters, parameters);
            let difference = difference(&captions(model, FIRST), &expected);
            println!("{kind} {dtype:?}: {difference:.1e}");
            assert!(difference < 1e-2, "{kind} {dtype:?}: {difference}");
        }
    }
}
