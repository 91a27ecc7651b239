//! From files and choices to an engine.

use candle_core::DType;

use super::backend::Backend;
use super::device::open_device;
use super::local::LocalEngine;
use super::source::ModelFiles;
use super::{DeviceChoice, KernelChoice, Precision};
use cutline_blip::cpu::CpuModel;
use cutline_blip::{BlipConfig, BlipModel, Weights};
use cutline_error::{Error, ErrorKind, Result};
use cutline_kernels::Tier;

/// How a model is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// Where the arithmetic runs.
    pub device: DeviceChoice,
    /// The number format.
    pub precision: Precision,
    /// What multiplies on a CPU.
    pub kernels: KernelChoice,
}

/// Reads the configuration and the weights, and puts the model on the device.
///
/// # Errors
/// As [`Backend::load`], and for a configuration of another architecture.
pub fn load(files: &ModelFiles, options: EngineOptions) -> Result<LocalEngine> {
    let config = BlipConfig::from_json(&files.config)?;
    Ok(LocalEngine::new(Backend::load(&config, &files.weights, options)?))
}

impl Backend {
    /// Reads the weights into what the options ask for.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) for a device, precision or kernels that this build or machine
    /// does not have; [`Model`](ErrorKind::Model) for weights that the configuration does not fit.
    pub fn load(config: &BlipConfig, weights: &Weights, options: EngineOptions) -> Result<Self> {
        let device = open_device(options.device)?;
        if !device.is_cpu() {
            return Self::load_on_device(config, weights, options.precision, &device);
        }
        Ok(match plan(options, weights.only_q8_0())? {
            Plan::Candle => BlipModel::load(config, weights, DType::F32, &device)?.into(),
            Plan::Packed(tier, precision) => {
                CpuModel::load(config, weights, tier, precision)?.into()
            }
        })
    }
}

/// What runs the model.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Candle,
    Packed(Tier, cutline_kernels::Precision),
}

/// `only_q8_0` says, of a checkpoint in GGML's blocks, whether all of them are of 8 bits.
fn plan(options: EngineOptions, only_q8_0: Option<bool>) -> Result<Plan> {
    let tier = match options.kernels {
        KernelChoice::Candle => return candle_plan(options.precision),
        KernelChoice::Auto => Tier::best(),
        KernelChoice::Tier(tier) if tier.is_available() => tier,
        KernelChoice::Tier(tier) => {
            let names: Vec<&str> = Tier::available().iter().map(|tier| tier.as_str()).collect();
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "CPU_KERNELS={tier} cannot be used: this CPU has {}; set CPU_KERNELS=auto",
                    names.join(", ")
                ),
            ));
        }
    };
    let precision = match options.precision {
        // Blocks of fewer bits are small because somebody wanted them small: they stay so.
        Precision::Auto if only_q8_0 == Some(false) => return Ok(Plan::Candle),
        Precision::Auto if only_q8_0 == Some(true) => cutline_kernels::Precision::Int8,
        // The fastest that keeps nine captions in ten word for word: see docs/design/quantisation.md.
        Precision::Auto if tier.has_bf16() => cutline_kernels::Precision::Int8,
        Precision::Auto => cutline_kernels::Precision::F32,
        Precision::Int8 => cutline_kernels::Precision::Int8,
        Precision::F32 => cutline_kernels::Precision::F32,
        Precision::Bf16 => cutline_kernels::Precision::Bf16,
        Precision::F16 => return Err(unavailable(options.precision)),
    };
    Ok(Plan::Packed(tier, precision))
}

fn candle_plan(precision: Precision) -> Result<Plan> {
    match precision {
        Precision::Auto | Precision::F32 => Ok(Plan::Candle),
        other => Err(Error::new(
            ErrorKind::Config,
            format!(
                "PRECISION={other} is not available with CPU_KERNELS=candle, which computes in \
                 f32; set PRECISION=f32 or CPU_KERNELS=auto"
            ),
        )),
    }
}

fn unavailable(precision: Precision) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "PRECISION={precision} is not available on a CPU; set PRECISION=auto, f32, bf16 or int8"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(precision: Precision, kernels: KernelChoice, q8_0: Option<bool>) -> Result<Plan> {
        plan(EngineOptions { device: DeviceChoice::Auto, precision, kernels }, q8_0)
    }

    #[test]
    fn what_is_not_there_is_refused_with_a_remedy() {
        let error = chosen(Precision::F16, KernelChoice::Auto, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.detail().contains("PRECISION=auto"), "{error}");
        let error = chosen(Precision::Int8, KernelChoice::Candle, None).unwrap_err();
        assert!(error.detail().contains("CPU_KERNELS=auto"), "{error}");
        if let Some(missing) = Tier::ALL.into_iter().find(|tier| !tier.is_available()) {
            let error = chosen(Precision::Auto, KernelChoice::Tier(missing), None).unwrap_err();
            assert!(error.detail().contains(missing.as_str()), "{error}");
        }
    }

    #[test]
    fn blocks_of_eight_bits_are_packed_and_others_stay_with_candle() {
        let portable = KernelChoice::Tier(Tier::Portable);
        let int8 = Plan::Packed(Tier::Portable, cutline_kernels::Precision::Int8);
        let full = Plan::Packed(Tier::Portable, cutline_kernels::Precision::F32);
        assert_eq!(chosen(Precision::Auto, portable, Some(true)).unwrap(), int8);
        assert_eq!(chosen(Precision::Auto, portable, Some(false)).unwrap(), Plan::Candle);
        assert_eq!(chosen(Precision::Auto, portable, None).unwrap(), full);
        assert_eq!(chosen(Precision::F32, portable, Some(false)).unwrap(), full);
        assert_eq!(chosen(Precision::F32, KernelChoice::Candle, None).unwrap(), Plan::Candle);
    }
}
