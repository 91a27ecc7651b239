//! Many images in one request.

use axum::body::{Body, BodyDataStream};
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::captioner::{CaptionParams, CaptionStream, MemoryLimits};
use cutline::config::HttpSettings;
use image::ImageFormat;
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tower::ServiceExt;

use super::fixture::{
    Answer, Fixture, distinct, emptied, eventually, form_bytes, picture, png, post_to,
};

const MULTIPART: &str = "multipart/form-data; boundary=line";

/// Reads a body part by part.
struct Lines(BodyDataStream);

impl Lines {
    async fn next(&mut self) -> Option<String> {
        let chunk = self.0.next().await?.unwrap();
        Some(String::from_utf8(chunk.to_vec()).unwrap())
    }
}

fn fixture() -> Fixture {
    Fixture::roomy(64, MemoryLimits::default())
}

fn form(parts: &[(&str, &[u8])]) -> Request<Body> {
    post_to("/caption/batch", MULTIPART, form_bytes(parts))
}

fn fields(body: &Value) -> Request<Body> {
    post_to("/caption/batch", "application/json", body.to_string())
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// The results, after checking the summary.
fn results(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let body = answer.json();
    let results = body["results"].as_array().unwrap().clone();
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["index"], index);
    }
    let count = |status: &str| results.iter().filter(|result| result["status"] == status).count();
    let summary = json!({"total": results.len(), "ok": count("ok"), "failed": count("error")});
    assert_eq!(body["summary"], summary);
    results
}

#[tokio::test]
async fn good_and_bad_images_have_results_in_order() {
    let fixture = fixture();
    let large = vec![0x89; (10 << 20) + 1];
    let cut = &png()[..60];
    let answer = fixture
        .send(form(&[
            ("; name=\"images\"; filename=\"a.png\"", &distinct(1)),
            ("; name=\"max_new_tokens\"", b"2"),
            ("; name=\"images\"; filename=\"b.txt\"", b"just words, no photo"),
            ("; name=\"image\"; filename=\"c.png\"", cut),
            ("; name=\"files\"", &distinct(2)),
            ("; name=\"file\"; filename=\"large\"", &large),
            ("; name=\"images\"; filename=\"f.png\"", &distinct(3)),
        ]))
        .await;
    let results = results(&answer);
    let names: Vec<_> = results.iter().map(|result| result.get("name")).collect();
    let name = |name: &'static str| Value::from(name);
    assert_eq!(
        names,
        [
            Some(&name("a.png")),
            Some(&name("b.txt")),
            Some(&name("c.png")),
            None,
            Some(&name("large")),
            Some(&name("f.png")),
        ]
    );
    for (index, width) in [(0, 21), (3, 22), (5, 23)] {
        assert_eq!(results[index]["status"], "ok", "{}", results[index]);
        assert_eq!(results[index]["caption"], "a red");
        assert_eq!(results[index]["image"]["width"], width, "each has its own");
        assert_eq!(results[index]["cache"], "miss");
    }
    for (index, status, code) in
        [(1, 415, "unsupported_format"), (2, 422, "undecodable_image"), (4, 413, "image_too_large")]
    {
        let error = &results[index]["error"];
        assert_eq!(results[index]["status"], "error", "{}", results[index]);
        assert!(results[index].get("caption").is_none());
        assert_eq!((&error["status"], &error["code"]), (&status.into(), &code.into()), "{error}");
        assert_eq!(error["type"], format!("urn:cutline:problem:{code}"));
        assert_eq!(error["request_id"], answer.header("x-request-id"));
    }
    assert_eq!(fixture.captioner.budget().held(), 0);
    assert_eq!(fixture.captioner.status().reserved, 0, "the bad ones gave their places back");
}

#[tokio::test]
async fn batches_can_be_json_or_raw_bytes() {
    let fixture = fixture();
    let images = json!([encoded(distinct(1)), "%", 5, encoded(distinct(2)), [], encoded("text")]);
    let answer = fixture.send(fields(&json!({"prompt": "photo of", "images": images}))).await;
    let results_of_json = results(&answer);
    let codes: Vec<_> = results_of_json
        .iter()
        .map(|result| result["error"]["code"].as_str().unwrap_or("ok").to_owned())
        .collect();
    let malformed = "malformed_request";
    assert_eq!(codes, ["ok", malformed, malformed, "ok", malformed, "unsupported_format"]);
    assert_eq!(results_of_json[3]["caption"], "photo of a red square");
    assert_eq!(results_of_json[3]["image"]["width"], 22);

    let answer = fixture.send(post_to("/caption/batch?max_new_tokens=1", "image/png", png())).await;
    assert_eq!(results(&answer)[0]["caption"], "a");
}

