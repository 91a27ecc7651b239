//! The HTTP server: routes, what they read and answer, and how long a connection may take.
//!
//! - [`app`] is the whole service as a router, without a socket;
//! - [`run`] binds it to a listener, loads the model beside it, and stops it in an orderly way;
//! - one file a resource: `index` with `page`, `health`, `model`, `generate` with `stream`, `batch`,
//!   `process`, `metrics`, `openapi` with Swagger UI;
//! - `extract` reads the three ways of sending images, `error` is the only place where an
//!   [`ErrorKind`] becomes a status, `observe` gives every request its id,
//!   its log line and its `server-timing`;
//! - `auth` and `rate` say who may ask and how often, `cors` which sites' pages may, `headers` what
//!   browsers may do with the answers.

mod auth;
mod batch;
mod body;
mod connection;
mod connection_limit;
mod cors;
mod dto;
mod error;
mod extract;
mod generate;
mod headers;
mod health;
mod index;
mod metrics;
mod model;
mod observe;
mod openapi;
mod page;
mod process;
mod rate;
mod server;
mod state;
mod stream;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use self::error::Failure;
pub use self::openapi::contract_json;
pub use self::server::{run, serve};
pub use self::state::AppState;
use cutline_error::{Error, ErrorKind};

/// Method, path and purpose of everything that [`app`] answers.
pub const ENDPOINTS: [(&str, &str, &str); 11] = [
    ("GET", "/", "this list; to a browser the page to try the server on"),
    ("GET", "/health", "state of model and queue"),
    ("GET", "/health/live", "200 while the process answers"),
    ("GET", "/health/ready", "200 while captions are made"),
    ("GET", "/model/info", "the loaded model"),
    ("POST", "/caption/generate", "an image to its caption"),
    ("POST", "/caption/batch", "many images to a caption each"),
    (
        "POST",
        "/image/process",
        "an image to its size, colours, mood and measures, without the model",
    ),
    ("GET", "/metrics", "what Prometheus collects"),
    ("GET", "/openapi.json", "this contract, for programs"),
    ("GET", "/api/docs/", "this contract, for people"),
];

/// The whole service.
pub fn app(state: AppState) -> Router {
    let routes = Router::new()
        .route("/", get(index::show))
        .route("/page/{name}", get(page::asset))
        .route("/health", get(health::show))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/model/info", get(model::info))
        .route("/caption/generate", post(generate::generate))
        .route("/caption/batch", post(batch::batch))
        .route("/image/process", post(process::process))
        .route("/metrics", get(metrics::show))
        .route(openapi::DOCUMENT, get(openapi::document))
        .merge(openapi::swagger_ui())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(CatchPanicLayer::custom(error::from_panic));
    // Outside of the keys: a preflight has none, and a page may read why it was refused.
    let routes = match cors::layer(&state.settings().protection.cors) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes
        .layer(middleware::from_fn_with_state(state.clone(), observe::observe))
        .layer(middleware::map_response(headers::harden))
        .with_state(state)
}

async fn not_found() -> Failure {
    Failure(Error::new(
        ErrorKind::NotFound,
        "there is nothing at this address; GET / lists what there is",
    ))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Failure {
    let mut allowed: Vec<&str> =
        ENDPOINTS.iter().filter(|(_, path, _)| *path == uri.path()).map(|(m, ..)| *m).collect();
    if allowed.is_empty() {
        // The files of the page, which are no part of the contract.
        allowed.push("GET");
    }
    Failure(Error::new(
        ErrorKind::MethodNotAllowed,
        format!("{method} is not for this address; use {}", allowed.join(" or ")),
    ))
}
