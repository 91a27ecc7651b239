//! BLIP on the CPU's own kernels: the same model as the one on candle, its weights packed once for
//! the instructions at hand, its buffers used again from call to call.
//!
//! The vision tower runs one image at a time, which keeps all cores busy and its activations in
//! their caches; the decoder takes whole batches.

mod load;
mod text;
mod vision;

use crate::BlipConfig;
use crate::config::Activation;
use cutline_error::{Error, Result};
use cutline_kernels::activations::Activations;
use cutline_kernels::attention::{Heads, SelfAttention};
use cutline_kernels::buffer::Buffer;
use cutline_kernels::cross_kv::CrossKv;
use cutline_kernels::gemm::ActivationFn;
use cutline_kernels::gemm::{Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::self_kv::SelfKv;
use cutline_kernels::thread_pool::{ThreadPool, with_thread_pool};
use cutline_kernels::{Isa, Precision, Tier, layer_norm};

/// A loaded BLIP captioner. Everything here is read-only; what changes is in [`Workspace`] and
/// [`CpuSlot`].
#[derive(Debug)]
pub struct CpuModel {
    config: BlipConfig,
    isa: Isa,
    precision: Precision,
    vision: vision::Vision,
    text: text::Text,
    parameters: u64,
}

/// Memory for one pass at a time; it grows to what the largest one needs.
#[derive(Debug)]
pub struct Workspace {
    activations: Activations,
    /// The residual stream, `[rows, width]`.
    stream: Buffer<f32>,
    /// What a product leaves for the next step.
    wide: Buffer<f32>,
    /// Outputs of attention.
    context: Buffer<f32>,
    attention: SelfAttention,
    scores: Buffer<f32>,
    logits: Buffer<f32>,
    /// Items that are done, whose memory the next ones take over.
    spare: Vec<CpuSlot>,
}

/// Items that a workspace keeps for their memory.
const SPARE_ITEMS: usize = 32;

impl Workspace {
    /// Takes an item that is done, for the memory in it.
    pub fn recycle(&mut self, item: CpuSlot) {
        if self.spare.len() < SPARE_ITEMS {
            self.spare.push(item);
        }
    }
}

/// The vision tower's states of an image, `[tokens, width]`, the class token first.
#[derive(Debug, Clone)]
pub struct CpuImage {
    states: Vec<f32>,
}

impl CpuImage {
    /// The states, token after token.
    #[must_use]
    pub fn states(&self) -> &[f32] {
        &self.states
    }
}

/// One image in the batch: its cross-attention, its rows and their self-attention cache.
#[derive(Debug)]
pub struct CpuSlot {
    /// By layer.
    cross_kv: Vec<CrossKv>,
    self_kv: SelfKv,
    /// Tokens that the cache holds of every row.
    position: usize,
}

impl CpuSlot {
    /// Sequences that are decoded for this image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.self_kv.rows()
    }

    /// Tokens that are read of every row; also the position of the next one.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether the cache has no room for another token.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.position == self.self_kv.capacity()
    }

    /// Bytes of the image's keys and values.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.cross_kv.iter().map(CrossKv::bytes).sum()
    }

    /// Makes row `n` continue the former row `sources[n]`.
    ///
    /// # Errors
    /// A source is not a row.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        let rows = self.rows();
        if sources.is_empty() || sources.iter().any(|&source| source >= rows) {
            return Err(Error::internal(format!("rows {sources:?} of {rows} cannot go on")));
        }
        if !sources.iter().copied().eq(0..rows) {
            self.self_kv.reorder(sources, self.position);
        }
        Ok(())
    }
}

impl CpuModel {
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

    /// `f32`, `bf16` or `int8`.
    #[must_use]
    pub fn precision(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// The instructions that its kernels use.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.isa.tier()
    }

    /// Memory to run it with; one for each thread that does.
    #[must_use]
    pub fn workspace(&self) -> Workspace {
        Workspace {
            activations: Activations::default(),
            stream: Buffer::new(),
            wide: Buffer::new(),
            context: Buffer::new(),
            attention: SelfAttention::new(self.isa, self.precision, self.vision.heads()),
            scores: Buffer::new(),
            logits: Buffer::new(),
            spare: Vec::new(),
        }
    }

    /// The vision tower: normalised planes `3 × height × width` → states, the class token first.
    ///
    /// # Errors
    /// The number of values is not `3 · height · width`, or a side is no multiple of the patch size.
    pub fn encode(
        &self,
        work: &mut Workspace,
        pixels: &[f32],
        width: usize,
        height: usize,
    ) -> Result<CpuImage> {
        self.config.vision.check_image(pixels, width, height)?;
        let states =
            with_thread_pool(|pool| self.vision.forward(pool, work, pixels, width, height));
        Ok(CpuImage { states })
    }

    /// The state for one image, of one row and with room for `capacity` tokens: the
    /// cross-attention's keys and values are computed here and never again.
    #[must_use]
    pub fn begin(&self, work: &mut Workspace, image: &CpuImage, capacity: usize) -> CpuSlot {
        with_thread_pool(|pool| self.text.begin(pool, work, self.precision, image, capacity))
    }

    /// Reads the first tokens (decoder start and prompt) of a new item; the logits of the last.
    ///
    /// # Errors
    /// There is no token, there are more than places, or one is outside the vocabulary.
    pub fn prefill<'w>(
        &self,
        work: &'w mut Workspace,
        item: &mut CpuSlot,
        tokens: &[u32],
    ) -> Result<&'w [f32]> {
        let places = item.self_kv.capacity().min(self.config.text.max_position_embeddings);
        if tokens.is_empty() || item.position != 0 || item.position + tokens.len() > places {
            let count = tokens.len();
            return Err(Error::internal(format!("{count} first tokens for {places} places")));
        }
        self.config.text.check_tokens(tokens)?;
        with_thread_pool(|pool| self.text.read(pool, work, &mut [item], tokens, tokens.len()));
        Ok(work.logits.as_slice())
    }

    /// One more token for every row of the items; `tokens` and the logits (`vocabulary` of every
    /// row) lie in the order of the items and of their rows.
    ///
    /// # Errors
    /// The tokens do not match the rows, or an item has no place left; the items are as they were.
    pub fn step<'w>(
        &self,
        work: &'w mut Workspace,
        items: &mut [&mut CpuSlot],
        tokens: &[u32],
    ) -> Result<&'w [f32]> {
        let rows: usize = items.iter().map(|item| item.rows()).sum();
        let last = self.config.text.max_position_embeddings;
        if rows != tokens.len() || items.iter().any(|i| i.is_full() || i.position() >= last) {
            return Err(Error::internal("a decoding step does not fit the state of its items"));
        }
        self.config.text.check_tokens(tokens)?;
        with_thread_pool(|pool| self.text.read(pool, work, items, tokens, 1));
        Ok(work.logits.as_slice())
    }
}

/// Layer normalisation over the width, with scale and shift.
#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl Norm {
    fn row(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        layer_norm(isa, x, &self.weight, &self.bias, self.eps, out);
    }
}

/// `out = x Wᵀ + b` of the rows of `x`, through the operand.
fn product(
    pool: &ThreadPool,
    activations: &mut Activations,
    x: &[f32],
    weights: &PackedWeights,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    activations.copy_from(pool, weights, x);
    linear(pool, activations, weights, out, epilogue);
}

impl From<Activation> for ActivationFn {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Relu => Self::Relu,
        }
    }
}

fn heads(count: usize, width: usize) -> Heads {
    Heads { count, size: width / count }
}
