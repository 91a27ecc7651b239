//! The state of all backends, and the way of a request from one to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::breaker::{BreakerState, Change};
use crate::config::{Ability, Backend, Config, Kind, Route};
use crate::cost::Usage;
use crate::pick::{Ready, pick};
use crate::retry::{Budget, Failure, Verdict};
use crate::state::{BackendStatus, State};
use crate::{Moment, Random};

/// After this time a request looks again whether a busy backend is free.
const BUSY: Duration = Duration::from_millis(200);

/// What a request needs of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// An alternative text.
    pub alt_text: bool,
    /// Word by word. Used if some backend of the route can; otherwise the answer is one piece.
    pub stream: bool,
    /// More than one caption for an image, or the probabilities of tokens. As above.
    pub details: bool,
}

/// A request on its way. Give it back to [`Router::next`] and [`Router::report`].
#[derive(Debug, Clone)]
pub struct Journey {
    route: usize,
    needs: Needs,
    deadline: Moment,
    stops: Vec<Stop>,
    attempts: u32,
    least_tier: usize,
    refused: bool,
}

/// A backend of a route, as one request sees it.
#[derive(Debug, Clone)]
struct Stop {
    backend: usize,
    tier: usize,
    weight: f64,
    tried: u32,
    /// Not before.
    ready_at: Moment,
    /// Not again in this request.
    done: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send the request, and report what became of it.
    Try(Attempt),
    /// Wait until then, or until another request has ended, and ask again.
    Wait(Moment),
    /// No backend is left; the last failure is the answer.
    GiveUp(End),
}

/// Why a request ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its time is over.
    Deadline,
    /// Every backend would refuse it.
    Refused,
    /// All backends have failed it, or cannot do what it needs.
    Exhausted,
}

/// One request to one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The index of the backend.
    pub backend: usize,
    /// Its tier in the route, from 0.
    pub tier: usize,
    /// Its number in the request, from 1.
    pub number: u32,
    /// When it must have ended.
    pub deadline: Moment,
    /// Whether it decides if the backend is well again.
    pub probe: bool,
    /// What sending it changed.
    pub change: Option<Change>,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// There is an answer.
    Answered {
        /// Its tokens.
        usage: Usage,
    },
    /// There is none.
    Failed(Failure),
    /// Nobody waits for it any more.
    Cancelled,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reported {
    /// The state of the breaker.
    pub change: Option<Change>,
    /// What the answer cost, if that is known.
    pub cost: Option<f64>,
}

/// The state of all backends.
#[derive(Debug)]
pub struct Router {
    config: Config,
    /// Shared with the routers of earlier files, on which requests may still be on their way.
    states: Vec<Arc<Mutex<State>>>,
    budgets: Vec<Budget>,
}

