//! What is not counted here but known elsewhere, at the moment at which somebody asks.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::CacheName;

/// The state of a server at one moment. Plain data.
#[derive(Debug, Clone, Default)]
pub struct ServerSnapshot {
    /// Requests that are being answered.
    pub requests_in_flight: usize,
    /// Whether captions are made.
    pub ready: bool,
    /// Bytes of images that are being received or wait.
    pub inflight_bytes: u64,
    /// How many there may be.
    pub inflight_bytes_limit: u64,
    /// Once there is a model.
    pub model: Option<ModelSnapshot>,
}

/// The state of a model with its queue and caches. Plain data.
#[derive(Debug, Clone, Default)]
pub struct ModelSnapshot {
    /// The model's name.
    pub id: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `f32`, …
    pub precision: String,
    /// What multiplies.
    pub kernels: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Images that wait.
    pub queue_depth: usize,
    /// Places of images that are on their way into the queue.
    pub queue_reserved: usize,
    /// Places.
    pub queue_capacity: usize,
    /// Images in the model.
    pub in_flight: usize,
    /// Captions or beams that the model may write together, less what memory has taught.
    pub batch_rows_limit: usize,
    /// Whether the last run of the model failed.
    pub degraded: bool,
    /// Images that were captioned.
    pub captioned: u64,
    /// Images that the vision tower encoded.
    pub encoded: u64,
    /// Times that the model failed.
    pub failures: u64,
    /// Times that the device had no memory.
    pub out_of_memory: u64,
    /// Whole answers.
    pub answers: CacheSnapshot,
    /// Encoded images.
    pub images: CacheSnapshot,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheSnapshot {
    /// Bytes, bookkeeping included.
    pub bytes: u64,
    /// How many there may be.
    pub bytes_limit: u64,
}

/// Writes metrics of which the values are known, with as little ado as possible.
pub(super) struct MetricWriter<'a>(pub(super) DescriptorEncoder<'a>);

type Written = Result<(), std::fmt::Error>;

impl MetricWriter<'_> {
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeGaugeValue,
    ) -> Written {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: &[(L, u64)],
    ) -> Written {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(*value).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> Written {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    pub(super) fn seconds_counter(&mut self, name: &str, help: &str, value: f64) -> Written {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }
}

/// The features of the build that change what the program can do.
const FEATURES: &str = match (cfg!(feature = "embedded-model"), cfg!(feature = "cuda")) {
    (true, true) => "cuda,embedded-model",
    (true, false) => "embedded-model",
    (false, true) => "cuda",
    (false, false) => "",
};

impl Collector for ServerSnapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let mut write = MetricWriter(encoder);
        let build = [("version", env!("CARGO_PKG_VERSION")), ("features", FEATURES)];
        write.gauges("build_info", "The program; always 1.", &[(build, 1)])?;
        write.gauge("ready", "Whether captions are made.", u64::from(self.ready))?;
        write.gauge(
            "http_requests_in_flight",
            "Requests that are being answered.",
            self.requests_in_flight as u64,
        )?;
        write.gauge(
            "inflight_bytes",
            "Bytes of images that are being received or wait.",
            self.inflight_bytes,
        )?;
        write.gauge(
            "inflight_limit_bytes",
            "Bytes of images that may be received or wait, before requests are refused.",
            self.inflight_bytes_limit,
        )?;
        self.model.as_ref().map_or(Ok(()), |model| model.encode(&mut write))
    }
}

impl ModelSnapshot {
    fn encode(&self, write: &mut MetricWriter<'_>) -> Written {
        let labels = [
            ("id", self.id.as_str()),
            ("device", &self.device),
            ("precision", &self.precision),
            ("kernels", &self.kernels),
        ];
        write.gauges("model_info", "The loaded model; always 1.", &[(labels, 1)])?;
        write.gauge("model_parameters", "Parameters of the model.", self.parameters)?;
        write.gauge(
            "model_degraded",
            "Whether the model's last run failed.",
            u64::from(self.degraded),
        )?;
        self.encode_queue(write)?;
        write.counter("images_captioned", "Images that were captioned.", self.captioned)?;
        write.counter(
            "images_encoded",
            "Images that went through the vision tower.",
            self.encoded,
        )?;
        write.counter("model_failures", "Times that the model failed.", self.failures)?;
        write.counter(
            "model_out_of_memory",
            "Times that the device had no memory for what it was to do.",
            self.out_of_memory,
        )?;
        let caches = [(CacheName::Answers, self.answers), (CacheName::Images, self.images)];
        write.gauges(
            "cache_bytes",
            "Bytes that a cache holds, bookkeeping included.",
            &caches.map(|(name, cache)| ([("cache", name.as_str())], cache.bytes)),
        )?;
        write.gauges(
            "cache_limit_bytes",
            "Bytes that a cache may hold.",
            &caches.map(|(name, cache)| ([("cache", name.as_str())], cache.bytes_limit)),
        )
    }

    fn encode_queue(&self, write: &mut MetricWriter<'_>) -> Written {
        write.gauge("queue_depth", "Images that wait for the model.", self.queue_depth as u64)?;
        write.gauge(
            "queue_reserved",
            "Places in the queue of images that are still being decoded.",
            self.queue_reserved as u64,
        )?;
        write.gauge("queue_capacity", "Places in the queue.", self.queue_capacity as u64)?;
        write.gauge("images_in_flight", "Images in the model.", self.in_flight as u64)?;
        write.gauge(
            "batch_rows_limit",
            "Captions or beams that the model may write together.",
            self.batch_rows_limit as u64,
        )
    }
}
