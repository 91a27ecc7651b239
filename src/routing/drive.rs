//! Takes one photo along a route until there is an answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::ask::{Failed, Found, Known};
use super::shared::Shared;
use crate::captioner::{
    Caption, CaptionParams, Captioner, Photo, Priority, RouteWriter, RoutedCaption, Routing, Style,
};
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Attempt, End, Failure, Journey, Needs, Outcome, Step, Usage};

/// One photo, and how it is to be captioned.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) main: Captioner,
    pub(super) route: usize,
    pub(super) photo: Arc<Photo>,
    pub(super) params: Arc<CaptionParams>,
    pub(super) priority: Priority,
}

/// What has happened so far.
pub(super) struct Way {
    pub(super) begin: Instant,
    /// What was found out about the photo.
    pub(super) known: Known,
    /// Backends on other machines that got the photo.
    pub(super) sent_to: Vec<String>,
    /// Tiers whose cached answers were looked for.
    looked: usize,
    /// Why the first backend did not answer.
    reason: Option<&'static str>,
    /// The backend that failed last, and why.
    failed: Option<(usize, Failed)>,
    /// An answer that might have been better.
    unsure: Option<Box<RoutedCaption>>,
}

/// An attempt under way. If it is dropped before its report, the client has left.
struct UnderWay<'a> {
    shared: &'a Shared,
    attempt: Option<Attempt>,
}

impl UnderWay<'_> {
    fn goes_on(mut self) -> Option<Attempt> {
        self.attempt.take()
    }
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

    async fn drive(&self, writer: &RouteWriter) -> Result<RoutedCaption> {
        let needs = Needs {
            alt_text: self.params.style == Style::AltText,
            stream: false,
            details: self.params.num_captions > 1 || self.params.top_logprobs > 0,
        };
        let mut journey = self.shared.begin(self.route, needs);
        let mut way = Way {
            begin: Instant::now(),
            known: Known::default(),
            sent_to: Vec::new(),
            looked: 0,
            reason: None,
            failed: None,
            unsure: None,
        };
        // An answer of the first tier is as good today, whether or not the backend is well.
        if let Some(found) = self.look_up(&journey, &mut way, (1, 0), writer).await {
            return Ok(found);
        }
        loop {
            let attempt = match self.shared.next(&mut journey) {
                Step::Try(attempt) if attempt.tier >= way.looked => {
                    let so_far = (attempt.tier + 1, attempt.number - 1);
                    // Nothing is sent for a cached answer.
                    let under_way = UnderWay { shared: &self.shared, attempt: Some(attempt) };
                    if let Some(found) = self.look_up(&journey, &mut way, so_far, writer).await {
                        return Ok(found);
                    }
                    let Some(attempt) = under_way.goes_on() else { continue };
                    attempt
                }
                Step::Try(attempt) => attempt,
                Step::Wait(until) => {
                    tokio::select! {
                        () = self.shared.ended.notified() => {}
                        () = sleep_until(self.shared.at(until)) => {}
                    }
                    continue;
                }
                Step::GiveUp(end) => {
                    let all = (usize::MAX, journey.attempts());
                    if end != End::Refused
                        && let Some(found) = self.look_up(&journey, &mut way, all, writer).await
                    {
                        return Ok(found);
                    }
                    return self.give_up(way, end);
                }
            };
            let found = self.attempt(&mut journey, &attempt, &mut way, writer).await;
            match found {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                // The caller has seen a part of this answer.
                Err(error) if !writer.take_back() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// A cached answer of the first `tiers`, after so many attempts, that was not looked for before.
    async fn look_up(
        &self,
        journey: &Journey,
        way: &mut Way,
        (tiers, attempts): (usize, u32),
        writer: &RouteWriter,
    ) -> Option<RoutedCaption> {
        let first = std::mem::replace(&mut way.looked, tiers);
        let (backend, tier, mut found) = self.cached(journey, way, first..tiers).await?;
        let shared = &*self.shared;
        let backend = &shared.config().backends[backend];
        writer.asks(&backend.name, attempts);
        let cost = backend.price.cost(Usage { cached: true, ..Usage::default() });
        found.caption.routing = Some(self.routing(attempts, way, (&backend.name, tier), cost));
        Some(found)
    }

    fn routing(
        &self,
        attempts: u32,
        way: &Way,
        (backend, tier): (&str, usize),
        cost: Option<f64>,
    ) -> Routing {
        Routing {
            route: self.shared.config().routes[self.route].name.clone(),
            backend: backend.to_owned(),
            attempts,
            fallback: tier > 0,
            reason: way.reason.map(str::to_owned),
            sent_to: way.sent_to.clone(),
            cost,
        }
    }

    /// One attempt with all that follows from it; `None` if a better answer is looked for.
    async fn attempt(
        &self,
        journey: &mut Journey,
        attempt: &Attempt,
        way: &mut Way,
        writer: &RouteWriter,
    ) -> Result<Option<RoutedCaption>> {
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
        let mut routed = match found {
            Ok(found) => found.routed,
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
        let confidence = confidence(&routed.caption);
        let backend = (backend.name.as_str(), attempt.tier);
        routed.caption.routing = Some(self.routing(attempt.number, way, backend, reported.cost));
        if shared.escalates(journey, attempt, confidence) {
            way.reason = way.reason.or(Some("low_confidence"));
            way.unsure = Some(Box::new(routed));
            return Ok(None);
        }
        Ok(Some(routed))
    }

    fn give_up(&self, way: Way, end: End) -> Result<RoutedCaption> {
        if let Some(mut routed) = way.unsure {
            // Backends that were asked for a better answer may have got the photo as well.
            if let Some(routing) = &mut routed.caption.routing {
                routing.sent_to = way.sent_to;
            }
            return Ok(*routed);
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

pub(super) fn late(what: &str) -> Error {
    Error::new(
        ErrorKind::InferenceTimeout,
        format!("'{what}' did not answer in time; try again when it is less busy"),
    )
}
