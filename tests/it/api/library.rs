//! `/library/…`, and the captions that a server keeps.

mod regenerate;
mod routes;

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings, RateLimit};
use cutline::image::{DecodeLimits, decode};
use cutline_library::{
    Author, Change, ContentHash, Features, Field, NameKind, NewAsset, Store, open,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Answer, Fixture, png, post, post_to};

/// A server with a library.
struct Kept {
    fixture: Fixture,
    store: Arc<dyn Store>,
    _folder: TempDir,
}

impl Kept {
    fn with(settings: HttpSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
        let fixture = Fixture::loading(settings);
        fixture.state.keep_in(Arc::clone(&store)).unwrap();
        fixture.state.ready(fixture.captioner.clone());
        Self { fixture, store, _folder: folder }
    }

    fn new() -> Self {
        Self::with(HttpSettings::default())
    }

    /// Waits until captions are stored.
    async fn flush(&self) {
        let state = self.fixture.state.clone();
        tokio::task::spawn_blocking(move || state.flush_library()).await.unwrap();
    }

    async fn caption(&self, query: &str) -> ContentHash {
        let answer = self.fixture.send(post(query, "image/png", png())).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        self.flush().await;
        ContentHash::of(&png())
    }

    async fn edit(&self, path: &str, version: Option<&str>, body: Value) -> Answer {
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("/library/assets/{path}"))
            .header("content-type", "application/json");
        let request = match version {
            Some(version) => request.header("if-match", version),
            None => request,
        };
        self.fixture.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.fixture.send(post_to(path, "application/json", body.to_string())).await
    }
}

#[tokio::test]
async fn captions_are_kept_and_found() {
    let kept = Kept::new();
    let hash = kept.caption("?prompt=a+photo+of").await;
    // From the cache, in another style.
    kept.caption("?prompt=a+photo+of&style=alt_text").await;
    let page = kept.fixture.get("/library/assets?q=red+color:firebrick&count=true").await.json();
    assert_eq!(
        (&page["total"]["count"], &page["sort"]),
        (&1.into(), &"relevance".into()),
        "{page}"
    );
    let asset = &page["items"][0];
    assert_eq!(asset["hash"], hash.to_string());
    assert_eq!((&asset["width"], &asset["format"]), (&40.into(), &"png".into()));
    let texts = asset["texts"].as_array().unwrap();
    assert_eq!(texts.len(), 2, "{asset}");
    assert!(
        texts
            .iter()
            .all(|text| text["author"]["prompt"] == "a photo of" && text["reviewed"] == false)
    );
    assert!(asset["highlights"][0].as_str().unwrap().contains("\u{e000}red\u{e001}"), "{asset}");
    let path = format!("/library/assets/{hash}");
    let answer = kept.fixture.get(&path).await;
    let tag = answer.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", answer.json()["version"]));
    let request = Request::get(&path).header("if-none-match", &tag).body(Body::empty()).unwrap();
    assert_eq!(kept.fixture.send(request).await.status, StatusCode::NOT_MODIFIED);
    let stats = kept.fixture.get("/library/stats").await.json();
    assert_eq!((&stats["assets"], &stats["revisions"]), (&1.into(), &2.into()));
    let facets = kept.fixture.get("/library/facets?q=square").await.json();
    assert!(
        facets.as_array().unwrap().iter().any(|facet| facet["attribute"] == "mood"),
        "{facets}"
    );
}

