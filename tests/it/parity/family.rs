//! The other models of the BLIP family, with the goldens of `make_family.py`.

use std::sync::Arc;

use cutline::engine::{
    Compared, Comparison, DeviceChoice, Engine, EngineOptions, Event, ImageInput, Job, JobId,
    KernelChoice, PixelValues, Precision, Work, load_gpu_model_on_cpu, load_model,
};
use cutline::error::ErrorKind;
use cutline::generate::GenerationParams;
use cutline::tokenizer::{Tokenizer, TokenizerSource};

use super::checks::{check_batches, check_captions};
use super::set::{Backend, Set, best, every_exact_backend, full_precision, root};
use cutline::blip::{BlipConfig, Weights};

const RETRIEVAL: [&str; 2] = ["itm", "itm-wide"];
const ANSWERING: [&str; 2] = ["vqa", "vqa-untied"];
const CLOSE: f32 = 1e-4;

/// Everything that computes in f32 on this CPU with our kernels.
fn kernels() -> impl Iterator<Item = Backend> {
    full_precision().into_iter().filter(|backend| backend.is_exact())
}

fn tokenizer(name: &str) -> Tokenizer {
    let folder = root().join("tests/goldens").join(name);
    let vocab = std::fs::read(folder.join("vocab.txt")).unwrap();
    let config = std::fs::read(folder.join("tokenizer_config.json")).unwrap();
    Tokenizer::load(TokenizerSource { json: None, vocab: Some(&vocab), config: Some(&config) })
        .unwrap()
}

fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn probability([no, yes]: [f32; 2]) -> f32 {
    1.0 / (1.0 + (no - yes).exp())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn texts_and_questions_become_the_ids_of_transformers() {
    for name in RETRIEVAL {
        let (texts, _) = Set::tiny(name, best(Precision::F32)).take_scores();
        for text in texts {
            let ids = tokenizer(name).encode_whole(&text.text, "texts", None).unwrap();
            assert_eq!(ids, text.ids, "{name}: {}", text.text);
        }
    }
    for name in ANSWERING {
        let (_, cases, _) = Set::tiny(name, best(Precision::F32)).engine();
        let tokenizer = tokenizer(name);
        for case in cases {
            let text = case.question_text.unwrap();
            let ids = tokenizer.encode_whole(&text, "question", None).unwrap();
            assert_eq!(ids, case.question, "{name}: {text}");
            for sequence in case.sequences {
                assert_eq!(Some(tokenizer.decode(&sequence.ids).unwrap()), sequence.text, "{name}");
            }
        }
    }
    let cut = tokenizer("itm").encode_whole("a cat on a table", "texts", Some(4)).unwrap();
    let short = tokenizer("itm").encode_whole("a cat", "texts", Some(4)).unwrap();
    assert_eq!((cut.len(), &cut), (4, &short));
}

#[test]
fn images_and_texts_match_as_transformers_says() {
    for backend in kernels() {
        for name in RETRIEVAL {
            let (logits, similarity) = check_scores(Set::tiny(name, backend));
            println!("{name} {backend:?}: logits {logits:.1e}, embeddings {similarity:.1e}");
            assert!(logits < CLOSE && similarity < CLOSE, "{name} {backend:?}");
        }
    }
}

#[test]
fn fewer_bits_change_scores_little() {
    for precision in [Precision::Bf16, Precision::Int8] {
        for name in RETRIEVAL {
            let (matching, similarity) = check_scores(Set::tiny(name, best(precision)));
            println!("{name} {precision:?}: match {matching:.1e}, embeddings {similarity:.1e}");
            assert!(matching < 0.2 && similarity < 0.1, "{name} {precision:?}");
        }
    }
}

/// The greatest differences of match probabilities and of embeddings.
fn check_scores(mut set: Set) -> (f32, f32) {
    let (texts, scores) = set.take_scores();
    let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
    let (mut matching, mut embedding) = (0_f32, 0_f32);
    assert!(!texts.is_empty() && !scores.is_empty());
    for expected in scores {
        let pixels = set.pixels(expected.image);
        let states = set.encode(&pixels);
        let reader = set.model.reader().unwrap();
        let image = reader.embed_image(&states).unwrap();
        embedding = embedding.max(distance(&image, &expected.embedding));
        let seen = reader.look(&states).unwrap();
        let logits = reader.match_texts(&seen, &ids).unwrap();
        let embeddings = reader.embed_texts(&ids).unwrap();
        for (n, pair) in expected.pairs.iter().enumerate() {
            let ours = probability(logits[n]);
            assert!((probability(pair.logits) - pair.matching).abs() < 1e-6);
            matching = matching.max((ours - pair.matching).abs());
            embedding = embedding.max(distance(&embeddings[n], &texts[n].embedding));
            embedding = embedding.max((cosine(&image, &embeddings[n]) - pair.similarity).abs());
            // What a text gives does not depend on the others.
            assert_eq!(reader.match_texts(&seen, &ids[n..=n]).unwrap(), [logits[n]]);
            assert_eq!(reader.embed_texts(&ids[n..=n]).unwrap()[0], embeddings[n]);
        }
    }
    (matching, embedding)
}

#[test]
fn answers_are_those_of_transformers() {
    for backend in kernels() {
        ANSWERING.into_iter().for_each(|name| check_captions(Set::tiny(name, backend)));
    }
}

#[test]
fn an_answer_in_a_batch_equals_the_answer_alone_bit_for_bit() {
    for backend in every_exact_backend() {
        ANSWERING.into_iter().for_each(|name| check_batches(Set::tiny(name, backend), 3, true));
    }
}

/// Runs comparisons and returns their results in the order of their ids.
fn compare(engine: &mut dyn Engine, jobs: Vec<Job>) -> Vec<Compared> {
    let count = jobs.len();
    jobs.into_iter().for_each(|job| engine.start(job).unwrap());
    let mut results = Vec::new();
    while results.len() < count {
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        for event in events {
            let Event::Compared { job, compared } = event else { panic!("{event:?}") };
            results.push((job, compared));
        }
    }
    results.sort_by_key(|(job, _)| *job);
    results.into_iter().map(|(_, compared)| compared).collect()
}

fn comparison(id: u64, image: impl Into<ImageInput>, texts: &[Vec<u32>], both: [bool; 2]) -> Job {
    let [matching, embedding] = both;
    let work = Work::Compare(Arc::new(Comparison { texts: texts.to_vec(), matching, embedding }));
    Job::new(JobId(id), image, Vec::new(), work)
}

#[test]
fn comparisons_of_several_images_with_many_texts_run_together() {
    let mut set = Set::tiny("itm", best(Precision::F32));
    let (texts, scores) = set.take_scores();
    let pixels: Vec<_> = (0..2).map(|image| Arc::new(set.pixels(image))).collect();
    let texts: Vec<Vec<u32>> = texts.into_iter().map(|text| text.ids).collect();
    // More tokens than a step takes.
    let many: Vec<Vec<u32>> = texts.iter().cycle().take(5 * texts.len()).cloned().collect();
    let mut engine = cutline::engine::local::LocalEngine::new(set.model);
    engine.warm_up(16, 16).unwrap();
    let both = [true, true];
    let jobs = vec![
        comparison(0, Arc::clone(&pixels[0]), &many, both),
        comparison(1, Arc::clone(&pixels[1]), &texts, [true, false]),
        comparison(2, ImageInput::Nothing, &texts, [false, true]),
        comparison(3, Arc::clone(&pixels[1]), &[], both),
    ];
    let results = compare(&mut engine, jobs);
    assert_eq!(engine.active(), 0);
    assert_eq!(results[0].texts.len(), many.len());
    for (n, text) in results[0].texts.iter().enumerate() {
        let expected = scores[0].pairs[n % texts.len()].matching;
        assert!((probability(text.logits.unwrap()) - expected).abs() < CLOSE);
    }
    assert!(distance(results[0].image.as_ref().unwrap(), &scores[0].embedding) < CLOSE);
    assert!(results[1].image.is_none() && results[1].texts[0].embedding.is_none());
    assert_eq!(results[2].texts[1].embedding, results[0].texts[1].embedding);
    assert!(results[2].image.is_none() && results[2].texts[0].logits.is_none());
    assert!(results[3].texts.is_empty() && results[3].image.is_some());

    let impossible = comparison(4, ImageInput::Nothing, &texts, both);
    assert!(engine.start(impossible).is_err());
    engine.start(comparison(5, Arc::clone(&pixels[0]), &many, both)).unwrap();
    engine.cancel(JobId(5));
    assert_eq!(engine.active(), 0);
    let broken = PixelValues { data: vec![f32::NAN; 3 * 16 * 16], width: 16, height: 16 };
    engine.start(comparison(6, broken, &texts, both)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    assert!(matches!(&events[..], [Event::Failed { job: JobId(6), .. }]), "{events:?}");
}

#[test]
fn an_engine_refuses_what_its_model_cannot_do() {
    let pixels = |side| PixelValues { data: vec![0.0; 3 * side * side], width: side, height: side };
    let question = |id| {
        let task = GenerationParams::default().into();
        let work = Work::Answer { question: vec![1, 5, 2], task };
        Job::new(JobId(id), pixels(16), Vec::new(), work)
    };
    let caption = |id| Job::new(JobId(id), pixels(16), Vec::new(), GenerationParams::default());
    let score = |id| comparison(id, pixels(16), &[vec![1, 5, 2]], [true, true]);
    for (name, accepted, refused) in [
        ("tied", caption(0), [question(1), score(2)]),
        ("itm", score(0), [question(1), caption(2)]),
        ("vqa", question(0), [caption(1), score(2)]),
    ] {
        let mut engine =
            cutline::engine::local::LocalEngine::new(Set::tiny(name, best(Precision::F32)).model);
        for job in refused {
            let error = engine.start(job).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        }
        engine.start(accepted).unwrap();
    }
}

#[test]
fn candle_refuses_models_that_read_texts() {
    let folder = root().join("tests/goldens/vqa");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config = BlipConfig::from_json(&config).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let weights = Weights::from_safetensors_bytes("vqa", bytes.into()).unwrap();
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        precision: Precision::F32,
        kernels: KernelChoice::Candle,
        ..EngineOptions::default()
    };
    let on_gpu = load_gpu_model_on_cpu(&config, &weights, Precision::F32);
    for error in [load_model(&config, &weights, options).unwrap_err(), on_gpu.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.detail().contains("BlipForQuestionAnswering"), "{error}");
    }
}
