//! Decoded texts and encoded prompts, compared with those of `BlipProcessor`.

use cutline::tokenizer::{Tokenizer, TokenizerSource};
use serde_json::Value;

fn model_file(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cutline-small/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/embedded/goldens.json");
    let goldens: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    goldens["cases"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check(tokenizer: &Tokenizer) {
    let (mut texts, mut prompts) = (0, 0);
    for case in cases() {
        for sequence in case["sequences"].as_array().unwrap() {
            assert_eq!(tokenizer.decode(&ids(&sequence["ids"])).unwrap(), sequence["text"]);
            texts += 1;
        }
        if let Some(prompt) = case["prompt_text"].as_str() {
            assert_eq!(tokenizer.encode(prompt).unwrap(), ids(&case["prompt"]), "{prompt}");
            prompts += 1;
        }
    }
    assert!(texts > 50 && prompts > 5, "{texts} texts, {prompts} prompts");
}

#[test]
fn tokenizer_json_matches_transformers() {
    let (json, config) = (model_file("tokenizer.json"), model_file("tokenizer_config.json"));
    let source = TokenizerSource { json: Some(&json), config: Some(&config), vocab: None };
    check(&Tokenizer::load(source).unwrap());
}

#[test]
fn vocab_txt_matches_transformers() {
    let (vocab, config) = (model_file("vocab.txt"), model_file("tokenizer_config.json"));
    let source = TokenizerSource { json: None, config: Some(&config), vocab: Some(&vocab) };
    check(&Tokenizer::load(source).unwrap());
}
