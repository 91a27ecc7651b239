//! Prometheus metrics of one server: counters, histograms, their names and buckets.
//!
//! Modules that count receive a [`Metrics`]. Each server has its own, and there is no global recorder.
//! Counters are updated where events happen. Gauges that other modules know already, such as the queue's
//! depth, are read at scrape time ([`ServerSnapshot`]). `process` reads metrics of the process from the
//! system.
//!
//! Every label has few values, and none of them comes from a client. docs/observability.md lists all
//! metrics, and a test compares it with the export.

mod backends;
mod process;
mod snapshot;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::backends::BackendMetrics;
use self::process::ProcessMetrics;
pub use self::process::{max_descriptors, peak_resident_bytes, resident_bytes};
pub use self::snapshot::{BackendSnapshot, CacheSnapshot, ModelSnapshot, ServerSnapshot};
use cutline_error::{ErrorKind, Result};

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The prefix of all names except those of the process.
const PREFIX: &str = "cutline";

/// Buckets in seconds. A cache hit takes less than a millisecond, an image on a slow CPU several
/// seconds, and no answer more than twice `REQUEST_TIMEOUT`.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Buckets for the rows of a decode step.
const ROWS: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// A stage of an image's way to its caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the bytes of the file to pixels.
    Decode,
    /// From pixels to the model's input.
    Preprocess,
    /// Colours, mood and measures.
    Analysis,
    /// Waiting for the model.
    Queue,
    /// The vision tower.
    Vision,
    /// From the encoded image to the last token. It includes the vision tower's time for images that
    /// arrive meanwhile, because the caller waits for that too.
    Decoder,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 6] =
        [Self::Decode, Self::Preprocess, Self::Analysis, Self::Queue, Self::Vision, Self::Decoder];

    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Analysis => "analysis",
            Self::Queue => "queue",
            Self::Vision => "vision",
            Self::Decoder => "decoder",
        }
    }
}

/// The caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheName {
    /// Complete answers.
    Answers,
    /// Outputs of the vision tower.
    Images,
    /// Complete answers that several servers share.
    Shared,
}

impl CacheName {
    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Images => "images",
            Self::Shared => "shared",
        }
    }
}

/// A failure of the cache that several servers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SharedCacheError {
    /// No answer in time.
    Timeout,
    /// No connection, or an error as an answer.
    Failed,
    /// A value that was not written with our secret.
    Invalid,
}

impl SharedCacheError {
    /// All failures.
    pub const ALL: [Self; 3] = [Self::Timeout, Self::Failed, Self::Invalid];

    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }
}

/// The result of a cache lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// The value was in the cache.
    Hit,
    /// The value was not in the cache.
    Miss,
    /// Another request was computing the value already. Only answers are shared in this way.
    Coalesced,
}

impl Lookup {
    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
        }
    }
}

/// What a key may have so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyLimit {
    /// Requests per minute.
    Requests,
    /// Images per minute.
    Images,
    /// Requests at a time.
    Parallel,
    /// Images or tokens in a day or a month.
    Budget,
}

impl KeyLimit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Requests, Self::Images, Self::Parallel, Self::Budget];

    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Images => "images",
            Self::Parallel => "parallel",
            Self::Budget => "budget",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    contract: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    cache: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The counters and histograms of one server. Cheap to clone; clones share the numbers.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<MetricsInner>,
}

struct MetricsInner {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms<RouteLabel>,
    rejected: Family<ReasonLabel, Counter>,
    stage_seconds: Histograms<StageLabel>,
    batch_rows: Histogram,
    lookups: Family<LookupLabels, Counter>,
    shared_cache_errors: Family<ReasonLabel, Counter>,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    rebuilds: Counter,
    retries: Counter,
    backends: BackendMetrics,
    key_refusals: Family<LimitLabel, Counter>,
    key_images: Family<ResultLabel, Counter>,
    budget_warnings: Counter,
}

