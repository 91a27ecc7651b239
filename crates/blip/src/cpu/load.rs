//! Reads a checkpoint and packs its weights.

mod blip2;

use super::encoder::{RetrievalHeads, TextEncoder};
use super::text::{LmHead, TextDecoder, TextLayer};
use super::vision::{VisionLayer, VisionTower};
use super::{CpuWeights, Norm, heads};
use crate::config::{BlipConfig, TextConfig, VisionConfig};
use crate::loader::Loader;
use crate::weights::Weights;
use crate::{Family, ModelDescription};
use candle_core::{DType, Device};
use cutline_error::{Error, ErrorKind, Result};
use cutline_kernels::attention::MAX_HEAD_SIZE;
use cutline_kernels::cross_states::FoldedKeys;
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::{Isa, Precision, Tier};

/// A checkpoint, and the form that its weights are packed into.
struct Packer<'a> {
    loader: Loader<'a>,
    isa: Isa,
    precision: Precision,
}

impl CpuWeights {
    /// Reads and packs all weights; quantised ones are dequantised, layer by layer.
    ///
    /// # Errors
    /// [`ErrorKind::Model`]: a tensor is missing or has another
    /// shape than the configuration asks for, or the vision tower's heads are too wide for the
    /// kernels.
    pub fn load(
        config: &BlipConfig,
        weights: &Weights,
        tier: Tier,
        precision: Precision,
    ) -> Result<Self> {
        let isa = tier.isa().ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("the kernels {tier} do not run on this CPU"))
        })?;
        check_head_size("vision_config", config.vision.head_dim())?;
        if config.family.reads() {
            check_head_size("text_config", config.text.head_dim())?;
        }
        let loader = Loader::new(weights, DType::F32, &Device::Cpu);
        let packer = Packer { loader, isa, precision };
        let vision = packer.vision(&config.vision)?;
        let (family, image_width) = (config.family, config.vision.hidden_size);
        let decoder = || packer.decoder(&config.text, config.tie_word_embeddings, image_width);
        let decoder = family.writes().then(decoder).transpose()?;
        let encoder =
            family.reads().then(|| packer.encoder(&config.text, image_width)).transpose()?;
        let retrieval =
            (family == Family::Retrieval).then(|| packer.retrieval(config)).transpose()?;
        let blip2 = |query| packer.blip2(config, query);
        let blip2 = config.query.as_ref().map(blip2).transpose()?;
        let description = ModelDescription {
            config: config.clone(),
            parameters: packer.loader.parameters(),
            precision: match precision {
                Precision::F32 => "f32",
                Precision::Bf16 => "bf16",
                Precision::Int8 => "int8",
            },
            kernels: tier.as_str().to_owned(),
            device: Device::Cpu,
        };
        Ok(Self { description, isa, precision, vision, decoder, encoder, retrieval, blip2 })
    }
}

/// The kernels keep a head's row of attention among many tokens in a buffer of fixed size.
fn check_head_size(section: &str, size: usize) -> Result<()> {
    if size <= MAX_HEAD_SIZE {
        return Ok(());
    }
    Err(Error::model(format!(
        "config.json, {section}: attention heads are {size} wide, but the CPU kernels support at \
         most {MAX_HEAD_SIZE}; set CPU_KERNELS=candle"
    )))
}

