//! BLIP on the CPU's own kernels. Weights are packed once for the CPU's instructions, and buffers
//! are reused from call to call.
//!
//! The vision tower runs one image at a time, which keeps all cores busy and its activations in
//! their caches; the decoder takes whole batches. A job's result does not depend on the other jobs
//! in the batch, bit for bit.

mod encoder;
mod image_attention;
mod load;
mod opt;
mod queries;
#[cfg(test)]
mod tests;
mod text;
mod vision;

use self::image_attention::{ImageAttention, SpareTables};
use crate::config::Activation;
use crate::model::check_read;
use crate::reader::{TextReader, missing};
use crate::{
    BlipConfig, ImageStates, Model, ModelDescription, Read, Scores, Slot, SlotSize, Weights,
};
use cutline_error::{Error, Result};
use cutline_kernels::activations::Activations;
use cutline_kernels::attention::{Heads, SelfAttention};
use cutline_kernels::buffer::Buffer;
use cutline_kernels::cross_states::StatesScratch;
use cutline_kernels::gemm::{ActivationFn, Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::self_kv::SelfKv;
use cutline_kernels::thread_pool::{ThreadPool, with_thread_pool};
use cutline_kernels::{Isa, Precision, Tier, layer_norm};

/// A BLIP on the CPU's own kernels: weights, and memory for one pass at a time.
#[derive(Debug)]
pub struct CpuModel {
    weights: CpuWeights,
    work: Workspace,
}

impl CpuModel {
    /// Loads a model; see [`CpuWeights::load`].
    ///
    /// # Errors
    /// As [`CpuWeights::load`].
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        tier: Tier,
        precision: Precision,
    ) -> Result<Self> {
        let weights = CpuWeights::load(config, weights, tier, precision)?;
        let work = weights.new_workspace();
        Ok(Self { weights, work })
    }
}

impl Model for CpuModel {
    fn describe(&self) -> &ModelDescription {
        &self.weights.description
    }

    fn encode(
        &mut self,
        images: &[&[f32]],
        width: usize,
        height: usize,
    ) -> Result<Vec<ImageStates>> {
        let Self { weights, work } = self;
        let encode =
            |pixels: &&[f32]| Ok(ImageStates::Host(weights.encode(work, pixels, width, height)?));
        images.iter().map(encode).collect()
    }

    fn begin(&mut self, image: &ImageStates, size: SlotSize) -> Result<Slot> {
        let slot = self.weights.begin(&mut self.work, image.host()?, size)?;
        Ok(Slot::Cpu(Box::new(slot)))
    }

