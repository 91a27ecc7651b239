//! Models written as GGUF: the contents of the file, the output of the model, and the refused
//! cases.

mod refused;
mod values;

use std::path::{Path, PathBuf};

use cutline::engine::hub::HubOptions;
use cutline::engine::quantize::{Destination, Quantized, TensorType, quantize};
use cutline::engine::source::{self, ModelFiles, ModelSource};
use cutline::error::Error;

fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

#[track_caller]
fn open(model: &Path) -> ModelFiles {
    let source: ModelSource = model.to_str().unwrap().parse().unwrap();
    source::open(&source, &HubOptions::default()).unwrap()
}

fn write(files: &ModelFiles, kind: TensorType, out: &Path) -> Result<Quantized, Error> {
    quantize(files, kind, &Destination::new(out, false), &mut |_| {})
}

fn overwrite(files: &ModelFiles, kind: TensorType, out: &Path) -> Result<Quantized, Error> {
    quantize(files, kind, &Destination::new(out, true), &mut |_| {})
}

/// The names in a folder, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}
