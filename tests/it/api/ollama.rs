//! Ollama's API, and the vision service of PhotoPrism beside it.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings};
use serde_json::{Value, json};

use super::fixture::{Answer, Fixture, distinct, png};

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn image() -> String {
    STANDARD.encode(png())
}

async fn post(fixture: &Fixture, path: &str, body: &Value) -> Answer {
    let request = Request::post(path).body(Body::from(body.to_string())).unwrap();
    fixture.send(request).await
}

/// Every line is an object, and none is empty.
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert!(text.ends_with('\n'));
    text.trim_end_matches('\n')
        .split('\n')
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Checks Ollama's error and returns its sentence.
#[track_caller]
fn error(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn generate_streams_words_unless_told_otherwise() {
    let fixture = fixture();
    let body = json!({"model": "scripted", "prompt": "Describe", "images": [image()]});
    let answer = post(&fixture, "/api/generate", &body).await;
    let lines = lines(&answer);
    let words: Vec<&str> = lines.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!(words, ["a", " red", " square", ""]);
    assert!(lines.iter().all(|line| line["model"] == "scripted"));
    assert!(lines[..3].iter().all(|line| line["done"] == false));
    let last = &lines[3];
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(5), &json!(4)));
    assert!(last["total_duration"].as_u64().unwrap() > 0);
    assert!(last["created_at"].as_str().unwrap().ends_with('Z'));

    let whole = json!({"model": "scripted:latest", "prompt": "Describe", "suffix": "",
                       "images": [image()], "stream": false, "think": false});
    let answer = post(&fixture, "/api/generate", &whole).await;
    assert!(answer.header("content-type").starts_with("application/json"));
    let body = answer.json();
    assert_eq!((&body["response"], &body["done"]), (&json!("a red square"), &json!(true)));
    assert_eq!(body["context"], json!([]));
    assert_eq!(body["model"], "scripted:latest");
}

#[tokio::test]
async fn chat_answers_the_last_message_with_images() {
    let fixture = fixture();
    let body = json!({"model": "scripted", "stream": false, "messages": [
        {"role": "system", "content": "You write alt text."},
        {"role": "user", "content": "this", "images": [STANDARD.encode(distinct(1))]},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "and these", "images": [image(), STANDARD.encode(distinct(2))]},
    ]});
    let answer = post(&fixture, "/api/chat", &body).await;
    assert_eq!(answer.header("x-cutline-intent"), "alt_text");
    let body = answer.json();
    assert_eq!(body["message"]["role"], "assistant");
    assert_eq!(body["message"]["content"], "a red square\na red square");
    let raw = json!({"prompt": "photo of", "raw": true, "images": [image()], "stream": false});
    let answer = post(&fixture, "/api/generate", &raw).await;
    assert_eq!(answer.json()["response"], "photo of a red square");
}

