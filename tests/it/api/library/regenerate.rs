//! Photos of a library that are captioned again.

use std::fs;

use axum::http::StatusCode;
use cutline_library::ContentHash;
use serde_json::json;

use super::super::fixture::{png, post, post_to};
use super::Kept;

#[tokio::test]
async fn a_photo_is_captioned_again_from_its_file() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    let path = format!("/library/assets/{hash}/regenerate");
    let unknown = kept.post(&path, json!({})).await.problem(409, "photo_unavailable");
    assert!(unknown["detail"].as_str().unwrap().contains("no file"), "{unknown}");
    let file = kept._folder.path().join("a photo.png");
    kept.put(&png(), &file);
    let done = kept.post(&path, json!({"prompt": "a photo of"})).await;
    assert_eq!(done.status, StatusCode::OK, "{done:?}");
    let tag = done.header("etag").to_owned();
    let done = done.json();
    assert_eq!((&done["outcome"], &done["field"]), (&"current".into(), &"caption".into()));
    assert_eq!(tag, format!("\"{}\"", done["version"]));
    assert_eq!(
        kept.post(&path, json!({"prompt": "a photo of"})).await.json()["outcome"],
        "unchanged"
    );

    // A person's text stays, and the history has each text once.
    let write = json!({"action": "write", "text": "Rex"});
    kept.edit(&format!("{hash}/texts/caption"), Some(&tag), write).await;
    assert_eq!(kept.post(&path, json!({})).await.json()["outcome"], "suggested");
    kept.flush().await;
    let history = kept.fixture.get(&format!("/library/assets/{hash}/history")).await.json();
    assert_eq!(history.as_array().unwrap().len(), 4, "{history}");

    for (body, status, code) in [
        (json!({"num_beams": 0}), 422, "invalid_parameter"),
        (json!({"num_captions": 2}), 422, "invalid_parameter"),
        (json!({"path": "/etc/passwd"}), 422, "invalid_parameter"),
        (json!([]), 400, "malformed_request"),
    ] {
        kept.post(&path, body).await.problem(status, code);
    }
    kept.fixture.send(post_to(&path, "text/plain", "{}")).await.problem(415, "unsupported_format");
    let other = format!("/library/assets/{}/regenerate", ContentHash::of(b""));
    kept.post(&other, json!({})).await.problem(404, "not_found");
    // Another content at the same place is another photo.
    fs::write(&file, b"something else").unwrap();
    kept.post(&path, json!({})).await.problem(409, "photo_unavailable");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    kept.post(&path, json!({})).await.problem(409, "photo_unavailable");
}

#[tokio::test]
async fn many_photos_are_captioned_again_as_a_run() {
    let kept = Kept::new();
    for (number, known) in [true, true, false].into_iter().enumerate() {
        let bytes = [png(), number.to_string().into_bytes()].concat();
        if known {
            kept.put(&bytes, &kept._folder.path().join(format!("{number}.png")));
        }
        let answer = kept.fixture.send(post("?prompt=a+photo+of", "image/png", bytes)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    kept.flush().await;
    let ask = |q: &str, dry_run: bool| json!({"q": q, "prompt": "red", "dry_run": dry_run});
    let path = "/library/regenerate";
    assert_eq!(kept.post(path, ask("photo", true)).await.json()["matched"], 3);
    assert_eq!(kept.fixture.get("/library/jobs").await.json(), json!([]));
    let job = kept.post(path, ask("photo", false)).await;
    assert_eq!(job.status, StatusCode::ACCEPTED, "{job:?}");
    let run = job.json()["run"].clone();
    let job = kept.job(&run).await;
    assert_eq!(
        (&job["state"], &job["total"], &job["done"]),
        (&"done".into(), &3.into(), &3.into())
    );
    assert_eq!((&job["written"], &job["unavailable"]), (&2.into(), &1.into()), "{job}");
    let runs = kept.fixture.get("/library/runs").await.json();
    assert_eq!((&runs[0]["kind"], &runs[0]["revisions"]), (&"regenerate".into(), &2.into()));
    assert!(runs[0]["finished_at"].is_i64());
    let undone = kept.post(&format!("/library/runs/{run}/undo"), json!({})).await.json();
    assert_eq!(undone["changed"], 2);

    // A job that waits for the model can be cancelled.
    kept.fixture.script.set_stuck(true);
    let run = kept.post(path, json!({"q": "", "num_beams": 2})).await.json()["run"].clone();
    let waiting = kept.post(path, json!({"photos": []})).await.json()["run"].clone();
    let cancel = format!("/library/jobs/{run}/cancel");
    kept.fixture
        .send(post_to(&cancel, "text/plain", "{}"))
        .await
        .problem(415, "unsupported_format");
    assert_eq!(kept.post(&cancel, json!({})).await.status, StatusCode::OK);
    kept.fixture.script.set_stuck(false);
    let job = kept.job(&run).await;
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(job["done"].as_u64().unwrap() < 3, "{job}");
    assert_eq!(kept.job(&waiting).await["state"], "done");
    kept.post("/library/jobs/999/cancel", json!({})).await.problem(404, "not_found");
    for body in
        [json!({}), json!({"q": 3}), json!({"q": "", "photos": []}), json!({"q": "", "x": 1})]
    {
        kept.post(path, body).await.problem(422, "invalid_parameter");
    }
}
