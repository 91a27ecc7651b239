//! The interface between the engine and the implementations of the models.

use std::fmt;

use candle_core::{DType, Device, Tensor};

use crate::config::TextConfig;
use crate::cpu::CpuSlot;
use crate::gpu::GpuSlot;
use crate::{BlipConfig, TextReader};
use cutline_error::{Error, Result};
use cutline_generate::TopLogits;

/// A loaded BLIP with the memory that its passes need.
///
/// An image goes through [`encode`](Self::encode) once. [`begin`](Self::begin) makes a slot for one
/// caption of it, or for several beams or samples, and [`read`](Self::read) takes a decode step of
/// any number of slots. A model without a text decoder cannot do the latter two; what models with a
/// text encoder can do besides is in [`TextReader`].
pub trait Model: fmt::Debug + Send {
    /// What is known about the model and where it runs.
    fn describe(&self) -> &ModelDescription;

    /// How many images of this size (in pixels) the vision tower encodes faster together than one
    /// after another; 1 where batches gain nothing.
    fn vision_batch(&self, _width: usize, _height: usize) -> usize {
        1
    }

    /// Runs the vision tower over images of one size, each given as normalised planes
    /// `3 × height × width`.
    ///
    /// # Errors
    /// The number of values is not `3 · height · width`, a side is no multiple of the patch size,
    /// or the arithmetic failed. None of the images is encoded then.
    fn encode(
        &mut self,
        images: &[&[f32]],
        width: usize,
        height: usize,
    ) -> Result<Vec<ImageStates>>;

    /// A new slot for an image, with one row now.
    ///
    /// # Errors
    /// The image comes from the other implementation, or the device has no memory left.
    fn begin(&mut self, image: &ImageStates, size: SlotSize) -> Result<Slot>;

