//! Images by URL, in the requests of other programs' clients.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use cutline::config::HttpSettings;
use cutline::fetch::FetchSettings;
use serde_json::{Value, json};

use super::{Images, off};
use crate::api::fixture::{Answer, Fixture, emptied, post_to};

/// A way to send the address of an image to a contract, and what comes back.
struct Way {
    name: &'static str,
    request: fn(&str) -> Request<Body>,
    /// Where the caption is.
    caption: &'static str,
    /// The sentence of an error, once its shape and status are checked.
    error: fn(&Answer, u16, &str) -> String,
}

fn post(uri: &str, body: &Value) -> Request<Body> {
    post_to(uri, "application/json", body.to_string())
}

/// The body is an object with these fields and no others.
#[track_caller]
fn text_at(answer: &Answer, status: u16, pointer: &str, fields: &[&str]) -> String {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    let body = answer.json();
    let names: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, fields, "{body}");
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{body}")).to_owned()
}

#[track_caller]
fn openai_error(answer: &Answer, status: u16, code: &str) -> String {
    let error = answer.json()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &json!(code)));
    let hopeless = ["image_too_large", "unsupported_format"].contains(&code);
    assert_eq!(answer.header("x-should-retry") == "false", hopeless, "{answer:?}");
    text_at(answer, status, "/error/message", &["error"])
}

/// Of Ollama, Hugging Face and KServe.
#[track_caller]
fn plain_error(answer: &Answer, status: u16, _: &str) -> String {
    text_at(answer, status, "/error", &["error"])
}

#[track_caller]
fn photoprism_error(answer: &Answer, status: u16, _: &str) -> String {
    assert_eq!(answer.json()["code"], status);
    text_at(answer, status, "/error", &["code", "error"])
}

/// The call has succeeded, and its result says what is wrong.
#[track_caller]
fn mcp_error(answer: &Answer, _: u16, _: &str) -> String {
    assert_eq!(answer.json()["result"]["isError"], true, "{answer:?}");
    text_at(answer, 200, "/result/content/0/text", &["jsonrpc", "id", "result"])
}

fn chat(url: &str) -> Value {
    let image = json!({"type": "image_url", "image_url": {"url": url}});
    json!({"model": "scripted", "messages": [{"role": "user", "content": [image]}]})
}

fn tensor(data: Option<&str>) -> Value {
    let mut image = json!({"name": "image", "datatype": "BYTES", "shape": [1, 1]});
    if let Some(text) = data {
        image["data"] = json!([text]);
    }
    image
}

/// KServe's request with the address as a binary tensor.
fn binary_tensor(url: &str) -> Request<Body> {
    let contents = [&u32::try_from(url.len()).unwrap().to_le_bytes(), url.as_bytes()].concat();
    let mut image = tensor(None);
    image["parameters"] = json!({"binary_data_size": contents.len()});
    let head = json!({"inputs": [image]}).to_string();
    let body = [head.as_bytes(), &contents].concat();
    let mut request = post_to("/v2/models/scripted/infer", "", body);
    request.headers_mut().insert("inference-header-content-length", head.len().into());
    request
}

fn tool(url: &str, argument: &str) -> Request<Body> {
    let call = json!({"name": "caption_image", "arguments": {argument: url}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call});
    let mut request = post("/mcp", &body);
    request.headers_mut().insert("host", "127.0.0.1:8000".parse().unwrap());
    request
}

const WAYS: [Way; 13] = [
    Way {
        name: "chat completions",
        request: |url| post("/v1/chat/completions", &chat(url)),
        caption: "/choices/0/message/content",
        error: openai_error,
    },
    Way {
        name: "a stream of chat completions",
        request: |url| {
            let mut body = chat(url);
            body["stream"] = json!(true);
            post("/v1/chat/completions", &body)
        },
        caption: "",
        error: openai_error,
    },
    Way {
        name: "responses",
        request: |url| {
            let image = json!({"type": "input_image", "image_url": url, "detail": "auto"});
            post("/v1/responses", &json!({"input": [{"role": "user", "content": [image]}]}))
        },
        caption: "/output/0/content/0/text",
        error: openai_error,
    },
    Way {
        name: "Ollama's generate",
        request: |url| {
            post("/api/generate", &json!({"prompt": "?", "images": [url], "stream": false}))
        },
        caption: "/response",
        error: plain_error,
    },
    Way {
        name: "Ollama's chat",
        request: |url| {
            let message = json!({"role": "user", "content": "?", "images": [url]});
            post("/api/chat", &json!({"messages": [message], "stream": false}))
        },
        caption: "/message/content",
        error: plain_error,
    },
    Way {
        name: "PhotoPrism's url",
        request: |url| post("/api/v1/vision/caption", &json!({"url": url})),
        caption: "/result/caption/text",
        error: photoprism_error,
    },
    Way {
        name: "PhotoPrism's images",
        request: |url| post("/api/v1/vision/caption", &json!({"images": [url]})),
        caption: "/result/caption/text",
        error: photoprism_error,
    },
    Way {
        name: "Hugging Face's inputs",
        request: |url| post("/", &json!({"inputs": url})),
        caption: "/0/generated_text",
        error: plain_error,
    },
    Way {
        name: "Hugging Face's image",
        request: |url| post("/pipeline/image-to-text", &json!({"inputs": {"image": url}})),
        caption: "/0/generated_text",
        error: plain_error,
    },
    Way {
        name: "KServe's JSON",
        request: |url| post("/v2/models/scripted/infer", &json!({"inputs": [tensor(Some(url))]})),
        caption: "/outputs/0/data/0",
        error: plain_error,
    },
    Way {
        name: "KServe's binary tensors",
        request: binary_tensor,
        caption: "/outputs/0/data/0",
        error: plain_error,
    },
    Way {
        name: "MCP's url",
        request: |url| tool(url, "url"),
        caption: "/result/content/0/text",
        error: mcp_error,
    },
    Way {
        name: "MCP's image",
        request: |url| tool(url, "image"),
        caption: "/result/content/0/text",
        error: mcp_error,
    },
];

