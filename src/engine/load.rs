//! Turns a model's files and the options into an engine.

use candle_core::{DType, Device};

use super::device::open_device;
use super::local::LocalEngine;
use super::source::ModelFiles;
use super::{DeviceChoice, KernelChoice, Precision, memory};
use cutline_blip::{BlipConfig, CpuModel, GpuKernels, GpuModel, Model, Weights};
use cutline_error::{Error, ErrorKind, Result};
use cutline_kernels::Tier;

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineOptions {
    /// Where the arithmetic runs.
    pub device: DeviceChoice,
    /// The number format.
    pub precision: Precision,
    /// The kernels for matrix products on a CPU.
    pub kernels: KernelChoice,
    /// What computes on a GPU.
    pub gpu_kernels: GpuKernels,
}

/// Reads the configuration and the weights, and loads the model onto the device.
///
/// # Errors
/// As [`load_model`], and for a configuration of another architecture.
pub fn load(files: &ModelFiles, options: EngineOptions) -> Result<LocalEngine> {
    let config = BlipConfig::from_json(&files.config)?;
    Ok(LocalEngine::new(load_model(&config, &files.weights, options)?))
}

/// Reads the weights into the implementation that the options ask for.
///
/// # Errors
/// [`Config`](ErrorKind::Config) for a device, precision or kernels that this build or machine does
/// not have, or if there is too little memory for the weights; [`Model`](ErrorKind::Model) for weights
/// that do not fit the configuration.
pub fn load_model(
    config: &BlipConfig,
    weights: &Weights,
    options: EngineOptions,
) -> Result<Box<dyn Model>> {
    let device = open_device(options.device)?;
    if !device.is_cpu() {
        check_candle(config, "set DEVICE=cpu")?;
        let dtype = gpu_dtype(options.precision, weights.is_quantized())?;
        let chosen = options.gpu_kernels.operations(config, dtype, &device)?;
        if let Some(complaint) = chosen.complaint() {
            tracing::warn!(
                "{complaint}; candle computes them instead, more slowly; please report this with the name \
                 of the GPU"
            );
        }
        let model = GpuModel::load(config, weights, dtype, &device)?;
        return Ok(Box::new(model.computing_with(&chosen)));
    }
    let plan = plan(options, weights.only_q8_0())?;
    let PrecisionPlan::Kernels(tier, precision) = plan else {
        check_candle(config, "set CPU_KERNELS=auto and PRECISION=int8")?;
        let model = GpuModel::load(config, weights, DType::F32, &device)?;
        return Ok(Box::new(model.one_image_at_a_time()));
    };
    if config.query.is_some() {
        memory::check(config, weights, precision)?;
    }
    Ok(Box::new(CpuModel::load(config, weights, tier, precision)?))
}

/// candle has neither a text encoder nor a Q-Former.
fn check_candle(config: &BlipConfig, remedy: &str) -> Result<()> {
    if config.family.runs_on_candle() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!("{} runs on the kernels for CPUs only; {remedy}", config.family.architecture()),
    ))
}

/// The model for GPUs on candle's CPU device, as it would run on a GPU: slow, and meant for
/// comparisons.
///
/// # Errors
/// As [`load_model`].
pub fn load_gpu_model_on_cpu(
    config: &BlipConfig,
    weights: &Weights,
    precision: Precision,
) -> Result<Box<dyn Model>> {
    check_candle(config, "load it with load_model")?;
    let dtype = gpu_dtype(precision, weights.is_quantized())?;
    Ok(Box::new(GpuModel::load(config, weights, dtype, &Device::Cpu)?))
}

/// The implementation that runs the model on a CPU, and its number format.
#[derive(Debug, PartialEq, Eq)]
enum PrecisionPlan {
    /// candle, in f32; quantised layers stay in the format of the file.
    Candle,
    /// Our own kernels.
    Kernels(Tier, cutline_kernels::Precision),
}

