//! Rate limits, and who counts as one client.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings, RateLimit};
use tokio::time::advance;

use super::fixture::{Answer, Fixture, distinct, form_bytes, png, post, post_to, raw};

/// One request per minute with this burst.
fn limited(burst: u32, protection: ProtectionSettings) -> Fixture {
    let number = |number| NonZeroU32::new(number).unwrap();
    let rate = Some(RateLimit { per_minute: number(1), burst: number(burst) });
    let protection = ProtectionSettings { rate, ..protection };
    let settings = HttpSettings { protection, ..HttpSettings::default() };
    // Large enough for a batch.
    let fixture = Fixture::build(settings, 8, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    fixture
}

fn open() -> ProtectionSettings {
    ProtectionSettings::default()
}

fn with_keys() -> ProtectionSettings {
    ProtectionSettings { keys: ApiKeys::new(["one", "two"]), ..open() }
}

async fn info(fixture: &Fixture, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get("/model/info");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    fixture.send(request.body(Body::empty()).unwrap()).await
}

#[track_caller]
fn is_limited(answer: &Answer) -> u64 {
    answer.problem(429, "rate_limited");
    answer.header("retry-after").parse().unwrap()
}

#[track_caller]
fn is_ok(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_time_until_the_next_request() {
    let fixture = limited(2, open());
    is_ok(&info(&fixture, &[]).await);
    is_ok(&info(&fixture, &[]).await);
    assert_eq!(is_limited(&info(&fixture, &[]).await), 60);
    advance(Duration::from_millis(20_500)).await;
    // Rounded up, so that a client that waits this long is not too early.
    assert_eq!(is_limited(&info(&fixture, &[]).await), 40);
    advance(Duration::from_secs(40)).await;
    is_ok(&info(&fixture, &[]).await);
    is_limited(&info(&fixture, &[]).await);
}

#[tokio::test(start_paused = true)]
async fn every_key_has_its_own_rate() {
    let fixture = limited(1, with_keys());
    for key in [("x-api-key", "one"), ("x-api-key", "two")] {
        is_ok(&info(&fixture, &[key]).await);
        is_limited(&info(&fixture, &[key]).await);
    }
    // The same key in the other header.
    is_limited(&info(&fixture, &[("authorization", "Bearer one")]).await);
    advance(Duration::from_secs(60)).await;
    is_ok(&info(&fixture, &[("authorization", "Bearer one")]).await);
}

#[tokio::test(start_paused = true)]
async fn guessing_keys_is_limited_and_does_not_affect_valid_keys() {
    let fixture = limited(3, with_keys());
    info(&fixture, &[("x-api-key", "first")]).await.problem(403, "forbidden");
    info(&fixture, &[("x-api-key", "second")]).await.problem(403, "forbidden");
    info(&fixture, &[]).await.problem(401, "unauthorized");
    is_limited(&info(&fixture, &[("x-api-key", "third")]).await);
    is_limited(&info(&fixture, &[]).await);
    is_ok(&info(&fixture, &[("x-api-key", "one")]).await);
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_forge_its_address() {
    let fixture = limited(1, open());
    is_ok(&info(&fixture, &[("x-forwarded-for", "10.0.0.1")]).await);
    is_limited(&info(&fixture, &[("x-forwarded-for", "10.0.0.2")]).await);

    // Behind a proxy, the client's own entries come before the one that the proxy adds.
    let fixture = limited(1, ProtectionSettings { proxies: 1, ..open() });
    for client in ["10.0.0.1", "10.0.0.2", "2001:db8:1:2::3"] {
        is_ok(&info(&fixture, &[("x-forwarded-for", client)]).await);
        let made_up = format!("10.6.6.6, {client}");
        is_limited(&info(&fixture, &[("x-forwarded-for", &made_up)]).await);
        let lines = [("x-forwarded-for", "10.7.7.7"), ("x-forwarded-for", client)];
        is_limited(&info(&fixture, &lines).await);
    }
    // All addresses of an IPv6 network share one rate.
    is_limited(&info(&fixture, &[("x-forwarded-for", "2001:db8:1:2:ffff::4")]).await);
}

#[tokio::test(start_paused = true)]
async fn probes_and_the_page_are_never_limited() {
    let fixture = limited(1, open());
    is_ok(&info(&fixture, &[]).await);
    is_limited(&info(&fixture, &[]).await);
    for _ in 0..5 {
        for path in ["/health", "/health/live", "/health/ready", "/", "/page/app.js"] {
            is_ok(&fixture.get(path).await);
        }
    }
    is_limited(&fixture.get("/nothing").await);
}

#[tokio::test]
async fn captions_streams_and_batches_count_one_each() {
    let fixture = limited(4, open());
    let batch = || {
        let part = "; name=\"images\"; filename=\"a.png\"";
        let body = form_bytes(&[(part, &png()), (part, &distinct(1)), (part, b"no image")]);
        post_to("/caption/batch", "multipart/form-data; boundary=line", body)
    };
    let requests = || {
        let process = post_to("/image/process", "image/png", png());
        [raw(png()), post("?stream=true", "image/png", png()), batch(), process]
    };
    for request in requests() {
        is_ok(&fixture.send(request).await);
    }
    for request in requests() {
        let seconds = is_limited(&fixture.send(request).await);
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
}

/// Without keys and proxies, a client is the peer of the socket.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_those_of_the_sockets() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    let fixture = limited(1, open());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(cutline::http::serve(listener, fixture.state.clone(), std::future::pending()));
    for (from, status) in [("127.0.0.1", "200"), ("127.0.0.2", "200"), ("127.0.0.1", "429")] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let request = b"GET /model/info HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 9.9.9.9\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&first), format!("HTTP/1.1 {status}"), "{from}");
    }
}
