//! `GET /`

use axum::Json;
use axum::http::header::VARY;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::dto::{Endpoint, Index};
use super::{ENDPOINTS, page};

/// The page to a browser, the list of endpoints to a program.
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
