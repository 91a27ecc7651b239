//! Files of a model.

use std::borrow::Cow;
use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use cutline::blip::{BlipConfig, Weights};
use cutline::engine::HubOptions;
use cutline::engine::source::{self, ModelSource};
use cutline::image::PreprocessConfig;
use cutline::tokenizer::{Tokenizer, TokenizerSource};

use crate::files::temporary;
use crate::{Corpus, Seeds, bounded, caught, seeds};

/// Headers and tensors of files of a few kilobytes.
const MEMORY: usize = 64 << 20;

/// The largest tensor that is read.
const MAX_ELEMENTS: usize = 1 << 14;

/// `config.json` and `preprocessor_config.json`.
pub fn config(data: &[u8]) -> Corpus {
    let _ = bounded(MEMORY, || BlipConfig::from_json(data));
    if let Ok(config) = bounded(MEMORY, || PreprocessConfig::from_json(Some(data))) {
        let sides = 1..=PreprocessConfig::MAX_SIDE;
        assert!(sides.contains(&config.width) && sides.contains(&config.height));
        assert!(config.std.iter().all(|std| *std != 0.0 && std.is_finite()));
    }
    Corpus::Keep
}

/// The configurations of the tests.
pub fn config_seeds() -> Seeds {
    let mut all = seeds::files("tests/goldens", &["config.json"]);
    all.extend(seeds::files("tests/goldens", &["processors.json"]));
    all.extend(seeds::texts([
        r#"{"size": {"height": 96, "width": 128}, "resample": 2, "rescale_factor": 0.5,
            "image_mean": 0.5, "image_std": [1, 2, 4], "do_pad": null}"#,
    ]));
    all
}

/// `tokenizer.json`, and what a loaded tokenizer does with a prompt.
pub fn tokenizer(data: &[u8]) -> Corpus {
    // The first byte says which file the rest is.
    let Some((kind, bytes)) = data.split_first() else { return Corpus::Reject };
    let source = match kind % 3 {
        0 => TokenizerSource { json: Some(bytes), ..TokenizerSource::default() },
        1 => TokenizerSource { vocab: Some(bytes), ..TokenizerSource::default() },
        _ => TokenizerSource { vocab: Some(VOCABULARY), config: Some(bytes), json: None },
    };
    // The program catches panics of the library while it loads.
    let Ok(tokenizer) = bounded(MEMORY, || Tokenizer::load(source)) else { return Corpus::Keep };
    bounded(MEMORY, || {
        if let Ok(ids) = tokenizer.encode("a photo of Cat's 猫 é [CLS]\u{0} 12.5") {
            let _ = tokenizer.decode(&ids);
        }
        let _ = tokenizer.decode(&[0, 1, 2, 3, 4, 5, 6, 7, u32::MAX]);
        let _ = (tokenizer.check_fits(100), tokenizer.vocab_size());
    });
    Corpus::Keep
}

const VOCABULARY: &[u8] = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nphoto\nof\ncat\n##s\n'\n[DEC]\n";

/// A tokenizer in every form.
pub fn tokenizer_seeds() -> Seeds {
    let json = r###"{"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "[CLS]", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"[CLS]": 0, "[UNK]": 1, "cat": 2, "##s": 3, "a": 4}}}"###;
    let other = r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Replace",
            "pattern": {"Regex": "(a+)+b"}, "content": ""}]},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s+|\\w"}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": "a",
            "byte_fallback": true, "dropout": 0.5}}"#;
    let unigram = r#"{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.5], ["b", 0]]},
        "decoder": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}}"#;
    let config = r#"{"do_lower_case": true, "strip_accents": null, "tokenize_chinese_chars": false,
        "additional_special_tokens": ["[DEC]"], "clean_up_tokenization_spaces": true}"#;
    seeds::texts([
        format!("\0{json}"),
        format!("\0{other}"),
        format!("\0{unigram}"),
        format!("\u{1}{}", String::from_utf8_lossy(VOCABULARY)),
        format!("\u{2}{config}"),
    ])
}

/// A folder in the layout of the hub: its files, separated by NUL.
pub fn folder(data: &[u8]) -> Corpus {
    const FILES: [&str; 6] = [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "README.md",
        "model-1.safetensors",
    ];
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a folder can be made");
    for (name, content) in FILES.iter().zip(data.split(|byte| *byte == 0)) {
        if !content.is_empty() {
            std::fs::write(folder.path().join(name), content).expect("a file can be written");
        }
    }
    let model = ModelSource::Folder(folder.path().to_owned());
    let _ = bounded(MEMORY, || source::open(&model, &HubOptions::default()));
    Corpus::Keep
}

