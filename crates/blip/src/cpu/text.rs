//! The text decoder: BERT with post-norm, causal self-attention and cross-attention to the image.
//!
//! Source: `BlipTextLMHeadModel` in transformers' `modeling_blip_text.py`.

use super::image_attention::ImageAttention;
use super::{CpuSlot, Norm, Workspace, product};
use crate::model::SlotSize;
use cutline_kernels::attention::Heads;
use cutline_kernels::cross_kv;
use cutline_kernels::cross_states::{self, FoldedKeys, StatesItem, StatesLayer};
use cutline_kernels::gemm::{ActivationFn, Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::self_kv::{self, SelfKv};
use cutline_kernels::thread_pool::ThreadPool;
use cutline_kernels::{Isa, Precision};

#[derive(Debug)]
pub(super) struct TextDecoder {
    pub(super) isa: Isa,
    pub(super) heads: Heads,
    /// The word embedding, `[vocabulary, hidden]`, if the head is not the same matrix.
    pub(super) words: Option<PackedWeights>,
    /// `[positions, hidden]`.
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<TextLayer>,
    /// By layer, the keys of the cross-attention once more.
    pub(super) folded_keys: Vec<FoldedKeys>,
    pub(super) head: LmHead,
}

/// Self-attention, cross-attention and feed-forward, each normalised after its residual.
#[derive(Debug)]
pub(super) struct TextLayer {
    /// Queries, keys and values in one weight.
    pub(super) qkv: PackedWeights,
    pub(super) self_output: (PackedWeights, Norm),
    pub(super) query: PackedWeights,
    /// Keys and values of the cross-attention in one weight.
    pub(super) cross_kv: PackedWeights,
    pub(super) cross_output: (PackedWeights, Norm),
    pub(super) intermediate: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) output: (PackedWeights, Norm),
}

/// The language-model head: transform and projection to the vocabulary.
#[derive(Debug)]
pub(super) struct LmHead {
    pub(super) transform: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) norm: Norm,
    pub(super) decoder: PackedWeights,
}

/// The sizes of a pass, which reads the same number of tokens in every row.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) isa: Isa,
    /// Tokens of all rows together.
    pub(super) tokens: usize,
    pub(super) per_row: usize,
    pub(super) hidden: usize,
}

impl TextDecoder {
    pub(super) fn begin(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        image: &[f32],
        size: SlotSize,
    ) -> CpuSlot {
        let image = self.attention_to(pool, work, precision, image, size);
        let spare = work.spare.pop();
        let mut self_kv = spare.unwrap_or_else(|| SelfKv::new(self.heads, self.layers.len()));
        self_kv.reset(size.capacity);
        CpuSlot { image, self_kv, position: 0, prefix: 0 }
    }

    /// Reads the next `per_row` tokens in every row of every slot, at the slots' own positions. The
    /// logits after each row's last token, `[rows, vocabulary]`, are left in the workspace.
    pub(super) fn read(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        slots: &mut [&mut CpuSlot],
        tokens: &[u32],
        per_row: usize,
    ) {
        for slot in &mut *slots {
            let new = slot.rows() * per_row;
            self.count_tokens(pool, work, precision, &mut slot.image, new);
        }
        let hidden = self.heads.width();
        let pass = Pass { isa: self.isa, tokens: tokens.len(), per_row, hidden };
        self.embed(work, slots, tokens, pass);
        for (index, (layer, folded_keys)) in self.layers.iter().zip(&self.folded_keys).enumerate() {
            layer.forward(pool, work, slots, (index, folded_keys), pass);
        }
        self.head.forward(pool, work, pass);
        for slot in slots {
            slot.position += per_row;
        }
    }

    /// Word plus position, normalised, into the residual stream.
    fn embed(&self, work: &mut Workspace, slots: &[&mut CpuSlot], tokens: &[u32], pass: Pass) {
        let hidden = pass.hidden;
        work.stream.resize(tokens.len() * hidden);
        work.context.resize(hidden);
        let words = self.words.as_ref().unwrap_or(&self.head.decoder);
        let sum = work.context.as_mut_slice();
        let positions = slots.iter().flat_map(|slot| {
            let first = slot.position;
            (0..slot.rows()).flat_map(move |_| first..first + pass.per_row)
        });
        let rows = work.stream.as_mut_slice().chunks_exact_mut(hidden);
        for ((out, &token), index) in rows.zip(tokens).zip(positions) {
            words.row(token as usize, sum);
            let position = &self.positions[index * hidden..][..hidden];
            sum.iter_mut().zip(position).for_each(|(x, position)| *x += position);
            self.norm.row(pass.isa, sum, out);
        }
    }
}

