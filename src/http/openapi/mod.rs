//! `GET /openapi.json` and `GET /api/docs/`: the contract as an OpenAPI document, made from the
//! handlers and the types that they answer with.
//!
//! What the handlers have in common is put in here rather than repeated at each: the three ways of
//! sending images, the parameters, and the errors with an example each.

mod bodies;
mod errors;
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
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::state::AppState;
use super::{batch, dto, generate, health, index, metrics, model, process};
use crate::captioner;

/// Where the document is.
pub(super) const DOCUMENT: &str = "/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cutline",
        description = "Captions images on the machine in front of you, with their dominant colours \
                       and a mood.\n\nThe format of an image is told from its bytes, never from a \
                       name or a declared type. Parameters in the query string count for every way \
                       of sending an image; one that is given twice is refused.",
    ),
    paths(
        generate::generate,
        batch::batch,
        process::process,
        index::show,
        health::show,
        health::live,
        health::ready,
        model::info,
        metrics::show,
        document,
        docs,
    ),
    components(schemas(captioner::Caption, dto::Problem, dto::TextSoFar)),
    tags(
        (name = "captions", description = "Images to captions"),
        (name = "images", description = "What can be told without the model"),
        (name = "operation", description = "State of server and model"),
        (name = "documents", description = "What this server answers"),
    ),
)]
struct Contract;

/// The whole contract.
fn contract() -> utoipa::openapi::OpenApi {
    let mut contract = Contract::openapi();
    bodies::describe(&mut contract);
    errors::describe(&mut contract);
    let components = contract.components.get_or_insert_with(Components::default);
    flat::flatten(components);
    // It is part of another one now.
    components.schemas.remove("ItemResult");
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let key = ApiKeyValue::with_description("x-api-key", "One of the server's API_KEYS.");
    components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    // A server without API_KEYS asks for none, which is what the empty requirement says.
    let none: [&str; 0] = [];
    contract.security = Some(vec![
        SecurityRequirement::default(),
        SecurityRequirement::new("bearer", none),
        SecurityRequirement::new("key", none),
    ]);
    contract
}

/// The contract as indented JSON with a line break at its end, as it is kept in `openapi.json`.
#[must_use]
pub fn contract_json() -> &'static str {
    // It never changes while the program runs.
    static JSON: LazyLock<String> = LazyLock::new(|| {
        // Strings, numbers and maps with text for keys always serialise.
        let mut text = contract().to_pretty_json().unwrap_or_default();
        text.push('\n');
        text
    });
    &JSON
}

/// The contract
///
/// An OpenAPI 3.1 document of everything that this server answers.
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

/// The contract to read and try
///
/// Swagger UI, served by this server alone.
#[utoipa::path(
    get,
    path = "/api/docs/",
    operation_id = "docs",
    tag = "documents",
    responses((status = OK, description = "A page for browsers", body = String, content_type = "text/html")),
)]
#[allow(dead_code, reason = "described here, served by utoipa-swagger-ui")]
async fn docs() {}

/// Scripts and styles only as files of this server; the icons are in the style sheet.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Swagger UI and its files.
pub(super) fn swagger_ui() -> Router<AppState> {
    let config = Config::from(DOCUMENT).use_base_layout();
    Router::from(SwaggerUi::new("/api/docs").config(config)).layer(axum::middleware::map_response(
        async |mut response: Response| {
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
            response
        },
    ))
}

/// An answer to copy from.
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
