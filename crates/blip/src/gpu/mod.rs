//! BLIP on candle, for GPUs. The code waits for the device as rarely as possible.
//!
//! The vision tower takes whole batches of images. All captions that are being written are in
//! buffers with a slot for each image (`pool`). A decode step is one pass over all of them, with a
//! number of operations that does not depend on how many there are. Only the greatest logits of
//! each row come back from the device (`top_logits`), unless the caller needs all of them.
//!
//! Nearly all operations are those of `cutline-cuda`, whose references run on candle's CPU device, so
//! the model runs there too. There it serves GGUF's block formats of fewer than 8 bits and
//! `CPU_KERNELS=candle`, and the tests compare it with [`cpu`](crate::cpu) and with transformers.
//! candle computes products with quantised weights, prompts of several tokens, and what is done once a
//! pass.
//!
//! Activations are f16, bf16 or f32, and every operation computes in f32 whatever they are; the word
//! embedding, the end of the head and the logits are f32. The cross-attention reads the images' states
//! themselves and not keys and values made of them: see `cross_attention`.
//!
//! All rows are multiplied at once, so the other jobs in the batch may change how a row is rounded.

mod buffers;
mod choice;
mod cross_attention;
mod layers;
mod pool;
mod slot;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod top_logits;
mod vision;

use candle_core::{DType, Device, Tensor};

pub use choice::{ChosenOperations, GpuKernels};
pub use slot::GpuSlot;
pub use state::GpuState;

use crate::loader::Loader;
use crate::{
    BlipConfig, ImageStates, Model, ModelDescription, Read, Scores, Slot, SlotSize, Weights,
    arithmetic,
};
use cutline_error::Result;
use text::TextDecoder;
use vision::VisionTower;

/// The most images that are encoded at once: at 577 tokens each their products have 36,928 rows,
/// more than any GPU needs to be busy.
const MAX_IMAGES: usize = 64;

/// The most elements of the largest tensor in the vision tower: 512 MB in f16.
const MAX_INNER: usize = 1 << 28;

/// A BLIP captioner on candle: weights, and the captions that are being written.
#[derive(Debug)]
pub struct GpuModel {
    weights: GpuWeights,
    state: GpuState,
    one_image_at_a_time: bool,
}

impl GpuModel {
    /// Loads a model; see [`GpuWeights::load`].
    ///
    /// # Errors
    /// As [`GpuWeights::load`].
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let weights = GpuWeights::load(config, weights, dtype, device)?;
        let state = weights.new_state();
        Ok(Self { weights, state, one_image_at_a_time: false })
    }

    /// Encodes images one after another: on a CPU a batch takes more memory and gains nothing.
    #[must_use]
    pub fn one_image_at_a_time(self) -> Self {
        Self { one_image_at_a_time: true, ..self }
    }

    /// Computes with these operations; otherwise with all of `cutline-cuda`.
    #[must_use]
    pub fn computing_with(self, chosen: &ChosenOperations) -> Self {
        Self { weights: self.weights.computing_with(chosen), ..self }
    }
}

impl Model for GpuModel {
    fn describe(&self) -> &ModelDescription {
        &self.weights.description
    }

    fn vision_batch(&self, width: usize, height: usize) -> usize {
        if self.one_image_at_a_time { 1 } else { self.weights.vision_batch(width, height) }
    }

    fn encode(
        &mut self,
        images: &[&[f32]],
        width: usize,
        height: usize,
    ) -> Result<Vec<ImageStates>> {
        let states = self.weights.encode(images, width, height)?;
        Ok(states.into_iter().map(ImageStates::Device).collect())
    }

    fn begin(&mut self, image: &ImageStates, size: SlotSize) -> Result<Slot> {
        let image = image.device()?;
        let slot = self.weights.begin(&mut self.state, image, size.capacity, size.rows);
        slot.map(Slot::Gpu)
    }

    fn prefill_cross_kv(&mut self) -> Result<()> {
        self.state.add_new_images().map_err(arithmetic)
    }

