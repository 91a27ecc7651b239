//! Compares the files with the checkpoints that they were made from.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use candle_core::{DType, Device};
use cutline::blip::{BlipConfig, GpuModel, Model, Read, Scores, Slot, SlotSize};
use cutline::engine::quantize::TensorType;
use cutline::engine::source::ModelFiles;
use tempfile::TempDir;

use super::{goldens, names_in, open, write};

const DECODER: &str = "text_decoder.cls.predictions.decoder.weight";
const WORDS: &str = "text_decoder.bert.embeddings.word_embeddings.weight";

/// The largest error of a number as a share of the largest number of its block: half a step, or a
/// whole one if the range of a signed type is cut off on one side, plus the error of rounding the
/// scales to f16 (and to 4 or 6 bits in the k types).
fn tolerance(stored: &str) -> f32 {
    match stored {
        "F32" => 0.0,
        "F16" => 0.0005,
        "Q8_0" => 0.0045,
        "Q6K" => 0.04,
        "Q5_1" => 0.034,
        "Q5_0" => 0.064,
        "Q5K" => 0.05,
        "Q4_1" => 0.068,
        "Q4_0" => 0.127,
        "Q4K" => 0.1,
        "Q3K" => 0.27,
        "Q2K" => 0.4,
        other => panic!("{other} is not expected"),
    }
}

