//! Which implementation computes each operation.

use std::fmt;

use candle_core::{DType, Result, Tensor};

use crate::composed;
use crate::product::Arrangement;

/// An operation of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`linear`](crate::linear)
    Linear,
    /// [`add_linear`](crate::add_linear)
    AddLinear,
    /// [`attention`](crate::attention)
    Attention,
    /// [`layer_norm`](crate::layer_norm)
    LayerNorm,
    /// [`gelu`](crate::gelu)
    Gelu,
    /// [`product`](crate::product)
    Product,
    /// [`softmax`](crate::softmax)
    Softmax,
    /// [`step_store`](crate::step_store)
    StepStore,
    /// [`step_attend`](crate::step_attend)
    StepAttend,
    /// [`best`](crate::best)
    Best,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 10] = [
        Self::Linear,
        Self::AddLinear,
        Self::Attention,
        Self::LayerNorm,
        Self::Gelu,
        Self::Product,
        Self::Softmax,
        Self::StepStore,
        Self::StepAttend,
        Self::Best,
    ];

    /// Its name in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::AddLinear => "add-linear",
            Self::Attention => "attention",
            Self::LayerNorm => "layer-norm",
            Self::Gelu => "gelu",
            Self::Product => "product",
            Self::Softmax => "softmax",
            Self::StepStore => "step-store",
            Self::StepAttend => "step-attend",
            Self::Best => "best",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For each operation, whether this crate computes it or candle's own operations do. A method takes and
/// returns what the function of the same name does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations(u16);

impl Operations {
    /// This crate computes all of them.
    pub const CUTLINE: Self = Self((1 << Operation::ALL.len()) - 1);

    /// Candle computes all of them.
    pub const CANDLE: Self = Self(0);

    /// The same, with this operation computed by candle.
    #[must_use]
    pub fn without(self, operation: Operation) -> Self {
        Self(self.0 & !(1 << operation as u16))
    }

    /// Whether this crate computes the operation.
    #[must_use]
    pub fn has(self, operation: Operation) -> bool {
        self.0 & (1 << operation as u16) != 0
    }

    /// See [`linear`](crate::linear).
    ///
    /// # Errors
    /// As there, and so for the other methods.
    pub fn linear(self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if self.has(Operation::Linear) {
            let composed = || composed::linear(x, weight, bias);
            return crate::linear(x, weight, bias)
                .or_else(|error| without_algorithm(error, composed));
        }
        composed::linear(x, weight, bias)
    }

    /// See [`add_linear`](crate::add_linear). The sum may be in the memory of `y`.
    pub fn add_linear(
        self,
        y: Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        if self.has(Operation::AddLinear) {
            let add = || composed::linear(x, weight, bias)? + &y;
            return match crate::add_linear(&y, x, weight, bias) {
                Ok(()) => Ok(y),
                Err(error) => without_algorithm(error, add),
            };
        }
        self.linear(x, weight, bias)? + y
    }

    /// See [`attention`](crate::attention).
    pub fn attention(self, qkv: &Tensor, scale: f32) -> Result<Tensor> {
        if self.has(Operation::Attention) {
            return crate::attention(qkv, scale);
        }
        composed::attention(qkv, scale)
    }

    /// See [`layer_norm`](crate::layer_norm).
    pub fn layer_norm(
        self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<Tensor> {
        if self.has(Operation::LayerNorm) {
            return crate::layer_norm(x, weight, bias, eps);
        }
        composed::layer_norm(x, weight, bias, eps)
    }

    /// See [`gelu`](crate::gelu). The result may be in the memory of `x`.
    pub fn gelu(self, x: Tensor) -> Result<Tensor> {
        if self.has(Operation::Gelu) {
            crate::gelu(&x)?;
            return Ok(x);
        }
        x.gelu_erf()
    }

    /// See [`product`](crate::product).
    pub fn product(
        self,
        a: &Tensor,
        b: &Tensor,
        result: DType,
        arrangement: Arrangement,
    ) -> Result<Tensor> {
        if self.has(Operation::Product) {
            let composed = || composed::product(a, b, result, arrangement);
            return crate::product(a, b, result, arrangement)
                .or_else(|error| without_algorithm(error, composed));
        }
        composed::product(a, b, result, arrangement)
    }

    /// See [`softmax`](crate::softmax).
    pub fn softmax(self, scores: &Tensor, dtype: DType) -> Result<Tensor> {
        if self.has(Operation::Softmax) {
            return crate::softmax(scores, dtype);
        }
        composed::softmax(scores, dtype)
    }

    /// See [`step_store`](crate::step_store).
    pub fn step_store(self, cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<()> {
        if self.has(Operation::StepStore) {
            return crate::step_store(cache, qkv, positions);
        }
        composed::step_store(cache, qkv, positions)
    }

    /// See [`step_attend`](crate::step_attend).
    pub fn step_attend(self, cache: &Tensor, qkv: &Tensor, positions: &Tensor) -> Result<Tensor> {
        if self.has(Operation::StepAttend) {
            return crate::step_attend(cache, qkv, positions);
        }
        composed::step_attend(cache, qkv, positions)
    }

    /// See [`best`](crate::best). Composed of candle's, of equal numbers any may come first.
    pub fn best(self, x: &Tensor, count: usize) -> Result<Tensor> {
        if self.has(Operation::Best) {
            return crate::best(x, count);
        }
        composed::best(x, count)
    }
}

/// What to do after an error: if cublasLt has no algorithm for these shapes, cuBLAS may have one.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is no cublasLt"))]
fn without_algorithm(
    error: candle_core::Error,
    composed: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::lt::has_no_algorithm(&error) {
        return composed();
    }
    Err(error)
}

/// `cutline`, `candle`, or `cutline without attention, gelu`.
impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CANDLE {
            return f.write_str("candle");
        }
        f.write_str("cutline")?;
        let missing = Operation::ALL.into_iter().filter(|operation| !self.has(*operation));
        for (n, operation) in missing.enumerate() {
            write!(f, "{} {operation}", if n == 0 { " without" } else { "," })?;
        }
        Ok(())
    }
}
