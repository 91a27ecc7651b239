//! Asks one backend for a caption, or the cache for what it said before.

use std::ops::Range;
use std::sync::Arc;

use super::drive::{Job, Way};
use super::shared::Speaker;
use super::upstream::{Answered, Upstream};
use crate::captioner::{
    CachePolicy, CacheState, CaptionEvent, CaptionParams, Captioner, ForeignKey, RouteWriter,
    RoutedCaption, SendablePhoto,
};
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Attempt, Failure, Journey, Privacy, Usage};

/// Why an attempt failed, and the error that the client gets if no other attempt follows.
pub(super) type Failed = (Failure, Error);

/// An answer of one backend.
pub(super) struct Found {
    pub(super) routed: RoutedCaption,
    pub(super) usage: Usage,
}

/// What was found out about a photo.
#[derive(Default)]
pub(super) struct Known {
    hash: Option<blake3::Hash>,
    sendable: Option<SendablePhoto>,
}

impl Job {
    pub(super) async fn ask(
        &self,
        attempt: &Attempt,
        way: &mut Way,
        publish: Option<&RouteWriter>,
    ) -> Result<Found, Failed> {
        match &self.shared.speakers[attempt.backend] {
            Speaker::Main => self.ask_here(&self.main, publish).await,
            Speaker::Local(captioner) => self.ask_here(captioner, publish).await,
            Speaker::Upstream(upstream) => {
                self.ask_elsewhere(attempt, upstream, way, publish).await
            }
        }
    }

    async fn ask_here(
        &self,
        captioner: &Captioner,
        publish: Option<&RouteWriter>,
    ) -> Result<Found, Failed> {
        let failed = |error: Error| (failure(&error), error);
        let photo = self.photo.copy(captioner.budget()).map_err(failed)?;
        let kept = captioner.kept_parameters(&self.params);
        // Whoever keeps the caption wants the colours.
        let params = CaptionParams { colors: true, ..(*self.params).clone() };
        let started = Box::pin(captioner.start_here(vec![photo], params, self.priority)).await;
        let stream = started.map_err(failed)?.pop();
        let stream = stream.ok_or_else(|| failed(Error::internal("an image was lost")))?;
        // A better answer may follow, and only one is kept.
        let mut stream = stream.unkept();
        loop {
            match stream.next().await.map_err(failed)? {
                CaptionEvent::Text(text) => {
                    if let Some(writer) = publish {
                        writer.text(text);
                    }
                }
                CaptionEvent::Done(mut caption) => {
                    let tokens: usize = caption.captions.iter().map(|choice| choice.tokens).sum();
                    let cached = caption.cache != CacheState::Miss;
                    let usage = Usage { input: None, output: Some(tokens as u64), cached };
                    let colors = caption.colors.take();
                    let colors = colors.ok_or_else(|| failed(Error::internal("no colours")))?;
                    caption.colors = self.params.colors.then(|| colors.clone());
                    let routed = RoutedCaption { caption: *caption, colors, kept };
                    return Ok(Found { routed, usage });
                }
            }
        }
    }

