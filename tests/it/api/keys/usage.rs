//! What keys have used, counted exactly.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline_library::{BudgetPeriod, KeyRules, Scope};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::fixture::{distinct, emptied, eventually, png, post};
use super::{Kept, images, with};

#[tokio::test]
async fn every_way_of_asking_is_charged() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let scopes = vec![Scope::Caption, Scope::Tags];
    let (key, id) = kept.key(KeyRules { scopes, ..KeyRules::new("app") }).await;
    let encoded = |number| BASE64_STANDARD.encode(distinct(number));
    let chat = |number| {
        let url = format!("data:image/png;base64,{}", encoded(number));
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]})
    };
    let stream = |mut body: Value| {
        body["stream"] = json!(true);
        body
    };
    let response = |number| {
        let url = format!("data:image/png;base64,{}", encoded(number));
        json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]})
    };
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "caption_image", "arguments": {"image": encoded(12)}}});
    let infer = json!({"inputs": [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded(13)]}]});
    let zero_shot =
        json!({"inputs": encoded(14), "parameters": {"candidate_labels": ["red", "photo"]}});
    let requests = [
        ("/caption/generate", json!({"image": encoded(1)}), 1),
        ("/caption/generate", json!({"image": encoded(2), "stream": true}), 1),
        ("/caption/batch", json!({"images": [encoded(3), encoded(4)]}), 2),
        ("/tags/generate", json!({"image": encoded(5), "vocabulary": ["red", "square"]}), 1),
        ("/v1/chat/completions", chat(6), 1),
        ("/v1/chat/completions", stream(chat(7)), 1),
        ("/v1/responses", response(8), 1),
        ("/api/generate", json!({"model": "scripted", "images": [encoded(9)], "stream": false}), 1),
        ("/api/generate", json!({"model": "scripted", "images": [encoded(10)]}), 1),
        (
            "/api/v1/vision/caption",
            json!({"images": [format!("data:image/png;base64,{}", encoded(11))]}),
            1,
        ),
        ("/mcp", call, 1),
        ("/v2/models/scripted/infer", infer, 1),
        ("/predict", zero_shot, 1),
        ("/models/scripted", json!({"inputs": encoded(15)}), 1),
    ];
    let mut expected = 0;
    for (number, (path, body, images)) in requests.into_iter().enumerate() {
        let answer = kept.send(&key, "POST", path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
        expected += images;
        let used = kept.used(id);
        assert_eq!(
            (used.images, used.requests),
            (expected, number as u64 + 1),
            "{path} {answer:?}"
        );
        assert_eq!((used.cached, used.errors), (0, 0), "{path}");
    }
    // The library charges for captions of its photos as well: see the scope library:write.
    let before = kept.used(id);
    assert!(before.prompt_tokens >= 5 * expected && before.completion_tokens > expected);
    // What is cached is counted and free.
    let answer = kept.caption(&key, 1).await;
    assert_eq!(answer.json()["cache"], "hit");
    let after = kept.used(id);
    assert_eq!((after.images, after.cached), (expected + 1, 1));
    assert_eq!(after.prompt_tokens, before.prompt_tokens);
    // What cannot be answered is no use.
    let bad = kept.fixture.send(with(post("", "image/png", png()[..40].to_vec()), &key)).await;
    assert_eq!(bad.status, StatusCode::UNPROCESSABLE_ENTITY);
    eventually("the error", || kept.used(id).errors == 1).await;
    assert_eq!(kept.used(id).images, expected + 1);
    let usage = kept.get("/usage?group_by=model", &key).await.json();
    assert_eq!(usage["rows"][0]["name"], "scripted", "{usage}");
    assert_eq!(usage["total"]["images"], expected + 1);
}

/// Sends `count` requests at a time, and returns how many were answered.
async fn at_once(kept: &Kept, key: &str, count: u32, first: u32) -> (u64, u64) {
    let mut clients = JoinSet::new();
    for number in first..first + count {
        let request = with(post("", "image/png", distinct(number)), key);
        let app = kept.fixture.app();
        clients.spawn(async move {
            let answer = tower::ServiceExt::oneshot(app, request).await.unwrap();
            let status = answer.status();
            axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            status
        });
    }
    let (mut answered, mut refused) = (0, 0);
    while let Some(status) = clients.join_next().await {
        match status.unwrap() {
            StatusCode::OK => answered += 1,
            StatusCode::TOO_MANY_REQUESTS => refused += 1,
            other => panic!("{other}"),
        }
    }
    (answered, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_hundred_clients_are_counted_exactly_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { budget: images(450, BudgetPeriod::Month), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    assert_eq!(at_once(&kept, &key, 300, 0).await, (300, 0));
    assert_eq!((kept.used(id).images, kept.used(id).requests), (300, 300));
    assert_eq!(at_once(&kept, &key, 300, 300).await, (150, 150));
    assert_eq!(kept.used(id).images, 450);
    assert_eq!(kept.used(id).completion_tokens, 4 * 450);
    drop(kept);

    let kept = Kept::new(&folder);
    assert_eq!(kept.used(id).images, 450);
    kept.caption(&key, 900).await.problem(429, "insufficient_quota");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_give_back_what_was_reserved() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let budget = images(2, BudgetPeriod::Day);
    let rules = KeyRules { budget, parallel: Some(2), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    kept.fixture.script.set_stuck(true);
    let start = |number| {
        let (app, key) = (kept.fixture.app(), key.clone());
        tokio::spawn(async move {
            let request = with(post("", "image/png", distinct(number)), &key);
            tower::ServiceExt::oneshot(app, request).await.unwrap().status()
        })
    };
    let (one, other) = (start(1), start(2));
    eventually("two in the model", || kept.fixture.captioner.status().in_flight == 2).await;
    let busy = kept.caption(&key, 3).await;
    let problem = busy.problem(429, "rate_limited");
    assert!(problem["detail"].as_str().unwrap().contains("2 requests at a time"), "{problem}");
    assert_eq!(busy.header("x-ratelimit-remaining-budget"), "0");
    one.abort();
    other.abort();
    let _ = (one.await, other.await);
    kept.fixture.script.set_stuck(false);
    emptied(&kept.fixture.captioner).await;
    assert_eq!(kept.used(id).images, 0);
    assert_eq!(at_once(&kept, &key, 2, 4).await, (2, 0));
    assert_eq!(kept.used(id).images, 2);
}
