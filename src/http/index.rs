//! `GET /`

use axum::Json;
use axum::extract::State;
use axum::http::header::VARY;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::dto::Index;
use super::state::AppState;
use super::{endpoints, page};

/// Lists the endpoints
///
/// A browser gets the page on which a person can try the server.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "index",
    tag = "documents",
    responses((
        status = OK,
        description = "The list of endpoints, or with `Accept: text/html` the page",
        content((Index = "application/json"), (String = "text/html")),
    )),
)]
pub(super) async fn show(State(state): State<AppState>, headers: HeaderMap) -> Response {
    if page::wanted(&headers) {
        return page::show(&headers, state.library().is_some());
    }
    let mut response = list().into_response();
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

fn list() -> Json<Index> {
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    Json(Index { name, version, endpoints: endpoints() })
}