    async fn ask_elsewhere(
        &self,
        attempt: &Attempt,
        upstream: &Upstream,
        way: &mut Way,
        publish: Option<&RouteWriter>,
    ) -> Result<Found, Failed> {
        let failed = |error: Error| (failure(&error), error);
        let key = self.key(way, upstream).await.map_err(failed)?;
        let photo = match way.known.sendable.take() {
            Some(photo) => photo,
            None => {
                let photo = self.photo.copy(self.main.budget()).map_err(failed)?;
                self.main.sendable(photo).await.map_err(failed)?
            }
        };
        let photo = way.known.sendable.insert(photo);
        let backend = &self.shared.config().backends[attempt.backend];
        let route = &self.shared.config().routes[self.route];
        let photo = &*photo;
        let sent_to = &mut way.sent_to;
        let on_sending = || {
            if backend.privacy != Privacy::Remote {
                return;
            }
            if !sent_to.contains(&backend.name) {
                sent_to.push(backend.name.clone());
            }
            tracing::info!(
                route = route.name,
                backend = backend.name,
                image_hash = photo.image.hash,
                bytes = photo.jpeg.len(),
                "a photo is sent to another machine, scaled down and without metadata"
            );
        };
        let on_text = |text: &str| {
            if let Some(writer) = publish {
                writer.text(text.to_owned());
            }
        };
        let asked = upstream.describe(photo, &self.params, on_sending, on_text).await;
        let Answered { foreign, usage } =
            asked.map_err(|failure| (failure, not_answered(&backend.name, failure)))?;
        let total = way.begin.elapsed();
        let mut routed = self.main.foreign_caption(foreign, photo, &self.params, key, total);
        routed.kept = self.main.kept_elsewhere(&upstream.asked(&self.params), &self.params);
        Ok(Found { routed, usage })
    }

    /// The first cached answer of a model elsewhere in `tiers`, with its backend and tier. Models of this
    /// process look into their own cache when they are asked.
    pub(super) async fn cached(
        &self,
        journey: &Journey,
        way: &mut Way,
        tiers: Range<usize>,
    ) -> Option<(usize, usize, RoutedCaption)> {
        if self.params.cache != CachePolicy::Use {
            return None;
        }
        let route = &self.shared.config().routes[self.route];
        let tiers = route.tiers.iter().enumerate().take(tiers.end).skip(tiers.start);
        for (tier, members) in tiers {
            for member in members.iter().filter(|member| journey.may_ask(member.backend)) {
                let Speaker::Upstream(upstream) = &self.shared.speakers[member.backend] else {
                    continue;
                };
                // What is wrong with the photo, those who are asked for an answer say better.
                let Some(key) = self.key(way, upstream).await.ok()? else { continue };
                let waited = way.begin.elapsed();
                if let Some(mut found) = self.main.foreign_cached(&key, &self.params, waited) {
                    let asked = upstream.asked(&self.params);
                    found.kept = self.main.kept_elsewhere(&asked, &self.params);
                    return Some((member.backend, tier, found));
                }
            }
        }
        None
    }

    /// What the answer of a backend is cached by; `None` if it is not, as with sampling without a seed.
    async fn key(&self, way: &mut Way, upstream: &Upstream) -> Result<Option<ForeignKey>> {
        let params = &*self.params;
        if params.cache == CachePolicy::Bypass || params.do_sample && params.seed.is_none() {
            return Ok(None);
        }
        let hash = match way.known.hash {
            Some(hash) => hash,
            None => {
                let photo = Arc::clone(&self.photo);
                let hashing = tokio::task::spawn_blocking(move || photo.hash());
                let ended = |join| Error::internal("the hashing ended early").with_source(join);
                *way.known.hash.insert(hashing.await.map_err(ended)?)
            }
        };
        Ok(Some(self.main.foreign_key(&hash, &upstream.asked(params), params)))
    }
}

/// What an error of a model in this process means for the route.
fn failure(error: &Error) -> Failure {
    match error.kind() {
        ErrorKind::QueueFull => Failure::QueueFull,
        ErrorKind::InferenceTimeout => Failure::Timeout,
        ErrorKind::Model
        | ErrorKind::NotReady
        | ErrorKind::OutOfMemory
        | ErrorKind::DeviceLost
        | ErrorKind::Internal => Failure::Model,
        _ => Failure::Request,
    }
}

fn not_answered(backend: &str, failure: Failure) -> Error {
    match failure {
        Failure::Status(status, _) => Error::new(
            ErrorKind::Unsupported,
            format!(
                "the backend '{backend}' refused the photo with the status {status}; send another \
                 one, or ask for another model"
            ),
        ),
        failure => Error::new(
            ErrorKind::NotReady,
            format!("the backend '{backend}' stopped answering ({}); try again", failure.as_str()),
        ),
    }
}
