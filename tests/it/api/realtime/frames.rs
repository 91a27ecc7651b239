//! Frames as RFC 6455 allows them, and as it does not.

use cutline::config::HttpSettings;
use serde_json::{Value, json};

use super::client::{
    BINARY, CLOSE, FIN, PING, PONG, RawClient, Server, TEXT, binary, caption, frame, head,
};
use crate::api::fixture::{picture, png};

/// The result of the request that was sent.
async fn done(raw: &mut RawClient) -> Value {
    loop {
        let event = raw.event().await;
        assert_ne!(event["type"], "error", "{event}");
        if event["type"] == "done" {
            return event["result"].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_read_however_they_are_cut() {
    let server = Server::start(HttpSettings::default()).await;
    let text = caption("a", &png(), json!({"prompt": "ä photo of"})).to_string().into_bytes();
    let bytes = binary(&json!({"type": "caption", "id": "a"}), &png());
    let size = json!(png().len());
    for (kind, message) in [(TEXT, text), (BINARY, bytes)] {
        for size_of_part in [1, 7, 130, message.len()] {
            let parts: Vec<&[u8]> = message.chunks(size_of_part).collect();
            let mut raw = server.raw().await;
            let mut written = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let first = if index == 0 { kind } else { 0 };
                let last = if index + 1 == parts.len() { FIN } else { 0 };
                written.extend(frame(first | last, part));
                // In the middle of a message.
                if last == 0 && index % 50 == 0 {
                    written.extend(frame(FIN | PING, &[7; 125]));
                    written.extend(frame(FIN | PONG, b""));
                    written.extend(frame(0, b""));
                }
            }
            raw.write(&written).await;
            let result = done(&mut raw).await;
            assert_eq!(result["image"]["size_bytes"], size, "{size_of_part}");
            assert!(result["caption"].as_str().unwrap().ends_with("a red square"), "{result}");
        }
        // Cut anywhere between two packets.
        let mut raw = server.raw().await;
        let whole = frame(FIN | kind, &message);
        for part in whole.chunks(whole.len().div_ceil(100)) {
            raw.write(part).await;
            raw.stream.set_nodelay(true).unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(done(&mut raw).await["image"]["size_bytes"], size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masks_are_removed_at_every_offset() {
    let server = Server::start(HttpSettings::default()).await;
    // Noise does not compress, so it takes several reads.
    let noise = image::RgbImage::from_fn(100, 100, |x, y| {
        let hash = (x * 40_503 + y * 30_011).wrapping_mul(2_246_822_519);
        let [r, g, b, _] = hash.to_be_bytes();
        image::Rgb([r, g, b])
    });
    let mut photo = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut photo, image::ImageFormat::Bmp).unwrap();
    let message = binary(&json!({"type": "caption", "id": "a"}), photo.get_ref());
    let mut raw = server.raw().await;
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut written = head(FIN | BINARY, message.len());
    let end = written.len();
    written[end - 4..].copy_from_slice(&mask);
    written.extend(message.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    for part in written.chunks(4099) {
        raw.write(part).await;
    }
    let hash = done(&mut raw).await["image"]["hash"].clone();
    let answer = server.fixture.send(crate::api::fixture::raw(photo.into_inner())).await;
    assert_eq!(hash, answer.json()["image"]["hash"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_protocol_ends_the_connection_with_a_code() {
    let server = Server::start(HttpSettings::default()).await;
    let unmasked = |first: u8| vec![first, 2, b'{', b'}'];
    for (frames, code) in [
        (unmasked(FIN | TEXT), 1002),
        (unmasked(FIN | PING), 1002),
        // Extensions and opcodes that do not exist.
        (frame(FIN | TEXT | 0x40, b"{}"), 1002),
        (frame(FIN | TEXT | 0x20, b"{}"), 1002),
        (frame(FIN | TEXT | 0x10, b"{}"), 1002),
        (frame(FIN | 0x3, b"{}"), 1002),
        (frame(FIN | 0xB, b""), 1002),
        // Control frames in parts or too long.
        (frame(PING, b""), 1002),
        (frame(FIN | PING, &[0; 126]), 1002),
        (head(FIN | CLOSE, 1 << 40), 1002),
        // Parts of nothing, and a message within another.
        (frame(FIN, b"{}"), 1002),
        ([frame(TEXT, b"{"), frame(FIN | TEXT, b"}")].concat(), 1002),
        ([frame(TEXT, b"{"), frame(FIN | BINARY, b"}")].concat(), 1002),
        // Text that is none, as a whole and cut within a character.
        (frame(FIN | TEXT, b"\"\xff\""), 1007),
        ([frame(TEXT, b"\"\xc3"), frame(FIN, b"\"")].concat(), 1007),
        // Close frames.
        (frame(FIN | CLOSE, b""), 1000),
        (frame(FIN | CLOSE, &1000_u16.to_be_bytes()), 1000),
        (frame(FIN | CLOSE, &4000_u16.to_be_bytes()), 4000),
        (frame(FIN | CLOSE, b"\x03"), 1002),
        (frame(FIN | CLOSE, &1005_u16.to_be_bytes()), 1002),
        (frame(FIN | CLOSE, &999_u16.to_be_bytes()), 1002),
        (frame(FIN | CLOSE, b"\x03\xe8\xff"), 1007),
    ] {
        let mut raw = server.raw().await;
        raw.write(&frames).await;
        assert_eq!(raw.close_code().await, code, "{frames:?}");
    }
    server.connect().await.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_of_many_small_frames_is_read() {
    let server = Server::start(HttpSettings::default()).await;
    let photo = picture(image::ImageFormat::Bmp, 300, 300);
    let message = binary(&json!({"type": "caption", "id": "a"}), &photo);
    let mut raw = server.raw().await;
    let mut written = frame(BINARY, b"");
    for part in message.chunks(100) {
        written.extend(frame(0, part));
    }
    written.extend(frame(FIN, b""));
    raw.write(&written).await;
    assert_eq!(done(&mut raw).await["image"]["size_bytes"], photo.len());
}
