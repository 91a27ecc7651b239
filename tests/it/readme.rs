//! What the README shows is what the program prints.

use std::process::Command;

const README: &str = include_str!("../../README.md");

/// The first fenced block of `language` after `mark`.
fn block(mark: &str, language: &str) -> &'static str {
    let (_, rest) = README.split_once(mark).unwrap_or_else(|| panic!("README lacks {mark:?}"));
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block follows");
    rest.split_once("```").expect("the block ends").0
}

fn cutline(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cutline"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("MODEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_captions_of_the_example_photos_are_the_programs_own() {
    let photos = ["astronaut", "cat", "coffee", "rocket"].map(|p| format!("examples/{p}.jpg"));
    let mut arguments = vec!["caption"];
    arguments.extend(photos.iter().map(String::as_str));
    let printed = cutline(&arguments);
    assert_eq!(block("cutline caption examples/*.jpg", "text"), printed);

    // The same caption stands below the picture, as its alternative text, and in curl's answer.
    let cat = printed.lines().find_map(|line| line.strip_prefix("examples/cat.jpg\t")).unwrap();
    assert!(README.contains(&format!("alt=\"{cat}\"")), "alt text of the picture");
    assert!(README.contains(&format!("<em>{cat}</em>")), "caption below the picture");
    let answer: serde_json::Value =
        serde_json::from_str(block("-F image=@examples/cat.jpg", "json")).unwrap();
    assert_eq!(answer["caption"], cat);
    let json = cutline(&["caption", "--format", "jsonl", "examples/cat.jpg"]);
    let now: serde_json::Value = serde_json::from_str(&json).unwrap();
    for field in ["model", "image", "cache"] {
        assert_eq!(answer[field], now[field], "{field} in the README's answer");
    }
    let (shown, printed) = (&answer["captions"][0], &now["captions"][0]);
    for field in ["text", "tokens", "finish_reason"] {
        assert_eq!(shown[field], printed[field], "{field} in the README's answer");
    }
    // Other processors have other kernels, and round differently.
    let confidence = |choice: &serde_json::Value| choice["confidence"].as_f64().unwrap();
    assert!((confidence(shown) - confidence(printed)).abs() < 0.02);
}

#[test]
fn the_readme_names_every_parameter() {
    for name in cutline::captioner::CaptionParams::NAMES {
        assert!(README.contains(&format!("`{name}`")), "the README does not name {name}");
    }
}
