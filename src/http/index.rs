//! `GET /`

use axum::Json;

use super::ENDPOINTS;
use super::dto::{Endpoint, Index};

pub(super) async fn show() -> Json<Index> {
    let endpoints = ENDPOINTS
        .iter()
        .map(|&(method, path, description)| Endpoint { method, path, description })
        .collect();
    Json(Index { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION"), endpoints })
}
