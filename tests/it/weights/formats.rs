//! Safetensors, PyTorch and GGUF: what is read, and what is refused with a helpful message.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use cutline::blip::weights::Weights;
use cutline::error::Error;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::{assert_says, safetensors_of};

const CPU: &Device = &Device::Cpu;

fn open(path: &Path) -> Result<Weights, Error> {
    Weights::from_files(&[path.to_path_buf()])
}

/// The error of opening `bytes` under `name`.
#[track_caller]
fn refused(name: &str, bytes: &[u8]) -> Error {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = open(&path).expect_err("opened");
    assert_says(&error, &[path.to_str().unwrap()]);
    error
}

fn values(weights: &Weights, name: &str, shape: &[usize]) -> Vec<f32> {
    let tensor = weights.tensor(name, shape, DType::F32, CPU).unwrap();
    assert_eq!(tensor.dims(), shape);
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Opens hundreds of prefixes of a file, and the file with each of its first `header` bytes
/// inverted in turn, and reads everything that it then claims to hold. Nothing may panic.
fn batter(name: &str, bytes: &[u8], header: usize) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    for length in (0..bytes.len()).step_by(1 + bytes.len() / 500) {
        fs::write(&path, &bytes[..length]).unwrap();
        if let Err(error) = open(&path) {
            assert_says(&error, &[path.to_str().unwrap()]);
        } else {
            // Only GGUF's padding at the end may be missing.
            assert!(name.ends_with("gguf") && length + 32 > bytes.len(), "{length} bytes opened");
        }
    }
    for place in 0..header.min(bytes.len()) {
        let mut bytes = bytes.to_vec();
        bytes[place] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        let Ok(weights) = open(&path) else { continue };
        for tensor in weights.names() {
            let shape = weights.shape(tensor).unwrap();
            let _ = weights.tensor(tensor, shape, DType::F32, CPU);
            let _ = weights.quantized(tensor, shape, CPU);
        }
    }
}

#[test]
fn safetensors_are_converted_from_every_float_type_to_the_wanted_one() {
    let wide: Vec<u8> = [0.5f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let single: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let half = [0x00, 0x38, 0x00, 0xc0];
    let bfloat = [0x00, 0x3f, 0x00, 0xc0];
    let table = [
        ("f64", Dtype::F64, wide.as_slice()),
        ("f32", Dtype::F32, &single),
        ("f16", Dtype::F16, &half),
        ("bf16", Dtype::BF16, &bfloat),
    ];
    let views =
        table.map(|(name, kind, data)| (name, TensorView::new(kind, vec![2], data).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    let weights = Weights::from_safetensors_bytes("memory", Cow::Owned(bytes)).unwrap();
    for (name, ..) in table {
        for wanted in [DType::F32, DType::F16, DType::BF16] {
            let tensor = weights.tensor(name, &[2], wanted, CPU).unwrap();
            assert_eq!(tensor.dtype(), wanted);
            let values = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values, [0.5, -2.0], "{name} as {wanted:?}");
        }
        assert!(weights.quantized(name, &[2], CPU).unwrap().is_none());
    }
    assert_eq!(weights.parameters(), 8);
    assert!(!weights.is_quantized());
}

#[test]
fn every_tensor_of_a_file_is_read_from_its_own_range() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = safetensors_of(&[("a", &[2, 3]), ("b", &[4]), ("empty", &[0, 5])]);
    fs::write(&path, &bytes).unwrap();
    let weights = open(&path).unwrap();
    assert_eq!(values(&weights, "a", &[2, 3]), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(values(&weights, "b", &[4]), [0., 1., 2., 3.]);
    assert_eq!(values(&weights, "empty", &[0, 5]), [0.; 0]);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "empty"]);
    assert!(weights.contains("a") && !weights.contains("c"));
    let digest = format!("blake3:{}", blake3::hash(&bytes).to_hex());
    assert_eq!(weights.digest().unwrap(), digest);
    let memory = Weights::from_safetensors_bytes("memory", Cow::Owned(bytes)).unwrap();
    assert_eq!(memory.digest().unwrap(), digest);
    assert_eq!(values(&memory, "a", &[2, 3]), [0., 1., 2., 3., 4., 5.]);
}

#[test]
fn a_tensor_that_does_not_fit_is_named_with_its_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let ids = [0u8; 16];
    let view = TensorView::new(Dtype::I64, vec![2], &ids).unwrap();
    fs::write(&path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
    let weights = open(&path).unwrap();
    let file = path.to_str().unwrap();
    let error = |name: &str, shape: &[usize]| {
        weights.tensor(name, shape, DType::F32, CPU).expect_err("read")
    };
    assert_says(&error("b.weight", &[2]), &[file, "`b.weight`", "config.json"]);
    assert_says(&error("ids", &[3, 1]), &[file, "`ids`", "[2]", "[3, 1]", "config.json"]);
    assert_says(&error("ids", &[2]), &[file, "`ids`", "I64", "float32"]);
    assert_says(&weights.quantized("ids", &[3], CPU).expect_err("read"), &["[2]", "[3]"]);
    assert_eq!(weights.parameters(), 0);
}

