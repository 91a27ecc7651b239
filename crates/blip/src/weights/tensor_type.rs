//! The types of tensors in a GGUF file.

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;

use cutline_error::{Error, ErrorKind};

/// How the numbers of a tensor are stored in a GGUF file: as they are, or in blocks with common
/// scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// 8 bits, a scale for every 32 numbers.
    Q8_0,
    /// 4 bits, a scale for every 32 numbers.
    Q4_0,
    /// 4 bits, a scale and a minimum for every 32 numbers.
    Q4_1,
    /// 5 bits, a scale for every 32 numbers.
    Q5_0,
    /// 5 bits, a scale and a minimum for every 32 numbers.
    Q5_1,
    /// 2 bits, in nested blocks of 256 numbers.
    Q2K,
    /// 3 bits, in nested blocks of 256 numbers.
    Q3K,
    /// 4 bits, in nested blocks of 256 numbers.
    Q4K,
    /// 5 bits, in nested blocks of 256 numbers.
    Q5K,
    /// 6 bits, in nested blocks of 256 numbers.
    Q6K,
}

impl TensorType {
    /// All of them, in the order in which they are listed for users.
    pub const ALL: [Self; 12] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::F16,
        Self::F32,
    ];

    /// The names of [`ALL`](Self::ALL).
    pub const NAMES: [&str; 12] = [
        "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "f16",
        "f32",
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Whether it is a block format; the others are plain floating point.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16)
    }

    /// Numbers in a block; the length of a row must be a multiple of it.
    #[must_use]
    pub fn block(self) -> usize {
        self.ggml().block_size()
    }

    /// Size in bytes of `elements` numbers, which must fill whole blocks.
    #[must_use]
    pub fn bytes(self, elements: usize) -> usize {
        elements / self.block() * self.ggml().type_size()
    }

    /// This type if rows of `length` fill its blocks, otherwise `q8_0` if they fill those,
    /// otherwise `f16`.
    #[must_use]
    pub fn for_rows(self, length: usize) -> Self {
        let fits = |kind: &Self| length.is_multiple_of(kind.block());
        [self, Self::Q8_0].into_iter().find(fits).unwrap_or(Self::F16)
    }

    /// candle's type.
    pub(super) const fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// `ggml_type` of the GGUF specification.
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// `general.file_type` of a file that is mostly of this type. For the k types the specification
    /// has mixtures only; the small one, `_S`, has no larger types mixed in.
    pub(super) const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 14,
            Self::Q5K => 16,
            Self::Q6K => 18,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TensorType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let names = Self::NAMES.join(", ");
            Error::new(ErrorKind::Config, format!("`{text}` is not a type; choose one of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_others_refused() {
        assert_eq!(TensorType::ALL.map(TensorType::as_str), TensorType::NAMES);
        for kind in TensorType::ALL {
            assert_eq!(kind.to_string().parse::<TensorType>().unwrap(), kind);
        }
        let error = "q4k".parse::<TensorType>().unwrap_err();
        assert!(error.detail().contains("q4_k"), "{error}");
    }

    #[test]
    fn rows_that_do_not_fill_blocks_get_another_type() {
        use TensorType as T;
        let table = [
            (T::Q4K, 768, T::Q4K),
            (T::Q4K, 384, T::Q8_0),
            (T::Q4K, 40, T::F16),
            (T::Q4_0, 384, T::Q4_0),
            (T::Q4_0, 40, T::F16),
            (T::F16, 7, T::F16),
            (T::F32, 7, T::F32),
        ];
        for (kind, length, expected) in table {
            assert_eq!(kind.for_rows(length), expected, "{kind} with rows of {length}");
        }
    }

    #[test]
    fn blocks_have_the_sizes_of_the_specification() {
        assert_eq!(TensorType::Q8_0.bytes(64), 68);
        assert_eq!(TensorType::Q4_0.bytes(64), 36);
        assert_eq!(TensorType::Q5_1.bytes(64), 48);
        assert_eq!(TensorType::Q4K.bytes(512), 288);
        assert_eq!(TensorType::Q6K.bytes(256), 210);
        assert_eq!(TensorType::F16.bytes(3), 6);
    }
}
