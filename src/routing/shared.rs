//! The state that all requests on routes share.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::upstream::Upstream;
use crate::captioner::Captioner;
use crate::metrics::{BackendSnapshot, Metrics};
use cutline_route::{
    Attempt, BreakerState, Change, Config, Journey, Moment, Needs, Outcome, Reported, Router, Step,
};

/// How often a backend that is away is asked whether it is back.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// How long it may take to say so.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Who answers for a backend.
#[derive(Debug)]
pub(super) enum Speaker {
    /// The captioner that the request was sent to.
    Main,
    /// Another model in this process.
    Local(Captioner),
    /// A model elsewhere.
    Upstream(Upstream),
}

#[derive(Debug)]
pub(super) struct Shared {
    decisions: Mutex<Decisions>,
    /// The configuration again, which can be read without the lock.
    config: Config,
    pub(super) speakers: Vec<Speaker>,
    /// An attempt has ended, so a busy backend may be free.
    pub(super) ended: Arc<Notify>,
    pub(super) metrics: Metrics,
    epoch: Instant,
    /// The time for a whole request.
    pub(super) limit: Duration,
}

#[derive(Debug)]
struct Decisions {
    router: Router,
    random: ChaCha8Rng,
}

impl Decisions {
    fn new(router: Router) -> Mutex<Self> {
        let random = ChaCha8Rng::seed_from_u64(crate::engine::fresh_seed());
        Mutex::new(Self { router, random })
    }
}

impl Shared {
    pub(super) fn new(
        config: Config,
        speakers: Vec<Speaker>,
        limit: Duration,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            decisions: Decisions::new(Router::new(config.clone())),
            config,
            speakers,
            ended: Arc::default(),
            metrics,
            epoch: Instant::now(),
            limit,
        })
    }

    /// The same with another file; `kept` as in [`Router::replaced`]. Requests that are on their way stay
    /// with this one.
    pub(super) fn replaced(
        &self,
        config: Config,
        speakers: Vec<Speaker>,
        kept: &[Option<usize>],
    ) -> Arc<Self> {
        let router = self.decisions.lock().router.replaced(config.clone(), kept);
        Arc::new(Self {
            decisions: Decisions::new(router),
            config,
            speakers,
            ended: Arc::clone(&self.ended),
            metrics: self.metrics.clone(),
            epoch: self.epoch,
            limit: self.limit,
        })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> Moment {
        self.epoch.elapsed()
    }

    /// The clock's time of a moment.
    pub(super) fn at(&self, moment: Moment) -> Instant {
        self.epoch + moment
    }

    pub(super) fn begin(&self, route: usize, needs: Needs) -> Journey {
        self.decisions.lock().router.begin(route, needs, self.now(), self.limit)
    }

    pub(super) fn next(&self, journey: &mut Journey) -> Step {
        let step = {
            let Decisions { router, random } = &mut *self.decisions.lock();
            router.next(journey, self.now(), &mut || random.random())
        };
        if let Step::Try(attempt) = &step {
            self.log(attempt.backend, attempt.change);
        }
        step
    }

    pub(super) fn report(
        &self,
        journey: &mut Journey,
        attempt: &Attempt,
        outcome: Outcome,
    ) -> Reported {
        let reported = {
            let Decisions { router, random } = &mut *self.decisions.lock();
            router.report(journey, attempt, outcome, self.now(), &mut || random.random())
        };
        self.log(attempt.backend, reported.change);
        self.ended.notify_waiters();
        reported
    }

    pub(super) fn cancel(&self, attempt: &Attempt) {
        self.decisions.lock().router.cancel(attempt);
        self.ended.notify_waiters();
    }

    pub(super) fn escalates(
        &self,
        journey: &mut Journey,
        attempt: &Attempt,
        confidence: Option<f64>,
    ) -> bool {
        self.decisions.lock().router.escalates(journey, attempt, confidence)
    }

    fn log(&self, backend: usize, change: Option<Change>) {
        let Some(Change { from, to }) = change else { return };
        let (backend, from) = (self.config.backends[backend].name.as_str(), from.as_str());
        match to {
            BreakerState::Open => {
                tracing::warn!(
                    backend,
                    from,
                    to = to.as_str(),
                    "the backend is left alone: it fails"
                );
            }
            BreakerState::HalfOpen | BreakerState::Closed => {
                tracing::info!(backend, from, to = to.as_str(), "the backend gets requests again");
            }
        }
    }

    /// Looks after backends that are left alone, until all requests and the captioner are gone.
    pub(super) fn watch(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let shared = Arc::downgrade(self);
        tasks.spawn(async move {
            let mut ticks = interval(PROBE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(shared) = shared.upgrade() else { return };
                shared.probe().await;
            }
        });
        tasks
    }

    async fn probe(self: &Arc<Self>) {
        let away: Vec<usize> = self.decisions.lock().router.to_probe().collect();
        let mut probes = JoinSet::new();
        for backend in away {
            let shared = Arc::clone(self);
            probes.spawn(async move {
                let alive = match &shared.speakers[backend] {
                    Speaker::Main => true,
                    Speaker::Local(captioner) => !captioner.has_failed(),
                    Speaker::Upstream(upstream) => upstream.is_alive(PROBE_LIMIT).await,
                };
                if alive {
                    let change = shared.decisions.lock().router.seen_alive(backend);
                    shared.log(backend, change);
                }
            });
        }
        while probes.join_next().await.is_some() {}
    }

    /// The state of all backends, with what the clock says now.
    pub(super) fn with_router<T>(&self, read: impl FnOnce(&Router, Moment) -> T) -> T {
        read(&self.decisions.lock().router, self.now())
    }

    pub(super) fn snapshot(&self) -> Vec<BackendSnapshot> {
        self.with_router(|router, now| {
            let backends = self.config.backends.iter().enumerate();
            let snapshot = |(index, backend): (usize, &cutline_route::Backend)| {
                let status = router.status(index, now);
                BackendSnapshot {
                    name: backend.name.clone(),
                    state: match status.state {
                        BreakerState::Closed => 0,
                        BreakerState::HalfOpen => 1,
                        BreakerState::Open => 2,
                    },
                    in_flight: status.in_flight,
                }
            };
            backends.map(snapshot).collect()
        })
    }
}
