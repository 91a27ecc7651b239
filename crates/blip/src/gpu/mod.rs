//! BLIP for a device that is waited for as little as possible: a GPU.
//!
//! The vision tower takes whole batches of images. All captions that are being written lie in
//! buffers with a slot for each image (`pool`), and a step is one pass over all of them, with a
//! number of operations that does not depend on how many there are. Of a step's logits only each
//! row's best few come back (`best`), unless somebody needs them all.
//!
//! Everything here is made of candle's operations and runs on its CPU device too, where the tests
//! compare it with the other two models. What is used, and how, is chosen after what candle's CUDA
//! backend can do: matrices without gaps for products, contiguous operands for softmax, norms and
//! scatters, sorts of no more elements than a block's shared memory holds.
//!
//! Numbers are f16, bf16 or f32. Layer norms, sums of products and of softmax are in f32 in any case,
//! as candle's kernels have it; the word embedding, the end of the head and the logits are f32.

mod attend;
mod best;
mod item;
mod launch;
mod pool;
mod shape;
mod slots;
#[cfg(test)]
mod tests;
mod text;

use candle_core::{DType, Device, Tensor};

pub use best::BestTokens;
pub use item::{GpuRead, GpuScores, GpuSlot};
pub use pool::GpuState;

use crate::layers::Loader;
use crate::vision::VisionTower;
use crate::{BlipConfig, Weights, arithmetic};
use cutline_error::Result;
use text::TextDecoder;

/// Normalised planes `3 × height × width` of one image, with its width and height.
pub type Planes<'a> = (&'a [f32], usize, usize);

/// A loaded BLIP captioner. Everything here is read-only; what changes is in [`GpuState`].
#[derive(Debug)]
pub struct GpuModel {
    config: BlipConfig,
    vision: VisionTower,
    text: TextDecoder,
    parameters: u64,
    precision: &'static str,
    dtype: DType,
    device: Device,
}

impl GpuModel {
    /// Reads all weights in `dtype` (f16, bf16 or f32) onto the device; quantised linear layers
    /// stay as they are in the file.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model): a tensor is missing or has another shape than the
    /// configuration asks for. [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory).
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let own = Loader::new(weights, dtype, device);
        let full = Loader::new(weights, DType::F32, device);
        let vision = VisionTower::load(&config.vision, &own)?;
        let text = TextDecoder::load(config, dtype, &own, &full)?;
        let quantized = own.quantization().or(full.quantization());
        Ok(Self {
            config: config.clone(),
            vision,
            text,
            parameters: own.parameters() + full.parameters(),
            precision: quantized.unwrap_or(dtype.as_str()),
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

    /// `f16`, `bf16`, `f32`, or the block format of quantised layers.
    #[must_use]
    pub fn precision(&self) -> &'static str {
        self.precision
    }

    /// Where the arithmetic happens.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many images of this size the vision tower should be given at once: enough to keep a GPU
    /// busy, and no more than leave the largest of its tensors, the attention's scores, well below
    /// what candle's kernels can index.
    #[must_use]
    pub fn vision_batch(&self, width: usize, height: usize) -> usize {
        let vision = &self.config.vision;
        let tokens = 1 + (width / vision.patch_size) * (height / vision.patch_size);
        let scores = vision.num_attention_heads * tokens * tokens;
        (MAX_SCORES / scores).clamp(1, MAX_IMAGES)
    }

    /// The vision tower over images of one size: the states of each, `[1 + patches, vision width]`,
    /// the class token first.
    ///
    /// # Errors
    /// The images are not of one size, one is no such image in whole patches, or the arithmetic
    /// failed.
    pub fn encode(&self, images: &[Planes<'_>]) -> Result<Vec<Tensor>> {
        let Some(&(_, width, height)) = images.first() else { return Ok(Vec::new()) };
        let mut all = Vec::with_capacity(images.len() * 3 * width * height);
        for (pixels, ..) in images {
            self.config.vision.check_image(pixels, width, height)?;
            all.extend_from_slice(pixels);
        }
        let run = || {
            let shape = (images.len(), 3, height, width);
            let pixels = Tensor::from_vec(all, shape, &self.device)?;
            let states = self.vision.forward(&pixels.to_dtype(self.dtype)?)?;
            // Each gets memory of its own, or keeping one would keep all of them.
            let own = |n| states.get(n)?.force_contiguous();
            (0..images.len()).map(own).collect::<candle_core::Result<Vec<_>>>()
        };
        run().map_err(arithmetic)
    }

    /// State for captions that are written at the same time.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn state(&self) -> Result<GpuState> {
        self.state_in_steps_of(pool::PLACES)
    }

    /// [`state`](Self::state) whose caches grow by multiples of `places` tokens.
    fn state_in_steps_of(&self, places: usize) -> Result<GpuState> {
        GpuState::new(&self.config.text, self.dtype, &self.device, places).map_err(arithmetic)
    }

    /// The state for one image's caption of `rows` beams or samples: one row for now, and room for
    /// `capacity` tokens of each, the first ones included. `image` comes from
    /// [`encode`](Self::encode).
    ///
    /// # Errors
    /// [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory): there is no room for another one.
    pub fn begin(
        &self,
        state: &mut GpuState,
        image: &Tensor,
        capacity: usize,
        rows: usize,
    ) -> Result<GpuSlot> {
        state.begin(image, capacity, rows.max(1))
    }

    /// Computes what the decoder needs of the images that came since the last call; reading does it
    /// if nobody did before.
    ///
    /// # Errors
    /// The arithmetic failed, and the state is worth nothing any more.
    pub fn prefill_cross_kv(&self, state: &mut GpuState) -> Result<()> {
        state.prefill_cross_kv(&self.text).map_err(arithmetic)
    }

    /// The next tokens of every item: a new one reads its first tokens (decoder start and prompt),
    /// the others one for each of their rows. What comes of each is in the order of the reads.
    ///
    /// # Errors
    /// Tokens do not fit an item or the vocabulary, and nothing has changed; or the arithmetic
    /// failed, and the state is worth nothing any more.
    pub fn read(&self, state: &mut GpuState, reads: &mut [GpuRead<'_>]) -> Result<Vec<GpuScores>> {
        let places = state.find(reads, &self.config.text)?;
        state.read(&self.text, reads, &places).map_err(arithmetic)
    }
}

/// Images that are encoded at once: at 577 tokens each their products have 18,464 rows, more than
/// any GPU needs to be busy.
const MAX_IMAGES: usize = 32;

/// Elements of one layer's attention scores in the vision tower: 512 MB in f16.
const MAX_SCORES: usize = 1 << 28;
