//! The invariants of ARCHITECTURE.md: what is absent, and where.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn rust_files(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(ROOT).join(folder), &mut found);
    found.sort();
    assert!(!found.is_empty(), "no Rust files below {folder}");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// The code of a file: no comments, and nothing from its `#[cfg(test)]` on.
fn code(text: &str) -> String {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Whether `word` stands in `code` as a word of its own.
fn names(code: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(part_of_word) && !code[at + word.len()..].starts_with(part_of_word)
    })
}

fn offenders(word: &str, allowed: &[&str]) -> Vec<String> {
    rust_files("src")
        .into_iter()
        .filter(|(name, _)| !allowed.iter().any(|room| name.starts_with(room)))
        .filter(|(_, text)| names(&code(text), word))
        .map(|(name, _)| name)
        .collect()
}

fn absent(words: &[&str], allowed: &[&str]) {
    for word in words {
        assert_eq!(offenders(word, allowed), [""; 0], "{word} is named outside {allowed:?}");
    }
}

#[test]
fn the_searcher_finds_words_and_only_words() {
    assert!(names("use candle_core::Tensor;", "candle_core"));
    assert!(!names("let my_candle_core2 = 1;", "candle_core"));
    assert!(!names(&code("// tokio\nfn f() {}\n#[cfg(test)]\nmod tests { use tokio; }"), "tokio"));
    // And it does find what is there.
    assert!(!offenders("candle_core", &[]).is_empty());
    assert!(!offenders("axum", &[]).is_empty());
}

#[test]
fn candle_stays_below_the_engine() {
    absent(
        &["candle_core", "candle_nn", "candle_transformers"],
        &["src/engine/", "src/blip/", "src/generate/", "src/kernels/"],
    );
}

#[test]
fn metrics_stay_in_their_room() {
    absent(&["prometheus_client"], &["src/metrics/"]);
    absent(&["opentelemetry", "opentelemetry_sdk"], &["src/telemetry"]);
}

#[test]
fn http_stays_in_its_room() {
    absent(&["axum", "StatusCode"], &["src/http/"]);
}

#[test]
fn nothing_below_batching_knows_tokio() {
    let below = ["src/engine/", "src/blip/", "src/generate/", "src/image/", "src/text.rs"];
    for (name, text) in rust_files("src") {
        if below.iter().any(|room| name.starts_with(room)) {
            assert!(!names(&code(&text), "tokio"), "{name} names tokio");
        }
    }
}

#[test]
fn only_the_settings_read_the_environment() {
    for (name, text) in rust_files("src") {
        if !name.starts_with("src/config") {
            let code = code(&text);
            for call in ["env::var", "env::vars", "env::var_os", "dotenvy"] {
                assert!(!names(&code, call), "{name} reads the environment: {call}");
            }
        }
    }
}

#[test]
fn imports_go_downwards() {
    // Each room, and the rooms that it may name. The order is the one of lib.rs's map.
    let layers: [(&str, &[&str]); 13] = [
        ("src/generate/", &["generate", "error"]),
        ("src/blip/", &["blip", "error"]),
        ("src/engine/", &["engine", "blip", "generate", "error"]),
        ("src/image/", &["image", "engine", "error"]),
        ("src/text.rs", &["text", "engine", "error"]),
        ("src/batching/", &["batching", "engine", "error", "metrics"]),
        ("src/cache/", &["cache", "engine", "error"]),
        (
            "src/captioner/",
            &["captioner", "cache", "batching", "image", "text", "engine", "error", "metrics"],
        ),
        ("src/telemetry", &["telemetry", "config", "error"]),
        ("src/metrics/", &["metrics", "error"]),
        ("src/score/", &["score", "error"]),
        ("src/xmp/", &["xmp", "error"]),
        ("src/error.rs", &["error"]),
    ];
    let rooms = [
        "batching",
        "blip",
        "cache",
        "captioner",
        "cli",
        "config",
        "engine",
        "error",
        "generate",
        "http",
        "image",
        "metrics",
        "score",
        "telemetry",
        "text",
        "xmp",
    ];
    for (name, text) in rust_files("src") {
        let Some((_, allowed)) = layers.iter().find(|(room, _)| name.starts_with(room)) else {
            continue;
        };
        let code = code(&text);
        for room in rooms.iter().filter(|room| !allowed.contains(room)) {
            let path = format!("crate::{room}");
            assert!(!names(&code, &path), "{name} must not know {path}");
        }
    }
}

#[test]
fn unsafe_lives_only_in_the_kernels_and_is_explained() {
    absent(&["unsafe", "allow(unsafe_code)"], &["src/kernels/"]);
    let kernels = Path::new(ROOT).join("src/kernels");
    if kernels.exists() {
        for (name, text) in rust_files("src/kernels") {
            let blocks = text.lines().filter(|line| line.contains("unsafe {")).count();
            let reasons = text.lines().filter(|line| line.contains("// SAFETY:")).count();
            assert!(reasons >= blocks, "{name}: {blocks} unsafe blocks, {reasons} SAFETY lines");
        }
    }
}

#[test]
fn files_stay_readable() {
    for folder in ["src", "tests"] {
        for (name, text) in rust_files(folder) {
            let lines = text.lines().count();
            assert!(lines <= 550, "{name} has {lines} lines: make two rooms of it");
        }
    }
    let main = fs::read_to_string(Path::new(ROOT).join("src/main.rs")).unwrap();
    assert!(main.lines().count() < 60, "main.rs only starts things");
}
