//! Models and destinations that are refused, and the reasons.

use std::fs;
use std::path::Path;

use cutline::engine::quantize::TensorType;
use cutline::error::{Error, ErrorKind};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::{goldens, names_in, open, overwrite, write};

/// Checks that the error is one sentence of this kind with all of `parts`.
#[track_caller]
fn assert_says(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.detail();
    assert!(!text.contains('\n') && !text.contains("  "), "more than a sentence: {text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn files_are_overwritten_only_with_force() {
    let dir = TempDir::new().unwrap();
    let files = open(&goldens("tied"));
    let out = dir.path().join("new/out");
    write(&files, TensorType::Q8_0, &out).unwrap();
    let before = fs::read(out.join("model.gguf")).unwrap();
    let error = write(&files, TensorType::Q4_0, &out).unwrap_err();
    assert_says(&error, ErrorKind::Io, &["model.gguf", "--force"]);
    assert!(fs::read(out.join("model.gguf")).unwrap() == before);
    overwrite(&files, TensorType::Q4_0, &out).unwrap();
    assert!(fs::read(out.join("model.gguf")).unwrap().len() < before.len());

    // Another file of the same model may share config.json; one of another model may not.
    write(&files, TensorType::Q8_0, &out.join("second.gguf")).unwrap();
    let other = open(&goldens("untied"));
    let error = write(&other, TensorType::Q8_0, &out.join("third.gguf")).unwrap_err();
    assert_says(&error, ErrorKind::Io, &["config.json", "another model", "--force"]);
    assert_eq!(names_in(&out), ["config.json", "model.gguf", "second.gguf"]);
    overwrite(&other, TensorType::Q8_0, &out.join("third.gguf")).unwrap();
    assert_eq!(fs::read(out.join("config.json")).unwrap(), other.config);
    assert_eq!(names_in(&out), ["config.json", "model.gguf", "second.gguf", "third.gguf"]);
}

#[test]
fn a_path_that_cannot_be_written_is_reported() {
    let dir = TempDir::new().unwrap();
    let files = open(&goldens("tied"));
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("folder.gguf")).unwrap();
    fs::create_dir(at("busy")).unwrap();
    fs::write(at("busy/model.gguf.tmp"), "half").unwrap();
    let table = [
        ("file", "is a file"),
        ("file/model.gguf", "is a file"),
        ("folder.gguf", "is a folder"),
        ("file/in/it", "cannot be written"),
        ("busy", "interrupted"),
    ];
    for (out, part) in table {
        for result in [write, overwrite].map(|w| w(&files, TensorType::Q8_0, &at(out))) {
            assert_says(&result.unwrap_err(), ErrorKind::Io, &[part]);
        }
    }
    assert_eq!(
        fs::read(at("busy/model.gguf.tmp")).unwrap(),
        b"half",
        "another program's file stays"
    );
    assert_eq!(names_in(&at("busy")), ["model.gguf.tmp"]);
}

#[test]
fn a_model_is_not_quantised_twice_nor_over_itself() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("q8_0");
    write(&open(&goldens("tied")), TensorType::Q8_0, &out).unwrap();
    let gguf = out.join("model.gguf");
    for model in [&out, &gguf] {
        let files = open(model);
        let error = write(&files, TensorType::Q4_0, &dir.path().join("q4_0")).unwrap_err();
        assert_says(&error, ErrorKind::Model, &["model.gguf", "original", "--type f16"]);
    }
    // Dequantising it is allowed, but not onto itself.
    let files = open(&gguf);
    let error = overwrite(&files, TensorType::F32, &gguf).unwrap_err();
    assert_says(&error, ErrorKind::Io, &["model.gguf", "another file"]);
    let whole = dir.path().join("f32.gguf");
    write(&files, TensorType::F32, &whole).unwrap();
    assert!(!open(&whole).weights.is_quantized());
}

/// Fills a folder with a configuration and one matrix that contains this value.
fn model_of(folder: &Path, value: f32) {
    fs::copy(goldens("tied").join("config.json"), folder.join("config.json")).unwrap();
    let bytes: Vec<u8> = [0.5, value].repeat(32).into_iter().flat_map(f32::to_le_bytes).collect();
    let view = TensorView::new(Dtype::F32, vec![2, 32], &bytes).unwrap();
    let bytes = safetensors::serialize([("a.weight", view)], None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn numbers_that_cannot_be_represented_are_refused() {
    let dir = TempDir::new().unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        model_of(dir.path(), value);
        for kind in TensorType::ALL {
            let out = dir.path().join("out");
            let error = write(&open(dir.path()), kind, &out).unwrap_err();
            assert_says(&error, ErrorKind::Model, &["`a.weight`", &value.to_string(), "again"]);
            assert!(names_in(&out).is_empty(), "left behind: {:?}", names_in(&out));
        }
    }
    model_of(dir.path(), 1e5);
    for kind in [TensorType::F16, TensorType::Q8_0] {
        let error = write(&open(dir.path()), kind, &dir.path().join("out")).unwrap_err();
        assert_says(&error, ErrorKind::Model, &["`a.weight`", "100000", "--type f32"]);
    }
    write(&open(dir.path()), TensorType::F32, &dir.path().join("out")).unwrap();
}

#[test]
fn another_architecture_is_refused() {
    let dir = TempDir::new().unwrap();
    model_of(dir.path(), 1.0);
    fs::write(dir.path().join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
    let error = write(&open(dir.path()), TensorType::Q8_0, &dir.path().join("out")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn safetensors_are_preferred_to_gguf_in_a_folder() {
    let dir = TempDir::new().unwrap();
    model_of(dir.path(), 1.0);
    let files = open(dir.path());
    let written = write(&files, TensorType::Q8_0, dir.path()).unwrap();
    assert_eq!(names_in(dir.path()), ["config.json", "model.gguf", "model.safetensors"]);
    assert!(!open(dir.path()).weights.is_quantized());
    assert!(open(&written.path).weights.is_quantized());
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(open(dir.path()).weights.is_quantized());
}
