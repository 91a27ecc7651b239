//! What the README shows is what the program prints.

use std::process::Command;

use cutline::captioner::{Budget, Decoders};
use cutline::image::DecodeLimits;

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
    let photos = ["astronaut", "cat", "coffee", "rocket"].map(|p| format!("assets/{p}.jpg"));
    let mut arguments = vec!["caption"];
    arguments.extend(photos.iter().map(String::as_str));
    let printed = cutline(&arguments);
    assert_eq!(block("cutline caption assets/*.jpg", "text"), printed);

    // The same caption stands below the picture, as its alternative text, and in curl's answer.
    let cat = printed.lines().find_map(|line| line.strip_prefix("assets/cat.jpg\t")).unwrap();
    assert!(README.contains(&format!("alt=\"{cat}\"")), "alt text of the picture");
    assert!(README.contains(&format!("<em>{cat}</em>")), "caption below the picture");
    let answer: serde_json::Value =
        serde_json::from_str(block("-F image=@assets/cat.jpg", "json")).unwrap();
    assert_eq!(answer["caption"], cat);
    let json = cutline(&["caption", "--format", "jsonl", "assets/cat.jpg"]);
    let now: serde_json::Value = serde_json::from_str(&json).unwrap();
    for field in ["model", "image", "cache"] {
        assert_eq!(answer[field], now[field], "{field} in the README's answer");
    }
    same_appearance(&answer, &now);
    let (shown, printed) = (&answer["captions"][0], &now["captions"][0]);
    for field in ["text", "tokens", "finish_reason"] {
        assert_eq!(shown[field], printed[field], "{field} in the README's answer");
    }
    // Other processors have other kernels, and round differently.
    let confidence = |choice: &serde_json::Value| choice["confidence"].as_f64().unwrap();
    assert!((confidence(shown) - confidence(printed)).abs() < 0.02);
}

#[tokio::test]
async fn the_description_of_the_coffee_is_the_programs_own() {
    let shown: serde_json::Value =
        serde_json::from_str(block("-F image=@assets/coffee.jpg", "json")).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/coffee.jpg");
    let decoders = Decoders::new(DecodeLimits::default(), 1, Budget::new(1 << 30));
    let printed = decoders.process(std::fs::read(path).unwrap()).await.unwrap();
    let printed = serde_json::to_value(printed).unwrap();
    assert!(shown.as_object().unwrap().keys().eq(printed.as_object().unwrap().keys()));
    assert_eq!(shown["image"], printed["image"]);
    same_appearance(&shown, &printed);
    for name in ["brightness", "contrast", "sharpness", "colorfulness"] {
        let [one, two] = [&shown, &printed].map(|answer| answer[name].as_f64().unwrap());
        assert!((one - two).abs() <= 0.01 * one, "{name}: {one} and {two}");
    }
}

/// Colours and mood agree, but for what other processors may round otherwise.
fn same_appearance(shown: &serde_json::Value, printed: &serde_json::Value) {
    let colors = |answer: &serde_json::Value| answer["colors"].as_array().unwrap().clone();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    assert_eq!(colors(shown).len(), colors(printed).len());
    for (one, two) in colors(shown).iter().zip(&colors(printed)) {
        assert_eq!(one["name"], two["name"]);
        let [red, green, blue] = [0, 1, 2].map(|channel| one["rgb"][channel].as_u64().unwrap());
        assert_eq!(one["hex"], format!("#{red:02x}{green:02x}{blue:02x}"));
        for channel in 0..3 {
            assert!((number(&one["rgb"][channel]) - number(&two["rgb"][channel])).abs() <= 2.0);
        }
        assert!((number(&one["fraction"]) - number(&two["fraction"])).abs() < 0.01);
    }
    let (one, two) = (shown["mood"].as_object().unwrap(), printed["mood"].as_object().unwrap());
    assert!(one.keys().eq(two.keys()) && one["label"] == two["label"], "{one:?} {two:?}");
    for (name, value) in one.iter().filter(|(name, _)| *name != "label") {
        assert!((number(value) - number(&two[name])).abs() < 0.02, "{name} of the mood");
    }
}

#[test]
fn the_readme_names_every_parameter() {
    for name in cutline::captioner::Parameter::all().iter().map(|one| one.name()) {
        assert!(README.contains(&format!("`{name}`")), "the README does not name {name}");
    }
}
