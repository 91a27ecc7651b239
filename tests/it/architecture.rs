//! Checks the invariants of ARCHITECTURE.md against the source files.

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

/// The code of a file without comments and without its `mod tests { … }`, which comes last.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Whether `code` contains `word` as a whole word.
fn names(code: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(part_of_word) && !code[at + word.len()..].starts_with(part_of_word)
    })
}

/// The sources of the program: not its tests, which may name anything.
fn product() -> impl Iterator<Item = (String, String)> {
    let test_only = |name: &str| {
        let mut parts = name.split(['/', '.']);
        parts.any(|part| matches!(part, "tests" | "fake" | "script"))
    };
    ["src", "crates"].into_iter().flat_map(rust_files).filter(move |(name, _)| !test_only(name))
}

fn offenders(word: &str, allowed: &[&str]) -> Vec<String> {
    product()
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
    // It does find a word that is present.
    assert!(!offenders("candle_core", &[]).is_empty());
    assert!(!offenders("axum", &[]).is_empty());
}

/// Most of what the layers forbid, the compiler forbids: a crate names only its dependencies.
#[test]
fn crates_depend_downwards_only() {
    let allowed: [(&str, &[&str]); 14] = [
        ("cuda", &[]),
        ("error", &[]),
        ("kernels", &[]),
        ("score", &[]),
        ("small-model", &[]),
        ("generate", &["error"]),
        ("image", &["error"]),
        ("library", &["error", "xmp"]),
        ("prompts", &["error"]),
        ("route", &["error"]),
        ("tags", &["error"]),
        ("xmp", &["error"]),
        ("blip", &["cuda", "error", "generate", "kernels"]),
        // Uses the program, as a module for Python.
        ("python", &["kernels"]),
    ];
    let folder = Path::new(ROOT).join("crates");
    let mut found: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut known: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(found, known, "each crate needs a line in this table");
    let root = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let (_, default) = root.split_once("default-members = [").unwrap();
    let default = default.split(']').next().unwrap();
    for (name, below) in allowed {
        let built = default.contains(&format!("\"crates/{name}\","));
        assert_eq!(built, name != "python", "default-members and crates/{name}");
        let manifest = fs::read_to_string(folder.join(name).join("Cargo.toml")).unwrap();
        for line in manifest.lines() {
            let Some(rest) = line.strip_prefix("cutline-") else { continue };
            let other = rest.split(['.', ' ']).next().unwrap();
            assert!(below.contains(&other), "crates/{name} must not depend on {other}");
        }
    }
}

#[test]
fn candle_stays_below_the_engine() {
    absent(
        &["candle_core", "candle_nn", "candle_transformers"],
        &["src/engine/", "crates/blip/", "crates/cuda/"],
    );
}

#[test]
fn metrics_and_traces_stay_in_their_modules() {
    absent(&["prometheus_client"], &["src/metrics/"]);
    absent(&["opentelemetry", "opentelemetry_sdk"], &["src/telemetry"]);
}

#[test]
fn databases_stay_in_the_library() {
    absent(&["rusqlite"], &["crates/library/src/sqlite/"]);
}

#[test]
fn http_stays_in_its_module() {
    absent(&["axum", "StatusCode"], &["src/http/"]);
}

#[test]
fn nothing_below_the_scheduler_knows_tokio() {
    let above = [
        // Keys answer requests.
        "src/accounts/",
        "src/scheduler/",
        "src/cache/",
        "src/captioner/",
        "src/fetch/",
        "src/mcp/",
        "src/routing/",
        "src/http/",
        "src/cli/",
        "crates/python/",
    ];
    absent(&["tokio"], &above);
}

#[test]
fn only_the_settings_read_the_environment() {
    let allowed = ["src/config", "crates/cuda/build.rs", "crates/small-model/build.rs"];
    absent(&["env::var", "env::vars", "env::var_os", "dotenvy"], &allowed);
}

#[test]
fn imports_go_downwards() {
    // Each module, and those below it that it may name.
    let layers: [(&str, &[&str]); 13] = [
        ("accounts", &["captioner", "metrics"]),
        ("engine", &[]),
        ("tokenizer", &[]),
        ("metrics", &[]),
        ("cache", &["metrics"]),
        ("scheduler", &["engine", "metrics"]),
        ("captioner", &["cache", "scheduler", "tokenizer", "engine", "metrics"]),
        ("fetch", &["captioner"]),
        ("library", &["captioner"]),
        ("mcp", &["captioner"]),
        ("routing", &["captioner", "engine", "fetch", "metrics"]),
        ("telemetry", &["config"]),
        ("config", &["cache", "captioner", "scheduler", "engine", "fetch", "metrics", "routing"]),
    ];
    let modules = [
        "accounts",
        "cache",
        "captioner",
        "cli",
        "config",
        "engine",
        "fetch",
        "http",
        "library",
        "mcp",
        "metrics",
        "routing",
        "scheduler",
        "telemetry",
        "tokenizer",
    ];
    for (module, below) in layers {
        let of_module = |name: &str| {
            name.strip_prefix("src/")
                .and_then(|name| name.strip_prefix(module))
                .is_some_and(|rest| rest.starts_with(['/', '.']))
        };
        let mut read = 0;
        for (name, text) in product().filter(|(name, _)| of_module(name)) {
            read += 1;
            let code = code(&text);
            for other in modules.iter().filter(|other| **other != module && !below.contains(other))
            {
                let path = format!("crate::{other}");
                assert!(!names(&code, &path), "{name} must not name {path}");
            }
            assert!(!code.contains("use crate::{"), "{name}: one `use crate::…` a line, please");
        }
        assert!(read > 0, "there is no module {module}");
    }
}

#[test]
fn unsafe_lives_only_in_the_kernels_and_is_explained() {
    absent(&["unsafe", "allow(unsafe_code)"], &["crates/cuda/", "crates/kernels/"]);
    for (name, text) in ["crates/cuda", "crates/kernels"].into_iter().flat_map(rust_files) {
        let blocks = text.lines().filter(|line| line.contains("unsafe {")).count();
        let reasons = text.lines().filter(|line| line.contains("// SAFETY:")).count();
        assert!(reasons >= blocks, "{name}: {blocks} unsafe blocks, {reasons} SAFETY lines");
    }
}

#[test]
fn files_stay_readable() {
    for folder in ["src", "crates", "tests"] {
        for (name, text) in rust_files(folder) {
            let lines = text.lines().count();
            assert!(lines <= 550, "{name} has {lines} lines: split it");
        }
    }
    let main = fs::read_to_string(Path::new(ROOT).join("src/main.rs")).unwrap();
    assert!(main.lines().count() < 60, "main.rs only starts things");
}
