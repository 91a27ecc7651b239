//! PyTorch's `pytorch_model.bin`: a zip archive of one pickle and the storages that its tensors
//! view. Tied tensors are views of one storage and need no special treatment.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};

use super::file::ByteSource;
use super::{TensorEntry, TensorFile, TensorFormat, broken, catch_panics};
use cutline_error::{Error, Result};

/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// One PyTorch file.
pub(super) struct Pickle {
    source: ByteSource,
    tensors: PthTensors,
    entries: BTreeMap<String, TensorEntry>,
}

impl Pickle {
    /// Opens a file and reads its pickle.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mismatch = "is not a PyTorch file in the zip format of version 1.6 and later; load it in \
                        Python and save it again with save_pretrained";
        let source = ByteSource::open(path, ZIP, mismatch)?;
        let name = source.name();
        let tensors = catch_panics(name, "PyTorch file", || PthTensors::new(path, None))?;
        source.check_unchanged()?;
        if tensors.tensor_infos().is_empty() {
            return Err(Error::model(format!(
                "{name} holds no state dictionary of tensors; save the model with save_pretrained",
            )));
        }
        let mut entries = BTreeMap::new();
        for (tensor, info) in tensors.tensor_infos() {
            let layout = &info.layout;
            let shape = layout.dims().to_vec();
            if shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).is_none() {
                return Err(broken(name, tensor, "its shape does not fit into any memory"));
            }
            let format = match info.dtype {
                dtype @ (DType::F16 | DType::BF16 | DType::F32 | DType::F64) => {
                    TensorFormat::Float(dtype)
                }
                other => TensorFormat::Other(format!("{other:?}")),
            };
            let storage = Some(format!("{}+{}", info.path, layout.start_offset()));
            entries.insert(tensor.clone(), TensorEntry { shape, format, storage });
        }
        Ok(Self { source, tensors, entries })
    }
}

impl TensorFile for Pickle {
    fn source(&self) -> &ByteSource {
        &self.source
    }

    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let what = format!("PyTorch file at the tensor `{name}`");
        // candle opens the file again for every tensor, so it is compared with the first one
        // afterwards.
        let file = self.source.name();
        let tensor = catch_panics(file, &what, || self.tensors.get(name));
        self.source.check_unchanged()?;
        tensor?
            .ok_or_else(|| Error::internal(format!("{file}: `{name}` vanished")))?
            .contiguous()
            .and_then(|tensor| tensor.to_device(device))
            .map_err(|error| broken(file, name, error))
    }
}
