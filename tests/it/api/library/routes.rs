//! Answers of routes in a library.

use axum::http::StatusCode;
use cutline::captioner::MemoryLimits;
use cutline_library::{Asset, Author, ContentHash, Field, ModelAuthor};
use serde_json::{Value, json};

use super::super::fixture::{Fixture, distinct, png, post};
use super::super::routes::listen;
use super::Kept;

/// A server with a library, and routes to `other`, to a backend that is away, and to its own model.
async fn routed(other: &Fixture) -> Kept {
    let kept = Kept::new();
    let address = listen(other).await;
    kept.fixture.route(&format!(
        "[[backend]]\nname = \"other\"\nkind = \"openai\"\nbase_url = \"{address}\"\n\
         model = \"vision-mini\"\nprice = {{ per_image = 0.25 }}\n\
         [[backend]]\nname = \"away\"\nkind = \"ollama\"\nbase_url = \"http://127.0.0.1:1\"\nmodel = \"x\"\n\
         [[backend]]\nname = \"here\"\nkind = \"local\"\n\
         [[route]]\nname = \"far\"\nmatch = {{ default = true }}\nbackends = [[\"other\"]]\n\
         [[route]]\nname = \"near\"\nbackends = [[\"away\"], [\"here\"]]\n\
         [[route]]\nname = \"careful\"\nbackends = [[\"here\"], [\"other\"]]\nescalate_below = 0.6\n\
         [[route]]\nname = \"easy\"\nbackends = [[\"here\"], [\"other\"]]\nescalate_below = 0.4\n"
    ));
    kept
}

/// Another cutline, which goes by the name of a model of another maker.
fn other() -> Fixture {
    let other = Fixture::roomy(8, MemoryLimits::default());
    other.route(
        "[[backend]]\nname = \"own\"\nkind = \"local\"\n\
         [[route]]\nname = \"vision-mini\"\nbackends = [[\"own\"]]\n",
    );
    other
}

fn author(asset: &Asset) -> ModelAuthor {
    let text = asset.text(Field::Caption, "en").unwrap();
    match &text.author {
        Author::Model(model) => model.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_caption_is_kept_with_the_name_of_the_model_that_wrote_it() {
    let other = other();
    let kept = routed(&other).await;
    for (route, name, digest) in [
        ("?model=far", "vision-mini", ""),
        ("?model=far&stream=true", "vision-mini", ""),
        ("?model=near", "scripted", "blake3:00"),
        ("?model=careful", "vision-mini", ""),
        ("?model=easy", "scripted", "blake3:00"),
        ("", "vision-mini", ""),
    ] {
        let hash = kept.caption(route).await;
        let asset = kept.store.asset(&hash).unwrap().unwrap();
        assert_eq!((asset.width, asset.height), (Some(40), Some(30)), "{route}");
        let text = asset.text(Field::Caption, "en").unwrap();
        assert_eq!(text.text, "a red square", "{route}");
        // The other one does not tell how sure it is.
        assert_eq!(text.confidence.is_some(), name == "scripted", "{route}");
        let author = author(&asset);
        assert_eq!((author.name.as_str(), author.digest.as_str()), (name, digest), "{route}");
        assert!(!author.parameters.is_empty());
        let history = kept.store.history(&hash).unwrap().unwrap();
        assert_eq!(history.len(), 1, "of two answers the better one is kept: {route} {history:?}");
        assert!(kept.store.thumbnail(&hash).unwrap().is_some(), "{route}");
        kept.fixture
            .captioner
            .forget(&format!("blake3:{}", hash.to_string().trim_start_matches("blake3:")));
        kept.store.apply(vec![cutline_library::Change::Purge(hash)]).unwrap();
    }
    // Again, from the cache: nobody is asked, and the photo is there again.
    kept.caption("?model=far").await;
    kept.store.apply(vec![cutline_library::Change::Purge(ContentHash::of(&png()))]).unwrap();
    let finished = other.captioner.status().finished;
    let again = kept.fixture.send(post("?model=far", "image/png", png())).await.json();
    assert_eq!((&again["cache"], &again["routing"]["cost"]), (&json!("hit"), &json!(0.0)));
    kept.flush().await;
    let asset = kept.store.asset(&ContentHash::of(&png())).unwrap().unwrap();
    assert_eq!(author(&asset).name, "vision-mini");
    assert_eq!(other.captioner.status().finished, finished);
}

#[tokio::test]
async fn photos_are_captioned_again_by_a_route() {
    let other = other();
    let kept = routed(&other).await;
    let hash = kept.caption("?model=near").await;
    kept.put(&png(), &kept._folder.path().join("a.png"));
    let path = format!("/library/assets/{hash}/regenerate");
    let by = |asset: &Asset| author(asset).name;
    let now = || kept.store.asset(&hash).unwrap().unwrap();
    assert_eq!(by(&now()), "scripted");
    // Without a name it is the model in this process, even if a route takes such requests.
    let before = other.captioner.status().finished;
    let done = kept.post(&path, json!({"prompt": "a"})).await;
    assert_eq!(done.status, StatusCode::OK, "{done:?}");
    assert_eq!((by(&now()).as_str(), other.captioner.status().finished), ("scripted", before));
    let done = kept.post(&path, json!({"model": "far", "style": "title"})).await;
    assert_eq!(done.status, StatusCode::OK, "{done:?}");
    let title = now().text(Field::Title, "en").unwrap().clone();
    assert!(
        matches!(&title.author, Author::Model(model) if model.name == "vision-mini"),
        "{title:?}"
    );
    let done = kept.post(&path, json!({"model": "far", "style": "keywords"})).await;
    assert_eq!((done.status, &done.json()["field"]), (StatusCode::OK, &json!("tags")), "{done:?}");
    assert!(kept.store.history(&hash).unwrap().unwrap().iter().all(|one| one.run.is_none()));
    kept.post(&path, json!({"model": "none"})).await.problem(404, "model_not_found");
}

#[tokio::test]
async fn a_job_captions_many_photos_by_a_route() {
    let other = other();
    let kept = routed(&other).await;
    for number in 0..3 {
        let bytes = distinct(number);
        kept.put(&bytes, &kept._folder.path().join(format!("{number}.png")));
        let answer = kept.fixture.send(post("?model=near", "image/png", bytes)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    kept.flush().await;
    let path = "/library/regenerate";
    let asked = json!({"q": "", "model": "far", "style": "title"});
    let job = kept.post(path, asked).await;
    assert_eq!(job.status, StatusCode::ACCEPTED, "{job:?}");
    assert_eq!(job.json()["model"], "far");
    let job = kept.job(&job.json()["run"]).await;
    let expected: [Value; 4] = ["done".into(), 3.into(), 3.into(), 0.into()];
    assert_eq!([&job["state"], &job["done"], &job["written"], &job["failed"]], expected.each_ref());
    assert_eq!(other.captioner.status().finished, 3);
    let undone = kept.post(&format!("/library/runs/{}/undo", job["run"]), json!({})).await.json();
    assert_eq!(undone["changed"], 3);
    kept.post(path, json!({"q": "", "model": "none"})).await.problem(404, "model_not_found");
    // A model in this process, by its own name.
    let job = kept.post(path, json!({"q": "", "model": "scripted", "num_beams": 2})).await.json();
    assert_eq!(kept.job(&job["run"]).await["done"], 3);
    assert_eq!(other.captioner.status().finished, 3);
}
