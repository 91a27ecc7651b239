//! What a job asks of the model.

use std::sync::Arc;

use cutline_error::Result;
use cutline_generate::{GenerationParams, Task};

/// What is to be done with an image.
#[derive(Debug, Clone)]
pub enum Work {
    /// Write or rank texts that describe it.
    Decode(Task),
    /// Write answers to a question about it.
    Answer {
        /// The question as token ids, with the special tokens at both ends.
        question: Vec<u32>,
        /// How to decode.
        task: Task,
    },
    /// Compare it with texts, or embed it or texts. Such a job has no prompt and writes no tokens.
    Compare(Arc<Comparison>),
}

/// Texts, and what is to be found out about them and the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The texts as token ids, with the special tokens at both ends.
    pub texts: Vec<Vec<u32>>,
    /// Whether to say how well each text matches the image.
    pub matching: bool,
    /// Whether to embed the image, if there is one, and the texts.
    pub embedding: bool,
}

/// The result of a [`Comparison`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    /// The embedding of the image, of length 1.
    pub image: Option<Vec<f32>>,
    /// In the order of the texts.
    pub texts: Vec<ComparedText>,
}

/// What was found out about a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComparedText {
    /// The logits of not matching and of matching the image.
    pub logits: Option<[f32; 2]>,
    /// The embedding, of length 1.
    pub embedding: Option<Vec<f32>>,
}

impl From<Task> for Work {
    fn from(task: Task) -> Self {
        Self::Decode(task)
    }
}

impl From<GenerationParams> for Work {
    fn from(params: GenerationParams) -> Self {
        Self::Decode(params.into())
    }
}

impl Work {
    /// What the text decoder does, if it does anything.
    #[must_use]
    pub fn task(&self) -> Option<&Task> {
        match self {
            Self::Decode(task) | Self::Answer { task, .. } => Some(task),
            Self::Compare(_) => None,
        }
    }

    /// [`task`](Self::task), to be changed.
    pub fn task_mut(&mut self) -> Option<&mut Task> {
        match self {
            Self::Decode(task) | Self::Answer { task, .. } => Some(task),
            Self::Compare(_) => None,
        }
    }

    /// Rows that it occupies in the batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.task().map_or(1, Task::rows)
    }

    /// The most tokens that are written.
    #[must_use]
    pub fn max_new_tokens(&self) -> usize {
        self.task().map_or(0, Task::max_new_tokens)
    }

    /// [`Task::validate`].
    ///
    /// # Errors
    /// As [`Task::validate`].
    pub fn validate(&self) -> Result<()> {
        self.task().map_or(Ok(()), Task::validate)
    }
}
