//! A server behind a socket, a WebSocket client, and a client that writes frames byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use cutline::error::Result;
use cutline::http::serve;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::api::fixture::Fixture;

/// Longer than anything here takes.
pub(super) const BOUND: Duration = Duration::from_secs(20);

pub(super) struct Server {
    pub(super) fixture: Fixture,
    pub(super) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    pub(super) ended: JoinHandle<Result<()>>,
}

impl Server {
    /// With a queue of eight slots.
    pub(super) async fn start(settings: HttpSettings) -> Self {
        Self::with(settings, 8, MemoryLimits::default()).await
    }

    pub(super) async fn with(
        settings: HttpSettings,
        capacity: usize,
        memory: MemoryLimits,
    ) -> Self {
        let fixture = Fixture::build(settings, capacity, memory);
        fixture.state.ready(fixture.captioner.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(listener, fixture.state.clone(), async {
            let _ = stopped.await;
        }));
        Self { fixture, address, stop: Some(stop), ended }
    }

    pub(super) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(super) async fn connect(&self) -> Client {
        self.connect_with(&[]).await.unwrap().0
    }

    /// Connects with these headers; on a refusal returns its status and body.
    pub(super) async fn connect_with(
        &self,
        headers: &[(&'static str, &str)],
    ) -> Result<(Client, Response), (u16, Value)> {
        connect_to(self.address, headers).await
    }

    /// Waits until so many images are in the model.
    pub(super) async fn in_model(&self, images: usize) {
        let captioner = &self.fixture.captioner;
        let there = || captioner.status().in_flight == images;
        crate::api::fixture::eventually("images in the model", there).await;
    }

    pub(super) async fn raw(&self) -> RawClient {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = "GET /api/realtime HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\n\
                    upgrade: WebSocket\r\nsec-websocket-version: 13\r\n\
                    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // The example of RFC 6455.
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        RawClient { stream }
    }
}

/// Connects to the server at `address` with these headers; on a refusal returns its status and body.
pub(in crate::api) async fn connect_to(
    address: SocketAddr,
    headers: &[(&'static str, &str)],
) -> Result<(Client, Response), (u16, Value)> {
    let mut request = format!("ws://{address}/api/realtime").into_client_request().unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).unwrap();
        request.headers_mut().append(HeaderName::from_static(name), value);
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match client_async(request, stream).await {
        Ok((socket, response)) => Ok((Client { socket }, response)),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err((response.status().as_u16(), serde_json::from_slice(body).unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

pub(in crate::api) struct Client {
    pub(super) socket: WebSocketStream<TcpStream>,
}

impl Client {
    pub(in crate::api) async fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// Asks for a caption in a text message.
    pub(in crate::api) async fn caption(&mut self, id: &str, image: &[u8], parameters: Value) {
        self.send(&caption(id, image, parameters)).await;
    }

    /// Asks for a caption in a binary message.
    pub(in crate::api) async fn binary(&mut self, head: &Value, image: &[u8]) {
        self.socket.send(Message::binary(binary(head, image))).await.unwrap();
    }

    pub(super) async fn message(&mut self) -> Message {
        timeout(BOUND, self.socket.next()).await.unwrap().expect("an open connection").unwrap()
    }

    /// The next event.
    pub(in crate::api) async fn event(&mut self) -> Value {
        loop {
            match self.message().await {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                // The client answers by itself.
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The events of the request with this id until its end. Others must not come.
    pub(super) async fn all(&mut self, id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event().await;
            assert_eq!(event["id"], id, "{event}");
            let last = is_last(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }

    /// The last event of the request with this id. Other events are skipped.
    pub(in crate::api) async fn last(&mut self, id: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["id"] == id && is_last(&event) {
                return event;
            }
        }
    }

    /// Waits for this event.
    pub(in crate::api) async fn until(&mut self, kind: &str, id: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["id"] == id && event["type"] == kind {
                return event;
            }
            assert!(event["id"] != id || !is_last(&event), "{event} instead of {kind}");
        }
    }

    /// The code with which the server closes the connection. Events before it are skipped.
    pub(super) async fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.message().await {
                return frame.unwrap().code.into();
            }
        }
    }

    /// Asserts that the connection still works.
    pub(super) async fn still_answers(&mut self) {
        let image = crate::api::fixture::png();
        self.caption("still here", &image, json!({"cache": "bypass"})).await;
        let event = self.last("still here").await;
        assert_eq!(event["result"]["caption"], "a red square", "{event}");
    }
}

fn is_last(event: &Value) -> bool {
    ["done", "error", "cancelled"].contains(&event["type"].as_str().unwrap())
}

pub(super) fn caption(id: &str, image: &[u8], parameters: Value) -> Value {
    use base64::Engine as _;
    let image = base64::prelude::BASE64_STANDARD.encode(image);
    let mut message = json!({"type": "caption", "id": id, "image": image});
    let Value::Object(parameters) = parameters else { panic!("{parameters}") };
    message.as_object_mut().unwrap().extend(parameters);
    message
}

pub(super) fn binary(head: &Value, image: &[u8]) -> Vec<u8> {
    [head.to_string().as_bytes(), b"\n", image].concat()
}

/// Asserts that `event` is this error, and returns its problem document.
#[track_caller]
pub(in crate::api) fn problem(event: &Value, id: Option<&str>, status: u16, code: &str) -> Value {
    assert_eq!(event["type"], "error", "{event}");
    assert_eq!(event.get("id").and_then(Value::as_str), id, "{event}");
    let problem = &event["error"];
    assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{event}");
    assert_eq!(problem["type"], format!("urn:cutline:problem:{code}"));
    assert!(problem["detail"].as_str().unwrap().len() > 20, "{event}");
    assert_eq!(event["retry_after"].is_u64(), status == 429 || status == 503, "{event}");
    problem.clone()
}

/// A client that writes its own frames.
pub(super) struct RawClient {
    pub(super) stream: TcpStream,
}

pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xA;
pub(super) const FIN: u8 = 0x80;

/// The head of a masked frame with a payload of `length` bytes. The mask is all zeros.
pub(super) fn head(first: u8, length: usize) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(0x80 | u8::try_from(length).unwrap()),
        126..0x1_0000 => {
            head.push(0x80 | 126);
            head.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head.extend([0; 4]);
    head
}

pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&head(first, payload.len())[..], payload].concat()
}

impl RawClient {
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        timeout(BOUND, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    /// The next frame: its first byte and its payload.
    pub(super) async fn frame(&mut self) -> (u8, Vec<u8>) {
        let reading = async {
            let first = self.stream.read_u8().await.expect("a frame");
            let length = match self.stream.read_u8().await.unwrap() {
                126 => usize::from(self.stream.read_u16().await.unwrap()),
                127 => usize::try_from(self.stream.read_u64().await.unwrap()).unwrap(),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            (first, payload)
        };
        timeout(BOUND, reading).await.unwrap()
    }

    /// The next event.
    pub(in crate::api) async fn event(&mut self) -> Value {
        loop {
            let (first, payload) = self.frame().await;
            if first == FIN | TEXT {
                return serde_json::from_slice(&payload).unwrap();
            }
            assert!(first == FIN | PING || first == FIN | PONG, "{first:x} {payload:?}");
        }
    }

    /// The code of the next close frame, after which the connection ends.
    pub(super) async fn close_code(&mut self) -> u16 {
        loop {
            let (first, payload) = self.frame().await;
            if first == FIN | CLOSE {
                let ended = timeout(BOUND, self.stream.read(&mut [0; 16])).await.unwrap();
                assert!(matches!(ended, Ok(0) | Err(_)), "more after the close frame");
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }
}