fn stored(files: &ModelFiles, name: &str) -> (Vec<usize>, Vec<f32>) {
    let shape = files.weights.shape(name).unwrap_or_else(|| panic!("no {name}")).to_vec();
    let tensor = files.weights.tensor(name, &shape, DType::F32, &Device::Cpu).unwrap();
    (shape, tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// Reads the file with candle alone and compares it with the checkpoint, number by number. Returns
/// the types that occur.
fn compare(path: &Path, original: &ModelFiles, tied: bool) -> BTreeSet<String> {
    let mut file = BufReader::new(File::open(path).unwrap());
    let content = Content::read(&mut file).unwrap();
    assert!(matches!(content.magic, VersionedMagic::GgufV3));
    let mut expected: BTreeSet<&str> = original.weights.names().collect();
    if tied {
        expected.insert(DECODER);
    }
    assert_eq!(content.tensor_infos.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    let mut types = BTreeSet::new();
    for (name, info) in &content.tensor_infos {
        let source = if tied && name == DECODER { WORDS } else { name };
        let (shape, values) = stored(original, source);
        assert_eq!(info.shape.dims(), shape, "{name}");
        let kind = format!("{:?}", info.ggml_dtype);
        assert_eq!(info.offset % 32, 0, "{name}");
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        let read: Vec<f32> = tensor
            .dequantize(&Device::Cpu)
            .and_then(|tensor| tensor.flatten_all()?.to_vec1())
            .unwrap();
        // Blocks start with the rows, so a piece of this length never spans two rows.
        for (n, (there, here)) in values.chunks(256).zip(read.chunks(256)).enumerate() {
            let most = there.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let error = there.iter().zip(here).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let allowed = tolerance(&kind) * most;
            assert!(error <= allowed, "{name}, {kind}, piece {n}: {error} > {allowed}");
        }
        types.insert(kind);
    }
    types
}

#[test]
fn every_type_holds_the_tiny_models_within_its_error() {
    let dir = TempDir::new().unwrap();
    for (model, tied) in [("tied", true), ("untied", false), ("half", true)] {
        let files = open(&goldens(model));
        for kind in TensorType::ALL {
            let out = dir.path().join(format!("{model}-{kind}"));
            let written = write(&files, kind, &out).unwrap();
            assert_eq!(written.path, out.join("model.gguf"));
            assert_eq!(written.bytes_after, fs::metadata(&written.path).unwrap().len());
            assert_eq!(names_in(&out), ["config.json", "model.gguf"]);
            assert_eq!(fs::read(out.join("config.json")).unwrap(), files.config);
            let types = compare(&written.path, &files, tied);
            let planned: usize = written.plan.counts().iter().map(|(_, count)| count).sum();
            assert_eq!(planned, written.plan.tensors.len());
            assert_eq!(types.len(), written.plan.counts().len());
        }
    }
}

#[test]
fn the_k_types_hold_matrices_that_fill_their_blocks() {
    // A single matrix that is wide enough.
    let dir = TempDir::new().unwrap();
    let wide = dir.path().join("wide");
    fs::create_dir(&wide).unwrap();
    fs::copy(goldens("tied").join("config.json"), wide.join("config.json")).unwrap();
    let values: Vec<u8> = (0..6 * 512)
        .flat_map(|i| ((i as f32 * 0.37).sin() * (i as f32 * 0.011).cos()).to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![6, 512], &values);
    let bytes = safetensors::serialize([("a.weight", view.unwrap())], None).unwrap();
    fs::write(wide.join("model.safetensors"), bytes).unwrap();
    let files = open(&wide);
    for kind in TensorType::ALL {
        let out = dir.path().join(format!("{kind}.gguf"));
        let written = write(&files, kind, &out).unwrap();
        assert!(written.plan.substitutes.is_empty());
        let types = compare(&out, &files, false);
        let name = kind.as_str().to_uppercase().replace("_K", "K");
        assert_eq!(types, BTreeSet::from([name]));
    }
}

#[test]
fn substituted_types_are_counted() {
    let dir = TempDir::new().unwrap();
    let substitutes = |model: &str, kind| {
        let files = open(&goldens(model));
        let written = write(&files, kind, &dir.path().join(format!("{model}-{kind}"))).unwrap();
        written.plan.substitutes
    };
    let q4k = substitutes("tied", TensorType::Q4K);
    let qkv = "vision_model.encoder.layers.*.self_attn.qkv.weight".to_owned();
    assert_eq!(q4k[&(TensorType::Q8_0, qkv.clone())], 2);
    assert!(q4k.keys().all(|(kind, _)| *kind == TensorType::Q8_0));
    assert!(!q4k.keys().any(|(_, name)| name.contains("position") || name.contains("patch")));
    assert!(substitutes("tied", TensorType::Q4_0).is_empty());
    // The text is 32 wide, the image 48.
    let q4 = substitutes("untied", TensorType::Q4_0);
    assert_eq!(q4[&(TensorType::F16, qkv)], 3);
    assert!(!q4.keys().any(|(_, name)| name.ends_with("self.query.weight")));
    assert!(substitutes("untied", TensorType::F32).is_empty());
}

#[test]
fn the_metadata_describes_the_file() {
    let dir = TempDir::new().unwrap();
    let files = open(&goldens("tied"));
    let table = [
        (TensorType::Q8_0, 7, true),
        (TensorType::Q5_1, 9, true),
        // Its matrices are narrow, so most of them are q8_0.
        (TensorType::Q4K, 7, true),
        (TensorType::F16, 1, false),
        (TensorType::F32, 0, false),
    ];
    for (kind, file_type, quantized) in table {
        let path = dir.path().join(format!("{kind}.gguf"));
        write(&files, kind, &path).unwrap();
        let metadata = Content::read(&mut File::open(&path).unwrap()).unwrap().metadata;
        let text = |key: &str| metadata[key].to_string().unwrap().clone();
        assert_eq!(text("general.architecture"), "blip");
        assert_eq!(text("general.name"), "tied");
        assert!(matches!(&metadata["general.file_type"], Value::U32(n) if *n == file_type));
        let version = metadata.get("general.quantization_version");
        assert_eq!(version.map(|version| version.to_u32().unwrap()), quantized.then_some(2));
    }
}

/// The model on candle, and a made-up image of its size.
fn model_and_image(files: &ModelFiles) -> (GpuModel, Vec<f32>) {
    let config = BlipConfig::from_json(&files.config).unwrap();
    let model = GpuModel::load(&config, &files.weights, DType::F32, &Device::Cpu).unwrap();
    let side = config.vision.image_size;
    (model, (0..3 * side * side).map(|i| (i as f32 * 0.21).sin()).collect())
}

/// The logits after each token of `caption`, the first one included.
fn logits(model: &mut GpuModel, pixels: &[f32], caption: &[u32]) -> Vec<Vec<f32>> {
    let mut slot = begin(model, pixels, caption.len());
    caption.iter().map(|token| read(model, &mut slot, *token)).collect()
}

/// A slot for this image, with space for `tokens` tokens.
fn begin(model: &mut GpuModel, pixels: &[f32], tokens: usize) -> Slot {
    let side = model.describe().config.vision.image_size;
    let image = model.encode(&[pixels], side, side).unwrap().remove(0);
    model.begin(&image, SlotSize::new(tokens, 1)).unwrap()
}

/// The logits after one more token.
fn read(model: &mut GpuModel, slot: &mut Slot, token: u32) -> Vec<f32> {
    let read = Read { slot, tokens: &[token], top: None };
    match model.read(&mut [read]).unwrap().remove(0) {
        Scores::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

/// How far the logits are from those of the original: the root mean square of the differences, as a
/// share of the deviation of the original logits.
fn distance(before: &[Vec<f32>], after: &[Vec<f32>]) -> f32 {
    let worst = before.iter().zip(after).map(|(before, after)| {
        let count = before.len() as f32;
        let mean = before.iter().sum::<f32>() / count;
        let spread = before.iter().map(|value| (value - mean).powi(2)).sum::<f32>();
        let error = before.iter().zip(after).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        (error / spread).sqrt()
    });
    worst.fold(0.0, f32::max)
}

#[test]
fn the_tiny_models_still_have_nearly_the_same_logits() {
    let dir = TempDir::new().unwrap();
    // Random weights in rows of 32 to 64 suffer far more from rounding than trained ones in wide
    // rows.
    let table = [
        (TensorType::F32, 1e-5),
        (TensorType::F16, 0.01),
        (TensorType::Q8_0, 0.2),
        (TensorType::Q4K, 0.2),
    ];
    for name in ["tied", "untied"] {
        let original = open(&goldens(name));
        let (mut model, pixels) = model_and_image(&original);
        let caption = [model.describe().config.text.bos_token_id, 5, 7, 11];
        let before = logits(&mut model, &pixels, &caption);
        for (kind, allowed) in table {
            let out = dir.path().join(format!("{name}-{kind}"));
            let written = write(&original, kind, &out).unwrap();
            let [by_folder, by_file] = [&out, &written.path].map(|path| {
                let (mut model, _) = model_and_image(&open(path));
                logits(&mut model, &pixels, &caption)
            });
            assert_eq!(by_folder, by_file);
            let distance = distance(&before, &by_folder);
            println!("{name} {kind}: {distance}");
            assert!(distance <= allowed, "{name}, {kind}: {distance} > {allowed}");
        }
    }
}

#[cfg(feature = "embedded-model")]
fn example(name: &str, files: &ModelFiles, side: usize) -> Vec<f32> {
    use cutline::image::{DecodeLimits, PreprocessConfig, decode};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("assets/{name}.jpg"));
    let limits = DecodeLimits { max_bytes: 1 << 24, max_pixels: 1 << 24 };
    let image = decode(&fs::read(path).unwrap(), &limits).unwrap();
    let config = PreprocessConfig::from_json(files.preprocessor.as_deref()).unwrap();
    config.with_size(side, side).unwrap().preprocess(&image).unwrap().data
}

/// Compares the logits along the caption that f32 writes for a photo. The captions are not
/// compared, because the last digit decides between two equally likely words.
#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model_is_close_on_a_photo() {
    let dir = TempDir::new().unwrap();
    let original = open(Path::new("embedded"));
    let (mut model, _) = model_and_image(&original);
    let config = model.describe().config.clone();
    let pixels = example("cat", &original, config.vision.image_size);
    let (caption, before) = greedy(&mut model, &pixels, config.text.bos_token_id);
    // candle's kernels for blocks are slow unless they are compiled for the CPU's features, so only
    // the most important types are tested.
    let table = [(TensorType::F16, 1e-4), (TensorType::Q8_0, 0.04), (TensorType::Q4K, 0.12)];
    for (kind, allowed) in table {
        let out = dir.path().join(format!("{kind}.gguf"));
        write(&original, kind, &out).unwrap();
        let (mut quantized, _) = model_and_image(&open(&out));
        let distance = distance(&before, &logits(&mut quantized, &pixels, &caption));
        println!("{kind}: {distance}");
        assert!(distance <= allowed, "{kind}: {distance} > {allowed}");
    }
}

/// Eight tokens, and the logits after each of them.
#[cfg(feature = "embedded-model")]
fn greedy(model: &mut GpuModel, pixels: &[f32], first: u32) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut slot = begin(model, pixels, 8);
    let (mut caption, mut all) = (vec![first], vec![read(model, &mut slot, first)]);
    while caption.len() < 8 {
        let last = all.last().unwrap().iter().enumerate();
        let best = last.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
        caption.push(best);
        all.push(read(model, &mut slot, best));
    }
    (caption, all)
}
