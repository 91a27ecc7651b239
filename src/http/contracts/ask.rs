//! From images and an intent to captions, in the same way for every contract.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::INTENT;
use super::intent::Intent;
use super::structured::{Facts, Format, singular};
use crate::captioner::{
    Caption, CaptionParams, CaptionStream, Captioner, Photo, Priority, Tag, Tagger, tags,
};
use crate::http::generate::too_late;
use crate::http::observe::ImageReport;
use crate::http::state::AppState;
use crate::http::taggers;
use cutline_error::Result;

/// What a request asks for.
pub(super) struct Ask {
    pub(super) photos: Vec<Photo>,
    pub(super) params: CaptionParams,
    pub(super) intent: Intent,
    pub(super) format: Format,
}

/// The tokens of a request, for clients that count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of the images and the prompt.
    pub(super) prompt: usize,
    /// Of the images alone.
    pub(super) image: usize,
    /// Of all captions.
    pub(super) completion: usize,
}

/// The answer to an [`Ask`].
pub(super) struct Reply {
    /// What the client asked for: captions, alternative texts or tags, one line for each image, or JSON.
    pub(super) text: String,
    /// One for each image.
    pub(super) captions: Vec<Caption>,
    /// Those of the first image.
    pub(super) labels: Labels,
    pub(super) usage: Usage,
    pub(super) intent: Intent,
}

/// Words for what is in an image.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// The best first.
    pub(super) tags: Vec<Tag>,
    /// Whether they are of a vocabulary, and so are not changed.
    pub(super) allowed: bool,
}

impl Labels {
    fn of(caption: &Caption, tagger: Option<&Tagger>) -> Self {
        match tagger {
            Some(tagger) => Self { tags: tagger.tags_in(&caption.captions), allowed: true },
            None => Self { tags: tags(&caption.captions), allowed: false },
        }
    }

    /// The name of a tag as that of a class of things.
    pub(super) fn name(&self, tag: &Tag) -> String {
        if self.allowed { tag.name.clone() } else { singular(&tag.name) }
    }
}

/// Captions that are being computed.
pub(super) struct Asked {
    pub(super) runs: Vec<CaptionStream>,
    pub(super) intent: Intent,
    pub(super) format: Format,
    /// `TAG_VOCABULARY`, if the answer has tags.
    tagger: Option<Tagger>,
    usage: Usage,
    begin: Instant,
    pub(super) limit: Duration,
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Urgency {
    pub(super) priority: Priority,
    /// The time until the whole answer.
    pub(super) limit: Duration,
}

impl Urgency {
    /// Of a request with `images` images that says nothing about it.
    pub(super) fn usual(images: usize, state: &AppState) -> Self {
        let priority = if images == 1 { Priority::Interactive } else { Priority::Bulk };
        Self { priority, limit: state.settings().request_timeout }
    }
}

impl Ask {
    /// Checks the parameters, and reserves places in the queue for all images.
    ///
    /// # Errors
    /// Those of [`Captioner::start_all`].
    pub(super) async fn start(self, state: &AppState, captioner: &Captioner) -> Result<Asked> {
        let urgency = Urgency::usual(self.photos.len(), state);
        self.start_as(state, captioner, urgency).await
    }

