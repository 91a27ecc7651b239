//! Limits and budgets of keys.

use std::time::Duration;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline_library::{Budget, BudgetPeriod, BudgetUnit, KeyRules};
use serde_json::json;
use tokio::time::advance;

use super::super::fixture::{Answer, distinct, post};
use super::super::metrics::page;
use super::{Kept, ROOT, images, with};

#[tokio::test]
async fn budgets_end_where_they_end_and_begin_again() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    kept.set_time("2026-11-30T23:00:00Z");
    let rules = KeyRules { budget: images(4, BudgetPeriod::Month), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    let left = |answer: &Answer| answer.header("x-ratelimit-remaining-budget").to_owned();
    let warning = |answer: &Answer| answer.header("x-cutline-budget-warning").to_owned();
    let first = kept.caption(&key, 1).await;
    assert_eq!((left(&first), warning(&first)), ("3".to_owned(), String::new()), "{first:?}");
    assert_eq!(first.header("x-ratelimit-limit-budget"), "4");
    let reset = first.header("x-ratelimit-reset-budget");
    assert!(reset.starts_with("59m") || reset == "1h0m0s", "{reset}");
    let second = kept.caption(&key, 2).await;
    assert_eq!(warning(&second), "2 of 4 images are left");
    assert_eq!(page(&kept.fixture).await.samples["cutline_key_budget_warnings_total"], 1.0);
    // Three do not fit, and none of them is taken.
    let batch: Vec<String> = (3..6).map(|n| BASE64_STANDARD.encode(distinct(n))).collect();
    let answer = kept.send(&key, "POST", "/caption/batch", &json!({"images": batch})).await;
    answer.problem(429, "insufficient_quota");
    let two = json!({"images": batch[..2]});
    assert_eq!(kept.send(&key, "POST", "/caption/batch", &two).await.status, StatusCode::OK);
    let refused = kept.caption(&key, 5).await;
    refused.problem(429, "insufficient_quota");
    let after: u64 = refused.header("retry-after").parse().unwrap();
    assert!((3400..=3600).contains(&after), "{after}");
    assert_eq!(left(&refused), "0");
    // As OpenAI's clients read it.
    let url = format!("data:image/png;base64,{}", batch[2]);
    let chat = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    let openai = kept.send(&key, "POST", "/v1/chat/completions", &chat).await;
    assert_eq!(openai.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(openai.header("x-should-retry"), "false");
    assert_eq!(openai.json()["error"]["code"], "insufficient_quota");
    // What is cached is free.
    assert_eq!(kept.caption(&key, 2).await.status, StatusCode::OK);
    assert_eq!(kept.used(id).images, 5);
    let refusals = r#"cutline_key_refusals_total{limit="budget"}"#;
    assert_eq!(page(&kept.fixture).await.samples[refusals], 3.0);

    kept.set_time("2026-12-01T00:00:01Z");
    let again = kept.caption(&key, 6).await;
    assert_eq!((again.status, left(&again)), (StatusCode::OK, "3".to_owned()));
    let days = kept.get("/usage?from=2026-11-30&to=2026-12-01&group_by=day", ROOT).await.json();
    assert_eq!(days["rows"][0]["name"], "2026-11-30", "{days}");
    assert_eq!((&days["rows"][0]["images"], &days["rows"][1]["images"]), (&json!(5), &json!(1)));
    let november = kept.get("/usage?from=2026-11-01&to=2026-11-30", ROOT).await.json();
    assert_eq!(november["total"]["cached"], 1, "{november}");
    kept.get("/usage?from=yesterday", ROOT).await.problem(422, "invalid_parameter");
    kept.get("/usage?group_by=color", ROOT).await.problem(422, "invalid_parameter");
}

#[tokio::test]
async fn a_budget_of_tokens_is_never_exceeded() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    // An image has 5 tokens, and "a red square" 4; up to 20 may be written.
    let budget =
        Budget { amount: 40, unit: BudgetUnit::Tokens, period: BudgetPeriod::Day, soft_limit: 1.0 };
    let rules = KeyRules { budget: Some(budget), ..KeyRules::new("app") };
    let (key, id) = kept.key(rules).await;
    assert_eq!(kept.caption(&key, 1).await.header("x-ratelimit-remaining-budget"), "31");
    assert_eq!(kept.caption(&key, 2).await.header("x-ratelimit-remaining-budget"), "22");
    kept.caption(&key, 3).await.problem(429, "insufficient_quota");
    let short = with(post("?max_new_tokens=4", "image/png", distinct(3)), &key);
    assert_eq!(kept.fixture.send(short).await.status, StatusCode::OK);
    assert_eq!((kept.used(id).prompt_tokens, kept.used(id).completion_tokens), (15, 12));
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_told_as_openai_tells_them() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { requests_per_minute: Some(3), ..KeyRules::new("app") };
    let (key, _) = kept.key(rules).await;
    advance(Duration::from_secs(600)).await;
    for left in ["2", "1", "0"] {
        let answer = kept.get("/model/info", &key).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), left);
        advance(Duration::from_millis(100)).await;
    }
    let refused = kept.get("/v1/models", &key).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert!(refused.headers.get("x-should-retry").is_none());
    assert_eq!(refused.header("retry-after"), "20");
    assert_eq!(refused.header("x-ratelimit-reset-requests"), "59.7s");
    advance(Duration::from_secs(20)).await;
    assert_eq!(kept.get("/model/info", &key).await.status, StatusCode::OK);
}

#[tokio::test]
async fn images_per_minute_and_models_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::new(&folder);
    let rules = KeyRules { images_per_minute: Some(2), ..KeyRules::new("app") };
    let (key, _) = kept.key(rules).await;
    let three: Vec<String> = (0..3).map(|n| BASE64_STANDARD.encode(distinct(n))).collect();
    let answer = kept.send(&key, "POST", "/caption/batch", &json!({"images": three})).await;
    answer.problem(429, "rate_limited");
    let two = json!({"images": three[..2]});
    let answer = kept.send(&key, "POST", "/caption/batch", &two).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("x-ratelimit-limit-images"), "2");
    assert_eq!(answer.header("x-ratelimit-remaining-images"), "0");
    kept.caption(&key, 5).await.problem(429, "rate_limited");
    let rules = KeyRules { models: vec!["other".into()], ..KeyRules::new("elsewhere") };
    let (key, _) = kept.key(rules).await;
    let problem = kept.caption(&key, 6).await.problem(403, "insufficient_scope");
    assert!(problem["detail"].as_str().unwrap().contains("other"), "{problem}");
}
