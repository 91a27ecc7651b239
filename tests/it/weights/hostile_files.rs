//! Files that claim more than they hold, and things in the place of files.

use std::fs;
use std::path::Path;

use cutline::blip::BlipConfig;
use cutline::blip::weights::Weights;
use cutline::engine::hub::HubOptions;
use cutline::engine::source::{self, ModelFiles, ModelSource};
use cutline::error::Error;
use tempfile::TempDir;

use super::{assert_says, minimal_folder};

fn open(name: &str, bytes: &[u8]) -> (TempDir, Result<Weights, Error>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let weights = Weights::from_files(&[path]);
    (folder, weights)
}

fn open_folder(folder: &Path) -> Result<ModelFiles, Error> {
    source::open(&ModelSource::Folder(folder.into()), &HubOptions::default())
}

/// A GGUF file of metadata and tensors in F32, each of one dimension: name, length, offset.
fn gguf(metadata: &[Vec<u8>], tensors: &[(&str, u64, u64)], data: usize) -> Vec<u8> {
    let long = |number: usize| (number as u64).to_le_bytes();
    let mut file = [&b"GGUF\x03\0\0\0"[..], &long(tensors.len()), &long(metadata.len())].concat();
    file.extend(metadata.concat());
    for (name, length, offset) in tensors {
        file.extend([&long(name.len())[..], name.as_bytes(), &1u32.to_le_bytes()].concat());
        file.extend([&length.to_le_bytes()[..], &[0; 4], &offset.to_le_bytes()].concat());
    }
    file.resize(file.len().next_multiple_of(32) + data, 0);
    file
}

/// A key, and an array of this type that claims this length.
fn array(kind: u32, length: u64, rest: &[u8]) -> Vec<u8> {
    let key = [&1u64.to_le_bytes()[..], b"k", &9u32.to_le_bytes()].concat();
    [&key, &kind.to_le_bytes()[..], &length.to_le_bytes(), rest].concat()
}

#[test]
fn a_gguf_header_is_not_believed() {
    let (_folder, weights) =
        open("model.gguf", &gguf(&[], &[("a", 8, 0), ("b", 8, 32), ("empty", 0, 32)], 64));
    assert_eq!(weights.unwrap().parameters(), 16);
    for tensors in [[("a", 8, 0), ("b", 8, 24)], [("a", 8, 0), ("b", 8, 0)]] {
        let (_folder, weights) = open("model.gguf", &gguf(&[], &tensors, 64));
        assert_says(&weights.unwrap_err(), &["model.gguf", "`a` and `b` overlap"]);
    }
    for (length, offset) in [(u64::MAX, 0), (1 << 62, 0), (8, u64::MAX), (8, 1 << 40), (17, 0)] {
        let (_folder, weights) = open("model.gguf", &gguf(&[], &[("a", length, offset)], 64));
        assert_says(&weights.unwrap_err(), &["model.gguf", "`a`"]);
    }
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    for metadata in [
        array(0, u64::MAX, &[]),
        array(0, 1 << 29, &[]),
        array(8, 1 << 40, &[]),
        array(9, 1, &nested.repeat(100_000)),
        // It is there, but no model needs it.
        array(0, 9 << 20, &vec![0; 9 << 20]),
    ] {
        let (_folder, weights) = open("model.gguf", &gguf(&[metadata], &[("a", 8, 0)], 64));
        assert_says(&weights.unwrap_err(), &["model.gguf", "not a complete GGUF file"]);
    }
    for counts in [[u64::MAX, 0], [0, u64::MAX], [1 << 30, 1 << 30]] {
        let mut file = gguf(&[], &[("a", 8, 0)], 64);
        file[8..24].copy_from_slice(&counts.map(u64::to_le_bytes).concat());
        assert_says(&open("model.gguf", &file).1.unwrap_err(), &["not a complete GGUF file"]);
    }
}

