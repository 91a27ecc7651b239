//! `GET /openapi.json` and `GET /api/docs/`: the contract as an OpenAPI document, generated from the
//! documentation of the handlers and from the types of their answers.
//!
//! `bodies` and `errors` are the types that the handlers' documentation shares; `flat` simplifies
//! schemas for generators of clients.

pub(super) mod bodies;
pub(super) mod errors;
mod flat;

use std::sync::LazyLock;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::state::AppState;
use super::{dto, routes};
use crate::captioner;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cutline",
        description = "Captions images on your own machine, with dominant colours and a mood.\n\n\
                       The format of an image is detected from its bytes, never from a name or a \
                       declared type. Parameters in the query string apply to every way of sending \
                       an image. A parameter that is given twice is refused.",
    ),
    components(schemas(captioner::Caption, dto::Problem, dto::TextSoFar)),
    tags(
        (name = "captions", description = "Captions of images"),
        (name = "images", description = "Properties of images, without the model"),
        (name = "operation", description = "State of the server and the model"),
        (name = "documents", description = "Descriptions of this server"),
    ),
)]
struct Contract;

/// Swagger UI has routes of its own.
#[derive(OpenApi)]
#[openapi(paths(docs))]
struct SwaggerUiContract;

/// The whole contract.
pub(super) fn contract() -> utoipa::openapi::OpenApi {
    let router = OpenApiRouter::with_openapi(Contract::openapi());
    let router = routes().into_iter().fold(router, |router, (_, route)| router.routes(route));
    let mut contract = router.into_openapi();
    contract.merge(SwaggerUiContract::openapi());
    let components = contract.components.get_or_insert_with(Components::default);
    flat::flatten(components);
    // Merged into `BatchItem`.
    components.schemas.remove("ItemResult");
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let key = ApiKeyValue::with_description("x-api-key", "One of the server's API_KEYS.");
    components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    // The empty requirement: a server without API_KEYS requires none.
    let none: [&str; 0] = [];
    contract.security = Some(vec![
        SecurityRequirement::default(),
        SecurityRequirement::new("bearer", none),
        SecurityRequirement::new("key", none),
    ]);
    contract
}

/// The contract as indented JSON with a line break at its end, as in the file `openapi.json`.
#[must_use]
pub fn contract_json() -> &'static str {
    // It does not change while the program runs.
    static JSON: LazyLock<String> = LazyLock::new(|| {
        // Strings, numbers and maps with text for keys always serialise.
        let mut text = contract().to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    });
    &JSON
}

/// This contract as an OpenAPI document
///
/// OpenAPI 3.1, with all endpoints, parameters, answers and errors.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "contract",
    tag = "documents",
    responses((status = OK, description = "This document", body = Object)),
)]
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], contract_json()).into_response()
}

/// This contract as a page to read and try
///
/// Swagger UI, without files from other hosts.
#[utoipa::path(
    get,
    path = "/api/docs/",
    operation_id = "docs",
    tag = "documents",
    responses((status = OK, description = "A page for browsers", body = String, content_type = "text/html")),
)]
#[allow(dead_code, reason = "described here, served by utoipa-swagger-ui")]
async fn docs() {}

/// Scripts and styles must be files of this server; the icons are in the style sheet.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Whether the route is one of Swagger UI's.
pub(super) fn is_docs(route: &str) -> bool {
    route == "/api/docs" || route.starts_with("/api/docs/")
}

/// Swagger UI and its files.
pub(super) fn swagger_ui() -> Router<AppState> {
    let config = Config::from("/openapi.json").use_base_layout();
    Router::from(SwaggerUi::new("/api/docs").config(config)).layer(axum::middleware::map_response(
        async |mut response: Response| {
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
            response
        },
    ))
}

/// An example of an answer.
pub(super) fn caption_example() -> serde_json::Value {
    json!({
        "caption": "a cat sitting on a couch",
        "captions": [{
            "text": "a cat sitting on a couch",
            "confidence": 0.71,
            "tokens": 7,
            "finish_reason": "stop",
        }],
        "model": "cutline-small",
        "cache": "miss",
        "image": {
            "hash": format!("blake3:{}", "0".repeat(64)),
            "format": "jpeg",
            "width": 1200,
            "height": 800,
            "size_bytes": 183_345,
        },
        "colors": [{"hex": "#a07c5b", "rgb": [160, 124, 91], "name": "rosybrown", "fraction": 1.0}],
        "mood": {
            "label": "calm",
            "valence": 0.62,
            "energy": 0.31,
            "warmth": 0.7,
            "brightness": 0.55,
            "saturation": 0.22,
        },
        "timings": {"decode_ms": 6.1, "queue_ms": 0.2, "inference_ms": 92.0, "total_ms": 99.4},
    })
}
