//! The text encoder: BERT with post-norm, self-attention in both directions, and cross-attention to an
//! image if there is one. It reads whole texts, several at a time.
//!
//! Source: `BlipTextModel` in transformers' `modeling_blip_text.py`; the heads are those of
//! `BlipForImageTextRetrieval` in `modeling_blip.py`.

use super::image_attention::fill_cross_kv;
use super::text::{Pass, TextLayer, normalise};
use super::{CpuModel, CpuWeights, Norm, Workspace, product};
use crate::model::ImageStates;
use crate::reader::{ImageMemory, TextReader, missing, normalize};
use cutline_error::{Error, Result};
use cutline_kernels::attention::{Heads, SelfAttention};
use cutline_kernels::cross_kv::{self, CrossKv};
use cutline_kernels::gemm::{Epilogue, linear};
use cutline_kernels::packed_weights::PackedWeights;
use cutline_kernels::thread_pool::{ThreadPool, with_thread_pool};
use cutline_kernels::{Isa, Precision};

#[derive(Debug)]
pub(super) struct TextEncoder {
    pub(super) isa: Isa,
    pub(super) heads: Heads,
    /// The word embedding, `[vocabulary, hidden]`.
    pub(super) words: PackedWeights,
    /// `[positions, hidden]`.
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<TextLayer>,
}

/// What compares images with texts.
#[derive(Debug)]
pub(super) struct RetrievalHeads {
    /// From a class token of the vision tower to an embedding.
    pub(super) vision: PackedWeights,
    /// From the first state of a text to an embedding.
    pub(super) text: PackedWeights,
    /// From the first state of a text with an image to two logits.
    pub(super) matching: PackedWeights,
}

impl TextEncoder {
    fn look(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        image: &[f32],
    ) -> Vec<CrossKv> {
        let empty = self.layers.iter().map(|_| CrossKv::new(precision, self.heads));
        let mut tables: Vec<CrossKv> = empty.collect();
        fill_cross_kv(pool, work, self.isa, &self.layers, image, &mut tables);
        tables
    }

    /// Reads texts. The states of all their tokens, `[tokens, hidden]`, are left in the residual stream.
    fn read(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        attention: &mut SelfAttention,
        image: Option<&[CrossKv]>,
        texts: &[&[u32]],
    ) {
        let tokens = texts.iter().map(|text| text.len()).sum();
        let hidden = self.heads.width();
        let pass = Pass { isa: self.isa, tokens, per_row: 1, hidden };
        self.embed(work, texts, pass);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.attend_to_texts(pool, work, attention, texts, pass);
            if let Some(image) = image {
                layer.attend_to_image(pool, work, &image[index], pass);
            }
            layer.feed_forward(pool, work, pass);
        }
    }

    /// Word plus position, normalised, into the residual stream.
    fn embed(&self, work: &mut Workspace, texts: &[&[u32]], pass: Pass) {
        let hidden = pass.hidden;
        work.stream.resize(pass.tokens * hidden);
        work.context.resize(hidden);
        let sum = work.context.as_mut_slice();
        let tokens = texts.iter().flat_map(|text| text.iter().enumerate());
        for (out, (index, &token)) in
            work.stream.as_mut_slice().chunks_exact_mut(hidden).zip(tokens)
        {
            self.words.row(token as usize, sum);
            let position = &self.positions[index * hidden..][..hidden];
            sum.iter_mut().zip(position).for_each(|(x, position)| *x += position);
            self.norm.row(pass.isa, sum, out);
        }
    }
}

impl TextLayer {
    /// Self-attention of each text, in both directions.
    fn attend_to_texts(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        attention: &mut SelfAttention,
        texts: &[&[u32]],
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, .. } = work;
        let Pass { tokens, hidden, .. } = pass;
        let stream = &mut stream.as_mut_slice()[..tokens * hidden];
        wide.resize(tokens * 3 * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.qkv, wide.as_mut_slice(), Epilogue::STORE);
        let (mut qkv, mut out) = (wide.as_slice(), context.as_mut_slice());
        for text in texts {
            let (own_qkv, own_out);
            (own_qkv, qkv) = qkv.split_at(text.len() * 3 * hidden);
            (own_out, out) = out.split_at_mut(text.len() * hidden);
            attention.run(pool, own_qkv, text.len(), own_out);
        }
        let (weights, norm) = &self.self_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }

    /// Cross-attention of all tokens to one image.
    fn attend_to_image(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        image: &CrossKv,
        pass: Pass,
    ) {
        let Workspace { activations, stream, product: wide, context, scores, .. } = work;
        let Pass { isa, tokens, hidden, .. } = pass;
        let stream = &mut stream.as_mut_slice()[..tokens * hidden];
        wide.resize(tokens * hidden);
        context.resize(tokens * hidden);
        product(pool, activations, stream, &self.query, wide.as_mut_slice(), Epilogue::STORE);
        let batch = std::iter::once((image, 0, tokens));
        cross_kv::attend(pool, isa, batch, wide.as_slice(), scores, context.as_mut_slice());
        let (weights, norm) = &self.cross_output;
        product(pool, activations, context.as_slice(), weights, stream, Epilogue::ADD);
        normalise(norm, stream, context.as_mut_slice(), pass);
    }
}

