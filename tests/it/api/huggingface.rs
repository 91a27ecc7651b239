//! The tasks of Hugging Face's inference API.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::{HfTask, HttpSettings};
use serde_json::{Value, json};

use super::fixture::{Answer, Fixture, png};

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

async fn post(fixture: &Fixture, path: &str, body: impl Into<Body>) -> Answer {
    fixture.send(Request::post(path).body(body.into()).unwrap()).await
}

async fn task(fixture: &Fixture, more: Value) -> Answer {
    let mut body = json!({"inputs": STANDARD.encode(png())});
    more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    post(fixture, "/", body.to_string()).await
}

#[track_caller]
fn error(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    answer.json()["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn bytes_without_a_type_are_captioned() {
    let fixture = fixture();
    let caption = json!([{"generated_text": "a red square"}]);
    for path in ["/", "/predict", "/pipeline/image-to-text", "/models/scripted"] {
        assert_eq!(post(&fixture, path, png()).await.json(), caption, "{path}");
    }
    let tags = json!([{"label": "square", "score": 1.0}]);
    assert_eq!(post(&fixture, "/pipeline/image-classification", png()).await.json(), tags);
    let settings = HttpSettings { hf_task: HfTask::ImageClassification, ..HttpSettings::default() };
    assert_eq!(post(&Fixture::with(settings), "/", png()).await.json(), tags);
}

async fn labelled(fixture: &Fixture, parameters: Value) -> Answer {
    task(fixture, json!({"parameters": parameters})).await
}

#[tokio::test]
async fn labels_are_compared_with_the_image() {
    let fixture = fixture();
    let answer = labelled(&fixture, json!({"candidate_labels": ["red", "square", "a red"]})).await;
    assert_eq!(answer.headers["x-cutline-intent"], "labels");
    let shares = answer.json();
    let share = |n: usize| shares[n]["score"].as_f64().unwrap();
    assert_eq!(shares[0]["label"], "square");
    assert!(share(0) > 0.9 && share(1) >= share(2), "{shares}");
    assert!((share(0) + share(1) + share(2) - 1.0).abs() < 1e-5, "{shares}");
    let text = json!({"candidate_labels": "red, square", "hypothesis_template": "a {} here"});
    assert_eq!(labelled(&fixture, text).await.json()[0]["label"], "square");
    // The same label twice has the same share twice.
    let twice = labelled(&fixture, json!({"candidate_labels": ["square", "square"]})).await.json();
    assert_eq!([&twice[0]["score"], &twice[1]["score"]], [0.5, 0.5]);
    // The image is encoded once, and those without content once.
    assert_eq!(fixture.script.encodes(), 5);
}

#[tokio::test]
async fn more_labels_than_rows_take_several_turns() {
    let fixture = fixture();
    let words = ["red", "square", "a", "photo"];
    let pairs = words.iter().flat_map(|a| words.iter().map(move |b| format!("{a} {b}")));
    let mut labels: Vec<String> = pairs.collect();
    labels.extend(words.iter().flat_map(|a| words.iter().map(move |b| format!("{a} {b} {b} {a}"))));
    let shares = labelled(&fixture, json!({"candidate_labels": labels})).await.json();
    let total: f64 = shares.as_array().unwrap().iter().map(|s| s["score"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{shares}");
    assert_eq!(shares.as_array().unwrap().len(), 32);
}

#[tokio::test]
async fn labels_that_cannot_be_compared_are_errors() {
    let fixture = fixture();
    for (parameters, expected) in [
        (json!({"candidate_labels": []}), "candidate_labels"),
        (json!({"candidate_labels": 5}), "candidate_labels"),
        (json!({"candidate_labels": ["square", ""]}), "no words"),
        (json!({"candidate_labels": ["square ".repeat(500)]}), "256 bytes"),
        (json!({"candidate_labels": ["a ".repeat(100)]}), "too long"),
        (json!({"candidate_labels": vec!["square"; 1001]}), "candidate_labels"),
        (json!({"candidate_labels": ["a"], "hypothesis_template": "no place"}), "{}"),
    ] {
        let answer = labelled(&fixture, parameters.clone()).await;
        assert!(error(&answer, 400).contains(expected), "{parameters}: {answer:?}");
    }
    let without = Request::post("/pipeline/zero-shot-image-classification").body(png().into());
    assert!(error(&fixture.send(without.unwrap()).await, 400).contains("candidate_labels"));
}

#[tokio::test]
async fn json_says_which_task_it_is() {
    let fixture = fixture();
    let caption = json!([{"generated_text": "a red square"}]);
    assert_eq!(task(&fixture, json!({})).await.json(), caption);
    let nested = json!({"inputs": {"image": STANDARD.encode(png())}}).to_string();
    assert_eq!(post(&fixture, "/", nested).await.json(), caption);
    let tags = task(&fixture, json!({"parameters": {"top_k": 3}})).await.json();
    assert_eq!(tags[0]["label"], "square");
    let short = json!({"parameters": {"generation_parameters": {"max_new_tokens": 2, "other": 1}}});
    assert_eq!(task(&fixture, short).await.json()[0]["generated_text"], "a red");
    let question = json!({"question": "what?", "image": STANDARD.encode(png())});
    assert!(error(&task(&fixture, question).await, 400).contains("cannot answer"));
}

#[tokio::test]
async fn bad_requests_are_errors_in_their_shape() {
    let fixture = fixture();
    error(&post(&fixture, "/", Body::empty()).await, 400);
    error(&post(&fixture, "/", "{").await, 400);
    error(&post(&fixture, "/", json!({"inputs": 5}).to_string()).await, 400);
    error(&post(&fixture, "/", "no image").await, 415);
    error(&post(&fixture, "/pipeline/text-to-image", png()).await, 404);
    error(&post(&fixture, "/models/other/model", png()).await, 404);
    let small = HttpSettings { max_image_bytes: 50, ..HttpSettings::default() };
    error(&post(&Fixture::with(small), "/", png()).await, 413);
    let info = fixture.get("/info").await.json();
    assert_eq!(
        (&info["model_id"], &info["max_concurrent_requests"]),
        (&json!("scripted"), &json!(8))
    );
    assert_eq!(fixture.get("/info").await.status, StatusCode::OK);
    assert_eq!(fixture.captioner.budget().held(), 0);
}
