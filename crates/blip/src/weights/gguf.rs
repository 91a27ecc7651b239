//! GGUF: tensors in quantised blocks, beside plain F32, F16 and BF16 ones. The names are those of
//! the safetensors that the file was made from (`tensor-tools quantize` of candle keeps them).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, ggml_file, gguf_file};
use candle_core::{DType, Device, Tensor};

use super::file::CheckedFile;
use super::{Entry, Format, Store, broken, guarded};
use cutline_error::{Error, Result};

/// One GGUF file.
pub(super) struct Gguf {
    file: CheckedFile,
    entries: BTreeMap<String, Entry>,
    places: BTreeMap<String, Place>,
}

/// Where a tensor's bytes lie.
struct Place {
    kind: GgmlDType,
    offset: u64,
    length: usize,
}

impl Gguf {
    /// Opens a file and checks that all its tensors lie within it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = CheckedFile::open(path)?;
        let name = file.name();
        if file.length() < 4 || file.read_at(0, 4)? != b"GGUF" {
            return Err(Error::model(format!(
                "{name} is not a GGUF file; replace it with a complete copy",
            )));
        }
        let content = guarded(name, "GGUF file", || {
            gguf_file::Content::read(&mut BufReader::new(File::open(path)?))
        })?;
        file.check_unchanged()?;
        let mut entries = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (tensor, info) in &content.tensor_infos {
            let place = place(&file, tensor, info, content.tensor_data_offset)?;
            let format = match place.kind {
                GgmlDType::F32 => Format::Float(DType::F32),
                GgmlDType::F16 => Format::Float(DType::F16),
                GgmlDType::BF16 => Format::Float(DType::BF16),
                kind => Format::Quantized(kind),
            };
            let shape = info.shape.dims().to_vec();
            entries.insert(tensor.clone(), Entry { shape, format, storage: None });
            places.insert(tensor.clone(), place);
        }
        Ok(Self { file, entries, places })
    }

    fn bytes(&self, name: &str) -> Result<(&Place, &Entry, Vec<u8>)> {
        match (self.places.get(name), self.entries.get(name)) {
            (Some(place), Some(entry)) => {
                Ok((place, entry, self.file.read_at(place.offset, place.length)?))
            }
            _ => Err(Error::internal(format!("{}: `{name}` vanished", self.name()))),
        }
    }
}

fn place(
    file: &CheckedFile,
    tensor: &str,
    info: &gguf_file::TensorInfo,
    data: u64,
) -> Result<Place> {
    let kind = info.ggml_dtype;
    let elements = info.shape.dims().iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let length = elements
        .filter(|elements| elements.is_multiple_of(kind.block_size()))
        .and_then(|elements| (elements / kind.block_size()).checked_mul(kind.type_size()))
        .ok_or_else(|| broken(file.name(), tensor, "its shape does not fill whole blocks"))?;
    let offset = data.checked_add(info.offset);
    match offset.and_then(|offset| offset.checked_add(length as u64).map(|end| (offset, end))) {
        Some((offset, end)) if end <= file.length() => Ok(Place { kind, offset, length }),
        _ => Err(Error::model(format!(
            "{} is truncated: it has {} bytes and the tensor `{tensor}` ends behind them; replace \
             it with a complete copy, or wait until it is written",
            file.name(),
            file.length(),
        ))),
    }
}

impl Store for Gguf {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (place, entry, bytes) = self.bytes(name)?;
        let tensor = match entry.format {
            Format::Float(dtype) => Tensor::from_raw_buffer(&bytes, dtype, &entry.shape, device),
            // On the CPU, whatever the device: it happens once, and every kind is known there.
            _ => {
                ggml_file::qtensor_from_ggml(place.kind, &bytes, entry.shape.clone(), &Device::Cpu)
                    .and_then(|blocks| blocks.dequantize(&Device::Cpu)?.to_device(device))
            }
        };
        tensor.map_err(|error| broken(self.name(), name, error))
    }

    fn read_quantized(&self, name: &str, device: &Device) -> Result<QTensor> {
        let (place, entry, bytes) = self.bytes(name)?;
        ggml_file::qtensor_from_ggml(place.kind, &bytes, entry.shape.clone(), device)
            .map_err(|error| broken(self.name(), name, error))
    }

    fn hash(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        self.file.hash(hasher)
    }
}
