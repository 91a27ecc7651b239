//! `cutline prompts`, and `cutline caption --template`.

use std::fs;
use std::process::Output;

use tempfile::TempDir;

use super::{assert_sentence, assert_status, cutline, photo, text};

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    cutline(folder, arguments).env("LIBRARY", "sqlite:photos.db").output().unwrap()
}

#[track_caller]
fn printed(folder: &TempDir, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_status(&output, 0);
    text(&output.stdout).to_owned()
}

#[test]
fn prompts_are_saved_served_and_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(photo("cat"), folder.path().join("cat.jpg")).unwrap();
    let save = |template: &str| {
        printed(&folder, &["prompts", "save", "post", "--kind", "chain", "--template", template])
    };
    assert_eq!(save("{{ title }}!"), "post:1\n");
    assert_eq!(save("{{ title }}, {{ who }}"), "post:2\n");
    printed(&folder, &["prompts", "label", "post", "production", "2"]);
    assert_eq!(printed(&folder, &["prompts", "list"]), "post\t2\tproduction=2\t\n");
    let diff = printed(&folder, &["prompts", "diff", "post:1", "post@production"]);
    assert!(diff.contains("[-") && diff.contains("{+"), "{diff}");
    let rendered = ["prompts", "render", "post:1", "--caption", "a dog"];
    assert_eq!(printed(&folder, &rendered), "Dog!\n");
    let variables = r#"{"who": "Kim"}"#;
    let caption = ["caption", "--template", "post", "--variables", variables, "cat.jpg"];
    assert!(printed(&folder, &caption).ends_with(", Kim\n"));
    printed(&folder, &["prompts", "label", "post", "production", "1", "--protect"]);
    assert!(printed(&folder, &["caption", "--template", "post", "cat.jpg"]).ends_with("!\n"));
    let refused = run(&folder, &["prompts", "label", "post", "production", "2"]);
    assert_sentence(&refused, 1, &["protected", "force"]);
    let shown = printed(&folder, &["prompts", "show", "post"]);
    assert_eq!(shown.lines().count(), 2);
    assert!(shown.lines().nth(1).unwrap().contains("\tproduction\tchain\t"), "{shown}");
}

#[test]
fn experiments_are_started_reported_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    for style in ["title", "keywords"] {
        let save = ["prompts", "save", "words", "--kind", "style", "--style", style];
        printed(&folder, &save);
    }
    let start = ["prompts", "experiment", "start", "one", "words", "1=1", "2=3", "--planned", "5"];
    printed(&folder, &start);
    assert_eq!(printed(&folder, &["prompts", "experiment", "report"]), "one\twords\trunning\n");
    let report = run(&folder, &["prompts", "experiment", "report", "one"]);
    assert_status(&report, 0);
    assert!(text(&report.stderr).contains("no verdict yet"), "{report:?}");
    printed(&folder, &["prompts", "experiment", "promote", "one", "2"]);
    assert!(printed(&folder, &["prompts", "list"]).contains("production=2"));
    let again = run(&folder, &["prompts", "experiment", "promote", "one", "3"]);
    assert_status(&again, 2);
}

#[test]
fn without_a_library_a_sentence_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(photo("cat"), folder.path().join("cat.jpg")).unwrap();
    for arguments in [&["caption", "--template", "post", "cat.jpg"][..], &["prompts", "list"]] {
        let output = cutline(&folder, arguments).output().unwrap();
        assert!(!output.status.success());
        assert!(text(&output.stderr).to_uppercase().contains("LIBRARY"), "{output:?}");
    }
}
