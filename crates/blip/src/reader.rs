//! The interface to the text encoder of the models that have one.

use crate::ImageStates;
use cutline_error::{Error, Result};
use cutline_kernels::cross_kv::CrossKv;

/// The text encoder of a model: BERT whose tokens see each other in both directions, and the image.
///
/// Texts are token ids with the special tokens at both ends. What a text gives does not depend on the other
/// texts of a call, bit for bit.
pub trait TextReader {
    /// What the text encoder attends to in an image. It serves any number of texts.
    ///
    /// # Errors
    /// The image comes from another implementation.
    fn look(&mut self, image: &ImageStates) -> Result<ImageMemory>;

    /// For every text the two logits of not matching and of matching the image.
    ///
    /// # Errors
    /// The model cannot do this, or a text is empty, too long, or has tokens that are not in the
    /// vocabulary.
    fn match_texts(&mut self, image: &ImageMemory, texts: &[&[u32]]) -> Result<Vec<[f32; 2]>>;

    /// The embeddings of texts, of length 1. No image is seen.
    ///
    /// # Errors
    /// As [`match_texts`](Self::match_texts).
    fn embed_texts(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>>;

    /// The embedding of an image, of length 1.
    ///
    /// # Errors
    /// The model cannot do this, or the image comes from another implementation.
    fn embed_image(&mut self, image: &ImageStates) -> Result<Vec<f32>>;

    /// What the text decoder attends to when it answers a question about the image.
    ///
    /// # Errors
    /// As [`match_texts`](Self::match_texts).
    fn read_question(&mut self, image: &ImageMemory, question: &[u32]) -> Result<ImageStates>;
}

/// The keys and values of an image for the text encoder, by layer.
#[derive(Debug)]
pub struct ImageMemory(pub(crate) Vec<CrossKv>);

/// The class token of a text or an image, projected and scaled to length 1.
pub(crate) fn normalize(mut embedding: Vec<f32>) -> Vec<f32> {
    // As torch does it: a vector without a direction stays as it is.
    const LEAST: f32 = 1e-12;
    let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt().max(LEAST);
    embedding.iter_mut().for_each(|x| *x /= length);
    embedding
}

/// A part of the model that it does not have.
pub(crate) fn missing(part: &str) -> Error {
    Error::internal(format!("this model has no {part}"))
}
