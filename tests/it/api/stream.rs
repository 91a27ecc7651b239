//! Streaming: server-sent events.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Request, StatusCode};
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use serde_json::Value;
use tokio_stream::StreamExt;
use tower::ServiceExt;

use super::fixture::{Fixture, emptied, png, post};

fn fixture() -> Fixture {
    Fixture::roomy(64, MemoryLimits::default())
}

fn ask(query: &str) -> Request<Body> {
    post(&format!("?stream=true{query}"), "image/png", png())
}

/// The events of an answer as they arrive.
struct Events {
    body: BodyDataStream,
    text: String,
}

impl Events {
    async fn of(fixture: &Fixture, request: Request<Body>) -> Self {
        let response = fixture.app().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The lines between two empty lines.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let chunk = self.body.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.block().await?;
            // A comment only keeps the connection alive.
            if block.starts_with(':') {
                continue;
            }
            let (name, data) = block.split_once('\n').unwrap();
            let name = name.strip_prefix("event: ").unwrap().to_owned();
            return Some((
                name,
                serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap(),
            ));
        }
    }

    async fn rest(mut self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The fields that two answers to the same request share.
fn lasting(caption: &Value) -> Value {
    let mut caption = caption.clone();
    for field in ["timings", "cache", "vision_cache"] {
        caption.as_object_mut().unwrap().remove(field);
    }
    caption
}

#[tokio::test]
async fn each_word_is_sent_as_soon_as_it_is_decoded() {
    let fixture = fixture();
    fixture.script.let_step(0);
    let mut events = Events::of(&fixture, ask("&prompt=photo+of")).await;
    for text in ["photo of a", "photo of a red", "photo of a red square"] {
        // The engine decodes nothing more before this step, so nothing is sent in advance.
        fixture.script.let_step(1);
        let (name, data) = events.next().await.unwrap();
        assert_eq!((name.as_str(), &data["text"]), ("token", &text.into()));
    }
    fixture.script.let_step(-1);
    // The end token adds no word.
    let rest = events.rest().await;
    assert_eq!(rest.first().unwrap().1["text"], "photo of a red square");
    let (name, done) = rest.last().unwrap();
    assert_eq!((rest.len(), name.as_str()), (2, "done"));
    assert_eq!(done["caption"], "photo of a red square");
    assert_eq!(done["cache"], "miss");
    fixture.state.idle().await;
}

#[tokio::test]
async fn the_last_event_equals_the_unary_answer() {
    let fixture = fixture();
    for query in ["", "&num_beams=3&num_captions=2", "&do_sample=1&seed=1&num_captions=2"] {
        let streamed =
            Events::of(&fixture, ask(&format!("{query}&cache=bypass"))).await.rest().await;
        let (name, done) = streamed.last().unwrap();
        assert_eq!(name, "done");
        let beams = query.contains("beams");
        assert_eq!(streamed.len() == 1, beams, "beam search sends only the end: {streamed:?}");
        let unary = fixture.send(post(&format!("?cache=bypass{query}"), "image/png", png())).await;
        assert_eq!(lasting(done), lasting(&unary.json()), "{query}");
    }
}

#[tokio::test]
async fn a_cached_answer_is_one_event() {
    let fixture = fixture();
    fixture.send(post("", "image/png", png())).await;
    let events = Events::of(&fixture, ask("")).await.rest().await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].0.as_str(), &events[0].1["cache"]), ("done", &"hit".into()));
    assert_eq!(fixture.script.starts(), 1);
}

#[tokio::test]
async fn a_stream_and_a_unary_request_share_the_work() {
    let fixture = fixture();
    fixture.script.let_step(0);
    let events = Events::of(&fixture, ask("")).await;
    let (unary, events) = tokio::join!(fixture.send(post("", "image/png", png())), async {
        tokio::task::yield_now().await;
        fixture.script.let_step(-1);
        events.rest().await
    });
    assert_eq!(unary.json()["cache"], "coalesced");
    assert_eq!(events.last().unwrap().1["cache"], "miss");
    assert_eq!(fixture.script.starts(), 1);
}

#[tokio::test]
async fn early_errors_have_a_status() {
    let fixture = fixture();
    let cut = png()[..60].to_vec();
    let bad = post("?stream=true", "image/png", cut);
    fixture.send(bad).await.problem(422, "undecodable_image");
    fixture.send(ask("&num_beams=11")).await.problem(422, "invalid_parameter");
    fixture.send(post("?stream=maybe", "image/png", png())).await.problem(422, "invalid_parameter");
}

