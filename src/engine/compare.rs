//! The part of the engine that reads texts: comparisons, which take some texts in every step, and questions.

use std::sync::{Arc, Weak};

use super::local::LocalEngine;
use super::{Compared, ComparedText, Comparison, EncodedImage, Event, JobId};
use cutline_blip::{ImageMemory, ImageStates, TextReader};
use cutline_error::{Error, Result};

/// A comparison that is being worked on.
#[derive(Debug)]
pub(super) struct ActiveComparison {
    pub(super) id: JobId,
    image: Option<Arc<EncodedImage>>,
    /// What the texts are matched with, once it is known.
    memory: Option<Arc<ImageMemory>>,
    comparison: Arc<Comparison>,
    done: Compared,
}

/// What the text encoder attends to in an image. The last one is kept, for the next question about the
/// image or comparison with it.
#[derive(Debug)]
pub(super) struct SeenImage {
    image: Weak<EncodedImage>,
    memory: Arc<ImageMemory>,
}

impl LocalEngine {
    pub(super) fn start_comparison(
        &mut self,
        id: JobId,
        image: Option<Arc<EncodedImage>>,
        comparison: Arc<Comparison>,
    ) -> Result<()> {
        reader(&mut *self.model)?;
        if comparison.matching && image.is_none() {
            return Err(Error::internal("there is no image that texts could match"));
        }
        let done = Compared::default();
        let memory = None;
        self.comparisons.push(ActiveComparison { id, image, memory, comparison, done });
        Ok(())
    }

    /// Takes the next texts of every comparison.
    pub(super) fn step_comparisons(&mut self, events: &mut Vec<Event>) {
        for mut active in std::mem::take(&mut self.comparisons) {
            let job = active.id;
            match self.compare_some(&mut active) {
                Ok(()) if active.done.texts.len() == active.comparison.texts.len() => {
                    events.push(Event::Compared { job, compared: active.done });
                }
                Ok(()) => self.comparisons.push(active),
                Err(error) => events.push(Event::Failed { job, error }),
            }
        }
    }

    fn compare_some(&mut self, active: &mut ActiveComparison) -> Result<()> {
        let ActiveComparison { image, memory, comparison, done, .. } = active;
        let texts = some_texts(&comparison.texts[done.texts.len()..], self.info.max_positions);
        let mut results = vec![ComparedText::default(); texts.len()];
        if comparison.matching
            && !texts.is_empty()
            && let Some(image) = image
        {
            let memory = match memory {
                Some(memory) => Arc::clone(memory),
                None => Arc::clone(memory.insert(self.look(image)?)),
            };
            let logits = reader(&mut *self.model)?.match_texts(&memory, &texts)?;
            results.iter_mut().zip(logits).for_each(|(text, logits)| text.logits = Some(logits));
        }
        if comparison.embedding {
            let reader = reader(&mut *self.model)?;
            if let Some(image) = image
                && done.image.is_none()
            {
                done.image = Some(reader.embed_image(states(image)?)?);
            }
            if !texts.is_empty() {
                let embeddings = reader.embed_texts(&texts)?;
                let both = results.iter_mut().zip(embeddings);
                both.for_each(|(text, embedding)| text.embedding = Some(embedding));
            }
        }
        check_finite(done.image.as_ref(), &results)?;
        done.texts.extend(results);
        Ok(())
    }

    /// What the text decoder attends to when it answers a question about an image.
    pub(super) fn read_question(
        &mut self,
        image: &Arc<EncodedImage>,
        question: &[u32],
    ) -> Result<ImageStates> {
        let memory = self.look(image)?;
        reader(&mut *self.model)?.read_question(&memory, question)
    }

    /// What the text encoder attends to in this image, which is now the one that was seen last.
    fn look(&mut self, image: &Arc<EncodedImage>) -> Result<Arc<ImageMemory>> {
        // The weak reference keeps the address, so that no other image can have it.
        if let Some(seen) = &self.seen
            && std::ptr::eq(seen.image.as_ptr(), Arc::as_ptr(image))
        {
            return Ok(Arc::clone(&seen.memory));
        }
        // Its memory is returned before there is another.
        self.seen = None;
        let memory = Arc::new(reader(&mut *self.model)?.look(states(image)?)?);
        let seen = SeenImage { image: Arc::downgrade(image), memory: Arc::clone(&memory) };
        self.seen = Some(seen);
        Ok(memory)
    }
}

fn reader(model: &mut dyn cutline_blip::Model) -> Result<&mut dyn TextReader> {
    model.reader().ok_or_else(|| Error::internal("this model has no text encoder"))
}

pub(super) fn states(image: &EncodedImage) -> Result<&ImageStates> {
    image
        .content::<ImageStates>()
        .ok_or_else(|| Error::internal("the image was encoded by another kind of engine"))
}

/// The first texts, at least one, and not many more tokens than one text may have: for them, the engine has
/// memory.
fn some_texts(texts: &[Vec<u32>], most: usize) -> Vec<&[u32]> {
    let mut left = most;
    let fit = texts.iter().enumerate().take_while(|(n, text)| {
        let fits = *n == 0 || text.len() <= left;
        left = left.saturating_sub(text.len());
        fits
    });
    fit.map(|(_, text)| text.as_slice()).collect()
}

fn check_finite(image: Option<&Vec<f32>>, texts: &[ComparedText]) -> Result<()> {
    let of_text = |text: &ComparedText| {
        let embedding = text.embedding.iter().flatten();
        text.logits.iter().flatten().chain(embedding).all(|number| number.is_finite())
    };
    if image.into_iter().flatten().all(|number| number.is_finite()) && texts.iter().all(of_text) {
        return Ok(());
    }
    Err(Error::internal("the model's numbers for an image and texts are not finite"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_at_least_one_text_and_few_tokens() {
        let texts = [3, 5, 2, 9].map(|length| vec![7; length]);
        let taken = |most| some_texts(&texts, most).len();
        assert_eq!([1, 3, 8, 10, 18, 19].map(taken), [1, 1, 2, 3, 3, 4]);
        assert!(some_texts(&[], 8).is_empty());
    }
}
