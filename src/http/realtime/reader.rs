//! From the bytes of a WebSocket to messages (RFC 6455).
//!
//! Libraries return whole messages. By then the bytes are in memory, however many clients send at a
//! time. Here the bytes of a message count against the budget from the head of each of its frames, as
//! those of an HTTP body do. If a message is too large, too slow, or there is no memory for it, only that
//! message is refused: the rest of it is read and thrown away.

use std::io::{self, Cursor};
use std::time::Instant as StdInstant;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::Closing;
use super::entrance::{Entrance, InProgress};
use crate::captioner::{Budget, Permit, append};
use crate::http::body::{BodyLimits, too_slow};
use cutline_error::{Error, Result};

/// Bytes that are read from the connection at a time.
const READ_BYTES: usize = 16 << 10;

/// Bytes that are kept of a message that was refused: its id is in them.
const KEPT_BYTES: usize = 4 << 10;

/// The most bytes of a refused message that are read and thrown away.
const DISCARDED_BYTES: u64 = 256 << 20;

/// The most bytes in a frame that is not part of a message.
const CONTROL_BYTES: u64 = 125;

/// Whether a message is text or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Binary,
}

/// What a client has sent.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A whole message. Text is UTF-8.
    Message(Message),
    /// The start of a message that was refused. Nothing more of it follows.
    Refused(Message, Error),
    Ping(Vec<u8>),
    Pong,
    /// The client closes the connection, with its reason.
    Close(Option<CloseCode>),
}

/// A message, with its share of the budget.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) permit: Permit,
    /// When its first frame began.
    pub(super) begin: StdInstant,
    pub(super) progress: InProgress,
}

/// Reads the messages of one connection.
pub(super) struct MessageReader<R> {
    io: R,
    entrance: Entrance,
    budget: Budget,
    text: BodyLimits,
    binary: BodyLimits,
    /// Bytes that were read; those before `start` and from `end` on have no meaning.
    raw: Box<[u8]>,
    start: usize,
    end: usize,
    frame: Option<Frame>,
    control: Vec<u8>,
    message: Option<Arriving>,
    heard: Instant,
}

/// A frame whose payload is arriving.
#[derive(Debug)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    /// Turned so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
    left: u64,
}

