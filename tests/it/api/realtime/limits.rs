//! Limits of a WebSocket, and how it ends.

use std::num::NonZeroU32;
use std::time::Duration;

use cutline::captioner::MemoryLimits;
use cutline::config::{HttpSettings, ProtectionSettings, RateLimit};
use futures_util::SinkExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::client::{
    BINARY, BOUND, FIN, PING, Server, TEXT, binary, caption, frame, head, problem,
};
use crate::api::fixture::{distinct, emptied, eventually, png};

/// A small server for large images.
fn small(max_image_bytes: usize) -> HttpSettings {
    HttpSettings { max_image_bytes, ..HttpSettings::default() }
}

fn quick(idle_timeout: Duration) -> HttpSettings {
    HttpSettings { idle_timeout, ..HttpSettings::default() }
}

const SHORT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_too_large_is_refused_and_the_connection_stays() {
    let server = Server::start(small(1000)).await;
    let mut client = server.connect().await;
    let head = json!({"type": "caption", "id": "a"});
    // Larger than the limit on images, and than the limit on messages, in one frame or several.
    for size in [1001, 70_000, 1 << 20, 5 << 20] {
        let image = vec![b'x'; size];
        client.binary(&head, &image).await;
        problem(&client.event().await, Some("a"), 413, "image_too_large");
        client.caption("b", &image, json!({})).await;
        problem(&client.event().await, Some("b"), 413, "image_too_large");
    }
    client.still_answers().await;
    let budget = server.fixture.captioner.budget();
    assert_eq!(budget.held(), 0);
    // In parts, of which only all together are too large.
    let mut raw = server.raw().await;
    raw.write(&frame(BINARY, &binary(&head, &[0; 900]))).await;
    for _ in 0..80 {
        raw.write(&frame(0, &[0; 1000])).await;
    }
    problem(&raw.event().await, Some("a"), 413, "image_too_large");
    raw.write(&frame(FIN, b"the end")).await;
    raw.write(&frame(FIN | TEXT, br#"{"type": "ping"}"#)).await;
    assert_eq!(raw.event().await, json!({"type": "pong"}));
    // The id is behind the image, where it is not looked for.
    raw.write(&frame(
        FIN | TEXT,
        format!("{{\"image\": \"{}\", \"id\": \"c\"}}", "A".repeat(1 << 20)).as_bytes(),
    ))
    .await;
    problem(&raw.event().await, None, 413, "image_too_large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_an_error_of_one_request() {
    let server = Server::with(HttpSettings::default(), 1, MemoryLimits::default()).await;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    client.caption("model", &distinct(0), json!({})).await;
    server.in_model(1).await;
    client.caption("queue", &distinct(1), json!({})).await;
    client.until("queued", "queue").await;
    client.caption("refused", &distinct(2), json!({})).await;
    problem(&client.last("refused").await, Some("refused"), 429, "queue_full");
    server.fixture.script.set_stuck(false);
    let mut ends = [client.event().await, client.event().await];
    while ends.iter().any(|event| event["type"] != "done") {
        ends.rotate_left(1);
        if ends[0]["type"] != "done" {
            ends[0] = client.event().await;
        }
    }
    client.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_count_from_the_head_of_their_frame() {
    let memory = MemoryLimits { max_inflight_bytes: 100_000, ..MemoryLimits::default() };
    let server = Server::with(HttpSettings::default(), 8, memory).await;
    let budget = server.fixture.captioner.budget().clone();
    let start = br#"{"type": "caption", "id": "a", "#;
    // Text counts three times: itself, the image in it, and a copy without escapes.
    let mut slow = server.raw().await;
    slow.write(&[head(TEXT, 20_000), start.to_vec()].concat()).await;
    eventually("bytes that count", || budget.held() == 60_000).await;
    // A second one does not fit. It is refused as soon as its id is there.
    let mut other = server.raw().await;
    other.write(&[head(FIN | TEXT, 20_000), start.to_vec(), vec![b' '; 5000]].concat()).await;
    problem(&other.event().await, Some("a"), 429, "queue_full");
    assert_eq!(budget.held(), 60_000);
    other.write(&[b' '; 20_000][..15_000 - start.len()]).await;
    other.write(&frame(FIN | TEXT, br#"{"type": "ping"}"#)).await;
    assert_eq!(other.event().await, json!({"type": "pong"}), "the rest was skipped exactly");
    // The next frame of the first one does not fit beside that of a third one.
    let mut third = server.raw().await;
    third.write(&head(FIN | BINARY, 35_000)).await;
    eventually("bytes that count", || budget.held() == 95_000).await;
    slow.write(&vec![b' '; 20_000 - start.len()]).await;
    slow.write(&[head(0, 5000), vec![b' '; 100]].concat()).await;
    problem(&slow.event().await, Some("a"), 429, "queue_full");
    assert_eq!(budget.held(), 35_000);
    drop(third);
    eventually("no bytes", || budget.held() == 0).await;
    // A client that leaves gives its bytes back.
    let mut leaving = server.raw().await;
    leaving.write(&head(FIN | BINARY, 50_000)).await;
    eventually("bytes that count", || budget.held() == 50_000).await;
    drop(leaving);
    eventually("no bytes", || budget.held() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_arrives_too_slowly_is_refused() {
    let request_timeout = Duration::from_millis(200);
    let server = Server::start(HttpSettings { request_timeout, ..HttpSettings::default() }).await;
    let mut raw = server.raw().await;
    let message = binary(&json!({"type": "caption", "id": "a"}), &png());
    raw.write(&head(FIN | BINARY, message.len())).await;
    raw.write(&message[..message.len() - 1]).await;
    problem(&raw.event().await, Some("a"), 408, "request_timeout");
    assert_eq!(server.fixture.captioner.budget().held(), 0);
    raw.write(&message[message.len() - 1..]).await;
    raw.write(&frame(FIN | BINARY, &message)).await;
    let mut event = raw.event().await;
    while event["type"] != "done" {
        assert_ne!(event["type"], "error", "{event}");
        event = raw.event().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caption_that_takes_too_long_is_an_error() {
    let request_timeout = Duration::from_millis(200);
    let server = Server::start(HttpSettings { request_timeout, ..HttpSettings::default() }).await;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    client.caption("a", &png(), json!({})).await;
    problem(&client.last("a").await, Some("a"), 504, "inference_timeout");
    emptied(&server.fixture.captioner).await;
    server.fixture.script.set_stuck(false);
    client.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_a_limited_number_of_requests_in_progress() {
    let settings = HttpSettings { max_images_per_request: 2, ..HttpSettings::default() };
    let server = Server::start(settings).await;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    for number in 0..3 {
        client.caption(&number.to_string(), &distinct(number), json!({})).await;
    }
    problem(&client.last("2").await, Some("2"), 429, "rate_limited");
    let mut other = server.connect().await;
    other.caption("2", &distinct(2), json!({})).await;
    server.in_model(3).await;
    server.fixture.script.set_stuck(false);
    assert_eq!(other.last("2").await["type"], "done");
    client.last("1").await;
    client.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caption_counts_against_the_rate_limit() {
    let number = |number| NonZeroU32::new(number).unwrap();
    let rate = Some(RateLimit { per_minute: number(1), burst: number(3) });
    let protection = ProtectionSettings { rate, ..ProtectionSettings::default() };
    let server = Server::start(HttpSettings { protection, ..HttpSettings::default() }).await;
    // The handshake is the first request.
    let mut client = server.connect().await;
    for id in ["a", "b"] {
        client.caption(id, &png(), json!({})).await;
        assert_eq!(client.last(id).await["type"], "done");
    }
    client.caption("c", &png(), json!({})).await;
    let event = client.last("c").await;
    problem(&event, Some("c"), 429, "rate_limited");
    assert!(event["retry_after"].as_u64().unwrap() > 30, "{event}");
    // Pings do not count.
    client.send(&json!({"type": "ping"})).await;
    assert_eq!(client.event().await["type"], "pong");
    let Err((429, _)) = server.connect_with(&[]).await else { panic!("connected") };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = Server::start(quick(SHORT)).await;
    let mut raw = server.raw().await;
    let captioner = server.fixture.captioner.clone();
    // Until the server stops reading as well: it takes no more than it can answer.
    let flood = frame(FIN | PING, &[b'x'; 125]).repeat(1000);
    let mut written = 0;
    while let Ok(Ok(())) = timeout(BOUND, raw.stream.write_all(&flood)).await {
        written += flood.len();
        assert!(written < 1 << 30, "the server buffers everything");
    }
    emptied(&captioner).await;
    eventually("no connection", || server.fixture.captioner.budget().held() == 0).await;
    server.connect().await.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_does_not_wait_for_a_client_that_does_not_read() {
    let server = Server::start(HttpSettings::default()).await;
    let mut raw = server.raw().await;
    let messages: Vec<u8> = (0..8)
        .map(|number| caption(&number.to_string(), &distinct(number), json!({})).to_string())
        .flat_map(|text| frame(FIN | TEXT, text.as_bytes()))
        .collect();
    raw.write(&messages).await;
    let captioner = &server.fixture.captioner;
    eventually("all captions", || captioner.status().finished == 8).await;
    emptied(captioner).await;
    // Nothing is lost.
    let mut done = 0;
    while done < 8 {
        done += usize::from(raw.event().await["type"] == "done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_closed_and_its_requests_are_dropped() {
    let server = Server::start(quick(SHORT)).await;
    // Without requests.
    assert_eq!(server.raw().await.close_code().await, 1001);
    // With one, but no pong comes: the client is gone without a word.
    server.fixture.script.set_stuck(true);
    let mut gone = server.raw().await;
    let message = caption("a", &png(), json!({})).to_string();
    gone.write(&frame(FIN | TEXT, message.as_bytes())).await;
    server.in_model(1).await;
    assert_eq!(gone.close_code().await, 1001);
    emptied(&server.fixture.captioner).await;
    // A client that answers pings may wait for as long as it takes.
    let mut patient = server.connect().await;
    patient.caption("b", &png(), json!({"cache": "bypass"})).await;
    let script = server.fixture.script.clone();
    tokio::spawn(async move {
        sleep(SHORT * 4).await;
        script.set_stuck(false);
    });
    assert_eq!(patient.last("b").await["type"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_cancels_all_requests() {
    let server = Server::start(HttpSettings::default()).await;
    for politely in [true, false] {
        server.fixture.script.set_stuck(true);
        let mut client = server.connect().await;
        for number in 0..3 {
            client.caption(&number.to_string(), &distinct(number), json!({})).await;
        }
        server.in_model(3).await;
        if politely {
            client.socket.close(None).await.unwrap();
        }
        drop(client);
        emptied(&server.fixture.captioner).await;
        server.fixture.script.set_stuck(false);
    }
    server.connect().await.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_finishes_what_it_has_begun() {
    let settings = HttpSettings { shutdown_delay: Duration::ZERO, ..HttpSettings::default() };
    let mut server = Server::start(settings).await;
    server.fixture.script.set_stuck(true);
    let mut idle = server.connect().await;
    let mut busy = server.connect().await;
    busy.caption("a", &png(), json!({})).await;
    server.in_model(1).await;
    server.stop();
    assert_eq!(idle.close_code().await, 1001);
    busy.until("started", "a").await;
    busy.caption("late", &distinct(1), json!({})).await;
    problem(&busy.last("late").await, Some("late"), 503, "shutting_down");
    assert!(!server.ended.is_finished(), "the server has left its client");
    server.fixture.script.set_stuck(false);
    let done = busy.last("a").await;
    assert_eq!(done["result"]["caption"], "a red square", "{done}");
    assert_eq!(busy.close_code().await, 1001);
    timeout(BOUND, &mut server.ended).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_server_prepares_to_stop_it_still_answers() {
    let settings =
        HttpSettings { shutdown_delay: Duration::from_secs(60), ..HttpSettings::default() };
    let mut server = Server::start(settings).await;
    let mut idle = server.connect().await;
    server.stop();
    assert_eq!(idle.close_code().await, 1001);
    // A proxy may not know yet. Such a client is asked to leave as soon as it waits for nothing.
    assert_eq!(server.connect().await.close_code().await, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_gives_way_and_a_busy_one_does_not() {
    let settings = HttpSettings { max_connections: 1, ..HttpSettings::default() };
    let server = Server::start(settings).await;
    let probe = async |limit: Duration| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        let read = timeout(limit, stream.read_exact(&mut start)).await;
        read.is_ok_and(|read| read.is_ok() && &start == b"HTTP/1.1 200")
    };
    let mut idle = server.connect().await;
    idle.still_answers().await;
    assert!(probe(BOUND).await, "the idle connection has not given way");
    assert_eq!(idle.close_code().await, 1001);

    let mut busy = server.connect().await;
    server.fixture.script.set_stuck(true);
    busy.caption("a", &png(), json!({"cache": "bypass"})).await;
    server.in_model(1).await;
    assert!(!probe(SHORT).await, "the busy connection has given way");
    server.fixture.script.set_stuck(false);
    assert_eq!(busy.last("a").await["type"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pings_do_no_harm() {
    let server = Server::start(HttpSettings::default()).await;
    let mut client = server.connect().await;
    for number in 0..5000_u32 {
        client.socket.feed(Message::Ping(number.to_be_bytes().to_vec().into())).await.unwrap();
        if number % 100 == 99 {
            client.socket.flush().await.unwrap();
            for expected in number - 99..=number {
                let pong = Message::Pong(expected.to_be_bytes().to_vec().into());
                assert_eq!(client.message().await, pong);
            }
        }
    }
    client.still_answers().await;
}
