//! Answers to questions about a photo.

use std::time::Instant;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    CacheState, Caption, CaptionParams, CaptionStream, Captioner, Choice, ImageInfo, Photo,
    QuestionParams,
};
use crate::metrics::milliseconds;
use cutline_error::{Error, Result};

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct QuestionAnswer {
    /// The question as it was sent.
    pub question: String,
    /// The best answer.
    pub answer: String,
    /// All requested answers, best first.
    pub answers: Vec<Choice>,
    /// Where the answer came from.
    pub cache: CacheState,
}

/// Answers to questions about a photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Answered {
    /// In the order of the questions.
    pub answers: Vec<QuestionAnswer>,
    /// The model's name.
    pub model: String,
    /// The photo.
    pub image: ImageInfo,
    /// The whole request, in milliseconds.
    pub total_ms: f64,
}

impl Captioner {
    /// Starts the answer to one question about a photo.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported), or as [`start`](Self::start).
    pub async fn start_answer(
        &self,
        photo: impl Into<Photo>,
        question: String,
        params: CaptionParams,
    ) -> Result<CaptionStream> {
        let params = CaptionParams { question: Some(question), ..params };
        self.start(photo, params).await
    }

    /// Answers questions about a photo. The first answer encodes the photo; the others are written
    /// together.
    ///
    /// # Errors
    /// As [`start_answer`](Self::start_answer). One question that cannot be answered fails all.
    pub async fn ask(&self, photo: Photo, asked: QuestionParams) -> Result<Answered> {
        let begin = Instant::now();
        let QuestionParams { questions, params } = asked;
        let mut copies = Vec::with_capacity(questions.len());
        for _ in 1..questions.len() {
            copies.push(photo.copy(self.budget())?);
        }
        let mut questions = questions.into_iter();
        let first = questions.next().ok_or_else(|| Error::internal("there is no question"))?;
        let caption = self.start_answer(photo, first.clone(), params.clone()).await?.end().await?;
        let mut answered = Answered {
            answers: Vec::new(),
            model: caption.model.clone(),
            image: caption.image.clone(),
            total_ms: 0.0,
        };
        answered.answers.push(answer(first, caption));
        let mut streams = Vec::new();
        for (question, photo) in questions.zip(copies) {
            let stream = self.start_answer(photo, question.clone(), params.clone()).await?;
            streams.push((question, stream));
        }
        for (question, mut stream) in streams {
            answered.answers.push(answer(question, stream.end().await?));
        }
        answered.total_ms = milliseconds(begin.elapsed());
        Ok(answered)
    }
}

fn answer(question: String, caption: Caption) -> QuestionAnswer {
    let Caption { caption, captions, cache, .. } = caption;
    QuestionAnswer { question, answer: caption, answers: captions, cache }
}
