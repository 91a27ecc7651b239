//! Reads and packs what BLIP-2 has beside the vision tower.

use super::super::opt::{OptDecoder, OptLayer};
use super::super::queries::{ImageLayer, QueryLayer, QueryTransformer};
use super::super::{Blip2, Norm, heads};
use super::{Packer, check_head_size};
use crate::config::{BlipConfig, POSITION_OFFSET, QueryConfig, TextConfig};
use cutline_error::Result;
use cutline_kernels::Precision;
use cutline_kernels::packed_weights::PackedWeights;

const DECODER: &str = "language_model.model.decoder";
const HEAD: &str = "language_model.lm_head.weight";

impl Packer<'_> {
    pub(super) fn blip2(&self, config: &BlipConfig, query: &QueryConfig) -> Result<Blip2> {
        check_head_size("qformer_config", query.head_dim())?;
        Ok(Blip2 {
            queries: self.queries(query, config.vision.hidden_size, config.text.hidden_size)?,
            decoder: self.opt(&config.text, query.positions)?,
        })
    }

    fn queries(&self, config: &QueryConfig, image: usize, text: usize) -> Result<QueryTransformer> {
        let hidden = config.hidden_size;
        let tokens = self.loader.values("query_tokens", &[1, config.tokens, hidden])?;
        let norm = self.norm("qformer.layernorm", hidden, config.layer_norm_eps)?;
        let mut queries = vec![0.0; tokens.len()];
        for (row, out) in tokens.chunks_exact(hidden).zip(queries.chunks_exact_mut(hidden)) {
            norm.row(self.isa, row, out);
        }
        // Small, and everything that the language model sees goes through it, so it is in f32.
        let name = "language_projection";
        let weight = self.loader.values(&format!("{name}.weight"), &[text, hidden])?;
        let bias = self.loader.values(&format!("{name}.bias"), &[text])?;
        Ok(QueryTransformer {
            isa: self.isa,
            heads: heads(config.num_attention_heads, hidden),
            queries,
            layers: (0..config.num_hidden_layers)
                .map(|n| self.query_layer(config, image, n))
                .collect::<Result<_>>()?,
            projection: PackedWeights::new(self.isa, Precision::F32, &weight, &bias, hidden),
        })
    }

    fn query_layer(&self, config: &QueryConfig, image: usize, n: usize) -> Result<QueryLayer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let named = |name: &str| format!("qformer.encoder.layer.{n}.{name}");
        let output = |name: &str, from| -> Result<(PackedWeights, Norm)> {
            let dense = self.linear(&[&named(&format!("{name}.dense"))], from, hidden)?;
            let norm = named(&format!("{name}.LayerNorm"));
            Ok((dense, self.norm(&norm, hidden, config.layer_norm_eps)?))
        };
        let attention = |kind: &str, names: &[&str], from| {
            let names = names.iter().map(|name| named(&format!("{kind}.attention.{name}")));
            let names: Vec<String> = names.collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.linear(&names, from, hidden)
        };
        let cross = || {
            Ok(ImageLayer {
                query: attention("crossattention", &["query"], hidden)?,
                kv: attention("crossattention", &["key", "value"], image)?,
                output: output("crossattention.output", hidden)?,
            })
        };
        let sees = n.is_multiple_of(config.cross_attention_frequency);
        Ok(QueryLayer {
            qkv: attention("attention", &["query", "key", "value"], hidden)?,
            self_output: output("attention.output", hidden)?,
            cross: sees.then(cross).transpose()?,
            intermediate: self.linear(&[&named("intermediate_query.dense")], hidden, inner)?,
            activation: config.hidden_act.into(),
            output: output("output_query", inner)?,
        })
    }

    fn opt(&self, config: &TextConfig, positions: usize) -> Result<OptDecoder> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let table = [positions + POSITION_OFFSET, hidden];
        let mut positions =
            self.loader.values(&format!("{DECODER}.embed_positions.weight"), &table)?;
        positions.drain(..POSITION_OFFSET * hidden);
        let (words, head) = self.words_and_opt_head(config)?;
        Ok(OptDecoder {
            isa: self.isa,
            heads: heads(config.num_attention_heads, hidden),
            words,
            positions,
            layers: (0..config.num_hidden_layers)
                .map(|n| self.opt_layer(config, &format!("{DECODER}.layers.{n}")))
                .collect::<Result<_>>()?,
            norm: self.norm(&format!("{DECODER}.final_layer_norm"), hidden, eps)?,
            head,
        })
    }

    /// As in transformers, a head that is in the file and differs from the word embedding is used, whatever
    /// the configuration says; otherwise the head is the word embedding.
    fn words_and_opt_head(
        &self,
        config: &TextConfig,
    ) -> Result<(Option<PackedWeights>, PackedWeights)> {
        let (hidden, zeros) = (config.hidden_size, vec![0.0; config.vocab_size]);
        let shape = [config.vocab_size, hidden];
        let words = self.loader.values(&format!("{DECODER}.embed_tokens.weight"), &shape)?;
        if self.loader.contains(HEAD) && self.loader.values_again(HEAD, &shape)? != words {
            let words = self.pack(&words, &zeros, hidden);
            let head = self.loader.values(HEAD, &shape)?;
            return Ok((Some(words), self.pack_head(&head, &zeros, hidden)));
        }
        Ok((None, self.pack_head(&words, &zeros, hidden)))
    }

    fn opt_layer(&self, config: &TextConfig, prefix: &str) -> Result<OptLayer> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| self.norm(&format!("{prefix}.{name}"), hidden, config.layer_norm_eps);
        let linear = |name, from, to| self.linear(&[&format!("{prefix}.{name}")], from, to);
        let qkv = ["q", "k", "v"].map(|part| format!("{prefix}.self_attn.{part}_proj"));
        Ok(OptLayer {
            attention_norm: norm("self_attn_layer_norm")?,
            qkv: self.linear(&qkv.each_ref().map(String::as_str), hidden, hidden)?,
            output: linear("self_attn.out_proj", hidden, hidden)?,
            norm: norm("final_layer_norm")?,
            fc1: linear("fc1", hidden, inner)?,
            activation: config.hidden_act.into(),
            fc2: linear("fc2", inner, hidden)?,
        })
    }
}
