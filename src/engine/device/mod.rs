//! Opens the chosen device: a GPU that works, or the CPU and the reason why no GPU can be used.

mod capability;
#[cfg(feature = "cuda")]
mod cuda;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::Device;

use self::capability::{BuildTarget, Capability};
use super::DeviceChoice;
use cutline_error::{Error, ErrorKind, Result, panic_message};

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name, such as `NVIDIA L4`.
    pub name: String,
    /// Its total memory in bytes, used or not.
    pub memory_bytes: u64,
    /// Its compute capability, such as `8.9`.
    pub compute_capability: String,
}

impl GpuInfo {
    /// Describes `device`; `None` for a CPU, or if the driver does not answer.
    #[must_use]
    pub fn of(device: &Device) -> Option<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return cuda::describe(device).ok();
        }
        let _ = device;
        None
    }
}

/// Opens the device. For [`DeviceChoice::Auto`] that is the first GPU if it works, otherwise the
/// CPU, and the log says why.
///
/// # Errors
/// [`Config`](ErrorKind::Config): a GPU was chosen by its number and cannot be used.
pub(super) fn open_device(choice: DeviceChoice) -> Result<Device> {
    #[cfg(feature = "cuda")]
    let probe = cuda::open;
    #[cfg(not(feature = "cuda"))]
    let probe = |_| Err(Obstacle::NotBuiltIn);
    let Opened { device, obstacle } = open_with(choice, Device::Cpu, probe)?;
    match obstacle {
        // Not worth a line at every start of a build for CPUs.
        None | Some(Obstacle::NotBuiltIn) => {}
        Some(obstacle) => tracing::warn!("running on the CPU, not on a GPU: {obstacle}"),
    }
    Ok(device)
}

/// A device that was opened.
#[derive(Debug)]
struct Opened<D> {
    device: D,
    /// Why it is not a GPU although one was preferred.
    obstacle: Option<Obstacle>,
}

/// Opens the chosen device; `probe` opens the GPU with a number.
fn open_with<D>(
    choice: DeviceChoice,
    cpu: D,
    probe: impl FnOnce(usize) -> Result<D, Obstacle>,
) -> Result<Opened<D>> {
    // A library that panics because another one is missing is handled like one that returns an
    // error.
    let probe = |number| {
        catch_unwind(AssertUnwindSafe(|| probe(number)))
            .unwrap_or_else(|payload| Err(Obstacle::of_panic(&*payload)))
    };
    match choice {
        DeviceChoice::Cpu => Ok(Opened { device: cpu, obstacle: None }),
        DeviceChoice::Auto => Ok(match probe(0) {
            Ok(device) => Opened { device, obstacle: None },
            Err(obstacle) => Opened { device: cpu, obstacle: Some(obstacle) },
        }),
        DeviceChoice::Cuda(number) => match probe(number) {
            Ok(device) => Ok(Opened { device, obstacle: None }),
            Err(obstacle) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "cuda:{number} cannot be used: {obstacle}; or set USE_GPU=false, and no DEVICE, to \
                     use the CPU"
                ),
            )),
        },
    }
}

/// Why a GPU cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "a build uses either the first or the others")]
enum Obstacle {
    /// This binary was built for CPUs only.
    NotBuiltIn,
    /// The toolkit's stub is installed instead of the driver.
    NoDriver,
    /// The driver finds no GPU.
    NoGpu,
    /// The driver finds `count` GPUs, and none of them has this number.
    NoSuchGpu { number: usize, count: usize },
    /// The kernels in this binary were built for other GPUs.
    OtherGpu { name: String, has: Capability, built: BuildTarget },
    /// A step failed.
    Failed { step: &'static str, reason: String },
}

impl Obstacle {
    fn of_panic(payload: &(dyn Any + Send)) -> Self {
        let reason = panic_message(payload).unwrap_or("no reason was given");
        Self::Failed { step: "opening it crashed", reason: one_line(reason) }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuiltIn => f.write_str(
                "this binary is built without the cuda feature; build it with --features cuda",
            ),
            Self::NoDriver => f.write_str(
                "NVIDIA's driver is not installed, only the toolkit's stub; install the driver, or start \
                 the container with --gpus all",
            ),
            Self::NoGpu => f.write_str(
                "the driver finds no NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or start the \
                 container with --gpus all",
            ),
            Self::NoSuchGpu { number, count } => write!(
                f,
                "there is no GPU number {number}, because the driver finds {count}; numbers start at 0, as \
                 in nvidia-smi",
            ),
            Self::OtherGpu { name, has, built } => write!(
                f,
                "this binary is built for compute capability {built}, and {name} has {has}; build \
                 it with CUDA_COMPUTE_CAP={}",
                has.as_setting()
            ),
            Self::Failed { step, reason } => write!(
                f,
                "{step}: {reason}; check nvidia-smi, and that the driver supports CUDA 13 (version 580 or \
                 newer)"
            ),
        }
    }
}

