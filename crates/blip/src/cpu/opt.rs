//! OPT, the language model of BLIP-2: pre-norm and causal. It reads the rows of an image before the first
//! word, and has no cross-attention.
//!
//! Source: `OPTForCausalLM` in transformers' `modeling_opt.py`.

use super::image_attention::ImageAttention;
use super::text::{Pass, write_kv};
use super::{CpuSlot, Norm, Workspace, product};
use crate::model::SlotSize;
use cutline_kernels::Isa;
use cutline_kernels::activations::Activations;
use cutline_kernels::attention::Heads;
use cutline_kernels::gemm::{ActivationFn, Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::self_kv::{self, SelfKv};
use cutline_kernels::thread_pool::ThreadPool;

#[derive(Debug)]
pub(super) struct OptDecoder {
    pub(super) isa: Isa,
    pub(super) heads: Heads,
    /// The word embedding, `[vocabulary, hidden]`, if the head is not the same matrix.
    pub(super) words: Option<PackedWeights>,
    /// `[positions, hidden]`, without the rows that stand for nothing.
    pub(super) positions: Vec<f32>,
    pub(super) layers: Vec<OptLayer>,
    pub(super) norm: Norm,
    pub(super) head: PackedWeights,
}

/// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Debug)]
pub(super) struct OptLayer {
    pub(super) attention_norm: Norm,
    /// Queries, keys and values in one weight.
    pub(super) qkv: PackedWeights,
    pub(super) output: PackedWeights,
    pub(super) norm: Norm,
    pub(super) fc1: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) fc2: PackedWeights,
}

impl OptDecoder {
    /// A slot that reads the rows of an image, `[queries, hidden]`, with its first tokens.
    pub(super) fn begin(&self, work: &mut Workspace, image: &[f32], size: SlotSize) -> CpuSlot {
        let prefix = image.len() / self.heads.width();
        let spare = work.spare.pop();
        let mut self_kv = spare.unwrap_or_else(|| SelfKv::new(self.heads, self.layers.len()));
        self_kv.reset(size.capacity + prefix);
        CpuSlot { image: ImageAttention::Rows(image.to_vec()), self_kv, position: 0, prefix }
    }

    /// Reads the next `per_row` tokens in every row of every slot. A new slot comes alone, and reads its
    /// image first. The logits after each row's last token, `[rows, vocabulary]`, are left in the
    /// workspace.
    pub(super) fn read(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        slots: &mut [&mut CpuSlot],
        tokens: &[u32],
        per_row: usize,
    ) {
        let hidden = self.heads.width();
        let image = match slots.first_mut() {
            Some(slot) if slot.position == 0 => slot.image.take_rows(),
            _ => Vec::new(),
        };
        let before = image.len() / hidden;
        let pass = Pass {
            isa: self.isa,
            tokens: before + tokens.len(),
            per_row: before + per_row,
            hidden,
        };
        self.embed(work, slots, &image, tokens, pass);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(pool, work, slots, index, pass);
        }
        self.head(pool, work, pass);
        for slot in slots {
            slot.position += per_row;
        }
    }

    /// Image and words, plus positions, into the residual stream.
    fn embed(
        &self,
        work: &mut Workspace,
        slots: &[&mut CpuSlot],
        image: &[f32],
        tokens: &[u32],
        pass: Pass,
    ) {
        let hidden = pass.hidden;
        work.stream.resize(pass.tokens * hidden);
        let (before, text) = work.stream.as_mut_slice().split_at_mut(image.len());
        before.copy_from_slice(image);
        let words = self.words.as_ref().unwrap_or(&self.head);
        for (out, &token) in text.chunks_exact_mut(hidden).zip(tokens) {
            words.row(token as usize, out);
        }
        let positions = slots.iter().flat_map(|slot| {
            let first = slot.filled();
            (0..slot.rows()).flat_map(move |_| first..first + pass.per_row)
        });
        for (row, index) in work.stream.as_mut_slice().chunks_exact_mut(hidden).zip(positions) {
            let position = &self.positions[index * hidden..][..hidden];
            row.iter_mut().zip(position).for_each(|(x, position)| *x += position);
        }
    }

    /// Computes the logits after each row's last token.
    fn head(&self, pool: &ThreadPool, work: &mut Workspace, pass: Pass) {
        let Workspace { activations, stream, logits, .. } = work;
        let Pass { isa, tokens, per_row, hidden } = pass;
        let (rows, stream) = (tokens / per_row, stream.as_slice());
        activations.fill_with(pool, &self.head, rows, |row, values| {
            let last = &stream[((row + 1) * per_row - 1) * hidden..][..hidden];
            self.norm.row(isa, last, values);
        });
        logits.resize(rows * self.head.width());
        linear(pool, activations, &self.head, logits.as_mut_slice(), Epilogue::STORE);
    }
}

impl OptLayer {
    fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        slots: &mut [&mut CpuSlot],
        index: usize,
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, scores, .. } = work;
        let Pass { isa, tokens, per_row, hidden } = pass;
        let stream = stream.as_mut_slice();
        wide.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        normed(pool, activations, &self.attention_norm, (stream, &self.qkv), pass);
        linear(pool, activations, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        write_kv(slots, index, wide.as_slice(), pass);
        let batch = slots.iter().map(|slot| (&slot.self_kv, slot.filled()));
        let out = context.as_mut_slice();
        self_kv::attend(pool, (isa, index, per_row), batch, wide.as_slice(), scores, out);
        product(pool, activations, context.as_slice(), &self.output, stream, Epilogue::ADD);

        normed(pool, activations, &self.norm, (stream, &self.fc1), pass);
        wide.resize(tokens * self.fc1.width());
        linear(pool, activations, &self.fc1, wide.as_mut_slice(), Epilogue::apply(self.activation));
        product(pool, activations, wide.as_slice(), &self.fc2, stream, Epilogue::ADD);
    }
}

/// Makes the normalised rows of the stream the input of a product with `weights`.
fn normed(
    pool: &ThreadPool,
    activations: &mut Activations,
    norm: &Norm,
    (stream, weights): (&[f32], &PackedWeights),
    pass: Pass,
) {
    activations.fill_with(pool, weights, pass.tokens, |row, values| {
        norm.row(pass.isa, &stream[row * pass.hidden..][..pass.hidden], values);
    });
}
