//! Folders in Hugging Face layout, GGUF files with their config, and the embedded model.

use std::fs;
use std::path::Path;

use cutline::engine::hub::HubOptions;
use cutline::engine::source::{self, ModelFiles, ModelSource};
use cutline::error::Error;
use tempfile::TempDir;

use super::{assert_says, minimal_folder, safetensors_of};

fn open(folder: &Path) -> Result<ModelFiles, Error> {
    source::open(&ModelSource::Folder(folder.into()), &HubOptions::default())
}

#[test]
fn config_and_weights_are_enough() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("blip-mine");
    fs::create_dir(&folder).unwrap();
    minimal_folder(&folder);
    let files = open(&folder).unwrap();
    assert_eq!(files.id, "blip-mine");
    assert_eq!(files.source, folder.to_str().unwrap());
    assert_eq!(
        files.config,
        br#"{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}"#
    );
    assert!(files.weights.contains("a"));
    assert!(files.tokenizer.json.is_none() && files.tokenizer.vocab.is_none());
    assert!(files.preprocessor.is_none() && files.generation.is_none());
    assert!(files.license.is_none() && files.revision.is_none());
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(files.digest, format!("blake3:{}", blake3::hash(&weights).to_hex()));
}

#[test]
fn optional_files_are_read_if_they_exist() {
    let dir = TempDir::new().unwrap();
    minimal_folder(dir.path());
    let table = [
        ("tokenizer.json", r#"{"version": "1.0"}"#),
        ("vocab.txt", "[PAD]\n[UNK]\n"),
        ("tokenizer_config.json", "{}"),
        ("preprocessor_config.json", r#"{"size": 384}"#),
        ("generation_config.json", r#"{"max_length": 20}"#),
        ("README.md", "---\nlicense: bsd-3-clause\n---\n"),
        ("cutline.json", r#"{"generation": {"num_beams": 2}}"#),
    ];
    for (name, text) in table {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let files = open(dir.path()).unwrap();
    assert_eq!(files.tokenizer.json.as_deref().unwrap(), table[0].1.as_bytes());
    assert_eq!(files.tokenizer.vocab.as_deref().unwrap(), table[1].1.as_bytes());
    assert_eq!(files.tokenizer.config.as_deref().unwrap(), b"{}");
    assert_eq!(files.preprocessor.as_deref().unwrap(), table[3].1.as_bytes());
    assert_eq!(files.generation.as_deref().unwrap(), table[4].1.as_bytes());
    assert_eq!(files.license.as_deref(), Some("bsd-3-clause"));
    assert_eq!(files.extras.as_deref(), Some(table[6].1.as_bytes()));
    let small = files.small_files();
    assert!(small.contains(&("cutline.json", table[6].1.as_bytes())), "{small:?}");
}

#[test]
fn a_missing_folder_is_reported() {
    let dir = TempDir::new().unwrap();
    assert_says(&open(&dir.path().join("blib")).unwrap_err(), &["there is no folder", "blib"]);
    assert_says(&open(Path::new("~/blip")).unwrap_err(), &["no folder ~/blip", "home"]);
    minimal_folder(dir.path());
    let file = dir.path().join("model.safetensors");
    assert_says(&open(&file).unwrap_err(), &["is a file", "point MODEL at the folder"]);
}

#[test]
fn a_missing_file_is_named() {
    let dir = TempDir::new().unwrap();
    assert_says(&open(dir.path()).unwrap_err(), &["holds no weights", "model.safetensors"]);
    minimal_folder(dir.path());
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert_says(&open(dir.path()).unwrap_err(), &["config.json is missing"]);
}

#[test]
fn broken_json_is_named_with_its_line() {
    let table = ["config.json", "tokenizer.json", "tokenizer_config.json"].into_iter().chain([
        "preprocessor_config.json",
        "generation_config.json",
        "cutline.json",
    ]);
    for name in table {
        let dir = TempDir::new().unwrap();
        minimal_folder(dir.path());
        fs::write(dir.path().join(name), "{\"a\": 1,\n").unwrap();
        assert_says(&open(dir.path()).unwrap_err(), &[name, "not valid JSON", "line 2"]);
        fs::write(dir.path().join(name), "").unwrap();
        assert_says(&open(dir.path()).unwrap_err(), &[name, "is empty"]);
        fs::write(dir.path().join(name), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert_says(&open(dir.path()).unwrap_err(), &[name, "git lfs pull"]);
    }
}

#[test]
fn a_folder_that_is_still_being_written_is_refused() {
    let table = [
        ("model.safetensors.incomplete", "model.safetensors"),
        ("model.safetensors.part", "model.safetensors"),
        ("model.safetensors.crdownload", "model.safetensors"),
        ("model.safetensors.aria2", "model.safetensors"),
        (".model.safetensors.a8Xk2P", "model.safetensors"),
        ("model.safetensors.lock", "model.safetensors"),
        ("config.json.tmp", "config.json"),
        ("tokenizer.json.tmp", "tokenizer.json"),
        ("model.safetensors.index.json.part", "model.safetensors.index.json"),
    ];
    for (left, file) in table {
        let dir = TempDir::new().unwrap();
        minimal_folder(dir.path());
        if left.starts_with("model.safetensors.index") {
            fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        }
        fs::write(dir.path().join(left), "half").unwrap();
        let error = open(dir.path()).expect_err(left);
        assert_says(&error, &[file, "is being written", left, "wait"]);
    }
    // Files with similar names do not matter.
    let dir = TempDir::new().unwrap();
    minimal_folder(dir.path());
    for name in ["model.safetensors.bak", "model.safetensors.sha256", ".model.safetensors.swap"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    open(dir.path()).unwrap();
}

fn sharded(folder: &Path, shards: &[&str]) {
    fs::write(folder.join("config.json"), "{}").unwrap();
    let index = r#"{"metadata": {"total_size": 20}, "weight_map":
        {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    for (name, tensor) in [("model-1-of-2.safetensors", "a"), ("model-2-of-2.safetensors", "b")] {
        if shards.contains(&tensor) {
            fs::write(folder.join(name), safetensors_of(&[(tensor, &[2])])).unwrap();
        }
    }
}

#[test]
fn shards_are_found_through_their_index() {
    let dir = TempDir::new().unwrap();
    sharded(dir.path(), &["a", "b"]);
    let files = open(dir.path()).unwrap();
    assert!(files.weights.contains("a") && files.weights.contains("b"));

    let dir = TempDir::new().unwrap();
    sharded(dir.path(), &["a"]);
    let error = open(dir.path()).unwrap_err();
    assert_says(&error, &["model-2-of-2.safetensors is missing", "index.json lists it"]);
    fs::write(dir.path().join("model-2-of-2.safetensors.incomplete"), "half").unwrap();
    assert_says(&open(dir.path()).unwrap_err(), &["is being written"]);

    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../../secret.bin"}}"#).unwrap();
    assert_says(&open(dir.path()).unwrap_err(), &["index.json", "`../../secret.bin`"]);
    fs::write(&index, "{").unwrap();
    assert_says(&open(dir.path()).unwrap_err(), &["index.json", "not valid JSON"]);
}

#[test]
fn pytorch_weights_are_used_if_there_are_no_safetensors() {
    let dir = TempDir::new().unwrap();
    minimal_folder(dir.path());
    fs::write(dir.path().join("pytorch_model.bin"), include_bytes!("tied.bin")).unwrap();
    assert!(open(dir.path()).unwrap().weights.contains("a"));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(open(dir.path()).unwrap().weights.contains("head.weight"));
}

#[test]
fn a_gguf_file_takes_its_config_from_its_folder() {
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blip-q8.gguf");
    let source = ModelSource::Gguf(path.clone());
    let open = || source::open(&source, &HubOptions::default());
    assert_says(&open().unwrap_err(), &["config.json is missing"]);
    minimal_folder(dir.path());
    assert_says(&open().unwrap_err(), &["blip-q8.gguf is missing"]);

    let tensor =
        candle_core::Tensor::zeros((2, 32), candle_core::DType::F32, &candle_core::Device::Cpu);
    let blocks = QTensor::quantize(&tensor.unwrap(), GgmlDType::Q8_0).unwrap();
    let mut file = fs::File::create(&path).unwrap();
    gguf_file::write(&mut file, &[], &[("q", &blocks)]).unwrap();
    drop(file);
    let files = open().unwrap();
    assert_eq!(files.id, "blip-q8");
    assert_eq!(files.source, path.to_str().unwrap());
    assert!(files.weights.is_quantized() && !files.weights.contains("a"));
    fs::write(dir.path().join("blip-q8.gguf.part"), "half").unwrap();
    assert_says(&open().unwrap_err(), &["is being written"]);
}

#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model_needs_no_files() {
    let files = source::open(&ModelSource::Embedded, &HubOptions::default()).unwrap();
    assert_eq!((files.id.as_str(), files.source.as_str()), ("cutline-small", "embedded"));
    assert!(files.tokenizer.json.is_some() && files.preprocessor.is_some());
    assert!(files.weights.parameters() > 1_000_000);
    assert!(files.digest.starts_with("blake3:") && files.digest.len() == 7 + 64);
    let extras = cutline::captioner::ModelExtras::from_json(files.extras.as_deref()).unwrap();
    let support = extras.support.unwrap();
    assert!(support["dog"] > support["zebra"] && !support.contains_key("xyzzy"), "{support:?}");
    assert!(extras.confidence.share(0.3) < extras.confidence.share(0.9));
}
