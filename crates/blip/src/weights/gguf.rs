//! GGUF: tensors in quantised blocks, and plain F32, F16 and BF16 ones. The names are those of the
//! safetensors that the file was made from; candle's `tensor-tools quantize` keeps them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, ggml_file, gguf_file};
use candle_core::{DType, Device, Tensor};

use super::file::ByteSource;
use super::{TensorEntry, TensorFile, TensorFormat, broken, catch_panics};
use cutline_error::{Error, Result};

/// The most bytes before the tensors. candle turns each byte of an array there into an object of 32.
const MAX_HEADER: u64 = 8 << 20;

/// One GGUF file.
pub(super) struct Gguf {
    source: ByteSource,
    entries: BTreeMap<String, TensorEntry>,
    locations: BTreeMap<String, TensorLocation>,
}

/// Where a tensor's bytes are.
struct TensorLocation {
    kind: GgmlDType,
    offset: u64,
    length: usize,
}

impl Gguf {
    /// Opens a file and checks that all its tensors are within it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mismatch = "is not a GGUF file; replace it with a complete copy";
        let source = ByteSource::open(path, b"GGUF", mismatch)?;
        // At most MAX_HEADER, so the cast loses nothing.
        let start = source.read_at(0, source.length().min(MAX_HEADER) as usize)?;
        let content = catch_panics(source.name(), "GGUF file", || {
            gguf_file::Content::read(&mut Cursor::new(&start))
        })?;
        drop(start);
        let mut entries = BTreeMap::new();
        let mut locations = BTreeMap::new();
        for (tensor, info) in &content.tensor_infos {
            let location = locate(&source, tensor, info, content.tensor_data_offset)?;
            let format = match location.kind {
                GgmlDType::F32 => TensorFormat::Float(DType::F32),
                GgmlDType::F16 => TensorFormat::Float(DType::F16),
                GgmlDType::BF16 => TensorFormat::Float(DType::BF16),
                kind => TensorFormat::Quantized(kind),
            };
            let shape = info.shape.dims().to_vec();
            entries.insert(tensor.clone(), TensorEntry { shape, format, storage: None });
            locations.insert(tensor.clone(), location);
        }
        check_apart(&source, &locations)?;
        Ok(Self { source, entries, locations })
    }

    fn bytes(&self, name: &str) -> Result<(GgmlDType, &TensorEntry, Cow<'_, [u8]>)> {
        match (self.locations.get(name), self.entries.get(name)) {
            (Some(TensorLocation { kind, offset, length }), Some(entry)) => {
                Ok((*kind, entry, self.source.read_at(*offset, *length)?))
            }
            _ => Err(Error::internal(format!("{}: `{name}` vanished", self.source.name()))),
        }
    }
}

/// Every alignment that GGUF allows is a multiple of this.
const ALIGNMENT: u64 = 8;

fn locate(
    source: &ByteSource,
    tensor: &str,
    info: &gguf_file::TensorInfo,
    data: u64,
) -> Result<TensorLocation> {
    let kind = info.ggml_dtype;
    let elements = info.shape.dims().iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let length = elements
        .filter(|&elements| {
            let block = kind.block_size();
            elements.is_multiple_of(block) && (elements > 0 || block == 1)
        })
        .and_then(|elements| (elements / kind.block_size()).checked_mul(kind.type_size()))
        .ok_or_else(|| broken(source.name(), tensor, "its shape does not fill whole blocks"))?;
    let offset = data.checked_add(info.offset);
    // candle takes the bytes for blocks of numbers where they are.
    if offset.is_some_and(|offset| !offset.is_multiple_of(ALIGNMENT)) {
        let why = format!("it does not begin at a multiple of {ALIGNMENT} bytes");
        return Err(broken(source.name(), tensor, why));
    }
    match offset.and_then(|offset| offset.checked_add(length as u64).map(|end| (offset, end))) {
        Some((offset, end)) if end <= source.length() => {
            Ok(TensorLocation { kind, offset, length })
        }
        _ => Err(Error::model(format!(
            "{} is truncated: it has {} bytes, but the tensor `{tensor}` ends after them; replace \
             it with a complete copy, or wait until it is written",
            source.name(),
            source.length(),
        ))),
    }
}

/// Refuses tensors that share bytes: a small file could ask for any amount of memory.
fn check_apart(source: &ByteSource, locations: &BTreeMap<String, TensorLocation>) -> Result<()> {
    let mut sorted: Vec<_> = locations.iter().filter(|(_, one)| one.length > 0).collect();
    sorted.sort_by_key(|(_, one)| one.offset);
    let overlap = sorted.windows(2).find(|pair| {
        let ((_, first), (_, second)) = (pair[0], pair[1]);
        first.offset + first.length as u64 > second.offset
    });
    match overlap {
        None => Ok(()),
        Some(pair) => Err(Error::model(format!(
            "{}: the tensors `{}` and `{}` overlap; replace the file with a complete copy",
            source.name(),
            pair[0].0,
            pair[1].0,
        ))),
    }
}

impl TensorFile for Gguf {
    fn source(&self) -> &ByteSource {
        &self.source
    }

    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (kind, entry, bytes) = self.bytes(name)?;
        let tensor = match entry.format {
            TensorFormat::Float(dtype) => {
                Tensor::from_raw_buffer(&bytes, dtype, &entry.shape, device)
            }
            // On the CPU for every device: it happens once, and the CPU knows every kind of block.
            _ => ggml_file::qtensor_from_ggml(kind, &bytes, entry.shape.clone(), &Device::Cpu)
                .and_then(|blocks| blocks.dequantize(&Device::Cpu)?.to_device(device)),
        };
        tensor.map_err(|error| broken(self.source.name(), name, error))
    }

    fn read_quantized(&self, name: &str, device: &Device) -> Result<QTensor> {
        let (kind, entry, bytes) = self.bytes(name)?;
        if bytes.is_empty() {
            return Err(broken(self.source.name(), name, "it has no elements"));
        }
        ggml_file::qtensor_from_ggml(kind, &bytes, entry.shape.clone(), device)
            .map_err(|error| broken(self.source.name(), name, error))
    }
}