    /// Prompts are read one after another, then all other slots together.
    fn read(&mut self, reads: &mut [Read<'_>]) -> Result<Vec<Scores>> {
        let Self { weights, work } = self;
        let vocabulary = weights.description.config.text.vocab_size;
        let mut scores: Vec<Scores> = Vec::with_capacity(reads.len());
        let (mut steps, mut slots, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for (n, read) in reads.iter_mut().enumerate() {
            let slot = read.slot.cpu()?;
            let new = slot.position == 0 && (read.tokens.len() > 1 || slot.prefix > 0);
            scores.push(Scores::Logits(if new {
                weights.prefill(work, slot, read.tokens)?.to_vec()
            } else {
                steps.push((n, read.tokens.len()));
                slots.push(slot);
                tokens.extend_from_slice(read.tokens);
                Vec::new()
            }));
        }
        let mut logits = weights.step(work, &mut slots, &tokens)?;
        for (n, rows) in steps {
            let (own, rest) = logits.split_at(rows * vocabulary);
            scores[n] = Scores::Logits(own.to_vec());
            logits = rest;
        }
        Ok(scores)
    }

    fn reader(&mut self) -> Option<&mut dyn TextReader> {
        if self.weights.encoder.is_some() { Some(self) } else { None }
    }

    fn recycle(&mut self, slot: Slot) {
        if let Slot::Cpu(slot) = slot {
            self.work.recycle(*slot);
        }
    }

    fn reset(&mut self) {
        self.work = self.weights.new_workspace();
    }
}

/// A checkpoint's weights, packed for the kernels. They never change; all mutable state is in
/// [`Workspace`] and [`CpuSlot`].
#[derive(Debug)]
pub struct CpuWeights {
    description: ModelDescription,
    isa: Isa,
    precision: Precision,
    vision: vision::VisionTower,
    decoder: Option<text::TextDecoder>,
    encoder: Option<encoder::TextEncoder>,
    retrieval: Option<encoder::RetrievalHeads>,
    blip2: Option<Blip2>,
}

/// What BLIP-2 has beside the vision tower.
#[derive(Debug)]
struct Blip2 {
    queries: queries::QueryTransformer,
    decoder: opt::OptDecoder,
}

/// Memory for one pass at a time; it grows to the needs of the largest pass.
#[derive(Debug)]
pub struct Workspace {
    activations: Activations,
    /// The residual stream, `[rows, width]`.
    stream: Buffer<f32>,
    /// The output of a product, for the next operation.
    product: Buffer<f32>,
    /// Outputs of attention; and one row of it for a norm.
    context: Buffer<f32>,
    attention: SelfAttention,
    /// The text encoder's, once it was used.
    text_attention: Option<SelfAttention>,
    scores: Buffer<f32>,
    states: StatesScratch,
    logits: Buffer<f32>,
    /// The memory of finished slots, which the next ones use.
    spare: Vec<SelfKv>,
    spare_tables: SpareTables,
}

/// The most finished slots that a workspace keeps.
const MAX_SPARE: usize = 32;

impl Workspace {
    /// Takes back a finished slot, so that the next one can use its memory.
    pub fn recycle(&mut self, mut slot: CpuSlot) {
        if self.spare.len() < MAX_SPARE {
            slot.self_kv.shrink();
            self.spare.push(slot.self_kv);
        }
        self.spare_tables.recycle(slot.image, MAX_SPARE);
    }
}

/// The decoding state of one image: its cross-attention, its rows and their self-attention cache.
#[derive(Debug)]
pub struct CpuSlot {
    image: ImageAttention,
    self_kv: SelfKv,
    /// Tokens that each row has read; also the position of the next one.
    position: usize,
    /// Entries of the cache before the first token.
    prefix: usize,
}

impl CpuSlot {
    /// Sequences that are decoded for this image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.self_kv.rows()
    }

    /// Entries of the cache that are in use. The first read fills those before the first token too.
    fn filled(&self) -> usize {
        if self.position == 0 { 0 } else { self.prefix + self.position }
    }

    /// Makes row `n` continue the former row `sources[n]`.
    ///
    /// # Errors
    /// A source is not a row.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        let rows = self.rows();
        if sources.is_empty() || sources.iter().any(|&source| source >= rows) {
            return Err(Error::internal(format!("rows {sources:?} cannot continue {rows} rows")));
        }
        if !sources.iter().copied().eq(0..rows) {
            self.self_kv.reorder(sources, self.filled());
        }
        Ok(())
    }
}

impl CpuWeights {
    /// What is known about the model.
    #[must_use]
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// Memory for one pass at a time.
    #[must_use]
    pub fn new_workspace(&self) -> Workspace {
        Workspace {
            activations: Activations::default(),
            stream: Buffer::new(),
            product: Buffer::new(),
            context: Buffer::new(),
            attention: SelfAttention::new(self.isa, self.precision, self.vision.heads),
            text_attention: None,
            scores: Buffer::new(),
            states: StatesScratch::default(),
            logits: Buffer::new(),
            spare: Vec::new(),
            spare_tables: SpareTables::default(),
        }
    }

