//! Which model runs on a device, and in what numbers.

use candle_core::{DType, Device};

use super::Precision;
use super::backend::Backend;
use cutline_blip::{BlipConfig, GpuModel, Weights};
use cutline_error::{Error, ErrorKind, Result};

impl Backend {
    /// The model for GPUs, on this device. What multiplies on a CPU has no say in it.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) for a precision that a GPU does not have here;
    /// [`Model`](ErrorKind::Model) for weights that the configuration does not fit.
    pub(super) fn load_on_device(
        config: &BlipConfig,
        weights: &Weights,
        precision: Precision,
        device: &Device,
    ) -> Result<Self> {
        let dtype = dtype(precision, weights.is_quantized())?;
        GpuModel::load(config, weights, dtype, device)?.try_into()
    }

    /// The model for GPUs, on the CPU: slow, and there to be compared with the others.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_for_gpu_on_cpu(
        config: &BlipConfig,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self> {
        Self::load_on_device(config, weights, precision, &Device::Cpu)
    }
}

/// The numbers of activations, and of what is not quantised.
fn dtype(precision: Precision, quantized: bool) -> Result<DType> {
    match precision {
        // candle multiplies blocks with f32, and converting to and fro would cost more than it saves.
        Precision::Auto if quantized => Ok(DType::F32),
        Precision::Auto | Precision::F16 => Ok(DType::F16),
        Precision::Bf16 => Ok(DType::BF16),
        Precision::F32 => Ok(DType::F32),
        Precision::Int8 => Err(Error::new(
            ErrorKind::Config,
            "PRECISION=int8 is not available on a GPU; set PRECISION=auto, f16, bf16 or f32, or give \
             weights in 8 bits as a GGUF file (`cutline model quantize`)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_computes_in_f16_unless_somebody_chooses() {
        assert_eq!(dtype(Precision::Auto, false).unwrap(), DType::F16);
        assert_eq!(dtype(Precision::Auto, true).unwrap(), DType::F32);
        assert_eq!(dtype(Precision::F16, true).unwrap(), DType::F16);
        assert_eq!(dtype(Precision::Bf16, false).unwrap(), DType::BF16);
        assert_eq!(dtype(Precision::F32, false).unwrap(), DType::F32);
        let error = dtype(Precision::Int8, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.detail().contains("PRECISION=auto"), "{error}");
    }
}
