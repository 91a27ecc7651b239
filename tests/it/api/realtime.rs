//! `GET /api/realtime`: captions over a WebSocket, with a client that is not ours.

pub(super) mod client;
mod frames;
mod limits;
mod urls;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, CorsOrigins, HttpSettings, ProtectionSettings};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use self::client::{Server, problem};
use super::fixture::{Fixture, distinct, emptied, png, post};
use super::protocol::logged;
use futures_util::SinkExt;

fn protected(protection: ProtectionSettings) -> HttpSettings {
    HttpSettings { protection, ..HttpSettings::default() }
}

/// The answer of `/caption/generate`, without what differs each time.
fn comparable(answer: &Value) -> Value {
    let mut answer = answer.clone();
    answer.as_object_mut().unwrap().retain(|name, _| name != "timings" && name != "vision_cache");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_and_binary_messages_get_the_answer_of_a_post() {
    let server = Server::start(HttpSettings::default()).await;
    let query = "?cache=bypass&max_new_tokens=3&colors=false";
    let posted = server.fixture.send(post(query, "image/png", png())).await.json();
    let parameters = json!({"cache": "bypass", "max_new_tokens": 3, "colors": false});

    let mut client = server.connect().await;
    client.caption("text", &png(), parameters.clone()).await;
    let as_text = client.all("text").await;
    let mut head = parameters;
    head["type"] = json!("caption");
    head["id"] = json!("binary");
    client.binary(&head, &png()).await;
    let as_binary = client.all("binary").await;
    for events in [&as_text, &as_binary] {
        let done = events.last().unwrap();
        assert_eq!(comparable(&done["result"]), comparable(&posted));
        assert_eq!(done["request_id"].as_str().unwrap().len(), 36);
        assert!(done["result"]["timings"]["total_ms"].as_f64().unwrap() > 0.0);
        let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        // It may start before anybody can see it in the queue.
        let kinds = kinds.strip_prefix(&["queued"]).unwrap_or(&kinds);
        assert_eq!(kinds, ["started", "token", "token", "token", "done"]);
    }
    let ids: Vec<_> = [as_text, as_binary].map(|e| e.last().unwrap()["request_id"].clone()).into();
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_texts_on_the_way_are_those_of_the_stream() {
    let server = Server::start(HttpSettings::default()).await;
    let streamed = server.fixture.send(post("?stream=true&cache=bypass", "image/png", png())).await;
    let streamed = String::from_utf8(streamed.body.to_vec()).unwrap();
    let data = streamed.lines().filter_map(|line| line.strip_prefix("data: "));
    let expected: Vec<Value> = data
        .map(|data| serde_json::from_str::<Value>(data).unwrap()["text"].clone())
        .filter(|text| !text.is_null())
        .collect();
    assert!(expected.len() > 1, "{streamed}");
    let mut client = server.connect().await;
    client.caption("a", &png(), json!({"cache": "bypass"})).await;
    let events = client.all("a").await;
    let texts = events.iter().filter(|event| event["type"] == "token");
    assert_eq!(texts.map(|event| event["text"].clone()).collect::<Vec<_>>(), expected);

    // Without words: beam search has none, and a client may want none.
    for parameters in [json!({"num_beams": 3}), json!({"stream": false, "cache": "bypass"})] {
        client.caption("b", &png(), parameters).await;
        let events = client.all("b").await;
        assert!(events.iter().all(|event| event["type"] != "token"), "{events:?}");
        assert_eq!(events.last().unwrap()["result"]["caption"], "a red square");
    }
    // A cached answer does not wait.
    client.caption("c", &png(), json!({"num_beams": 3})).await;
    let events = client.all("c").await;
    assert_eq!((events.len(), &events[0]["result"]["cache"]), (1, &json!("hit")), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_requests_are_in_flight_by_id() {
    let server = Server::with(HttpSettings::default(), 4, MemoryLimits::default()).await;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    for number in 0..4 {
        client.caption(&format!("r{number}"), &distinct(number), json!({})).await;
    }
    server.in_model(4).await;
    client.caption("waits", &distinct(9), json!({})).await;
    let queued = client.until("queued", "waits").await;
    assert_eq!(queued["position"], 1, "{queued}");
    server.fixture.script.set_stuck(false);
    let mut left = vec!["r0", "r1", "r2", "r3", "waits"];
    while !left.is_empty() {
        let event = client.event().await;
        let id = event["id"].as_str().unwrap();
        assert!(left.contains(&id), "nothing follows the end of {id}: {event}");
        if event["type"] == "done" {
            assert_eq!(event["result"]["caption"], "a red square");
            left.retain(|other| *other != id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_request_leaves_queue_and_model() {
    let server = Server::with(HttpSettings::default(), 1, MemoryLimits::default()).await;
    let captioner = &server.fixture.captioner;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    client.caption("model", &distinct(0), json!({})).await;
    server.in_model(1).await;
    client.caption("queue", &distinct(1), json!({})).await;
    client.until("queued", "queue").await;
    for id in ["queue", "model"] {
        client.send(&json!({"type": "cancel", "id": id})).await;
        let last = client.last(id).await;
        assert_eq!(last, json!({"type": "cancelled", "id": id}));
    }
    emptied(captioner).await;
    assert_eq!(captioner.budget().held(), 0);
    // The id is free again, and nothing of the old request is sent.
    server.fixture.script.set_stuck(false);
    client.caption("queue", &distinct(1), json!({})).await;
    let events = client.all("queue").await;
    assert_eq!(events.last().unwrap()["type"], "done", "{events:?}");
    // Too late.
    client.send(&json!({"type": "cancel", "id": "queue"})).await;
    let refused = problem(&client.event().await, None, 422, "invalid_parameter");
    assert!(refused["detail"].as_str().unwrap().contains("\"queue\""), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_message_does_not_affect_the_others() {
    let server = Server::start(HttpSettings::default()).await;
    server.fixture.script.set_stuck(true);
    let mut client = server.connect().await;
    client.caption("good", &png(), json!({})).await;
    server.in_model(1).await;
    client.until("started", "good").await;
    for (message, id, status, code, word) in [
        ("nonsense", None, 400, "malformed_request", "line 1"),
        ("{\"id\": \"x\", nonsense", Some("x"), 400, "malformed_request", "JSON"),
        ("[]", None, 400, "malformed_request", "JSON"),
        ("{\"type\": \"sing\", \"id\": \"x\"}", Some("x"), 400, "malformed_request", "sing"),
        ("{\"type\": \"cancel\", \"id\": \"nobody\"}", None, 422, "invalid_parameter", "nobody"),
        ("{\"type\": \"caption\", \"image\": \"\"}", None, 422, "invalid_parameter", "id"),
        (
            "{\"type\": \"caption\", \"id\": \"x\", \"image\": \"https://example.org/a.png\"}",
            Some("x"),
            400,
            "malformed_request",
            "URL",
        ),
        (
            "{\"type\": \"caption\", \"id\": \"x\", \"image\": \"\", \"beams\": 2}",
            Some("x"),
            422,
            "invalid_parameter",
            "num_beams",
        ),
        // An image that is none.
        (
            "{\"type\": \"caption\", \"id\": \"x\", \"image\": \"aGVsbG8=\"}",
            Some("x"),
            415,
            "unsupported_format",
            "supported image",
        ),
        // The id of a request in progress.
        (
            "{\"type\": \"caption\", \"id\": \"good\", \"image\": \"aGVsbG8=\"}",
            None,
            422,
            "invalid_parameter",
            "\"good\"",
        ),
    ] {
        client.socket.send(Message::text(message)).await.unwrap();
        let refused = problem(&client.event().await, id, status, code);
        assert!(refused["detail"].as_str().unwrap().contains(word), "{word}: {refused}");
    }
    for bytes in [&b"no head"[..], b"", b"\n", b"\xff\xfe\n", b"{\"type\": \"ping\"}\n"] {
        client.socket.send(Message::binary(bytes.to_vec())).await.unwrap();
        problem(&client.event().await, None, 400, "malformed_request");
    }
    server.fixture.script.set_stuck(false);
    let done = client.last("good").await;
    assert_eq!(done["type"], "done", "{done}");
    client.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_both_kinds_are_answered() {
    let server = Server::start(HttpSettings::default()).await;
    let mut client = server.connect().await;
    client.send(&json!({"type": "ping"})).await;
    assert_eq!(client.event().await, json!({"type": "pong"}));
    client.send(&json!({"type": "ping", "id": "7"})).await;
    assert_eq!(client.event().await, json!({"type": "pong", "id": "7"}));
    client.socket.send(Message::Ping(Bytes::from_static(b"are you there"))).await.unwrap();
    assert_eq!(client.message().await, Message::Pong(Bytes::from_static(b"are you there")));
    client.socket.close(None).await.unwrap();
    assert_eq!(client.close_code().await, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_like_those_of_http() {
    let server = Server::start(HttpSettings::default()).await;
    let mut client = server.connect().await;
    client.caption("a", &png(), json!({})).await;
    client.all("a").await;
    client.caption("b", &png(), json!({"num_beams": 99})).await;
    client.all("b").await;
    client.send(&json!({"type": "ping"})).await;
    client.event().await;
    let metrics = String::from_utf8(server.fixture.get("/metrics").await.body.to_vec()).unwrap();
    for (status, count) in [(101, 1), (200, 1), (422, 1)] {
        let line = format!(
            "cutline_http_requests_total{{contract=\"realtime\",route=\"/api/realtime\",status=\"{status}\"}} {count}"
        );
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    assert!(
        metrics.contains("cutline_rejected_total{reason=\"invalid_parameter\"} 1"),
        "{metrics}"
    );
}

/// On one thread, because the log of a test is that of its thread.
#[tokio::test]
async fn every_request_has_its_line_in_the_log() {
    let mut ids = Vec::new();
    let log = logged(false, async {
        let server = Server::start(HttpSettings::default()).await;
        let (mut client, response) = server.connect_with(&[]).await.unwrap();
        ids.push(response.headers()["x-request-id"].to_str().unwrap().to_owned());
        client.caption("a", &png(), json!({})).await;
        ids.push(client.last("a").await["request_id"].as_str().unwrap().to_owned());
        client.caption("b", b"no image", json!({})).await;
        let refused = client.last("b").await;
        ids.push(refused["error"]["request_id"].as_str().unwrap().to_owned());
        server.fixture.script.set_stuck(true);
        client.caption("c", &distinct(1), json!({})).await;
        client.until("started", "c").await;
        client.send(&json!({"type": "cancel", "id": "c"})).await;
        client.last("c").await;
    })
    .await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lines: Vec<&Value> = lines.iter().filter(|line| line["message"] == "request").collect();
    let statuses: Vec<_> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [101, 200, 415, 499], "{log}");
    for (line, id) in lines.iter().zip(&ids) {
        assert_eq!(line["request_id"], id.as_str(), "{line}");
    }
    assert!(lines.iter().all(|line| line["route"] == "/api/realtime"), "{log}");
    assert_eq!((&lines[1]["caption_length"], &lines[1]["cache"]), (&json!(12), &json!("miss")));
    assert_eq!(lines[2]["code"], "unsupported_format");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_sent_in_a_header_or_as_a_subprotocol() {
    let keys = ApiKeys::new(["s3cret/+="]);
    let server = Server::start(protected(ProtectionSettings { keys, ..Default::default() })).await;
    let encoded = |key: &str| {
        let key = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(key);
        format!("cutline.v1, cutline.key.{key}")
    };
    let (right, wrong) = (encoded("s3cret/+="), encoded("guessed"));
    for (headers, expected) in [
        (&[][..], Err(401)),
        (&[("authorization", "Bearer s3cret/+=")], Ok(None)),
        (&[("authorization", "Bearer guessed")], Err(403)),
        (&[("x-api-key", "s3cret/+=")], Ok(None)),
        (&[("sec-websocket-protocol", right.as_str())], Ok(Some("cutline.v1"))),
        (&[("sec-websocket-protocol", wrong.as_str())], Err(403)),
        (&[("sec-websocket-protocol", "cutline.v1")], Err(401)),
    ] {
        match (server.connect_with(headers).await, expected) {
            (Ok((mut client, response)), Ok(protocol)) => {
                let chosen = response.headers().get("sec-websocket-protocol");
                assert_eq!(chosen.map(|value| value.to_str().unwrap()), protocol);
                client.still_answers().await;
            }
            (Err((status, body)), Err(expected)) => {
                assert_eq!(status, expected, "{headers:?}");
                assert_eq!(body["status"], expected, "{body}");
            }
            (Ok(_), Err(_)) => panic!("{headers:?} is accepted"),
            (Err((status, body)), Ok(_)) => panic!("{headers:?}: {status} {body}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_must_be_allowed() {
    let own = Server::start(HttpSettings::default()).await;
    let origin = format!("http://{}", own.address);
    own.connect_with(&[("origin", &origin)]).await.unwrap().0.still_answers().await;
    for origin in ["http://evil.example", "null"] {
        let Err((403, body)) = own.connect_with(&[("origin", origin)]).await else {
            panic!("{origin} may connect")
        };
        assert_eq!(body["code"], "origin_not_allowed", "{body}");
    }
    let cors = CorsOrigins::List(vec!["http://app.example".to_owned()]);
    let listed = Server::start(protected(ProtectionSettings { cors, ..Default::default() })).await;
    listed.connect_with(&[("origin", "http://app.example")]).await.unwrap().0.still_answers().await;
    assert!(listed.connect_with(&[("origin", "http://evil.example")]).await.is_err());
}

#[tokio::test]
async fn other_requests_to_the_address_are_refused() {
    let handshake = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let fixture = Fixture::new();
    fixture.get("/api/realtime").await.problem(400, "malformed_request");
    for (name, value) in [
        ("connection", "close"),
        ("upgrade", "h2c"),
        ("sec-websocket-version", "8"),
        ("sec-websocket-key", "short"),
        // It cannot be upgraded without a socket.
        ("x-nothing", "wrong"),
    ] {
        let mut request = Request::get("/api/realtime");
        for (other, right) in handshake {
            request = request.header(other, if other == name { value } else { right });
        }
        let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
        answer.problem(400, "malformed_request");
    }
    let post = Request::post("/api/realtime").body(Body::empty()).unwrap();
    assert_eq!(fixture.send(post).await.status, StatusCode::METHOD_NOT_ALLOWED);
}
