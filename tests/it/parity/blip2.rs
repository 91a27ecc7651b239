//! BLIP-2 with OPT, with the goldens of `make_blip2.py`.

use cutline::blip::SlotSize;
use cutline::blip::quantize::QuantizationPlan;
use cutline::blip::weights::TensorType;
use cutline::blip::{BlipConfig, Weights};
use cutline::engine::{
    DeviceChoice, EngineOptions, Job, KernelChoice, Precision, Work, load_gpu_model_on_cpu,
    load_model,
};
use cutline::error::ErrorKind;
use cutline::tokenizer::{Tokenizer, TokenizerSource};
use serde_json::Value;

use super::checks::{check_batches, check_captions, check_numbers, run};
use super::set::{Backend, Set, best, every_exact_backend, full_precision, job, params, root};

const SETS: [&str; 2] = ["blip2-opt", "blip2-opt-wide"];

fn kernels() -> impl Iterator<Item = Backend> {
    full_precision().into_iter().filter(|backend| backend.is_exact())
}

fn file(name: &str, file: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/goldens").join(name).join(file)).unwrap()
}

#[test]
fn rows_for_the_language_model_and_logits_are_those_of_transformers() {
    for backend in kernels() {
        SETS.into_iter().for_each(|name| check_numbers(Set::tiny(name, backend)));
    }
}

#[test]
fn captions_are_those_of_transformers() {
    for backend in kernels() {
        SETS.into_iter().for_each(|name| check_captions(Set::tiny(name, backend)));
    }
}

#[test]
fn a_caption_in_a_batch_equals_the_caption_alone_bit_for_bit() {
    for backend in every_exact_backend() {
        SETS.into_iter().for_each(|name| check_batches(Set::tiny(name, backend), 3, true));
    }
}

/// Neither the question nor what stands for the image is returned.
#[test]
fn an_answer_is_what_continues_the_question() {
    for name in SETS {
        let (mut engine, cases, pixels) = Set::tiny(name, best(Precision::F32)).engine();
        let prompted = cases.iter().filter(|case| !case.prompt.is_empty());
        let mut seen = 0;
        for case in prompted {
            let asked = Job {
                task: Work::Answer { question: case.prompt.clone(), task: params(case).into() },
                prompt: Vec::new(),
                ..job(0, case, &pixels)
            };
            let (answers, reported) = run(&mut engine, vec![asked], 1).remove(&0).unwrap();
            for (answer, caption) in answers.iter().zip(&case.sequences) {
                assert_eq!(answer.ids[0], caption.ids[0], "{name}");
                assert_eq!(answer.ids[1..], caption.ids[1 + case.prompt.len()..], "{name}");
            }
            assert!(reported.is_empty() || reported == answers[0].ids[1..], "{name}");
            seen += answers.len();
        }
        assert!(seen > 4, "{name}");
    }
}

#[test]
fn fewer_bits_change_logits_little() {
    for (precision, most) in [(Precision::Bf16, 0.1), (Precision::Int8, 0.2)] {
        for name in SETS {
            let error = logits_error(Set::tiny(name, best(precision)));
            println!("{name} {precision:?}: {error:.1e}");
            assert!(error < most, "{name} {precision:?}: {error}");
        }
    }
}

/// The difference of the logits to those of transformers, as a share of these.
fn logits_error(mut set: Set) -> f32 {
    let (mut difference, mut all) = (0.0, 0.0);
    for image in 0..set.images() {
        let (pixels, ids) = (set.pixels(image), set.ids(image));
        let states = set.encode(&pixels);
        let mut slot = set.model.begin(&states, SlotSize::new(ids.len(), 1)).unwrap();
        let expected = set.rows(&format!("logits.{image}")).unwrap();
        for (id, expected) in ids.iter().zip(expected) {
            for (ours, theirs) in set.read(&mut slot, &[*id]).iter().zip(expected) {
                difference += (ours - theirs) * (ours - theirs);
                all += theirs * theirs;
            }
        }
    }
    (difference / all).sqrt()
}

#[test]
fn prompts_become_the_ids_of_transformers_and_captions_its_texts() {
    for name in SETS {
        let json = file(name, "tokenizer.json");
        let source = TokenizerSource { json: Some(&json), ..TokenizerSource::default() };
        let tokenizer = Tokenizer::load(source).unwrap();
        let goldens: Value = serde_json::from_slice(&file(name, "goldens.json")).unwrap();
        let prompts = goldens["prompts"].as_array().unwrap();
        assert!(!prompts.is_empty());
        for prompt in prompts {
            let ids = tokenizer.encode(prompt["text"].as_str().unwrap()).unwrap();
            assert_eq!(Value::from(ids), prompt["ids"], "{name}: {prompt}");
        }
        assert_eq!(tokenizer.encode_next("dog").unwrap(), tokenizer.encode(" dog").unwrap());
        // Nobody can write the tokens that stand for an image.
        let hostile = goldens["hostile"].as_str().unwrap();
        let ids = tokenizer.encode(hostile).unwrap();
        assert!(hostile.contains("<image>") && ids.iter().all(|&id| id > 2 && id < 330), "{ids:?}");
        let (_, cases, _) = Set::tiny(name, best(Precision::F32)).engine();
        for sequence in cases.into_iter().flat_map(|case| case.sequences) {
            assert_eq!(Some(tokenizer.decode(&sequence.ids).unwrap()), sequence.text, "{name}");
        }
    }
}

#[test]
fn candle_and_gguf_are_refused() {
    let config = BlipConfig::from_json(&file("blip2-opt", "config.json")).unwrap();
    let bytes = file("blip2-opt", "model.safetensors");
    let weights = Weights::from_safetensors_bytes("blip2-opt", bytes.into()).unwrap();
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        precision: Precision::F32,
        kernels: KernelChoice::Candle,
        ..EngineOptions::default()
    };
    let on_gpu = load_gpu_model_on_cpu(&config, &weights, Precision::F32);
    for error in [load_model(&config, &weights, options).unwrap_err(), on_gpu.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.detail().contains("Blip2ForConditionalGeneration"), "{error}");
    }
    let error = QuantizationPlan::new(&config, &weights, TensorType::Q8_0).unwrap_err();
    assert!(error.detail().contains("PRECISION=int8"), "{error}");
}