    async fn start_as(
        self,
        state: &AppState,
        captioner: &Captioner,
        urgency: Urgency,
    ) -> Result<Asked> {
        let begin = Instant::now();
        let Urgency { priority, limit } = urgency;
        let Self { photos, params, intent, format } = self;
        // Tags come from several captions, the first of which is the caption.
        let tagged = if format.wants_tags() { Intent::Tags } else { intent };
        let params = tagged.apply(intent.apply(params));
        let tagger = match tagged {
            Intent::Tags => taggers::of_settings(state, captioner).await?,
            Intent::Caption | Intent::AltText { .. } => None,
        };
        let chosen = captioner.named(params.model.as_deref());
        let images = photos.len() * chosen.info().image_tokens;
        let prompt = images + chosen.prompt_tokens(&params)?;
        let usage = Usage { prompt, image: images, completion: 0 };
        let work = Box::pin(captioner.start_all(photos, params, priority));
        let deadline = begin + limit;
        let runs = timeout_at(deadline, work).await.map_err(|_| too_late(limit))??;
        Ok(Asked { runs, intent, format, tagger, usage, begin, limit })
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Those of [`start`](Self::start); also if an image is bad or the model fails.
    pub(super) async fn answer(self, state: &AppState, captioner: &Captioner) -> Result<Reply> {
        let urgency = Urgency::usual(self.photos.len(), state);
        self.answer_as(state, captioner, urgency).await
    }

    /// The same for a request that says how urgent it is.
    ///
    /// # Errors
    /// Those of [`answer`](Self::answer).
    pub(super) async fn answer_as(
        self,
        state: &AppState,
        captioner: &Captioner,
        urgency: Urgency,
    ) -> Result<Reply> {
        let mut asked = self.start_as(state, captioner, urgency).await?;
        let mut captions = Vec::with_capacity(asked.runs.len());
        for run in &mut asked.runs {
            let end = timeout_at(asked.begin + asked.limit, run.end()).await;
            captions.push(end.unwrap_or_else(|_| Err(too_late(asked.limit)))?);
        }
        asked.reply(captions)
    }
}

impl Asked {
    /// When the answer must be complete.
    pub(super) fn deadline(&self) -> Instant {
        self.begin + self.limit
    }

    /// The answer from all captions.
    ///
    /// # Errors
    /// [`Unsupported`](cutline_error::ErrorKind::Unsupported): the schema asks for something that the
    /// program does not know.
    pub(super) fn reply(&self, captions: Vec<Caption>) -> Result<Reply> {
        let texts = captions.iter().map(|caption| match &self.format {
            Format::Text => Ok(self.text(caption)),
            format => format.fill(&Facts {
                caption: caption.caption.clone(),
                labels: self.labels(caption),
                confidence: caption.captions.first().map_or(0.0, |best| best.confidence),
                labels_only: self.intent == Intent::Tags,
            }),
        });
        let text = texts.collect::<Result<Vec<String>>>()?.join("\n");
        let all = captions.iter().flat_map(|caption| &caption.captions);
        let usage = Usage { completion: all.map(|choice| choice.tokens).sum(), ..self.usage };
        let labels = captions.first().map(|caption| self.labels(caption)).unwrap_or_default();
        Ok(Reply { text, captions, labels, usage, intent: self.intent })
    }

    fn labels(&self, caption: &Caption) -> Labels {
        Labels::of(caption, self.tagger.as_ref())
    }

    /// What a client without a schema reads.
    fn text(&self, caption: &Caption) -> String {
        match self.intent {
            Intent::Tags => {
                let names = self.labels(caption).tags.into_iter().map(|tag| tag.name);
                names.collect::<Vec<_>>().join(", ")
            }
            Intent::Caption | Intent::AltText { .. } => caption.caption.clone(),
        }
    }
}

impl Reply {
    /// Why the text ends: `stop`, or `length` if a caption was cut off.
    pub(super) fn finish_reason(&self) -> &'static str {
        let mut best = self.captions.iter().filter_map(|caption| caption.captions.first());
        let cut = best.any(|choice| choice.finish_reason.as_str() == "length");
        if cut { "length" } else { "stop" }
    }

    /// For the log line.
    pub(super) fn report(&self) -> Option<ImageReport> {
        self.captions.first().map(ImageReport::of)
    }

    /// A response with this body, and with what the log and the client should know.
    pub(super) fn respond(&self, body: Value) -> Response {
        let mut response = Json(body).into_response();
        response.headers_mut().insert(INTENT, HeaderValue::from_static(self.intent.as_str()));
        if let Some(report) = self.report() {
            response.extensions_mut().insert(report);
        }
        response
    }
}
