//! Parity with Hugging Face transformers, in f32 on the CPU. The goldens in tests/goldens, made by
//! `make_goldens.py` there, are compared with tiny random models of several shapes and with the
//! embedded one, on every set of kernels that this CPU can run and on candle.

mod blip2;
mod candle;
mod checks;
mod family;
mod set;

use std::collections::BTreeMap;
#[cfg(feature = "full-size-parity")]
use std::path::PathBuf;

use cutline::engine::{Engine, Event, Job, JobId, PixelValues, Precision, Work};
use cutline::generate::{FinishReason, GenerationParams};

use checks::{
    Outcome, all_same, check_alternatives, check_batches, check_captions, check_numbers,
    check_rankings, run, same,
};
use set::{
    Backend, CANDLE, STEP, Set, best, every_exact_backend, full_precision, job, params, selected,
};

const TINY: [&str; 3] = ["tied", "untied", "half"];

#[test]
fn tiny_models_compute_what_transformers_computes() {
    for backend in full_precision() {
        TINY.into_iter().for_each(|name| check_numbers(Set::tiny(name, backend)));
    }
}

#[test]
fn tiny_models_write_what_transformers_writes() {
    for backend in full_precision() {
        TINY.into_iter().for_each(|name| check_captions(Set::tiny(name, backend)));
    }
}

#[test]
fn alternatives_have_the_probabilities_that_transformers_gives_them() {
    for backend in full_precision() {
        TINY.into_iter().for_each(|name| check_alternatives(Set::tiny(name, backend)));
    }
}

#[test]
fn a_job_in_a_batch_equals_the_job_alone_bit_for_bit() {
    for backend in every_exact_backend() {
        TINY.into_iter().for_each(|name| check_batches(Set::tiny(name, backend), STEP, true));
    }
}

#[test]
fn the_embedded_model_computes_what_transformers_computes() {
    for &backend in selected(&[CANDLE, best(Precision::F32)]) {
        check_numbers(Set::embedded(backend));
    }
}

#[test]
fn the_embedded_model_writes_what_transformers_writes() {
    for &backend in selected(&[CANDLE, best(Precision::F32)]) {
        check_captions(Set::embedded(backend));
    }
}

#[test]
fn the_embedded_model_writes_the_same_in_a_batch() {
    let backends = [Precision::F32, Precision::Bf16, Precision::Int8].map(best);
    for &backend in selected(&backends) {
        check_batches(Set::embedded(backend), 5, true);
    }
}

/// tests/goldens/full_size.sh makes the checkpoints, 2.8 GB, and runs this.
#[cfg(feature = "full-size-parity")]
#[test]
fn full_size_models_compute_and_write_what_transformers_does() {
    let sets = PathBuf::from(std::env::var_os("CUTLINE_FULL_SIZE_SETS").unwrap());
    for name in ["base", "large"] {
        let folder = sets.join(name);
        for backend in [best(Precision::F32), CANDLE] {
            check_numbers(Set::load(name, &folder, &folder, backend));
            check_captions(Set::load(name, &folder, &folder, backend));
        }
    }
}

#[test]
fn texts_are_as_probable_as_transformers_finds_them() {
    for backend in full_precision() {
        TINY.into_iter().for_each(|name| check_rankings(Set::tiny(name, backend)));
    }
    for &backend in selected(&full_precision()) {
        check_rankings(Set::embedded(backend));
    }
}

#[test]
fn sampling_does_not_depend_on_the_batch() {
    for backend in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_sampling_batch(backend);
    }
}

fn check_sampling_batch(backend: Backend) {
    let (mut engine, cases, pixels) = Set::tiny("tied", backend).engine();
    let sampled = |id: u64, num_beams, num_return_sequences| Job {
        id: JobId(id),
        task: Work::from(GenerationParams {
            do_sample: true,
            seed: Some(id / 2),
            top_k: 0,
            num_beams,
            num_return_sequences,
            ..GenerationParams::default()
        }),
        ..job(0, &cases[0], &pixels)
    };
    let jobs = vec![sampled(0, 1, 1), sampled(1, 1, 4), sampled(2, 3, 2), sampled(3, 3, 2)];
    let alone: BTreeMap<u64, Outcome> =
        jobs.iter().flat_map(|job| run(&mut engine, vec![job.clone()], 1)).collect();
    assert!(all_same(&alone, &run(&mut engine, jobs, 1), backend.is_exact()));
    // With the same seed the first of four rows equals the only row, and beams repeat.
    assert_eq!(alone[&0].0[0].ids, alone[&1].0[0].ids);
    assert!(same(&alone[&2], &alone[&3], backend.is_exact()));
    assert_ne!(alone[&1].0[0].ids, alone[&1].0[1].ids);
}

#[test]
fn no_sequence_is_longer_than_the_position_table() {
    for backend in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_longest(backend);
    }
}

fn check_longest(backend: Backend) {
    let (mut engine, cases, pixels) = Set::tiny("tied", backend).engine();
    let positions = engine.info().max_positions;
    let mut long = job(0, &cases[0], &pixels);
    let mut params =
        GenerationParams { min_new_tokens: 90, max_new_tokens: 90, ..params(&cases[0]) };
    for (prompt, beams) in [(0, 1), (5, 3), (positions - 2, 2)] {
        long.prompt = vec![7; prompt];
        params.num_beams = beams;
        long.task = params.clone().into();
        let (sequences, _) = run(&mut engine, vec![long.clone()], 1).remove(&0).unwrap();
        assert_eq!(sequences[0].ids.len(), positions);
        assert_eq!(sequences[0].generated, positions - 1 - prompt);
        assert_eq!(sequences[0].finish_reason, FinishReason::Length);
    }
    long.prompt = vec![7; positions - 1];
    let error = engine.start(long).unwrap_err();
    assert_eq!(error.field(), Some("prompt"));
    assert_eq!(engine.active(), 0);
}

#[test]
fn cancelled_and_refused_jobs_do_not_touch_the_others() {
    for backend in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_untouched(backend);
    }
}

fn check_untouched(backend: Backend) {
    let (mut engine, cases, pixels) = Set::tiny("tied", backend).engine();
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
    assert!(same(&outcomes[&1], &expected[&1], backend.is_exact()));
    assert!(!outcomes.contains_key(&2));
}

#[test]
fn numbers_that_are_not_finite_fail_only_their_job() {
    for backend in [CANDLE, best(Precision::F32), best(Precision::Int8)] {
        check_not_finite(backend);
    }
}

fn check_not_finite(backend: Backend) {
    let (mut engine, cases, pixels) = Set::tiny("tied", backend).engine();
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
                Event::Token { .. } | Event::Compared { .. } => {}
            }
        }
    }
    assert_eq!(done.len(), 1);
    let written = (done.remove(0), expected[&1].1.clone());
    assert!(same(&written, &expected[&1], backend.is_exact()));
    assert_eq!(failed[0].0, JobId(2));
    assert!(failed[0].1.to_string().contains("not finite"));
}
