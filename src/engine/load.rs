//! From files and choices to an engine.

use candle_core::{DType, Device};

use super::candle::CandleEngine;
use super::source::ModelFiles;
use super::{DeviceChoice, Precision};
use crate::blip::{BlipConfig, BlipModel};
use crate::error::{Error, ErrorKind, Result};

/// Reads the configuration and the weights, and puts the model on the device.
///
/// # Errors
/// [`Config`](ErrorKind::Config) for a device or precision that this build or machine does not
/// have; [`Model`](ErrorKind::Model) for files that are no BLIP captioner.
pub fn load(
    files: &ModelFiles,
    device: DeviceChoice,
    precision: Precision,
) -> Result<CandleEngine> {
    let device = open_device(device)?;
    let dtype = dtype(precision)?;
    let config = BlipConfig::from_json(&files.config)?;
    CandleEngine::new(BlipModel::load(&config, &files.weights, dtype, &device)?)
}

fn open_device(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => Err(Error::new(
            ErrorKind::Config,
            format!(
                "cuda:{number} cannot be used: this version computes on the CPU only; set \
                 USE_GPU=auto or USE_GPU=false"
            ),
        )),
    }
}

fn dtype(precision: Precision) -> Result<DType> {
    match precision {
        Precision::Auto | Precision::F32 => Ok(DType::F32),
        other => Err(Error::new(
            ErrorKind::Config,
            format!(
                "PRECISION={other} is not available: this version computes in f32; set \
                 PRECISION=auto or PRECISION=f32"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_refused_with_a_remedy() {
        assert!(open_device(DeviceChoice::Auto).unwrap().is_cpu());
        assert!(open_device(DeviceChoice::Cuda(1)).unwrap_err().detail().contains("cuda:1"));
        assert_eq!(dtype(Precision::Auto).unwrap(), DType::F32);
        for precision in [Precision::F16, Precision::Bf16, Precision::Int8] {
            let error = dtype(precision).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.detail().contains("PRECISION=auto"), "{error}");
        }
    }
}