/// A message whose frames are arriving.
#[derive(Debug)]
struct Arriving {
    limits: BodyLimits,
    deadline: Instant,
    discarded: u64,
    refused: Option<Error>,
    /// `None` once the refusal was reported.
    message: Option<Message>,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// A reader with the limits of a text message and of a binary one.
    pub(super) fn new(
        io: R,
        entrance: Entrance,
        budget: Budget,
        [text, binary]: [BodyLimits; 2],
    ) -> Self {
        Self {
            io,
            entrance,
            budget,
            text,
            binary,
            raw: vec![0; READ_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            frame: None,
            control: Vec::new(),
            message: None,
            heard: Instant::now(),
        }
    }

    /// The connection, for bytes that no longer matter.
    pub(super) fn into_inner(self) -> R {
        self.io
    }

    /// When the client last sent anything.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether a message is arriving that was not refused.
    pub(super) fn is_receiving(&self) -> bool {
        self.message.as_ref().is_some_and(|arriving| arriving.message.is_some())
    }

    /// When the message that is arriving is late.
    fn deadline(&self) -> Option<Instant> {
        let arriving = self.message.as_ref();
        arriving.filter(|arriving| arriving.message.is_some()).map(|arriving| arriving.deadline)
    }

    /// Refuses the message that is arriving if it is late.
    fn refuse_late(&mut self) -> Option<Incoming> {
        let arriving = self.message.as_mut().filter(|one| one.deadline <= Instant::now())?;
        arriving.refuse(too_slow(arriving.limits.time));
        arriving.report()
    }

    /// What the client sends next. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub(super) async fn next(&mut self) -> Result<Incoming, Closing> {
        loop {
            // First, because a client that keeps sending must not defer it.
            if let Some(refused) = self.refuse_late() {
                return Ok(refused);
            }
            if let Some(incoming) = self.advance()? {
                return Ok(incoming);
            }
            self.raw.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let deadline = self.deadline();
            let reading = self.io.read(&mut self.raw[self.end..]);
            let read = match deadline {
                Some(deadline) => timeout_at(deadline, reading).await,
                None => Ok(reading.await),
            };
            let Ok(read) = read else { continue };
            match read {
                Ok(0) => return Err(Closing::Gone),
                Ok(length) => self.end += length,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    return Err(Closing::away("there are too many connections; connect again"));
                }
                Err(_) => return Err(Closing::Gone),
            }
            self.heard = Instant::now();
        }
    }

    /// Goes through the bytes that were read, to the end of the next message or frame that matters.
    fn advance(&mut self) -> Result<Option<Incoming>, Closing> {
        loop {
            let Some(frame) = &mut self.frame else {
                let Some((head, length)) = self.head()? else { return Ok(None) };
                self.begin(&head, length)?;
                continue;
            };
            let there = &mut self.raw[self.start..self.end];
            let length = there.len().min(usize::try_from(frame.left).unwrap_or(usize::MAX));
            let payload = &mut there[..length];
            unmask(payload, &mut frame.mask);
            frame.left -= length as u64;
            self.start += length;
            let ended = frame.left == 0;
            let is_data = matches!(frame.opcode, OpCode::Data(_));
            if !is_data {
                self.control.extend_from_slice(payload);
            } else if let Some(arriving) = &mut self.message {
                arriving.add(payload)?;
            }
            if !ended {
                // There are no more bytes.
                return Ok(self.message.as_mut().and_then(Arriving::report_early));
            }
            if let Some(incoming) = self.frame_ended()? {
                return Ok(Some(incoming));
            }
        }
    }

    /// The head of the next frame and the length of its payload; `None` if it has not arrived.
    fn head(&mut self) -> Result<Option<(FrameHeader, u64)>, Closing> {
        let mut bytes = Cursor::new(&self.raw[self.start..self.end]);
        let head = FrameHeader::parse(&mut bytes)
            .map_err(|_| Closing::protocol("a frame has an unknown opcode"))?;
        if head.is_some() {
            // A head has at most 14 bytes.
            self.start += usize::try_from(bytes.position()).unwrap_or(0);
        }
        Ok(head)
    }

    fn begin(&mut self, head: &FrameHeader, length: u64) -> Result<(), Closing> {
        if head.rsv1 || head.rsv2 || head.rsv3 {
            return Err(Closing::protocol("a frame uses an extension; there are none here"));
        }
        let Some(mask) = head.mask else {
            return Err(Closing::protocol("a frame of a client must be masked"));
        };
        match head.opcode {
            OpCode::Control(_) if length > CONTROL_BYTES || !head.is_final => {
                return Err(Closing::protocol(
                    "a control frame is longer than 125 bytes or in parts",
                ));
            }
            OpCode::Control(_) => self.control.clear(),
            OpCode::Data(Data::Continue) if self.message.is_none() => {
                return Err(Closing::protocol("a frame continues a message that has not begun"));
            }
            OpCode::Data(Data::Continue) => {}
            OpCode::Data(_) if self.message.is_some() => {
                return Err(Closing::protocol("a message begins before the last one has ended"));
            }
            OpCode::Data(kind) => self.message = Some(self.arriving(kind)?),
        }
        if let (OpCode::Data(_), Some(arriving)) = (head.opcode, &mut self.message) {
            arriving.expect(length);
        }
        let is_final = head.is_final;
        self.frame = Some(Frame { opcode: head.opcode, is_final, mask, left: length });
        Ok(())
    }

    fn arriving(&self, kind: Data) -> Result<Arriving, Closing> {
        let (kind, limits) = match kind {
            Data::Text => (Kind::Text, self.text),
            _ => (Kind::Binary, self.binary),
        };
        // Nothing is taken yet, so this fails only if more is taken than there is.
        let permit = self.budget.take(0).map_err(|_| Closing::Gone)?;
        let progress = self.entrance.enter();
        let message =
            Message { kind, bytes: Vec::new(), permit, begin: StdInstant::now(), progress };
        Ok(Arriving {
            limits,
            deadline: Instant::now() + limits.time,
            discarded: 0,
            refused: None,
            message: Some(message),
        })
    }

    fn frame_ended(&mut self) -> Result<Option<Incoming>, Closing> {
        let Some(Frame { opcode, is_final, .. }) = self.frame.take() else { return Ok(None) };
        match opcode {
            OpCode::Control(Control::Close) => close_code(&self.control).map(Some),
            OpCode::Control(Control::Ping) => {
                Ok(Some(Incoming::Ping(std::mem::take(&mut self.control))))
            }
            OpCode::Control(_) => Ok(Some(Incoming::Pong)),
            OpCode::Data(_) if !is_final => {
                Ok(self.message.as_mut().and_then(Arriving::report_early))
            }
            OpCode::Data(_) => self.message.take().map_or(Ok(None), Arriving::end),
        }
    }
}

