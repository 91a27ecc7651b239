//! `GET /metrics`

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::openapi::errors::MetricsProblems;
use super::state::AppState;
use crate::captioner::Captioner;
use crate::metrics::{self, ServerSnapshot};
use crate::routing::Routes;

/// Metrics for Prometheus
///
/// Also available while the model is loading and while the server is stopping.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "operation",
    responses(
        (
            status = OK,
            description = "The text format of Prometheus",
            body = String,
            content_type = "text/plain",
        ),
        MetricsProblems,
    ),
)]
pub(super) async fn show(State(state): State<AppState>) -> impl IntoResponse {
    let text = state.metrics().render(snapshot(&state));
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

fn snapshot(state: &AppState) -> ServerSnapshot {
    let memory = state.image_memory();
    ServerSnapshot {
        requests_in_flight: state.active(),
        ready: super::health::is_ready(state),
        inflight_bytes: memory.files.held(),
        inflight_bytes_limit: memory.files.capacity(),
        decode_bytes: memory.decoding.held(),
        decode_bytes_limit: memory.decoding.capacity(),
        memory_bound: super::health::memory(state).map(|memory| memory.peak_bytes),
        model: state.loaded().map(Captioner::snapshot),
        backends: state.routes().map(Routes::snapshot).unwrap_or_default(),
    }
}
