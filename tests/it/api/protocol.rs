//! Behaviour that all requests share: addresses, methods, ids, log lines.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use cutline::config::{Level, LogSettings};
use cutline::telemetry;
use serde_json::Value;
use tracing::Dispatch;

use super::fixture::{Fixture, form, has_problems, png, post, post_to, raw};
use super::openapi::operations;

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_index_lists_the_routes() {
    let fixture = Fixture::new();
    let index = fixture.get("/").await.json();
    assert_eq!(index["name"], "cutline");
    assert_eq!(index["version"], env!("CARGO_PKG_VERSION"));
    let listed: BTreeSet<(String, String)> = index["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["method"].as_str().unwrap().into(), e["path"].as_str().unwrap().into()))
        .collect();
    assert_eq!(listed, operations());
    for (method, pattern) in listed {
        let path = pattern.replace("{task}", "image-to-text").replace("{model}", "scripted");
        let answer = fixture.send(request(&method, &path)).await;
        assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        if answer.status == StatusCode::NOT_FOUND {
            // This server keeps no captions.
            let detail = answer.problem(404, "not_found")["detail"].to_string();
            assert!(
                ["/admin/keys", "/usage", "/library/", "/prompts", "/experiments", "/vocabularies"]
                    .iter()
                    .any(|kept| path.starts_with(kept))
                    && detail.contains("LIBRARY"),
                "{path}: {detail}"
            );
        }
        let answer = fixture.send(request("PUT", &path)).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let sentence = if has_problems("PUT", &path) {
            answer.problem(405, "method_not_allowed")["detail"].clone()
        } else {
            answer.json()["error"].clone()
        };
        assert!(sentence.to_string().contains(&method), "{sentence}");
        assert!(answer.header("allow").split(',').any(|allowed| allowed == method), "{answer:?}");
    }
}

#[tokio::test]
async fn unknown_addresses_are_not_found() {
    let fixture = Fixture::new();
    for path in ["/nothing", "/caption", "/caption/generate/", "/health/live/x"] {
        fixture.get(path).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn every_method_has_an_answer_everywhere() {
    let fixture = Fixture::new();
    let documented = operations();
    let others = ["/api/docs", "/api/docs/index.css", "/page/app.js", "/nothing", "//", "/%2e%2e/"];
    let paths = documented.iter().map(|(_, path)| path.as_str()).chain(others);
    for path in paths.collect::<BTreeSet<_>>() {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "ODD"] {
            let answer = fixture.send(request(method, path)).await;
            let status = answer.status;
            assert!(!status.is_server_error(), "{method} {path}: {answer:?}");
            let refused = !(status.is_success() || status.is_redirection());
            if refused && method != "HEAD" && !has_problems(method, path) {
                assert!(!answer.json()["error"].is_null(), "{method} {path}: {answer:?}");
            } else if refused && method != "HEAD" {
                let code = answer.json()["code"].as_str().unwrap().to_owned();
                answer.problem(status.as_u16(), &code);
            }
            if status == StatusCode::METHOD_NOT_ALLOWED {
                assert!(!answer.header("allow").is_empty(), "{method} {path}");
            }
            if method == "HEAD" {
                let get = fixture.send(request("GET", path)).await;
                assert_eq!((answer.body.len(), status), (0, get.status), "{path}");
                assert_eq!(answer.header("content-type"), get.header("content-type"), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let fixture = Fixture::new();
    let answer = fixture.send(request("HEAD", "/model/info")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.is_empty());
    let answer = fixture.send(request("HEAD", "/nothing")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.body.is_empty());
}

#[tokio::test]
async fn the_model_is_described() {
    let fixture = Fixture::new();
    let info = fixture.get("/model/info").await.json();
    assert_eq!(info["id"], "scripted");
    assert_eq!(info["generation"]["max_new_tokens"], 20);
    assert_eq!(info["generation"]["min_new_tokens"], 0);
    assert_eq!(info["generation"]["length_penalty"], 1.0);
    for absent in ["revision", "gpu"] {
        assert!(info.get(absent).is_none(), "what is absent is left out: {info}");
    }
}

#[tokio::test]
async fn request_ids_are_accepted_or_generated() {
    let fixture = Fixture::new();
    let longest = "x".repeat(128);
    for id in ["abc-123", "!~", &longest] {
        let request = Request::get("/nothing").header("x-request-id", id);
        let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("x-request-id"), id);
        answer.problem(404, "not_found");
    }
    let too_long = "x".repeat(129);
    let mut made = Vec::new();
    for id in [&b""[..], b"a b", "ä".as_bytes(), b"\xFF", too_long.as_bytes()] {
        let request = Request::get("/").header("x-request-id", id);
        let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
        let id: uuid::Uuid = answer.header("x-request-id").parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert!(answer.header("server-timing").starts_with("total;dur="));
        made.push(id);
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 5);
}

/// Runs `work` and captures its log lines.
pub(super) async fn logged(human: bool, work: impl Future<Output = ()>) -> String {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let settings = LogSettings { level: Level::INFO, human };
    // With only one subscriber, tracing asks the thread that first reaches a log line whether it is
    // enabled, and the threads of other tests have no subscriber.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| {
        let settings = LogSettings { level: Level::INFO, human: false };
        Dispatch::new(telemetry::subscriber(settings, std::io::sink))
    });
    LazyLock::force(&SECOND);
    let subscriber = telemetry::subscriber(settings, move || writer.clone());
    let guard = tracing::subscriber::set_default(subscriber);
    work.await;
    drop(guard);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

#[tokio::test]
async fn server_timing_names_the_stages() {
    let fixture = Fixture::new();
    let stages = |header: &str| -> Vec<String> {
        let stage = |part: &str| {
            let (name, spent) = part.trim().split_once(";dur=").expect("a time");
            assert!(spent.parse::<f64>().unwrap() >= 0.0, "{header}");
            name.to_owned()
        };
        header.split(',').map(stage).collect()
    };
    let caption = fixture.send(raw(png())).await;
    let timing = caption.header("server-timing");
    assert_eq!(stages(timing), ["decode", "queue", "inference", "total"]);
    let processed = fixture.send(post_to("/image/process", "image/png", png())).await;
    let timing = processed.header("server-timing");
    assert_eq!(stages(timing), ["decode", "analysis", "total"]);
    let told = processed.json()["timings"]["decode_ms"].to_string();
    assert!(timing.contains(&format!("decode;dur={told},")), "{timing} and {told}");
}

#[tokio::test]
async fn every_request_is_one_line_of_json() {
    let fixture = Fixture::new();
    let text = logged(false, async {
        let mut request = post("?prompt=photo+of", "image/png", png());
        request.headers_mut().insert("x-request-id", "the-id".parse().unwrap());
        fixture.send(request).await;
        fixture.send(form(&[("; name=\"prompt\"", b"photo of")])).await;
        fixture.get("/some/where").await;
        fixture.script.set_broken(true);
        fixture.send(raw(png())).await;
        fixture.send(post_to("/image/process", "image/png", png())).await;
    })
    .await;
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let requests: Vec<&Value> = lines.iter().filter(|line| line["message"] == "request").collect();
    assert_eq!(requests.len(), 5, "{text}");

    let [good, bad, lost, broken, processed] = requests[..] else { panic!("{text}") };
    assert!(good["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(good["level"], "INFO");
    assert_eq!(good["request_id"], "the-id");
    assert_eq!(good["method"], "POST");
    assert_eq!(good["route"], "/caption/generate");
    assert_eq!(good["status"], 200);
    assert_eq!(good["cache"], "miss");
    assert_eq!(good["caption_length"], "photo of a red square".len());
    assert_eq!(good["image_hash"], format!("blake3:{}", blake3::hash(&png()).to_hex()));
    assert!(good["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(good["batch_size"], 1);
    assert!(good.get("code").is_none());

    assert_eq!(
        (&processed["route"], &processed["status"]),
        (&"/image/process".into(), &200.into())
    );
    assert_eq!(processed["image_hash"], good["image_hash"]);
    for absent in ["caption_length", "cache", "batch_size"] {
        assert!(processed.get(absent).is_none(), "{absent}: {processed}");
    }

    assert_eq!((&bad["status"], &bad["code"]), (&400.into(), &"malformed_request".into()));
    assert!(bad.get("image_hash").is_none() && bad.get("error").is_none());
    assert_eq!((&lost["status"], &lost["route"]), (&404.into(), &"unmatched".into()));
    assert_eq!((&broken["status"], &broken["level"]), (&500.into(), &"ERROR".into()));
    assert!(broken["error"].as_str().unwrap().contains("singular"), "the log has the cause");
    for secret in ["photo of", "red square", "/some/where"] {
        assert!(!text.contains(secret), "{secret} must not be logged: {text}");
    }
}

#[tokio::test]
async fn the_text_format_has_no_json() {
    let fixture = Fixture::new();
    let text = logged(true, async {
        fixture.get("/").await;
    })
    .await;
    assert!(text.contains("request") && text.contains("status=200"), "{text}");
    assert!(!text.contains('{'), "{text}");
}

#[tokio::test]
async fn internal_errors_show_no_details() {
    let fixture = Fixture::new();
    fixture.script.set_broken(true);
    let answer = fixture.send(raw(png())).await;
    let problem = answer.problem(500, "internal");
    assert!(!problem.to_string().contains("matrix"), "{problem}");
    let health = fixture.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (StatusCode::OK, &"degraded".into()));
    fixture.script.set_broken(false);
    fixture.still_answers().await;
    assert_eq!(fixture.get("/health").await.json()["status"], "ok");
}

#[tokio::test]
async fn a_body_may_be_any_method_s_but_only_post_captions() {
    let fixture = Fixture::new();
    let mut request = raw(png());
    *request.method_mut() = Method::GET;
    let answer = fixture.send(request).await;
    answer.problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
}
