//! Classes of priority.

use axum::http::StatusCode;
use cutline::captioner::MemoryLimits;
use cutline_library::{KeyRules, PriorityClass};
use tokio::sync::mpsc;

use super::super::fixture::{Fixture, distinct, eventually, post};
use super::{Kept, protected, with};

/// A model that works on one image while four wait.
#[tokio::test]
async fn a_higher_class_overtakes_in_a_full_queue_and_a_lower_one_does_not_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::of(&folder, Fixture::sized(protected(), 4, 1, MemoryLimits::default()));
    let (normal, _) = kept.key(KeyRules::new("normal")).await;
    let low = KeyRules { priority: PriorityClass::Low, ..KeyRules::new("low") };
    let (low, id) = kept.key(low).await;
    kept.fixture.script.let_step(0);
    let (ended, mut ends) = mpsc::unbounded_channel();
    let start = |name: &'static str, key: &str, number: u32| {
        let (app, ended) = (kept.fixture.app(), ended.clone());
        let request = with(post("", "image/png", distinct(number)), key);
        tokio::spawn(async move {
            let answer = tower::ServiceExt::oneshot(app, request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            ended.send(name).unwrap();
        })
    };
    let status = || kept.fixture.captioner.status();
    let waits = |images: usize| async move {
        eventually("images that wait", || status().queue_depth == images).await
    };
    let mut number = 0;
    let mut put = async |name: &'static str, key: &str, waiting: usize| {
        number += 1;
        start(name, key, number);
        waits(waiting).await;
    };
    start("first", &low, 0);
    eventually("one in the model", || status().in_flight == 1).await;
    for (waiting, name) in [(1, "low 1"), (2, "low 2"), (3, "low 3")] {
        put(name, &low, waiting).await;
    }
    put("normal 1", &normal, 4).await;
    // The queue is full for both.
    kept.caption(&normal, 90).await.problem(429, "queue_full");
    kept.caption(&low, 91).await.problem(429, "queue_full");
    let mut order = Vec::new();
    let mut answered = 0;
    while answered < 9 {
        kept.fixture.script.let_step(4);
        let name = ends.recv().await.unwrap();
        order.push(name);
        answered += 1;
        // Another one of the higher class comes in for each that leaves.
        let more = ["normal 2", "normal 3", "normal 4", "normal 5"];
        if let Some(name) = more.get(answered - 1) {
            eventually("a free place", || status().queue_depth == 3).await;
            put(name, &normal, 4).await;
        }
    }
    let expected = [
        "first", "normal 1", "normal 2", "normal 3", "normal 4", "low 1", "normal 5", "low 2",
        "low 3",
    ];
    assert_eq!(order, expected);
    assert_eq!(kept.used(id).images, 4);
}
