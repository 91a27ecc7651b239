//! `GET /openapi.json` and `GET /api/docs/`: the contract as an OpenAPI document, generated from the
//! documentation of the handlers and from the types of their answers.
//!
//! `bodies` and `errors` are the types that the handlers' documentation shares; `flat` simplifies
//! schemas for generators of clients.

pub(super) mod bodies;
pub(super) mod errors;
mod flat;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, SecurityRequirement, ServerBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::Config;

use super::state::AppState;
use super::{contracts, dto, not_found, realtime, routes};
use crate::captioner;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "cutline",
        description = "Captions images on your own machine, with dominant colours and a mood.\n\n\
                       The format of an image is detected from its bytes, never from a name or a \
                       declared type. Parameters in the query string apply to every way of sending \
                       an image. A parameter that is given twice is refused. In JSON, null means \
                       that a parameter is not given. Bodies may be compressed with gzip or deflate.",
    ),
    components(schemas(
        bodies::ImageReference,
        captioner::Caption,
        dto::Problem,
        dto::TextSoFar,
        realtime::RealtimeEvent,
    )),
    tags(
        (name = "captions", description = "Captions of images"),
        (name = "tags", description = "Tags of images, from an allowed list"),
        (name = "texts", description = "Texts and questions about images"),
        (name = "images", description = "Properties of images, without the model"),
        (name = "library", description = "Captions that are kept, with LIBRARY"),
        (name = "keys", description = "Keys of clients, and what they have used, with LIBRARY"),
        (name = "prompts", description = "Prompts with versions, and experiments, with LIBRARY"),
        (name = "operation", description = "State of the server and the model"),
        (name = "openai", description = "OpenAI's API, for its clients"),
        (name = "ollama", description = "Ollama's API, for its clients"),
        (name = "photoprism", description = "PhotoPrism's vision service"),
        (name = "huggingface", description = "The tasks of Hugging Face's inference API"),
        (name = "kserve", description = "KServe's Open Inference Protocol, version 2"),
        (name = "mcp", description = "The Model Context Protocol"),
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
    contract.merge(contracts::more_paths());
    contract.merge(SwaggerUiContract::openapi());
    let components = contract.components.get_or_insert_with(Components::default);
    flat::flatten(components);
    // Merged into `BatchItem`.
    components.schemas.remove("ItemResult");
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let key = ApiKeyValue::with_description("x-api-key", "One of the server's API_KEYS.");
    components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    // Relative to the address of the document, which may be behind a path prefix.
    contract.servers = Some(vec![ServerBuilder::new().url(".").build()]);
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

/// Swagger UI and its files. All addresses are relative, so that they are right behind a proxy that
/// serves the server under a path of its own. utoipa-swagger-ui's own router redirects to an absolute
/// one.
pub(super) fn swagger_ui() -> Router<AppState> {
    Router::new()
        .route("/api/docs", get(async || (StatusCode::SEE_OTHER, [(LOCATION, "docs/")])))
        .route("/api/docs/", get(async || swagger_file("index.html").await))
        .route(
            "/api/docs/{*rest}",
            get(async |path: Result<Path<String>, PathRejection>| match path {
                Ok(Path(path)) => swagger_file(&path).await,
                // It is not UTF-8.
                Err(_) => not_found().await.into_response(),
            }),
        )
}

async fn swagger_file(path: &str) -> Response {
    static CONFIG: LazyLock<Arc<Config>> =
        LazyLock::new(|| Arc::new(Config::from("../../openapi.json").use_base_layout()));
    // It fails only if its own template is broken.
    let Ok(Some(file)) = utoipa_swagger_ui::serve(path, Arc::clone(&CONFIG)) else {
        return not_found().await.into_response();
    };
    let headers = [(CONTENT_TYPE, file.content_type)];
    let mut response = (headers, file.bytes.into_owned()).into_response();
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response
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
