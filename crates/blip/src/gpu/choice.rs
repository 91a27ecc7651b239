//! Which operations a GPU computes with `cutline-cuda`, and which with candle.

use std::fmt;

use candle_core::{DType, Device};

use crate::BlipConfig;
use cutline_cuda::{Checked, Lost, Operations, Rejected, Widths, check};
use cutline_error::{Error, ErrorKind, Result};

/// What computes on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuKernels {
    /// `cutline-cuda`, and candle for the operations that fail a check on the device.
    #[default]
    Auto,
    /// `cutline-cuda`; the model is not loaded if an operation fails the check.
    Cutline,
    /// candle's own operations: slower.
    Candle,
}

impl GpuKernels {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cutline, Self::Candle];

    /// The name in settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cutline => "cutline",
            Self::Candle => "candle",
        }
    }

    /// The operations for a model in `dtype` on this device. On a GPU, this tries them out, which takes
    /// the memory of a few matrices.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): [`Cutline`](Self::Cutline) was asked for, and an operation fails.
    /// [`DeviceLost`](ErrorKind::DeviceLost): one fails in such a way that this process cannot use the
    /// device any more.
    pub fn operations(
        self,
        config: &BlipConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<ChosenOperations> {
        match self {
            Self::Candle => Ok(ChosenOperations::all(Operations::CANDLE)),
            // There they are the references that the check compares with.
            _ if device.is_cpu() => Ok(ChosenOperations::all(Operations::CUTLINE)),
            _ => self.decide(check(device, dtype, widths(config))),
        }
    }

    fn decide(self, checked: Result<Checked, Lost>) -> Result<ChosenOperations> {
        match checked {
            Ok(Checked { operations, rejected }) => {
                let chosen = ChosenOperations { operations, rejected };
                match (self, chosen.complaint()) {
                    (Self::Cutline, Some(complaint)) => {
                        let remedy = "set GPU_KERNELS=auto or candle";
                        Err(Error::new(ErrorKind::Config, format!("{complaint}; {remedy}")))
                    }
                    _ => Ok(chosen),
                }
            }
            Err(Lost { rejected: Rejected { operation, reason }, error }) => {
                let detail = format!(
                    "the GPU failed when the operation {operation} of cutline was tried ({reason}), and \
                     refuses all further work of this process; set GPU_KERNELS=candle"
                );
                Err(Error::new(ErrorKind::DeviceLost, detail).with_source(error))
            }
        }
    }
}

impl fmt::Display for GpuKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The operations that a model computes with, and what spoke against others.
#[derive(Debug)]
pub struct ChosenOperations {
    pub(super) operations: Operations,
    rejected: Vec<Rejected>,
}

impl ChosenOperations {
    fn all(operations: Operations) -> Self {
        Self { operations, rejected: Vec::new() }
    }

    /// In one sentence, which operations failed and how; `None` if none did.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if self.rejected.is_empty() {
            return None;
        }
        let one = |Rejected { operation, reason }: &Rejected| format!("{operation} ({reason})");
        let all: Vec<String> = self.rejected.iter().map(one).collect();
        Some(format!("these operations of cutline fail on this GPU: {}", all.join(", ")))
    }
}

fn widths(config: &BlipConfig) -> [Widths; 2] {
    let (vision, text) = (&config.vision, &config.text);
    [
        Widths {
            heads: vision.num_attention_heads,
            hidden: vision.hidden_size,
            inner: vision.intermediate_size,
        },
        Widths {
            heads: text.num_attention_heads,
            hidden: text.hidden_size,
            inner: text.intermediate_size,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_cuda::Operation;

    fn rejected() -> Rejected {
        Rejected { operation: Operation::Attention, reason: "3 numbers are wrong".to_owned() }
    }

    fn checked() -> Result<Checked, Lost> {
        let operations = Operations::CUTLINE.without(Operation::Attention);
        Ok(Checked { operations, rejected: vec![rejected()] })
    }

    #[test]
    fn candle_computes_what_fails() {
        let chosen = GpuKernels::Auto.decide(checked()).unwrap();
        assert!(!chosen.operations.has(Operation::Attention));
        assert!(chosen.operations.has(Operation::Linear));
        let complaint = chosen.complaint().unwrap();
        assert!(complaint.contains("attention (3 numbers are wrong)"), "{complaint}");
        let all = Checked { operations: Operations::CUTLINE, rejected: Vec::new() };
        assert_eq!(GpuKernels::Auto.decide(Ok(all)).unwrap().complaint(), None);
    }

    #[test]
    fn kernels_that_were_asked_for_must_work() {
        let error = GpuKernels::Cutline.decide(checked()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.detail().contains("attention") && error.detail().contains("GPU_KERNELS=auto")
        );
    }

    #[test]
    fn a_gpu_that_is_lost_ends_the_start_with_a_remedy() {
        let lost = Lost {
            rejected: rejected(),
            error: candle_core::Error::Msg("CUDA_ERROR_ILLEGAL_ADDRESS".to_owned()),
        };
        let error = GpuKernels::Auto.decide(Err(lost)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceLost);
        for part in ["attention", "GPU_KERNELS=candle"] {
            assert!(error.detail().contains(part), "{error}");
        }
    }
}
