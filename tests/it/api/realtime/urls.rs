//! Images by URL in messages.

use std::time::Duration;

use cutline::config::HttpSettings;
use cutline::fetch::FetchSettings;
use serde_json::{Value, json};

use super::client::{Client, Server, problem};
use crate::api::fixture::eventually;
use crate::api::urls::Images;

/// Asks for a caption of the image at an address.
async fn ask(client: &mut Client, id: &str, url: &str) {
    client.send(&json!({"type": "caption", "id": id, "image_url": url})).await;
}

/// The problem with which a request ends.
async fn refused(client: &mut Client, url: &str, status: u16, code: &str) -> String {
    ask(client, "x", url).await;
    let problem = problem(&client.last("x").await, Some("x"), status, code);
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_stands_for_the_image() {
    let images = Images::start().await;
    let server = Server::start(images.settings()).await;
    let mut client = server.connect().await;
    for (id, path, width) in [("a", "1.png", 21), ("b", "moved/2.png", 22)] {
        ask(&mut client, id, &images.url(path)).await;
        let events = client.all(id).await;
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let kinds = kinds.strip_prefix(&["queued"]).unwrap_or(&kinds);
        assert!(kinds.starts_with(&["started", "token"]), "{events:?}");
        let result = &events.last().unwrap()["result"];
        assert_eq!(result["caption"], "a red square", "{result}");
        assert_eq!(result["image"]["width"], width, "{result}");
    }
    assert_eq!(images.requests(), 3);
    assert_eq!(server.fixture.captioner.budget().held(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_fetched_ends_its_request_alone() {
    let images = Images::start().await;
    let settings = images.settings();
    let fetch = FetchSettings { timeout: Duration::from_millis(300), ..settings.fetch };
    let server = Server::start(HttpSettings { fetch, ..settings }).await;
    let mut client = server.connect().await;
    for (path, status, code, words) in [
        ("missing", 422, "fetch_failed", "404"),
        ("loop", 422, "fetch_failed", "more than 3 times"),
        ("away", 422, "fetch_failed", "redirects to another"),
        ("silent", 422, "fetch_failed", "within 0.3 s"),
        ("large", 413, "image_too_large", "100000 bytes"),
        ("page", 415, "unsupported_format", ""),
    ] {
        let detail = refused(&mut client, &images.url(path), status, code).await;
        assert!(detail.contains(words), "{path}: {detail}");
    }
    for (url, words) in [
        ("", "not an address"),
        ("file:///etc/passwd", "only http and https"),
        ("http://127.0.0.1/", "FETCH_HOSTS"),
    ] {
        let detail = refused(&mut client, url, 422, "invalid_parameter").await;
        assert!(detail.contains(words), "{url}: {detail}");
    }
    client.still_answers().await;

    let off = Server::start(HttpSettings::default()).await;
    let mut client = off.connect().await;
    let before = images.requests();
    let detail = refused(&mut client, &images.url("1.png"), 422, "invalid_parameter").await;
    assert!(detail.contains("FETCH_URLS"), "{detail}");
    assert_eq!(images.requests(), before, "by default nothing is fetched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_answered_meanwhile_and_a_transfer_can_be_cancelled() {
    let images = Images::start().await;
    let server = Server::start(images.settings()).await;
    let mut client = server.connect().await;
    let becomes = async |connections: usize| {
        eventually("connections", || images.silent() == connections).await;
    };
    ask(&mut client, "slow", &images.url("silent")).await;
    becomes(1).await;
    client.still_answers().await;
    client.send(&json!({"type": "cancel", "id": "slow"})).await;
    let event: Value = client.event().await;
    assert_eq!(event, json!({"type": "cancelled", "id": "slow"}));
    becomes(0).await;
    // So does a client that leaves.
    ask(&mut client, "slow", &images.url("silent")).await;
    becomes(1).await;
    drop(client);
    becomes(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_fetched_takes_its_part_of_the_time() {
    let images = Images::start().await;
    let request_timeout = Duration::from_millis(300);
    let server = Server::start(HttpSettings { request_timeout, ..images.settings() }).await;
    let mut client = server.connect().await;
    ask(&mut client, "x", &images.url("silent")).await;
    problem(&client.last("x").await, Some("x"), 504, "inference_timeout");
    eventually("no transfer", || images.silent() == 0).await;
}