#[tokio::test]
async fn late_errors_are_events() {
    let fixture = fixture();
    fixture.script.let_step(0);
    let mut request = ask("");
    request.headers_mut().insert("x-request-id", "the-id".parse().unwrap());
    let mut events = Events::of(&fixture, request).await;
    fixture.script.let_step(1);
    assert_eq!(events.next().await.unwrap().0, "token");
    fixture.script.set_broken(true);
    let rest = events.rest().await;
    let (name, problem) = rest.last().unwrap();
    assert_eq!(name, "error");
    assert_eq!((&problem["code"], &problem["status"]), (&"internal".into(), &500.into()));
    assert_eq!(problem["request_id"], "the-id");
    assert!(!problem.to_string().contains("matrix"), "no internals: {problem}");
}

#[tokio::test]
async fn silence_is_filled_with_comments_until_the_timeout() {
    let settings = HttpSettings { request_timeout: Duration::from_secs(30), ..Default::default() };
    let fixture = Fixture::build(settings, 4, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    fixture.script.let_step(0);
    let mut events = Events::of(&fixture, ask("")).await;
    tokio::time::pause();
    let mut comments = 0;
    let last = loop {
        let block = events.block().await.unwrap();
        if !block.starts_with(':') {
            break block;
        }
        comments += 1;
    };
    assert!((2..=3).contains(&comments), "{comments} comments in 30 s");
    assert!(last.starts_with("event: error") && last.contains("inference_timeout"), "{last}");
    assert_eq!(events.block().await, None);
    // The model's thread runs in real time.
    tokio::time::resume();
    emptied(&fixture.captioner).await;
}

#[tokio::test]
async fn closing_the_connection_stops_the_work() {
    let fixture = fixture();
    fixture.script.let_step(1);
    let mut events = Events::of(&fixture, ask("")).await;
    assert_eq!(events.next().await.unwrap().0, "token");
    assert_eq!(fixture.captioner.status().in_flight, 1);
    drop(events);
    emptied(&fixture.captioner).await;
    fixture.state.idle().await;
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.script.let_step(-1);
    fixture.still_answers().await;
}

#[tokio::test]
async fn alt_text_shares_the_work_of_the_caption() {
    let fixture = fixture();
    fixture.script.let_step(0);
    let mut events = Events::of(&fixture, ask("&prompt=photo+of&style=alt_text")).await;
    // A single article describes nothing yet.
    for (steps, text) in [(2, "a red"), (1, "a red square")] {
        fixture.script.let_step(steps);
        let (name, data) = events.next().await.unwrap();
        assert_eq!((name.as_str(), &data["text"]), ("token", &text.into()));
    }
    fixture.script.let_step(-1);
    // The end token adds no word, and unchanged text is not sent again.
    let rest = events.rest().await;
    assert_eq!((rest.len(), rest[0].0.as_str()), (1, "done"));
    assert_eq!(rest[0].1["caption"], "a red square");
    assert_eq!(rest[0].1["captions"][0]["text"], "a red square");
    assert!(rest[0].1.get("fallback").is_none());

    // The model's raw text was cached, so another style computes nothing.
    let plain = fixture.send(post("?prompt=photo+of", "image/png", png())).await.json();
    assert_eq!(
        (&plain["caption"], &plain["cache"]),
        (&"photo of a red square".into(), &"hit".into())
    );
    assert_eq!(fixture.script.starts(), 1);
}

#[tokio::test]
async fn alt_text_that_describes_nothing_is_the_fallback() {
    let fixture = fixture();
    // The model gets as far as "photo of a".
    let query = "?prompt=photo+of&max_new_tokens=1";
    let query = |more: &str| post(&format!("{query}{more}"), "image/png", png());
    let answer = fixture.send(query("&style=alt_text")).await.json();
    assert_eq!((&answer["caption"], &answer["fallback"]), (&"no description".into(), &true.into()));
    assert_eq!(answer["captions"][0]["text"], "no description");
    assert!(answer["fallback_reason"].as_str().unwrap().contains("nothing"), "{answer}");
    let events = Events::of(&fixture, query("&style=alt_text&stream=true")).await.rest().await;
    assert_eq!((events.len(), &events[0].1["fallback"]), (1, &true.into()));
    let plain = fixture.send(query("")).await.json();
    assert_eq!((&plain["caption"], plain.get("fallback")), (&"photo of a".into(), None));
}

#[tokio::test]
async fn a_length_without_alt_text_is_refused() {
    let fixture = fixture();
    let problem = fixture.send(ask("&max_chars=50")).await.problem(422, "invalid_parameter");
    assert_eq!(problem["field"], "max_chars");
    let problem = fixture.send(ask("&style=poem")).await.problem(422, "invalid_parameter");
    assert_eq!(problem["field"], "style");
}
