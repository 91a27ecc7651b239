//! The Model Context Protocol over HTTP.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, CorsOrigins, HttpSettings, ProtectionSettings};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::fixture::{Answer, Fixture, distinct, emptied, eventually, png};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn protected(protection: ProtectionSettings) -> Fixture {
    Fixture::with(HttpSettings { protection, ..HttpSettings::default() })
}

fn post(headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post("/mcp").header("content-type", "application/json");
    if headers.iter().all(|(name, _)| *name != "host") {
        request = request.header("host", "127.0.0.1:8000");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

fn message(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string()
}

fn tool(name: &str, arguments: &Value) -> String {
    message("tools/call", &json!({"name": name, "arguments": arguments}))
}

fn image() -> Value {
    json!({"image": STANDARD.encode(png())})
}

/// The result of a message that is answered.
#[track_caller]
fn result(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!((&body["jsonrpc"], &body["id"]), (&json!("2.0"), &json!(7)), "{body}");
    assert!(body["result"].is_object(), "{body}");
    body["result"].clone()
}

async fn ask(fixture: &Fixture, method: &str, params: &Value) -> Value {
    result(&fixture.send(post(&[], message(method, params))).await)
}

async fn call(fixture: &Fixture, name: &str, arguments: &Value) -> Value {
    result(&fixture.send(post(&[], tool(name, arguments))).await)
}

/// The sentence of a call that failed.
#[track_caller]
fn sentence(result: &Value) -> &str {
    assert_eq!(result["isError"], true, "{result}");
    assert!(result["structuredContent"].is_null(), "{result}");
    let sentence = result["content"][0]["text"].as_str().unwrap();
    assert!(sentence.len() > 20, "{sentence}");
    sentence
}

/// Checks a JSON-RPC error and returns its message.
#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> String {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json", "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["jsonrpc"], &body["id"]), (&json!("2.0"), &Value::Null), "{body}");
    assert_eq!(body["error"]["data"]["code"], code, "{body}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn clients_with_a_handshake_are_served() {
    let fixture = fixture();
    let hello = |version: &str| {
        let client = json!({"name": "test", "version": "1"});
        json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client})
    };
    for version in ["2025-11-25", "2025-06-18", "2025-03-26"] {
        let answer = fixture.send(post(&[], message("initialize", &hello(version)))).await;
        assert!(answer.headers.get("mcp-session-id").is_none(), "there are no sessions");
        let result = result(&answer);
        assert_eq!(result["protocolVersion"], version);
        assert_eq!(result["serverInfo"]["name"], "cutline");
        assert_eq!(result["serverInfo"]["version"], env!("CARGO_PKG_VERSION"));
        assert!(result["capabilities"]["tools"].is_object(), "{result}");
        assert!(result["instructions"].as_str().unwrap().contains("Describes images"));
    }
    let newer = ask(&fixture, "initialize", &hello("2026-07-28")).await;
    assert_eq!(newer["protocolVersion"], "2025-11-25", "the handshake ends with this version");
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    let answer = fixture.send(post(&[("mcp-protocol-version", "2025-11-25")], note)).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::ACCEPTED, 0));
    assert_eq!(ask(&fixture, "ping", &json!({})).await, json!({}));
}

