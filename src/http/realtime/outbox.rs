//! Frames on their way to the client: a short queue, and the task that writes it to the connection.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::entrance::InProgress;
use super::events::RealtimeEvent;

/// Frames in the queue. Beyond it, requests wait for the client to read; the model never does.
const CAPACITY: usize = 8;

/// The most bytes of a reason in a close frame.
const REASON_BYTES: usize = 123;

/// The client has left.
#[derive(Debug)]
pub(super) struct Left;

/// The sending end of the queue.
#[derive(Debug, Clone)]
pub(super) struct Outbox(mpsc::Sender<Outgoing>);

/// A frame, with the request that ends once it is written.
#[derive(Debug)]
pub(super) struct Outgoing {
    opcode: OpCode,
    payload: Vec<u8>,
    progress: Option<InProgress>,
}

impl Outgoing {
    fn control(opcode: Control, payload: Vec<u8>) -> Self {
        Self { opcode: OpCode::Control(opcode), payload, progress: None }
    }
}

impl Outbox {
    pub(super) fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (sender, frames) = mpsc::channel(CAPACITY);
        (Self(sender), frames)
    }

    /// Sends an event on the way of a request.
    pub(super) async fn event(&self, event: &RealtimeEvent<'_>) -> Result<(), Left> {
        self.text(event, None).await
    }

    /// Sends the last event of a request, which is in progress until the event is written.
    pub(super) async fn last(
        &self,
        event: &RealtimeEvent<'_>,
        progress: InProgress,
    ) -> Result<(), Left> {
        self.text(event, Some(progress)).await
    }

    async fn text(
        &self,
        event: &RealtimeEvent<'_>,
        progress: Option<InProgress>,
    ) -> Result<(), Left> {
        // Strings and numbers always serialise.
        let payload = serde_json::to_vec(event).unwrap_or_default();
        self.send(Outgoing { opcode: OpCode::Data(Data::Text), payload, progress }).await
    }

    pub(super) async fn pong(&self, payload: Vec<u8>) -> Result<(), Left> {
        self.send(Outgoing::control(Control::Pong, payload)).await
    }

    /// Sends a ping, unless so much is waiting that the client will hear from us anyway.
    pub(super) fn ping(&self) {
        let _ = self.0.try_send(Outgoing::control(Control::Ping, Vec::new()));
    }

    /// Sends the last frame.
    pub(super) async fn close(&self, code: CloseCode, reason: &str) -> Result<(), Left> {
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES)];
        let payload = [&u16::from(code).to_be_bytes(), reason].concat();
        self.send(Outgoing::control(Control::Close, payload)).await
    }

    async fn send(&self, frame: Outgoing) -> Result<(), Left> {
        self.0.send(frame).await.map_err(|_| Left)
    }

    /// Waits until the client has left, or reads nothing for too long.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Writes frames to the one that closes the connection. Returns the connection, so that it is not closed
/// before the client has answered.
///
/// # Errors
/// The client has left, or reads nothing for too long.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut io: W,
    mut frames: mpsc::Receiver<Outgoing>,
) -> io::Result<W> {
    let mut bytes = Vec::new();
    while let Some(Outgoing { opcode, payload, progress }) = frames.recv().await {
        bytes.clear();
        let head = FrameHeader { opcode, ..FrameHeader::default() };
        head.format(payload.len() as u64, &mut bytes).map_err(io::Error::other)?;
        bytes.extend_from_slice(&payload);
        io.write_all(&bytes).await?;
        io.flush().await?;
        drop(progress);
        if opcode == OpCode::Control(Control::Close) {
            break;
        }
    }
    Ok(io)
}