impl Metrics {
    /// All counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut inner = MetricsInner {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            rejected: Family::default(),
            stage_seconds: Family::new_with_constructor(seconds),
            batch_rows: Histogram::new(ROWS),
            lookups: Family::default(),
            shared_cache_errors: Family::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            rebuilds: Counter::default(),
            retries: Counter::default(),
            backends: BackendMetrics::default(),
            key_refusals: Family::default(),
            key_images: Family::default(),
            budget_warnings: Counter::default(),
        };
        inner.register();
        inner.create_known_series();
        Self { inner: Arc::new(inner) }
    }

    /// Counts an answered request. `route` must be one of the server's own patterns, not an address:
    /// clients can invent addresses, and each would become a series of its own.
    pub fn request(&self, contract: &'static str, route: &str, status: u16, took: Duration) {
        let inner = &*self.inner;
        let route = route.to_owned();
        let labels = RequestLabels { contract, route: route.clone(), status };
        inner.requests.get_or_create(&labels).inc();
        inner.request_seconds.get_or_create(&RouteLabel { route }).observe(took.as_secs_f64());
    }

    /// Counts a request, or an image of a batch, that was answered with this error code.
    pub fn rejected(&self, reason: &'static str) {
        self.inner.rejected.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts an image that went through a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let label = StageLabel { stage: stage.as_str() };
        self.inner.stage_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Runs `work` as a stage. A failure is not counted.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn timed<T>(&self, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let done = work()?;
        self.stage(stage, begin.elapsed());
        Ok(done)
    }

    /// Counts a decode step with this many rows.
    pub fn step(&self, rows: usize) {
        self.inner.batch_rows.observe(rows as f64);
    }

    /// Counts a cache lookup.
    pub fn lookup(&self, cache: CacheName, result: Lookup) {
        self.inner
            .lookups
            .get_or_create(&LookupLabels { cache: cache.as_str(), result: result.as_str() })
            .inc();
    }

    /// Counts a failure of the cache that several servers share.
    pub fn shared_cache_error(&self, error: SharedCacheError) {
        self.inner.shared_cache_errors.get_or_create(&ReasonLabel { reason: error.as_str() }).inc();
    }

    /// Counts the prompt and generated tokens of a finished caption.
    pub fn tokens(&self, prompt: usize, generated: usize) {
        self.inner.prompt_tokens.inc_by(prompt as u64);
        self.inner.generated_tokens.inc_by(generated as u64);
    }

    /// Counts a request that a limit of its key refused.
    pub fn key_refused(&self, limit: KeyLimit) {
        self.inner.key_refusals.get_or_create(&LimitLabel { limit: limit.as_str() }).inc();
    }

    /// Counts an image that was charged to a key; one of the cache is free.
    pub fn charged(&self, cached: bool) {
        let result = if cached { "cached" } else { "computed" };
        self.inner.key_images.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a budget that has reached its soft limit.
    pub fn budget_warned(&self) {
        self.inner.budget_warnings.inc();
    }

    /// Counts a reset of the engine after a failure.
    pub fn rebuilt(&self) {
        self.inner.rebuilds.inc();
    }

    /// Counts images that were restarted after a failure.
    pub fn retried(&self, images: usize) {
        self.inner.retries.inc_by(images as u64);
    }

    /// Counts a request to a backend, with how it ended.
    pub fn attempt(&self, backend: &str, outcome: &'static str, took: Duration) {
        self.inner.backends.attempt(backend, outcome, took);
    }

    /// Counts a request of a route that another backend got after one had failed.
    pub fn failover(&self, route: &str, from: &str, to: &str, reason: &'static str) {
        self.inner.backends.failover(route, from, to, reason);
    }

    /// Adds the cost of an answer.
    pub fn cost(&self, backend: &str, cost: f64) {
        self.inner.backends.cost(backend, cost);
    }

    /// All metrics in Prometheus' text format, version 0.0.4, with the gauges of `now`.
    #[must_use]
    pub fn render(&self, now: ServerSnapshot) -> String {
        let mut text = String::new();
        let mut current = Registry::with_prefix(PREFIX);
        current.register_collector(Box::new(now));
        let mut system = Registry::default();
        if let Some(process) = ProcessMetrics::read() {
            system.register_collector(Box::new(process));
        }
        for registry in [&self.inner.registry, &current, &system] {
            // Writing to a string cannot fail.
            let _ = prometheus_text::encode(&mut text, registry);
        }
        text
    }
}

impl MetricsInner {
    /// Registers names, without prefix and `_total`, and descriptions, without the full stop.
    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register("http_requests", "Answered requests", self.requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Time from the request's headers to the end of the answer",
            self.request_seconds.clone(),
        );
        registry.register(
            "rejected",
            "Requests and images of batches that were answered with an error, by error code",
            self.rejected.clone(),
        );
        registry.register(
            "stage_duration_seconds",
            "Time that an image spent in a stage",
            self.stage_seconds.clone(),
        );
        registry.register(
            "batch_rows",
            "Captions or beams in a decode step",
            self.batch_rows.clone(),
        );
        registry.register("cache_lookups", "Cache lookups, by result", self.lookups.clone());
        registry.register(
            "shared_cache_errors",
            "Failed calls of the cache that several servers share, by reason",
            self.shared_cache_errors.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Prompt tokens of finished captions",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "generated_tokens",
            "Generated tokens of finished captions, all captions of an image included",
            self.generated_tokens.clone(),
        );
        registry.register(
            "model_rebuilds",
            "Resets of the engine after a failure",
            self.rebuilds.clone(),
        );
        registry.register(
            "model_retries",
            "Images that were restarted after a failure",
            self.retries.clone(),
        );
        self.backends.register(registry);
        registry.register(
            "key_refusals",
            "Requests that a limit of their API key refused",
            self.key_refusals.clone(),
        );
        registry.register(
            "key_images",
            "Images that were charged to API keys; those of the cache are free",
            self.key_images.clone(),
        );
        registry.register(
            "key_budget_warnings",
            "Budgets of API keys that have reached their soft limit",
            self.budget_warnings.clone(),
        );
    }

    /// Creates the series that are known beforehand, so that a rate starts from zero.
    fn create_known_series(&self) {
        for stage in Stage::ALL {
            drop(self.stage_seconds.get_or_create(&StageLabel { stage: stage.as_str() }));
        }
        for limit in KeyLimit::ALL {
            drop(self.key_refusals.get_or_create(&LimitLabel { limit: limit.as_str() }));
        }
        for result in ["computed", "cached"] {
            drop(self.key_images.get_or_create(&ResultLabel { result }));
        }
        for error in SharedCacheError::ALL {
            drop(self.shared_cache_errors.get_or_create(&ReasonLabel { reason: error.as_str() }));
        }
        drop(self.rejected.get_or_create(&ReasonLabel { reason: ErrorKind::QueueFull.code() }));
        for (cache, result) in [
            (CacheName::Answers, Lookup::Hit),
            (CacheName::Answers, Lookup::Miss),
            (CacheName::Answers, Lookup::Coalesced),
            (CacheName::Images, Lookup::Hit),
            (CacheName::Images, Lookup::Miss),
            (CacheName::Shared, Lookup::Hit),
            (CacheName::Shared, Lookup::Miss),
        ] {
            drop(
                self.lookups.get_or_create(&LookupLabels {
                    cache: cache.as_str(),
                    result: result.as_str(),
                }),
            );
        }
    }
}

/// `duration` in milliseconds, rounded to microseconds.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
