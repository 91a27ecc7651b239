//! Reads a checkpoint into packed weights.

use super::text::{Head, Text};
use super::vision::Vision;
use super::{CpuModel, Norm, heads, text, vision};
use crate::config::{BlipConfig, TextConfig, VisionConfig};
use crate::layers::Loader;
use crate::text::{decoder_bias, words_and_head};
use crate::weights::Weights;
use cutline_error::{Error, ErrorKind, Result};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::{Isa, Precision, Tier};

/// A checkpoint, and what its weights become.
struct Packer<'a> {
    loader: Loader<'a>,
    isa: Isa,
    precision: Precision,
}

impl CpuModel {
    /// Reads and packs all weights; quantised ones are dequantised, layer by layer.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](cutline_error::ErrorKind::Model): a tensor is missing or has another
    /// shape than the configuration asks for.
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        tier: Tier,
        precision: Precision,
    ) -> Result<Self> {
        let isa = tier.isa().ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("the kernels {tier} do not run on this CPU"))
        })?;
        let packer = Packer { loader: Loader::in_f32(weights), isa, precision };
        let vision = packer.vision(&config.vision)?;
        let text =
            packer.text(&config.text, config.tie_word_embeddings, config.vision.hidden_size)?;
        let parameters = packer.loader.parameters();
        Ok(Self { config: config.clone(), isa, precision, vision, text, parameters })
    }
}

