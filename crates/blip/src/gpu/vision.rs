//! The vision tower: a ViT with pre-norm, a class token and learned absolute positions.
//!
//! It takes any number of images of one size. A layer is eight launches on a GPU: norms, products with
//! their bias and residual, attention on the packed product, and the activation in place.
//!
//! Source: `BlipVisionModel` in transformers' `modeling_blip.py`.

use std::sync::{Mutex, PoisonError};

use candle_core::{self as candle, Device, Tensor};

use crate::config::{Activation, VisionConfig};
use crate::gpu::layers::{LayerNorm, Linear};
use crate::loader::Loader;
use crate::{arithmetic, positions};
use cutline_cuda::Operations;
use cutline_error::Result;

/// Turns an image into the states that the decoder's cross-attention reads.
#[derive(Debug)]
pub(super) struct VisionTower {
    pub(super) operations: Operations,
    patch_size: usize,
    /// The patch embedding: a convolution whose stride equals its kernel is a linear layer on
    /// patches.
    patches: Linear,
    /// `[1, hidden]`.
    class: Tensor,
    positions: PositionEmbedding,
    layers: Vec<VisionLayer>,
    post_layernorm: LayerNorm,
}

impl VisionTower {
    /// Reads `vision_model.*`.
    pub(super) fn load(config: &VisionConfig, loader: &Loader<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let prefix = "vision_model.embeddings";
        let patches = load_patches(config, loader, &format!("{prefix}.patch_embedding"))?;
        let class = loader.tensor(&format!("{prefix}.class_embedding"), &[1, 1, hidden])?;
        let rows = 1 + config.grid() * config.grid();
        let table = loader.tensor(&format!("{prefix}.position_embedding"), &[1, rows, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|n| VisionLayer::load(config, loader, &format!("vision_model.encoder.layers.{n}")))
            .collect::<Result<Vec<_>>>()?;
        let eps = config.layer_norm_eps;
        Ok(Self {
            operations: Operations::CUTLINE,
            patch_size: config.patch_size,
            patches,
            class: class.squeeze(0).map_err(arithmetic)?,
            positions: PositionEmbedding {
                table: table.squeeze(0).map_err(arithmetic)?,
                grid: config.grid(),
                resampled: Mutex::default(),
            },
            layers,
            post_layernorm: loader.layer_norm("vision_model.post_layernorm", hidden, eps)?,
        })
    }

    /// Pixels `[images, 3, height, width]` → states `[images, 1 + patches, hidden]`, the class
    /// token first.
    pub(super) fn forward(&self, pixels: &Tensor) -> candle::Result<Tensor> {
        let (images, _, height, width) = pixels.dims4()?;
        let (rows, columns) = (height / self.patch_size, width / self.patch_size);
        let with = self.operations;
        let patches = self.patches.forward(with, &self.unfold(pixels, rows, columns)?)?;
        let (_, hidden) = patches.dims2()?;
        let patches = patches.reshape((images, rows * columns, hidden))?;
        let class = self.class.broadcast_as((images, 1, hidden))?.contiguous()?;
        let x = Tensor::cat(&[&class, &patches], 1)?;
        let x = x.broadcast_add(&self.positions.at(rows, columns)?)?;
        let mut x = x.reshape((images * (1 + rows * columns), hidden))?;
        for layer in &self.layers {
            x = layer.forward(with, x, images)?;
        }
        self.post_layernorm.forward(with, &x)?.reshape((images, 1 + rows * columns, hidden))
    }

    /// `[images, 3, height, width]` → `[images · rows · columns, 3 · patch²]`: one patch per row,
    /// in the order of the convolution's kernel.
    fn unfold(&self, pixels: &Tensor, rows: usize, columns: usize) -> candle::Result<Tensor> {
        let (side, images) = (self.patch_size, pixels.dim(0)?);
        pixels
            .reshape(&[images, 3, rows, side, columns, side][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((images * rows * columns, 3 * side * side))
    }
}

fn load_patches(config: &VisionConfig, loader: &Loader<'_>, prefix: &str) -> Result<Linear> {
    let (hidden, side) = (config.hidden_size, config.patch_size);
    let kernel = loader.tensor(&format!("{prefix}.weight"), &[hidden, 3, side, side])?;
    let kernel = kernel.reshape((hidden, 3 * side * side)).map_err(arithmetic)?;
    let bias = loader.tensor(&format!("{prefix}.bias"), &[hidden])?;
    Ok(Linear::Dense { weight: kernel, bias })
}

/// Resampled tables that are kept: making one waits for the device and takes a core 10 ms and more.
const KEPT_TABLES: usize = 4;

/// One learned vector per patch, resampled for images of another size.
#[derive(Debug)]
struct PositionEmbedding {
    /// `[1 + grid², hidden]`, the class token first.
    table: Tensor,
    /// Patches along a side of the image that the model was trained on.
    grid: usize,
    /// The tables of the last few other sizes, the newest last.
    resampled: Mutex<Vec<((usize, usize), Tensor)>>,
}

impl PositionEmbedding {
    /// `[1 + rows · columns, hidden]` for an image of `rows` × `columns` patches.
    ///
    /// transformers interpolates whenever the image is not the square that the model was trained
    /// on, even if it has the same number of patches.
    fn at(&self, rows: usize, columns: usize) -> candle::Result<Tensor> {
        if (rows, columns) == (self.grid, self.grid) {
            return Ok(self.table.clone());
        }
        let mut known = self.resampled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = known.iter().find(|(size, _)| *size == (rows, columns)) {
            return Ok(table.clone());
        }
        let table = self.resample(rows, columns)?;
        if known.len() == KEPT_TABLES {
            known.remove(0);
        }
        known.push(((rows, columns), table.clone()));
        Ok(table)
    }

    fn resample(&self, rows: usize, columns: usize) -> candle::Result<Tensor> {
        let (_, hidden) = self.table.dims2()?;
        let (dtype, device) = (self.table.dtype(), self.table.device());
        let table = self.table.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        let table = table.flatten_all()?.to_vec1::<f32>()?;
        let (class, patches) = table.split_at(hidden);
        let mut values = class.to_vec();
        values.extend(positions::bicubic(patches, self.grid, hidden, rows, columns));
        Tensor::from_vec(values, (1 + rows * columns, hidden), &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)
    }
}

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
struct VisionLayer {
    heads: usize,
    layer_norm1: LayerNorm,
    /// Queries, keys and values in one weight.
    qkv: Linear,
    projection: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl VisionLayer {
    fn load(config: &VisionConfig, loader: &Loader<'_>, prefix: &str) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| {
            loader.layer_norm(&format!("{prefix}.{name}"), hidden, config.layer_norm_eps)
        };
        let linear = |name: &str, from, to| loader.linear(&format!("{prefix}.{name}"), from, to);
        Ok(Self {
            heads: config.num_attention_heads,
            layer_norm1: norm("layer_norm1")?,
            qkv: linear("self_attn.qkv", hidden, 3 * hidden)?,
            projection: linear("self_attn.projection", hidden, hidden)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", hidden, inner)?,
            activation: config.hidden_act,
            fc2: linear("mlp.fc2", inner, hidden)?,
        })
    }

    /// `[images · tokens, hidden]` → the same shape, in the memory of `x`.
    fn forward(&self, with: Operations, x: Tensor, images: usize) -> candle::Result<Tensor> {
        let context = self.attend(with, &self.layer_norm1.forward(with, &x)?, images)?;
        let x = self.projection.add_to(with, x, &context)?;
        let inner = self.fc1.forward(with, &self.layer_norm2.forward(with, &x)?)?;
        self.fc2.add_to(with, x, &self.activation.forward(with, inner)?)
    }

    fn attend(&self, with: Operations, x: &Tensor, images: usize) -> candle::Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let width = hidden / self.heads;
        let shape = [images, rows / images, 3, self.heads, width];
        let qkv = self.qkv.forward(with, x)?.reshape(&shape[..])?;
        with.attention(&qkv, (width as f32).powf(-0.5))
    }
}