impl Router {
    /// All backends are taken to be well.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let states = config.backends.iter().map(|_| Arc::default()).collect();
        Self::with(config, states)
    }

    fn with(config: Config, states: Vec<Arc<Mutex<State>>>) -> Self {
        let budgets = config.routes.iter().map(|route| Budget::new(route.retry.budget)).collect();
        Self { config, states, budgets }
    }

    /// A router with another file. For each of its backends, `kept` has the index of the one here whose
    /// state it goes on with, if it is the same. Requests that are on their way with this router end with
    /// it, and count for both.
    #[must_use]
    pub fn replaced(&self, config: Config, kept: &[Option<usize>]) -> Self {
        let state = |index: usize| {
            let old = kept.get(index).copied().flatten().and_then(|old| self.states.get(old));
            old.map(Arc::clone).unwrap_or_default()
        };
        let states = (0..config.backends.len()).map(state).collect();
        Self::with(config, states)
    }

    /// No two states are locked at a time.
    fn state(&self, backend: usize) -> MutexGuard<'_, State> {
        self.states[backend].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Backends and routes.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The backend with this index.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn backend(&self, index: usize) -> &Backend {
        &self.config.backends[index]
    }

    /// Begins a request on the route with this index. It ends after `limit`, or the route's own limit if
    /// that is shorter.
    ///
    /// # Panics
    /// There is no such route.
    pub fn begin(&mut self, route: usize, needs: Needs, now: Moment, limit: Duration) -> Journey {
        self.budgets[route].earn();
        let Route { deadline_s, .. } = self.config.routes[route];
        let able = |index: usize, needs: Needs| able(&self.config.backends[index], needs);
        // What no backend has, nobody can have.
        let members = || self.config.routes[route].members();
        let some = |needs: Needs| members().any(|(_, member)| able(member.backend, needs));
        let mut wanted = Needs { alt_text: needs.alt_text, ..Needs::default() };
        let details = Needs { details: needs.details, ..wanted };
        wanted = if some(details) { details } else { wanted };
        let stream = Needs { stream: needs.stream, ..wanted };
        wanted = if some(stream) { stream } else { wanted };
        let stops = members().filter(|(_, member)| able(member.backend, wanted));
        let stops = stops.map(|(tier, member)| Stop {
            backend: member.backend,
            tier,
            weight: member.weight,
            tried: 0,
            ready_at: now,
            done: false,
        });
        Journey {
            route,
            needs: wanted,
            deadline: now + limit.min(Duration::from_secs_f64(deadline_s)),
            stops: stops.collect(),
            attempts: 0,
            least_tier: 0,
            refused: false,
        }
    }

    /// What to do next with a request.
    pub fn next(&mut self, journey: &mut Journey, now: Moment, random: Random<'_>) -> Step {
        if journey.refused {
            return Step::GiveUp(End::Refused);
        }
        if now >= journey.deadline {
            return Step::GiveUp(End::Deadline);
        }
        let most = self.config.routes[journey.route].retry.attempts;
        let mut places: Vec<(u32, usize)> =
            journey.open_stops(most).map(|stop| (stop.tried, stop.tier)).collect();
        places.sort_unstable();
        places.dedup();
        // Backends that have not been tried come first, in the order of the tiers.
        for place in places {
            let ready: Vec<Ready> = journey
                .open_stops(most)
                .filter(|stop| (stop.tried, stop.tier) == place && self.is_ready(stop, now))
                .map(|stop| self.ready(stop))
                .collect();
            if let Some(at) = pick(&ready, &mut *random) {
                return self.send(journey, ready[at].backend, now);
            }
        }
        if let Some(until) = journey.open_stops(most).filter_map(|stop| self.waits(stop, now)).min()
            && until < journey.deadline
        {
            return Step::Wait(until);
        }
        // All breakers are open. Better a backend that is probably ill than no answer.
        let open = journey.open_stops(most).filter(|stop| self.is_last_resort(stop, now));
        let least = open.min_by_key(|stop| {
            let open_until = self.state(stop.backend).breaker.open_until();
            (stop.tried, open_until, stop.tier)
        });
        match least.map(|stop| stop.backend) {
            Some(backend) => self.send(journey, backend, now),
            None => Step::GiveUp(End::Exhausted),
        }
    }

    fn ready(&self, stop: &Stop) -> Ready {
        let in_flight = self.state(stop.backend).in_flight;
        Ready { backend: stop.backend, weight: stop.weight, in_flight }
    }

    fn is_busy(&self, stop: &Stop) -> bool {
        self.state(stop.backend).in_flight >= self.config.backends[stop.backend].max_parallel
    }

    fn is_ready(&self, stop: &Stop, now: Moment) -> bool {
        let busy = self.is_busy(stop);
        let breaker = &self.state(stop.backend).breaker;
        let free = !busy && breaker.paused_until(now).is_none();
        free && stop.ready_at <= now && breaker.admits(now)
    }

    /// When it is worth looking at a backend again; `None` if its breaker is open.
    fn waits(&self, stop: &Stop, now: Moment) -> Option<Moment> {
        let free = if self.is_busy(stop) { now + BUSY } else { now };
        let breaker = &self.state(stop.backend).breaker;
        if !breaker.admits(now) {
            return None;
        }
        let paused = breaker.paused_until(now).unwrap_or(now);
        Some(stop.ready_at.max(paused).max(free)).filter(|until| *until > now)
    }

    fn is_last_resort(&self, stop: &Stop, now: Moment) -> bool {
        let busy = self.is_busy(stop);
        let breaker = &self.state(stop.backend).breaker;
        let free = !busy && breaker.paused_until(now).is_none();
        free && !breaker.admits(now) && stop.ready_at <= now
    }

    fn send(&mut self, journey: &mut Journey, backend: usize, now: Moment) -> Step {
        let Some(stop) = journey.stops.iter_mut().find(|stop| stop.backend == backend) else {
            return Step::GiveUp(End::Exhausted);
        };
        if stop.tried > 0 && !self.budgets[journey.route].spend() {
            return Step::GiveUp(End::Exhausted);
        }
        stop.tried += 1;
        journey.attempts += 1;
        let (probe, change) = {
            let mut state = self.state(backend);
            state.in_flight += 1;
            state.breaker.begin(now)
        };
        let limit = Duration::from_secs_f64(self.config.backends[backend].timeout_s);
        let deadline = journey.deadline.min(now + limit);
        let (tier, number) = (stop.tier, journey.attempts);
        Step::Try(Attempt { backend, tier, number, deadline, probe, change })
    }

    /// What became of an attempt. Every attempt must be reported once.
    pub fn report(
        &mut self,
        journey: &mut Journey,
        attempt: &Attempt,
        outcome: Outcome,
        now: Moment,
        random: Random<'_>,
    ) -> Reported {
        let Attempt { backend, probe, .. } = *attempt;
        let may_open = !self.is_last_usable(backend);
        let price = self.config.backends[backend].price;
        if outcome == Outcome::Cancelled {
            self.cancel(attempt);
            return Reported::default();
        }
        let mut state = self.state(backend);
        state.in_flight = state.in_flight.saturating_sub(1);
        let failure = match outcome {
            Outcome::Cancelled => return Reported::default(),
            Outcome::Answered { usage } => {
                state.tally.answered += 1;
                let cost = price.cost(usage);
                match cost {
                    Some(cost) => *state.tally.cost.get_or_insert(0.0) += cost,
                    None => state.tally.without_cost += 1,
                }
                return Reported { change: state.breaker.succeeded(now, probe), cost };
            }
            Outcome::Failed(failure) => failure,
        };
        state.tally.failed += 1;
        state.last_failure = Some(failure.as_str());
        let after = failure.retry_after();
        let verdict = failure.verdict();
        let change = match verdict {
            Verdict::Again | Verdict::Elsewhere => {
                state.breaker.failed(now, probe, may_open, after, random())
            }
            Verdict::Denied => state.breaker.denied(now, probe, may_open),
            Verdict::Limited => state.breaker.limited(now, probe, after),
            // The backend works.
            Verdict::Final => state.breaker.succeeded(now, probe),
            Verdict::Full => {
                state.breaker.released(probe);
                None
            }
        };
        drop(state);
        self.remember(journey, backend, (verdict, after), now, random);
        Reported { change, cost: None }
    }

    fn remember(
        &self,
        journey: &mut Journey,
        backend: usize,
        (verdict, after): (Verdict, Option<Duration>),
        now: Moment,
        random: Random<'_>,
    ) {
        let route = &self.config.routes[journey.route];
        let Some(stop) = journey.stops.iter_mut().find(|stop| stop.backend == backend) else {
            return;
        };
        match verdict {
            Verdict::Again | Verdict::Limited => {
                let pause = route.retry.pause(stop.tried, random());
                stop.ready_at = now + after.unwrap_or(pause).max(pause);
            }
            Verdict::Elsewhere | Verdict::Denied => stop.done = true,
            Verdict::Full if route.overflow => stop.done = true,
            Verdict::Full | Verdict::Final => journey.refused = true,
        }
    }

    /// Whether a route would be without a usable backend if the breaker of this one opened.
    fn is_last_usable(&self, backend: usize) -> bool {
        self.config.routes.iter().any(|route| {
            let members = || route.members().map(|(_, member)| member.backend);
            let usable = |one: usize| self.state(one).breaker.state() != BreakerState::Open;
            members().any(|one| one == backend)
                && !members().any(|one| one != backend && usable(one))
        })
    }

    /// Nobody waits for an attempt any more: a report of [`Outcome::Cancelled`] that needs no journey.
    pub fn cancel(&mut self, attempt: &Attempt) {
        let mut state = self.state(attempt.backend);
        state.in_flight = state.in_flight.saturating_sub(1);
        state.breaker.released(attempt.probe);
    }

    /// Whether an answer with this confidence should be asked for again in the next tier. If so, the
    /// journey goes on there; if that fails, the first answer counts.
    pub fn escalates(
        &self,
        journey: &mut Journey,
        attempt: &Attempt,
        confidence: Option<f64>,
    ) -> bool {
        let least = self.config.routes[journey.route].escalate_below;
        let unsure = least.zip(confidence).is_some_and(|(least, given)| given < least);
        let further = journey.stops.iter().any(|stop| stop.tier > attempt.tier && !stop.done);
        if unsure && further {
            journey.least_tier = attempt.tier + 1;
        }
        unsure && further
    }

    /// The backends in this program's network that should be asked whether they are there: those whose
    /// breaker is open.
    pub fn to_probe(&self) -> impl Iterator<Item = usize> {
        (0..self.states.len()).filter(|index| self.state(*index).breaker.wants_sign())
    }

    /// The backend has shown that it is there, so the next request may try it.
    pub fn seen_alive(&mut self, backend: usize) -> Option<Change> {
        self.state(backend).breaker.seen_alive()
    }

    /// The backend with this index, as people see it.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn status(&self, backend: usize, now: Moment) -> BackendStatus {
        let state = self.state(backend);
        let State { breaker, in_flight, tally, last_failure } = &*state;
        BackendStatus {
            state: breaker.state(),
            open_until: breaker.open_until(),
            paused_until: breaker.paused_until(now),
            consecutive_failures: breaker.consecutive_failures(),
            in_flight: *in_flight,
            tally: *tally,
            last_failure: *last_failure,
        }
    }
}

fn able(backend: &Backend, needs: Needs) -> bool {
    let text = if needs.alt_text { Ability::AltText } else { Ability::Caption };
    let can = |ability: Ability| backend.supports.contains(&ability);
    can(text)
        && (!needs.stream || can(Ability::Stream))
        && (!needs.details || backend.kind == Kind::Local)
}

impl Journey {
    /// The index of its route.
    #[must_use]
    pub fn route(&self) -> usize {
        self.route
    }

    /// When it must have ended.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// Requests sent so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether this backend can answer it.
    #[must_use]
    pub fn may_ask(&self, backend: usize) -> bool {
        self.stops.iter().any(|stop| stop.backend == backend)
    }

    /// What it needs, as far as some backend of the route has it.
    #[must_use]
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Backends that may still be tried.
    fn open_stops(&self, most: u32) -> impl Iterator<Item = &Stop> {
        let least = self.least_tier;
        self.stops.iter().filter(move |stop| !stop.done && stop.tried < most && stop.tier >= least)
    }
}
