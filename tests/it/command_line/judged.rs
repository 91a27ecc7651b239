//! `cutline eval` and `cutline check` as a user runs them.

use std::fs;

use serde_json::Value;

use super::{ROOT, assert_sentence, assert_status, cutline, run, text};

#[test]
fn captions_are_scored_and_unmatched_photos_are_reported() {
    let file = |name: &str| format!("{ROOT}/tests/goldens/eval/{name}");
    let (results, references) = (file("results.jsonl"), file("references.json"));
    let output = run(&["eval", &results, "--references", &references]);
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    let expected: Value =
        serde_json::from_str(&fs::read_to_string(file("expected.json")).unwrap()).unwrap();
    let cider = expected["CIDEr-D"].as_f64().unwrap();
    assert!(text(&output.stdout).contains(&format!("photos   22\nCIDEr-D  {cider:.4}\n")));

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.csv"), "path,caption\nx/01.jpg,a cat\nz.jpg,a dog\n").unwrap();
    let arguments = ["eval", "r.csv", "--json", "--references", &references];
    let output = cutline(&folder, &arguments).output().unwrap();
    assert_status(&output, 0);
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(scores["photos"], 1);
    let reported: Vec<&str> = text(&output.stderr).lines().collect();
    assert!(reported[0].contains("1 photos have no references") && reported[0].contains("z.jpg"));
    assert!(reported[1].contains("21 photos with references"), "{reported:?}");

    fs::write(folder.path().join("r.csv"), "path,caption\nz.jpg,a dog\n").unwrap();
    let output = cutline(&folder, &arguments).output().unwrap();
    assert_status(&output, 1);
    assert!(text(&output.stderr).contains("no photo in the results has references"));
    let arguments = ["eval", "r.csv", "--references", "r.csv"];
    assert_sentence(&cutline(&folder, &arguments).output().unwrap(), 2, &["r.csv", "line 1"]);
    assert_sentence(&run(&["eval", "none.csv", "--references", &references]), 1, &["none.csv"]);
}

#[test]
fn folders_and_results_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    for name in ["a.jpg", "b.jpg", "c.jpg", "d.jpg"] {
        write(name, "");
    }
    write("a.jpg.txt", "a cat on a sofa\n");
    write("b.jpg.json", r#"{"caption": "a cat on a sofa", "captions": [{"confidence": 0.05}]}"#);
    write(
        "out.jsonl",
        "{\"path\": \"./c.jpg\", \"caption\": \"a dog dog runs\"}\n\
        {\"path\": \"./d.jpg\", \"caption\": \"not available\", \"fallback\": true}\n",
    );
    let check =
        |arguments: &[&str]| cutline(&folder, &[&["check"], arguments].concat()).output().unwrap();
    let output = check(&[".", "out.jsonl", "--fail-under", "75"]);
    assert_status(&output, 0);
    for part in ["photos          4", "3 (75.0 %)", "2 × a cat", "./b.jpg: a cat", "./c.jpg: a dog"]
    {
        assert!(text(&output.stdout).contains(part), "{part} is not in {output:?}");
    }
    let output = check(&[".", "--fail-under", "75", "--json"]);
    assert_status(&output, 1);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["missing"], serde_json::json!(["./c.jpg", "./d.jpg"]));
    let output = check(&["out.jsonl", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["photos"], &report["described"]), (&2.into(), &1.into()));
    assert_eq!(report["suspicious"][0]["why"][0], "repetition");
    assert_sentence(&check(&["out.jsonl", "--fail-under", "101"]), 2, &["--fail-under"]);
    assert_sentence(&check(&["none.jsonl"]), 1, &["none.jsonl", "check the path"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    assert_sentence(&check(&["empty"]), 1, &["no photos"]);
}
