//! Answers piece by piece: one word at a time, in the words of a contract.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::INTENT;
use super::ask::{Ask, Asked, Reply};
use super::intent::Intent;
use super::structured::Format;
use crate::captioner::{Caption, CaptionEvent, CaptionStream, Captioner};
use crate::http::generate::too_late;
use crate::http::observe::{StreamResult, name_backend};
use crate::http::state::AppState;
use cutline_error::{Error, Result};

/// After this long without an event a comment is sent, so that no proxy takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Tells nginx not to buffer the pieces.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How a contract writes an answer, whole or as a stream. The methods of a stream append to `out`.
pub(super) trait Dialect: Send + Sync + 'static {
    /// The `Content-Type`.
    const TYPE: &'static str;
    /// What may be sent while nothing happens.
    const KEEP_ALIVE: Option<&'static str>;

    /// The whole answer.
    fn whole(&self, reply: &Reply) -> Value;
    /// Before the first piece.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// A piece of the text.
    fn piece(&mut self, text: &str, out: &mut Vec<u8>);
    /// After the last piece.
    fn end(&mut self, reply: &Reply, out: &mut Vec<u8>);
    /// Instead of the end.
    fn fail(&mut self, error: &Error, out: &mut Vec<u8>);
}

/// Appends a server-sent event with `data` as JSON.
pub(super) fn event(name: Option<&str>, data: &Value, out: &mut Vec<u8>) {
    if let Some(name) = name {
        out.extend_from_slice(format!("event: {name}\n").as_bytes());
    }
    out.extend_from_slice(format!("data: {data}\n\n").as_bytes());
}

/// Answers at once, or piece by piece if `streamed`.
///
/// # Errors
/// Those of [`Ask::answer`]; of a stream, those before the images are queued.
pub(super) async fn answer(
    ask: Ask,
    dialect: impl Dialect,
    streamed: bool,
    state: &AppState,
    captioner: &Captioner,
) -> Result<Response> {
    if streamed {
        let asked = Box::pin(ask.start(state, captioner)).await?;
        return respond(asked, dialect).await;
    }
    let reply = Box::pin(ask.answer(state, captioner)).await?;
    Ok(reply.respond(dialect.whole(&reply)))
}

/// Answers with a stream.
///
/// # Errors
/// All errors before the images are queued, so that they are answered with their own status.
async fn respond(mut asked: Asked, dialect: impl Dialect) -> Result<Response> {
    let deadline = asked.deadline();
    let limit = asked.limit;
    for run in &mut asked.runs {
        let accepted = timeout_at(deadline, run.accepted()).await;
        accepted.unwrap_or_else(|_| Err(too_late(limit)))?;
    }
    response(asked, dialect)
}

