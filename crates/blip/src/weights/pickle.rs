//! PyTorch's `pytorch_model.bin`: a zip archive of one pickle and the storages that its tensors
//! view. Tied tensors are views of one storage and need no special treatment.
//!
//! candle has a reader for these files, but it copies and nests values as a pickle tells it to: a file
//! of a few kilobytes could take all memory or overflow the stack, which ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::file::ByteSource;
use super::unpickle::{PickledTensor, tensors};
use super::{TensorEntry, TensorFile, TensorFormat, broken, catch_panics};
use cutline_error::{Error, Result};

/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// The end of the pickle's name in the archive.
const PICKLE: &str = "data.pkl";

/// The largest pickle in bytes. A thousand tensors take about 150 kB.
const MAX_PICKLE: usize = 8 << 20;

/// One PyTorch file.
pub(super) struct Pickle {
    source: ByteSource,
    entries: BTreeMap<String, TensorEntry>,
    views: BTreeMap<String, View>,
}

/// The bytes of a tensor.
struct View {
    offset: u64,
    length: usize,
    order: Order,
}

/// The order of a tensor's elements in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The last index changes fastest.
    Rows,
    /// The first index changes fastest: the transpose of a tensor in rows.
    Columns,
    /// Neither, such as every second element of a storage.
    Strided,
}

impl Order {
    fn of(tensor: &PickledTensor<'_>) -> Self {
        let sides = || tensor.shape.iter().copied().zip(tensor.strides.iter().copied());
        if follows(sides().rev()) {
            Self::Rows
        } else if follows(sides()) {
            Self::Columns
        } else {
            Self::Strided
        }
    }
}

/// Whether elements follow each other without gaps, the first of `sides` changing fastest.
fn follows(mut sides: impl Iterator<Item = (usize, usize)>) -> bool {
    let dense = sides.try_fold(1_usize, |next, (side, stride)| {
        (side == 1 || stride == next).then_some(next.saturating_mul(side))
    });
    dense.is_some()
}

/// The range of a file in the archive.
#[derive(Debug, Clone, Copy)]
struct Stored {
    offset: u64,
    length: u64,
}

impl Pickle {
    /// Opens a file and reads its pickle.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mismatch = "is not a PyTorch file in the zip format of version 1.6 and later; load it in \
                        Python and save it again with save_pretrained";
        let source = ByteSource::open(path, ZIP, mismatch)?;
        let stored = catch_panics(source.name(), "PyTorch file", || stored_files(path))?;
        source.check_unchanged()?;
        let pickle = stored.iter().find(|(name, _)| name.ends_with(PICKLE));
        let pickle = pickle.and_then(|(name, range)| Some((name.strip_suffix(".pkl")?, *range)));
        let Some((folder, range)) = pickle else { return Err(no_tensors(&source)) };
        let length = usize::try_from(range.length).ok().filter(|length| *length <= MAX_PICKLE);
        let unusable = |reason: &str| {
            let name = source.name();
            Error::model(format!(
                "{name} cannot be read: {reason}; save the model again with save_pretrained"
            ))
        };
        let Some(length) = length else {
            return Err(unusable(&format!("its pickle is longer than {MAX_PICKLE} bytes")));
        };
        if range.offset.saturating_add(range.length) > source.length() {
            return Err(unusable("its pickle is cut off"));
        }
        let bytes = source.read_at(range.offset, length)?;
        let (mut entries, mut views) = (BTreeMap::new(), BTreeMap::new());
        for tensor in tensors(&bytes).map_err(|reason| unusable(&reason))? {
            let path = format!("{folder}/{}", tensor.storage);
            let (entry, view) = locate(&source, &tensor, &path, stored.get(&path))?;
            entries.insert(tensor.name.to_owned(), entry);
            views.insert(tensor.name.to_owned(), view);
        }
        if entries.is_empty() {
            return Err(no_tensors(&source));
        }
        drop(bytes);
        Ok(Self { source, entries, views })
    }
}