#[test]
fn a_safetensors_header_is_not_believed() {
    let file =
        |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 8]].concat();
    let tensor = |shape: &str, range: &str| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}"#)
    };
    let nested = "[".repeat(500_000);
    for header in [
        format!(r#"{{"a":{}}}"#, tensor("[1099511627776,1099511627776]", "[0,8]")),
        format!(r#"{{"a":{}}}"#, tensor("[2]", "[0,18446744073709551615]")),
        format!(r#"{{"a":{}}}"#, tensor("[2]", "[8,0]")),
        format!(r#"{{"a":{},"b":{}}}"#, tensor("[2]", "[0,8]"), tensor("[2]", "[0,8]")),
        format!(r#"{{"a":{},"b":{}}}"#, tensor("[1]", "[0,4]"), tensor("[1]", "[2,6]")),
        format!(r#"{{"a":{nested}"#),
        format!(r#"{{"__metadata__":{nested}"#),
    ] {
        let error = open("model.safetensors", &file(&header)).1.unwrap_err();
        assert_says(&error, &["model.safetensors", "broken safetensors header"]);
    }
    let endless = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    assert_says(&open("model.safetensors", &endless).1.unwrap_err(), &["not a safetensors file"]);
}

/// What every configuration must say.
const CAPTIONING: &str =
    r#""model_type": "blip", "architectures": ["BlipForConditionalGeneration"]"#;

#[test]
fn nesting_in_a_configuration_is_harmless() {
    for [open, close] in [["[", "]"], ["{\"a\":", "}"]] {
        let nested = open.repeat(200_000) + "1" + &close.repeat(200_000);
        for field in ["architectures", "vision_config", "text_config"] {
            let json = match field {
                "architectures" => format!(r#"{{"model_type": "blip", "{field}": {nested}}}"#),
                _ => format!(r#"{{{CAPTIONING}, "{field}": {nested}}}"#),
            };
            // An object with an unknown field is a section; nothing else of this kind is.
            let section = open.starts_with('{') && field != "architectures";
            assert_eq!(BlipConfig::from_json(json.as_bytes()).is_ok(), section, "{field}");
        }
        let folder = TempDir::new().unwrap();
        minimal_folder(folder.path());
        let json = format!(r#"{{{CAPTIONING}, "unknown": {nested}}}"#);
        fs::write(folder.path().join("config.json"), &json).unwrap();
        fs::write(folder.path().join("tokenizer.json"), &json).unwrap();
        let files = open_folder(folder.path()).unwrap();
        assert!(BlipConfig::from_json(&files.config).is_ok());
    }
}

const SMALL_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "README.md",
];

#[test]
fn files_from_other_systems_are_read_or_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    minimal_folder(folder.path());
    for name in SMALL_FILES {
        fs::write(folder.path().join(name), "\u{feff}{\"a\": 1}\r\n").unwrap();
    }
    let files = open_folder(folder.path()).unwrap();
    for (name, bytes) in files.small_files() {
        assert_eq!(bytes, b"{\"a\": 1}\r\n", "{name}");
    }
    for name in SMALL_FILES {
        let folder = TempDir::new().unwrap();
        minimal_folder(folder.path());
        let wide: Vec<u8> = "{\"a\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(folder.path().join(name), [&b"\xff\xfe"[..], &wide].concat()).unwrap();
        let error = open_folder(folder.path()).unwrap_err();
        assert_says(&error, &[name, "UTF-16", "save it as UTF-8"]);
    }
}

/// A pipe without a writer, a device, a socket and a folder, in the place of each file.
#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let weights = ["model.safetensors", "pytorch_model.bin", "model.gguf"];
    let indexes = ["model.safetensors.index.json"];
    for name in SMALL_FILES.into_iter().chain(weights).chain(indexes) {
        for kind in ["pipe", "device", "socket", "folder"] {
            let folder = TempDir::new().unwrap();
            minimal_folder(folder.path());
            if name.starts_with("pytorch") || name.ends_with("gguf") || name.contains("index") {
                fs::remove_file(folder.path().join("model.safetensors")).unwrap();
            }
            let path = folder.path().join(name);
            let _ = fs::remove_file(&path);
            let mut socket = None;
            match kind {
                "pipe" => {
                    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                    assert!(made.success());
                }
                "device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                "socket" => {
                    socket = Some(std::os::unix::net::UnixListener::bind(&path).unwrap());
                }
                _ => fs::create_dir(&path).unwrap(),
            }
            let part = if kind == "folder" { "is a folder" } else { "not a regular file" };
            assert_says(&open_folder(folder.path()).unwrap_err(), &[name, part]);
            drop(socket);
        }
    }
}
