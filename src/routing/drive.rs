//! Takes one photo along a route until there is an answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::shared::{Shared, Speaker};
use super::upstream::{Answered, Upstream};
use crate::captioner::{
    Caption, CaptionEvent, CaptionParams, Captioner, Photo, Priority, RouteWriter, Routing,
    SendablePhoto, Style,
};
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Attempt, End, Failure, Journey, Needs, Outcome, Privacy, Step, Usage};

/// One photo, and how it is to be captioned.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) main: Captioner,
    pub(super) route: usize,
    pub(super) photo: Photo,
    pub(super) params: Arc<CaptionParams>,
    pub(super) priority: Priority,
}

/// A failed attempt, and what its client is told if nothing follows.
type Failed = (Failure, Error);

/// An answer of one backend.
struct Found {
    caption: Caption,
    usage: Usage,
}

/// What has happened so far.
struct Way {
    begin: Instant,
    sendable: Option<SendablePhoto>,
    /// Backends on other machines that got the photo.
    sent_to: Vec<String>,
    /// Why the first backend did not answer.
    reason: Option<&'static str>,
    /// The backend that failed last, and why.
    failed: Option<(usize, Failed)>,
    /// An answer that might have been better.
    unsure: Option<Box<Caption>>,
}

/// An attempt under way. If it is dropped before its report, the client has left.
struct UnderWay<'a> {
    shared: &'a Shared,
    attempt: Option<Attempt>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.shared.cancel(&attempt);
        }
    }
}

impl Job {
    pub(super) async fn run(self, writer: RouteWriter) {
        let end = Box::pin(self.drive(&writer)).await;
        writer.finish(end);
    }