impl Packer<'_> {
    fn vision(&self, config: &VisionConfig) -> Result<Vision> {
        let (hidden, side) = (config.hidden_size, config.patch_size);
        let prefix = "vision_model.embeddings";
        let values = |name: &str, shape: &[usize]| self.loader.values(name, shape);
        let kernel = values(&format!("{prefix}.patch_embedding.weight"), &[hidden, 3, side, side])?;
        let bias = values(&format!("{prefix}.patch_embedding.bias"), &[hidden])?;
        let rows = 1 + config.grid() * config.grid();
        Ok(Vision {
            isa: self.isa,
            patch_size: side,
            heads: heads(config.num_attention_heads, hidden),
            patches: self.pack(&kernel, &bias, 3 * side * side),
            class: values(&format!("{prefix}.class_embedding"), &[1, 1, hidden])?,
            positions: values(&format!("{prefix}.position_embedding"), &[1, rows, hidden])?,
            grid: config.grid(),
            layers: (0..config.num_hidden_layers)
                .map(|n| self.vision_layer(config, &format!("vision_model.encoder.layers.{n}")))
                .collect::<Result<_>>()?,
            post_layernorm: self.norm(
                "vision_model.post_layernorm",
                hidden,
                config.layer_norm_eps,
            )?,
        })
    }

    fn vision_layer(&self, config: &VisionConfig, prefix: &str) -> Result<vision::Layer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| self.norm(&format!("{prefix}.{name}"), hidden, config.layer_norm_eps);
        let linear = |name, from, to| self.linear(&[&format!("{prefix}.{name}")], from, to);
        Ok(vision::Layer {
            layer_norm1: norm("layer_norm1")?,
            qkv: linear("self_attn.qkv", hidden, 3 * hidden)?,
            projection: linear("self_attn.projection", hidden, hidden)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", hidden, inner)?,
            activation: config.hidden_act.into(),
            fc2: linear("mlp.fc2", inner, hidden)?,
        })
    }

    fn text(&self, config: &TextConfig, tied: bool, image_width: usize) -> Result<Text> {
        let hidden = config.hidden_size;
        let prefix = "text_decoder.bert.embeddings";
        let shape = [config.max_position_embeddings, hidden];
        let (words, head) = self.words_and_head(config, tied)?;
        Ok(Text {
            isa: self.isa,
            heads: heads(config.num_attention_heads, hidden),
            words,
            positions: self
                .loader
                .values(&format!("{prefix}.position_embeddings.weight"), &shape)?,
            norm: self.norm(&format!("{prefix}.LayerNorm"), hidden, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|n| self.text_layer(config, image_width, n))
                .collect::<Result<_>>()?,
            head,
        })
    }

    /// The word embedding, if it is not the head's matrix, and the head.
    fn words_and_head(
        &self,
        config: &TextConfig,
        tied: bool,
    ) -> Result<(Option<PackedWeights>, Head)> {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let names = words_and_head(config, tied, &self.loader)?;
        let words = names.words.flatten_all().and_then(|words| words.to_vec1());
        let words: Vec<f32> = words.map_err(crate::arithmetic)?;
        let bias = self.loader.values(&decoder_bias(&self.loader, names.head), &[vocabulary])?;
        let transform = "text_decoder.cls.predictions.transform";
        let (own, decoder) = match names.head {
            Some(name) => {
                let weight = self.loader.values(name, &[vocabulary, hidden])?;
                let own = self.pack(&words, &vec![0.0; vocabulary], hidden);
                (Some(own), self.pack_head(&weight, &bias, hidden))
            }
            None => (None, self.pack_head(&words, &bias, hidden)),
        };
        let head = Head {
            transform: self.linear(&[&format!("{transform}.dense")], hidden, hidden)?,
            activation: config.hidden_act.into(),
            norm: self.norm(&format!("{transform}.LayerNorm"), hidden, config.layer_norm_eps)?,
            decoder,
        };
        Ok((own, head))
    }

    fn text_layer(&self, config: &TextConfig, image_width: usize, n: usize) -> Result<text::Layer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let prefix = format!("text_decoder.bert.encoder.layer.{n}");
        let named = |name: &str| format!("{prefix}.{name}");
        let output = |name: &str, from| -> Result<(PackedWeights, Norm)> {
            let dense = self.linear(&[&named(&format!("{name}.dense"))], from, hidden)?;
            let norm = named(&format!("{name}.LayerNorm"));
            Ok((dense, self.norm(&norm, hidden, config.layer_norm_eps)?))
        };
        let several = |names: &[&str], from| {
            let names: Vec<String> = names.iter().map(|name| named(name)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.linear(&names, from, hidden)
        };
        let own = ["attention.self.query", "attention.self.key", "attention.self.value"];
        let cross = ["crossattention.self.key", "crossattention.self.value"];
        Ok(text::Layer {
            qkv: several(&own, hidden)?,
            self_output: output("attention.output", hidden)?,
            query: several(&["crossattention.self.query"], hidden)?,
            key_value: several(&cross, image_width)?,
            cross_output: output("crossattention.output", hidden)?,
            intermediate: self.linear(&[&named("intermediate.dense")], hidden, inner)?,
            activation: config.hidden_act.into(),
            output: output("output", inner)?,
        })
    }

    /// Linear layers of the same input, one behind the other as one; `to` numbers of each.
    fn linear(&self, prefixes: &[&str], from: usize, to: usize) -> Result<PackedWeights> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            weight.extend(self.loader.values(&format!("{prefix}.weight"), &[to, from])?);
            bias.extend(self.loader.values(&format!("{prefix}.bias"), &[to])?);
        }
        Ok(self.pack(&weight, &bias, from))
    }

    fn pack(&self, weight: &[f32], bias: &[f32], depth: usize) -> PackedWeights {
        PackedWeights::new(self.isa, self.precision, weight, bias, depth)
    }

    /// The projection to the vocabulary. Beside 8 bits it is in bf16, where that is an instruction:
    /// the logits of two words are often closer than what its rounding changes.
    fn pack_head(&self, weight: &[f32], bias: &[f32], depth: usize) -> PackedWeights {
        let precision = match self.precision {
            Precision::Int8 if self.isa.tier().has_bf16() => Precision::Bf16,
            precision => precision,
        };
        PackedWeights::new(self.isa, precision, weight, bias, depth)
    }

    fn norm(&self, prefix: &str, width: usize, eps: f64) -> Result<Norm> {
        Ok(Norm {
            weight: self.loader.values(&format!("{prefix}.weight"), &[width])?,
            bias: self.loader.values(&format!("{prefix}.bias"), &[width])?,
            eps: eps as f32,
        })
    }
}
