//! The safetensors format: the length of the header in eight bytes, a JSON header, then the
//! tensors' bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::file::{ByteSource, CheckedFile};
use super::{TensorEntry, TensorFile, TensorFormat, broken};
use cutline_error::{Error, Result};

/// Bytes of the number that the file starts with.
const LENGTH: u64 = 8;

/// The largest header that the reference implementation accepts; a larger number is not a length.
const MAX_HEADER: u64 = 100_000_000;

/// One safetensors file, on disk or in memory.
pub(super) struct SafeTensors {
    source: ByteSource,
    metadata: Metadata,
    entries: BTreeMap<String, TensorEntry>,
    /// Offset of the tensors' bytes.
    data: u64,
}

impl SafeTensors {
    /// Opens a file and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::new(ByteSource::File(CheckedFile::open(path)?))
    }

    /// Checks the header of a file in memory.
    pub(super) fn from_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        Self::new(ByteSource::Memory { name: name.into(), bytes })
    }

    fn new(source: ByteSource) -> Result<Self> {
        let header = read_header(&source)?;
        let data = LENGTH + header.len() as u64;
        // Parsing the header as `Metadata` also checks that the tensors follow each other without
        // gaps and that each has as many bytes as its type and shape need.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
            Error::model(format!(
                "{} has a broken safetensors header ({error}); replace it with a complete copy",
                source.name(),
            ))
            .with_source(error)
        })?;
        let end = data.saturating_add(metadata.data_len() as u64);
        check_length(&source, end)?;
        let entries = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let format = match float(info.dtype) {
                    Some(dtype) => TensorFormat::Float(dtype),
                    None => TensorFormat::Other(format!("{:?}", info.dtype)),
                };
                (name, TensorEntry { shape: info.shape.clone(), format, storage: None })
            })
            .collect();
        drop(header);
        Ok(Self { source, metadata, entries, data })
    }
}

/// The JSON between the length and the tensors.
fn read_header(source: &ByteSource) -> Result<Cow<'_, [u8]>> {
    let cut = || {
        Error::model(format!(
            "{} is truncated: it has {} bytes, fewer than its safetensors header; replace it with \
             a complete copy, or wait until it is written",
            source.name(),
            source.length(),
        ))
    };
    if source.length() < LENGTH {
        return Err(cut());
    }
    let start = source.read_at(0, LENGTH as usize)?;
    let length = start.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    if length > MAX_HEADER {
        return Err(Error::model(format!(
            "{} is not a safetensors file: it does not start with the length of a header; replace \
             it with a complete copy",
            source.name(),
        )));
    }
    if length > source.length() - LENGTH {
        return Err(cut());
    }
    source.read_at(LENGTH, length as usize)
}

fn check_length(source: &ByteSource, end: u64) -> Result<()> {
    let (name, length) = (source.name(), source.length());
    if length < end {
        return Err(Error::model(format!(
            "{name} is truncated: its header announces {end} bytes and it has {length}; replace it \
             with a complete copy, or wait until it is written",
        )));
    }
    if length > end {
        return Err(Error::model(format!(
            "{name} has {} bytes after the end that its header announces; replace it with a complete \
             copy",
            length - end,
        )));
    }
    Ok(())
}

/// The types that can be read as weights.
fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

impl TensorFile for SafeTensors {
    fn source(&self) -> &ByteSource {
        &self.source
    }

    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let found = self.metadata.info(name).and_then(|info| Some((info, float(info.dtype)?)));
        let Some((info, dtype)) = found else {
            return Err(Error::internal(format!(
                "{}: `{name}` cannot be read",
                self.source.name()
            )));
        };
        let (start, end) = info.data_offsets;
        let bytes = self.source.read_at(self.data + start as u64, end - start)?;
        Tensor::from_raw_buffer(&bytes, dtype, &info.shape, device)
            .map_err(|error| broken(self.source.name(), name, error))
    }
}
