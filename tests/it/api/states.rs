//! Loading, busy, full, slow, stopping.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;

use super::fixture::{Fixture, distinct, emptied, eventually, png, post_to, raw};

#[tokio::test]
async fn while_the_model_loads_the_server_is_not_ready() {
    let fixture = Fixture::loading(HttpSettings::default());
    let health = fixture.get("/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.json()["status"], "loading");
    assert!(health.json().get("model").is_none());
    assert_eq!(fixture.get("/health/live").await.status, StatusCode::OK);
    assert_eq!(fixture.get("/").await.status, StatusCode::OK);
    for answer in [
        fixture.get("/health/ready").await,
        fixture.get("/model/info").await,
        fixture.send(raw(png())).await,
    ] {
        answer.problem(503, "not_ready");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    }
    fixture.state.ready(fixture.captioner.clone());
    assert_eq!(fixture.get("/health/ready").await.status, StatusCode::OK);
    let health = fixture.get("/health").await;
    assert_eq!(health.status, StatusCode::OK);
    let health = health.json();
    assert_eq!(health["status"], "ok");
    assert_eq!((&health["model"], &health["device"]), (&"scripted".into(), &"cpu".into()));
    assert_eq!((&health["queue"]["depth"], &health["queue"]["capacity"]), (&0.into(), &1.into()));
    assert_eq!(health["in_flight"], 0);
    assert_eq!(health["images_per_second"], 0.0);
    assert_eq!(health["estimated_wait_ms"], 0.0);
    assert_eq!(
        (&health["queue"]["reserved"], &health["batch"]["max_size"]),
        (&0.into(), &1.into())
    );
    assert!(health["uptime_ms"].is_u64());
    assert!(health.get("last_error").is_none() && health["batch"].get("memory_limit").is_none());
    fixture.still_answers().await;
    let health = fixture.get("/health").await.json();
    assert!(health["images_per_second"].as_f64().unwrap() > 0.0, "{health}");
    let batch = &health["batch"];
    assert_eq!((&batch["finished"], &batch["encoded"]), (&1.into(), &1.into()));
    assert_eq!((&batch["failures"], &batch["out_of_memory"]), (&0.into(), &0.into()));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_times_out() {
    let fixture = Fixture::new();
    // The first bytes, then nothing.
    let start: Result<Bytes, std::io::Error> = Ok(Bytes::from(png()));
    let body = tokio_stream::StreamExt::chain(tokio_stream::once(start), tokio_stream::pending());
    let answer = fixture.send(raw(Body::from_stream(body))).await;
    answer.problem(408, "request_timeout");
    // The model's thread runs in real time.
    tokio::time::resume();
    fixture.still_answers().await;
}

#[tokio::test]
async fn a_truncated_body_is_malformed() {
    let fixture = Fixture::new();
    let broken = [Ok(Bytes::from(png())), Err(std::io::Error::other("reset"))];
    let answer = fixture.send(raw(Body::from_stream(tokio_stream::iter(broken)))).await;
    answer.problem(400, "malformed_request");
    fixture.still_answers().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_times_out_and_frees_the_model() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let answer = fixture.send(raw(png())).await;
    let problem = answer.problem(504, "inference_timeout");
    assert!(problem["detail"].as_str().unwrap().contains("30 s"), "{problem}");
    // The model's thread runs in real time.
    tokio::time::resume();
    emptied(&fixture.captioner).await;
    fixture.script.set_stuck(false);
    fixture.still_answers().await;
}

#[tokio::test]
async fn requests_beyond_the_queue_are_refused() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let (first, second, rest) = tokio::join!(
        fixture.send(raw(distinct(1))),
        async {
            eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
            fixture.send(raw(distinct(2))).await
        },
        async {
            // The first passes through the queue as well; only the second waits in it.
            eventually("one in the model and one in the queue", || {
                let status = fixture.captioner.status();
                (status.in_flight, status.queue_depth) == (1, 1)
            })
            .await;
            let third = fixture.send(raw(distinct(3))).await;
            let health = fixture.get("/health").await;
            let ready = fixture.get("/health/ready").await;
            fixture.script.set_stuck(false);
            (third, health, ready)
        }
    );
    let (third, health, ready) = rest;
    third.problem(429, "queue_full");
    // The machine decides how long the wait will be.
    let seconds: u64 = third.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(health.status, StatusCode::OK);
    assert_eq!(health.json()["status"], "overloaded");
    assert_eq!(health.json()["in_flight"], 1);
    assert!(health.json()["estimated_wait_ms"].as_f64().unwrap() > 0.0, "{health:?}");
    assert_eq!(ready.status, StatusCode::OK, "a full server stays in its load balancer");
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK));
    fixture.still_answers().await;
}