#[tokio::test]
async fn photos_that_look_the_same_are_grouped() {
    let kept = Kept::new();
    for (number, dhash) in [(1_u8, 0_u64), (2, 0b11), (3, u64::MAX)] {
        let mut asset = NewAsset::new(ContentHash::of(&[number]), Author::import("test"));
        asset.dhash = Some(dhash);
        kept.store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }
    let found = kept.fixture.get("/library/duplicates").await.json();
    assert_eq!(found["total"], 1, "{found}");
    let group = found["groups"][0].as_array().unwrap();
    assert_eq!(group.len(), 2);
    assert_eq!(group[0]["hash"], ContentHash::of(&[1]).to_string());
    let rest = kept.fixture.get("/library/duplicates?skip=1").await.json();
    assert_eq!((&rest["groups"], &rest["total"]), (&json!([]), &1.into()));
    let none = kept.fixture.get("/library/duplicates?bits=1").await.json();
    assert_eq!(none["total"], 0);
    for wrong in ["bits=8", "bits=x", "size=2"] {
        let answer = kept.fixture.get(&format!("/library/duplicates?{wrong}")).await;
        answer.problem(422, "invalid_parameter");
    }
}

#[tokio::test]
async fn edits_need_the_version_and_stay() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    let path = format!("{hash}/texts/caption");
    let write = json!({"action": "write", "text": "Rex"});
    kept.edit(&path, None, write.clone()).await.problem(428, "precondition_required");
    kept.edit(&path, Some("\"99\""), write.clone()).await.problem(412, "precondition_failed");
    kept.edit(&path, Some("1"), write.clone()).await.problem(412, "precondition_failed");
    let tag = kept.fixture.get(&format!("/library/assets/{hash}")).await.header("etag").to_owned();
    let answer = kept.edit(&path, Some(&tag), write).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!((&answer.json()["outcome"], answer.header("etag")), (&"current".into(), "\"2\""));
    // A model that is asked again only suggests.
    kept.caption("?prompt=a+photo+of").await;
    let asset = kept.fixture.get(&format!("/library/assets/{hash}")).await.json();
    assert_eq!(asset["texts"][0]["text"], "Rex");
    let suggested = asset["texts"][0]["suggestion"]["text"].as_str().unwrap().to_owned();
    let bulk = json!({"q": "is:suggested", "change": {"action": "accept", "field": "caption"}, "dry_run": true});
    let rehearsal = kept.post("/library/bulk", bulk.clone()).await.json();
    assert_eq!(
        (&rehearsal["changed"], &rehearsal["samples"][0]["after"]),
        (&1.into(), &suggested.as_str().into())
    );
    let mut bulk = bulk;
    bulk["dry_run"] = false.into();
    let run = kept.post("/library/bulk", bulk).await.json()["run"].clone();
    let text = |asset: &Value| asset["texts"][0]["text"].clone();
    assert_eq!(
        text(&kept.fixture.get(&format!("/library/assets/{hash}")).await.json()),
        suggested.as_str()
    );
    assert_eq!(kept.fixture.get("/library/runs").await.json()[0]["id"], run);
    let undone = kept.post(&format!("/library/runs/{run}/undo"), json!({})).await.json();
    assert_eq!(undone["changed"], 1);
    assert_eq!(text(&kept.fixture.get(&format!("/library/assets/{hash}")).await.json()), "Rex");
    let history = kept.fixture.get(&format!("/library/assets/{hash}/history")).await.json();
    let actions: Vec<&str> =
        history.as_array().unwrap().iter().map(|one| one["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["undo", "accept", "suggest", "write", "write"]);
    assert_eq!(history[3]["author"]["name"], "http");
}

#[tokio::test]
async fn feedback_is_stored_and_reported() {
    let kept = Kept::new();
    let hash = kept.caption("").await.to_string();
    let bad = json!({"hash": hash, "field": "caption", "good": false, "reason": "it is blue"});
    assert_eq!(kept.post("/library/feedback", bad).await.status, StatusCode::NO_CONTENT);
    let report = kept.fixture.get("/library/feedback").await.json();
    assert_eq!((&report[0]["down"], &report[0]["up"]), (&1.into(), &0.into()), "{report}");
    let first = kept.fixture.get(&format!("/library/assets/{hash}/history")).await.json();
    let revision = first[0]["id"].as_i64().unwrap() as f64;
    let good = json!({"hash": hash, "field": "caption", "good": true, "revision": revision});
    assert_eq!(kept.post("/library/feedback", good).await.status, StatusCode::NO_CONTENT);
    let missing = json!({"hash": hash, "field": "tags", "good": true});
    kept.post("/library/feedback", missing).await.problem(404, "not_found");
}

#[tokio::test]
async fn photos_are_compared_and_removed() {
    let kept = Kept::new();
    for number in 0..3_u8 {
        let mut asset = NewAsset::new(ContentHash::of(&[number]), Author::import("test"));
        asset.text(Field::Caption, "a dog", None);
        asset.features = Some(Features { space: "m".into(), vector: vec![1.0, f32::from(number)] });
        kept.store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }
    let path = format!("/library/assets/{}", ContentHash::of(&[0]));
    let near = kept.fixture.get(&format!("{path}/similar?limit=1")).await.json();
    assert_eq!(near.as_array().unwrap().len(), 1);
    assert_eq!(near[0]["hash"], ContentHash::of(&[1]).to_string());
    let delete = || Request::delete(&path).body(Body::empty()).unwrap();
    assert_eq!(kept.fixture.send(delete()).await.status, StatusCode::NO_CONTENT);
    kept.fixture.send(delete()).await.problem(404, "not_found");
    kept.fixture.get(&path).await.problem(404, "not_found");
    assert_eq!(kept.store.stats().unwrap().assets, 2);
}

#[tokio::test]
async fn thumbnails_and_features_are_kept() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    let path = format!("/library/assets/{hash}/thumbnail");
    let answer = kept.fixture.get(&path).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "image/jpeg");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("cache-control"), "private, max-age=31536000, immutable");
    let small = decode(&answer.body, &DecodeLimits::default()).unwrap();
    // The model of the test sees 32 pixels.
    assert_eq!((small.width, small.height), (32, 24));
    let tag = answer.header("etag").to_owned();
    let request = Request::get(&path).header("if-none-match", &tag).body(Body::empty()).unwrap();
    assert_eq!(kept.fixture.send(request).await.status, StatusCode::NOT_MODIFIED);
    let missing = format!("/library/assets/{}/thumbnail", ContentHash::of(b""));
    kept.fixture.get(&missing).await.problem(404, "not_found");

    // A photo with the same pixels and other bytes is a near duplicate, and alike.
    let copy = [png(), b"more".to_vec()].concat();
    let answer = kept.fixture.send(post("", "image/png", copy.clone())).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    kept.flush().await;
    let near = kept.fixture.get(&format!("/library/assets/{hash}/similar")).await.json();
    assert!(near[0]["score"].as_f64().unwrap() > 0.999, "{near}");
    assert_eq!(near[0]["hash"], ContentHash::of(&copy).to_string());
    assert_eq!(kept.store.near_duplicates(2).unwrap().len(), 1);
    let stats = kept.store.stats().unwrap();
    assert_eq!((stats.thumbnails, stats.features), (2, 2));
}