    fn read(&mut self, reads: &mut [Read<'_>]) -> Result<Vec<Scores>> {
        let mut reads = reads
            .iter_mut()
            .map(|Read { slot, tokens, top }| Ok(Read { slot: slot.gpu()?, tokens, top: *top }))
            .collect::<Result<Vec<_>>>()?;
        self.weights.read(&mut self.state, &mut reads)
    }

    fn reset(&mut self) {
        self.state.clear();
    }

    fn synchronize(&self) -> Result<()> {
        self.weights.description.device.synchronize().map_err(arithmetic)
    }
}

/// The weights of a model on candle's device. They never change; all mutable state is in
/// [`GpuState`].
#[derive(Debug)]
pub struct GpuWeights {
    description: ModelDescription,
    dtype: DType,
    vision: VisionTower,
    text: TextDecoder,
}

impl GpuWeights {
    /// Reads all weights in `dtype` (f16, bf16 or f32) onto the device; quantised linear layers
    /// stay as they are in the file.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model): a tensor is missing or has another shape than
    /// the configuration asks for. [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory).
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let loader = Loader::new(weights, dtype, device);
        let full = Loader::new(weights, DType::F32, device);
        let vision = VisionTower::load(&config.vision, &loader)?;
        let text = TextDecoder::load(config, dtype, &loader, &full)?;
        let block_format = loader.quantization().or(full.quantization());
        let description = ModelDescription {
            config: config.clone(),
            parameters: loader.parameters() + full.parameters(),
            precision: block_format.unwrap_or(dtype.as_str()),
            kernels: "candle".to_owned(),
            device: device.clone(),
        };
        Ok(Self { description, dtype, vision, text })
    }

    /// As [`GpuModel::computing_with`].
    fn computing_with(mut self, ChosenOperations { operations, .. }: &ChosenOperations) -> Self {
        self.vision.operations = *operations;
        self.text.operations = *operations;
        if !self.description.device.is_cpu() {
            self.description.kernels = operations.to_string();
        }
        self
    }

    /// What is known about the model.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// How many images of this size the vision tower should take at once: enough to keep a GPU
    /// busy, but with its largest tensor, inside the feed-forward, well below what candle's kernels
    /// can index.
    #[must_use]
    pub fn vision_batch(&self, width: usize, height: usize) -> usize {
        let vision = &self.description.config.vision;
        let tokens = 1 + (width / vision.patch_size) * (height / vision.patch_size);
        let inner = tokens * vision.intermediate_size;
        (MAX_INNER / inner).clamp(1, MAX_IMAGES)
    }

    /// The vision tower over images of one size: the states of each, `[1 + patches, vision width]`.
    /// See [`Model::encode`].
    ///
    /// # Errors
    /// As [`Model::encode`].
    pub fn encode(&self, images: &[&[f32]], width: usize, height: usize) -> Result<Vec<Tensor>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = Vec::with_capacity(images.len() * 3 * width * height);
        for pixels in images {
            self.description.config.vision.check_image(pixels, width, height)?;
            all.extend_from_slice(pixels);
        }
        let run = || {
            let shape = (images.len(), 3, height, width);
            let pixels = Tensor::from_vec(all, shape, &self.description.device)?;
            let forward = || self.vision.forward(&pixels.to_dtype(self.dtype)?);
            let states = cache_shapes(&self.description.device, forward)?;
            // Each gets its own memory; otherwise keeping one would keep all of them.
            let one = |n| states.get(n)?.force_contiguous();
            (0..images.len()).map(one).collect::<candle_core::Result<Vec<_>>>()
        };
        run().map_err(arithmetic)
    }

    /// State for captions that are written at the same time.
    #[must_use]
    pub fn new_state(&self) -> GpuState {
        self.new_state_growing_by(pool::GROWTH)
    }

    /// [`new_state`](Self::new_state) whose caches grow by multiples of `positions` tokens.
    fn new_state_growing_by(&self, positions: usize) -> GpuState {
        let ModelDescription { config, device, .. } = &self.description;
        GpuState::new(config, self.dtype, device, positions)
    }

    /// A new slot in `state`; see [`Model::begin`]. `image` comes from [`encode`](Self::encode).
    ///
    /// # Errors
    /// [`OutOfMemory`](cutline_error::ErrorKind::OutOfMemory).
    pub fn begin(
        &self,
        state: &mut GpuState,
        image: &Tensor,
        capacity: usize,
        rows: usize,
    ) -> Result<GpuSlot> {
        state.begin(image, capacity, rows.max(1))
    }

    /// Reads the next tokens of every slot; see [`Model::read`].
    ///
    /// # Errors
    /// Tokens do not fit a slot or the vocabulary, and nothing has changed; or the arithmetic
    /// failed, and the state cannot be used any more.
    pub fn read(
        &self,
        state: &mut GpuState,
        reads: &mut [Read<'_, GpuSlot>],
    ) -> Result<Vec<Scores>> {
        let addresses = state.find(reads, &self.description.config.text)?;
        state.read(&self.text, reads, &addresses).map_err(arithmetic)
    }
}

/// Runs `work` while candle caches on the device the shapes and strides that it passes to its CUDA
/// kernels.
///
/// Otherwise candle allocates, copies and frees them at every launch over a tensor that is
/// broadcast or not contiguous. It has this cache for CUDA graphs, but nothing in it requires a
/// graph. Meanwhile it also caches small tensors that are made from host memory, forever and by
/// their content, so `work` must not make any.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn cache_shapes<T>(device: &Device, work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cuda")]
    let _guard = device.as_cuda_device().ok().map(|device| device.enable_cuda_graph_htod_cache());
    work()
}