    /// The vision tower: normalised planes `3 × height × width` → states
    /// `[1 + patches, vision width]`, the class token first; of BLIP-2, the rows for its language model.
    ///
    /// # Errors
    /// The number of values is not `3 · height · width`, or a side is no multiple of the patch
    /// size.
    pub fn encode(
        &self,
        work: &mut Workspace,
        pixels: &[f32],
        width: usize,
        height: usize,
    ) -> Result<Vec<f32>> {
        self.description.config.vision.check_image(pixels, width, height)?;
        Ok(with_thread_pool(|pool| {
            let states = self.vision.forward(pool, work, pixels, width, height);
            match &self.blip2 {
                None => states,
                Some(blip2) => blip2.queries.forward(pool, work, self.precision, &states),
            }
        }))
    }

    /// A slot for an image, with one row. `image` comes from [`encode`](Self::encode).
    ///
    /// # Errors
    /// The model has no text decoder.
    pub fn begin(&self, work: &mut Workspace, image: &[f32], size: SlotSize) -> Result<CpuSlot> {
        if let Some(blip2) = &self.blip2 {
            return Ok(blip2.decoder.begin(work, image, size));
        }
        let decoder = self.decoder()?;
        Ok(with_thread_pool(|pool| decoder.begin(pool, work, self.precision, image, size)))
    }

    fn decoder(&self) -> Result<&text::TextDecoder> {
        self.decoder.as_ref().ok_or_else(|| missing("text decoder"))
    }

    /// Reads the first tokens (decoder start and prompt) of a new slot; the logits of the last.
    ///
    /// # Errors
    /// There is no token, there are more than the capacity, or one is outside the vocabulary; the
    /// slot is unchanged.
    pub fn prefill<'w>(
        &self,
        work: &'w mut Workspace,
        slot: &mut CpuSlot,
        tokens: &[u32],
    ) -> Result<&'w [f32]> {
        self.check(slot, tokens)?;
        self.read(work, &mut [slot], tokens, tokens.len())?;
        Ok(work.logits.as_slice())
    }

    /// Reads one token for every row of the slots. `tokens` and the logits (`vocabulary` of every
    /// row) are in the order of the slots and of their rows.
    ///
    /// # Errors
    /// The tokens do not match the rows, a slot is full, or a token is outside the vocabulary; the
    /// slots are unchanged.
    pub fn step<'w>(
        &self,
        work: &'w mut Workspace,
        slots: &mut [&mut CpuSlot],
        tokens: &[u32],
    ) -> Result<&'w [f32]> {
        let mut rest = tokens;
        for slot in &*slots {
            let (own, behind) = rest.split_at_checked(slot.rows()).unwrap_or((rest, &[]));
            self.check(slot, own)?;
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(Error::internal("a step has more tokens than rows"));
        }
        if slots.is_empty() {
            return Ok(&[]);
        }
        if slots.iter().any(|slot| slot.position == 0 && slot.prefix > 0) {
            return Err(Error::internal("a slot that has not read its image cannot take a step"));
        }
        self.read(work, slots, tokens, 1)?;
        Ok(work.logits.as_slice())
    }

    /// Leaves the logits in the workspace.
    fn read(
        &self,
        work: &mut Workspace,
        slots: &mut [&mut CpuSlot],
        tokens: &[u32],
        per_row: usize,
    ) -> Result<()> {
        if let Some(Blip2 { decoder, .. }) = &self.blip2 {
            with_thread_pool(|pool| decoder.read(pool, work, slots, tokens, per_row));
            return Ok(());
        }
        let (decoder, precision) = (self.decoder()?, self.precision);
        with_thread_pool(|pool| decoder.read(pool, work, precision, slots, tokens, per_row));
        Ok(())
    }

    fn check(&self, slot: &CpuSlot, tokens: &[u32]) -> Result<()> {
        let state = (slot.rows(), slot.position, slot.self_kv.capacity() - slot.prefix);
        check_read(&self.description.config.text, state, tokens)
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

/// `out = x Wᵀ + b` for the rows of `x`.
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
