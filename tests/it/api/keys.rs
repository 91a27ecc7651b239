//! Keys of the library: scopes, limits, budgets, and usage that is exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::accounts::Clock;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings, PublicEndpoints};
use cutline_library::{
    Budget, BudgetPeriod, BudgetUnit, Change, KeyChange, KeyRules, Scope, Secret, Store,
    UsageGroup, UsageQuery, Used, now, open, parse_time,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::advance;

use super::fixture::{Answer, Fixture, distinct, emptied, eventually, png, post, post_to};
use super::metrics::page;
use super::openapi::operations;

/// The key of the settings.
const ROOT: &str = "root-key";

/// A server with a library, and a clock that tests move.
struct Kept {
    fixture: Fixture,
    store: Arc<dyn Store>,
    ahead: Arc<AtomicI64>,
}

impl Kept {
    /// With a key of the settings, which makes others.
    fn new(folder: &TempDir) -> Self {
        let keys = ApiKeys::new([ROOT]);
        let public = PublicEndpoints { metrics: true, ..PublicEndpoints::default() };
        let protection = ProtectionSettings { keys, public, ..ProtectionSettings::default() };
        Self::with(folder, HttpSettings { protection, ..HttpSettings::default() })
    }

    fn with(folder: &TempDir, settings: HttpSettings) -> Self {
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
        let fixture = Fixture::build(settings, 512, MemoryLimits::default());
        let ahead = Arc::new(AtomicI64::new(0));
        let for_clock = Arc::clone(&ahead);
        let clock = Clock::new(move || now() + for_clock.load(Ordering::SeqCst));
        fixture.state.keep_in_with(Arc::clone(&store), clock).unwrap();
        fixture.state.ready(fixture.captioner.clone());
        Self { fixture, store, ahead }
    }

    /// Moves the clock to a time.
    fn set_time(&self, text: &str) {
        self.ahead.store(parse_time(text).unwrap() - now(), Ordering::SeqCst);
    }

    /// A new key and its number.
    async fn key(&self, rules: KeyRules) -> (String, i64) {
        self.create(serde_json::to_value(rules).unwrap()).await
    }

    async fn create(&self, rules: Value) -> (String, i64) {
        let answer = self.send(ROOT, "POST", "/admin/keys", &rules).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
        let answer = answer.json();
        (answer["key"].as_str().unwrap().to_owned(), answer["id"].as_i64().unwrap())
    }

    async fn send(&self, key: &str, method: &str, path: &str, body: &Value) -> Answer {
        let request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
        let request = request.uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json");
        self.fixture.send(with(request.body(Body::from(body.to_string())).unwrap(), key)).await
    }

    async fn get(&self, path: &str, key: &str) -> Answer {
        self.fixture.send(with(Request::get(path).body(Body::empty()).unwrap(), key)).await
    }

    /// Captions the image with this number.
    async fn caption(&self, key: &str, number: u32) -> Answer {
        self.fixture.send(with(post("", "image/png", distinct(number)), key)).await
    }

    fn used(&self, id: i64) -> Used {
        let query = UsageQuery { from: 0, to: i64::MAX, key: Some(id), group: UsageGroup::Key };
        self.store.usage(&query).unwrap().first().map(|row| row.used).unwrap_or_default()
    }
}

fn with(mut request: Request<Body>, key: &str) -> Request<Body> {
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    request
}

fn images(amount: u64, period: BudgetPeriod) -> Option<Budget> {
    Some(Budget { amount, unit: BudgetUnit::Images, period, soft_limit: 0.5 })
}

#[tokio::test]
async fn the_first_key_closes_the_server_and_old_keys_open_it() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::with(&folder, HttpSettings::default());
    assert_eq!(kept.fixture.get("/model/info").await.status, StatusCode::OK);
    // Nobody makes the first key over the network.
    let refused = kept.fixture.get("/admin/keys").await.problem(401, "unauthorized");
    assert!(refused["detail"].as_str().unwrap().contains("cutline keys create"), "{refused}");
    // Another program makes it, and the server notices.
    let secret = Secret::generate().unwrap();
    let create = KeyChange::Create { rules: KeyRules::new("app"), secret: secret.hash() };
    kept.store.apply(vec![Change::Key(create)]).unwrap();
    let key = secret.reveal();
    let closed = async {
        while kept.fixture.get("/model/info").await.status == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), closed).await.unwrap();
    kept.fixture.get("/model/info").await.problem(401, "unauthorized");
    assert_eq!(kept.get("/model/info", key).await.status, StatusCode::OK);
    kept.get("/model/info", "cutline_wrong").await.problem(403, "forbidden");
    drop(kept);

    let kept = Kept::new(&folder);
    for path in ["/admin/keys", "/library/assets", "/usage", "/model/info"] {
        assert_eq!(kept.get(path, ROOT).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(kept.caption(ROOT, 1).await.status, StatusCode::OK);
    assert_eq!(kept.caption(key, 1).await.status, StatusCode::OK);
    let list = kept.get("/admin/keys", ROOT).await.json();
    assert!(!list.to_string().contains(key), "a key is shown once");
    assert_eq!(list[0]["name"], "app");
}

#[tokio::test]
async fn scopes_open_their_routes_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let scoped = |scope: Scope| KeyRules { scopes: vec![scope], ..KeyRules::new(scope.as_str()) };
    let mut keys = Vec::new();
    for scope in Scope::ALL {
        keys.push((scope, kept.key(scoped(scope)).await.0));
    }
    let needed = |method: &str, path: &str| -> Option<Scope> {
        let reads = method == "GET" || method == "HEAD";
        match path {
            _ if path.starts_with("/admin/") => Some(Scope::Admin),
            "/tags/generate" => Some(Scope::Tags),
            "/api/realtime" => Some(Scope::Caption),
            _ if path.starts_with("/prompts") || path.starts_with("/experiments") => {
                Some(Scope::Prompts)
            }
            _ if path.starts_with("/library/") && reads => Some(Scope::LibraryRead),
            _ if path.starts_with("/library/") => Some(Scope::LibraryWrite),
            "/v2/repository/index" | "/api/show" | "/api/pull" => None,
            _ if !reads => Some(Scope::Caption),
            _ => None,
        }
    };
    let mut closed = 0;
    for (method, path) in operations() {
        let uri = path.replace(['{', '}'], "");
        for (scope, key) in &keys {
            let answer = kept.send(key, &method, &uri, &Value::Null).await;
            let refused = answer.status == StatusCode::FORBIDDEN
                && String::from_utf8_lossy(&answer.body).contains("has not the scope");
            let expected = needed(&method, &path).is_some_and(|needed| needed != *scope);
            assert_eq!(refused, expected, "{method} {path} with {scope:?}: {answer:?}");
            closed += usize::from(refused);
            assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
    assert!(closed > 100, "{closed}");
    let (_, tags) = &keys[1];
    let refused = kept.send(tags, "POST", "/v1/chat/completions", &Value::Null).await;
    assert_eq!(refused.json()["error"]["type"], "permission_error", "{refused:?}");
    let refused = kept.send(tags, "GET", "/library/assets", &Value::Null).await;
    refused.problem(403, "insufficient_scope");
}

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

#[tokio::test]
async fn budgets_end_where_they_end_and_begin_again() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    kept.set_time("2026-11-30T23:00:00Z");
    let rules = KeyRules { budget: images(4, BudgetPeriod::Month), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    let left = |answer: &Answer| answer.header("x-ratelimit-remaining-budget").to_owned();
    let warning = |answer: &Answer| answer.header("x-cutline-budget-warning").to_owned();
    let first = kept.caption(&key, 1).await;
    assert_eq!((left(&first), warning(&first)), ("3".to_owned(), String::new()), "{first:?}");
    assert_eq!(first.header("x-ratelimit-limit-budget"), "4");
    let reset = first.header("x-ratelimit-reset-budget");
    assert!(reset.starts_with("59m") || reset == "1h0m0s", "{reset}");
    let second = kept.caption(&key, 2).await;
    assert_eq!(warning(&second), "2 of 4 images are left");
    assert_eq!(page(&kept.fixture).await.samples["cutline_key_budget_warnings_total"], 1.0);
    // Three do not fit, and none of them is taken.
    let batch: Vec<String> = (3..6).map(|n| BASE64_STANDARD.encode(distinct(n))).collect();
    let answer = kept.send(&key, "POST", "/caption/batch", &json!({"images": batch})).await;
    answer.problem(429, "insufficient_quota");
    let two = json!({"images": batch[..2]});
    assert_eq!(kept.send(&key, "POST", "/caption/batch", &two).await.status, StatusCode::OK);
    let refused = kept.caption(&key, 5).await;
    refused.problem(429, "insufficient_quota");
    let after: u64 = refused.header("retry-after").parse().unwrap();
    assert!((3400..=3600).contains(&after), "{after}");
    assert_eq!(left(&refused), "0");
    // As OpenAI's clients read it.
    let url = format!("data:image/png;base64,{}", batch[2]);
    let chat = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    let openai = kept.send(&key, "POST", "/v1/chat/completions", &chat).await;
    assert_eq!(openai.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(openai.header("x-should-retry"), "false");
    assert_eq!(openai.json()["error"]["code"], "insufficient_quota");
    // What is cached is free.
    assert_eq!(kept.caption(&key, 2).await.status, StatusCode::OK);
    assert_eq!(kept.used(id).images, 5);
    let refusals = r#"cutline_key_refusals_total{limit="budget"}"#;
    assert_eq!(page(&kept.fixture).await.samples[refusals], 3.0);

    kept.set_time("2026-12-01T00:00:01Z");
    let again = kept.caption(&key, 6).await;
    assert_eq!((again.status, left(&again)), (StatusCode::OK, "3".to_owned()));
    let days = kept.get("/usage?from=2026-11-30&to=2026-12-01&group_by=day", ROOT).await.json();
    assert_eq!(days["rows"][0]["name"], "2026-11-30", "{days}");
    assert_eq!((&days["rows"][0]["images"], &days["rows"][1]["images"]), (&json!(5), &json!(1)));
    let november = kept.get("/usage?from=2026-11-01&to=2026-11-30", ROOT).await.json();
    assert_eq!(november["total"]["cached"], 1, "{november}");
    kept.get("/usage?from=yesterday", ROOT).await.problem(422, "invalid_parameter");
    kept.get("/usage?group_by=color", ROOT).await.problem(422, "invalid_parameter");
}

#[tokio::test]
async fn a_budget_of_tokens_is_never_exceeded() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    // An image has 5 tokens, and "a red square" 4; up to 20 may be written.
    let budget =
        Budget { amount: 40, unit: BudgetUnit::Tokens, period: BudgetPeriod::Day, soft_limit: 1.0 };
    let rules = KeyRules { budget: Some(budget), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    assert_eq!(kept.caption(&key, 1).await.header("x-ratelimit-remaining-budget"), "31");
    assert_eq!(kept.caption(&key, 2).await.header("x-ratelimit-remaining-budget"), "22");
    kept.caption(&key, 3).await.problem(429, "insufficient_quota");
    let short = with(post("?max_new_tokens=4", "image/png", distinct(3)), &key);
    assert_eq!(kept.fixture.send(short).await.status, StatusCode::OK);
    assert_eq!((kept.used(id).prompt_tokens, kept.used(id).completion_tokens), (15, 12));
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

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_told_as_openai_tells_them() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { requests_per_minute: Some(3), ..KeyRules::new("app") };
    let (key, _) = kept.key(rules).await;
    advance(Duration::from_secs(600)).await;
    for left in ["2", "1", "0"] {
        let answer = kept.get("/model/info", &key).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), left);
        advance(Duration::from_millis(100)).await;
    }
    let refused = kept.get("/v1/models", &key).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert!(refused.headers.get("x-should-retry").is_none());
    assert_eq!(refused.header("retry-after"), "20");
    assert_eq!(refused.header("x-ratelimit-reset-requests"), "59.7s");
    advance(Duration::from_secs(20)).await;
    assert_eq!(kept.get("/model/info", &key).await.status, StatusCode::OK);
}

#[tokio::test]
async fn images_per_minute_and_models_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { images_per_minute: Some(2), ..KeyRules::new("app") };
    let (key, _) = kept.key(rules).await;
    let three: Vec<String> = (0..3).map(|n| BASE64_STANDARD.encode(distinct(n))).collect();
    let answer = kept.send(&key, "POST", "/caption/batch", &json!({"images": three})).await;
    answer.problem(429, "rate_limited");
    let two = json!({"images": three[..2]});
    let answer = kept.send(&key, "POST", "/caption/batch", &two).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("x-ratelimit-limit-images"), "2");
    assert_eq!(answer.header("x-ratelimit-remaining-images"), "0");
    kept.caption(&key, 5).await.problem(429, "rate_limited");
    let rules = KeyRules { models: vec!["other".into()], ..KeyRules::new("elsewhere") };
    let (key, _) = kept.key(rules).await;
    let problem = kept.caption(&key, 6).await.problem(403, "insufficient_scope");
    assert!(problem["detail"].as_str().unwrap().contains("other"), "{problem}");
}

