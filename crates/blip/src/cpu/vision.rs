//! The vision tower: a ViT with pre-norm, a class token and learned absolute positions.
//!
//! Source: `BlipVisionModel` in transformers' `modeling_blip.py`.

use super::{Norm, Workspace, product};
use crate::positions;
use cutline_kernels::Isa;
use cutline_kernels::attention::Heads;
use cutline_kernels::gemm::{ActivationFn, Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::thread_pool::ThreadPool;

#[derive(Debug)]
pub(super) struct VisionTower {
    pub(super) isa: Isa,
    pub(super) patch_size: usize,
    pub(super) heads: Heads,
    /// The patch embedding: a convolution whose stride equals its kernel is a linear layer on
    /// patches.
    pub(super) patches: PackedWeights,
    /// `[hidden]`.
    pub(super) class: Vec<f32>,
    /// `[1 + grid², hidden]`, the class token first.
    pub(super) positions: Vec<f32>,
    /// Patches along a side of the image that the model was trained on.
    pub(super) grid: usize,
    pub(super) layers: Vec<VisionLayer>,
    pub(super) post_layernorm: Norm,
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
pub(super) struct VisionLayer {
    pub(super) layer_norm1: Norm,
    /// Queries, keys and values in one weight.
    pub(super) qkv: PackedWeights,
    pub(super) projection: PackedWeights,
    pub(super) layer_norm2: Norm,
    pub(super) fc1: PackedWeights,
    pub(super) activation: ActivationFn,
    pub(super) fc2: PackedWeights,
}

impl VisionTower {
    /// Planes `[3, height, width]` → states `[1 + patches, hidden]`.
    pub(super) fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        pixels: &[f32],
        width: usize,
        height: usize,
    ) -> Vec<f32> {
        let (rows, columns) = (height / self.patch_size, width / self.patch_size);
        let (tokens, hidden) = (1 + rows * columns, self.heads.width());
        self.embed(pool, work, pixels, (rows, columns), (width, height));
        for layer in &self.layers {
            layer.forward(pool, work, self.isa, tokens, hidden);
        }
        let mut states = vec![0.0; tokens * hidden];
        let stream = &work.stream.as_slice()[..tokens * hidden];
        for (x, out) in stream.chunks_exact(hidden).zip(states.chunks_exact_mut(hidden)) {
            self.post_layernorm.row(self.isa, x, out);
        }
        states
    }

    /// Patches, class token and positions, into the residual stream.
    fn embed(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        pixels: &[f32],
        (rows, columns): (usize, usize),
        (width, height): (usize, usize),
    ) {
        let (side, hidden, patches) = (self.patch_size, self.heads.width(), rows * columns);
        work.activations.fill_with(pool, &self.patches, patches, |patch, values| {
            let (top, left) = (patch / columns * side, patch % columns * side);
            for (line, out) in values.chunks_exact_mut(side).enumerate() {
                let (plane, y) = (line / side, top + line % side);
                out.copy_from_slice(&pixels[(plane * height + y) * width + left..][..side]);
            }
        });
        work.stream.resize((1 + patches) * hidden);
        let (class, embedded) = work.stream.as_mut_slice().split_at_mut(hidden);
        class.copy_from_slice(&self.class);
        linear(pool, &work.activations, &self.patches, embedded, Epilogue::STORE);
        let add = |positions: &[f32], stream: &mut [f32]| {
            stream.iter_mut().zip(positions).for_each(|(x, position)| *x += position);
        };
        // transformers interpolates whenever the image is not the square that the model was trained
        // on.
        if (rows, columns) == (self.grid, self.grid) {
            add(&self.positions, work.stream.as_mut_slice());
        } else {
            let (class, table) = self.positions.split_at(hidden);
            let table = positions::bicubic(table, self.grid, hidden, rows, columns);
            let (first, rest) = work.stream.as_mut_slice().split_at_mut(hidden);
            add(class, first);
            add(&table, rest);
        }
    }
}

impl VisionLayer {
    fn forward(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        isa: Isa,
        tokens: usize,
        hidden: usize,
    ) {
        let Workspace { activations, stream, product: wide, context, attention, .. } = work;
        let stream = &mut stream.as_mut_slice()[..tokens * hidden];
        let normed = |norm: &Norm, stream: &[f32], row: usize, values: &mut [f32]| {
            norm.row(isa, &stream[row * hidden..][..hidden], values);
        };
        activations.fill_with(pool, &self.qkv, tokens, |row, values| {
            normed(&self.layer_norm1, stream, row, values);
        });
        wide.resize(tokens * 3 * hidden);
        linear(pool, activations, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        context.resize(tokens * hidden);
        attention.run(pool, wide.as_slice(), tokens, context.as_mut_slice());
        product(pool, activations, context.as_slice(), &self.projection, stream, Epilogue::ADD);
        activations.fill_with(pool, &self.fc1, tokens, |row, values| {
            normed(&self.layer_norm2, stream, row, values);
        });
        wide.resize(tokens * self.fc1.width());
        linear(pool, activations, &self.fc1, wide.as_mut_slice(), Epilogue::apply(self.activation));
        product(pool, activations, wide.as_slice(), &self.fc2, stream, Epilogue::ADD);
    }
}
