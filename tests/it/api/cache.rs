//! Cached results, coalesced requests, and requests that bypass both.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cutline::captioner::{
    CacheState, CaptionEvent, CaptionParams, MemoryLimits, ParameterFields, Priority,
    VisionCacheState,
};

use super::fixture::{Fixture, distinct, emptied, eventually, png, post};

fn ask(query: &str) -> Request<Body> {
    post(query, "image/png", png())
}

fn fixture() -> Fixture {
    Fixture::roomy(64, MemoryLimits::default())
}

/// `cache` and `vision_cache` of the answer.
async fn states(fixture: &Fixture, query: &str) -> (String, Option<String>) {
    let answer = fixture.send(ask(query)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let json = answer.json();
    let text = |name: &str| json.get(name).map(|value| value.as_str().unwrap().to_owned());
    (text("cache").unwrap(), text("vision_cache"))
}

fn both(cache: &str, vision: &str) -> (String, Option<String>) {
    (cache.to_owned(), Some(vision.to_owned()))
}

fn alone(cache: &str) -> (String, Option<String>) {
    (cache.to_owned(), None)
}

#[tokio::test]
async fn the_second_answer_is_cached_unless_a_new_one_is_requested() {
    let fixture = fixture();
    assert_eq!(states(&fixture, "").await, both("miss", "miss"));
    assert_eq!(states(&fixture, "").await, alone("hit"));
    assert_eq!(fixture.script.starts(), 1);
    // Computed again from the bytes, and stored again.
    assert_eq!(states(&fixture, "?cache=refresh").await, both("miss", "miss"));
    assert_eq!((fixture.script.starts(), fixture.script.encodes()), (2, 2));
    assert_eq!(states(&fixture, "").await, alone("hit"));
    // Neither read nor written.
    assert_eq!(states(&fixture, "?cache=bypass").await, alone("miss"));
    assert_eq!((fixture.script.starts(), fixture.script.encodes()), (3, 3));
    assert_eq!(states(&fixture, "?cache=bypass&prompt=photo").await, alone("miss"));
    assert_eq!(states(&fixture, "?prompt=photo").await.0, "miss", "the one before left no trace");
}

#[tokio::test]
async fn a_cached_answer_differs_only_in_its_times() {
    let fixture = fixture();
    let first = fixture.send(ask("")).await.json();
    let answer = fixture.send(ask("")).await;
    assert!(answer.header("server-timing").contains("inference;dur=0"), "{answer:?}");
    let second = answer.json();
    for field in ["caption", "captions", "model", "image"] {
        assert_eq!(first[field], second[field], "{field}");
    }
    for field in ["decode_ms", "queue_ms", "inference_ms"] {
        assert_eq!(second["timings"][field], 0.0, "{field}");
    }
    assert!(second["timings"]["total_ms"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn a_cached_answer_needs_neither_model_nor_queue() {
    let fixture = Fixture::new();
    fixture.still_answers().await;
    assert_eq!(states(&fixture, "").await.0, "miss");
    fixture.script.set_stuck(true);
    let busy = fixture.captioner.start(distinct(1), CaptionParams::default()).await.unwrap();
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    let waiting = fixture.captioner.start(distinct(2), CaptionParams::default()).await.unwrap();
    let refused = fixture.send(post("", "image/png", distinct(3))).await;
    refused.problem(429, "queue_full");
    assert_eq!(states(&fixture, "").await, alone("hit"));
    drop((busy, waiting));
}

#[tokio::test]
async fn parameters_that_change_the_answer_are_part_of_the_key() {
    let fixture = fixture();
    assert_eq!(states(&fixture, "").await.0, "miss");
    for query in [
        "?prompt=photo",
        "?max_new_tokens=2",
        "?num_beams=2",
        "?repetition_penalty=1.5",
        "?no_repeat_ngram_size=2",
        "?do_sample=1&seed=1",
        "?do_sample=1&seed=2",
        "?do_sample=1&seed=2&temperature=0.5",
    ] {
        assert_eq!(states(&fixture, query).await, both("miss", "hit"), "{query}");
        assert_eq!(states(&fixture, query).await, alone("hit"), "{query}");
    }
    assert_eq!(fixture.script.encodes(), 1, "the photo was looked at once");
    // Not part of the key: sampling parameters without sampling, and how the answer is sent.
    for query in ["?seed=5&temperature=0.5", "?colors=false", "?num_beams=1", "?stream=false"] {
        assert_eq!(states(&fixture, query).await, alone("hit"), "{query}");
    }
    // The key is the file: other bytes with the same pixels are another photo.
    let mut longer = png();
    longer.extend_from_slice(b"trailing");
    let answer = fixture.send(post("", "image/png", longer.clone())).await.json();
    assert_eq!(answer["cache"], "miss");
    assert_eq!(answer["image"]["size_bytes"], longer.len());
}

#[tokio::test]
async fn unseeded_samples_are_not_cached_but_encoded_images_are() {
    let fixture = fixture();
    assert_eq!(states(&fixture, "?do_sample=1").await, both("miss", "miss"));
    assert_eq!(states(&fixture, "?do_sample=1").await, both("miss", "hit"));
    assert_eq!((fixture.script.starts(), fixture.script.encodes()), (2, 1));
}

#[tokio::test]
async fn failures_are_not_cached() {
    let fixture = fixture();
    fixture.script.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    fixture.send(ask("")).await.problem(500, "internal");
    fixture.script.set_broken(false);
    assert_eq!(states(&fixture, "").await.0, "miss");
    for _ in 0..2 {
        let cut = png()[..60].to_vec();
        fixture.send(post("", "image/png", cut)).await.problem(422, "undecodable_image");
    }
}

#[tokio::test]
async fn entries_expire_and_are_evicted() {
    let short = MemoryLimits { cache_ttl: Duration::from_millis(1), ..MemoryLimits::default() };
    let fixture = Fixture::roomy(4, short);
    states(&fixture, "").await;
    for _ in 0..5000 {
        if states(&fixture, "").await == both("miss", "miss") {
            break;
        }
    }
    assert!(fixture.script.encodes() > 1, "both memories end");
    let none =
        MemoryLimits { cache_max_bytes: 0, vision_cache_bytes: 0, ..MemoryLimits::default() };
    let fixture = Fixture::roomy(4, none);
    for _ in 0..3 {
        assert_eq!(states(&fixture, "").await, alone("miss"));
    }
}

#[tokio::test]
async fn a_thousand_equal_requests_cost_one_forward_pass() {
    let fixture = Fixture::new();
    fixture.script.set_stuck(true);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let captioner = fixture.captioner.clone();
        asked.spawn(async move { captioner.caption(png(), CaptionParams::default()).await });
    }
    // Every task runs until it waits, in the order of creation.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    fixture.script.set_stuck(false);
    let captions: Vec<_> = asked.join_all().await.into_iter().map(Result::unwrap).collect();
    let count = |state| captions.iter().filter(|caption| caption.cache == state).count();
    assert_eq!((count(CacheState::Miss), count(CacheState::Coalesced)), (1, 999));
    assert_eq!((fixture.script.starts(), fixture.script.encodes()), (1, 1));
    assert!(captions.iter().all(|caption| caption.caption == "a red square"));
    let miss = captions.iter().find(|caption| caption.cache == CacheState::Miss).unwrap();
    assert_eq!(miss.vision_cache, Some(VisionCacheState::Miss));
}

#[tokio::test]
async fn when_one_client_disconnects_the_others_get_their_answer() {
    let fixture = fixture();
    fixture.script.set_stuck(true);
    let start = || fixture.captioner.start(png(), CaptionParams::default());
    let first = start().await.unwrap();
    let mut second = start().await.unwrap();
    let third = start().await.unwrap();
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    drop(first);
    drop(third);
    tokio::task::yield_now().await;
    fixture.script.set_stuck(false);
    let caption = second.end().await.unwrap();
    assert_eq!((caption.caption.as_str(), caption.cache), ("a red square", CacheState::Coalesced));
    assert_eq!(fixture.script.starts(), 1);
    assert_eq!(states(&fixture, "").await, alone("hit"));
}

#[tokio::test]
async fn when_all_clients_have_disconnected_the_work_is_cancelled() {
    let fixture = fixture();
    fixture.script.set_stuck(true);
    let start = || fixture.captioner.start(png(), CaptionParams::default());
    let both = (start().await.unwrap(), start().await.unwrap());
    eventually("one in the model", || fixture.captioner.status().in_flight == 1).await;
    drop(both);
    emptied(&fixture.captioner).await;
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.script.set_stuck(false);
    assert_eq!(states(&fixture, "").await.0, "miss", "cancelled work is not cached");
}

#[tokio::test]
async fn bypass_and_refresh_do_not_join_and_others_join_the_refresh() {
    let fixture = fixture();
    fixture.script.set_stuck(true);
    let start = |query: &str| {
        let mut fields = ParameterFields::default();
        fields.add_text("cache", query).unwrap();
        fixture.captioner.start(png(), fields.finish().unwrap())
    };
    let mut runs = Vec::new();
    for policy in ["use", "bypass", "refresh", "use"] {
        runs.push(start(policy).await.unwrap());
    }
    eventually("three in the model", || fixture.captioner.status().in_flight == 3).await;
    fixture.script.set_stuck(false);
    let mut states = Vec::new();
    for run in &mut runs {
        states.push(run.end().await.unwrap().cache);
    }
    let (miss, coalesced) = (CacheState::Miss, CacheState::Coalesced);
    assert_eq!(states, [miss, miss, miss, coalesced]);
    assert_eq!(fixture.script.starts(), 3);
}

#[tokio::test]
async fn equal_images_of_one_batch_are_computed_once() {
    let fixture = fixture();
    let photos = vec![png().into(), distinct(1).into(), png().into()];
    let params = CaptionParams::default();
    let mut runs = fixture.captioner.start_all(photos, params, Priority::Bulk).await.unwrap();
    let mut states = Vec::new();
    for run in &mut runs {
        states.push(run.end().await.unwrap().cache);
    }
    assert_eq!(states, [CacheState::Miss, CacheState::Miss, CacheState::Coalesced]);
    assert_eq!(fixture.script.starts(), 2);
}

#[tokio::test]
async fn a_late_stream_starts_with_the_text_so_far() {
    let fixture = fixture();
    fixture.script.let_step(2);
    let mut first = fixture.captioner.start(png(), CaptionParams::default()).await.unwrap();
    let text = |event: CaptionEvent| match event {
        CaptionEvent::Text(text) => text,
        CaptionEvent::Done(caption) => panic!("{caption:?}"),
    };
    assert_eq!(text(first.next().await.unwrap()), "a");
    assert_eq!(text(first.next().await.unwrap()), "a red");
    let mut late = fixture.captioner.start(png(), CaptionParams::default()).await.unwrap();
    assert_eq!(text(late.next().await.unwrap()), "a red", "the text so far, at once");
    fixture.script.let_step(-1);
    assert_eq!(text(late.next().await.unwrap()), "a red square");
    assert_eq!(late.end().await.unwrap().caption, "a red square");
    assert_eq!(first.end().await.unwrap().cache, CacheState::Miss);
    assert_eq!(fixture.script.starts(), 1);
}