/// The first line of a message, shortened for the log.
fn one_line(text: &str) -> String {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    first.trim().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str = "cpu";
    const GPU: &str = "gpu";

    fn other_gpu() -> Obstacle {
        Obstacle::OtherGpu {
            name: "NVIDIA GeForce RTX 3090".into(),
            has: Capability { major: 8, minor: 6 },
            built: "sm_90a".parse().unwrap(),
        }
    }

    fn obstacles() -> Vec<Obstacle> {
        vec![
            Obstacle::NotBuiltIn,
            Obstacle::NoDriver,
            Obstacle::NoGpu,
            Obstacle::NoSuchGpu { number: 2, count: 1 },
            other_gpu(),
            Obstacle::Failed {
                step: "it has no memory",
                reason: "CUDA_ERROR_OUT_OF_MEMORY".into(),
            },
        ]
    }

    #[test]
    fn a_working_gpu_is_opened_unless_the_cpu_was_chosen() {
        let open = |choice| open_with(choice, CPU, |_| Ok(GPU)).unwrap();
        assert_eq!(open(DeviceChoice::Auto).device, GPU);
        assert_eq!(open(DeviceChoice::Cuda(0)).device, GPU);
        let not_wanted =
            open_with(DeviceChoice::Cpu, CPU, |_| panic!("no GPU was chosen")).unwrap();
        assert_eq!((not_wanted.device, not_wanted.obstacle), (CPU, None));
    }

    #[test]
    fn the_chosen_gpu_is_opened() {
        for (choice, wanted) in [(DeviceChoice::Auto, 0), (DeviceChoice::Cuda(3), 3)] {
            let opened = open_with(choice, 99, Ok).unwrap();
            assert_eq!(opened.device, wanted, "{choice:?}");
        }
    }

    #[test]
    fn auto_falls_back_to_the_cpu_and_knows_why() {
        for obstacle in obstacles() {
            let opened = open_with(DeviceChoice::Auto, CPU, |_| Err(obstacle.clone())).unwrap();
            assert_eq!((opened.device, opened.obstacle), (CPU, Some(obstacle)));
        }
    }

    #[test]
    fn a_chosen_gpu_that_cannot_be_used_is_an_error_with_reason_and_remedy() {
        for obstacle in obstacles() {
            let reason = obstacle.to_string();
            let error = open_with(DeviceChoice::Cuda(2), CPU, |_| Err(obstacle)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            for words in ["cuda:2", reason.as_str(), "USE_GPU=false"] {
                assert!(error.detail().contains(words), "{error}");
            }
            assert!(!error.detail().contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_panic_while_opening_is_handled_like_an_error() {
        let crash = |_| -> Result<&str, Obstacle> { panic!("no libcuda\nat all") };
        let opened = open_with(DeviceChoice::Auto, CPU, crash).unwrap();
        assert_eq!(opened.device, CPU);
        assert!(opened.obstacle.unwrap().to_string().contains("no libcuda;"));
        let error = open_with(DeviceChoice::Cuda(0), CPU, crash).unwrap_err();
        assert!(error.detail().contains("no libcuda;"), "{error}");
    }

    #[test]
    fn another_capability_is_reported_with_the_setting_that_builds_for_it() {
        let words = other_gpu().to_string();
        for part in ["9.0", "RTX 3090", "has 8.6", "CUDA_COMPUTE_CAP=86"] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn the_cpu_is_opened_and_is_not_described_as_a_gpu() {
        let cpu = open_device(DeviceChoice::Cpu).unwrap();
        assert!(cpu.is_cpu());
        assert_eq!(GpuInfo::of(&cpu), None);
        #[cfg(not(feature = "cuda"))]
        {
            assert!(open_device(DeviceChoice::Auto).unwrap().is_cpu());
            let error = open_device(DeviceChoice::Cuda(1)).unwrap_err();
            assert!(error.detail().contains("cuda:1"), "{error}");
            assert!(error.detail().contains("--features cuda"), "{error}");
        }
    }
}
