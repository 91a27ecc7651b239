//! OpenAI's API: what its clients read, and in which order.

mod logprobs;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings};
use serde_json::{Value, json};

use super::fixture::{Answer, Fixture, distinct, emptied, eventually, png};

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn request(path: &str, body: &Value) -> Request<Body> {
    // Some clients declare no type, and the server does not look at it.
    Request::post(path).body(Body::from(body.to_string())).unwrap()
}

fn uri(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

fn image() -> Value {
    json!({"type": "image_url", "image_url": {"url": uri(&png())}})
}

fn chat(instruction: &str, more: Value) -> Value {
    let content = json!([{"type": "text", "text": instruction}, image()]);
    let mut body = json!({"model": "scripted", "messages": [{"role": "user", "content": content}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn complete(fixture: &Fixture, body: &Value) -> Answer {
    fixture.send(request("/v1/chat/completions", body)).await
}

/// Checks OpenAI's error object and returns it.
#[track_caller]
fn error(answer: &Answer, status: u16, kind: &str, code: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(!answer.header("x-request-id").is_empty());
    let error = answer.json()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)), "{error}");
    assert!(error["message"].as_str().unwrap().len() > 20, "{error}");
    assert!(error.as_object().unwrap().contains_key("param"), "{error}");
    error
}

/// The data of each event.
fn events(answer: &Answer) -> Vec<(Option<String>, String)> {
    let text = std::str::from_utf8(&answer.body).unwrap();
    let block = |block: &str| {
        let mut name = None;
        let mut data = String::new();
        for line in block.lines() {
            match line.split_once(": ").unwrap() {
                ("event", value) => name = Some(value.to_owned()),
                ("data", value) => data = value.to_owned(),
                _ => panic!("{line}"),
            }
        }
        (name, data)
    };
    text.split_terminator("\n\n").map(block).collect()
}

#[tokio::test]
async fn a_chat_is_answered_as_openai_answers() {
    let fixture = fixture();
    let answer = complete(&fixture, &chat("Describe this image in detail.", json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("x-cutline-intent"), "caption");
    assert!(answer.header("server-timing").contains("inference"));
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "scripted");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let expected = json!({
        "index": 0,
        "message": {
            "role": "assistant", "content": "a red square", "refusal": null, "annotations": [],
        },
        "logprobs": null,
        "finish_reason": "stop",
    });
    assert_eq!(body["choices"], json!([expected]));
    // Five for the image, and the end token counts.
    let usage = &body["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(5), &json!(4)));
    assert_eq!(usage["total_tokens"], 9);
}

#[tokio::test]
async fn parameters_are_taken_over_and_clamped() {
    let fixture = fixture();
    let body = chat(
        "?",
        json!({
            "max_tokens": 2, "temperature": 0.1, "top_p": 5, "seed": -3, "stop": ["x"], "tools": [],
            "frequency_penalty": 1, "user": "u", "metadata": {"a": "b"}, "unknown": {"deep": [1]},
        }),
    );
    let answer = complete(&fixture, &body).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["content"], "a red");
    let many = complete(&fixture, &chat("?", json!({"max_tokens": 100_000, "n": 99}))).await.json();
    assert_eq!(many["choices"].as_array().unwrap().len(), 10);
    assert_eq!(many["choices"][9]["index"], 9);
    let sampled = chat("?", json!({"temperature": 9.0, "top_p": 0.5, "n": 2}));
    assert_eq!(complete(&fixture, &sampled).await.json()["choices"].as_array().unwrap().len(), 2);
    let own = complete(&fixture, &chat("?", json!({"cutline": {"beams": 3}}))).await;
    let error = error(&own, 400, "invalid_request_error", "invalid_parameter");
    assert_eq!(error["param"], "beams");
}

#[tokio::test]
async fn a_prefill_is_continued_and_an_instruction_is_not() {
    let fixture = fixture();
    let mut body = chat("photo of", json!({}));
    body["messages"].as_array_mut().unwrap().push(json!({
        "role": "assistant", "content": "photo of",
    }));
    let answer = complete(&fixture, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "photo of a red square");
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
}

#[tokio::test]
async fn several_images_are_several_lines() {
    let fixture = fixture();
    let two = json!([image(), {"type": "image_url", "image_url": uri(&distinct(2))}]);
    let body = json!({"messages": [{"role": "user", "content": two}]});
    let answer = complete(&fixture, &body).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "a red square\na red square");
    assert_eq!(answer["usage"]["prompt_tokens"], 10);
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let text: String = events(&complete(&fixture, &streamed).await)
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, "a red square\na red square");
}