#[test]
fn broken_safetensors_never_panic() {
    let bytes = safetensors_of(&[("a", &[2, 3]), ("b", &[4])]);
    let header = bytes.len() - 40;
    batter("model.safetensors", &bytes, header);
    for length in 0..bytes.len() {
        let cut = Cow::Owned(bytes[..length].to_vec());
        let error = Weights::from_safetensors_bytes("the embedded model", cut).unwrap_err();
        assert_says(&error, &["the embedded model", "truncated"]);
    }
}

#[test]
fn a_damaged_file_is_reported_with_the_kind_of_damage() {
    let whole = safetensors_of(&[("a", &[2, 3])]);
    let with = |extra: &[u8]| [whole.as_slice(), extra].concat();
    let header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let page = b"<!DOCTYPE html>\n<html><body>Not found</body></html>";
    let table: [(&[u8], &str); 10] = [
        (b"", "is empty"),
        (&whole[..5], "truncated"),
        (&whole[..20], "truncated"),
        (&whole[..whole.len() - 1], "truncated"),
        (&with(b"123"), "has 3 bytes after the end"),
        (pointer, "git lfs pull"),
        (page, "web page"),
        (b"PK\x03\x04 an archive, not a checkpoint", "not a safetensors file"),
        (&header("{ not json"), "broken safetensors header"),
        (&header(r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}"#), "header"),
    ];
    for (bytes, part) in table {
        assert_says(&refused("model.safetensors", bytes), &[part]);
    }
    assert_says(&refused("model.onnx", b"x"), &[".safetensors"]);
    let missing = PathBuf::from("/nowhere/model.safetensors");
    assert_says(&open(&missing).unwrap_err(), &["/nowhere/model.safetensors", "missing"]);
}

#[test]
fn a_file_that_changes_is_not_read_further() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = safetensors_of(&[("a", &[2, 3])]);
    let read = |weights: &Weights| weights.tensor("a", &[2, 3], DType::F32, CPU);

    fs::write(&path, &bytes).unwrap();
    let weights = open(&path).unwrap();
    read(&weights).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9).unwrap();
    assert_says(&read(&weights).unwrap_err(), &["changed while it was read", "start again"]);
    assert_says(&weights.digest().unwrap_err(), &["changed while it was read"]);

    // The same length with another modification time.
    fs::write(&path, &bytes).unwrap();
    let weights = open(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_says(&read(&weights).unwrap_err(), &["changed while it was read"]);

    fs::remove_file(&path).unwrap();
    assert_says(&read(&weights).unwrap_err(), &["missing"]);
}

#[test]
fn shards_form_one_checkpoint() {
    let dir = TempDir::new().unwrap();
    let paths = ["1.safetensors", "2.safetensors"].map(|name| dir.path().join(name));
    let (a, b) = (safetensors_of(&[("a", &[2])]), safetensors_of(&[("b", &[3])]));
    fs::write(&paths[0], &a).unwrap();
    fs::write(&paths[1], &b).unwrap();
    let weights = Weights::from_files(&paths).unwrap();
    assert_eq!(values(&weights, "a", &[2]), [0., 1.]);
    assert_eq!(values(&weights, "b", &[3]), [0., 1., 2.]);
    assert_eq!(weights.parameters(), 5);
    let digest = blake3::hash(&[a.as_slice(), &b].concat()).to_hex();
    assert_eq!(weights.digest().unwrap(), format!("blake3:{digest}"));

    fs::write(&paths[1], a).unwrap();
    let error = Weights::from_files(&paths).unwrap_err();
    assert_says(&error, &["1.safetensors", "2.safetensors", "`a`"]);
}

const TIED: &[u8] = include_bytes!("tied.bin");

fn tied() -> (TempDir, Weights) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, TIED).unwrap();
    let weights = open(&path).unwrap();
    (dir, weights)
}

