//! Logits processors, compared with those of transformers (tests/goldens/processors.json).

use std::path::Path;

use cutline::generate::processors::{self, LogitsProcessor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Processors {
    ids: Vec<u32>,
    scores: Vec<f32>,
    cases: Vec<ProcessorCase>,
}

#[derive(Deserialize)]
struct ProcessorCase {
    processor: String,
    value: f64,
    min_tokens_to_keep: usize,
    expected: Vec<Option<f32>>,
}

#[test]
fn logits_processors_match_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/processors.json");
    let goldens: Processors = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for case in &goldens.cases {
        let (value, count, keep) =
            (case.value as f32, case.value as usize, case.min_tokens_to_keep);
        let processor: Box<dyn LogitsProcessor> = match case.processor.as_str() {
            "temperature" => Box::new(processors::Temperature(value)),
            "top_k" => Box::new(processors::TopK(count.max(keep))),
            "top_p" => Box::new(processors::TopP { mass: value, keep }),
            "repetition_penalty" => Box::new(processors::RepetitionPenalty(value)),
            "no_repeat_ngram_size" => Box::new(processors::NoRepeatNgram(count)),
            other => panic!("{other} has no counterpart here"),
        };
        let mut scores = goldens.scores.clone();
        processor.process(&goldens.ids, &mut scores);
        for (ours, theirs) in scores.iter().zip(&case.expected) {
            match theirs {
                None => assert_eq!(*ours, f32::NEG_INFINITY, "{} {value}", case.processor),
                Some(theirs) => assert!((ours - theirs).abs() < 1e-6, "{} {value}", case.processor),
            }
        }
    }
}