#[tokio::test]
async fn an_invalid_request_is_refused_as_a_whole() {
    let settings = HttpSettings { max_images_per_request: 2, ..HttpSettings::default() };
    let fixture = Fixture::build(settings, 64, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    let part = ("; name=\"images\"", &*png());
    let image = encoded(png());
    for (what, request, status, code) in [
        ("three parts", form(&[part, part, part]), 413, "batch_too_large"),
        ("three fields", fields(&json!({"images": [image, image, image]})), 413, "batch_too_large"),
        ("no image", form(&[("; name=\"prompt\"", b"a")]), 400, "malformed_request"),
        ("an empty array", fields(&json!({"images": []})), 400, "malformed_request"),
        ("no array", fields(&json!({"images": image})), 400, "malformed_request"),
        ("one image", fields(&json!({"image": image})), 422, "invalid_parameter"),
        ("a parameter", fields(&json!({"images": [image], "top_p": 2})), 422, "invalid_parameter"),
        (
            "a long prompt",
            form(&[part, ("; name=\"prompt\"", &[b'a'; 100_000])]),
            422,
            "invalid_parameter",
        ),
        ("a stream", fields(&json!({"images": [image], "stream": true})), 422, "invalid_parameter"),
        ("text", post_to("/caption/batch", "text/plain", "a"), 415, "unsupported_format"),
        ("cut off", post_to("/caption/batch", MULTIPART, "--line\r\n"), 400, "malformed_request"),
    ] {
        eprintln!("{what}");
        fixture.send(request).await.problem(status, code);
        assert_eq!(fixture.captioner.budget().held(), 0, "{what}");
    }
    assert_eq!(fixture.script.starts(), 0, "nothing was begun");
    assert_eq!(results(&fixture.send(form(&[part, part])).await).len(), 2);
}

/// A stuck model that is busy with three images, and a queue of three.
async fn three_in_progress() -> (Fixture, Vec<CaptionStream>) {
    let fixture = Fixture::roomy(3, MemoryLimits::default());
    fixture.script.set_stuck(true);
    let mut started = Vec::new();
    for number in 0..3 {
        let params = CaptionParams::default();
        started.push(fixture.captioner.start(distinct(number), params).await.unwrap());
        let in_flight = number as usize + 1;
        eventually("it in the model", || fixture.captioner.status().in_flight == in_flight).await;
    }
    (fixture, started)
}

#[tokio::test]
async fn a_batch_is_queued_as_a_whole_or_refused() {
    let (fixture, started) = three_in_progress().await;
    // And one in the queue.
    let waiting = fixture.captioner.start(distinct(3), CaptionParams::default()).await.unwrap();
    let images: Vec<String> = (10..13).map(|number| encoded(distinct(number))).collect();
    let answer = fixture.send(fields(&json!({"images": images}))).await;
    answer.problem(429, "queue_full");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    let status = fixture.captioner.status();
    assert_eq!(status.queue_depth + status.reserved, 1, "nothing of it was queued");
    drop((started, waiting));
}

#[tokio::test]
async fn cached_images_need_no_queue_slot() {
    let (fixture, _started) = three_in_progress().await;
    let mut waiting = Vec::new();
    for number in 3..5 {
        let params = CaptionParams::default();
        waiting.push(fixture.captioner.start(distinct(number), params).await.unwrap());
    }
    // One slot is free, and one image is new.
    let images = [0, 4, 5].map(|number| encoded(distinct(number)));
    let body = json!({"images": images});
    let (answer, ()) = tokio::join!(fixture.send(fields(&body)), async {
        eventually("a full queue", || {
            let status = fixture.captioner.status();
            status.queue_depth + status.reserved == 3
        })
        .await;
        fixture.script.set_stuck(false);
    });
    let states: Vec<_> = results(&answer).iter().map(|result| result["cache"].clone()).collect();
    assert_eq!(states, ["coalesced", "coalesced", "miss"]);
}

#[tokio::test]
async fn each_line_is_sent_as_soon_as_it_is_ready() {
    let fixture = fixture();
    let body = form_bytes(&[
        ("; name=\"images\"; filename=\"slow.png\"", &distinct(1)),
        ("; name=\"images\"; filename=\"bad.txt\"", b"words"),
        ("; name=\"images\"; filename=\"known.png\"", &distinct(2)),
    ]);
    fixture.send(post_to("/caption/generate", "image/png", distinct(2))).await;
    fixture.script.let_step(0);
    let mut request = post_to("/caption/batch", MULTIPART, body);
    let accept = "text/html, application/x-ndjson;q=0.9".parse().unwrap();
    request.headers_mut().insert("accept", accept);
    let response = fixture.app().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut lines = Lines(response.into_body().into_data_stream());
    let mut indices = Vec::new();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().await.unwrap()).unwrap();
        indices.push(line["index"].as_u64().unwrap());
        let expected = if line["index"] == 1 { "error" } else { "ok" };
        assert_eq!(line["status"], expected, "{line}");
    }
    indices.sort_unstable();
    assert_eq!(indices, [1, 2], "the slow one is not among them");
    fixture.script.let_step(-1);
    let line = lines.next().await.unwrap();
    assert!(line.ends_with('\n'));
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["index"], &line["name"]), (&0.into(), &"slow.png".into()));
    assert_eq!(line["caption"], "a red square");
    assert_eq!(lines.next().await, None);
    drop(lines);
    fixture.state.idle().await;
}

