//! The model for GPUs on candle's CPU device: what is different from the kernels.

use std::collections::BTreeMap;
use std::sync::Arc;

use cutline::blip::ImageStates;
use cutline::engine::local::LocalEngine;
use cutline::engine::{Engine, Job, JobId, PixelValues, Precision};
use cutline::generate::GenerationParams;

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
            let params = job(id, &cases[0], &pixels).params;
            engine.start(Job::new(JobId(id as u64), image, prompt.clone(), params)).unwrap();
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
            let mut slot = set.model.begin(&states, ids.len(), 1).unwrap();
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

#[test]
fn blocks_of_gguf_are_computed_as_accurately_as_their_bits_allow() {
    use candle_core::{DType, Device};
    use cutline::blip::{BlipConfig, CpuModel, GpuModel, Model};
    use cutline::engine::hub::HubOptions;
    use cutline::engine::quantize::{Destination, TensorType, quantize};
    use cutline::engine::source::{self, ModelSource};
    use cutline::kernels::{self, Tier};

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/untied");
    let open = |path: &std::path::Path| {
        let source: ModelSource = path.to_str().unwrap().parse().unwrap();
        source::open(&source, &HubOptions::default()).unwrap()
    };
    let dir = tempfile::TempDir::new().unwrap();
    let (_, cases, pixels) = Set::tiny("untied", PORTABLE).engine();
    for kind in [TensorType::Q8_0, TensorType::Q4_0] {
        let out = dir.path().join(kind.to_string());
        quantize(&open(&folder), kind, &Destination::new(&out, false), &mut |_| {}).unwrap();
        let files = open(&out);
        let config = BlipConfig::from_json(&files.config).unwrap();
        // The same blocks, dequantised once and multiplied in f32.
        let full = kernels::Precision::F32;
        let dequantised = CpuModel::load(&config, &files.weights, Tier::Portable, full).unwrap();
        let parameters = dequantised.describe().parameters;
        let mut dequantised = LocalEngine::new(Box::new(dequantised));
        let expected = run(&mut dequantised, vec![job(0, &cases[0], &pixels)], 1);
        for dtype in [DType::F32, DType::F16] {
            let model = GpuModel::load(&config, &files.weights, dtype, &Device::Cpu).unwrap();
            assert_eq!(model.describe().precision, kind.as_str());
            assert_eq!(model.describe().parameters, parameters);
            let mut engine = LocalEngine::new(Box::new(model));
            let outcomes = run(&mut engine, vec![job(0, &cases[0], &pixels)], 1);
            let (a, b) = (&expected[&0].0[0], &outcomes[&0].0[0]);
            let difference = (a.confidence - b.confidence).abs();
            println!("{kind} {dtype:?}: {difference:.1e}, {:?} {:?}", a.ids, b.ids);
            assert!(difference < 5e-2, "{kind} {dtype:?}: {difference}");
            assert!(dtype == DType::F16 || a.ids == b.ids, "{kind}");
        }
    }
}
