//! Reads the tensors that both implementations need from a checkpoint.

use std::cell::Cell;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use std::sync::Arc;

use crate::config::TextConfig;
use crate::weights::Weights;
use cutline_error::Result;

/// The word embedding.
pub(crate) const WORDS: &str = "text_decoder.bert.embeddings.word_embeddings.weight";

/// The matrix of the language-model head, which may be the same.
pub(crate) const DECODER: &str = "text_decoder.cls.predictions.decoder.weight";

/// Reads tensors from a checkpoint and counts their parameters.
pub(crate) struct Loader<'a> {
    weights: &'a Weights,
    dtype: DType,
    device: &'a Device,
    parameters: Cell<u64>,
    quantization: Cell<Option<&'static str>>,
}

/// The word embedding, and where the head's matrix is.
pub(crate) struct WordsAndHead {
    /// `[vocabulary, hidden]`.
    pub(crate) words: Tensor,
    /// The name of the word embedding in the file.
    pub(crate) words_name: &'static str,
    /// The name of the head's own matrix in the file; none if it is the word embedding.
    pub(crate) head_name: Option<&'static str>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(weights: &'a Weights, dtype: DType, device: &'a Device) -> Self {
        Self { weights, dtype, device, parameters: Cell::new(0), quantization: Cell::new(None) }
    }

    /// Parameters read so far.
    pub(crate) fn parameters(&self) -> u64 {
        self.parameters.get()
    }

    /// The name of the block format that [`quantized`](Self::quantized) encountered last.
    pub(crate) fn quantization(&self) -> Option<&'static str> {
        self.quantization.get()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.tensor(name, shape, self.dtype, self.device)?;
        self.count(shape);
        Ok(tensor)
    }

    /// [`tensor`](Self::tensor) as plain numbers, row after row.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, shape)?;
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(crate::arithmetic)
    }

    /// [`values`](Self::values) of a tensor whose parameters are counted already.
    pub(crate) fn values_again(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.weights.tensor(name, shape, self.dtype, self.device)?;
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(crate::arithmetic)
    }

    /// A matrix in the block format that it has in the file; `None` if it is not quantised there.
    pub(crate) fn quantized(&self, name: &str, shape: &[usize]) -> Result<Option<Arc<QTensor>>> {
        let quantized = self.weights.quantized(name, shape, self.device)?;
        if let Some(quantized) = &quantized {
            self.count(shape);
            self.quantization.set(Some(block_format(quantized.dtype())));
        }
        Ok(quantized)
    }

    /// [`quantized`](Self::quantized) of a tensor whose parameters are counted already.
    pub(crate) fn quantized_again(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Arc<QTensor>>> {
        self.weights.quantized(name, shape, self.device)
    }

    /// Reads the word embedding and finds the head's matrix, as transformers does: a checkpoint
    /// with a tied head may hold the matrix under either name or under both. If both are there and
    /// differ, they are not tied, whatever the configuration says.
    pub(crate) fn words_and_head(&self, config: &TextConfig, tied: bool) -> Result<WordsAndHead> {
        let shape = [config.vocab_size, config.hidden_size];
        let words_name = if tied && !self.contains(WORDS) { DECODER } else { WORDS };
        let words = self.tensor(words_name, &shape)?;
        let shared = tied
            && (words_name == DECODER
                || !self.contains(DECODER)
                || self.same(&words, DECODER, &shape)?);
        Ok(WordsAndHead { words, words_name, head_name: (!shared).then_some(DECODER) })
    }

    /// The name of the head's bias in the file: an untied head has its own, a tied one may be
    /// stored under either name.
    pub(crate) fn head_bias(&self, head_name: Option<&str>) -> String {
        const PREFIX: &str = "text_decoder.cls.predictions";
        let [shared, own] = [format!("{PREFIX}.bias"), format!("{PREFIX}.decoder.bias")];
        let own_first = head_name.is_some() || !self.contains(&shared);
        if own_first && self.contains(&own) { own } else { shared }
    }

    /// Whether the tensor called `name` holds the same values as `other`.
    fn same(&self, other: &Tensor, name: &str, shape: &[usize]) -> Result<bool> {
        let tensor = self.weights.tensor(name, shape, self.dtype, self.device)?;
        let equal = |a: &Tensor, b: &Tensor| {
            a.ne(b)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>().map(|n| n == 0.0)
        };
        equal(&tensor, other).map_err(crate::arithmetic)
    }

    fn count(&self, shape: &[usize]) {
        let elements: usize = shape.iter().product();
        self.parameters.set(self.parameters.get() + elements as u64);
    }
}

fn block_format(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "f32",
        GgmlDType::F16 => "f16",
        GgmlDType::BF16 => "bf16",
        GgmlDType::Q4_0 => "q4_0",
        GgmlDType::Q4_1 => "q4_1",
        GgmlDType::Q5_0 => "q5_0",
        GgmlDType::Q5_1 => "q5_1",
        GgmlDType::Q8_0 => "q8_0",
        GgmlDType::Q8_1 => "q8_1",
        GgmlDType::Q2K => "q2k",
        GgmlDType::Q3K => "q3k",
        GgmlDType::Q4K => "q4k",
        GgmlDType::Q5K => "q5k",
        GgmlDType::Q6K => "q6k",
        GgmlDType::Q8K => "q8k",
    }
}
