//! `GET /`

use axum::Json;
use axum::http::header::VARY;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::dto::{Endpoint, Index};
use super::{ENDPOINTS, page};

/// What there is
///
/// The list of endpoints to a program, the page to try the server on to a browser.
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
pub(super) async fn show(headers: HeaderMap) -> Response {
    if page::wanted(&headers) {
        return page::show(&headers);
    }
    let mut response = list().into_response();
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

fn list() -> Json<Index> {
    let endpoints = ENDPOINTS
        .iter()
        .map(|&(method, path, description)| Endpoint { method, path, description })
        .collect();
    Json(Index { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION"), endpoints })
}
