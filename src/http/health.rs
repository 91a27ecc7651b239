//! `GET /health`, `/health/live`, `/health/ready`

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::connection::BUFFER_BYTES;
use super::dto::{
    BatchHealth, Health, HealthStatus, MemoryHealth, OtherHealth, Probe, QueueHealth,
};
use super::error::Failure;
use super::openapi::errors::{LiveProblems, ReadyProblems};
use super::state::AppState;
use crate::captioner::{Captioner, SchedulerStatus};
use crate::metrics::milliseconds;
use cutline_error::{Error, Result};

/// State of the model and the queue
///
/// For people and dashboards.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "operation",
    responses(
        (status = OK, description = "`ok`, `degraded` or `overloaded`", body = Health),
        (
            status = SERVICE_UNAVAILABLE,
            description = "`loading`, `failed` or `shutting_down`",
            body = Health,
        ),
    ),
)]
pub(super) async fn show(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let captioner = state.loaded();
    let status = captioner.map(|captioner| captioner.status());
    let health = judge(&state, status.as_ref());
    let code = match health {
        HealthStatus::Ok | HealthStatus::Degraded | HealthStatus::Overloaded => StatusCode::OK,
        HealthStatus::Loading | HealthStatus::Failed | HealthStatus::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let info = captioner.map(|captioner| captioner.info());
    let body = Health {
        status: health,
        model: info.map(|info| info.id.clone()),
        tasks: info.map(|info| info.tasks.clone()),
        device: info.map(|info| info.device.clone()),
        queue: status.as_ref().map(queue),
        models: captioner.map(others).unwrap_or_default(),
        in_flight: status.as_ref().map_or(0, |s| s.in_flight),
        images_per_second: status.as_ref().map_or(0.0, |s| thousandths(s.images_per_second)),
        estimated_wait_ms: status.as_ref().map_or(0.0, |s| milliseconds(s.estimated_wait)),
        batch: status.as_ref().map(batch),
        memory: memory(&state),
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

fn others(captioner: &Captioner) -> Vec<OtherHealth> {
    let models = captioner.other_models().into_iter();
    let health = |(name, model): (&str, &Captioner)| {
        let status = model.status();
        OtherHealth {
            name: name.to_owned(),
            queue: queue(&status),
            in_flight: status.in_flight,
            degraded: status.degraded,
        }
    };
    models.map(health).collect()
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

/// The most memory of the server, if it is known.
pub(super) fn memory(state: &AppState) -> Option<MemoryHealth> {
    let captioner = state.loaded()?;
    let mut bound = captioner.memory_bound()?;
    for (_, other) in captioner.other_models() {
        let more = other.memory_bound()?;
        bound.loaded = bound.loaded.max(more.loaded);
        bound.caches = bound.caches.saturating_add(more.caches);
        bound.batch = bound.batch.saturating_add(more.batch);
    }
    let settings = state.settings();
    let connections_bytes = settings.max_connections as u64 * BUFFER_BYTES;
    Some(MemoryHealth {
        peak_bytes: bound.total().saturating_add(connections_bytes + OTHER_BYTES),
        loaded_bytes: bound.loaded,
        files_bytes: bound.files,
        decoding_bytes: bound.decoding,
        caches_bytes: bound.caches,
        batch_bytes: bound.batch,
        connections_bytes,
        other_bytes: OTHER_BYTES,
    })
}

/// Stacks of some hundred threads, and small memory that the allocator keeps for each of them.
const OTHER_BYTES: u64 = 128 << 20;

/// Digits after the third decimal are noise.
fn thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Liveness probe
///
/// Fails only if a restart is the remedy.
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "live",
    tag = "operation",
    responses(
        (status = OK, description = "The server works, loads its model or stops", body = Probe),
        LiveProblems,
    ),
)]
pub(super) async fn live(State(state): State<AppState>) -> Result<Json<Probe>, Failure> {
    if has_failed(&state) {
        return Err(Failure(Error::model_stopped()));
    }
    Ok(Json(Probe { status: "alive" }))
}

/// Readiness probe
///
/// Fails while the model loads, and as soon as the server stops. A full queue does not matter here:
/// otherwise all servers of a busy fleet would leave their load balancer together.
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "ready",
    tag = "operation",
    responses(
        (status = OK, description = "The model is loaded, and the server is not stopping", body = Probe),
        ReadyProblems,
    ),
)]
pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Probe>, Failure> {
    check_ready(&state)?;
    Ok(Json(Probe { status: "ready" }))
}

fn check_ready(state: &AppState) -> Result<()> {
    // Fails while the model loads, after it has failed, and once new requests are refused.
    state.captioner()?;
    if state.draining() { Err(Error::shutting_down()) } else { Ok(()) }
}

/// Whether [`ready`] answers 200.
pub(super) fn is_ready(state: &AppState) -> bool {
    check_ready(state).is_ok()
}

fn has_failed(state: &AppState) -> bool {
    state.loaded().is_some_and(Captioner::has_failed)
}

fn judge(state: &AppState, status: Option<&SchedulerStatus>) -> HealthStatus {
    match status {
        _ if has_failed(state) => HealthStatus::Failed,
        _ if state.draining() => HealthStatus::ShuttingDown,
        None => HealthStatus::Loading,
        Some(status) if status.is_full() => HealthStatus::Overloaded,
        Some(status) if status.degraded => HealthStatus::Degraded,
        Some(_) => HealthStatus::Ok,
    }
}