#[tokio::test]
async fn keys_are_administered() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let budget = json!({"amount": 10, "unit": "images", "period": "month"});
    let rules = json!({"name": "app", "requests_per_minute": 100, "budget": budget});
    let (key, id) = kept.create(rules.clone()).await;
    kept.send(ROOT, "POST", "/admin/keys", &rules).await.problem(422, "invalid_parameter");
    for wrong in
        [json!({}), json!({"name": "x", "colour": 1}), json!({"name": "x", "scopes": ["all"]})]
    {
        kept.send(ROOT, "POST", "/admin/keys", &wrong).await.problem(400, "malformed_request");
    }
    assert_eq!(kept.caption(&key, 1).await.status, StatusCode::OK);
    kept.get("/admin/keys", &key).await.problem(403, "insufficient_scope");

    let path = format!("/admin/keys/{id}");
    let edit = json!({"requests_per_minute": null, "parallel": 3, "scopes": ["tags"]});
    let edited = kept.send(ROOT, "PATCH", &path, &edit).await.json();
    assert_eq!((&edited["requests_per_minute"], &edited["parallel"]), (&Value::Null, &json!(3)));
    assert_eq!(edited["budget"]["soft_limit"], 0.8, "{edited}");
    let answer = kept.caption(&key, 2).await;
    answer.problem(403, "insufficient_scope");
    assert!(answer.headers.get("x-ratelimit-limit-requests").is_none());
    kept.send(ROOT, "PATCH", &path, &json!({"scopes": ["caption"]})).await;

    // Both are valid for an hour, and count together.
    let rotate = json!({"grace_seconds": 3600});
    let answer = kept.send(ROOT, "POST", &format!("{path}/rotate"), &rotate).await.json();
    let newer = answer["key"].as_str().unwrap().to_owned();
    assert_ne!(newer, key);
    for key in [&key, &newer] {
        assert_eq!(kept.caption(key, 3).await.status, StatusCode::OK);
    }
    kept.ahead.store(3_500_000, Ordering::SeqCst);
    assert_eq!(kept.caption(&key, 3).await.status, StatusCode::OK);
    kept.ahead.store(3_601_000, Ordering::SeqCst);
    kept.caption(&key, 3).await.problem(403, "forbidden");
    assert_eq!(kept.caption(&newer, 3).await.status, StatusCode::OK);
    assert_eq!(kept.used(id).images, 5);

    let revoked = kept.send(ROOT, "POST", &format!("{path}/revoke"), &Value::Null).await.json();
    assert!(revoked["revoked_at"].as_i64().unwrap() > 0, "{revoked}");
    let problem = kept.caption(&newer, 3).await.problem(403, "forbidden");
    assert!(problem["detail"].as_str().unwrap().contains("revoked"), "{problem}");
    for path in ["/admin/keys/99/revoke", "/admin/keys/x/revoke", "/admin/keys/99/rotate"] {
        kept.send(ROOT, "POST", path, &json!({})).await.problem(404, "not_found");
    }

    let soon = now() + 3_601_000 + 60_000;
    let (key, _) = kept.create(json!({"name": "short", "expires_at": soon})).await;
    assert_eq!(kept.caption(&key, 4).await.status, StatusCode::OK);
    kept.ahead.store(3_601_000 + 61_000, Ordering::SeqCst);
    let problem = kept.caption(&key, 4).await.problem(403, "forbidden");
    assert!(problem["detail"].as_str().unwrap().contains("expired"), "{problem}");
}

#[tokio::test]
async fn without_a_library_there_are_no_keys() {
    let keys = ApiKeys::new(["key"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let fixture = Fixture::with(HttpSettings { protection, ..HttpSettings::default() });
    for path in ["/admin/keys", "/usage"] {
        let request = with(Request::get(path).body(Body::empty()).unwrap(), "key");
        fixture.send(request).await.problem(404, "not_found");
    }
    let request = with(post_to("/admin/keys", "application/json", r#"{"name": "x"}"#), "key");
    fixture.send(request).await.problem(404, "not_found");
}
