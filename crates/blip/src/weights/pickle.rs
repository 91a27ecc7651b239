//! PyTorch's `pytorch_model.bin`: a zip archive of one pickle and the storages that its tensors
//! view. Tied tensors are views of one storage and need no special care.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};

use super::file::CheckedFile;
use super::{Entry, Format, Store, broken, guarded};
use cutline_error::{Error, Result};

/// What a zip archive starts with.
const ZIP: &[u8] = b"PK\x03\x04";

/// One PyTorch file.
pub(super) struct Pickle {
    file: CheckedFile,
    tensors: PthTensors,
    entries: BTreeMap<String, Entry>,
}

impl Pickle {
    /// Opens a file and reads its pickle.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = CheckedFile::open(path)?;
        let name = file.name();
        if file.length() < ZIP.len() as u64 || file.read_at(0, ZIP.len())? != ZIP {
            return Err(Error::model(format!(
                "{name} is not a PyTorch file in the zip format of version 1.6 and later; load it \
                 in Python and save it again with save_pretrained",
            )));
        }
        let tensors = guarded(name, "PyTorch file", || PthTensors::new(path, None))?;
        file.check_unchanged()?;
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
                return Err(broken(name, tensor, "its shape is larger than any memory"));
            }
            let format = match info.dtype {
                dtype @ (DType::F16 | DType::BF16 | DType::F32 | DType::F64) => {
                    Format::Float(dtype)
                }
                other => Format::Other(format!("{other:?}")),
            };
            let storage = Some(format!("{}+{}", info.path, layout.start_offset()));
            entries.insert(tensor.clone(), Entry { shape, format, storage });
        }
        Ok(Self { file, tensors, entries })
    }
}

impl Store for Pickle {
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
        let what = format!("PyTorch file at the tensor `{name}`");
        // candle opens the file anew for every tensor, so the comparison with the file that was
        // opened first has to come after.
        let tensor = guarded(self.name(), &what, || self.tensors.get(name));
        self.file.check_unchanged()?;
        tensor?
            .ok_or_else(|| Error::internal(format!("{}: `{name}` vanished", self.name())))?
            .contiguous()
            .and_then(|tensor| tensor.to_device(device))
            .map_err(|error| broken(self.name(), name, error))
    }

    fn hash(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        self.file.hash(hasher)
    }
}