fn response<D: Dialect>(asked: Asked, dialect: D) -> Result<Response> {
    let result = StreamResult::default();
    let intent = asked.intent;
    let way = asked.runs.first().and_then(CaptionStream::answered_by);
    // A capacity of one: a slow reader slows the writer down.
    let (sender, pieces) = mpsc::channel(1);
    tokio::spawn(Writer { asked, dialect, sender, result: result.clone() }.run());
    let pieces = ReceiverStream::new(pieces).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(D::TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers.insert(INTENT, HeaderValue::from_static(intent.as_str()));
    if let Some(way) = &way {
        name_backend(&mut response, way);
    }
    response.extensions_mut().insert(result);
    Ok(response)
}

struct Writer<D> {
    asked: Asked,
    dialect: D,
    sender: mpsc::Sender<Bytes>,
    result: StreamResult,
}

/// The client has disconnected.
struct Gone;

impl<D: Dialect> Writer<D> {
    /// Returns after the last piece, or when the client disconnects, which cancels the captions.
    async fn run(mut self) {
        let mut out = Vec::new();
        self.dialect.begin(&mut out);
        let Ok(written) = self.write(&mut out).await else { return };
        match written.and_then(|captions| self.asked.reply(captions)) {
            Ok(reply) => {
                if !self.word_by_word() {
                    self.dialect.piece(&reply.text, &mut out);
                }
                self.result.completed(reply.report());
                self.dialect.end(&reply, &mut out);
            }
            Err(error) => {
                self.dialect.fail(&error, &mut out);
                self.result.failed(error);
            }
        }
        let _ = self.send(&mut out).await;
    }

    /// Whether the text is known before its end. Alternative text may change until then.
    fn word_by_word(&self) -> bool {
        self.asked.intent == Intent::Caption && matches!(self.asked.format, Format::Text)
    }

    /// Writes the captions of all images one after another, and returns them.
    async fn write(&mut self, out: &mut Vec<u8>) -> Result<Result<Vec<Caption>>, Gone> {
        let word_by_word = self.word_by_word();
        let mut captions: Vec<Caption> = Vec::with_capacity(self.asked.runs.len());
        for index in 0..self.asked.runs.len() {
            if word_by_word && index > 0 {
                self.dialect.piece("\n", out);
            }
            let mut sent = String::new();
            loop {
                if !out.is_empty() {
                    self.send(out).await?;
                }
                match self.next(index).await? {
                    Ok(CaptionEvent::Text(text)) => {
                        if word_by_word {
                            self.pieces(&mut sent, whole_words(&text), out);
                        }
                    }
                    Ok(CaptionEvent::Done(caption)) => {
                        if word_by_word {
                            self.pieces(&mut sent, &caption.caption, out);
                        }
                        captions.push(*caption);
                        break;
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        Ok(Ok(captions))
    }

    /// Sends what `text` has beyond `sent`.
    fn pieces(&mut self, sent: &mut String, text: &str, out: &mut Vec<u8>) {
        let pairs = sent.char_indices().zip(text.chars());
        let same =
            pairs.take_while(|((_, old), new)| old == new).map(|((at, c), _)| at + c.len_utf8());
        let more = &text[same.last().unwrap_or(0)..];
        if !more.is_empty() {
            self.dialect.piece(more, out);
            sent.push_str(more);
        }
    }

    /// The next event of an image; sends comments while there is none.
    async fn next(&mut self, index: usize) -> Result<Result<CaptionEvent>, Gone> {
        let deadline = self.asked.deadline();
        loop {
            let quiet = (Instant::now() + KEEP_ALIVE).min(deadline);
            let Some(run) = self.asked.runs.get_mut(index) else {
                return Ok(Err(Error::internal("an image was lost")));
            };
            tokio::select! {
                () = self.sender.closed() => return Err(Gone),
                next = run.next() => return Ok(next),
                () = sleep_until(quiet) => {}
            }
            if Instant::now() >= deadline {
                return Ok(Err(too_late(self.asked.limit)));
            }
            if let Some(comment) = D::KEEP_ALIVE {
                self.send(&mut comment.into()).await?;
            }
        }
    }

    async fn send(&self, out: &mut Vec<u8>) -> Result<(), Gone> {
        self.sender.send(std::mem::take(out).into()).await.map_err(|_| Gone)
    }
}

/// `text` without its last word, which the next token may change: "man '" becomes "man's".
fn whole_words(text: &str) -> &str {
    text.rfind(' ').map_or("", |end| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_held_back() {
        assert_eq!(whole_words("a man '"), "a man");
        assert_eq!(whole_words("a"), "");
        assert_eq!(whole_words(""), "");
        assert_eq!(whole_words("ein großes è ë"), "ein großes è");
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let mut out = Vec::new();
        event(Some("a"), &serde_json::json!({"text": "b\nc"}), &mut out);
        event(None, &serde_json::json!(1), &mut out);
        assert_eq!(out, b"event: a\ndata: {\"text\":\"b\\nc\"}\n\ndata: 1\n\n");
    }
}