#[tokio::test]
async fn intents_choose_the_text() {
    let fixture = fixture();
    let answer = complete(&fixture, &chat("List keywords for this photo", json!({}))).await;
    assert_eq!(answer.header("x-cutline-intent"), "tags");
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "square");
    let answer = complete(&fixture, &chat("Alt text in 20 characters", json!({}))).await;
    assert_eq!(answer.header("x-cutline-intent"), "alt_text");
    let schema = json!({
        "type": "object",
        "properties": {"caption": {"type": "string"}, "labels": {"type": "array"}},
        "required": ["caption", "labels"],
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let body = chat("Describe", json!({"response_format": format}));
    let text = complete(&fixture, &body).await.json()["choices"][0]["message"]["content"].clone();
    let filled: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    assert_eq!(filled, json!({"caption": "a red square", "labels": ["square"]}));
    let wrong = json!({"type": "object", "properties": {"year": {"type": "integer"}},
                       "required": ["year"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}});
    let answer = complete(&fixture, &chat("Describe", json!({"response_format": format}))).await;
    error(&answer, 400, "invalid_request_error", "unsupported");
}

#[tokio::test]
async fn a_stream_has_chunks_usage_and_an_end() {
    let fixture = fixture();
    let body = chat("?", json!({"stream": true, "stream_options": {"include_usage": true}}));
    let answer = complete(&fixture, &body).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("x-cutline-intent"), "caption");
    let events = events(&answer);
    assert_eq!(events.last().unwrap(), &(None, "[DONE]".to_owned()));
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|(name, data)| {
            assert_eq!(*name, None);
            serde_json::from_str(data).unwrap()
        })
        .collect();
    let first = &chunks[0];
    assert!(chunks.iter().all(|chunk| chunk["id"] == first["id"]));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    let deltas: Vec<&Value> =
        chunks[..chunks.len() - 1].iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "a"}),
        json!({"content": " red"}),
        json!({"content": " square"}),
        json!({}),
    ];
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "stop");
    assert!(chunks[..5].iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(chunks[5]["choices"], json!([]));
    assert_eq!(chunks[5]["usage"]["total_tokens"], 9);
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event() {
    let fixture = fixture();
    let streamed = request("/v1/chat/completions", &chat("?", json!({"stream": true})));
    let answer = fixture.send_and_break(streamed).await;
    assert_eq!(answer.status, StatusCode::OK);
    let events = events(&answer);
    let last: Value = serde_json::from_str(&events.last().unwrap().1).unwrap();
    assert_eq!(last["error"]["type"], "server_error", "{last}");
    assert!(!last.to_string().contains("secret"), "{last}");
    // Before the stream begins, an error has its own status.
    let broken = json!({"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}});
    let body = json!({"stream": true, "messages": [{"role": "user", "content": [broken]}]});
    let answer = complete(&fixture, &body).await;
    error(&answer, 415, "invalid_request_error", "unsupported_format");
    assert_eq!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_captions() {
    let fixture = fixture();
    fixture.script.let_step(1);
    let request = request("/v1/chat/completions", &chat("?", json!({"stream": true})));
    let response = tower::ServiceExt::oneshot(fixture.app(), request).await.unwrap();
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    drop(response);
    emptied(&fixture.captioner).await;
}

#[tokio::test]
async fn errors_have_openais_shape_wherever_they_arise() {
    let keys = ApiKeys::new(["right"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let fixture = Fixture::with(HttpSettings { protection, ..HttpSettings::default() });
    let answer = complete(&fixture, &chat("?", json!({}))).await;
    error(&answer, 401, "authentication_error", "invalid_api_key");
    let with_key = |path: &str, key: &str, body: String| {
        let request = Request::post(path).header("authorization", format!("Bearer {key}"));
        request.body(Body::from(body)).unwrap()
    };
    let path = "/v1/chat/completions";
    let answer = fixture.send(with_key(path, "wrong", String::new())).await;
    error(&answer, 401, "authentication_error", "invalid_api_key");
    let answer = fixture.send(with_key(path, "right", "{".into())).await;
    error(&answer, 400, "invalid_request_error", "malformed_request");
    let answer = fixture.send(with_key("/v1/embeddings", "right", "{}".into())).await;
    error(&answer, 404, "not_found_error", "not_found");
    let text = json!({"messages": [{"role": "user", "content": "hello"}]}).to_string();
    let answer = fixture.send(with_key(path, "right", text)).await;
    error(&answer, 400, "invalid_request_error", "image_required");
    let mut other = chat("?", json!({}));
    other["model"] = json!("gpt-4o-mini");
    let answer = fixture.send(with_key(path, "right", other.to_string())).await;
    error(&answer, 404, "not_found_error", "model_not_found");
}

#[tokio::test]
async fn a_full_queue_is_a_rate_limit() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let body = |number: u32| {
        let url = json!({"type": "image_url", "image_url": {"url": uri(&distinct(number))}});
        json!({"messages": [{"role": "user", "content": [url]}]})
    };
    let status = || fixture.captioner.status();
    let (_, _, third) = tokio::join!(
        async { complete(&fixture, &body(1)).await },
        async {
            eventually("one in the model", || status().in_flight == 1).await;
            complete(&fixture, &body(2)).await
        },
        async {
            let both = || (status().in_flight, status().queue_depth) == (1, 1);
            eventually("one in the model and one in the queue", both).await;
            let third = complete(&fixture, &body(3)).await;
            fixture.script.set_stuck(false);
            third
        }
    );
    error(&third, 429, "rate_limit_error", "rate_limit_exceeded");
    assert!(third.header("retry-after").parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn a_request_cannot_take_more_memory_than_it_has_bytes() {
    let fixture = fixture();
    let many = vec![json!({}); 5000];
    let answer = complete(&fixture, &json!({"messages": many})).await;
    error(&answer, 400, "invalid_request_error", "malformed_request");
    let deep = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let request = Request::post("/v1/chat/completions").body(Body::from(deep)).unwrap();
    error(&fixture.send(request).await, 400, "invalid_request_error", "malformed_request");
    let images = vec![image(); 33];
    let body = json!({"messages": [{"role": "user", "content": images}]});
    error(&complete(&fixture, &body).await, 413, "invalid_request_error", "batch_too_large");
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn models_are_found_by_all_their_names() {
    let settings =
        HttpSettings { model_aliases: vec!["gpt-4o-mini".into()], ..HttpSettings::default() };
    let fixture = Fixture::with(settings);
    let list = fixture.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["scripted", "gpt-4o-mini"]);
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(list["data"][0]["owned_by"], "cutline");
    assert!(list["data"][0]["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(fixture.get("/v1/models/gpt-4o-mini").await.json()["id"], "gpt-4o-mini");
    let answer = fixture.get("/v1/models/Salesforce%2Fblip").await;
    error(&answer, 404, "not_found_error", "model_not_found");
    let mut body = chat("?", json!({}));
    // `huggingface_hub` says "dummy" if it knows only the address.
    for name in ["gpt-4o-mini", "dummy"] {
        body["model"] = json!(name);
        assert_eq!(complete(&fixture, &body).await.status, StatusCode::OK, "{name}");
    }
}

fn respond(more: Value) -> Value {
    let content = json!([{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": uri(&png())}]);
    let mut body = json!({"model": "scripted", "input": [{"role": "user", "content": content}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn responses_are_answered_as_openai_answers() {
    let fixture = fixture();
    let answer = fixture.send(request("/v1/responses", &respond(json!({})))).await;
    let body = answer.json();
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(body["output"][0]["content"][0]["text"], "a red square");
    assert_eq!(body["usage"]["input_tokens"], 5);
    let short = respond(json!({"max_output_tokens": 2}));
    let body = fixture.send(request("/v1/responses", &short)).await.json();
    assert_eq!(body["status"], "incomplete");
    assert_eq!(body["incomplete_details"]["reason"], "max_output_tokens");
    let follow = respond(json!({"previous_response_id": "resp_1"}));
    let answer = fixture.send(request("/v1/responses", &follow)).await;
    let error_object = error(&answer, 400, "invalid_request_error", "invalid_parameter");
    assert_eq!(error_object["param"], "previous_response_id");
    let answer = fixture.send(request("/v1/responses", &json!({"input": "hello"}))).await;
    error(&answer, 400, "invalid_request_error", "image_required");
}

#[tokio::test]
async fn the_events_of_a_response_come_in_openais_order() {
    let fixture = fixture();
    let answer = fixture.send(request("/v1/responses", &respond(json!({"stream": true})))).await;
    let events: Vec<(String, Value)> = events(&answer)
        .into_iter()
        .map(|(name, data)| (name.unwrap(), serde_json::from_str(&data).unwrap()))
        .collect();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let delta = "response.output_text.delta";
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            delta,
            delta,
            delta,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
    }
    assert_eq!(events[0].1["response"]["output"], json!([]));
    assert_eq!(events[2].1["item"]["content"], json!([]));
    let text: String =
        events[4..7].iter().map(|(_, data)| data["delta"].as_str().unwrap()).collect();
    assert_eq!(text, "a red square");
    assert_eq!(events[7].1["text"], "a red square");
    let last = &events[10].1["response"];
    assert_eq!(last["id"], events[0].1["response"]["id"]);
    assert_eq!(last["output"][0]["id"], events[2].1["item"]["id"]);
    assert_eq!(last["output"][0]["content"][0]["text"], "a red square");
}
