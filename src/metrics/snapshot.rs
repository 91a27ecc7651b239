//! Gauges that other modules know, read at scrape time.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::CacheName;

/// The state of a server at one moment.
#[derive(Debug, Clone, Default)]
pub struct ServerSnapshot {
    /// Requests in progress.
    pub requests_in_flight: usize,
    /// Whether the server makes captions.
    pub ready: bool,
    /// Bytes of images that are being received or wait.
    pub inflight_bytes: u64,
    /// The limit on `inflight_bytes`.
    pub inflight_bytes_limit: u64,
    /// Bytes that decoding takes, or that are kept for the image that is next.
    pub decode_bytes: u64,
    /// The limit on `decode_bytes`.
    pub decode_bytes_limit: u64,
    /// The most resident memory of the process in bytes, if it is known.
    pub memory_bound: Option<u64>,
    /// The model, once it is loaded.
    pub model: Option<ModelSnapshot>,
    /// The backends of routes.
    pub backends: Vec<BackendSnapshot>,
}

/// The state of a backend at one moment.
#[derive(Debug, Clone, Default)]
pub struct BackendSnapshot {
    /// Its name.
    pub name: String,
    /// 0 if it gets requests, 1 if it gets one to see whether it is well again, 2 if it gets none.
    pub state: u64,
    /// Requests that it works on.
    pub in_flight: usize,
}

/// The state of a model with its queue and caches, at one moment.
#[derive(Debug, Clone, Default)]
pub struct ModelSnapshot {
    /// The model's name.
    pub id: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `f32`, …
    pub precision: String,
    /// The matrix kernels.
    pub kernels: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Images that wait.
    pub queue_depth: usize,
    /// Queue slots of images that are still being decoded.
    pub queue_reserved: usize,
    /// Slots of the queue.
    pub queue_capacity: usize,
    /// Images in the model.
    pub in_flight: usize,
    /// Captions or beams that may be decoded together, lowered after running out of memory.
    pub batch_rows_limit: usize,
    /// Whether the last run of the model failed.
    pub degraded: bool,
    /// Images captioned so far.
    pub captioned: u64,
    /// Images encoded by the vision tower so far.
    pub encoded: u64,
    /// Failures of the model so far.
    pub failures: u64,
    /// Times that the device ran out of memory.
    pub out_of_memory: u64,
    /// The cache of complete answers.
    pub answers: CacheSnapshot,
    /// The cache of encoded images.
    pub images: CacheSnapshot,
}

/// The size of a cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct CacheSnapshot {
    /// Bytes in use, bookkeeping included.
    pub bytes: u64,
    /// The limit on `bytes`.
    pub bytes_limit: u64,
}

/// Writes metrics with known values.
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

/// The enabled features that change what the program can do, separated by commas.
fn features() -> String {
    let all = [
        ("cuda", cfg!(feature = "cuda")),
        ("embedded-model", cfg!(feature = "embedded-model")),
        ("grpc", cfg!(feature = "grpc")),
        ("otlp", cfg!(feature = "otlp")),
    ];
    let enabled: Vec<&str> = all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    enabled.join(",")
}

impl Collector for ServerSnapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let mut write = MetricWriter(encoder);
        let features = features();
        let build = [("version", env!("CARGO_PKG_VERSION")), ("features", features.as_str())];
        write.gauges("build_info", "The build; always 1.", &[(build, 1)])?;
        write.gauge("ready", "Whether the server makes captions.", u64::from(self.ready))?;
        write.gauge(
            "http_requests_in_flight",
            "Requests in progress.",
            self.requests_in_flight as u64,
        )?;
        write.gauge(
            "inflight_bytes",
            "Bytes of images that are being received or wait.",
            self.inflight_bytes,
        )?;
        write.gauge(
            "inflight_limit_bytes",
            "Limit on bytes of images that are being received or wait.",
            self.inflight_bytes_limit,
        )?;
        write.gauge(
            "decode_bytes",
            "Memory for images that are being decoded.",
            self.decode_bytes,
        )?;
        write.gauge(
            "decode_limit_bytes",
            "Limit on memory for images that are being decoded.",
            self.decode_bytes_limit,
        )?;
        if let Some(bytes) = self.memory_bound {
            write.gauge("memory_bound_bytes", "The most resident memory of the server.", bytes)?;
        }
        self.encode_backends(&mut write)?;
        self.model.as_ref().map_or(Ok(()), |model| model.encode(&mut write))
    }
}

impl ServerSnapshot {
    fn encode_backends(&self, write: &mut MetricWriter<'_>) -> Written {
        if self.backends.is_empty() {
            return Ok(());
        }
        let values = |value: fn(&BackendSnapshot) -> u64| -> Vec<_> {
            let one = |backend| ([("backend", BackendSnapshot::name(backend))], value(backend));
            self.backends.iter().map(one).collect()
        };
        write.gauges(
            "backend_state",
            "Whether a backend gets requests: 0 yes, 1 one to see whether it is well again, 2 none.",
            &values(|backend| backend.state),
        )?;
        write.gauges(
            "backend_in_flight",
            "Requests that a backend works on.",
            &values(|backend| backend.in_flight as u64),
        )
    }
}

impl BackendSnapshot {
    fn name(&self) -> &str {
        &self.name
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
            "Whether the last run of the model failed.",
            u64::from(self.degraded),
        )?;
        self.encode_queue(write)?;
        write.counter("images_captioned", "Captioned images.", self.captioned)?;
        write.counter("images_encoded", "Images encoded by the vision tower.", self.encoded)?;
        write.counter("model_failures", "Failures of the model.", self.failures)?;
        write.counter(
            "model_out_of_memory",
            "Times that the device ran out of memory.",
            self.out_of_memory,
        )?;
        let caches = [(CacheName::Answers, self.answers), (CacheName::Images, self.images)];
        write.gauges(
            "cache_bytes",
            "Bytes in a cache, bookkeeping included.",
            &caches.map(|(name, cache)| ([("cache", name.as_str())], cache.bytes)),
        )?;
        write.gauges(
            "cache_limit_bytes",
            "Limit on bytes in a cache.",
            &caches.map(|(name, cache)| ([("cache", name.as_str())], cache.bytes_limit)),
        )
    }

    fn encode_queue(&self, write: &mut MetricWriter<'_>) -> Written {
        write.gauge("queue_depth", "Images that wait for the model.", self.queue_depth as u64)?;
        write.gauge(
            "queue_reserved",
            "Queue slots of images that are still being decoded.",
            self.queue_reserved as u64,
        )?;
        write.gauge("queue_capacity", "Slots of the queue.", self.queue_capacity as u64)?;
        write.gauge("images_in_flight", "Images in the model.", self.in_flight as u64)?;
        write.gauge(
            "batch_rows_limit",
            "Captions or beams that may be decoded together.",
            self.batch_rows_limit as u64,
        )
    }
}