#[tokio::test]
async fn a_disconnect_cancels_the_whole_batch() {
    for accept in ["application/json", "application/x-ndjson"] {
        let fixture = fixture();
        fixture.script.set_stuck(true);
        let images = [1, 2, 3].map(|number| encoded(distinct(number)));
        let mut request = fields(&json!({"images": images}));
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let app = fixture.app();
        let client = tokio::spawn(async move {
            let response = app.oneshot(request).await.unwrap();
            axum::body::to_bytes(response.into_body(), 1 << 20).await
        });
        eventually("three in the model", || fixture.captioner.status().in_flight == 3).await;
        client.abort();
        emptied(&fixture.captioner).await;
        fixture.state.idle().await;
        assert_eq!(fixture.captioner.budget().held(), 0, "{accept}");
        fixture.script.set_stuck(false);
        fixture.still_answers().await;
    }
}

#[tokio::test]
async fn a_failing_model_fails_single_images_of_a_batch() {
    let fixture = fixture();
    fixture.script.set_broken(true);
    let images = [1, 2].map(|number| encoded(distinct(number)));
    let answer = fixture.send(fields(&json!({"images": images}))).await;
    for result in results(&answer) {
        assert_eq!(result["error"]["code"], "internal", "{result}");
        assert!(!result.to_string().contains("matrix"), "no internals: {result}");
    }
    fixture.script.set_broken(false);
    fixture.still_answers().await;
}

#[tokio::test]
async fn images_in_memory_are_bounded_in_bytes() {
    let memory = MemoryLimits { max_inflight_bytes: 100_000, ..MemoryLimits::default() };
    let fixture = Fixture::roomy(64, memory);
    // Announced or not, it exceeds the whole budget.
    let large = vec![0; 150_000];
    let mut request = post_to("/caption/generate", "image/png", large.clone());
    fixture.send(request).await.problem(413, "image_too_large");
    request = post_to("/caption/batch", MULTIPART, form_bytes(&[("; name=\"images\"", &large)]));
    request.headers_mut().insert("content-length", 150_200.into());
    fixture.send(request).await.problem(413, "batch_too_large");
    assert_eq!(fixture.captioner.budget().held(), 0);

    // While others hold most of the budget, a body is refused before it is read.
    let held = fixture.captioner.budget().take(90_000).unwrap();
    request = post_to(
        "/caption/generate",
        "image/png",
        Body::from_stream(tokio_stream::pending::<Result<Vec<u8>, std::io::Error>>()),
    );
    request.headers_mut().insert("content-length", 20_000.into());
    let answer = fixture.send(request).await;
    let problem = answer.problem(429, "queue_full");
    assert!(problem["detail"].as_str().unwrap().contains("MAX_INFLIGHT_BYTES"), "{problem}");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    // A body of unknown length is refused as soon as it is too long.
    let chunks = (0..10).map(|_| Ok::<_, std::io::Error>(vec![0; 2000]));
    let body = Body::from_stream(tokio_stream::iter(chunks));
    fixture.send(post_to("/caption/generate", "image/png", body)).await.problem(429, "queue_full");
    // The model's input counts as well.
    fixture.send(post_to("/caption/generate", "image/png", png())).await.problem(429, "queue_full");
    drop(held);
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.still_answers().await;
}

#[tokio::test]
async fn an_image_that_takes_more_memory_than_decoding_has_is_refused_alone() {
    let memory = MemoryLimits { max_decode_bytes: 32 << 20, ..MemoryLimits::default() };
    let fixture = Fixture::roomy(64, memory);
    let large = picture(ImageFormat::Png, 5000, 4000);
    let answer = fixture.send(post_to("/caption/generate", "image/png", large.clone())).await;
    let problem = answer.problem(413, "image_too_large");
    for part in ["5000×4000", "MAX_DECODE_BYTES", "33554432"] {
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    let answer = fixture.send(post_to("/image/process", "image/png", large.clone())).await;
    answer.problem(413, "image_too_large");
    let small = png();
    let parts = [("; name=\"images\"", small.as_slice()), ("; name=\"images\"", &large)];
    let answer = fixture.send(post_to("/caption/batch", MULTIPART, form_bytes(&parts))).await;
    let results = results(&answer);
    assert_eq!(results[0]["status"], "ok", "{results:?}");
    assert_eq!(results[1]["error"]["code"], "image_too_large", "{results:?}");
    assert_eq!(fixture.captioner.decoders().decode_memory().held(), 0);
    fixture.still_answers().await;
}
