//! The HTTP contracts of other programs, on top of the one [`Captioner`](crate::captioner::Captioner).
//!
//! - one folder for each contract: `openai`, …; it knows the names of fields, nothing else does;
//! - [`Contract`] says to which contract an address belongs, for the shape of errors and for metrics;
//! - `error`: errors in the shape of the contract, also those of layers in front of the handlers;
//! - `body`: bodies within the limits of the server; `json`: its texts and arrays, bounded in memory;
//! - `conversation`: what the messages of a chat ask for; `images`: images in text; `names`: which model is meant;
//! - `sampling`: how to decode; `intent`: what an instruction asks for; `structured`: answers that follow a JSON schema;
//! - `ask`: from images and an intent to captions; `stream`: the same, piece by piece.
//!
//! These contracts are lenient where their clients are careless: unknown fields are ignored, numbers
//! out of range are clamped, the `Content-Type` may be missing.

mod ask;
mod body;
mod conversation;
pub(super) mod error;
mod huggingface;
mod images;
mod intent;
mod json;
mod kserve;
mod mcp;
pub(super) mod names;
mod ollama;
mod openai;
mod photoprism;
mod sampling;
mod stream;
mod structured;

#[cfg(feature = "grpc")]
pub(super) use self::kserve::grpc;
use axum::Router;
use axum::http::{HeaderName, Method};

use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::UtoipaMethodRouter;

use super::auth::Access;
use super::state::AppState;

/// Says which intent was understood: `caption`, `alt_text` or `tags`.
pub(super) const INTENT: HeaderName = HeaderName::from_static("x-cutline-intent");

/// The contract that an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contract {
    /// Our own.
    Native,
    /// OpenAI's API.
    OpenAi,
    /// Ollama's API.
    Ollama,
    /// The tasks of Hugging Face's inference API.
    HuggingFace,
    /// KServe's Open Inference Protocol, version 2.
    Kserve,
    /// The same over gRPC.
    #[cfg(feature = "grpc")]
    KserveGrpc,
    /// PhotoPrism's vision service.
    PhotoPrism,
    /// The Model Context Protocol.
    Mcp,
    /// Our own, over a WebSocket.
    Realtime,
}

impl Contract {
    /// The contract of a request.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        let below = |prefix: &str| {
            let rest = path.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match path {
            "/" if method == Method::POST => Self::HuggingFace,
            "/info" | "/predict" => Self::HuggingFace,
            _ if below("/v1") => Self::OpenAi,
            _ if below("/v2") => Self::Kserve,
            _ if below("/mcp") => Self::Mcp,
            _ if below("/pipeline") || below("/models") => Self::HuggingFace,
            _ if below("/api/docs") => Self::Native,
            _ if below("/api/realtime") => Self::Realtime,
            _ if below("/api/v1/vision") => Self::PhotoPrism,
            _ if below("/api") => Self::Ollama,
            _ => Self::Native,
        }
    }

    /// Its name in metrics and logs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::OpenAi => "openai",
            Self::Ollama => "ollama",
            Self::HuggingFace => "huggingface",
            Self::Kserve => "kserve",
            #[cfg(feature = "grpc")]
            Self::KserveGrpc => "kserve",
            Self::PhotoPrism => "photoprism",
            Self::Mcp => "mcp",
            Self::Realtime => "realtime",
        }
    }
}

/// The routes of all contracts, and who may use them.
pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    let rooms = [
        openai::routes(),
        ollama::routes(),
        photoprism::routes(),
        huggingface::routes(),
        kserve::routes(),
        mcp::routes(),
    ];
    rooms.into_iter().flatten().collect()
}

/// Routes that are no part of the OpenAPI document.
pub(super) fn more_routes() -> Router<AppState> {
    openai::more_routes().merge(huggingface::more_routes()).merge(kserve::more_routes())
}

/// Describes addresses of [`more_routes`] in the OpenAPI document.
pub(super) fn more_paths() -> OpenApi {
    kserve::ModelRoutes::openapi()
}

/// The methods of one of [`more_routes`].
pub(super) fn methods(route: &str) -> &'static [&'static str] {
    match route {
        huggingface::BY_MODEL => &["POST"],
        kserve::BY_MODEL => &["GET", "POST"],
        _ => &["GET"],
    }
}

/// A random id with the prefix that a contract demands.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_one_contract() {
        for (path, expected) in [
            ("/", Contract::Native),
            ("/caption/generate", Contract::Native),
            ("/api/docs/", Contract::Native),
            ("/v1", Contract::OpenAi),
            ("/v1/chat/completions", Contract::OpenAi),
            ("/v10/models", Contract::Native),
            ("/v2/models/cutline-small/infer", Contract::Kserve),
            ("/api/tags", Contract::Ollama),
            ("/api", Contract::Ollama),
            ("/api/v1/vision/caption", Contract::PhotoPrism),
            ("/api/realtime", Contract::Realtime),
            ("/mcp", Contract::Mcp),
            ("/pipeline/image-to-text", Contract::HuggingFace),
            ("/models/Salesforce/blip", Contract::HuggingFace),
            ("/model/info", Contract::Native),
            ("/info", Contract::HuggingFace),
        ] {
            assert_eq!(Contract::of(&Method::GET, path), expected, "{path}");
        }
        assert_eq!(Contract::of(&Method::POST, "/"), Contract::HuggingFace);
    }
}
