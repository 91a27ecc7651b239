//! The JSON of HTTP alone. The types that the command line also prints are in
//! [`captioner`](crate::captioner).

use serde::Serialize;
use utoipa::ToSchema;

use crate::captioner::Caption;

/// `application/problem+json`, RFC 9457.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem<'a> {
    pub(super) r#type: String,
    pub(super) title: &'static str,
    pub(super) status: u16,
    pub(super) detail: &'a str,
    /// Stable, for clients to branch on.
    pub(super) code: &'static str,
    /// The name of the invalid parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) request_id: Option<&'a str>,
}

/// `GET /`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Index {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) endpoints: &'static [Endpoint],
}

/// One of the endpoints.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) description: String,
}

/// `GET /health`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    pub(super) status: HealthStatus,
    /// Present once the model is loaded, like device and queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) model: Option<String>,
    /// What the model can do: `caption`, `score`, `embed`, `answer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) tasks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) queue: Option<QueueHealth>,
    /// The other models of this server; left out if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) models: Vec<OtherHealth>,
    /// Images in progress.
    pub(super) in_flight: usize,
    /// Images captioned per second over the last minute.
    pub(super) images_per_second: f64,
    /// Estimated time until a new image would start, at the current rate.
    pub(super) estimated_wait_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) batch: Option<BatchHealth>,
    /// Present once the model is loaded, on Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) memory: Option<MemoryHealth>,
    pub(super) uptime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) last_error: Option<String>,
}

/// A model beside the main one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OtherHealth {
    pub(super) name: String,
    pub(super) queue: QueueHealth,
    /// Images in progress.
    pub(super) in_flight: usize,
    /// Whether its last run failed.
    pub(super) degraded: bool,
}

/// Waiting images, images that are about to be queued, and the maximum of both together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueueHealth {
    pub(super) depth: usize,
    pub(super) reserved: usize,
    pub(super) capacity: usize,
}

/// The batch of the model, and its counters since the start.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchHealth {
    /// Captions or beams that are written together.
    pub(super) max_size: usize,
    /// A smaller limit, after the device ran out of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) memory_limit: Option<usize>,
    /// Images that the vision tower encodes together, limited after the device ran out of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) vision_limit: Option<usize>,
    /// Images captioned.
    pub(super) finished: u64,
    /// Images encoded by the vision tower.
    pub(super) encoded: u64,
    /// Failures of the model.
    pub(super) failures: u64,
    /// Times that the device ran out of memory.
    pub(super) out_of_memory: u64,
}

/// The most resident memory that the server takes with its settings, and what it is made of.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemoryHealth {
    /// The sum of the others.
    pub(super) peak_bytes: u64,
    /// The most that the process took until the model was loaded.
    pub(super) loaded_bytes: u64,
    /// Image files and inputs of the model: `MAX_INFLIGHT_BYTES`, and an eighth more.
    pub(super) files_bytes: u64,
    /// Images that are being decoded: `MAX_DECODE_BYTES`.
    pub(super) decoding_bytes: u64,
    /// `CACHE_MAX_BYTES` and `VISION_CACHE_BYTES`.
    pub(super) caches_bytes: u64,
    /// The largest batch of the model.
    pub(super) batch_bytes: u64,
    /// Buffers of `MAX_CONNECTIONS` connections.
    pub(super) connections_bytes: u64,
    /// Threads, responses, and what the allocator keeps.
    pub(super) other_bytes: u64,
}

/// The first three come with 200, the others with 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HealthStatus {
    Ok,
    /// The server works, but the last run of the model failed.
    Degraded,
    /// The queue is full; new images get 429.
    Overloaded,
    Loading,
    /// The model has stopped for good; the server exits, to be started again.
    Failed,
    /// The server was told to stop. It still accepts requests for `SHUTDOWN_DELAY`, finishes them, and
    /// exits.
    ShuttingDown,
}

/// `GET /health/live` and `GET /health/ready`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Probe {
    pub(super) status: &'static str,
}

/// A server-sent event.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "axum writes events; only the schema is used")]
pub(super) struct StreamEvent {
    #[schema(inline)]
    pub(super) event: StreamEventName,
    /// JSON.
    pub(super) data: String,
}

/// The type of the data: `TextSoFar`, `Caption` or `Problem`. The last event is one of the latter two.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "as above")]
pub(super) enum StreamEventName {
    Token,
    Done,
    Error,
}

/// The data of a `token` event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextSoFar<'a> {
    /// The caption so far, including the prompt.
    pub(super) text: &'a str,
}

/// `POST /caption/batch`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchAnswer<'a> {
    /// In the order sent.
    pub(super) results: Vec<BatchItem<'a>>,
    pub(super) summary: BatchSummary,
}

/// The result of one image of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchItem<'a> {
    /// Its index among the images sent, from 0.
    pub(super) index: usize,
    /// The file's name, if the client sent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) name: Option<&'a str>,
    #[serde(flatten)]
    pub(super) result: ItemResult<'a>,
}

/// A caption, or the problem with the image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum ItemResult<'a> {
    Ok(&'a Caption),
    Error { error: Problem<'a> },
}

/// The numbers of images in a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchSummary {
    pub(super) total: usize,
    pub(super) ok: usize,
    pub(super) failed: usize,
}