    /// Computes the cross-attention's keys and values of new slots if [`begin`](Self::begin)
    /// deferred that; otherwise [`read`](Self::read) does it.
    ///
    /// # Errors
    /// The arithmetic failed; the slots cannot be used any more.
    fn prefill_cross_kv(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reads the next tokens of every slot and returns the scores of the tokens after them, in the
    /// order of the reads.
    ///
    /// # Errors
    /// The tokens do not fit a slot or the vocabulary, or the arithmetic failed. The slots cannot
    /// be used any more.
    fn read(&mut self, reads: &mut [Read<'_>]) -> Result<Vec<Scores>>;

    /// The text encoder; `None` if the model has none.
    fn reader(&mut self) -> Option<&mut dyn TextReader> {
        None
    }

    /// Takes back a finished slot, so that the next one can use its memory.
    fn recycle(&mut self, _slot: Slot) {}

    /// Replaces all memory that an interrupted pass may have left half written. Existing slots
    /// cannot be used any more; encoded images can.
    fn reset(&mut self);

    /// Waits until the device has finished all submitted work.
    ///
    /// # Errors
    /// Some of the work failed.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// What is known about a loaded model.
#[derive(Debug, Clone)]
pub struct ModelDescription {
    /// Shapes and constants.
    pub config: BlipConfig,
    /// Parameters, embeddings included, tied ones once.
    pub parameters: u64,
    /// `f32`, `f16`, `bf16`, `int8`, or the block format of quantised layers.
    pub precision: &'static str,
    /// On a CPU what multiplies matrices, `candle` or the name of an instruction set; on a GPU what
    /// computes, as [`Operations`](cutline_cuda::Operations) is displayed.
    pub kernels: String,
    /// Where the arithmetic runs.
    pub device: Device,
}

impl ModelDescription {
    /// An upper bound of the bytes of RAM that decoding takes beside the weights: `jobs` images of
    /// this size in the batch, and `rows` sequences of them together.
    #[must_use]
    pub fn batch_bytes(&self, jobs: usize, rows: usize, width: usize, height: usize) -> u64 {
        let (vision, text) = (&self.config.vision, &self.config.text);
        let [jobs, rows] = [jobs.max(1), rows].map(|n| n as u64);
        let number = size_of::<f32>() as u64;
        let vocabulary = text.vocab_size as u64;
        // The logits of a step, their copy for each job, and what processors and sampling make of them.
        let logits = 6 * rows * vocabulary * number;
        if !self.device.is_cpu() {
            return logits;
        }
        let patch = vision.patch_size.max(1);
        let tokens = (1 + (width / patch) * (height / patch)) as u64;
        let [layers, heads, positions] =
            [text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings]
                .map(|n| n as u64);
        // Tables are padded to blocks of 64 numbers, and tokens to blocks of 64.
        let head = text.head_dim().next_multiple_of(64) as u64;
        let keys_and_values = |tokens: u64| 2 * layers * heads * head * tokens * number;
        let states =
            tokens.next_multiple_of(64) * vision.hidden_size.next_multiple_of(32) as u64 * number;
        let on_candle = self.kernels == "candle";
        // candle's model reads the states themselves.
        let cross = if on_candle { states } else { keys_and_values(tokens.next_multiple_of(64)) };
        // Rows that change their order are copied, and a finished job's row is kept for the next one.
        // A language model keeps the rows of the image as well.
        let image = self.config.query.as_ref().map_or(0, |query| query.tokens as u64);
        let own = keys_and_values(positions + image) * (jobs + 2 * rows);
        // candle's caches grow to the next power of two, beside the smaller ones.
        let growth = if on_candle { 3 } else { 1 };
        // A prompt of any length, with everything that a layer makes of it.
        let read = positions.max(rows);
        let width = (12 * text.hidden_size + 4 * text.intermediate_size) as u64;
        let pass = read * (width + 2 * heads * positions.max(tokens)) * number;
        // Rows that attend to states: their queries, scores and sums, padded to blocks of 16 heads.
        // A longer prompt attends to keys and values, but not with candle.
        let longest = (vision.hidden_size as u64).max(tokens.next_multiple_of(64));
        let folded_rows = if on_candle { read } else { rows + head };
        let folded = 3 * folded_rows * (heads + 16) * longest * number;
        // The states as they are, and twice more in the order of their products.
        growth * (jobs * cross + own) + 4 * jobs * states + pass + folded + logits
    }
}

/// What a text decoder attends to: the vision tower's output for one image, `[1 + patches, vision width]`,
/// the class token first; or the text encoder's output for a question, `[tokens, text width]`; or what the
/// language model of BLIP-2 reads, `[queries, text width]`.
#[derive(Debug)]
pub enum ImageStates {
    /// In plain memory, for [`cpu`](crate::cpu).
    Host(Vec<f32>),
    /// On candle's device, for [`gpu`](crate::gpu).
    Device(Tensor),
}

impl ImageStates {
    /// Their size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(states) => size_of_val(states.as_slice()),
            Self::Device(states) => states.elem_count() * states.dtype().size_in_bytes(),
        }
    }

    /// A copy as f32 in plain memory, token after token.
    ///
    /// # Errors
    /// They cannot be copied from the device.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match self {
            Self::Host(states) => Ok(states.clone()),
            Self::Device(states) => states
                .to_dtype(DType::F32)
                .and_then(|states| states.flatten_all()?.to_vec1())
                .map_err(crate::arithmetic),
        }
    }

    /// A copy of the class token, `width` numbers: what the tower says about the image as a whole. On a GPU
    /// this waits until the image is encoded.
    ///
    /// # Errors
    /// It cannot be copied from the device.
    pub fn class_token(&self, width: usize) -> Result<Vec<f32>> {
        match self {
            Self::Host(states) => states
                .get(..width)
                .map(<[f32]>::to_vec)
                .ok_or_else(|| Error::internal("an image has no class token")),
            Self::Device(states) => states
                .flatten_all()
                .and_then(|states| states.narrow(0, 0, width)?.to_dtype(DType::F32)?.to_vec1())
                .map_err(crate::arithmetic),
        }
    }

    pub(crate) fn host(&self) -> Result<&[f32]> {
        match self {
            Self::Host(states) => Ok(states),
            Self::Device(_) => Err(other_implementation()),
        }
    }

    pub(crate) fn device(&self) -> Result<&Tensor> {
        match self {
            Self::Host(_) => Err(other_implementation()),
            Self::Device(states) => Ok(states),
        }
    }
}

/// What a slot is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotSize {
    /// The most tokens of a row, the first ones included.
    pub capacity: usize,
    /// The most rows, beams or samples.
    pub rows: usize,
    /// The fewest tokens of a row, as far as they are known. On a CPU, they decide what a slot
    /// attends to; the logits are equal but for rounding.
    pub least: usize,
}

