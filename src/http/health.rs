//! `GET /health`, `/health/live`, `/health/ready`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::dto::{BatchHealth, Health, HealthStatus, Probe, QueueHealth};
use super::error::Failure;
use super::openapi::errors::ReadyProblems;
use super::state::AppState;
use crate::captioner::{Captioner, SchedulerStatus};
use crate::metrics::milliseconds;
use cutline_error::{Error, ErrorKind, Result};

/// State of the model and the queue
///
/// For people and dashboards.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "operation",
    responses(
        (status = OK, description = "`ok` or `degraded`", body = Health),
        (
            status = SERVICE_UNAVAILABLE,
            description = "`loading`, `overloaded`, `failed` or `shutting_down`",
            body = Health,
        ),
    ),
)]
pub(super) async fn show(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let captioner = state.loaded();
    let status = captioner.map(|captioner| captioner.status());
    let health = judge(&state, status.as_ref());
    let code = match health {
        HealthStatus::Ok | HealthStatus::Degraded => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let info = captioner.map(|captioner| captioner.info());
    let body = Health {
        status: health,
        model: info.map(|info| info.id.clone()),
        device: info.map(|info| info.device.clone()),
        queue: status.as_ref().map(queue),
        in_flight: status.as_ref().map_or(0, |s| s.in_flight),
        images_per_second: status.as_ref().map_or(0.0, |s| thousandths(s.images_per_second)),
        estimated_wait_ms: status.as_ref().map_or(0.0, |s| milliseconds(s.estimated_wait)),
        batch: status.as_ref().map(batch),
        uptime_ms: u64::try_from(state.uptime().as_millis()).unwrap_or(u64::MAX),
        last_error: status.and_then(|s| s.last_error),
    };
    (code, Json(body))
}

fn queue(status: &SchedulerStatus) -> QueueHealth {
    QueueHealth {
        depth: status.queue_depth,
        reserved: status.reserved,
        capacity: status.queue_capacity,
    }
}

fn batch(status: &SchedulerStatus) -> BatchHealth {
    BatchHealth {
        max_size: status.max_batch_size,
        memory_limit: status.memory_limit,
        vision_limit: status.vision_limit,
        finished: status.finished,
        encoded: status.encoded,
        failures: status.failures,
        out_of_memory: status.out_of_memory,
    }
}

/// Digits after the third decimal are noise.
fn thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Liveness probe
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "live",
    tag = "operation",
    responses((status = OK, description = "The process answers", body = Probe)),
)]
pub(super) async fn live() -> Json<Probe> {
    Json(Probe { status: "alive" })
}

/// Readiness probe
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "ready",
    tag = "operation",
    responses(
        (status = OK, description = "The server accepts images to caption", body = Probe),
        ReadyProblems,
    ),
)]
pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Probe>, Failure> {
    let status = state.captioner()?.status();
    match judge(&state, Some(&status)) {
        HealthStatus::Failed => {
            Err(Failure(not_ready("the model has stopped; restart the server", 30)))
        }
        HealthStatus::Overloaded => {
            Err(Failure(not_ready("the queue is full; try again a little later", 1)))
        }
        _ => Ok(Json(Probe { status: "ready" })),
    }
}

/// Whether [`ready`] answers 200.
pub(super) fn is_ready(state: &AppState) -> bool {
    let judged = judge(state, state.loaded().map(Captioner::status).as_ref());
    matches!(judged, HealthStatus::Ok | HealthStatus::Degraded)
}

fn not_ready(detail: &'static str, seconds: u64) -> Error {
    Error::new(ErrorKind::NotReady, detail).with_retry_after(Duration::from_secs(seconds))
}

fn judge(state: &AppState, status: Option<&SchedulerStatus>) -> HealthStatus {
    match status {
        _ if state.stopping() => HealthStatus::ShuttingDown,
        None => HealthStatus::Loading,
        Some(status) if status.failed => HealthStatus::Failed,
        Some(status) if status.is_full() => HealthStatus::Overloaded,
        Some(status) if status.degraded => HealthStatus::Degraded,
        Some(_) => HealthStatus::Ok,
    }
}