#[tokio::test]
async fn clients_without_a_handshake_are_served() {
    let fixture = fixture();
    let meta = json!({
        VERSION: "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let version = ("mcp-protocol-version", "2026-07-28");
    let headers = [version, ("mcp-method", "server/discover")];
    let discover = message("server/discover", &json!({"_meta": meta}));
    let found = result(&fixture.send(post(&headers, discover)).await);
    let versions = found["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!("2026-07-28")) && versions.contains(&json!("2025-11-25")));
    let params = json!({"name": "caption_image", "arguments": image(), "_meta": meta});
    let headers = [version, ("mcp-method", "tools/call"), ("mcp-name", "caption_image")];
    let called = result(&fixture.send(post(&headers, message("tools/call", &params))).await);
    assert_eq!(called["resultType"], "complete");
    assert_eq!(called["structuredContent"]["caption"], "a red square");
    // A header that contradicts the body is refused.
    let headers = [version, ("mcp-method", "tools/call"), ("mcp-name", "alt_text")];
    let answer = fixture.send(post(&headers, message("tools/call", &params))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], -32020);
}

#[tokio::test]
async fn tools_are_described_for_models_and_programs() {
    let fixture = Fixture::loading(HttpSettings::default());
    let listed = ask(&fixture, "tools/list", &json!({})).await;
    let tools = listed["tools"].as_array().unwrap();
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["caption_image", "alt_text", "tag_image", "image_colors"]);
    for tool in tools {
        let hints = &tool["annotations"];
        assert_eq!(
            (&hints["readOnlyHint"], &hints["idempotentHint"]),
            (&json!(true), &json!(true))
        );
        let input = &tool["inputSchema"];
        assert_eq!(input["type"], "object");
        // Some clients refuse a schema with these at the top.
        assert!(["oneOf", "anyOf", "allOf"].iter().all(|word| input[word].is_null()), "{input}");
        let names: Vec<&String> = input["properties"].as_object().unwrap().keys().collect();
        let expected: &[&str] = if tool["name"] == "alt_text" {
            &["url", "image", "max_chars"]
        } else {
            &["url", "image"]
        };
        assert_eq!(names, expected, "no files over the network");
        assert_eq!(tool["outputSchema"]["type"], "object");
        assert!(tool["description"].as_str().unwrap().len() > 40);
    }
}

#[tokio::test]
async fn every_tool_answers_with_a_text_and_a_structure() {
    let fixture = fixture();
    let listed = ask(&fixture, "tools/list", &json!({})).await;
    let facts = json!({"format": "png", "width": 40, "height": 30});
    for (index, (name, arguments, text)) in [
        ("caption_image", image(), "a red square"),
        ("alt_text", json!({"image": STANDARD.encode(png()), "max_chars": 20}), "a red square"),
        ("tag_image", image(), "square"),
        ("image_colors", image(), "mood"),
    ]
    .into_iter()
    .enumerate()
    {
        let result = call(&fixture, name, &arguments).await;
        assert_eq!(result["isError"], false, "{result}");
        assert_eq!(result["content"][0]["type"], "text");
        let shown = result["content"][0]["text"].as_str().unwrap();
        assert!(shown.contains(text), "{name}: {shown}");
        let structured = &result["structuredContent"];
        assert_eq!(structured["image"], facts, "{structured}");
        // What the schema promises, and nothing else.
        let schema = &listed["tools"][index]["outputSchema"];
        for required in schema["required"].as_array().unwrap() {
            assert!(!structured[required.as_str().unwrap()].is_null(), "{structured}");
        }
        for field in structured.as_object().unwrap().keys() {
            assert!(schema["properties"][field].is_object(), "{field} is not in {schema}");
        }
    }
    let uri = json!({"image": format!("data:image/png;base64,{}", STANDARD.encode(png()))});
    let result = call(&fixture, "caption_image", &uri).await;
    assert_eq!(result["structuredContent"]["caption"], "a red square");
    assert!(result["structuredContent"]["confidence"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn what_goes_wrong_in_a_call_is_a_result() {
    let settings = HttpSettings { max_image_bytes: 4000, ..HttpSettings::default() };
    let fixture = Fixture::with(settings);
    let encoded = STANDARD.encode(png());
    for (name, arguments, part) in [
        ("caption_image", json!({}), "there is no image"),
        ("caption_image", json!({"image": ""}), "there is no image"),
        ("caption_image", json!({"image": "äöü"}), "not valid base64"),
        (
            "caption_image",
            json!({"image": STANDARD.encode("no image at all")}),
            "not a supported image",
        ),
        ("image_colors", json!({"image": &encoded[..encoded.len() / 8 * 4]}), "damaged or cut off"),
        ("caption_image", json!({"image": 5}), "must be a string"),
        ("tag_image", json!({"image": [encoded]}), "must be a string"),
        ("caption_image", json!({"image": encoded, "url": "http://a/b"}), "only one of"),
        ("caption_image", json!({"image": encoded, "prompt": "x"}), "no argument 'prompt'"),
        ("caption_image", json!({"path": "/etc/passwd"}), "not read over the network"),
        ("alt_text", json!({"image": encoded, "max_chars": 2}), "max_chars"),
        ("image_colors", json!({"image": STANDARD.encode([0; 4001])}), "larger than 4000 bytes"),
    ] {
        let result = call(&fixture, name, &arguments).await;
        assert!(sentence(&result).contains(part), "{part} is not in {result}");
    }
    fixture.still_answers().await;
}

#[tokio::test]
async fn the_state_of_the_server_is_a_result_as_well() {
    let settings =
        HttpSettings { request_timeout: Duration::from_millis(50), ..HttpSettings::default() };
    let fixture = Fixture::loading(settings);
    let loading = call(&fixture, "caption_image", &image()).await;
    assert!(sentence(&loading).contains("still loading"), "{loading}");
    let colors = call(&fixture, "image_colors", &image()).await;
    assert_eq!(colors["isError"], false, "colours need no model: {colors}");

    fixture.state.ready(fixture.captioner.clone());
    fixture.script.set_stuck(true);
    let late = call(&fixture, "caption_image", &image()).await;
    assert!(sentence(&late).contains("not ready within 0.05 s"), "{late}");
    emptied(&fixture.captioner).await;

    fixture.script.set_stuck(false);
    fixture.script.set_broken(true);
    let broken = call(&fixture, "caption_image", &image()).await;
    let shown = sentence(&broken);
    assert!(shown.contains("the server failed") && !shown.contains("secret"), "{shown}");
    fixture.script.set_broken(false);
    let metrics = String::from_utf8(fixture.get("/metrics").await.body.to_vec()).unwrap();
    for code in ["not_ready", "inference_timeout"] {
        assert!(metrics.contains(&format!("\"{code}\"")), "{code} is not counted: {metrics}");
    }
    assert!(metrics.contains("mcp"), "{metrics}");
}

#[tokio::test]
async fn a_full_queue_is_a_result() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let start = |number| {
        let app = fixture.app();
        let body = tool("caption_image", &json!({"image": STANDARD.encode(distinct(number))}));
        tokio::spawn(async move { app.oneshot(post(&[], body)).await })
    };
    // The first passes through the queue as well.
    let first = start(0);
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    let second = start(1);
    eventually("one in the queue", || fixture.captioner.status().queue_depth == 1).await;
    let third = json!({"image": STANDARD.encode(distinct(9))});
    let result = call(&fixture, "caption_image", &third).await;
    assert!(sentence(&result).contains("too many images are waiting"), "{result}");
    // A client that leaves takes its caption with it.
    first.abort();
    second.abort();
    emptied(&fixture.captioner).await;
    fixture.script.set_stuck(false);
    fixture.still_answers().await;
}

#[tokio::test]
async fn unknown_tools_and_methods_are_errors_of_the_protocol() {
    let fixture = fixture();
    let answer = fixture.send(post(&[], tool("delete_image", &json!({})))).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (StatusCode::OK, &json!(-32602)), "{error}");
    assert!(error["message"].as_str().unwrap().contains("use one of caption_image"), "{error}");
    let answer =
        fixture.send(post(&[], message("resources/read", &json!({"uri": "file:///"})))).await;
    assert_eq!(answer.json()["error"]["code"], -32601, "{answer:?}");
}

#[tokio::test]
async fn keys_are_needed_and_refusals_are_json_rpc() {
    let keys = ApiKeys::new(["key"]);
    let fixture = protected(ProtectionSettings { keys, ..ProtectionSettings::default() });
    let list = || message("tools/list", &json!({}));
    assert!(
        refused(&fixture.send(post(&[], list())).await, 401, "unauthorized").contains("API key")
    );
    let wrong = fixture.send(post(&[("authorization", "Bearer no")], list())).await;
    refused(&wrong, 403, "forbidden");
    // A page has no key, so with keys any name of the server will do.
    let headers = [("authorization", "Bearer key"), ("host", "captions.example.org")];
    result(&fixture.send(post(&headers, list())).await);
    let get = Request::get("/mcp").header("authorization", "Bearer key").body(Body::empty());
    let answer = fixture.send(get.unwrap()).await;
    assert!(refused(&answer, 405, "method_not_allowed").contains("use POST"), "{answer:?}");
}

#[tokio::test]
async fn pages_from_elsewhere_are_refused() {
    let list = || message("tools/list", &json!({}));
    let fixture = fixture();
    for host in ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"] {
        result(&fixture.send(post(&[("host", host)], list())).await);
    }
    for host in ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"] {
        let answer = fixture.send(post(&[("host", host)], list())).await;
        assert!(refused(&answer, 403, "origin_not_allowed").contains("TRUSTED_PROXY_COUNT"));
    }
    for origin in ["http://evil.example", "null", "http://localhost:3000", "%"] {
        let answer = fixture.send(post(&[("origin", origin)], list())).await;
        refused(&answer, 403, "origin_not_allowed");
    }
    let site = "https://app.example.com";
    let sites = CorsOrigins::List(vec![site.into(), "http://localhost:3000".into()]);
    let listed = protected(ProtectionSettings { cors: sites, ..ProtectionSettings::default() });
    for origin in [site, "http://localhost:3000"] {
        let answer = listed.send(post(&[("origin", origin)], list())).await;
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        result(&answer);
    }
    for origin in ["https://app.example.com:8443", "http://app.example.com", "http://localhost"] {
        let answer = listed.send(post(&[("origin", origin)], list())).await;
        refused(&answer, 403, "origin_not_allowed");
    }
    // The operator has said that a proxy is in front, which may have any name.
    let proxied = protected(ProtectionSettings { proxies: 1, ..ProtectionSettings::default() });
    result(&proxied.send(post(&[("host", "captions.example.org")], list())).await);
    let everywhere = Fixture::with(HttpSettings { loopback_host: None, ..HttpSettings::default() });
    result(&everywhere.send(post(&[("host", "cutline:8000")], list())).await);
}

