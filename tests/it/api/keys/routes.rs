//! Answers of routes, and the keys that ask for them.

use axum::http::StatusCode;
use cutline::captioner::MemoryLimits;
use cutline_library::{BudgetPeriod, KeyRules};

use super::super::fixture::{Fixture, eventually};
use super::super::routes::listen;
use super::{Kept, images};

/// A server with a route to `other`, and one to nobody.
async fn routed(folder: &tempfile::TempDir, other: &Fixture) -> Kept {
    let kept = Kept::new(folder);
    let address = listen(other).await;
    kept.fixture.route(&format!(
        "[[backend]]\nname = \"other\"\nkind = \"openai\"\nbase_url = \"{address}\"\nmodel = \"scripted\"\n\
         [[backend]]\nname = \"away\"\nkind = \"ollama\"\nbase_url = \"http://127.0.0.1:1\"\nmodel = \"x\"\n\
         [[route]]\nname = \"far\"\nbackends = [[\"other\"]]\n\
         [[route]]\nname = \"lost\"\nbackends = [[\"away\"]]\nretry = {{ attempts = 1 }}\n"
    ));
    kept
}

#[tokio::test]
async fn answers_of_routes_are_charged_by_the_name_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let other = Fixture::roomy(8, MemoryLimits::default());
    let kept = routed(&folder, &other).await;
    let budget = images(3, BudgetPeriod::Day);
    let (key, id) = kept.key(KeyRules { budget, ..KeyRules::new("app") }).await;
    for (number, query, used, cached) in [
        (1, "?model=far", 1, 0),
        (2, "?model=far&stream=true", 2, 0),
        (1, "?model=far", 3, 1),
        (1, "?model=far&stream=true", 4, 2),
        (3, "?model=far", 5, 2),
    ] {
        let answer = kept.caption_by(&key, number, query).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let now = kept.used(id);
        assert_eq!((now.images, now.cached, now.requests), (used, cached, used), "{query}");
    }
    // What the backend said that it wrote, and the photo's tokens as this model counts them.
    let now = kept.used(id);
    assert_eq!((now.prompt_tokens, now.completion_tokens), (3 * 5, 3 * 4));
    kept.caption_by(&key, 4, "?model=far").await.problem(429, "insufficient_quota");
    let usage = kept.get("/usage?group_by=model", &key).await.json();
    assert_eq!(usage["rows"][0]["name"], "far", "{usage}");
    assert_eq!(other.captioner.status().finished, 3);
}

#[tokio::test]
async fn a_route_without_an_answer_is_an_error_and_gives_back_what_was_reserved() {
    let folder = tempfile::tempdir().unwrap();
    let other = Fixture::roomy(8, MemoryLimits::default());
    let kept = routed(&folder, &other).await;
    let budget = images(1, BudgetPeriod::Day);
    let rules =
        KeyRules { budget, models: vec!["far".into(), "lost".into()], ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    kept.caption_by(&key, 1, "?model=lost").await.problem(503, "not_ready");
    eventually("the error", || kept.used(id).errors == 1).await;
    kept.caption_by(&key, 1, "?model=lost&stream=true").await.problem(503, "not_ready");
    eventually("the error of the stream", || kept.used(id).errors == 2).await;
    assert_eq!((kept.used(id).images, kept.used(id).requests), (0, 0));
    // The main model is another one than the key may use.
    kept.caption_by(&key, 1, "").await.problem(403, "insufficient_scope");
    assert_eq!(kept.caption_by(&key, 1, "?model=far").await.status, StatusCode::OK);
    assert_eq!(kept.used(id).images, 1);
}