impl Kept {
    /// Tells the library where the photo is.
    fn put(&self, bytes: &[u8], path: &Path) {
        fs::write(path, bytes).unwrap();
        let mut asset = NewAsset::new(ContentHash::of(bytes), Author::import("test"));
        asset.name(NameKind::Path, path.to_str().unwrap());
        self.store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }

    /// The job of a run once it is over.
    async fn job(&self, run: &Value) -> Value {
        for _ in 0..500 {
            let jobs = self.fixture.get("/library/jobs").await.json();
            let job = jobs.as_array().unwrap().iter().find(|job| job["run"] == *run).unwrap();
            if job["finished_at"].is_i64() {
                return job.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("run {run} does not end");
    }
}

#[tokio::test]
async fn mistakes_are_answers() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    for (path, status, code) in [
        ("/library/assets?q=%22dog", 422, "invalid_parameter"),
        ("/library/assets?q=colr:red", 422, "invalid_parameter"),
        ("/library/assets?limit=0x1", 422, "invalid_parameter"),
        ("/library/assets?limit=201", 422, "invalid_parameter"),
        ("/library/assets?limit=0", 422, "invalid_parameter"),
        ("/library/assets?sort=best", 422, "invalid_parameter"),
        ("/library/assets?cursor=1", 422, "invalid_parameter"),
        ("/library/assets?query=dog", 422, "invalid_parameter"),
        ("/library/assets?q=a&q=b", 422, "invalid_parameter"),
        ("/library/assets/zz", 422, "invalid_parameter"),
        ("/library/nothing", 404, "not_found"),
        ("/library/bulk", 405, "method_not_allowed"),
    ] {
        kept.fixture.get(path).await.problem(status, code);
    }
    for path in ["/library/runs/x/undo", "/library/jobs/x/cancel", "/library/jobs/1.0/cancel"] {
        kept.post(path, json!({})).await.problem(422, "invalid_parameter");
    }
    kept.post("/library/jobs/7/cancel", json!({})).await.problem(404, "not_found");
    let similar = format!("/library/assets/{hash}/similar?limit=0");
    kept.fixture.get(&similar).await.problem(422, "invalid_parameter");
    let path = format!("{hash}/texts/caption");
    kept.edit(&path, Some("\"1\""), json!({"action": "burn"}))
        .await
        .problem(400, "malformed_request");
    kept.edit(&format!("{hash}/texts/poem"), Some("\"1\""), json!({"action": "clear"}))
        .await
        .problem(422, "invalid_parameter");
    kept.edit(&path, Some("\"1\""), json!({"action": "reject"})).await.problem(404, "not_found");
    let long = json!({"action": "write", "text": "x".repeat(20_000)});
    kept.edit(&path, Some("\"1\""), long).await.problem(422, "invalid_parameter");
    let huge = json!({"action": "write", "text": "x".repeat(2 << 20)});
    kept.edit(&path, Some("\"1\""), huge).await.problem(413, "batch_too_large");
    // What pages of other sites may send without asking.
    for path in ["/library/bulk", "/library/feedback", "/library/runs/1/undo"] {
        for kind in ["", "text/plain", "application/x-www-form-urlencoded"] {
            kept.fixture.send(post_to(path, kind, "{}")).await.problem(415, "unsupported_format");
        }
    }
    kept.post("/library/bulk", json!({"change": {"action": "clear", "field": "caption"}}))
        .await
        .problem(422, "invalid_parameter");
}

#[tokio::test]
async fn pages_of_other_sites_are_refused() {
    let get = |name: &'static str, value: &'static str| {
        let path = format!("/library/assets/{}/thumbnail", ContentHash::of(&png()));
        Request::get(path).header(name, value).body(Body::empty()).unwrap()
    };
    let kept = Kept::new();
    kept.caption("").await;
    let status = async |kept: &Kept, name, value| kept.fixture.send(get(name, value)).await.status;
    for host in ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"] {
        assert_eq!(status(&kept, "host", host).await, StatusCode::OK, "{host}");
    }
    for host in ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ":"] {
        kept.fixture.send(get("host", host)).await.problem(403, "origin_not_allowed");
    }
    for origin in ["http://evil.example", "null"] {
        kept.fixture.send(get("origin", origin)).await.problem(403, "origin_not_allowed");
    }
    // Tags come from its photos and vocabularies as well.
    for path in ["/tags/generate", "/vocabularies/shop/versions"] {
        let mut request = post_to(path, "image/png", png());
        request.headers_mut().insert("host", "evil.example".parse().unwrap());
        kept.fixture.send(request).await.problem(403, "origin_not_allowed");
    }
    let own = Request::get("/library/stats")
        .header("host", "localhost:8000")
        .header("origin", "http://localhost:8000");
    let own = kept.fixture.send(own.body(Body::empty()).unwrap()).await;
    assert_eq!(own.status, StatusCode::OK);

    // For other machines, and behind a proxy, any name is right; with keys, no page has one.
    let everywhere = HttpSettings { loopback_host: None, ..HttpSettings::default() };
    let proxied = ProtectionSettings { proxies: 1, ..ProtectionSettings::default() };
    let proxied = HttpSettings { protection: proxied, ..HttpSettings::default() };
    for settings in [everywhere, proxied] {
        let kept = Kept::with(settings);
        kept.caption("").await;
        assert_eq!(status(&kept, "host", "nas.example:8000").await, StatusCode::OK);
    }
    let keys = ApiKeys::new(["secret"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let kept = Kept::with(HttpSettings { protection, ..HttpSettings::default() });
    let request = Request::get("/library/stats").header("host", "photos.example");
    let request = request.header("x-api-key", "secret").body(Body::empty()).unwrap();
    assert_eq!(kept.fixture.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_removed_leaves_the_caches() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    let again = kept.fixture.send(post("", "image/png", png())).await.json();
    assert_eq!(again["cache"], "hit");
    let delete = Request::delete(format!("/library/assets/{hash}")).body(Body::empty()).unwrap();
    assert_eq!(kept.fixture.send(delete).await.status, StatusCode::NO_CONTENT);
    let anew = kept.fixture.send(post("", "image/png", png())).await.json();
    assert_eq!((&anew["cache"], &anew["vision_cache"]), (&"miss".into(), &"miss".into()));
}

#[tokio::test]
async fn a_library_that_lost_a_photo_gets_all_of_it_with_a_cached_answer() {
    let kept = Kept::new();
    let hash = kept.caption("").await;
    // Another program removes it.
    kept.store.apply(vec![Change::Purge(hash)]).unwrap();
    let again = kept.fixture.send(post("", "image/png", png())).await.json();
    assert_eq!(again["cache"], "hit");
    kept.flush().await;
    let stats = kept.store.stats().unwrap();
    assert_eq!((stats.assets, stats.thumbnails, stats.features), (1, 1, 1));
}

#[tokio::test]
async fn nothing_is_kept_without_a_library() {
    let fixture = Fixture::new();
    for path in ["/library/assets", "/library/stats", "/library/runs"] {
        fixture.get(path).await.problem(404, "not_found");
    }
    assert_eq!(fixture.send(post("", "image/png", png())).await.status, StatusCode::OK);
}

#[tokio::test]
async fn keys_hold_for_the_library() {
    let keys = ApiKeys::new(["secret"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let kept = Kept::with(HttpSettings { protection, ..HttpSettings::default() });
    kept.fixture.get("/library/assets").await.problem(401, "unauthorized");
    let delete = Request::delete(format!("/library/assets/{}", ContentHash::of(b"")));
    kept.fixture.send(delete.body(Body::empty()).unwrap()).await.problem(401, "unauthorized");
    kept.edit(
        &format!("{}/texts/caption", ContentHash::of(b"")),
        Some("\"1\""),
        json!({"action": "clear"}),
    )
    .await
    .problem(401, "unauthorized");
    let request = Request::get("/library/assets").header("x-api-key", "secret");
    let answer = kept.fixture.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let path = format!("/library/assets/{}/thumbnail", ContentHash::of(b""));
    kept.fixture.get(&path).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn thumbnails_do_not_count_for_the_rate() {
    let one = NonZeroU32::MIN;
    let rate = RateLimit { per_minute: one, burst: one };
    let protection = ProtectionSettings { rate: Some(rate), ..ProtectionSettings::default() };
    let kept = Kept::with(HttpSettings { protection, ..HttpSettings::default() });
    let hash = kept.caption("").await;
    for _ in 0..5 {
        let path = format!("/library/assets/{hash}/thumbnail");
        assert_eq!(kept.fixture.get(&path).await.status, StatusCode::OK);
    }
    kept.fixture.get("/library/assets").await.problem(429, "rate_limited");
}