#[tokio::test]
async fn bodies_stay_within_limits() {
    let settings = HttpSettings { max_image_bytes: 1000, ..HttpSettings::default() };
    let fixture = Fixture::with(settings);
    let large = tool("caption_image", &json!({"image": "A".repeat(2 << 20)}));
    let answer = fixture.send(post(&[], large)).await;
    refused(&answer, 413, "image_too_large");
    let wide = tool("caption_image", &json!({"image": vec![0; 5000]}));
    let answer = fixture.send(post(&[], wide)).await;
    assert!(refused(&answer, 400, "malformed_request").contains("4096 values"), "{answer:?}");
    let deep = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    for body in ["", "[]", "{", "{}", "[1]", "null", r#"{"jsonrpc": "1.0"}"#, deep.as_str()] {
        let answer = fixture.send(post(&[], body.to_owned())).await;
        refused(&answer, 400, "malformed_request");
    }
    let typed =
        Request::post("/mcp").header("host", "localhost").header("content-type", "text/plain");
    let body = Body::from(message("tools/list", &json!({})));
    let answer = fixture.send(typed.body(body).unwrap()).await;
    refused(&answer, 400, "malformed_request");
    let answer = fixture.send(post(&[("mcp-protocol-version", "1999-01-01")], "{}")).await;
    refused(&answer, 400, "malformed_request");
    assert_eq!(fixture.captioner.budget().held(), 0, "all memory is returned");
}

/// Line breaks in base64 are written as escapes in JSON.
#[tokio::test]
async fn texts_with_escapes_are_read() {
    let fixture = fixture();
    let encoded = STANDARD.encode(png());
    let (first, second) = encoded.split_at(76);
    let arguments = json!({"image": format!("{first}\r\n{second}\n")});
    let result = call(&fixture, "caption_image", &arguments).await;
    assert_eq!(result["structuredContent"]["caption"], "a red square", "{result}");
    assert_eq!(fixture.captioner.budget().held(), 0);
}
