//! `POST /image-text/score`, `POST /embeddings` and `POST /vqa`, with tiny models

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::captioner::{AppearanceOptions, Captioner, CaptionerSettings};
use cutline::config::HttpSettings;
use cutline::engine::source::ModelSource;
use cutline::http::{AppState, app};
use cutline::routing::{RoutingSettings, connect};
use cutline_library::{Change, KeyChange, KeyRules, Secret, UsageGroup, UsageQuery, Used, open};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::fixture::{Fixture, distinct, form_bytes, png, post_to};
use super::metrics::ROUTES;

fn state(model: &str) -> AppState {
    let state = AppState::new(HttpSettings::default());
    load(&state, model);
    state
}

fn load(state: &AppState, model: &str) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/");
    let model = ModelSource::Folder(format!("{folder}{model}").into());
    let settings = CaptionerSettings { model, ..CaptionerSettings::default() };
    state.ready(Captioner::load(&settings).unwrap());
}

async fn send(state: &AppState, request: Request<Body>) -> (StatusCode, Value) {
    let (parts, body) = app(state.clone()).oneshot(request).await.unwrap().into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let json = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8(body.to_vec()).unwrap()));
    (parts.status, json)
}

fn with_image(path: &str, mut fields: Value) -> Request<Body> {
    fields["image"] = BASE64_STANDARD.encode(png()).into();
    post_to(path, "application/json", fields.to_string())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn texts_are_scored_and_ranked() {
    let state = state("itm");
    let texts = json!(["a red hat", "two cats", "a dog on the beach"]);
    let request = with_image("/image-text/score", json!({"texts": texts, "mode": "both"}));
    let (status, answer) = send(&state, request).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let scores = answer["scores"].as_array().unwrap();
    assert_eq!(scores.iter().map(|score| &score["text"]).collect::<Vec<_>>().len(), 3);
    for (score, text) in scores.iter().zip(texts.as_array().unwrap()) {
        assert_eq!(&score["text"], text);
        let logits = numbers(&score["logits"]);
        let expected = 1.0 / (1.0 + (logits[0] - logits[1]).exp());
        assert!((score["match"].as_f64().unwrap() - expected).abs() < 1e-5, "{score}");
        assert!(score["similarity"].as_f64().unwrap().abs() <= 1.0 + 1e-6);
    }
    let ranked = numbers(&answer["ranking"]);
    let matching = |n: f64| scores[n as usize]["match"].as_f64().unwrap();
    assert!(ranked.windows(2).all(|two| matching(two[0]) >= matching(two[1])), "{answer}");
    assert_eq!(answer["model"], "itm");
    assert!(answer["image"]["hash"].as_str().unwrap().starts_with("blake3:"));

    // The same in every way of sending it, alone and with the encoded image from the cache.
    for (mode, absent) in [("itm", "similarity"), ("itc", "match")] {
        let lines = "two cats\na dog on the beach";
        let (multipart, parts) = (
            "multipart/form-data; boundary=line",
            [
                ("; name=\"image\"; filename=\"a.png\"", &png()[..]),
                ("; name=\"texts\"", lines.as_bytes()),
                ("; name=\"mode\"", mode.as_bytes()),
            ],
        );
        let request = post_to("/image-text/score", multipart, form_bytes(&parts));
        let (status, one) = send(&state, request).await;
        assert_eq!(status, StatusCode::OK, "{one}");
        assert!(one["scores"][0].get(absent).is_none(), "{one}");
        let kept = if mode == "itm" { "match" } else { "similarity" };
        assert_eq!(one["scores"][1][kept], scores[2][kept]);
    }
    let query = format!("/image-text/score?texts={}", "two%20cats");
    let (status, one) = send(&state, post_to(&query, "image/png", png())).await;
    assert_eq!((status, &one["scores"][0]["match"]), (StatusCode::OK, &scores[1]["match"]));
}

#[tokio::test]
async fn embeddings_of_image_and_texts_have_the_similarity_as_their_product() {
    let state = state("itm-wide");
    let texts = json!(["two cats", "a red hat"]);
    let request = with_image("/embeddings", json!({"texts": texts}));
    let (status, both) = send(&state, request).await;
    assert_eq!(status, StatusCode::OK, "{both}");
    let image = numbers(&both["embedding"]);
    assert_eq!((image.len(), &both["dimensions"]), (24, &json!(24)));
    assert!((dot(&image, &image) - 1.0).abs() < 1e-5);
    let request = with_image("/image-text/score", json!({"texts": texts, "mode": "itc"}));
    let (_, scored) = send(&state, request).await;
    for n in 0..2 {
        let similarity = scored["scores"][n]["similarity"].as_f64().unwrap();
        let text = numbers(&both["texts"][n]["embedding"]);
        assert!((dot(&image, &text) - similarity).abs() < 1e-5);
    }
    let alone = json!({"texts": "two cats"});
    let request = post_to("/embeddings", "application/json", alone.to_string());
    let (status, alone) = send(&state, request).await;
    assert_eq!(status, StatusCode::OK, "{alone}");
    assert_eq!(alone["texts"][0]["embedding"], both["texts"][0]["embedding"]);
    assert!(alone.get("image").is_none() && alone.get("embedding").is_none());
    let (_, alone) = send(&state, post_to("/embeddings", "image/png", png())).await;
    assert_eq!(alone["embedding"], both["embedding"]);
    assert_eq!(alone["texts"], json!([]));
    let (status, none) = send(&state, post_to("/embeddings", "application/json", "{}")).await;
    assert_eq!((status, &none["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &"texts".into()));
}

#[tokio::test]
async fn questions_are_answered_alone_together_and_as_a_stream() {
    let state = state("vqa-untied");
    let questions = json!(["what color is it?", "how many dogs are there?"]);
    let fields = json!({"questions": questions, "max_new_tokens": 6, "min_new_tokens": 4});
    let (status, answer) = send(&state, with_image("/vqa", fields)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let answers = answer["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 2);
    for (one, question) in answers.iter().zip(questions.as_array().unwrap()) {
        assert_eq!((&one["question"], &one["cache"]), (question, &"miss".into()));
        assert_eq!(one["answer"], one["answers"][0]["text"]);
        // Alone it comes from the cache, and without a cache it is the same.
        let fields = json!({"question": question, "max_new_tokens": 6, "min_new_tokens": 4});
        let (_, alone) = send(&state, with_image("/vqa", fields)).await;
        assert_eq!(alone["answers"][0]["cache"], "hit");
        let fields = json!({
            "question": question, "max_new_tokens": 6, "min_new_tokens": 4, "cache": "bypass",
        });
        let (_, again) = send(&state, with_image("/vqa", fields)).await;
        assert_eq!(again["answers"][0]["answer"], one["answer"]);
    }
    let fields = json!({"question": questions[0], "max_new_tokens": 6, "min_new_tokens": 4,
                        "stream": true, "cache": "bypass"});
    let (status, stream) = send(&state, with_image("/vqa", fields)).await;
    let stream = stream.as_str().unwrap();
    assert_eq!(status, StatusCode::OK);
    assert!(stream.contains("event: token") && stream.contains("event: done"), "{stream}");
    assert!(stream.contains(answers[0]["answer"].as_str().unwrap()), "{stream}");
    let fields = json!({"question": "what?", "num_beams": 3, "num_captions": 2});
    let (_, beams) = send(&state, with_image("/vqa", fields)).await;
    assert_eq!(beams["answers"][0]["answers"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_name() {
    let (itm, vqa) = (state("itm"), state("vqa"));
    for (state, path, fields, field) in [
        (&itm, "/image-text/score", json!({}), "texts"),
        (&itm, "/image-text/score", json!({"texts": []}), "texts"),
        (&itm, "/image-text/score", json!({"texts": ["a"], "mode": "x"}), "mode"),
        (&itm, "/image-text/score", json!({"texts": ["cat ".repeat(50)]}), "texts"),
        (&itm, "/embeddings", json!({"texts": ["a"], "mode": "itm"}), "mode"),
        (&vqa, "/vqa", json!({}), "questions"),
        (&vqa, "/vqa", json!({"question": "a", "questions": ["b"]}), "questions"),
        (&vqa, "/vqa", json!({"question": "a", "prompt": "b"}), "prompt"),
        (&vqa, "/vqa", json!({"question": "cat ".repeat(50)}), "question"),
        (&vqa, "/vqa", json!({"questions": ["a", "b"], "stream": true}), "stream"),
    ] {
        let (status, problem) = send(state, with_image(path, fields.clone())).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path} {fields}: {problem}");
        assert_eq!(problem["field"], field, "{path} {fields}: {problem}");
    }
    // A text that is cut fits.
    let fields = json!({"texts": ["cat ".repeat(50)], "max_text_tokens": 35});
    let (status, _) = send(&itm, with_image("/image-text/score", fields)).await;
    assert_eq!(status, StatusCode::OK);
    let request = post_to("/vqa?question=what", "application/json", "{}");
    assert_eq!(send(&vqa, request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn keys_pay_for_photos_and_answers_and_not_for_texts_alone() {
    for (model, requests) in [
        (
            "itm",
            [
                ("/image-text/score", json!({"texts": ["a cat", "a dog"]}), true, 1),
                ("/embeddings", json!({}), true, 1),
                ("/embeddings", json!({"texts": ["a cat"]}), false, 0),
            ],
        ),
        (
            "vqa",
            [
                ("/vqa", json!({"question": "what?"}), true, 1),
                ("/vqa", json!({"questions": ["what?", "where?"]}), true, 1),
                ("/vqa", json!({"questions": ["who?", "when?"]}), true, 2),
            ],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
        let secret = Secret::generate().unwrap();
        let create = KeyChange::Create { rules: KeyRules::new("app"), secret: secret.hash() };
        store.apply(vec![Change::Key(create)]).unwrap();
        let state = AppState::new(HttpSettings::default());
        state.keep_in(Arc::clone(&store)).unwrap();
        load(&state, model);
        let mut expected = 0;
        for (path, fields, has_photo, images) in requests {
            let mut request = match has_photo {
                true => with_image(path, fields),
                false => post_to(path, "application/json", fields.to_string()),
            };
            request.headers_mut().insert("x-api-key", secret.reveal().parse().unwrap());
            let (status, answer) = send(&state, request).await;
            assert_eq!(status, StatusCode::OK, "{path}: {answer}");
            expected += images;
            let query = UsageQuery { from: 0, to: i64::MAX, key: None, group: UsageGroup::Key };
            let paid = |used: &Used| used.images - used.cached;
            let used = store.usage(&query).unwrap().first().map(|row| paid(&row.used));
            assert_eq!(used.unwrap_or_default(), expected, "{path}");
        }
    }
}

#[tokio::test]
async fn keys_for_other_models_compare_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
    let secret = Secret::generate().unwrap();
    let rules = KeyRules { models: vec!["another".into()], ..KeyRules::new("app") };
    store.apply(vec![Change::Key(KeyChange::Create { rules, secret: secret.hash() })]).unwrap();
    let state = AppState::new(HttpSettings::default());
    state.keep_in(store).unwrap();
    load(&state, "itm");
    let texts = json!({"texts": ["a cat"]});
    for mut request in [
        with_image("/image-text/score", texts.clone()),
        with_image("/embeddings", texts.clone()),
        post_to("/embeddings", "application/json", texts.to_string()),
    ] {
        request.headers_mut().insert("x-api-key", secret.reveal().parse().unwrap());
        let (status, problem) = send(&state, request).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    }
}

#[tokio::test]
async fn a_model_says_what_it_can_do_and_refuses_the_rest() {
    let fields = |path| match path {
        "/vqa" => json!({"question": "what?"}),
        "/caption/generate" | "/tags/generate" => json!({}),
        _ => json!({"texts": ["a cat"]}),
    };
    let paths = ["/caption/generate", "/tags/generate", "/image-text/score", "/embeddings", "/vqa"];
    for (model, tasks, able) in [
        ("itm", json!(["score", "embed"]), &["/image-text/score", "/embeddings"][..]),
        ("vqa", json!(["answer"]), &["/vqa"]),
    ] {
        let state = state(model);
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let (_, info) = send(&state, get("/model/info")).await;
        assert_eq!(
            (&info["tasks"], info.get("embedding_size").is_some()),
            (&tasks, model == "itm")
        );
        let (_, health) = send(&state, get("/health")).await;
        assert_eq!(health["tasks"], tasks);
        for path in paths {
            let (status, answer) = send(&state, with_image(path, fields(path))).await;
            if able.contains(&path) {
                assert_eq!(status, StatusCode::OK, "{model} {path}: {answer}");
                continue;
            }
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{model} {path}: {answer}");
            assert_eq!(answer["code"], "unsupported", "{model} {path}: {answer}");
            assert!(answer["detail"].as_str().unwrap().contains("Salesforce/"), "{answer}");
        }
        let batch = json!({"images": [BASE64_STANDARD.encode(png())]}).to_string();
        let (status, answer) =
            send(&state, post_to("/caption/batch", "application/json", batch)).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &"unsupported".into())
        );
    }
    let fixture = Fixture::new();
    for path in &paths[2..] {
        let answer = fixture.send(with_image(path, fields(path))).await;
        answer.problem(422, "unsupported");
    }
    assert_eq!(fixture.get("/model/info").await.json()["tasks"], json!(["caption"]));
}

fn golden(name: &str) -> Captioner {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/");
    let model = ModelSource::Folder(format!("{folder}{name}").into());
    Captioner::load(&CaptionerSettings { model, ..CaptionerSettings::default() }).unwrap()
}

#[tokio::test]
async fn one_of_several_models_is_chosen_by_its_name() {
    let fixture = Fixture::new();
    let models = ["itm", "itm-wide", "vqa"].map(|name| (name.to_owned(), golden(name)));
    fixture.route_with(ROUTES, models.into());
    let embed = async |fields: Value| fixture.send(with_image("/embeddings", fields)).await;
    for (fields, model, dimensions) in [
        (json!({}), "itm", 16),
        (json!({"model": "itm-wide"}), "itm-wide", 24),
        (json!({"model": "itm-wide:latest"}), "itm-wide", 24),
        (json!({"model": null}), "itm", 16),
    ] {
        let answer = embed(fields).await.json();
        assert_eq!((&answer["model"], &answer["dimensions"]), (&model.into(), &dimensions.into()));
    }
    let score = json!({"texts": ["a cat"], "model": "itm-wide"});
    let answer = fixture.send(with_image("/image-text/score", score)).await.json();
    assert_eq!(answer["model"], "itm-wide");
    for model in [None, Some("vqa")] {
        let fields = json!({"question": "what?", "model": model});
        let answer = fixture.send(with_image("/vqa", fields)).await.json();
        assert_eq!(answer["model"], "vqa");
    }
    let query = "/vqa?model=vqa&question=what&stream=true";
    let events = fixture.send(post_to(query, "image/png", png())).await;
    let events = String::from_utf8(events.body.to_vec()).unwrap();
    assert!(events.contains("event: done"), "{events}");

    for unable in ["scripted", "vqa"] {
        embed(json!({"model": unable})).await.problem(422, "unsupported");
    }
    for absent in ["third", "best"] {
        // A route is no model of this process.
        embed(json!({"model": absent})).await.problem(404, "model_not_found");
    }
    embed(json!({"model": 7})).await.problem(422, "invalid_parameter");
}

#[tokio::test]
async fn captions_are_put_in_the_order_in_which_they_match() {
    let state = AppState::new(HttpSettings::default());
    let main = Captioner::load(&CaptionerSettings::default()).unwrap();
    let routing = RoutingSettings {
        models: vec![("itm".to_owned(), ModelSource::Embedded)],
        limit: std::time::Duration::from_secs(28),
        ..RoutingSettings::default()
    };
    let models = vec![("itm".to_owned(), golden("itm"))];
    let loaded = connect(main, models, &routing).unwrap();
    state.ready(loaded.captioner);
    let beams = json!({"num_beams": 4, "num_captions": 4});
    let plain = send(&state, with_image("/caption/generate", beams.clone())).await.1;
    let texts = |answer: &Value| -> Vec<String> {
        let captions = answer["captions"].as_array().unwrap().iter();
        captions.map(|one| one["text"].as_str().unwrap().to_owned()).collect()
    };
    let fields = json!({"texts": texts(&plain), "model": "itm"});
    let scored = send(&state, with_image("/image-text/score", fields)).await.1;
    let wanted: Vec<String> =
        numbers(&scored["ranking"]).iter().map(|n| texts(&plain)[*n as usize].clone()).collect();
    assert_ne!(wanted, texts(&plain), "this photo would show nothing");
    let mut ranked = beams.clone();
    ranked["rerank"] = true.into();
    // From the cache as well.
    for cache in ["use", "refresh"] {
        ranked["cache"] = cache.into();
        let (status, answer) = send(&state, with_image("/caption/generate", ranked.clone())).await;
        assert_eq!((status, texts(&answer)), (StatusCode::OK, wanted.clone()), "{answer}");
        assert_eq!(answer["caption"], answer["captions"][0]["text"]);
        let best = numbers(&scored["ranking"])[0] as usize;
        assert_eq!(answer["captions"][0]["match"], scored["scores"][best]["match"]);
    }
    assert!(plain["captions"][0].get("match").is_none());
    ranked["stream"] = true.into();
    let events = send(&state, with_image("/caption/generate", ranked)).await.1;
    let done = events.as_str().unwrap().split("event: done\ndata: ").nth(1).unwrap();
    let done: Value = serde_json::from_str(done.lines().next().unwrap()).unwrap();
    assert_eq!(texts(&done), wanted);

    let alone = Fixture::new();
    let refused = alone.send(with_image("/caption/generate", json!({"rerank": true}))).await;
    refused.problem(422, "unsupported");
}

#[tokio::test]
async fn a_text_finds_photos_that_were_captioned() {
    let folder = tempfile::tempdir().unwrap();
    let state = AppState::new(HttpSettings::default());
    let address = format!("sqlite:{}", folder.path().join("photos.db").display());
    state.keep_in(open(&address).unwrap()).unwrap();
    let look = AppearanceOptions { thumbnails: false };
    let settings = CaptionerSettings { appearance: Some(look), ..CaptionerSettings::default() };
    let main = Captioner::load(&settings).unwrap();
    let routing = RoutingSettings {
        models: vec![("itm".to_owned(), ModelSource::Embedded)],
        limit: std::time::Duration::from_secs(28),
        ..RoutingSettings::default()
    };
    let loaded = connect(main, vec![("itm".to_owned(), golden("itm"))], &routing).unwrap();
    loaded.captioner.embed_with(loaded.captioner.named(Some("itm"))).unwrap();
    state.ready(loaded.captioner);
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let search = "/library/similar?text=two%20cats";
    assert_eq!(send(&state, get(search)).await.0, StatusCode::NOT_FOUND, "there is no photo");

    let photos = [1, 40].map(distinct);
    for photo in &photos {
        let caption = post_to("/caption/generate?num_beams=2", "image/png", photo.clone());
        assert_eq!(send(&state, caption).await.0, StatusCode::OK);
    }
    state.flush_library();
    let (status, found) = send(&state, get(search)).await;
    assert_eq!(status, StatusCode::OK, "{found}");
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), 2);
    assert!(found[0]["score"].as_f64() >= found[1]["score"].as_f64());
    for photo in photos {
        let query = "/image-text/score?texts=two%20cats&mode=itc";
        let (_, scored) = send(&state, post_to(query, "image/png", photo)).await;
        let hash = scored["image"]["hash"].as_str().unwrap().trim_start_matches("blake3:");
        let neighbour = found.iter().find(|one| one["hash"] == hash).expect("it is found");
        let cosine = scored["scores"][0]["similarity"].as_f64().unwrap();
        assert!((neighbour["score"].as_f64().unwrap() - cosine).abs() < 2e-3, "{neighbour}");
        // Photos are compared as they look, not as they match texts.
        let path = format!("/library/assets/{hash}/similar");
        assert_eq!(send(&state, get(&path)).await.1.as_array().unwrap().len(), 1);
    }
    let (_, best) = send(&state, get(&format!("{search}&limit=1"))).await;
    assert_eq!(best[0], found[0]);
    for wrong in ["/library/similar", "/library/similar?text=%20", "/library/similar?q=a"] {
        let (status, problem) = send(&state, get(wrong)).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &"invalid_parameter".into())
        );
    }
    let refused = Fixture::new().get(search).await;
    refused.problem(404, "not_found");
}
