//! Caption scores, compared with those of pycocoevalcap (tests/goldens/eval).

use std::collections::HashMap;
use std::path::Path;

use cutline::score::{Pair, Scores, tokens};
use serde_json::Value;

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/eval");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn scores_and_tokens_match_pycocoevalcap() {
    let expected: Value = serde_json::from_str(&golden("expected.json")).unwrap();
    let coco: Value = serde_json::from_str(&golden("references.json")).unwrap();
    let mut names = HashMap::new();
    for image in coco["images"].as_array().unwrap() {
        names.insert(image["id"].as_u64().unwrap(), image["file_name"].as_str().unwrap());
    }
    let mut references: HashMap<&str, Vec<&str>> = HashMap::new();
    for annotation in coco["annotations"].as_array().unwrap() {
        let name = names[&annotation["image_id"].as_u64().unwrap()];
        references.entry(name).or_default().push(annotation["caption"].as_str().unwrap());
    }
    let mut pairs = Vec::new();
    for line in golden("results.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["path"].as_str().unwrap().strip_prefix("album/").unwrap();
        let caption = row["caption"].as_str().unwrap();
        let texts = references.remove(name).unwrap();
        for (text, words) in
            [caption].iter().chain(&texts).zip(expected["tokens"][name].as_array().unwrap())
        {
            assert_eq!(tokens(text).join(" "), words.as_str().unwrap());
        }
        pairs.push(Pair::new(caption, texts));
    }
    assert!(references.is_empty() && pairs.len() == 22);
    let scores = serde_json::to_value(Scores::of(&pairs)).unwrap();
    for name in ["CIDEr-D", "BLEU-4", "ROUGE-L"] {
        let [ours, theirs] = [&scores, &expected].map(|all| all[name].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-9 * theirs, "{name}: {ours} and {theirs}");
    }
}
