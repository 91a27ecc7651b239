//! From the choice of a device to one that is open: a GPU if there is one that works, or the reason
//! why there is none.

mod capability;
#[cfg(feature = "cuda")]
mod cuda;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::Device;

use self::capability::{Built, Capability};
use super::DeviceChoice;
use cutline_error::{Error, ErrorKind, Result, panic_message};

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name: `NVIDIA L4`, …
    pub name: String,
    /// All of its memory in bytes, used or not.
    pub memory_bytes: u64,
    /// Its compute capability: `8.9`, …
    pub compute_capability: String,
}

impl GpuInfo {
    /// Of the GPU that `device` is; `None` for a CPU, and where the driver does not tell.
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

/// Opens the device. With [`DeviceChoice::Auto`] that is the first GPU if it works, and else the CPU,
/// with a line in the log that says why.
///
/// # Errors
/// [`Config`](ErrorKind::Config): a GPU was asked for by its number and cannot be used.
pub(super) fn open_device(choice: DeviceChoice) -> Result<Device> {
    #[cfg(feature = "cuda")]
    let probe = cuda::open;
    #[cfg(not(feature = "cuda"))]
    let probe = |_| Err(Obstacle::NotBuiltIn);
    let Opened { device, obstacle } = open_with(choice, Device::Cpu, probe)?;
    match obstacle {
        // Nobody who built for a CPU wants to be told at each start.
        None | Some(Obstacle::NotBuiltIn) => {}
        Some(obstacle) => tracing::warn!("the CPU computes, not a GPU: {obstacle}"),
    }
    Ok(device)
}

/// What came of a choice.
#[derive(Debug)]
struct Opened<D> {
    device: D,
    /// Why it is no GPU, though one would have been welcome.
    obstacle: Option<Obstacle>,
}

/// The choice, given what there is: `probe` opens the GPU of a number.
fn open_with<D>(
    choice: DeviceChoice,
    cpu: D,
    probe: impl FnOnce(usize) -> Result<D, Obstacle>,
) -> Result<Opened<D>> {
    // A library that panics where another one is missing is as good as one that says so.
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
                    "cuda:{number} cannot be used: {obstacle}; or set USE_GPU=false, and no DEVICE, \
                     for the CPU"
                ),
            )),
        },
    }
}

/// Why a GPU cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "a build meets either the first or the others")]
enum Obstacle {
    /// This binary is for CPUs alone.
    NotBuiltIn,
    /// There is no driver, or the stub that a toolkit brings in its place.
    NoDriver,
    /// The driver knows of no GPU.
    NoGpu,
    /// The driver knows of so many GPUs; this number is not among them.
    NoSuchGpu { number: usize, count: usize },
    /// The kernels in this binary are for other GPUs.
    OtherGpu { name: String, has: Capability, built: Built },
    /// A step did not succeed, for this reason.
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
                "NVIDIA's driver is not installed, only the toolkit's stub of it; install the \
                 driver, and in a container give --gpus all",
            ),
            Self::NoGpu => f.write_str(
                "the driver finds no NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, and in \
                 a container give --gpus all",
            ),
            Self::NoSuchGpu { number, count } => write!(
                f,
                "there is no GPU of number {number}, because the driver finds {count}; count from \
                 0, as nvidia-smi does",
            ),
            Self::OtherGpu { name, has, built } => write!(
                f,
                "this binary is built for compute capability {built}, and {name} has {has}; build \
                 it with CUDA_COMPUTE_CAP={}",
                has.as_setting()
            ),
            Self::Failed { step, reason } => write!(
                f,
                "{step}: {reason}; check nvidia-smi, and that the driver is of CUDA 13 (580) or \
                 newer"
            ),
        }
    }
}

/// Of a message, what a line of the log has room for.
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
    fn a_gpu_that_works_is_taken_unless_it_is_not_wanted() {
        let open = |choice| open_with(choice, CPU, |_| Ok(GPU)).unwrap();
        assert_eq!(open(DeviceChoice::Auto).device, GPU);
        assert_eq!(open(DeviceChoice::Cuda(0)).device, GPU);
        let not_wanted = open_with(DeviceChoice::Cpu, CPU, |_| panic!("nobody asked")).unwrap();
        assert_eq!((not_wanted.device, not_wanted.obstacle), (CPU, None));
    }

    #[test]
    fn the_gpu_that_was_asked_for_is_opened() {
        for (choice, wanted) in [(DeviceChoice::Auto, 0), (DeviceChoice::Cuda(3), 3)] {
            let opened = open_with(choice, 99, Ok).unwrap();
            assert_eq!(opened.device, wanted, "{choice:?}");
        }
    }

    #[test]
    fn without_a_gpu_auto_computes_on_the_cpu_and_knows_why() {
        for obstacle in obstacles() {
            let opened = open_with(DeviceChoice::Auto, CPU, |_| Err(obstacle.clone())).unwrap();
            assert_eq!((opened.device, opened.obstacle), (CPU, Some(obstacle)));
        }
    }

    #[test]
    fn without_the_gpu_that_was_asked_for_the_start_fails_with_reason_and_remedy() {
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
    fn a_panic_while_opening_is_an_obstacle_like_others() {
        let crash = |_| -> Result<&str, Obstacle> { panic!("no libcuda\nat all") };
        let opened = open_with(DeviceChoice::Auto, CPU, crash).unwrap();
        assert_eq!(opened.device, CPU);
        assert!(opened.obstacle.unwrap().to_string().contains("no libcuda;"));
        let error = open_with(DeviceChoice::Cuda(0), CPU, crash).unwrap_err();
        assert!(error.detail().contains("no libcuda;"), "{error}");
    }

    #[test]
    fn another_capability_is_named_with_the_setting_that_builds_for_it() {
        let words = other_gpu().to_string();
        for part in ["9.0", "RTX 3090", "has 8.6", "CUDA_COMPUTE_CAP=86"] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn a_cpu_is_opened_for_auto_and_described_as_no_gpu() {
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
