//! Keys on a WebSocket.

use std::net::SocketAddr;

use cutline::http::serve;
use cutline_library::{BudgetPeriod, KeyRules, Scope};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::super::fixture::{distinct, emptied, eventually, png};
use super::super::realtime::client::{Client, connect_to, problem};
use super::{Kept, ROOT, images};

/// A server on a socket.
struct Open {
    address: SocketAddr,
    kept: Kept,
    _folder: TempDir,
}

impl Open {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(&folder);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, kept.fixture.state.clone(), std::future::pending()));
        Self { address, kept, _folder: folder }
    }

    async fn connect(&self, key: &str) -> Result<Client, (u16, Value)> {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        connect_to(self.address, &headers).await.map(|(client, _)| client)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_needs_a_key_with_the_scope_for_as_long_as_it_is_used() {
    let open = Open::new().await;
    let refusal = connect_to(open.address, &[]).await.err().unwrap();
    assert_eq!((refusal.0, &refusal.1["code"]), (401, &json!("unauthorized")));
    for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::Caption) {
        let rules = KeyRules { scopes: vec![scope], ..KeyRules::new(scope.as_str()) };
        let (key, id) = open.kept.key(rules).await;
        let (status, answer) = open.connect(&key).await.err().unwrap();
        assert_eq!((status, &answer["code"]), (403, &json!("insufficient_scope")), "{scope:?}");
        assert_eq!(open.kept.used(id).images, 0);
    }
    let (key, id) = open.kept.key(KeyRules::new("app")).await;
    let mut client = open.connect(&key).await.unwrap();
    client.caption("a", &png(), json!({})).await;
    assert_eq!(client.last("a").await["type"], "done");
    let path = format!("/admin/keys/{id}");
    open.kept.send(ROOT, "PATCH", &path, &json!({"scopes": ["tags"]})).await;
    client.caption("b", &distinct(1), json!({})).await;
    problem(&client.last("b").await, Some("b"), 403, "insufficient_scope");
    open.kept.send(ROOT, "PATCH", &path, &json!({"scopes": ["caption"]})).await;
    client.caption("c", &distinct(1), json!({})).await;
    assert_eq!(client.last("c").await["type"], "done");
    open.kept.send(ROOT, "POST", &format!("{path}/revoke"), &Value::Null).await;
    client.caption("d", &distinct(2), json!({})).await;
    problem(&client.last("d").await, Some("d"), 403, "forbidden");
    assert_eq!(open.kept.used(id).images, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_counted_once() {
    let open = Open::new().await;
    let (key, id) = open.kept.key(KeyRules::new("app")).await;
    let mut client = open.connect(&key).await.unwrap();
    let used = || open.kept.used(id);
    for (number, cached) in [(1, 0), (2, 0), (1, 1), (3, 1)] {
        let name = format!("{number} {cached}");
        client.caption(&name, &distinct(number), json!({})).await;
        let done = client.last(&name).await;
        assert_eq!(done["type"], "done", "{done}");
        // The answer has arrived, so it is on the disk.
        assert_eq!(used().cached, cached, "{name}");
    }
    let now = used();
    assert_eq!((now.images, now.requests, now.cached, now.errors), (4, 4, 1, 0));
    assert_eq!((now.prompt_tokens, now.completion_tokens), (3 * 5, 3 * 4));
    // In a binary message, with fewer words.
    client.binary(&json!({"type": "caption", "id": "b", "max_new_tokens": 2}), &distinct(4)).await;
    assert_eq!(client.last("b").await["type"], "done");
    assert_eq!((used().images, used().completion_tokens), (5, 3 * 4 + 2));
    // What is no image is an error, and what is cancelled is nothing.
    client.caption("bad", &png()[..40], json!({})).await;
    assert_eq!(client.last("bad").await["type"], "error");
    eventually("the error", || used().errors == 1).await;
    open.kept.fixture.script.set_stuck(true);
    client.caption("slow", &distinct(5), json!({})).await;
    client.until("started", "slow").await;
    client.send(&json!({"type": "cancel", "id": "slow"})).await;
    assert_eq!(client.last("slow").await["type"], "cancelled");
    open.kept.fixture.script.set_stuck(false);
    emptied(&open.kept.fixture.captioner).await;
    // Many at a time on several connections.
    let mut clients =
        vec![client, open.connect(&key).await.unwrap(), open.connect(&key).await.unwrap()];
    for (place, client) in clients.iter_mut().enumerate() {
        for number in 0..8 {
            let image = distinct(100 + 10 * place as u32 + number);
            client.caption(&number.to_string(), &image, json!({})).await;
        }
    }
    for client in &mut clients {
        let mut left = 8;
        while left > 0 {
            let event = client.event().await;
            assert_ne!(event["type"], "error", "{event}");
            left -= i32::from(event["type"] == "done");
        }
    }
    let now = used();
    assert_eq!((now.images, now.requests, now.cached, now.errors), (29, 29, 1, 1));
    assert_eq!(now.completion_tokens, 27 * 4 + 2);
    let other = open.kept.key(KeyRules::new("other")).await.1;
    assert_eq!(open.kept.used(other), cutline_library::Used::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_budgets_hold_for_messages() {
    let open = Open::new().await;
    let refused = async |rules: KeyRules, fine: u32, code: &str| {
        let (key, id) = open.kept.key(rules).await;
        let mut client = open.connect(&key).await.unwrap();
        let first = 1000 * u32::try_from(id).unwrap();
        for number in 0..fine {
            let name = number.to_string();
            client.caption(&name, &distinct(first + number), json!({})).await;
            let done = client.last(&name).await;
            assert_eq!(done["type"], "done", "{done}");
        }
        client.caption("more", &distinct(first + fine), json!({})).await;
        problem(&client.last("more").await, Some("more"), 429, code);
        assert_eq!(open.kept.used(id).images, u64::from(fine), "{code}");
        // The connection stays.
        client.send(&json!({"type": "ping"})).await;
        assert_eq!(client.event().await["type"], "pong");
    };
    let budget = images(2, BudgetPeriod::Day);
    refused(KeyRules { budget, ..KeyRules::new("budget") }, 2, "insufficient_quota").await;
    let images_per_minute = Some(3);
    refused(KeyRules { images_per_minute, ..KeyRules::new("images") }, 3, "rate_limited").await;
    // The handshake is a request as well.
    let requests_per_minute = Some(4);
    refused(KeyRules { requests_per_minute, ..KeyRules::new("requests") }, 3, "rate_limited").await;
    // One at a time, and two connections.
    let (key, id) = open.kept.key(KeyRules { parallel: Some(1), ..KeyRules::new("one") }).await;
    let (mut one, mut other) =
        (open.connect(&key).await.unwrap(), open.connect(&key).await.unwrap());
    open.kept.fixture.script.set_stuck(true);
    one.caption("slow", &distinct(1), json!({})).await;
    one.until("started", "slow").await;
    other.caption("second", &distinct(2), json!({})).await;
    let refusal = problem(&other.last("second").await, Some("second"), 429, "rate_limited");
    assert!(refusal["detail"].as_str().unwrap().contains("1 requests at a time"), "{refusal}");
    open.kept.fixture.script.set_stuck(false);
    assert_eq!(one.last("slow").await["type"], "done");
    other.caption("third", &distinct(2), json!({})).await;
    assert_eq!(other.last("third").await["type"], "done");
    assert_eq!(open.kept.used(id).images, 2);
    // Another model than the key may use.
    let (key, _) =
        open.kept.key(KeyRules { models: vec!["other".into()], ..KeyRules::new("model") }).await;
    let mut client = open.connect(&key).await.unwrap();
    client.caption("a", &distinct(3), json!({})).await;
    problem(&client.last("a").await, Some("a"), 403, "insufficient_scope");
}
