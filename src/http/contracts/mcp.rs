//! `POST /mcp`: the Model Context Protocol over HTTP, without sessions: each request stands alone, in the
//! protocol of either era.
//!
//! A page that a browser has loaded from elsewhere must not reach a server on its user's machine. So
//! `Origin` must be one of `CORS_ALLOW_ORIGINS`, and `Host` must be a name of this machine where nothing
//! else protects the server.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::body::{Received, receive};
use crate::captioner::{
    Account, Budget, Captioner, Decoders, Photo, ProcessTimings, Tagger, current_account,
};
use crate::config::{CorsOrigins, HttpSettings};
use crate::fetch::FetchSources;
use crate::http::auth::Access;
use crate::http::body::BodyPermit;
use crate::http::error::{Failure, problem};
use crate::http::extract::encoded;
use crate::http::observe::{ImageReport, StreamResult};
use crate::http::openapi::bodies::SQUARE;
use crate::http::openapi::errors::McpProblems;
use crate::http::state::AppState;
use crate::http::taggers;
use crate::mcp::{Backend, Done, Folders, Tools};
use crate::metrics::Stage;
use cutline_error::{Error, ErrorKind, Result};

/// Values in a message. Each may take a hundred times its two bytes, and no message needs many.
const MOST_VALUES: usize = 4096;

/// Copies of a text with escapes that the parser holds, in addition to those of any text.
const COPIES_WITH_ESCAPES: usize = 3;

/// The longest error of the protocol's library that is passed on.
const MOST_ERROR_BYTES: usize = 16 << 10;

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![(Access::CAPTION, routes!(call))]
}

/// Calls a tool, or lists the tools
///
/// The Model Context Protocol over streamable HTTP, without sessions. Tools: `caption_image`, `alt_text`,
/// `tag_image` and `image_colors`. An error in a call is a result with `isError` and status 200; errors
/// with other statuses are JSON-RPC errors.
#[utoipa::path(
    post,
    path = "/mcp",
    operation_id = "mcp",
    tag = "mcp",
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "caption_image", "arguments": {"image": SQUARE}},
        }),
    ),
    responses(
        (
            status = OK,
            description = "The JSON-RPC response",
            content((Object = "application/json"), (String = "text/event-stream")),
        ),
        (status = ACCEPTED, description = "The message was a notification"),
        McpProblems,
    ),
)]
pub(super) async fn call(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let budget = state.decoders()?.budget().clone();
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.headers_mut() = request.headers().clone();
    // Both are always read, so a client need not say so.
    let both = HeaderValue::from_static("application/json, text/event-stream");
    head.headers_mut().insert(ACCEPT, both);
    let Received { bytes, permit } = receive(request, &state, &budget, 1).await?;
    if values(&bytes) > MOST_VALUES {
        return Err(Failure(Error::new(
            ErrorKind::MalformedRequest,
            format!("the message has more than {MOST_VALUES} values; send an image as one text"),
        )));
    }
    let escaped = bytes.contains(&b'\\');
    let copies = if escaped { bytes.len().saturating_mul(COPIES_WITH_ESCAPES) } else { 0 };
    let _copies = permit.copy(copies)?;

    let config = config(&state);
    let backend = Call { state, permit, account: current_account(), ended: Arc::default() };
    let ended = Arc::clone(&backend.ended);
    // One for each request, because the tools hold what belongs to this request.
    let tools = move || Ok(Tools::new(backend.clone()));
    let service =
        StreamableHttpService::new(tools, Arc::new(NeverSessionManager::default()), config);
    let response = service.handle(head.map(|()| Body::from(bytes))).await.map(Body::new);
    let mut response = jsonrpc(response).await?;
    match ended.get() {
        Some(Ok(report)) => {
            response.extensions_mut().insert(report.clone());
        }
        Some(Err(error)) => {
            // For the log and the metrics. The response says the same in the words of the protocol.
            let result = StreamResult::default();
            result.failed(error.clone());
            response.extensions_mut().insert(result);
        }
        None => {}
    }
    Ok(response)
}

/// The rules for one server.
fn config(state: &AppState) -> StreamableHttpServerConfig {
    let HttpSettings { protection, loopback_host, .. } = state.settings();
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        // The body has been read within our own limits.
        .with_max_request_body_bytes(usize::MAX);
    // A page that gives itself a name of this machine has no key, and is not behind the proxy.
    let exposed = !state.guard().needs_key() && protection.proxies == 0;
    let config = match loopback_host.as_deref().filter(|_| exposed) {
        Some(host) => config.with_allowed_hosts(["localhost", "127.0.0.1", "::1", host]),
        None => config.disable_allowed_hosts(),
    };
    match &protection.cors {
        CorsOrigins::Any => config.disable_allowed_origins(),
        CorsOrigins::None => config.enforce_origin_validation(),
        CorsOrigins::List(origins) => {
            let origins = origins.iter().map(|origin| with_port(origin));
            config.with_allowed_origins(origins).enforce_origin_validation()
        }
    }
}