#[tokio::test]
async fn a_stopping_server_finishes_accepted_requests_and_refuses_new_ones() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let (accepted, refused) = tokio::join!(fixture.send(raw(png())), async {
        eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
        fixture.state.stop();
        let waiting = tokio::time::timeout(Duration::from_millis(5), fixture.state.idle()).await;
        assert!(waiting.is_err(), "one request is still being answered");
        let refused = fixture.send(raw(png())).await;
        fixture.get("/health/ready").await.problem(503, "shutting_down");
        assert_eq!(fixture.get("/health/live").await.status, StatusCode::OK);
        assert_eq!(fixture.get("/health").await.json()["status"], "shutting_down");
        fixture.script.set_stuck(false);
        refused
    });
    assert_eq!(accepted.status, StatusCode::OK);
    refused.problem(503, "shutting_down");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    fixture.state.idle().await;
}

#[tokio::test]
async fn a_draining_server_is_not_ready_but_still_captions() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/health/ready").await.header("connection"), "");
    fixture.state.drain();
    let ready = fixture.get("/health/ready").await;
    ready.problem(503, "shutting_down");
    let health = fixture.get("/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.json()["status"], "shutting_down");
    let live = fixture.get("/health/live").await;
    assert_eq!((live.status, live.header("connection")), (StatusCode::OK, "close"));
    assert!(metric(&fixture, "cutline_ready 0").await);
    fixture.still_answers().await;
    fixture.state.stop();
    let refused = fixture.send(raw(png())).await;
    refused.problem(503, "shutting_down");
    assert_eq!(refused.header("connection"), "close");
}

#[tokio::test]
async fn after_the_loss_of_its_device_only_a_restart_helps() {
    let fixture = Fixture::roomy(4, MemoryLimits::default());
    fixture.still_answers().await;
    fixture.script.lose_the_device();
    // A retry elsewhere might cost the next server its device, so this is no 503.
    fixture.send(raw(distinct(1))).await.problem(500, "internal");
    fixture.state.model_failed().await;
    for path in ["/health/live", "/health/ready"] {
        let answer = fixture.get(path).await;
        answer.problem(503, "not_ready");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    }
    fixture.send(raw(distinct(2))).await.problem(503, "not_ready");
    let health = fixture.get("/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    let health = health.json();
    assert_eq!(health["status"], "failed");
    assert!(health["last_error"].as_str().unwrap().contains("illegal address"), "{health}");
    assert!(metric(&fixture, "cutline_ready 0").await);
    // The rest needs no model.
    let image = post_to("/image/process", "image/png", png());
    assert_eq!(fixture.send(image).await.status, StatusCode::OK);
    // It stays so while the server stops.
    fixture.state.stop();
    fixture.get("/health/live").await.problem(503, "not_ready");
    assert_eq!(fixture.get("/health").await.json()["status"], "failed");
}

/// Whether `/metrics` has this line.
async fn metric(fixture: &Fixture, line: &str) -> bool {
    let page = fixture.get("/metrics").await;
    std::str::from_utf8(&page.body).unwrap().lines().any(|other| other == line)
}