    async fn drive(&self, writer: &RouteWriter) -> Result<Caption> {
        let needs = Needs {
            alt_text: self.params.style == Style::AltText,
            stream: false,
            details: self.params.num_captions > 1 || self.params.top_logprobs > 0,
        };
        let mut journey = self.shared.begin(self.route, needs);
        let mut way = Way {
            begin: Instant::now(),
            sendable: None,
            sent_to: Vec::new(),
            reason: None,
            failed: None,
            unsure: None,
        };
        loop {
            let attempt = match self.shared.next(&mut journey) {
                Step::Try(attempt) => attempt,
                Step::Wait(until) => {
                    tokio::select! {
                        () = self.shared.ended.notified() => {}
                        () = sleep_until(self.shared.at(until)) => {}
                    }
                    continue;
                }
                Step::GiveUp(end) => return self.give_up(way, end),
            };
            let found = self.attempt(&mut journey, &attempt, &mut way, writer).await;
            match found {
                Ok(Some(caption)) => return Ok(caption),
                Ok(None) => {}
                // The caller has seen a part of this answer.
                Err(error) if !writer.take_back() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// One attempt with all that follows from it; `None` if a better answer is looked for.
    async fn attempt(
        &self,
        journey: &mut Journey,
        attempt: &Attempt,
        way: &mut Way,
        writer: &RouteWriter,
    ) -> Result<Option<Caption>> {
        let shared = &*self.shared;
        let backend = &shared.config().backends[attempt.backend];
        let route = &shared.config().routes[self.route];
        if let Some((from, (failure, _))) = &way.failed
            && *from != attempt.backend
        {
            let from = &shared.config().backends[*from].name;
            shared.metrics.failover(&route.name, from, &backend.name, failure.as_str());
        }
        let mut under_way = UnderWay { shared, attempt: Some(attempt.clone()) };
        let begin = Instant::now();
        writer.asks(&backend.name, attempt.number);
        let publish = route.escalate_below.is_none().then_some(writer);
        let work = Box::pin(self.ask(attempt, way, publish));
        let found = timeout_at(shared.at(attempt.deadline), work).await;
        let found = found.unwrap_or_else(|_| Err((Failure::Timeout, late(&backend.name))));
        under_way.attempt = None;
        let outcome = match &found {
            Ok(Found { usage, .. }) => Outcome::Answered { usage: *usage },
            Err((failure, _)) => Outcome::Failed(*failure),
        };
        let reported = shared.report(journey, attempt, outcome);
        let word = match &found {
            Ok(_) => "ok",
            Err((failure, _)) => failure.as_str(),
        };
        shared.metrics.attempt(&backend.name, word, begin.elapsed());
        let Found { mut caption, .. } = match found {
            Ok(found) => found,
            Err((failure, error)) => {
                tracing::debug!(
                    backend = backend.name,
                    route = route.name,
                    reason = failure.as_str(),
                    "a backend did not answer"
                );
                way.reason = way.reason.or(Some(failure.as_str()));
                way.failed = Some((attempt.backend, (failure, error.clone())));
                return Err(error);
            }
        };
        if let Some(cost) = reported.cost {
            shared.metrics.cost(&backend.name, cost);
        }
        let confidence = confidence(&caption);
        let routing = Routing {
            route: route.name.clone(),
            backend: backend.name.clone(),
            attempts: journey.attempts(),
            fallback: attempt.tier > 0,
            reason: way.reason.map(str::to_owned),
            sent_to: way.sent_to.clone(),
            cost: reported.cost,
        };
        caption.routing = Some(routing);
        if shared.escalates(journey, attempt, confidence) {
            way.reason = way.reason.or(Some("low_confidence"));
            way.unsure = Some(Box::new(caption));
            return Ok(None);
        }
        Ok(Some(caption))
    }

    async fn ask(
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
        let params = (*self.params).clone();
        let started = Box::pin(captioner.start_here(vec![photo], params, self.priority)).await;
        let stream = started.map_err(failed)?.pop();
        let mut stream = stream.ok_or_else(|| failed(Error::internal("an image was lost")))?;
        loop {
            match stream.next().await.map_err(failed)? {
                CaptionEvent::Text(text) => {
                    if let Some(writer) = publish {
                        writer.text(text);
                    }
                }
                CaptionEvent::Done(caption) => {
                    let tokens: usize = caption.captions.iter().map(|choice| choice.tokens).sum();
                    let usage = Usage { input: None, output: Some(tokens as u64) };
                    return Ok(Found { caption: *caption, usage });
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
        let photo = match way.sendable.take() {
            Some(photo) => photo,
            None => {
                let photo = self.photo.copy(self.main.budget()).map_err(failed)?;
                self.main.sendable(photo).await.map_err(failed)?
            }
        };
        let photo = way.sendable.insert(photo);
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
        let caption = self.main.foreign_caption(foreign, photo, &self.params, total);
        Ok(Found { caption, usage })
    }

    fn give_up(&self, way: Way, end: End) -> Result<Caption> {
        if let Some(mut caption) = way.unsure {
            // Backends that were asked for a better answer may have got the photo as well.
            if let Some(routing) = &mut caption.routing {
                routing.sent_to = way.sent_to;
            }
            return Ok(*caption);
        }
        let name = &self.shared.config().routes[self.route].name;
        let seconds = Duration::from_secs(5);
        Err(match (end, way.failed) {
            (End::Refused, Some((_, (_, error)))) => error,
            (End::Deadline, _) => late(name),
            // The model in this process says best what is wrong with it.
            (_, Some((_, (Failure::QueueFull | Failure::Model, error)))) => error,
            (_, Some((backend, (failure, _)))) => {
                let backend = &self.shared.config().backends[backend].name;
                let detail = format!(
                    "no backend of the route '{name}' answered (the last one, '{backend}': {}); try \
                     again a little later",
                    failure.as_str()
                );
                let after = failure.retry_after().unwrap_or(seconds);
                Error::new(ErrorKind::NotReady, detail).with_retry_after(after)
            }
            (_, None) => {
                let detail = format!(
                    "no backend of the route '{name}' can do this now; try again a little later, or \
                     ask for something else"
                );
                Error::new(ErrorKind::NotReady, detail).with_retry_after(seconds)
            }
        })
    }
}

/// How sure the backend was; an answer that does not describe the photo is not sure at all.
fn confidence(caption: &Caption) -> Option<f64> {
    if caption.fallback.is_some() {
        return Some(0.0);
    }
    let best = caption.captions.first()?.confidence;
    Some(f64::from(best)).filter(|confidence| !confidence.is_nan())
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

fn late(what: &str) -> Error {
    Error::new(
        ErrorKind::InferenceTimeout,
        format!("'{what}' did not answer in time; try again when it is less busy"),
    )
}
