//! Reads what a client may send, for tests and for the fuzz targets in `fuzz/`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::entrance::Entrance;
use super::reader::{Incoming, Kind, Message, MessageReader};
use crate::captioner::Budget;
use crate::config::HttpSettings;
use crate::http::extract::{self, BadMessage};
use crate::http::state::AppState;

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    most: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.rest.len().min(self.most).min(buffer.remaining());
        let (piece, rest) = self.rest.split_at(length);
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// What was read, in words, of a connection whose bytes after the handshake are `sent` and arrive in
/// pieces of at most `piece` bytes (at least 1).
///
/// # Panics
/// Memory is still claimed afterwards.
pub async fn read_connection(sent: &[u8], piece: usize, settings: &HttpSettings) -> Vec<String> {
    let budget = Budget::new(settings.max_inflight_bytes);
    let entrance = Entrance { state: AppState::new(settings.clone()), connection: None };
    let limits = extract::message_limits(settings, &budget);
    let io = Pieces { rest: sent, most: piece.max(1) };
    let mut reader = MessageReader::new(io, entrance, budget.clone(), limits);
    let mut read = Vec::new();
    loop {
        match reader.next().await {
            Ok(incoming) => read.push(in_words(incoming, settings.max_image_bytes)),
            Err(closing) => {
                read.push(format!("{closing:?}"));
                break;
            }
        }
    }
    drop(reader);
    assert_eq!(budget.held(), 0, "messages that were read still claim memory");
    read
}

fn in_words(incoming: Incoming, max_bytes: usize) -> String {
    match incoming {
        Incoming::Message(Message { kind, bytes, permit, .. }) => {
            assert!(permit.bytes() >= bytes.len() as u64, "memory that is not counted");
            let head = match kind {
                Kind::Text => Some(bytes.len()),
                Kind::Binary => extract::head_length(&bytes),
            };
            let command = head
                .ok_or_else(extract::no_head)
                .and_then(|end| extract::command(&bytes[..end], max_bytes, kind == Kind::Binary));
            match command {
                Ok(command) => format!("{kind:?} {command:?} of {} bytes", bytes.len()),
                Err(BadMessage { id, error }) => format!("{kind:?} {id:?} {error}"),
            }
        }
        Incoming::Refused(message, error) => {
            assert_eq!(message.permit.bytes(), 0, "a refused message claims memory");
            format!("refused {:?} {error}", extract::id_in(&message.bytes))
        }
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::runtime::Builder;

    use super::*;

    fn read(sent: &[u8], piece: usize) -> Vec<String> {
        let settings = HttpSettings {
            max_image_bytes: 20_000,
            max_inflight_bytes: 100_000,
            ..HttpSettings::default()
        };
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read_connection(sent, piece, &settings))
    }

    /// A frame with any first byte and any mask, whose length may be a lie.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            4 => Just(0x81), 4 => Just(0x82), 2 => Just(0x01), 2 => Just(0x02), 4 => Just(0x00),
            4 => Just(0x80), 1 => Just(0x89), 1 => Just(0x8A), 1 => any::<u8>(),
        ];
        let text = prop_oneof![
            Just(br#"{"type": "caption", "id": "a", "image": "aGVsbG8="}"#.to_vec()),
            Just(br#"{"type": "caption", "id": "a", "image_url": "http://a.example"}"#.to_vec()),
            Just(b"{\"type\": \"caption\", \"id\": \"b\"}\nimage".to_vec()),
            Just(br#"{"type": "cancel", "id": "a"}"#.to_vec()),
            vec(any::<u8>(), 0..200),
            vec(Just(b'x'), 0..50_000),
        ];
        (first, any::<[u8; 4]>(), text, 0..100_u8).prop_map(|(first, mask, text, lie)| {
            let length = text.len() as u64 + u64::from(lie == 0);
            let mut frame = vec![first];
            match length {
                0..126 => frame.push(0x80 | length as u8),
                126..0x1_0000 => {
                    frame.push(0x80 | 126);
                    frame.extend((length as u16).to_be_bytes());
                }
                _ => {
                    frame.push(0x80 | 127);
                    frame.extend(length.to_be_bytes());
                }
            }
            frame.extend(mask);
            frame.extend(text.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            frame
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_read_does_not_depend_on_how_it_arrives(
            frames in vec(frame(), 0..12),
            piece in 1..300_usize,
        ) {
            let sent = frames.concat();
            prop_assert_eq!(read(&sent, usize::MAX), read(&sent, piece));
        }

        #[test]
        fn any_bytes_are_read(sent in vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(read(&sent, usize::MAX), read(&sent, 1));
        }
    }
}
