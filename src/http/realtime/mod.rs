//! `GET /api/realtime`: captions over a WebSocket.
//!
//! - this file: the handshake;
//! - `session`: one connection; `requests`: its captions in progress;
//! - `reader`: from frames to messages; `outbox`: from events to frames; `events`: what they say;
//! - `entrance`: what a request holds while it is in progress.
//!
//! What clients say is read by [`extract`](super::extract), like every other request.

mod entrance;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod outbox;
mod reader;
mod requests;
mod session;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;

use self::entrance::Entrance;
pub(super) use self::events::RealtimeEvent;
use self::outbox::Left;
use super::connection::Connection;
use super::cors;
use super::error::Failure;
use super::openapi::errors::RealtimeProblems;
use super::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The address, which is also the route in logs and metrics.
const PATH: &str = "/api/realtime";

/// The subprotocol. Clients need not name it, unless they send their key as another one.
const PROTOCOL: &str = "cutline.v1";

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// The client has left without a word.
    Gone,
    /// With this code and this reason.
    With(CloseCode, &'static str),
}

impl Closing {
    fn away(reason: &'static str) -> Self {
        Self::With(CloseCode::Away, reason)
    }

    fn protocol(reason: &'static str) -> Self {
        Self::With(CloseCode::Protocol, reason)
    }

    fn not_text() -> Self {
        Self::With(CloseCode::Invalid, "a text is not UTF-8")
    }

    fn too_big(reason: &'static str) -> Self {
        Self::With(CloseCode::Size, reason)
    }
}

impl From<Left> for Closing {
    fn from(_: Left) -> Self {
        Self::Gone
    }
}

/// Captions over a WebSocket
///
/// Requests and answers are messages on one connection. Several requests may be in progress, each with
/// an id of the client's choice. docs/clients/realtime.md describes the messages; those of the server
/// are the schema `RealtimeEvent`.
#[utoipa::path(
    get,
    path = "/api/realtime",
    operation_id = "realtime",
    tag = "captions",
    responses((status = SWITCHING_PROTOCOLS, description = "A WebSocket"), RealtimeProblems),
)]
pub(super) async fn connect(
    State(state): State<AppState>,
    mut request: Request,
) -> Result<Response, Failure> {
    cors::check_origin(request.headers(), &state.settings().protection.cors)?;
    let accepted = accepted(request.method(), request.headers())?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or_else(|| {
        malformed("this connection cannot become a WebSocket; connect with HTTP/1.1")
    })?;
    let budget = state.captioner()?.budget().clone();
    let client = state.guard().client(&request);
    let protocols = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let named = lists(protocols.iter(), PROTOCOL);
    let connection = request.extensions().get::<ConnectInfo<Connection>>().map(|c| c.0.clone());
    if let Some(connection) = &connection {
        connection.upgrade();
    }
    let open = state.open_session();
    let entrance = Entrance { state, connection };
    tokio::spawn(async move {
        let _open = open;
        // It fails if the client leaves before it has read the answer.
        if let Ok(io) = upgrade.await {
            session::serve(TokioIo::new(io), entrance, client, &budget).await;
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    if named {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(response)
}

/// The answer to the key of a handshake.
fn accepted(method: &Method, headers: &HeaderMap) -> Result<HeaderValue> {
    let one = |name: &HeaderName| {
        let mut lines = headers.get_all(name).iter();
        lines.next().filter(|_| lines.next().is_none())
    };
    let is_handshake = method == Method::GET
        && lists(headers.get_all(CONNECTION).iter(), "upgrade")
        && lists(headers.get_all(UPGRADE).iter(), "websocket");
    if !is_handshake {
        return Err(malformed(
            "this address speaks WebSocket; connect to it with a WebSocket client",
        ));
    }
    if one(&SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(malformed("this version of WebSocket is not known; use version 13"));
    }
    // 16 bytes in base64.
    let key = one(&SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).filter(|key| key.len() == 24);
    let key = key.ok_or_else(|| {
        malformed("the handshake has no valid Sec-WebSocket-Key; send 16 random bytes as base64")
    })?;
    HeaderValue::from_str(&derive_accept_key(key))
        .map_err(|error| Error::internal("an answer to a key is no header").with_source(error))
}

/// Whether a header lists `word`.
fn lists<'h>(lines: impl Iterator<Item = &'h HeaderValue>, word: &str) -> bool {
    let mut words = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    words.any(|one| one.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

fn malformed(detail: &'static str) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}