impl Packer<'_> {
    fn vision(&self, config: &VisionConfig) -> Result<VisionTower> {
        let (hidden, side) = (config.hidden_size, config.patch_size);
        let prefix = "vision_model.embeddings";
        let values = |name: &str, shape: &[usize]| self.loader.values(name, shape);
        let kernel = values(&format!("{prefix}.patch_embedding.weight"), &[hidden, 3, side, side])?;
        let bias = values(&format!("{prefix}.patch_embedding.bias"), &[hidden])?;
        let rows = 1 + config.grid() * config.grid();
        Ok(VisionTower {
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

    fn vision_layer(&self, config: &VisionConfig, prefix: &str) -> Result<VisionLayer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| self.norm(&format!("{prefix}.{name}"), hidden, config.layer_norm_eps);
        let linear = |name, from, to| self.linear(&[&format!("{prefix}.{name}")], from, to);
        Ok(VisionLayer {
            layer_norm1: norm("layer_norm1")?,
            qkv: self.vision_qkv(&format!("{prefix}.self_attn"), hidden)?,
            projection: linear("self_attn.projection", hidden, hidden)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", hidden, inner)?,
            activation: config.hidden_act.into(),
            fc2: linear("mlp.fc2", inner, hidden)?,
        })
    }

    /// Queries, keys and values. Some files of BLIP-2 have biases of queries and values only.
    fn vision_qkv(&self, prefix: &str, hidden: usize) -> Result<PackedWeights> {
        let joined = format!("{prefix}.qkv");
        let [q, v] = ["q", "v"].map(|part| format!("{prefix}.{part}_bias"));
        if self.loader.contains(&format!("{joined}.bias")) || !self.loader.contains(&q) {
            return self.linear(&[&joined], hidden, 3 * hidden);
        }
        let weight = self.loader.values(&format!("{joined}.weight"), &[3 * hidden, hidden])?;
        let [q, v] = [self.loader.values(&q, &[hidden])?, self.loader.values(&v, &[hidden])?];
        Ok(self.pack(&weight, &[q, vec![0.0; hidden], v].concat(), hidden))
    }

    fn decoder(&self, config: &TextConfig, tied: bool, image_width: usize) -> Result<TextDecoder> {
        let (words, head) = self.words_and_head(config, tied)?;
        let (positions, norm) = self.positions("text_decoder.bert", config)?;
        Ok(TextDecoder {
            isa: self.isa,
            heads: heads(config.num_attention_heads, config.hidden_size),
            words,
            positions,
            norm,
            layers: self.text_layers("text_decoder.bert", config, image_width)?,
            folded_keys: (0..config.num_hidden_layers)
                .map(|n| self.folded_keys(config, image_width, n))
                .collect::<Result<_>>()?,
            head,
        })
    }

    fn encoder(&self, config: &TextConfig, image_width: usize) -> Result<TextEncoder> {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let words = "text_encoder.embeddings.word_embeddings.weight";
        let words = self.loader.values(words, &[vocabulary, hidden])?;
        let (positions, norm) = self.positions("text_encoder", config)?;
        Ok(TextEncoder {
            isa: self.isa,
            heads: heads(config.num_attention_heads, hidden),
            words: self.pack(&words, &vec![0.0; vocabulary], hidden),
            positions,
            norm,
            layers: self.text_layers("text_encoder", config, image_width)?,
        })
    }

    /// They are small, and what they give is compared, so they are in f32 in every precision.
    fn retrieval(&self, config: &BlipConfig) -> Result<RetrievalHeads> {
        let head = |name: &str, from: usize, to: usize| {
            let weight = self.loader.values(&format!("{name}.weight"), &[to, from])?;
            let bias = self.loader.values(&format!("{name}.bias"), &[to])?;
            Ok(PackedWeights::new(self.isa, Precision::F32, &weight, &bias, from))
        };
        let (text, size) = (config.text.hidden_size, config.image_text_hidden_size);
        Ok(RetrievalHeads {
            vision: head("vision_proj", config.vision.hidden_size, size)?,
            text: head("text_proj", text, size)?,
            matching: head("itm_head", text, 2)?,
        })
    }

    /// The position embedding of a text model, and the norm after it.
    fn positions(&self, prefix: &str, config: &TextConfig) -> Result<(Vec<f32>, Norm)> {
        let shape = [config.max_position_embeddings, config.hidden_size];
        let prefix = format!("{prefix}.embeddings");
        let table = self.loader.values(&format!("{prefix}.position_embeddings.weight"), &shape)?;
        let norm = format!("{prefix}.LayerNorm");
        Ok((table, self.norm(&norm, config.hidden_size, config.layer_norm_eps)?))
    }

    fn text_layers(
        &self,
        prefix: &str,
        config: &TextConfig,
        image_width: usize,
    ) -> Result<Vec<TextLayer>> {
        let layer =
            |n| self.text_layer(config, image_width, &format!("{prefix}.encoder.layer.{n}"));
        (0..config.num_hidden_layers).map(layer).collect()
    }

    /// The word embedding, unless it is the head's matrix, and the head.
    fn words_and_head(
        &self,
        config: &TextConfig,
        tied: bool,
    ) -> Result<(Option<PackedWeights>, LmHead)> {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let names = self.loader.words_and_head(config, tied)?;
        let words = names.words.flatten_all().and_then(|words| words.to_vec1());
        let words: Vec<f32> = words.map_err(crate::arithmetic)?;
        let bias = self.loader.values(&self.loader.head_bias(names.head_name), &[vocabulary])?;
        let transform = "text_decoder.cls.predictions.transform";
        let (words, decoder) = match names.head_name {
            Some(name) => {
                let weight = self.loader.values(name, &[vocabulary, hidden])?;
                let words = self.pack(&words, &vec![0.0; vocabulary], hidden);
                (Some(words), self.pack_head(&weight, &bias, hidden))
            }
            None => (None, self.pack_head(&words, &bias, hidden)),
        };
        let head = LmHead {
            transform: self.linear(&[&format!("{transform}.dense")], hidden, hidden)?,
            activation: config.hidden_act.into(),
            norm: self.norm(&format!("{transform}.LayerNorm"), hidden, config.layer_norm_eps)?,
            decoder,
        };
        Ok((words, head))
    }

    fn text_layer(
        &self,
        config: &TextConfig,
        image_width: usize,
        prefix: &str,
    ) -> Result<TextLayer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let named = |name: &str| format!("{prefix}.{name}");
        let output = |name: &str, from| -> Result<(PackedWeights, Norm)> {
            let dense = self.linear(&[&named(&format!("{name}.dense"))], from, hidden)?;
            let norm = named(&format!("{name}.LayerNorm"));
            Ok((dense, self.norm(&norm, hidden, config.layer_norm_eps)?))
        };
        let attention = |names: &[&str], from| {
            let names: Vec<String> = names.iter().map(|name| named(name)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.linear(&names, from, hidden)
        };
        let qkv = ["attention.self.query", "attention.self.key", "attention.self.value"];
        let kv = ["crossattention.self.key", "crossattention.self.value"];
        Ok(TextLayer {
            qkv: attention(&qkv, hidden)?,
            self_output: output("attention.output", hidden)?,
            query: attention(&["crossattention.self.query"], hidden)?,
            cross_kv: attention(&kv, image_width)?,
            cross_output: output("crossattention.output", hidden)?,
            intermediate: self.linear(&[&named("intermediate.dense")], hidden, inner)?,
            activation: config.hidden_act.into(),
            output: output("output", inner)?,
        })
    }

    /// The keys of a layer's cross-attention, which [`text_layer`](Self::text_layer) has read
    /// already.
    fn folded_keys(&self, config: &TextConfig, image_width: usize, n: usize) -> Result<FoldedKeys> {
        let name = format!("text_decoder.bert.encoder.layer.{n}.crossattention.self.key.weight");
        let weight = self.loader.values_again(&name, &[config.hidden_size, image_width])?;
        let heads = heads(config.num_attention_heads, config.hidden_size);
        Ok(FoldedKeys::new(self.isa, self.precision, heads, &weight))
    }

    /// Joins linear layers with the same input into one; each has `to` outputs.
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

    /// The projection to the vocabulary. In an 8-bit model it is in bf16: the logits of two words are
    /// often closer than the error of 8 bits.
    fn pack_head(&self, weight: &[f32], bias: &[f32], depth: usize) -> PackedWeights {
        let precision = match self.precision {
            Precision::Int8 => Precision::Bf16,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_too_wide_for_the_kernels_are_refused_before_weights_are_read() {
        let load = |heads: usize| {
            let json = format!(
                r#"{{"model_type": "blip", "architectures": ["BlipForConditionalGeneration"],
                    "vision_config": {{"hidden_size": 1024, "num_attention_heads": {heads}}}}}"#
            );
            let config = BlipConfig::from_json(json.as_bytes()).unwrap();
            let empty = Weights::from_files(&[]).unwrap();
            CpuWeights::load(&config, &empty, Tier::Portable, Precision::F32).unwrap_err()
        };
        let error = load(2);
        assert_eq!(error.kind(), cutline_error::ErrorKind::Model);
        for part in ["vision_config", "512", "256", "CPU_KERNELS=candle"] {
            assert!(error.detail().contains(part), "{part}: {error}");
        }
        // Heads of 256 are accepted; then the missing weights are reported.
        assert!(load(4).detail().contains("there is no tensor"));
    }
}