#[test]
fn pytorch_files_are_read_with_ties_slices_and_transposes() {
    let (_dir, weights) = tied();
    let embedding: Vec<f32> = (0..12).map(|i| i as f32).collect();
    assert_eq!(values(&weights, "embedding.weight", &[4, 3]), embedding);
    assert_eq!(values(&weights, "head.weight", &[4, 3]), embedding);
    assert_eq!(values(&weights, "half", &[2]), [0.5, -2.0]);
    assert_eq!(values(&weights, "bfloat", &[2]), [0.5, -2.0]);
    assert_eq!(values(&weights, "double", &[1]), [0.1]);
    assert_eq!(values(&weights, "slice", &[2, 3]), [8., 9., 10., 11., 12., 13.]);
    assert_eq!(values(&weights, "transposed", &[3, 2]), [0., 3., 1., 4., 2., 5.]);
    // The embedding counts once, and position_ids do not count.
    assert_eq!(weights.parameters(), 12 + 2 + 2 + 1 + 6 + 6 + 10);
    let error = weights.tensor("position_ids", &[1, 4], DType::F32, CPU).unwrap_err();
    assert_says(&error, &["pytorch_model.bin", "`position_ids`", "I64"]);
    let error = weights.tensor("strided", &[10], DType::F32, CPU).unwrap_err();
    assert_says(&error, &["pytorch_model.bin", "`strided`"]);
}

#[test]
fn broken_pytorch_files_never_panic() {
    batter("pytorch_model.bin", TIED, 1500);
    assert_says(&refused("pytorch_model.bin", b"\x80\x02\x8a\x0a"), &["1.6", "save_pretrained"]);
    assert_says(&refused("pytorch_model.bin", b"P"), &["save_pretrained"]);
    assert_says(&refused("pytorch_model.bin", &TIED[..TIED.len() / 2]), &["complete copy"]);
}

/// A GGUF file of a quantised matrix (`q8`, 2 × 32; `q4`, 1 × 256) and plain tensors.
fn gguf(metadata: &[(&str, &Value)]) -> Vec<u8> {
    let matrix = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i % 7) as f32 - 3.0).collect();
        Tensor::from_vec(values, (rows, columns), CPU).unwrap()
    };
    let bias = Tensor::new(&[0.5f32, -2.0], CPU).unwrap();
    let tensors = [
        ("q8", QTensor::quantize(&matrix(2, 32), GgmlDType::Q8_0).unwrap()),
        ("q4", QTensor::quantize(&matrix(1, 256), GgmlDType::Q4K).unwrap()),
        ("f32", QTensor::quantize(&bias, GgmlDType::F32).unwrap()),
        ("f16", QTensor::quantize(&bias, GgmlDType::F16).unwrap()),
    ];
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut file, metadata, &tensors).unwrap();
    file.into_inner()
}

#[test]
fn gguf_is_read_as_blocks_and_dequantised() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, gguf(&[])).unwrap();
    let weights = open(&path).unwrap();
    assert!(weights.is_quantized());
    assert_eq!(weights.parameters(), 64 + 256 + 2 + 2);
    for (name, shape, kind) in [("q8", [2, 32], GgmlDType::Q8_0), ("q4", [1, 256], GgmlDType::Q4K)]
    {
        let blocks = weights.quantized(name, &shape, CPU).unwrap().unwrap();
        assert_eq!(blocks.dtype(), kind);
        assert_eq!(blocks.shape().dims(), shape);
        for (i, value) in values(&weights, name, &shape).into_iter().enumerate() {
            assert!((value - ((i % 7) as f32 - 3.0)).abs() < 0.3, "{name}[{i}] = {value}");
        }
    }
    for name in ["f32", "f16"] {
        assert_eq!(values(&weights, name, &[2]), [0.5, -2.0]);
        assert!(weights.quantized(name, &[2], CPU).unwrap().is_none());
    }
    let error = weights.quantized("q8", &[32, 2], CPU).unwrap_err();
    assert_says(&error, &["model.gguf", "`q8`", "[2, 32]", "[32, 2]"]);
}

#[test]
fn broken_gguf_never_panics() {
    let bytes = gguf(&[]);
    batter("model.gguf", &bytes, 250);
    assert_says(&refused("model.gguf", &bytes[..bytes.len() - 64]), &["truncated"]);
    assert_says(&refused("model.gguf", b"PK\x03\x04"), &["not a GGUF file"]);
    let alignment = gguf(&[("general.alignment", &Value::U32(0))]);
    assert_says(&refused("model.gguf", &alignment), &["GGUF"]);
    // The fields of a tensor: name, number of dimensions, dimensions, type, offset.
    let info = bytes.windows(2).position(|name| name == b"q4").unwrap() + 2;
    let mut odd = bytes.clone();
    odd[info + 4 + 16 + 4] += 1;
    assert_says(&refused("model.gguf", &odd), &["`q4`", "multiple of 8"]);
    let mut empty = bytes;
    empty[info + 4..info + 4 + 16].fill(0);
    assert_says(&refused("model.gguf", &empty), &["`q4`", "whole blocks"]);
}