impl TextLayer {
    fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        slots: &mut [&mut CpuSlot],
        (index, folded_keys): (usize, &FoldedKeys),
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, scores, states, .. } = work;
        let Pass { isa, tokens, per_row, hidden } = pass;
        let stream = stream.as_mut_slice();
        wide.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        write_kv(slots, index, wide.as_slice(), pass);
        let batch = slots.iter().map(|slot| (&slot.self_kv, slot.position));
        let out = context.as_mut_slice();
        self_kv::attend(pool, (isa, index, per_row), batch, wide.as_slice(), scores, out);
        let (weights, norm) = &self.self_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);

        wide.resize(tokens * hidden);
        product(pool, activations, stream, &self.query, wide.as_mut_slice(), Epilogue::STORE);
        let (queries, out) = (wide.as_slice(), context.as_mut_slice());
        let batch = keys_and_values(slots, index, per_row);
        cross_kv::attend(pool, isa, batch, queries, scores, out);
        let weights = StatesLayer { keys: folded_keys, values: &self.cross_kv };
        cross_states::attend(pool, weights, image_states(slots, per_row), queries, states, out);
        let (weights, norm) = &self.cross_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);

        self.feed_forward(pool, work, pass);
    }

    /// Feed-forward over the residual stream.
    pub(super) fn feed_forward(&self, pool: &ThreadPool, work: &mut Workspace, pass: Pass) {
        let Workspace { activations, stream, product: wide, context, .. } = work;
        let stream = &mut stream.as_mut_slice()[..pass.tokens * pass.hidden];
        wide.resize(pass.tokens * self.intermediate.width());
        let (inner, epilogue) = (wide.as_mut_slice(), Epilogue::apply(self.activation));
        product(pool, activations, stream, &self.intermediate, inner, epilogue);
        let (weights, norm) = &self.output;
        product(pool, activations, wide.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }
}

/// The slots that attend to keys and values of their image, with those of a layer.
fn keys_and_values<'a>(
    slots: &'a [&mut CpuSlot],
    layer: usize,
    per_row: usize,
) -> impl Iterator<Item = cross_kv::BatchItem<'a>> + Clone + Sync {
    with_rows(slots, per_row).filter_map(move |(slot, first, count)| match &slot.image {
        ImageAttention::KeysAndValues(tables) => Some((&tables[layer], first, count)),
        ImageAttention::States { .. } | ImageAttention::Rows(_) => None,
    })
}

/// The slots that attend to the states of their image.
fn image_states<'a>(
    slots: &'a [&mut CpuSlot],
    per_row: usize,
) -> impl Iterator<Item = StatesItem<'a>> + Clone + Sync {
    with_rows(slots, per_row).filter_map(|(slot, first, count)| match &slot.image {
        ImageAttention::States { table, .. } => Some(StatesItem { table, first, count }),
        ImageAttention::KeysAndValues(_) | ImageAttention::Rows(_) => None,
    })
}

/// Every slot with the first of its tokens and their number.
fn with_rows<'a>(
    slots: &'a [&mut CpuSlot],
    per_row: usize,
) -> impl Iterator<Item = (&'a CpuSlot, usize, usize)> + Clone + Sync {
    slots.iter().scan(0, move |next, slot| {
        let (first, count) = (*next, slot.rows() * per_row);
        *next += count;
        Some((&**slot, first, count))
    })
}

/// Writes the keys and values of the tokens into the caches of their slots.
pub(super) fn write_kv(slots: &mut [&mut CpuSlot], layer: usize, qkv: &[f32], pass: Pass) {
    let mut tokens = qkv.chunks_exact(3 * pass.hidden);
    for slot in slots {
        let first = slot.filled();
        for row in 0..slot.rows() {
            for (token, qkv) in (0..pass.per_row).zip(&mut tokens) {
                slot.self_kv.write(layer, row, first + token, qkv);
            }
        }
    }
}

/// Normalises every row of the stream in place. `spare` is overwritten and holds at least a row.
pub(super) fn normalise(norm: &Norm, stream: &mut [f32], spare: &mut [f32], pass: Pass) {
    let spare = &mut spare[..pass.hidden];
    for row in stream.chunks_exact_mut(pass.hidden) {
        norm.row(pass.isa, row, spare);
        row.copy_from_slice(spare);
    }
}

impl LmHead {
    /// Computes the logits after each row's last token.
    fn forward(&self, pool: &ThreadPool, work: &mut Workspace, pass: Pass) {
        let Workspace { activations, stream, product: wide, context, logits, .. } = work;
        let Pass { isa, tokens, per_row, hidden } = pass;
        let rows = tokens / per_row;
        let stream = stream.as_slice();
        activations.fill_with(pool, &self.transform, rows, |row, values| {
            values.copy_from_slice(&stream[((row + 1) * per_row - 1) * hidden..][..hidden]);
        });
        wide.resize(rows * hidden);
        let transformed = wide.as_mut_slice();
        let epilogue = Epilogue::apply(self.activation);
        linear(pool, activations, &self.transform, transformed, epilogue);
        context.resize(hidden);
        let pass = Pass { isa, tokens: rows, per_row: 1, hidden };
        normalise(&self.norm, transformed, context.as_mut_slice(), pass);
        logits.resize(rows * self.decoder.width());
        product(
            pool,
            activations,
            wide.as_slice(),
            &self.decoder,
            logits.as_mut_slice(),
            Epilogue::STORE,
        );
    }
}