/// `only_q8_0` is `None` unless the checkpoint is quantised; then it says whether all blocks are
/// Q8_0.
fn plan(options: EngineOptions, only_q8_0: Option<bool>) -> Result<PrecisionPlan> {
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
        // A user who chose fewer bits wants a small model, so the blocks stay as they are.
        Precision::Auto if only_q8_0 == Some(false) => return Ok(PrecisionPlan::Candle),
        Precision::Auto if only_q8_0 == Some(true) => cutline_kernels::Precision::Int8,
        // The fastest precision that keeps nine captions in ten word for word: see
        // docs/design/quantisation.md. Plain loops are not faster in 8 bits.
        Precision::Auto if tier > Tier::Portable => cutline_kernels::Precision::Int8,
        Precision::Auto => cutline_kernels::Precision::F32,
        Precision::Int8 => cutline_kernels::Precision::Int8,
        Precision::F32 => cutline_kernels::Precision::F32,
        Precision::Bf16 => cutline_kernels::Precision::Bf16,
        Precision::F16 => return Err(unavailable(options.precision)),
    };
    Ok(PrecisionPlan::Kernels(tier, precision))
}

fn candle_plan(precision: Precision) -> Result<PrecisionPlan> {
    match precision {
        Precision::Auto | Precision::F32 => Ok(PrecisionPlan::Candle),
        other => Err(Error::new(
            ErrorKind::Config,
            format!(
                "PRECISION={other} is not available with CPU_KERNELS=candle, which computes in \
                 f32; set PRECISION=f32 or CPU_KERNELS=auto"
            ),
        )),
    }
}

/// On a GPU, the type of activations and of weights that are not quantised.
fn gpu_dtype(precision: Precision, quantized: bool) -> Result<DType> {
    match precision {
        // candle multiplies quantised blocks with f32; converting back and forth costs more than it
        // saves.
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

    fn chosen(
        precision: Precision,
        kernels: KernelChoice,
        q8_0: Option<bool>,
    ) -> Result<PrecisionPlan> {
        let device = DeviceChoice::Auto;
        let gpu_kernels = GpuKernels::Auto;
        plan(EngineOptions { device, precision, kernels, gpu_kernels }, q8_0)
    }

    #[test]
    fn unavailable_choices_are_refused_with_a_remedy() {
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
    fn blocks_of_eight_bits_run_on_the_kernels_and_others_on_candle() {
        let portable = KernelChoice::Tier(Tier::Portable);
        let int8 = PrecisionPlan::Kernels(Tier::Portable, cutline_kernels::Precision::Int8);
        let full = PrecisionPlan::Kernels(Tier::Portable, cutline_kernels::Precision::F32);
        assert_eq!(chosen(Precision::Auto, portable, Some(true)).unwrap(), int8);
        assert_eq!(chosen(Precision::Auto, portable, Some(false)).unwrap(), PrecisionPlan::Candle);
        assert_eq!(chosen(Precision::Auto, portable, None).unwrap(), full);
        assert_eq!(chosen(Precision::F32, portable, Some(false)).unwrap(), full);
        assert_eq!(
            chosen(Precision::F32, KernelChoice::Candle, None).unwrap(),
            PrecisionPlan::Candle
        );
    }

    #[test]
    fn a_gpu_computes_in_f16_unless_another_precision_is_chosen() {
        assert_eq!(gpu_dtype(Precision::Auto, false).unwrap(), DType::F16);
        assert_eq!(gpu_dtype(Precision::Auto, true).unwrap(), DType::F32);
        assert_eq!(gpu_dtype(Precision::F16, true).unwrap(), DType::F16);
        assert_eq!(gpu_dtype(Precision::Bf16, false).unwrap(), DType::BF16);
        assert_eq!(gpu_dtype(Precision::F32, false).unwrap(), DType::F32);
        let error = gpu_dtype(Precision::Int8, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.detail().contains("PRECISION=auto"), "{error}");
    }
}
