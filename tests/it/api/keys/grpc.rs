//! Keys over gRPC.

use cutline_library::{BudgetPeriod, KeyRules, Scope};

use super::super::fixture::{distinct, emptied, eventually, png};
use super::super::grpc::{Answer, InferResponse, infer_with};
use super::{Kept, images};

/// Captions the images with these numbers.
async fn infer(kept: &Kept, key: &str, numbers: &[u32]) -> Answer {
    let pictures: Vec<Vec<u8>> = numbers.iter().map(|number| distinct(*number)).collect();
    let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    infer_with(&kept.fixture, key, &pictures).await
}

#[tokio::test]
async fn a_key_needs_the_scope_and_every_image_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::Caption) {
        let rules = KeyRules { scopes: vec![scope], ..KeyRules::new(scope.as_str()) };
        let (key, id) = kept.key(rules).await;
        infer(&kept, &key, &[1]).await.failed("7", "scope");
        assert_eq!(kept.used(id).images, 0);
    }
    let (key, id) = kept.key(KeyRules::new("app")).await;
    for (numbers, images, cached, requests) in
        [(&[1][..], 1, 0, 1), (&[2, 3, 4], 4, 0, 2), (&[1], 5, 1, 3), (&[4, 5], 7, 2, 4)]
    {
        infer(&kept, &key, numbers).await.message::<InferResponse>();
        let now = kept.used(id);
        assert_eq!(
            (now.images, now.cached, now.requests),
            (images, cached, requests),
            "{numbers:?}"
        );
    }
    let now = kept.used(id);
    assert_eq!((now.prompt_tokens, now.completion_tokens, now.errors), (5 * 5, 5 * 4, 0));
    infer_with(&kept.fixture, &key, &[&png()[..40]]).await.failed("3", "image");
    eventually("the error", || kept.used(id).errors == 1).await;
    assert_eq!((kept.used(id).images, kept.used(id).requests), (7, 4));
    let usage = kept.get("/usage?group_by=model", &key).await.json();
    assert_eq!(usage["rows"][0]["name"], "scripted", "{usage}");
}

#[tokio::test]
async fn limits_and_budgets_are_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { budget: images(3, BudgetPeriod::Day), ..KeyRules::new("budget") };
    let (key, id) = kept.key(rules).await;
    infer(&kept, &key, &[1, 2]).await.message::<InferResponse>();
    // All images of a call fit, or none is captioned.
    infer(&kept, &key, &[3, 4]).await.failed("8", "budget");
    infer(&kept, &key, &[3]).await.message::<InferResponse>();
    infer(&kept, &key, &[4]).await.failed("8", "budget");
    assert_eq!(kept.used(id).images, 3);
    let rules = KeyRules { images_per_minute: Some(2), ..KeyRules::new("images") };
    let (key, _) = kept.key(rules).await;
    infer(&kept, &key, &[5, 6, 7]).await.failed("8", "images");
    infer(&kept, &key, &[5, 6]).await.message::<InferResponse>();
    infer(&kept, &key, &[7]).await.failed("8", "images");
    let rules = KeyRules { requests_per_minute: Some(2), ..KeyRules::new("requests") };
    let (key, _) = kept.key(rules).await;
    infer(&kept, &key, &[8]).await.message::<InferResponse>();
    infer(&kept, &key, &[8]).await.message::<InferResponse>();
    infer(&kept, &key, &[8]).await.failed("8", "requests");
    let rules = KeyRules { models: vec!["other".into()], ..KeyRules::new("model") };
    let (key, _) = kept.key(rules).await;
    infer(&kept, &key, &[9]).await.failed("7", "other");
    // One at a time.
    let (key, id) = kept.key(KeyRules { parallel: Some(1), ..KeyRules::new("one") }).await;
    kept.fixture.script.set_stuck(true);
    let second = async {
        eventually("one in the model", || kept.fixture.captioner.status().in_flight == 1).await;
        infer(&kept, &key, &[11]).await.failed("8", "at a time");
        kept.fixture.script.set_stuck(false);
    };
    let (first, ()) = tokio::join!(infer(&kept, &key, &[10]), second);
    first.message::<InferResponse>();
    emptied(&kept.fixture.captioner).await;
    assert_eq!(kept.used(id).images, 1);
}
