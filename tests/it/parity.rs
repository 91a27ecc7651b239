//! Parity with Hugging Face transformers, in f32 on the CPU: the goldens in tests/goldens, made by
//! `make_goldens.py` there, against a tiny random model of several shapes and the embedded one, on
//! candle, on every set of kernels that this CPU can run, and as on a GPU.

mod checks;
mod device;
mod set;

use std::collections::BTreeMap;
#[cfg(feature = "full-size-parity")]
use std::path::PathBuf;

use cutline::engine::{Engine, Event, Job, JobId, PixelValues, Precision};
use cutline::generate::{FinishReason, GenerationParams};

use checks::{Outcome, all_same, check_batches, check_captions, check_numbers, run, same};
use set::{CANDLE, GPU, Set, Way, best, every_exact_way, full_precision, job, selected};

const TINY: [&str; 3] = ["tied", "untied", "half"];

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
    for way in every_exact_way() {
        TINY.into_iter().for_each(|name| check_batches(Set::tiny(name, way), 1, true));
    }
}

#[test]
fn the_embedded_model_computes_what_transformers_computes() {
    let ways = [CANDLE, GPU, best(Precision::F32)];
    selected(&ways).iter().copied().for_each(|way| check_numbers(Set::embedded(way)));
}

#[test]
fn the_embedded_model_writes_what_transformers_writes() {
    let ways = [CANDLE, GPU, best(Precision::F32)];
    selected(&ways).iter().copied().for_each(|way| check_captions(Set::embedded(way)));
}

#[test]
fn the_embedded_model_writes_the_same_in_a_batch() {
    let ways = [CANDLE, best(Precision::F32), best(Precision::Bf16), best(Precision::Int8)];
    for &way in selected(&ways) {
        check_batches(Set::embedded(way), 5, true);
    }
}

/// tests/goldens/full_size.sh makes the checkpoints, 2.8 GB, and runs this.
#[cfg(feature = "full-size-parity")]
#[test]
fn full_size_models_compute_and_write_what_transformers_does() {
    let sets = PathBuf::from(std::env::var_os("CUTLINE_FULL_SIZE_SETS").unwrap());
    for name in ["base", "large"] {
        let folder = sets.join(name);
        for way in [best(Precision::F32), CANDLE, GPU] {
            check_numbers(Set::load(name, &folder, &folder, way));
            check_captions(Set::load(name, &folder, &folder, way));
        }
    }
}

#[test]
fn sampling_does_not_depend_on_the_batch() {
    for way in [CANDLE, GPU, best(Precision::F32), best(Precision::Int8)] {
        check_sampling_batch(way);
    }
}

fn check_sampling_batch(way: Way) {
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
    assert!(all_same(&alone, &run(&mut engine, jobs, 1), way.is_exact()));
    // The same seed: the first of four rows is the only row; beams repeat.
    assert_eq!(alone[&0].0[0].ids, alone[&1].0[0].ids);
    assert!(same(&alone[&2], &alone[&3], way.is_exact()));
    assert_ne!(alone[&1].0[0].ids, alone[&1].0[1].ids);
}

#[test]
fn the_position_table_is_never_passed() {
    for way in [CANDLE, GPU, best(Precision::F32), best(Precision::Int8)] {
        check_the_passed(way);
    }
}

fn check_the_passed(way: Way) {
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
    for way in [CANDLE, GPU, best(Precision::F32), best(Precision::Int8)] {
        check_jobs_alone(way);
    }
}

fn check_jobs_alone(way: Way) {
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
    assert!(same(&outcomes[&1], &expected[&1], way.is_exact()));
    assert!(!outcomes.contains_key(&2));
}

#[test]
fn numbers_that_are_not_finite_fail_only_their_job() {
    for way in [CANDLE, GPU, best(Precision::F32), best(Precision::Int8)] {
        check_numbers_job(way);
    }
}

fn check_numbers_job(way: Way) {
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
    assert_eq!(done.len(), 1);
    let written = (done.remove(0), expected[&1].1.clone());
    assert!(same(&written, &expected[&1], way.is_exact()));
    assert_eq!(failed[0].0, JobId(2));
    assert!(failed[0].1.to_string().contains("not finite"));
}
