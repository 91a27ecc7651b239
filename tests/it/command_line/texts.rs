//! `cutline score` and `cutline ask`, and captions of BLIP-2, with tiny models

use serde_json::Value;

use super::{assert_sentence, assert_status, photo, run, text};

fn model(name: &str) -> String {
    format!("{}/tests/goldens/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn texts_are_printed_best_first() {
    let (itm, cat) = (model("itm"), photo("cat"));
    let texts = ["--text", "a cat", "--text", "two dogs", "--text", "a red hat on a chair"];
    let mut arguments = vec!["score", "--model", &itm, &cat];
    arguments.extend(texts);
    let output = run(&arguments);
    assert_status(&output, 0);
    let lines: Vec<Vec<&str>> =
        text(&output.stdout).lines().map(|line| line.split('\t').collect()).collect();
    let scores: Vec<f32> = lines.iter().map(|line| line[1].parse().unwrap()).collect();
    assert!(lines.len() == 3 && lines.iter().all(|line| line[0] == cat), "{lines:?}");
    assert!(scores.windows(2).all(|two| two[0] >= two[1]), "{scores:?}");
    arguments.extend(["--mode", "both", "--format", "jsonl"]);
    let output = run(&arguments);
    assert_status(&output, 0);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&row["path"], &row["scores"][0]["text"]), (&cat.as_str().into(), &"a cat".into()));
    let best = row["ranking"][0].as_u64().unwrap() as usize;
    assert_eq!(row["scores"][best]["text"], lines[0][2]);
    assert!(row["scores"][0]["similarity"].is_number());
    assert_sentence(&run(&["score", "--model", &itm, &cat]), 2, &["--text"]);
}

#[test]
fn questions_are_answered_in_their_order() {
    let (vqa, cat) = (model("vqa"), photo("cat"));
    let output = run(&["ask", "--model", &vqa, &cat, "-q", "what is it?", "-q", "how many cats?"]);
    assert_status(&output, 0);
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert!(lines[0].starts_with(&format!("{cat}\twhat is it?\t")), "{lines:?}");
    assert!(lines[1].starts_with(&format!("{cat}\thow many cats?\t")), "{lines:?}");
    let beams = ["ask", "--model", &vqa, &cat, "-q", "what?", "--num-beams", "3", "--format=jsonl"];
    let output = run(&beams);
    assert_status(&output, 0);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(row["answers"][0]["question"], "what?");
}

#[test]
fn a_command_refuses_a_model_that_cannot_do_it() {
    let cat = photo("cat");
    for (command, name, can) in [
        (vec!["caption"], "vqa", "answer questions"),
        (vec!["tags"], "itm", "embed images"),
        (vec!["ask", "-q", "what?"], "itm", "say how well texts match"),
        (vec!["score", "--text", "a"], "vqa", "answer questions"),
    ] {
        let model = model(name);
        let mut arguments = command.clone();
        arguments.extend(["--model", &model, &cat]);
        assert_sentence(&run(&arguments), 1, &["the loaded model cannot", can]);
    }
    let output = run(&["model", "info", &model("itm")]);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["architecture"], "BlipForImageTextRetrieval");
    assert_eq!(info["tasks"], serde_json::json!(["score", "embed"]));
}

#[test]
fn a_sharded_blip2_says_what_it_can_do_writes_captions_and_answers() {
    let (model, cat) = (model("blip2-opt-wide"), photo("cat"));
    let output = run(&["model", "info", &model]);
    assert_status(&output, 0);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["architecture"], "Blip2ForConditionalGeneration");
    assert_eq!(info["tasks"], serde_json::json!(["caption", "answer"]));
    assert!(info["license"].as_str().unwrap().contains("research only"), "{info}");
    let output = run(&["caption", "--model", &model, &cat, "--prompt", "Question: what? Answer:"]);
    assert_status(&output, 0);
    assert!(text(&output.stdout).contains("Question: what? Answer:"), "{output:?}");
    let output = run(&["ask", "--model", &model, &cat, "-q", "what?", "-q", "how many?"]);
    assert_status(&output, 0);
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert!(lines[0].starts_with(&format!("{cat}\twhat?\t")), "{lines:?}");
    assert!(!text(&output.stdout).contains("Question:"), "{lines:?}");
    let long = "cat ".repeat(200);
    assert_sentence(&run(&["ask", "--model", &model, &cat, "-q", &long]), 1, &["question", "86"]);
}
