//! Commands that need a model, with the embedded one.

use std::process::Stdio;

use serde_json::Value;

use super::{assert_sentence, assert_status, cutline, photo, run, text};

#[test]
fn limits_of_the_model_are_checked_for_each_photo() {
    let output = run(&["caption", &photo("cat"), "--max-new-tokens", "9999"]);
    assert_sentence(&output, 1, &["max_new_tokens", "cat.jpg"]);
}

#[test]
fn captions_are_printed_in_the_order_of_the_files() {
    let names = ["rocket", "cat", "coffee", "astronaut"];
    let photos = names.map(photo);
    let mut arguments = vec!["caption"];
    arguments.extend(photos.iter().map(String::as_str));

    let output = run(&arguments);
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    let lines: Vec<(&str, &str)> =
        text(&output.stdout).lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(lines.iter().map(|(path, _)| *path).collect::<Vec<_>>(), photos);
    assert!(lines.iter().all(|(_, caption)| !caption.trim().is_empty()), "{lines:?}");

    arguments.extend(["--format", "json"]);
    let output = run(&arguments);
    assert_status(&output, 0);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for ((row, path), line) in rows.iter().zip(&photos).zip(&lines) {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys[..3], ["path", "caption", "captions"]);
        assert_eq!((&row["path"], &row["caption"]), (&path.as_str().into(), &line.1.into()));
        assert_eq!(row["image"]["format"], "jpeg");
        let size = std::fs::metadata(path).unwrap().len();
        assert_eq!(row["image"]["size_bytes"], size);
    }
    assert_eq!(rows.len(), names.len());
}

#[test]
fn a_bad_file_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.jpg"), "no photo").unwrap();
    let good = photo("cat");
    let files = ["missing.jpg", &good, "text.jpg", ".", &good];
    let output = cutline(&folder, &["caption", "--format=jsonl", "--num-beams=2"])
        .args(["--num-captions", "2"])
        .args(files)
        .output()
        .unwrap();
    assert_status(&output, 1);
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["captions"].as_array().unwrap().len() == 2), "{rows:?}");
    let complaints: Vec<&str> = text(&output.stderr).lines().collect();
    for (complaint, file) in complaints.iter().zip(["missing.jpg", "text.jpg", "./text.jpg"]) {
        assert!(complaint.starts_with(&format!("{file}: ")), "{complaint}");
    }
    assert_eq!(complaints.len(), 3, "{complaints:?}");

    let none = cutline(&folder, &["caption", "--format", "json", "missing.jpg"]).output().unwrap();
    assert_status(&none, 1);
    assert_eq!(text(&none.stdout), "[]\n");
}

#[test]
fn the_same_seed_gives_the_same_caption() {
    let cat = photo("cat");
    let sample = |seed: &str| {
        let output = run(&["caption", "--do-sample", "--seed", seed, &cat]);
        assert_status(&output, 0);
        text(&output.stdout).to_owned()
    };
    assert_eq!(sample("7"), sample("7"));
}

#[test]
fn a_closed_standard_output_is_not_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = cutline(&folder, &["caption", &photo("cat"), &photo("coffee")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_model_is_described_as_json() {
    let output = run(&["model", "info"]);
    assert_status(&output, 0);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["architecture"], "BlipForConditionalGeneration");
    assert!(info["parameters"].as_u64().unwrap() > 0);
    assert!(info["digest"].as_str().unwrap().starts_with("blake3:"));
    let own = include_str!("../../../models/cutline-small/cutline.json");
    let own: Value = serde_json::from_str(own).unwrap();
    for (name, value) in own["generation"].as_object().unwrap() {
        assert_eq!(info["generation"][name].as_f64(), value.as_f64(), "{name}");
    }
    let output = run(&["model", "info", "./no-such-folder"]);
    assert_sentence(&output, 1, &["no-such-folder"]);
}