impl Arriving {
    /// Takes memory for the next `length` bytes, or refuses the message.
    fn expect(&mut self, length: u64) {
        let Some(message) = self.message.as_mut().filter(|_| self.refused.is_none()) else {
            return;
        };
        let before = message.bytes.len();
        let after = usize::try_from(length).ok().and_then(|length| before.checked_add(length));
        let taken = match after.filter(|bytes| *bytes <= self.limits.bytes) {
            None => Err(self.limits.too_large.error()),
            Some(after) => {
                let more = self.limits.claimed(after).saturating_sub(self.limits.claimed(before));
                message.permit.grow(more)
            }
        };
        if let Err(error) = taken {
            self.refuse(error);
        }
    }

    /// Adds bytes for which there is memory.
    fn add(&mut self, payload: &[u8]) -> Result<(), Closing> {
        let mut rest = payload;
        if let Some(message) = &mut self.message {
            if self.refused.is_some() {
                let kept = KEPT_BYTES.saturating_sub(message.bytes.len()).min(rest.len());
                message.bytes.extend_from_slice(&rest[..kept]);
                rest = &rest[kept..];
            } else {
                match append(&mut message.bytes, payload) {
                    Ok(()) => return Ok(()),
                    Err(error) => self.refuse(error),
                }
            }
        }
        self.discarded += rest.len() as u64;
        if self.discarded > DISCARDED_BYTES {
            return Err(Closing::too_big("the rest of a refused message is too long"));
        }
        Ok(())
    }

    fn refuse(&mut self, error: Error) {
        if let Some(message) = &mut self.message {
            message.bytes.truncate(KEPT_BYTES);
            message.bytes.shrink_to_fit();
            let all = message.permit.bytes();
            drop(message.permit.split(all));
            self.refused.get_or_insert(error);
        }
    }

    /// Reports a refusal, once.
    fn report(&mut self) -> Option<Incoming> {
        let error = self.refused.clone()?;
        self.message.take().map(|message| Incoming::Refused(message, error))
    }

    /// Reports a refusal when as much has arrived as is kept.
    fn report_early(&mut self) -> Option<Incoming> {
        let enough = |message: &Message| message.bytes.len() >= KEPT_BYTES;
        if self.message.as_ref().is_some_and(enough) { self.report() } else { None }
    }

    fn end(mut self) -> Result<Option<Incoming>, Closing> {
        if self.refused.is_some() {
            return Ok(self.report());
        }
        let Some(mut message) = self.message else { return Ok(None) };
        if message.kind == Kind::Text && std::str::from_utf8(&message.bytes).is_err() {
            return Err(Closing::not_text());
        }
        message.bytes.shrink_to_fit();
        Ok(Some(Incoming::Message(message)))
    }
}

fn unmask(payload: &mut [u8], mask: &mut [u8; 4]) {
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[index % 4];
    }
    mask.rotate_left(payload.len() % 4);
}

fn close_code(payload: &[u8]) -> Result<Incoming, Closing> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        let none = payload.is_empty().then_some(Incoming::Close(None));
        return none.ok_or_else(|| Closing::protocol("half of a close code"));
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    if !code.is_allowed() {
        return Err(Closing::protocol("a close code that is not allowed"));
    }
    std::str::from_utf8(reason).map_err(|_| Closing::not_text())?;
    Ok(Incoming::Close(Some(code)))
}
