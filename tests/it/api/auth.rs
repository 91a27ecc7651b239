//! API keys: which routes need one, where it is read, and what is refused without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings, PublicEndpoints};
use cutline::http::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_stream::StreamExt;

use super::fixture::{Answer, Fixture, form_bytes, has_problems, png, post, post_to, raw};
use super::openapi::operations;
use super::protocol::logged;

const KEY: &str = "correct-horse-battery";
const OTHER_KEY: &str = "staple-0815";

fn protected(public: PublicEndpoints) -> Fixture {
    let keys = ApiKeys::new([KEY, OTHER_KEY]);
    let protection = ProtectionSettings { keys, public, ..ProtectionSettings::default() };
    Fixture::with(HttpSettings { protection, ..HttpSettings::default() })
}

fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

fn empty(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

#[track_caller]
fn is_unauthorized(answer: &Answer) {
    let problem = answer.problem(401, "unauthorized");
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    assert!(problem["detail"].as_str().unwrap().contains("x-api-key"), "{problem}");
}

#[tokio::test]
async fn every_route_but_the_open_ones_needs_a_key() {
    const OPEN: [&str; 8] = [
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
        "/api/docs/",
    ];
    let fixture = protected(PublicEndpoints::default());
    let mut closed = 0;
    for (method, path) in operations() {
        let (method, path) = (method.as_str(), path.as_str());
        let without = fixture.send(empty(method, path)).await;
        let wrong = fixture.send(with(empty(method, path), "x-api-key", "wrong")).await;
        if method == "GET" && OPEN.contains(&path) {
            for answer in [without, wrong] {
                assert!(answer.status.is_success() || answer.status.is_redirection(), "{path}");
            }
        } else {
            closed += 1;
            if has_problems(method, path) {
                is_unauthorized(&without);
                wrong.problem(403, "forbidden");
                assert!(wrong.headers.get("www-authenticate").is_none());
            } else {
                assert_eq!(without.status, StatusCode::UNAUTHORIZED, "{path}");
                assert!([401, 403].contains(&wrong.status.as_u16()), "{path}: {wrong:?}");
                for answer in [without, wrong] {
                    assert!(!answer.json()["error"].is_null(), "{path}: {answer:?}");
                }
            }
        }
        let keys = [("authorization", format!("Bearer {KEY}")), ("x-api-key", OTHER_KEY.into())];
        for (name, value) in keys {
            let status = fixture.send(with(empty(method, path), name, &value)).await.status;
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
            assert!(!refused, "{name} for {path}");
        }
    }
    assert!(closed >= 4, "captions, batches, images and the model's description");
}

#[tokio::test]
async fn unknown_routes_are_closed_and_the_page_is_open() {
    let fixture = protected(PublicEndpoints::default());
    for path in ["/nothing", "/caption", "/page", "/page/../model/info", "/apx/docs", "/metrics/"] {
        is_unauthorized(&fixture.get(path).await);
        let answer = fixture.send(with(empty("GET", path), "x-api-key", KEY)).await;
        answer.problem(404, "not_found");
    }
    is_unauthorized(&fixture.send(empty("DELETE", "/caption/generate")).await);
    let page = fixture.send(with(empty("GET", "/"), "accept", "text/html")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(fixture.get("/page/app.js").await.status, StatusCode::OK);
}

#[tokio::test]
async fn public_endpoints_are_configurable() {
    let none = PublicEndpoints { health: false, metrics: false, docs: false };
    let fixture = protected(none);
    is_unauthorized(&fixture.get("/health").await);
    for path in ["/health/live", "/health/ready", "/"] {
        assert_eq!(fixture.get(path).await.status, StatusCode::OK, "{path}");
    }
    let health = fixture.send(with(empty("GET", "/health"), "x-api-key", KEY)).await;
    assert_eq!(health.status, StatusCode::OK);
}

#[tokio::test]
async fn a_key_must_match_completely() {
    let fixture = protected(PublicEndpoints::default());
    let (most, _) = KEY.split_at(KEY.len() - 1);
    let both = format!("{KEY},{OTHER_KEY}");
    let other_end = format!("{most}Y");
    let longer = format!("{KEY}y");
    let capital = KEY.to_uppercase();
    for wrong in [most, &other_end, &longer, &capital, &both, "c", "\"\""] {
        let by_header = with(raw(png()), "x-api-key", wrong);
        fixture.send(by_header).await.problem(403, "forbidden");
        let by_bearer = with(raw(png()), "authorization", &format!("Bearer {wrong}"));
        fixture.send(by_bearer).await.problem(403, "forbidden");
    }
    for (name, value) in [
        ("x-api-key", ""),
        ("authorization", "Bearer"),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("authorization", KEY),
        ("cookie", KEY),
    ] {
        is_unauthorized(&fixture.send(with(raw(png()), name, value)).await);
    }
    is_unauthorized(&fixture.send(post(&format!("?api_key={KEY}"), "image/png", png())).await);
    // Basic credentials for a proxy do not hide the key.
    let two = with(raw(png()), "authorization", "Basic dXNlcjpwYXNz");
    assert_eq!(fixture.send(with(two, "x-api-key", KEY)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn streams_and_batches_need_a_key() {
    let fixture = protected(PublicEndpoints::default());
    let stream = || post("?stream=true", "image/png", png());
    let batch = || {
        let body = form_bytes(&[("; name=\"images\"; filename=\"a.png\"", &png())]);
        let request = post_to("/caption/batch", "multipart/form-data; boundary=line", body);
        with(request, "accept", "application/x-ndjson")
    };
    is_unauthorized(&fixture.send(stream()).await);
    is_unauthorized(&fixture.send(batch()).await);
    let answer = fixture.send(with(stream(), "x-api-key", KEY)).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert!(String::from_utf8_lossy(&answer.body).contains("event: done"), "{answer:?}");
    let answer = fixture.send(with(batch(), "authorization", &format!("Bearer {KEY}"))).await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert_eq!(answer.json()["caption"], "a red square");
}

#[tokio::test]
async fn no_body_is_read_without_a_key() {
    let fixture = protected(PublicEndpoints::default());
    for path in ["/caption/generate", "/caption/batch", "/image/process"] {
        for (key, is_read) in [(None, false), (Some("wrong"), false), (Some(KEY), true)] {
            let read = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&read);
            let chunks = tokio_stream::once(Bytes::from(png())).map(move |chunk| {
                seen.store(true, Ordering::SeqCst);
                Ok::<_, std::io::Error>(chunk)
            });
            let form = "multipart/form-data; boundary=line";
            let request = post_to(path, form, Body::from_stream(chunks));
            fixture
                .send(match key {
                    Some(key) => with(request, "x-api-key", key),
                    None => request,
                })
                .await;
            assert_eq!(read.load(Ordering::SeqCst), is_read, "{path} with {key:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_continue_is_refused_before_it_sends() {
    let fixture = protected(PublicEndpoints::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, fixture.state.clone(), std::future::pending()));
    for (key, status) in [("", "401"), ("x-api-key: wrong\r\n", "403")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n{key}\
             expect: 100-continue\r\ncontent-length: 1000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        let reading = stream.read_exact(&mut first);
        timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&first), format!("HTTP/1.1 {status}"));
    }
}

#[tokio::test]
async fn preflights_pass_without_a_key() {
    let fixture = protected(PublicEndpoints::default());
    // No other site is allowed here, and the answer says so.
    let answer = fixture.send(empty("OPTIONS", "/caption/generate")).await;
    answer.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn keys_are_never_logged() {
    let fixture = protected(PublicEndpoints::default());
    let text = logged(false, async {
        fixture.send(with(raw(png()), "x-api-key", KEY)).await;
        fixture.send(with(raw(png()), "x-api-key", "a-wrong-key")).await;
        fixture.send(raw(png())).await;
    })
    .await;
    assert!(text.lines().count() >= 3, "{text}");
    assert!(text.contains("\"code\":\"forbidden\"") && text.contains("\"code\":\"unauthorized\""));
    assert!(!text.contains(KEY) && !text.contains("a-wrong-key"), "{text}");
}

#[tokio::test]
async fn a_server_without_keys_requires_none() {
    let fixture = Fixture::new();
    let answer = fixture.send(with(raw(png()), "x-api-key", "whatever")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn every_answer_has_security_headers() {
    let fixture = protected(PublicEndpoints::default());
    // Swagger UI has its own policy.
    let endpoints = operations().into_iter().filter(|(_, path)| path != "/api/docs/");
    let mut requests: Vec<Request<Body>> =
        endpoints.map(|(method, path)| empty(&method, &path)).collect();
    requests.push(empty("GET", "/nothing"));
    requests.push(empty("OPTIONS", "/caption/generate"));
    requests.push(with(empty("PATCH", "/model/info"), "x-api-key", KEY));
    requests.push(with(raw(png()), "x-api-key", KEY));
    requests.push(with(raw("no image"), "x-api-key", KEY));
    requests.push(with(post("?stream=true", "image/png", png()), "x-api-key", KEY));
    requests.push(with(empty("GET", "/"), "accept", "text/html"));
    requests.push(empty("GET", "/page/app.js"));
    for request in requests {
        let what = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let answer = fixture.send(request).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{what}");
        let policies: Vec<_> = answer.headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies.len(), 1, "{what}");
        let policy = policies[0].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{what}: {policy}");
        let is_page = what.contains("text/html");
        assert_eq!(policy.contains("script-src 'self'"), is_page, "{what}: {policy}");
    }
}