#[tokio::test]
async fn formats_and_options_are_honoured() {
    let fixture = fixture();
    let ask = |more: Value| {
        let mut body = json!({"prompt": "?", "images": [image()], "stream": false});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    let text = async |more: Value| {
        let answer = post(&fixture, "/api/generate", &ask(more)).await;
        answer.json()["response"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(json!({"format": "json"})).await, r#"{"caption":"a red square"}"#);
    assert_eq!(text(json!({"format": ""})).await, "a red square");
    assert_eq!(text(json!({"options": {"num_predict": 2}})).await, "a red");
    assert_eq!(text(json!({"options": {"num_predict": -1, "num_ctx": 9}})).await, "a red square");
    let labels = json!({"type": "object", "required": ["labels"], "properties": {"labels": {
        "type": "array",
        "items": {"type": "object", "required": ["name", "confidence"],
                  "properties": {"name": {"type": "string"}, "confidence": {"type": "number"}}},
    }}});
    let filled: Value = serde_json::from_str(&text(json!({"format": labels})).await).unwrap();
    assert_eq!(filled, json!({"labels": [{"name": "square", "confidence": 1.0}]}));
    let answer = post(&fixture, "/api/generate", &ask(json!({"format": "yaml"}))).await;
    assert!(error(&answer, 400).contains("format"));
}

#[tokio::test]
async fn an_empty_request_loads_and_unloads() {
    let fixture = fixture();
    let answer = post(&fixture, "/api/generate", &json!({"model": "scripted"})).await.json();
    assert_eq!((&answer["done_reason"], &answer["response"]), (&json!("load"), &json!("")));
    // Ollama's client for Python sends 0.0 for 0.
    for (keep_alive, reason) in [
        (json!(0), "unload"),
        (json!(0.0), "unload"),
        (json!("0s"), "unload"),
        (json!("5m"), "load"),
        (json!(-1), "load"),
    ] {
        let body = json!({"model": "scripted", "messages": [], "keep_alive": keep_alive});
        let answer = post(&fixture, "/api/chat", &body).await.json();
        assert_eq!(answer["done_reason"], reason, "{body}");
    }
    fixture.still_answers().await;
}

#[tokio::test]
async fn errors_are_one_sentence() {
    let keys = ApiKeys::new(["right"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let closed = Fixture::with(HttpSettings { protection, ..HttpSettings::default() });
    error(&closed.get("/api/tags").await, 401);
    error(&post(&closed, "/", &json!({})).await, 401);
    assert_eq!(closed.get("/").await.status, StatusCode::OK, "the page is open");

    let fixture = fixture();
    let unknown = json!({"model": "llava", "prompt": "x", "images": [image()]});
    let sentence = error(&post(&fixture, "/api/generate", &unknown).await, 404);
    assert!(sentence.starts_with("model 'llava' not found"), "{sentence}");
    let text = json!({"model": "scripted", "prompt": "hello"});
    assert!(error(&post(&fixture, "/api/generate", &text).await, 400).contains("no image"));
    error(&post(&fixture, "/api/embed", &json!({})).await, 404);
    error(&post(&fixture, "/api/generate", &json!({"images": "x"})).await, 400);
    error(&post(&fixture, "/api/generate", &json!({"images": ["%%%"]})).await, 400);
    let body = json!({"model": "scripted", "prompt": "Describe", "images": [image()]});
    let request = Request::post("/api/generate").body(Body::from(body.to_string())).unwrap();
    let answer = fixture.send_and_break(request).await;
    let lines = lines(&answer);
    assert!(lines.last().unwrap()["error"].is_string(), "{lines:?}");
}

#[tokio::test]
async fn models_are_described_as_ollama_describes_them() {
    let settings = HttpSettings { model_aliases: vec!["llava".into()], ..HttpSettings::default() };
    let fixture = Fixture::with(settings);
    let tags = fixture.get("/api/tags").await.json();
    assert_eq!(tags["models"][0]["model"], "scripted:latest");
    assert_eq!(tags["models"][1]["name"], "llava:latest");
    assert_eq!(tags["models"][0]["details"]["family"], "blip");
    let ps = fixture.get("/api/ps").await.json();
    assert!(ps["models"][0]["expires_at"].as_str().unwrap() > "2900");
    assert_eq!(ps["models"][0]["size_vram"], 0);
    let version = fixture.get("/api/version").await.json()["version"].clone();
    let minor = version.as_str().unwrap().split('.').nth(1).unwrap().parse::<u32>().unwrap();
    assert!(minor >= 6, "clients want 0.6.4 at least: {version}");
    for body in [json!({"model": "llava"}), json!({"name": "scripted:latest"})] {
        let show = post(&fixture, "/api/show", &body).await.json();
        assert!(show["model_info"].is_object(), "{show}");
        let lines = show["parameters"].as_str().unwrap().lines();
        assert!(lines.into_iter().all(|line| line.split_whitespace().count() == 2), "{show}");
        assert_eq!(show["capabilities"], json!(["completion", "vision"]));
    }
    let pull = post(&fixture, "/api/pull", &json!({"model": "llava"})).await;
    assert_eq!(lines(&pull), [json!({"status": "success"})]);
    error(&post(&fixture, "/api/pull", &json!({"model": "gemma3"})).await, 404);
    error(&post(&fixture, "/api/show", &json!({"model": "gemma3"})).await, 404);
}

#[tokio::test]
async fn photoprism_gets_captions_and_labels() {
    let fixture = fixture();
    let body = json!({"id": "b1", "model": "any", "version": "latest", "format": "json", "url": "",
                      "images": [format!("data:image/png;base64,{}", image())]});
    let caption = post(&fixture, "/api/v1/vision/caption", &body).await.json();
    assert_eq!((&caption["id"], &caption["code"]), (&json!("b1"), &json!(200)));
    let expected = json!({"text": "a red square", "source": "image", "confidence": 0.5});
    assert_eq!(caption["result"]["caption"], expected);
    assert_eq!(caption["model"]["resolution"], 32);
    let labels = post(&fixture, "/api/v1/vision/labels", &body).await.json();
    let expected = json!([{"name": "square", "source": "image", "priority": 0, "confidence": 1.0,
                           "topicality": 1.0, "categories": []}]);
    assert_eq!(labels["result"]["labels"], expected);
    let none = post(&fixture, "/api/v1/vision/caption", &json!({"id": "b2", "images": []})).await;
    assert_eq!(none.status, StatusCode::BAD_REQUEST);
    assert_eq!(none.json()["code"], 400);
    assert!(none.json()["error"].as_str().unwrap().contains("no image"));
}