/// A folder with an index of shards.
pub fn folder_seeds() -> Seeds {
    let index = r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors"}}"#;
    let card = "---\nlicense: other\nlicense_name: \"x\"\n---\n# Card";
    let config = r#"{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}"#;
    seeds::texts([
        format!("{config}\0{index}\0{{}}\0{{}}\0{card}\0x"),
        format!("{config}\0{}", index.replace("model-1", "../model-1")),
        format!("{config}\0\0\0\0\u{feff}---\r\nlicense: 'mit'\r\n---"),
    ])
}

/// Reads every tensor that a file claims to have and that is small.
fn consume(weights: &Weights) {
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    let _ = (weights.parameters(), weights.only_q8_0(), weights.file_bytes(), weights.digest());
    for name in names {
        let shape = weights.shape(&name).expect("a tensor that is listed").to_vec();
        let elements = shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side));
        let elements = elements.expect("an overflow is refused when the file is opened");
        if elements > MAX_ELEMENTS {
            continue;
        }
        if let Ok(tensor) = weights.tensor(&name, &shape, DType::F32, &Device::Cpu) {
            assert_eq!(tensor.dims(), shape);
            let values: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("F32");
            assert_eq!(values.len(), elements);
        }
        let _ = weights.quantized(&name, &shape, &Device::Cpu);
    }
}

/// Safetensors in memory.
pub fn safetensors(data: &[u8]) -> Corpus {
    bounded(MEMORY, || {
        if let Ok(weights) = Weights::from_safetensors_bytes("memory", Cow::Owned(data.to_vec())) {
            consume(&weights);
        }
    });
    Corpus::Keep
}

/// Tensors of every type.
pub fn safetensors_seeds() -> Seeds {
    let file = |header: &str, bytes: usize| {
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), &vec![0x3F; bytes]].concat()
    };
    seeds::texts([
        file(r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#, 24),
        file(
            r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
               "b":{"dtype":"BF16","shape":[1,2],"data_offsets":[4,8]},
               "c":{"dtype":"I64","shape":[],"data_offsets":[8,16]},
               "d":{"dtype":"F64","shape":[0,5],"data_offsets":[16,16]}}"#,
            16,
        ),
    ])
}

fn of_file(ending: &str, data: &[u8]) -> Corpus {
    let file = temporary(ending, data);
    // candle's readers may panic; the program catches that.
    caught(|| {
        bounded(MEMORY, || {
            if let Ok(weights) = Weights::from_files(&[file.path().to_owned()]) {
                consume(&weights);
            }
        });
    });
    Corpus::Keep
}

/// PyTorch's zip of a pickle and storages.
pub fn pickle(data: &[u8]) -> Corpus {
    of_file(".bin", data)
}

/// A file that PyTorch wrote.
pub fn pickle_seeds() -> Seeds {
    seeds::files("tests/it/weights", &[".bin"])
}

/// GGUF.
pub fn gguf(data: &[u8]) -> Corpus {
    of_file(".gguf", data)
}

/// Quantised and plain tensors, and metadata of every type.
pub fn gguf_seeds() -> Seeds {
    let matrix = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|at| (at % 7) as f32 - 3.0).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
    };
    let file = |metadata: &[(&str, &Value)], tensors: &[(&str, Tensor, GgmlDType)]| {
        let tensors = tensors.iter().map(|(name, tensor, kind)| {
            (*name, QTensor::quantize(tensor, *kind).expect("a matrix in blocks"))
        });
        let tensors: Vec<_> = tensors.collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, metadata, &tensors).expect("GGUF in memory");
        file.into_inner()
    };
    let array = Value::Array(vec![Value::U8(1), Value::U8(2)]);
    let name = Value::String("x".to_owned());
    seeds::texts([
        file(
            &[("general.name", &name), ("a", &array), ("general.alignment", &Value::U32(32))],
            &[("q8", matrix(2, 32), GgmlDType::Q8_0), ("f", matrix(1, 2), GgmlDType::F32)],
        ),
        file(
            &[("b", &Value::Bool(true)), ("c", &Value::F64(0.5))],
            &[("q4", matrix(1, 256), GgmlDType::Q4K), ("h", matrix(1, 2), GgmlDType::F16)],
        ),
    ])
}