#[tokio::test]
async fn every_contract_captions_the_image_at_an_address() {
    let images = Images::start().await;
    let fixture = images.fixture();
    for (number, Way { name, request, caption, .. }) in WAYS.iter().enumerate() {
        for path in [format!("{number}.png"), format!("moved/{}.png", number + 50)] {
            let starts = fixture.script.starts();
            let answer = fixture.send(request(&images.url(&path))).await;
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
            if caption.is_empty() {
                let text = String::from_utf8(answer.body.to_vec()).unwrap();
                assert!(text.contains("\" square\""), "{name}: {text}");
            } else {
                let found = answer.json().pointer(caption).cloned();
                assert_eq!(found, Some(json!("a red square")), "{name}: {answer:?}");
            }
            // Each address is another image, so that none is answered from the cache.
            assert_eq!(fixture.script.starts(), starts + 1, "{name}");
        }
    }
    assert_eq!(images.requests(), 3 * WAYS.len());
    emptied(&fixture.captioner).await;
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn every_contract_says_in_its_own_shape_why_an_image_was_not_fetched() {
    let images = Images::start().await;
    let patience = |settings: HttpSettings| {
        let fetch = FetchSettings { timeout: Duration::from_millis(300), ..settings.fetch };
        HttpSettings { fetch, ..settings }
    };
    let fixture = Images::fixture_with(patience(images.settings()));
    let elsewhere = "http://example.com/cat.jpg".to_owned();
    let scheme = "https://user:secret@example.com/cat.jpg".to_owned();
    for Way { name, request, error, .. } in &WAYS {
        for (url, status, code, words) in [
            (images.url("missing"), 400, "fetch_failed", "the status 404"),
            (images.url("loop"), 400, "fetch_failed", "more than 3 times"),
            (images.url("away"), 400, "fetch_failed", "redirects to another"),
            (images.url("silent"), 400, "fetch_failed", "within 0.3 s"),
            (images.url("large"), 413, "image_too_large", "larger than 100000 bytes"),
            (images.url("page"), 415, "unsupported_format", ""),
            (elsewhere.clone(), 400, "invalid_parameter", "FETCH_HOSTS"),
            (scheme.clone(), 400, "invalid_parameter", "user name or password"),
        ] {
            let answer = fixture.send(request(&url)).await;
            let sentence = error(&answer, status, code);
            assert!(sentence.contains(words), "{name} {url}: {sentence}");
            assert!(!sentence.contains("secret"), "{name}: {sentence}");
        }
    }
    assert_eq!(fixture.script.starts(), 0);
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn no_contract_fetches_by_default() {
    let images = Images::start().await;
    let fixture = Images::fixture_with(HttpSettings { fetch: off(), ..HttpSettings::default() });
    for Way { name, request, error, .. } in &WAYS {
        let answer = fixture.send(request(&images.url("1.png"))).await;
        let sentence = error(&answer, 400, "invalid_parameter");
        assert!(sentence.contains("FETCH_URLS"), "{name}: {sentence}");
    }
    assert_eq!(images.requests(), 0);
}

#[tokio::test]
async fn several_addresses_are_fetched_together_and_one_failure_fails_the_request() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let chat = |paths: [&str; 3]| {
        let part = |path: &str| json!({"type": "image_url", "image_url": images.url(path)});
        let message = json!({"role": "user", "content": paths.map(part)});
        post("/v1/chat/completions", &json!({"messages": [message]}))
    };
    let answer = fixture.send(chat(["1.png", "moved/2.png", "3.png"])).await.json();
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert_eq!(content, Some("a red square\na red square\na red square"), "{answer}");
    let answer = fixture.send(chat(["4.png", "missing", "5.png"])).await;
    assert!(openai_error(&answer, 400, "fetch_failed").contains("404"));
    emptied(&fixture.captioner).await;
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn a_client_of_any_contract_that_leaves_ends_the_transfer() {
    let images = Images::start().await;
    let fixture = images.fixture();
    for Way { name, request, .. } in &WAYS {
        let mut sending = Box::pin(fixture.send(request(&images.url("silent"))));
        while images.silent() == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(5), &mut sending).await;
        }
        drop(sending);
        crate::api::fixture::eventually(name, || images.silent() == 0).await;
    }
    let held = || fixture.captioner.budget().held() == 0;
    crate::api::fixture::eventually("no memory", held).await;
    fixture.still_answers().await;
}

/// That the image was fetched is not told by the way it is answered.
#[tokio::test]
async fn addresses_inside_are_refused_alike_by_every_contract() {
    let fetch = FetchSettings { sources: cutline::fetch::FetchSources::Public, ..off() };
    let fixture: Fixture = Images::fixture_with(HttpSettings { fetch, ..HttpSettings::default() });
    for Way { name, request, error, .. } in &WAYS {
        let mut sentences = Vec::new();
        for host in ["127.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "localhost."]
        {
            let answer = fixture.send(request(&format!("http://{host}/cat.jpg"))).await;
            sentences.push(error(&answer, 400, "fetch_failed"));
        }
        sentences.dedup();
        assert_eq!(sentences.len(), 1, "{name}: {sentences:?}");
    }
}