impl CpuWeights {
    fn encoder(&self) -> Result<&TextEncoder> {
        self.encoder.as_ref().ok_or_else(|| missing("text encoder"))
    }

    fn heads(&self) -> Result<&RetrievalHeads> {
        self.retrieval.as_ref().ok_or_else(|| missing("heads for image and text"))
    }

    /// Reads checked texts; see [`TextEncoder::read`].
    fn read_texts(
        &self,
        work: &mut Workspace,
        image: Option<&ImageMemory>,
        texts: &[&[u32]],
    ) -> Result<()> {
        let encoder = self.encoder()?;
        let text = &self.description.config.text;
        for ids in texts {
            if ids.is_empty() || ids.len() > text.max_position_embeddings {
                return Err(Error::internal(format!(
                    "{} tokens are no text for {} positions",
                    ids.len(),
                    text.max_position_embeddings
                )));
            }
            text.check_tokens(ids)?;
        }
        let image = image.map(|memory| memory.0.as_slice());
        // Taken out, because the pass borrows the rest of the workspace.
        let attention = work.text_attention.take();
        let mut attention = attention
            .unwrap_or_else(|| SelfAttention::new(self.isa, self.precision, encoder.heads));
        with_thread_pool(|pool| encoder.read(pool, work, &mut attention, image, texts));
        work.text_attention = Some(attention);
        Ok(())
    }

    /// Applies `head` to the first state of every text that was read, `[texts, head]`.
    fn first_states(
        &self,
        work: &mut Workspace,
        texts: &[&[u32]],
        head: &PackedWeights,
    ) -> Vec<f32> {
        let hidden = head.depth();
        let first = texts.iter().scan(0, |next, text| {
            let first = *next;
            *next += text.len();
            Some(first)
        });
        let first: Vec<usize> = first.collect();
        let Workspace { activations, stream, .. } = work;
        let stream = stream.as_slice();
        let mut out = vec![0.0; texts.len() * head.width()];
        with_thread_pool(|pool| {
            activations.fill_with(pool, head, texts.len(), |row, values| {
                values.copy_from_slice(&stream[first[row] * hidden..][..hidden]);
            });
            linear(pool, activations, head, &mut out, Epilogue::STORE);
        });
        out
    }
}

impl TextReader for CpuModel {
    fn look(&mut self, image: &ImageStates) -> Result<ImageMemory> {
        let Self { weights, work } = self;
        let (encoder, states) = (weights.encoder()?, image.host()?);
        let look = |pool: &ThreadPool| encoder.look(pool, work, weights.precision, states);
        Ok(ImageMemory(with_thread_pool(look)))
    }

    fn match_texts(&mut self, image: &ImageMemory, texts: &[&[u32]]) -> Result<Vec<[f32; 2]>> {
        let Self { weights, work } = self;
        let head = &weights.heads()?.matching;
        weights.read_texts(work, Some(image), texts)?;
        let logits = weights.first_states(work, texts, head);
        Ok(logits.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
    }

    fn embed_texts(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let Self { weights, work } = self;
        let head = &weights.heads()?.text;
        weights.read_texts(work, None, texts)?;
        let projected = weights.first_states(work, texts, head);
        Ok(projected.chunks_exact(head.width()).map(|row| normalize(row.to_vec())).collect())
    }

    fn embed_image(&mut self, image: &ImageStates) -> Result<Vec<f32>> {
        let Self { weights, work } = self;
        let head = &weights.heads()?.vision;
        let class = image.class_token(head.depth())?;
        let mut projected = vec![0.0; head.width()];
        with_thread_pool(|pool| {
            product(pool, &mut work.activations, &class, head, &mut projected, Epilogue::STORE);
        });
        Ok(normalize(projected))
    }

    fn read_question(&mut self, image: &ImageMemory, question: &[u32]) -> Result<ImageStates> {
        let Self { weights, work } = self;
        weights.read_texts(work, Some(image), &[question])?;
        let numbers = question.len() * weights.description.config.text.hidden_size;
        Ok(ImageStates::Host(work.stream.as_slice()[..numbers].to_vec()))
    }
}