fn no_tensors(source: &ByteSource) -> Error {
    let name = source.name();
    Error::model(format!(
        "{name} holds no state dictionary of tensors; save the model with save_pretrained",
    ))
}

/// The uncompressed files of an archive, by name. PyTorch compresses none.
fn stored_files(path: &Path) -> Result<BTreeMap<String, Stored>, zip::result::ZipError> {
    let mut archive = ZipArchive::new(BufReader::new(File::open(path)?))?;
    let mut files = BTreeMap::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index)?;
        if file.compression() == CompressionMethod::Stored
            && !file.encrypted()
            && let Some(offset) = file.data_start()
        {
            let range = Stored { offset, length: file.size() };
            files.insert(file.name()?.into_owned(), range);
        }
    }
    Ok(files)
}

/// Checks that a tensor is inside its storage, and the storage inside the file.
fn locate(
    source: &ByteSource,
    tensor: &PickledTensor<'_>,
    path: &str,
    storage: Option<&Stored>,
) -> Result<(TensorEntry, View)> {
    let refuse = |reason: &str| broken(source.name(), tensor.name, reason);
    let (format, size) = match tensor.storage_class {
        "FloatStorage" => (TensorFormat::Float(DType::F32), 4),
        "DoubleStorage" => (TensorFormat::Float(DType::F64), 8),
        "HalfStorage" => (TensorFormat::Float(DType::F16), 2),
        "BFloat16Storage" => (TensorFormat::Float(DType::BF16), 2),
        "LongStorage" => (TensorFormat::Other("I64".to_owned()), 8),
        "IntStorage" => (TensorFormat::Other("I32".to_owned()), 4),
        "ByteStorage" => (TensorFormat::Other("U8".to_owned()), 1),
        // It is never read.
        other => (TensorFormat::Other(other.to_owned()), 0),
    };
    let elements = tensor.shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side));
    let length = elements.and_then(|elements| elements.checked_mul(size));
    let length = length.ok_or_else(|| refuse("its shape does not fit into any memory"))?;
    let storage = storage.ok_or_else(|| refuse("the archive lacks its numbers"))?;
    let start = tensor.offset.saturating_mul(size as u64);
    let order = Order::of(tensor);
    // A strided view is never read either.
    let inside = order == Order::Strided || start.saturating_add(length as u64) <= storage.length;
    if !inside || storage.offset.saturating_add(storage.length) > source.length() {
        return Err(refuse("the archive has fewer numbers than it needs"));
    }
    let entry = TensorEntry {
        shape: tensor.shape.clone(),
        format,
        storage: Some(format!("{path}+{start}")),
    };
    Ok((entry, View { offset: storage.offset.saturating_add(start), length, order }))
}

impl TensorFile for Pickle {
    fn source(&self) -> &ByteSource {
        &self.source
    }

    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let file = self.source.name();
        let (Some(entry), Some(view)) = (self.entries.get(name), self.views.get(name)) else {
            return Err(Error::internal(format!("{file}: `{name}` vanished")));
        };
        let TensorFormat::Float(dtype) = entry.format else {
            return Err(Error::internal(format!("{file}: `{name}` is not a float tensor")));
        };
        if view.order == Order::Strided {
            return Err(broken(file, name, "its elements do not follow each other in the file"));
        }
        let bytes = self.source.read_at(view.offset, view.length)?;
        let tensor = if view.order == Order::Rows {
            Tensor::from_raw_buffer(&bytes, dtype, &entry.shape, device)
        } else {
            let reversed: Vec<usize> = entry.shape.iter().rev().copied().collect();
            let axes: Vec<usize> = (0..reversed.len()).rev().collect();
            Tensor::from_raw_buffer(&bytes, dtype, &reversed, &Device::Cpu)
                .and_then(|tensor| tensor.permute(axes)?.contiguous()?.to_device(device))
        };
        tensor.map_err(|error| broken(file, name, error))
    }
}