impl SlotSize {
    /// For `rows` rows of up to `capacity` tokens.
    #[must_use]
    pub fn new(capacity: usize, rows: usize) -> Self {
        Self { capacity, rows, least: 0 }
    }
}

/// The decoding state of one image: its cross-attention, its rows (beams or samples) and their
/// self-attention cache.
#[derive(Debug)]
pub enum Slot {
    /// Of [`cpu`](crate::cpu).
    Cpu(Box<CpuSlot>),
    /// Of [`gpu`](crate::gpu).
    Gpu(GpuSlot),
}

impl Slot {
    /// Sequences that are decoded for the image.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Cpu(slot) => slot.rows(),
            Self::Gpu(slot) => slot.rows(),
        }
    }

    /// Makes row `n` continue the former row `sources[n]`; rows that are not named are dropped.
    ///
    /// # Errors
    /// A source is not a row, or there are more rows than the slot was made for.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        match self {
            Self::Cpu(slot) => slot.reorder(sources),
            Self::Gpu(slot) => slot.reorder(sources),
        }
    }

    /// All logits of the last read, `vocabulary` of every row, where it returned only the top ones.
    ///
    /// # Errors
    /// The last read returned all logits, or they cannot be copied from the device.
    pub fn logits(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(_) => Err(Error::internal("the last read returned all logits")),
            Self::Gpu(slot) => slot.logits(),
        }
    }

    pub(crate) fn cpu(&mut self) -> Result<&mut CpuSlot> {
        match self {
            Self::Cpu(slot) => Ok(slot),
            Self::Gpu(_) => Err(other_implementation()),
        }
    }

    pub(crate) fn gpu(&mut self) -> Result<&mut GpuSlot> {
        match self {
            Self::Cpu(_) => Err(other_implementation()),
            Self::Gpu(slot) => Ok(slot),
        }
    }
}

/// What one slot reads in a decode step.
#[derive(Debug)]
pub struct Read<'a, S = Slot> {
    /// The slot.
    pub slot: &'a mut S,
    /// The first tokens (decoder start and prompt) of a new slot; after that one for each row.
    pub tokens: &'a [u32],
    /// How many of each row's greatest logits are enough; `None` if all logits are needed.
    pub top: Option<usize>,
}

/// The scores of a slot's next tokens after a step.
#[derive(Debug)]
pub enum Scores {
    /// All logits, `vocabulary` of every row.
    Logits(Vec<f32>),
    /// The greatest logits of every row, at least as many as were requested. All logits of these
    /// rows are finite.
    Top(Vec<TopLogits>),
    /// A logit is NaN or infinite.
    NotFinite,
}

/// Checks that a slot of `rows` rows, which has read `position` of at most `capacity` tokens, can
/// read `tokens`.
pub(crate) fn check_read(
    config: &TextConfig,
    (rows, position, capacity): (usize, usize, usize),
    tokens: &[u32],
) -> Result<()> {
    let capacity = capacity.min(config.max_position_embeddings);
    let count = tokens.len();
    let fits = if position == 0 {
        rows == 1 && count > 0 && count <= capacity
    } else {
        count == rows && position < capacity
    };
    if !fits {
        return Err(Error::internal(format!(
            "{count} tokens do not fit {rows} rows at position {position} of {capacity}"
        )));
    }
    config.check_tokens(tokens)
}

/// An image or a slot was given to another implementation than the one that made it.
fn other_implementation() -> Error {
    Error::internal("an image or a slot came from another implementation of the model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_token_is_the_first_one() {
        let numbers: Vec<f32> = (0..12_u8).map(f32::from).collect();
        let tensor = Tensor::from_vec(numbers.clone(), (3, 4), &Device::Cpu).unwrap();
        for states in [
            ImageStates::Host(numbers),
            ImageStates::Device(tensor.clone()),
            ImageStates::Device(tensor.to_dtype(DType::F16).unwrap().unsqueeze(0).unwrap()),
        ] {
            assert_eq!(states.class_token(4).unwrap(), [0.0, 1.0, 2.0, 3.0]);
            assert!(states.class_token(13).is_err());
        }
    }
}
