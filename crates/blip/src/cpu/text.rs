//! The text decoder: BERT with post-norm, causal self-attention and cross-attention to the image.
//!
//! Source: `BlipTextLMHeadModel` in transformers' `modeling_blip_text.py`.

use super::{CpuImage, CpuSlot, Norm, Workspace, product};
use cutline_kernels::attention::Heads;
use cutline_kernels::cross_kv::{self, CrossKv};
use cutline_kernels::gemm::ActivationFn;
use cutline_kernels::gemm::{Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::self_kv::{self, SelfKv};
use cutline_kernels::thread_pool::ThreadPool;
use cutline_kernels::{Isa, Precision};

#[derive(Debug)]
pub(super) struct Text {
    pub(super) isa: Isa,
    pub(super) heads: Heads,
    /// The word embedding, `[vocabulary, hidden]`, if the head is not the same matrix.
    pub(super) words: Option<PackedWeights>,
    /// `[positions, hidden]`.
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Head,
}

/// Self-attention, cross-attention and feed-forward, each normalised after its residual.
#[derive(Debug)]
pub(super) struct Layer {
    /// Queries, keys and values in one weight.
    pub(super) qkv: PackedWeights,
    pub(super) self_output: (PackedWeights, Norm),
    pub(super) query: PackedWeights,
    /// Of the image: keys and values in one weight.
    pub(super) key_value: PackedWeights,
    pub(super) cross_output: (PackedWeights, Norm),
    pub(super) intermediate: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) output: (PackedWeights, Norm),
}

/// Transform and projection to the vocabulary.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) transform: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) norm: Norm,
    pub(super) decoder: PackedWeights,
}

/// What a pass reads: so many tokens of every row.
#[derive(Clone, Copy)]
struct Pass {
    isa: Isa,
    tokens: usize,
    per_row: usize,
    hidden: usize,
}

impl Text {
    pub(super) fn begin(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        image: &CpuImage,
        capacity: usize,
    ) -> CpuSlot {
        let mut item = work.spare.pop().unwrap_or_else(|| CpuSlot {
            cross_kv: self.layers.iter().map(|_| CrossKv::new(precision, self.heads)).collect(),
            self_kv: SelfKv::new(self.heads, self.layers.len()),
            position: 0,
        });
        item.position = 0;
        item.self_kv.reset(capacity);
        for (number, (layer, memory)) in self.layers.iter().zip(&mut item.cross_kv).enumerate() {
            let weights = &layer.key_value;
            let (states, depth) = (&image.states, weights.depth());
            // All layers read the same states in the same form: converting them once is enough.
            if number == 0 {
                work.activations.copy_from(pool, weights, states);
            }
            work.wide.resize(states.len() / depth * weights.width());
            let wide = work.wide.as_mut_slice();
            linear(pool, &work.activations, weights, wide, Epilogue::STORE);
            memory.fill(pool, self.isa, wide);
        }
        item
    }

    /// Reads the next `per_row` tokens of every row of every item, at the items' own positions; the
    /// logits of each row's last token, `[rows, vocabulary]`, are left in the workspace.
    pub(super) fn read(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        items: &mut [&mut CpuSlot],
        tokens: &[u32],
        per_row: usize,
    ) {
        let hidden = self.heads.width();
        let pass = Pass { isa: self.isa, tokens: tokens.len(), per_row, hidden };
        self.embed(work, items, tokens, pass);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.forward(pool, work, items, index, pass);
        }
        self.head.forward(pool, work, pass);
        for item in items {
            item.position += per_row;
        }
    }

    /// Word plus position, normalised, into the stream.
    fn embed(&self, work: &mut Workspace, items: &[&mut CpuSlot], tokens: &[u32], pass: Pass) {
        let hidden = pass.hidden;
        work.stream.resize(tokens.len() * hidden);
        work.context.resize(hidden);
        let words = self.words.as_ref().unwrap_or(&self.head.decoder);
        let sum = work.context.as_mut_slice();
        let places = items.iter().flat_map(|item| {
            let first = item.position;
            (0..item.rows()).flat_map(move |_| first..first + pass.per_row)
        });
        let rows = work.stream.as_mut_slice().chunks_exact_mut(hidden);
        for ((out, &token), place) in rows.zip(tokens).zip(places) {
            words.row(token as usize, sum);
            let position = &self.positions[place * hidden..][..hidden];
            sum.iter_mut().zip(position).for_each(|(x, position)| *x += position);
            self.norm.row(pass.isa, sum, out);
        }
    }
}

impl Layer {
    fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        items: &mut [&mut CpuSlot],
        index: usize,
        pass: Pass,
    ) {
        let Workspace { activations, stream, wide, context, scores, .. } = work;
        let Pass { isa, tokens, per_row, hidden } = pass;
        let stream = stream.as_mut_slice();
        wide.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        remember(items, index, wide.as_slice(), pass);
        let batch = items.iter().map(|item| (&item.self_kv, item.position));
        let out = context.as_mut_slice();
        self_kv::attend(pool, (isa, index, per_row), batch, wide.as_slice(), scores, out);
        let (weights, norm) = &self.self_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);

        wide.resize(tokens * hidden);
        product(pool, activations, stream, &self.query, wide.as_mut_slice(), Epilogue::STORE);
        let batch = items.iter().map(|item| (&item.cross_kv[index], item.rows() * per_row));
        cross_kv::attend(pool, isa, batch, wide.as_slice(), scores, context.as_mut_slice());
        let (weights, norm) = &self.cross_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);

        wide.resize(tokens * self.intermediate.width());
        let inner = wide.as_mut_slice();
        product(
            pool,
            activations,
            stream,
            &self.intermediate,
            inner,
            Epilogue::apply(self.activation),
        );
        let (weights, norm) = &self.output;
        product(pool, activations, wide.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }
}

/// Puts the keys and values of the tokens into their items' caches.
fn remember(items: &mut [&mut CpuSlot], layer: usize, qkv: &[f32], pass: Pass) {
    let mut tokens = qkv.chunks_exact(3 * pass.hidden);
    for item in items {
        for row in 0..item.rows() {
            for (token, qkv) in (0..pass.per_row).zip(&mut tokens) {
                item.self_kv.write(layer, row, item.position + token, qkv);
            }
        }
    }
}

/// Normalises every row of the stream in place; `spare` has room for a row.
fn normalise(norm: &Norm, stream: &mut [f32], spare: &mut [f32], pass: Pass) {
    let spare = &mut spare[..pass.hidden];
    for row in stream.chunks_exact_mut(pass.hidden) {
        norm.row(pass.isa, row, spare);
        row.copy_from_slice(spare);
    }
}

impl Head {
    /// Of each row's last token.
    fn forward(&self, pool: &ThreadPool, work: &mut Workspace, pass: Pass) {
        let Workspace { activations, stream, wide, context, logits, .. } = work;
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
