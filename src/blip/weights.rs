//! Named tensors of a checkpoint. (A stand-in; the full reader of every file format replaces it.)

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use crate::error::{Error, Result};

/// Named tensors of a checkpoint, whatever file format they lie in.
pub struct Weights {
    name: String,
    bytes: Cow<'static, [u8]>,
    index: HashMap<String, (DType, Vec<usize>, usize, usize)>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Weights {
    /// Reads the header of a safetensors file that is in memory.
    ///
    /// # Errors
    /// The bytes are not a safetensors file.
    pub fn from_safetensors_bytes(name: &str, bytes: Cow<'static, [u8]>) -> Result<Self> {
        let broken = |e: &dyn std::fmt::Display| Error::model(format!("{name}: {e}"));
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(&e))?;
        let mut index = HashMap::new();
        for (tensor, info) in metadata.tensors() {
            let dtype = DType::try_from(info.dtype).map_err(|e| broken(&e))?;
            let (from, to) = info.data_offsets;
            index.insert(tensor, (dtype, info.shape.clone(), 8 + header + from, 8 + header + to));
        }
        Ok(Self { name: name.to_owned(), bytes, index })
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor in the wanted dtype on the device, checked against `shape`.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let Some((stored, found, from, to)) = self.index.get(name) else {
            return Err(Error::model(format!("{}: there is no tensor {name}", self.name)));
        };
        if found != shape {
            return Err(Error::model(format!(
                "{}: tensor {name} has shape {found:?}, but config.json asks for {shape:?}",
                self.name
            )));
        }
        Tensor::from_raw_buffer(&self.bytes[*from..*to], *stored, found, &Device::Cpu)
            .and_then(|t| t.to_dtype(dtype)?.to_device(device))
            .map_err(|e| Error::model(format!("{}: tensor {name}: {e}", self.name)))
    }

    /// A two-dimensional weight in its quantised form, if it has one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn quantized(&self, _: &str, _: &[usize], _: &Device) -> Result<Option<Arc<QTensor>>> {
        Ok(None)
    }
}
