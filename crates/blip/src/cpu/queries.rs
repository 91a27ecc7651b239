//! The Q-Former of BLIP-2: learned queries that attend to each other and to an image, and become the
//! rows that a language model reads in place of words.
//!
//! Source: `Blip2QFormerModel` in transformers' `modeling_blip_2.py`.

use super::text::{Pass, normalise};
use super::{Norm, Workspace, product};
use cutline_kernels::attention::{Heads, SelfAttention};
use cutline_kernels::cross_kv::{self, CrossKv};
use cutline_kernels::gemm::{ActivationFn, Epilogue};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::thread_pool::ThreadPool;
use cutline_kernels::{Isa, Precision};

#[derive(Debug)]
pub(super) struct QueryTransformer {
    pub(super) isa: Isa,
    pub(super) heads: Heads,
    /// The queries after their norm, `[queries, hidden]`.
    pub(super) queries: Vec<f32>,
    pub(super) layers: Vec<QueryLayer>,
    /// To the width of the language model.
    pub(super) projection: PackedWeights,
}

/// Self-attention, in some layers attention to the image, and feed-forward, each normalised after its
/// residual.
#[derive(Debug)]
pub(super) struct QueryLayer {
    /// Queries, keys and values in one weight.
    pub(super) qkv: PackedWeights,
    pub(super) self_output: (PackedWeights, Norm),
    pub(super) cross: Option<ImageLayer>,
    pub(super) intermediate: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) output: (PackedWeights, Norm),
}

/// A layer's attention to the image.
#[derive(Debug)]
pub(super) struct ImageLayer {
    pub(super) query: PackedWeights,
    /// Keys and values in one weight.
    pub(super) kv: PackedWeights,
    pub(super) output: (PackedWeights, Norm),
}

impl QueryTransformer {
    /// States of an image, `[tokens, vision width]` → rows for the language model, `[queries, its width]`.
    pub(super) fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        image: &[f32],
    ) -> Vec<f32> {
        let hidden = self.heads.width();
        let tokens = self.queries.len() / hidden;
        let pass = Pass { isa: self.isa, tokens, per_row: 1, hidden };
        work.stream.resize(tokens * hidden);
        work.stream.as_mut_slice().copy_from_slice(&self.queries);
        // Taken out, because a pass borrows the rest of the workspace.
        let attention = work.text_attention.take();
        let mut attention =
            attention.unwrap_or_else(|| SelfAttention::new(self.isa, precision, self.heads));
        let mut table = CrossKv::new(precision, self.heads);
        for layer in &self.layers {
            layer.attend_to_queries(pool, work, &mut attention, pass);
            if let Some(cross) = &layer.cross {
                cross.forward(pool, work, image, &mut table, pass);
            }
            layer.feed_forward(pool, work, pass);
        }
        work.text_attention = Some(attention);
        let mut rows = vec![0.0; tokens * self.projection.width()];
        let Workspace { activations, stream, .. } = work;
        product(pool, activations, stream.as_slice(), &self.projection, &mut rows, Epilogue::STORE);
        rows
    }
}

impl QueryLayer {
    fn attend_to_queries(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        attention: &mut SelfAttention,
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, .. } = work;
        let Pass { tokens, hidden, .. } = pass;
        let stream = stream.as_mut_slice();
        wide.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        attention.run(pool, wide.as_slice(), tokens, context.as_mut_slice());
        let (weights, norm) = &self.self_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }

    fn feed_forward(&self, pool: &ThreadPool, work: &mut Workspace, pass: Pass) {
        let Workspace { activations, stream, product: wide, context, .. } = work;
        let stream = stream.as_mut_slice();
        wide.resize(pass.tokens * self.intermediate.width());
        let (inner, epilogue) = (wide.as_mut_slice(), Epilogue::apply(self.activation));
        product(pool, activations, stream, &self.intermediate, inner, epilogue);
        let (weights, norm) = &self.output;
        product(pool, activations, wide.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }
}

impl ImageLayer {
    fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        image: &[f32],
        table: &mut CrossKv,
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, scores, .. } = work;
        let Pass { isa, tokens, hidden, .. } = pass;
        let stream = stream.as_mut_slice();
        wide.resize(image.len() / self.kv.depth() * self.kv.width());
        product(pool, activations, image, &self.kv, wide.as_mut_slice(), Epilogue::STORE);
        table.fill(pool, isa, wide.as_slice());
        wide.resize(tokens * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.query, wide.as_mut_slice(), Epilogue::STORE);
        let batch = std::iter::once((&*table, 0, tokens));
        cross_kv::attend(pool, isa, batch, wide.as_slice(), scores, context.as_mut_slice());
        let (weights, norm) = &self.output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }
}
