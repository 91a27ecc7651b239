//! Sources of weights: file formats, folders, the hub.

mod fake_hub;
mod folder;
mod formats;
mod hostile_files;
mod hostile_hub;
mod hub;

use std::collections::BTreeMap;
use std::path::Path;

use cutline::error::{Error, ErrorKind};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A safetensors file of F32 tensors; the values of each are 0, 1, 2, …
fn safetensors_of(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: BTreeMap<&str, Vec<u8>> =
        tensors.iter().map(|(name, shape)| (*name, counting(shape.iter().product()))).collect();
    let views = tensors.iter().map(|(name, shape)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), &data[name]).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn counting(elements: usize) -> Vec<u8> {
    (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// Fills a folder with the minimum that a model needs; its one tensor is `a`, 2 × 3.
fn minimal_folder(folder: &Path) {
    std::fs::write(
        folder.join("config.json"),
        r#"{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}"#,
    )
    .unwrap();
    let weights = safetensors_of(&[("a", &[2, 3])]);
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}

/// Asserts that an error is one sentence of the kind `Model` that contains all of `parts`.
#[track_caller]
fn assert_says(error: &Error, parts: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    let text = error.detail();
    assert!(!text.contains('\n') && !text.contains("  "), "more than a sentence: {text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}
