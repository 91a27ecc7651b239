//! BLIP on candle: a vision tower, a text decoder with cross-attention, and the state between
//! them. Weights are never written after loading; what changes lies in [`ItemState`].

pub mod config;
pub mod cpu;
pub mod gpu;
mod layers;
mod positions;
pub mod quantize;
pub mod state;
mod text;
mod vision;
pub mod weights;

use candle_core::{DType, Device, Tensor};

pub use config::BlipConfig;
pub use gpu::GpuModel;
pub use state::ItemState;
pub use weights::Weights;

use cutline_error::{Error, ErrorKind, Result};
use layers::Loader;
use text::TextDecoder;
use vision::VisionTower;

/// A loaded BLIP captioner. Everything here is read-only and can be shared between threads.
#[derive(Debug)]
pub struct BlipModel {
    config: BlipConfig,
    vision: VisionTower,
    text: TextDecoder,
    parameters: u64,
    precision: &'static str,
    dtype: DType,
    device: Device,
}

impl BlipModel {
    /// Reads all weights in `dtype` (f32, f16 or bf16) onto the device; quantised linear layers
    /// stay as they are in the file.
    ///
    /// # Errors
    /// [`ErrorKind::Model`]: a tensor is missing or has another
    /// shape than the configuration asks for.
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let loader = Loader::new(weights, dtype, device);
        let vision = VisionTower::load(&config.vision, &loader)?;
        let image_width = config.vision.hidden_size;
        let tied = config.tie_word_embeddings;
        let text = TextDecoder::load(&config.text, tied, image_width, &loader)?;
        Ok(Self {
            config: config.clone(),
            vision,
            text,
            parameters: loader.parameters(),
            precision: loader.quantization().unwrap_or(dtype.as_str()),
            dtype,
            device: device.clone(),
        })
    }

    /// Shapes and constants.
    #[must_use]
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// Parameters, embeddings included, tied ones once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// `f32`, `f16`, `bf16`, or the block format of quantised layers.
    #[must_use]
    pub fn precision(&self) -> &'static str {
        self.precision
    }

    /// Where the arithmetic happens.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The vision tower: normalised planes `3 × height × width` → states
    /// `[1 + patches, vision width]`, the class token first.
    ///
    /// # Errors
    /// The number of values is not `3 · height · width`, a side is no multiple of the patch size,
    /// or the arithmetic failed.
    pub fn encode(&self, pixels: &[f32], width: usize, height: usize) -> Result<Tensor> {
        self.config.vision.check_image(pixels, width, height)?;
        let encode = || {
            let pixels = Tensor::from_slice(pixels, (1, 3, height, width), &self.device)?;
            self.vision.forward(&pixels.to_dtype(self.dtype)?)?.squeeze(0)
        };
        encode().map_err(arithmetic)
    }

    /// The state for one image's caption: one row, and room for `capacity` tokens, the first ones
    /// included. `image` comes from [`encode`](Self::encode); the keys and values of the
    /// cross-attention are computed here and never again.
    ///
    /// # Errors
    /// The arithmetic failed.
    pub fn begin(&self, image: &Tensor, capacity: usize) -> Result<ItemState> {
        self.text.begin(image, capacity).map_err(arithmetic)
    }

    /// Reads the first tokens (decoder start and prompt) of a caption that
    /// [`begin`](Self::begin) began. The logits are of the last token, `vocabulary` of them.
    ///
    /// # Errors
    /// There is no token, the item has read some already, there are more than its places or than
    /// positions, one is outside the vocabulary, or the arithmetic failed; the item is as it was.
    pub fn prefill(&self, item: &mut ItemState, tokens: &[u32]) -> Result<Vec<f32>> {
        let places = item.capacity().min(self.config.text.max_position_embeddings);
        let fresh = item.rows() == 1 && item.position() == 0;
        if !fresh || tokens.is_empty() || tokens.len() > places {
            let count = tokens.len();
            return Err(Error::internal(format!("{count} first tokens for {places} places")));
        }
        self.config.text.check_tokens(tokens)?;
        let mut run = || {
            let logits = self.text.read(&mut [&mut *item], tokens, tokens.len())?;
            logits.squeeze(0)?.to_dtype(DType::F32)?.to_vec1()
        };
        run().map_err(arithmetic)
    }

    /// One more token for every row of the items; `tokens` and the logits (`vocabulary` of every
    /// row) lie in the order of the items and of their rows.
    ///
    /// # Errors
    /// The tokens do not match the rows, an item has no place left, or the arithmetic failed; the
    /// items are as they were.
    pub fn step(&self, items: &mut [&mut ItemState], tokens: &[u32]) -> Result<Vec<f32>> {
        let rows: usize = items.iter().map(|item| item.rows()).sum();
        let last = self.config.text.max_position_embeddings;
        if rows != tokens.len() || items.iter().any(|i| i.is_full() || i.position() >= last) {
            return Err(Error::internal("a decoding step does not fit the state of its items"));
        }
        self.config.text.check_tokens(tokens)?;
        let mut run = || {
            let logits = self.text.read(items, tokens, 1)?;
            logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        run().map_err(arithmetic)
    }

    /// Makes an item's row `n` continue its former row `sources[n]`; see [`ItemState`].
    ///
    /// # Errors
    /// A source is not a row, or the copy failed.
    pub fn reorder(&self, item: &mut ItemState, sources: &[usize]) -> Result<()> {
        item.reorder(sources).map_err(arithmetic)
    }
}

/// candle's errors are about shapes and devices: a defect here, nothing a user can mend. Only want
/// of memory is told apart, by the words of the device's driver: candle passes on no more than that.
fn arithmetic(error: candle_core::Error) -> Error {
    let words = error.to_string().to_lowercase().replace('_', " ");
    // The latter is what cuBLAS says that finds no room to work in.
    if words.contains("out of memory") || words.contains("alloc failed") {
        let detail = "the device has no memory left; set MAX_BATCH_SIZE to a smaller number";
        return Error::new(ErrorKind::OutOfMemory, detail).with_source(error);
    }
    Error::internal(format!("the model's arithmetic failed: {error}")).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_is_told_from_defects_by_the_words_of_the_driver() {
        let kind = |words: &str| arithmetic(candle_core::Error::Msg(words.to_owned())).kind();
        let full = [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ];
        assert!(full.into_iter().all(|words| kind(words) == ErrorKind::OutOfMemory));
        let broken = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")";
        assert_eq!(kind(broken), ErrorKind::Internal);
    }
}
