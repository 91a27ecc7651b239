//! Options for running the model.

use std::fmt;
use std::str::FromStr;

use cutline_error::{Error, ErrorKind};
use cutline_kernels::Tier;

/// Where the arithmetic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU if this build and this machine have a usable one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU with this number; the start fails if it cannot be used.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::new(ErrorKind::Config, "must be auto, cpu or cuda:0")),
        }
    }
}

/// The number format of weights and arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The fastest that keeps most captions word for word.
    #[default]
    Auto,
    /// 32-bit floating point: token ids equal to those of transformers.
    F32,
    /// 16-bit floating point.
    F16,
    /// 16-bit floating point with the range of 32 bits.
    Bf16,
    /// 8-bit integers.
    Int8,
}

impl Precision {
    /// The name in settings and in `/model/info`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Auto, Self::F32, Self::F16, Self::Bf16, Self::Int8]
            .into_iter()
            .find(|precision| precision.as_str() == text)
            .ok_or_else(|| Error::new(ErrorKind::Config, "must be auto, f32, f16, bf16 or int8"))
    }
}

/// What multiplies on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelChoice {
    /// The best instructions that this CPU has.
    #[default]
    Auto,
    /// These instructions; the start fails if the CPU lacks them.
    Tier(Tier),
    /// candle: slower, and meant for comparisons.
    Candle,
}

impl KernelChoice {
    /// Every choice with its name in settings.
    pub fn all() -> impl Iterator<Item = (&'static str, Self)> {
        [("auto", Self::Auto), ("candle", Self::Candle)]
            .into_iter()
            .chain(Tier::ALL.into_iter().map(|tier| (tier.as_str(), Self::Tier(tier))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_are_parsed_and_others_are_refused() {
        assert_eq!("cuda:1".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(1));
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        assert!("gpu".parse::<DeviceChoice>().unwrap_err().detail().contains("cuda:0"));
        assert_eq!("int8".parse::<Precision>().unwrap(), Precision::Int8);
        assert!("fp32".parse::<Precision>().is_err());
    }
}
