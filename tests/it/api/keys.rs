//! Keys of the library: scopes, limits, budgets, and usage that is exact.

#[cfg(feature = "grpc")]
mod grpc;
mod limits;
mod priority;
mod realtime;
mod routes;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use cutline::accounts::Clock;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings, PublicEndpoints};
use cutline_library::{
    Budget, BudgetPeriod, BudgetUnit, Change, KeyChange, KeyRules, Scope, Secret, Store,
    UsageGroup, UsageQuery, Used, now, open, parse_time,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Answer, Fixture, distinct, post, post_to};
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
        Self::with(folder, protected())
    }

    fn with(folder: &TempDir, settings: HttpSettings) -> Self {
        Self::of(folder, Fixture::build(settings, 512, MemoryLimits::default()))
    }

    /// With the library in the folder.
    fn of(folder: &TempDir, fixture: Fixture) -> Self {
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
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

    /// Captions the image with this number on the model or route with this name.
    async fn caption_by(&self, key: &str, number: u32, query: &str) -> Answer {
        self.fixture.send(with(post(query, "image/png", distinct(number)), key)).await
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

/// Settings with a key, which makes others.
fn protected() -> HttpSettings {
    let keys = ApiKeys::new([ROOT]);
    let public = PublicEndpoints { metrics: true, ..PublicEndpoints::default() };
    let protection = ProtectionSettings { keys, public, ..ProtectionSettings::default() };
    HttpSettings { protection, ..HttpSettings::default() }
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
            _ if path.starts_with("/vocabularies") && reads => Some(Scope::Tags),
            _ if path.starts_with("/vocabularies") => Some(Scope::LibraryWrite),
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
