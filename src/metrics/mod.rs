//! Prometheus metrics of one server: what is counted, under which names, in which buckets.
//!
//! [`Metrics`] is handed to whoever has something to count; several servers in one process have
//! one each, and there is no global recorder. What other rooms know already, such as how many
//! images wait, is not counted twice: it is read when somebody asks ([`ServerSnapshot`]). `process` reads what
//! the system knows of the process.
//!
//! Every label has few values, all of them the program's own: nothing that a client sends becomes
//! one. The table of all names is in the README, and a test compares it with what is exported.

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

use self::process::ProcessMetrics;
pub use self::snapshot::{CacheSnapshot, ModelSnapshot, ServerSnapshot};
use cutline_error::Result;

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Before every name but those of the process.
const PREFIX: &str = "cutline";

/// Seconds. A look into the cache takes less than a millisecond, an image on a slow CPU several
/// seconds, and no answer more than `REQUEST_TIMEOUT` twice.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Rows of a decoding step.
const ROWS: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// What an image goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the file's bytes to pixels.
    Decode,
    /// From pixels to the model's input.
    Preprocess,
    /// Colours, mood and measures.
    Analysis,
    /// Waiting for the model.
    Queue,
    /// The vision tower.
    Vision,
    /// From the image's states to the last token; the towers of images that came meanwhile are in
    /// it, as the caller waits for them too.
    Decoder,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Decode, Self::Preprocess, Self::Analysis, Self::Queue, Self::Vision, Self::Decoder];

    /// The label.
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

/// What is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheName {
    /// Whole answers.
    Answers,
    /// What the vision tower made of images.
    Images,
}

impl CacheName {
    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Images => "images",
        }
    }
}

/// How a look into a cache ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// It was there.
    Hit,
    /// It was not.
    Miss,
    /// It was being computed for somebody else; only answers are shared so.
    Coalesced,
}

impl Lookup {
    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
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
    prompt_tokens: Counter,
    generated_tokens: Counter,
    rebuilds: Counter,
    retries: Counter,
}

impl Metrics {
    /// All at zero.
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
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            rebuilds: Counter::default(),
            retries: Counter::default(),
        };
        inner.register();
        inner.begin_at_zero();
        Self { inner: Arc::new(inner) }
    }

    /// A request was answered. `route` must be one of the server's own patterns, not an address:
    /// addresses are the clients' to invent, and every one would be a series of its own.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let inner = &*self.inner;
        let route = route.to_owned();
        inner.requests.get_or_create(&RequestLabels { route: route.clone(), status }).inc();
        inner.request_seconds.get_or_create(&RouteLabel { route }).observe(took.as_secs_f64());
    }

    /// A request, or an image of a batch, was answered with this error code.
    pub fn rejected(&self, reason: &'static str) {
        self.inner.rejected.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An image went through a stage.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let label = StageLabel { stage: stage.as_str() };
        self.inner.stage_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Does `work`, which is a stage of an image's way; one that fails is not counted.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn timed<T>(&self, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let done = work()?;
        self.stage(stage, begin.elapsed());
        Ok(done)
    }

    /// The model took a decoding step with so many rows.
    pub fn step(&self, rows: usize) {
        self.inner.batch_rows.observe(rows as f64);
    }

    /// Something was looked for in a cache.
    pub fn lookup(&self, cache: CacheName, result: Lookup) {
        self.inner
            .lookups
            .get_or_create(&LookupLabels { cache: cache.as_str(), result: result.as_str() })
            .inc();
    }

    /// A caption was finished for which so many tokens were read and written.
    pub fn tokens(&self, prompt: usize, generated: usize) {
        self.inner.prompt_tokens.inc_by(prompt as u64);
        self.inner.generated_tokens.inc_by(generated as u64);
    }

    /// The engine was put back to its weights after a failure.
    pub fn rebuilt(&self) {
        self.inner.rebuilds.inc();
    }

    /// So many images were begun anew after a failure that was not theirs.
    pub fn retried(&self, images: usize) {
        self.inner.retries.inc_by(images as u64);
    }

    /// Everything in Prometheus' text format, version 0.0.4, with what is known `now`.
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
    /// The names, without prefix and `_total`, and what they mean, without the full stop.
    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register("http_requests", "Requests that were answered", self.requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Time from a request's headers to the end of its answer",
            self.request_seconds.clone(),
        );
        registry.register(
            "rejected",
            "Requests, and images of batches, that were answered with an error, by its code",
            self.rejected.clone(),
        );
        registry.register(
            "stage_duration_seconds",
            "Time that an image spent in a stage of its way to an answer",
            self.stage_seconds.clone(),
        );
        registry.register(
            "batch_rows",
            "Captions or beams that the model wrote together in a decoding step",
            self.batch_rows.clone(),
        );
        registry.register(
            "cache_lookups",
            "Looks into the caches, by how they ended",
            self.lookups.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Tokens of the prompts of finished captions",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "generated_tokens",
            "Tokens of finished captions, all captions of an image counted",
            self.generated_tokens.clone(),
        );
        registry.register(
            "model_rebuilds",
            "Times that the engine was put back to its weights after a failure",
            self.rebuilds.clone(),
        );
        registry.register(
            "model_retries",
            "Images that were begun anew after a failure beside them",
            self.retries.clone(),
        );
    }

    /// The series that are known beforehand: a rate needs a zero to begin from.
    fn begin_at_zero(&self) {
        for stage in Stage::ALL {
            drop(self.stage_seconds.get_or_create(&StageLabel { stage: stage.as_str() }));
        }
        for (cache, result) in [
            (CacheName::Answers, Lookup::Hit),
            (CacheName::Answers, Lookup::Miss),
            (CacheName::Answers, Lookup::Coalesced),
            (CacheName::Images, Lookup::Hit),
            (CacheName::Images, Lookup::Miss),
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
