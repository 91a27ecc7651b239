//! The JSON that only HTTP speaks. What the command line prints as well is in
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
    /// Stable; clients branch on it.
    pub(super) code: &'static str,
    /// The parameter at fault.
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
    /// Known once the model is loaded, as are device and queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) queue: Option<QueueHealth>,
    /// Images in the model.
    pub(super) in_flight: usize,
    /// Images captioned a second over the last minute.
    pub(super) images_per_second: f64,
    /// Until an image that came now would have its turn, at the present speed.
    pub(super) estimated_wait_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) batch: Option<BatchHealth>,
    pub(super) uptime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) last_error: Option<String>,
}

/// Images that wait, those that are on their way into the queue, and how many there may be of both.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueueHealth {
    pub(super) depth: usize,
    pub(super) reserved: usize,
    pub(super) capacity: usize,
}

/// What the model writes at once, and what became of it since the start.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchHealth {
    /// Captions or beams.
    pub(super) max_size: usize,
    /// Fewer than that, once the device had no memory for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) memory_limit: Option<usize>,
    /// Images that the vision tower is given at once, for the same reason fewer than it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) vision_limit: Option<usize>,
    /// Images that were captioned.
    pub(super) finished: u64,
    /// Images that the vision tower encoded.
    pub(super) encoded: u64,
    /// Times that the model failed.
    pub(super) failures: u64,
    /// Times that the device had no memory.
    pub(super) out_of_memory: u64,
}

/// The first two come with 200, the others with 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HealthStatus {
    Ok,
    /// Captions are made, but the last run of the model failed.
    Degraded,
    Loading,
    /// The queue is full.
    Overloaded,
    /// The model's thread is gone; only a restart helps.
    Failed,
    /// The server finishes what it has accepted and exits.
    ShuttingDown,
}

/// `GET /health/live` and `GET /health/ready`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Probe {
    pub(super) status: &'static str,
}

/// A server-sent event.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "axum writes events; this is what they look like")]
pub(super) struct StreamEvent {
    #[schema(inline)]
    pub(super) event: StreamEventName,
    /// JSON.
    pub(super) data: String,
}

/// What the data is: `TextSoFar`, `Caption` or `Problem`. The last event is one of the latter two.
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
    /// The caption so far, prompt included.
    pub(super) text: &'a str,
}

/// `POST /caption/batch`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchAnswer<'a> {
    /// In the order sent.
    pub(super) results: Vec<BatchItem<'a>>,
    pub(super) summary: BatchSummary,
}

/// What came of one image of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchItem<'a> {
    /// Its place among those sent, from 0.
    pub(super) index: usize,
    /// The file's name, where the client sent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) name: Option<&'a str>,
    #[serde(flatten)]
    pub(super) result: ItemResult<'a>,
}

/// A caption, or what is wrong with the image.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum ItemResult<'a> {
    Ok(&'a Caption),
    Error { error: Problem<'a> },
}

/// How many of a batch there are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchSummary {
    pub(super) total: usize,
    pub(super) ok: usize,
    pub(super) failed: usize,
}
