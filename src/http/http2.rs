//! HTTP/2, for gRPC on a port of its own.
//!
//! `axum::serve` is not used, because its windows of a megabyte for each stream and connection would not
//! fit into the memory that a connection may take.

use std::pin::pin;

use axum::extract::ConnectInfo;
use axum::serve::Listener as _;
use axum::{Extension, Router};
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;

use super::connection::{BUFFER_BYTES, Connection, TimeoutListener, TimeoutStream};

/// Bytes of bodies on their way, for a connection and for each of its streams. What is beyond waits at
/// the client.
const WINDOW: u32 = (BUFFER_BYTES / 2) as u32;

/// Calls in progress on one connection; clients of gRPC share one.
const MAX_STREAMS: u32 = 128;

/// The most bytes of the headers of a call.
const MAX_HEADERS: u32 = 16 << 10;

/// Serves `app` on `listener` until `closed` changes, and then until all calls are answered.
pub(super) async fn serve(
    mut listener: TimeoutListener,
    app: Router,
    mut closed: watch::Receiver<bool>,
) {
    // Each connection holds a receiver.
    let (close, closing) = watch::channel(false);
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender is dropped only when the server ends.
            () = ended(&mut closed) => break,
        };
        let connection = Connection::new(&stream, address);
        let app = app.clone().layer(Extension(ConnectInfo(connection)));
        tokio::spawn(connect(stream, app, closing.clone()));
    }
    drop((listener, closing));
    let _ = close.send(true);
    close.closed().await;
}

/// Waits until the server ends. Not inside `select!`, because what is returned must not be kept across
/// an await.
async fn ended(closed: &mut watch::Receiver<bool>) {
    drop(closed.wait_for(|closed| *closed).await);
}

/// Serves one connection. Its errors are the client's: it broke off, or broke the protocol.
async fn connect(stream: TimeoutStream, app: Router, mut closing: watch::Receiver<bool>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(16 << 10);
    let service = TowerToHyperService::new(app);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream.for_http2()), service));
    tokio::select! {
        _ = connection.as_mut() => {}
        () = ended(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