/// An origin with the port that a browser leaves out. The library takes an origin without one for all of
/// its ports.
fn with_port(origin: &str) -> String {
    let (scheme, rest) = origin.split_once("://").unwrap_or_default();
    let host = rest.rsplit_once(']').map_or(rest, |(_, port)| port);
    match scheme {
        _ if host.contains(':') => origin.to_owned(),
        "http" => format!("{origin}:80"),
        "https" => format!("{origin}:443"),
        _ => format!("{origin}:*"),
    }
}

/// The errors of the library as those of every other layer: it writes some of them as plain text.
async fn jsonrpc(response: Response) -> Result<Response> {
    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    if status.is_success() || response.headers().get(CONTENT_TYPE) == Some(&json) {
        return Ok(response);
    }
    let (kind, detail) = match status {
        StatusCode::FORBIDDEN => (
            ErrorKind::OriginNotAllowed,
            "this Host or Origin is not allowed here, because a web page may have forged it; use the \
             address that the server listens on, or let its operator set CORS_ALLOW_ORIGINS, API_KEYS or \
             TRUSTED_PROXY_COUNT"
                .to_owned(),
        ),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (
            ErrorKind::MalformedRequest,
            "the body is not a JSON-RPC message of the Model Context Protocol; send one, with Content-Type: \
             application/json"
                .to_owned(),
        ),
        StatusCode::BAD_REQUEST => {
            let text = to_bytes(response.into_body(), MOST_ERROR_BYTES).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let reason: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            let reason = reason.trim_start_matches("Bad Request: ");
            (ErrorKind::MalformedRequest, format!("the request is malformed ({reason}); correct it"))
        }
        _ => (ErrorKind::Internal, format!("the protocol's library answered {status}")),
    };
    Err(Error::new(kind, detail))
}

/// How many values and names a JSON text has at most.
fn values(json: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b':' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

/// One request.
#[derive(Clone)]
struct Call {
    state: AppState,
    permit: BodyPermit,
    /// Who pays; the tools may run in another task.
    account: Option<Arc<dyn Account>>,
    /// Set once the tool has ended.
    ended: Arc<OnceLock<Result<ImageReport>>>,
}

impl Backend for Call {
    async fn captioner(&self) -> Result<Captioner> {
        let captioner = self.state.captioner()?;
        Ok(captioner.charged_to(self.account.clone()))
    }

    async fn tagger(&self, captioner: &Captioner) -> Result<Option<Tagger>> {
        taggers::of_settings(&self.state, captioner).await
    }

    fn decoders(&self) -> Result<Decoders> {
        self.state.decoders().cloned()
    }

    fn decode(&self, text: String) -> Result<Photo> {
        let bytes = encoded::image(&text, self.state.settings().max_image_bytes)?;
        let photo = self.permit.photo(bytes);
        // Nothing else is left of the message.
        drop(text);
        self.permit.release();
        Ok(photo)
    }

    async fn fetch(&self, url: &str, budget: &Budget) -> Result<Photo> {
        self.state.fetcher().fetch(url, budget).await
    }

    fn fetches(&self) -> bool {
        self.state.settings().fetch.sources != FetchSources::Off
    }

    fn folders(&self) -> Option<&Folders> {
        None
    }

    fn limit(&self) -> Option<Duration> {
        Some(self.state.settings().request_timeout)
    }

    fn ended(&self, result: Result<&Done, Error>) -> String {
        match result {
            Ok(done) => {
                let report = match done {
                    Done::Captioned(caption) | Done::Tagged(caption, _) => ImageReport::of(caption),
                    Done::Processed(processed) => {
                        let ProcessTimings { decode_ms, analysis_ms, .. } = processed.timings;
                        for (stage, spent) in
                            [(Stage::Decode, decode_ms), (Stage::Analysis, analysis_ms)]
                        {
                            self.state.metrics().stage(stage, Duration::from_secs_f64(spent / 1e3));
                        }
                        ImageReport::of_processed(processed)
                    }
                };
                let _ = self.ended.set(Ok(report));
                String::new()
            }
            Err(error) => {
                let sentence = problem(&error, None).detail.to_owned();
                let _ = self.ended.set(Err(error));
                sentence
            }
        }
    }
}
