//! `POST /tags/generate`

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::captioner::{MemoryLimits, TagStrategy};
use cutline::config::HttpSettings;
use cutline::tags::{Source, Vocabulary, Weights};
use cutline_library::{Author, Change, ContentHash, Features, Field, NewAsset, open};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::fixture::{Fixture, distinct, form_bytes, png, post_to};

/// Words that the scripted model can read, and one that it cannot.
const WORDS: &str = r#"{"name": "mine", "categories": [
    {"name": "shape", "k": 2, "tags": ["photo", "square", {"name": "of", "synonyms": ["red"]}]},
    {"name": "other", "tags": ["a", "violin"]}]}"#;

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn json(fields: Value) -> Request<Body> {
    let mut body = json!({"image": BASE64_STANDARD.encode(png())});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    post_to("/tags/generate", "application/json", body.to_string())
}

fn words() -> Value {
    serde_json::from_str(WORDS).unwrap()
}

/// The tags of a category.
fn tags<'a>(answer: &'a Value, category: &str) -> Vec<&'a str> {
    let tags = answer["tags"][category].as_array().unwrap_or_else(|| panic!("{answer}"));
    tags.iter().map(|tag| tag["tag"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn only_allowed_tags_are_given_and_each_says_why() {
    let fixture = fixture();
    // The weights of a score are for real models.
    let fields = json!({"vocabulary": words(), "explain": true, "min_score": 0});
    let answer = fixture.send(json(fields)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let answer = answer.json();
    let shape = tags(&answer, "shape");
    assert_eq!(shape[0], "square", "the model and the captions agree: {answer}");
    assert!(shape.len() <= 2);
    assert_eq!((&answer["violations"], &answer["vocabulary"]), (&0.into(), &"mine".into()));
    assert_eq!(
        (&answer["strategy"], &answer["caption"]),
        (&"hybrid".into(), &"a red square".into())
    );
    assert_eq!(answer["coverage"]["of"], 2);
    let square = &answer["tags"]["shape"][0];
    assert!(square["score"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)));
    let evidence = &square["evidence"];
    assert_eq!(
        (&evidence["caption_match"], &evidence["caption_share"]),
        (&"square".into(), &1.0.into())
    );
    assert!(evidence["pmi"].is_number() && evidence["near_share"].is_null(), "{evidence}");
    assert!(square["support"].is_null(), "this model does not say: {square}");
    assert!(answer["decoder_steps"].as_u64().is_some_and(|steps| steps <= 2), "{answer}");
    assert_eq!(answer["image"]["format"], "png");

    // Without asking, there is no evidence; the synonym is told by the name.
    let answer = fixture.send(json(json!({"vocabulary": words(), "strategy": "caption"}))).await;
    let answer = answer.json();
    assert_eq!(tags(&answer, "shape"), ["square", "of"]);
    assert_eq!(tags(&answer, "other"), ["a"]);
    assert!(answer["tags"]["shape"][0]["evidence"].is_null());
    assert_eq!(answer["decoder_steps"], 0);
}

#[tokio::test]
async fn the_model_alone_needs_no_caption() {
    let fixture = fixture();
    let fields = json!({"vocabulary": words(), "strategy": "likelihood", "min_score": 0, "k": 1});
    let answer = fixture.send(json(fields.clone())).await.json();
    assert_eq!(tags(&answer, "shape"), ["square"], "{answer}");
    assert!(answer["caption"].is_null());
    assert_eq!(answer["tags"]["shape"][0]["strategy"], "likelihood");
    let encoded = fixture.script.encodes();
    let again = fixture.send(json(fields)).await.json();
    assert_eq!(again["tags"], answer["tags"]);
    assert_eq!(fixture.script.encodes(), encoded, "the image and the priors are kept");
}

#[tokio::test]
async fn every_way_of_sending_an_image_works() {
    let fixture = fixture();
    let lines: &[u8] = b"[shape]\nsquare\nphoto\n";
    let parts =
        [("; name=\"image\"; filename=\"a.png\"", &*png()), ("; name=\"vocabulary\"", lines)];
    let multipart = "multipart/form-data; boundary=line";
    let request = post_to("/tags/generate?strategy=caption", multipart, form_bytes(&parts));
    assert_eq!(tags(&fixture.send(request).await.json(), "shape"), ["square"]);
    let query = "/tags/generate?strategy=caption&vocabulary=%5B%22red%22%5D";
    let answer = fixture.send(post_to(query, "image/png", png())).await.json();
    assert_eq!(tags(&answer, "tags"), ["red"], "a list is one category");
    // Without a vocabulary, everyday words.
    let answer = fixture.send(post_to("/tags/generate", "image/png", png())).await.json();
    assert_eq!((&answer["vocabulary"], &answer["violations"]), (&"everyday".into(), &0.into()));
    let of = answer["coverage"]["of"].as_u64().unwrap();
    let missing = answer["coverage"]["missing"].as_array().unwrap().len() as u64;
    assert_eq!(answer["coverage"]["filled"], of - missing);
}

#[tokio::test]
async fn the_server_may_have_a_vocabulary_of_its_own() {
    let vocabulary = Vocabulary::parse(WORDS.as_bytes()).unwrap();
    let settings =
        HttpSettings { tag_vocabulary: Some(Source::Own(vocabulary)), ..HttpSettings::default() };
    let fixture = Fixture::build(settings, 8, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    let answer = fixture.send(post_to("/tags/generate?strategy=caption", "", png())).await;
    assert_eq!(answer.problem(415, "unsupported_format")["status"], 415);
    let request = post_to("/tags/generate?strategy=caption", "image/png", png());
    let answer = fixture.send(request).await.json();
    assert_eq!(
        (&answer["vocabulary"], tags(&answer, "shape")),
        (&"mine".into(), vec!["square", "of"])
    );
    let own =
        fixture.send(json(json!({"vocabulary": ["red"], "strategy": "caption"}))).await.json();
    assert_eq!(tags(&own, "tags"), ["red"], "that of the request counts");
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_the_name() {
    let fixture = fixture();
    for (fields, field) in [
        (json!({"vocabulary": []}), "vocabulary"),
        (json!({"vocabulary": ["a", "A"]}), "vocabulary"),
        (json!({"vocabulary": {"categories": [{"name": "x"}]}}), "vocabulary"),
        (json!({"vocabulary": 7}), "vocabulary"),
        (json!({"vocabulary": ["x".repeat(50_000)]}), "vocabulary"),
        (json!({"vocabulary": ["red"], "strategy": "best"}), "strategy"),
        (json!({"vocabulary": ["red"], "strategy": "similarity"}), "strategy"),
        (json!({"k": 0}), "k"),
        (json!({"k": [1]}), "k"),
        (json!({"min_score": 2}), "min_score"),
        (json!({"explain": "maybe"}), "explain"),
        (json!({"num_beams": 2}), "num_beams"),
        (json!({"Strategy": "auto"}), "Strategy"),
    ] {
        let answer = fixture.send(json(fields.clone())).await;
        let problem = answer.problem(422, "invalid_parameter");
        assert_eq!(problem["field"], field, "{fields}: {problem}");
    }
    let request = post_to("/tags/generate?k=1&k=2", "image/png", png());
    assert_eq!(fixture.send(request).await.problem(422, "invalid_parameter")["field"], "k");
    let request = post_to("/tags/generate", "image/png", "no image");
    fixture.send(request).await.problem(415, "unsupported_format");
    let request = post_to("/tags/generate", "application/json", "{}");
    fixture.send(request).await.problem(400, "malformed_request");
    let answer = fixture.send(json(json!({"strategy": "similarity"}))).await.json();
    assert!(answer["detail"].as_str().unwrap().contains("LIBRARY"), "{answer}");
    fixture.still_answers().await;
}

#[tokio::test]
async fn tags_of_similar_photos_count() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
    let photo = |bytes: &[u8], vector: [f32; 2], tags: &str, author: Author| {
        let mut asset = NewAsset::new(ContentHash::of(bytes), author);
        asset.features = Some(Features { space: "test".into(), vector: vector.into() });
        if !tags.is_empty() {
            asset.text(Field::Tags, tags, None);
        }
        Change::Asset(Box::new(asset))
    };
    let person = || Author::person("Ann");
    let changes = vec![
        photo(&png(), [1.0, -1.0], "", person()),
        photo(&distinct(1), [1.0, -0.9], "photo\nviolin", person()),
        photo(&distinct(2), [0.9, -1.0], "Violin\nelsewhere", person()),
        // Not like it, and of a model.
        photo(&distinct(3), [-1.0, 0.9], "of", person()),
        photo(&distinct(4), [1.0, -1.0], "of", Author::model("other")),
    ];
    store.apply(changes).unwrap();
    let fixture = Fixture::build(HttpSettings::default(), 8, MemoryLimits::default());
    fixture.state.keep_in(Arc::clone(&store)).unwrap();
    fixture.state.ready(fixture.captioner.clone());
    let fields = json!({"vocabulary": words(), "strategy": "similarity", "explain": true});
    let answer = fixture.send(json(fields)).await.json();
    assert_eq!(tags(&answer, "other"), ["violin"], "{answer}");
    assert_eq!(tags(&answer, "shape"), ["photo"]);
    let violin = &answer["tags"]["other"][0];
    assert!(violin["score"].as_f64().unwrap() > 0.99, "all have it: {violin}");
    assert_eq!(violin["evidence"]["neighbours"].as_array().unwrap().len(), 2, "{violin}");

    // Everything together takes them into account.
    let score = async |fields: Value| {
        let answer = fixture.send(json(fields)).await.json();
        answer["tags"]["other"]
            .as_array()
            .unwrap()
            .iter()
            .find(|tag| tag["tag"] == "violin")
            .map(|tag| tag["score"].as_f64().unwrap())
    };
    let with = score(json!({"vocabulary": words(), "min_score": 0})).await.unwrap();
    let photo = distinct(5);
    let body = json!({"image": BASE64_STANDARD.encode(photo)});
    let mut alone = body;
    alone["vocabulary"] = words();
    alone["min_score"] = 0.into();
    let request = post_to("/tags/generate", "application/json", alone.to_string());
    let answer = fixture.send(request).await.json();
    let other = answer["tags"]["other"].as_array().unwrap();
    let without = other.iter().find(|tag| tag["tag"] == "violin").unwrap()["score"].as_f64();
    assert!(with > without.unwrap(), "{with} {without:?}");

    // A photo that the library does not have is compared by what the model sees: equal pixels.
    let mut seen = NewAsset::new(ContentHash::of(&distinct(6)), person());
    seen.features = Some(Features { space: "blake3:00".into(), vector: vec![1.0, 1.0] });
    seen.text(Field::Tags, "photo", None);
    store.apply(vec![Change::Asset(Box::new(seen))]).unwrap();
    let body = json!({
        "image": BASE64_STANDARD.encode(distinct(7)),
        "vocabulary": words(),
        "strategy": "similarity",
        "explain": true,
    });
    let request = post_to("/tags/generate", "application/json", body.to_string());
    let answer = fixture.send(request).await.json();
    assert_eq!(
        (tags(&answer, "shape"), tags(&answer, "other")),
        (vec!["photo"], vec![]),
        "{answer}"
    );
    assert_eq!(answer["tags"]["shape"][0]["evidence"]["neighbours"].as_array().unwrap().len(), 1);
    assert!(store.asset(&ContentHash::of(&distinct(7))).unwrap().is_none());
}

/// A server whose library has similar photos with tags.
fn with_neighbours(folder: &std::path::Path) -> Fixture {
    let store = open(&format!("sqlite:{}", folder.join("a.db").display())).unwrap();
    let mut changes = Vec::new();
    for (number, tags) in [(1, "photo\nviolin\nother"), (2, "red\nred square")] {
        let mut asset = NewAsset::new(ContentHash::of(&distinct(number)), Author::person("Ann"));
        // As the model sees the photo of the requests, which the library may get to know meanwhile.
        asset.features = Some(Features { space: "blake3:00".into(), vector: vec![1.0, 1.0] });
        asset.text(Field::Tags, tags, None);
        changes.push(Change::Asset(Box::new(asset)));
    }
    store.apply(changes).unwrap();
    let fixture = Fixture::build(HttpSettings::default(), 8, MemoryLimits::default());
    fixture.state.keep_in(store).unwrap();
    fixture.state.ready(fixture.captioner.clone());
    fixture
}

/// The rules, read from the answer as a client would: `violations` in the answer is not trusted.
fn check_rules(answer: &Value, categories: &[(Vec<String>, usize)], k: Option<usize>, least: f64) {
    let given = answer["tags"].as_object().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(given.len(), categories.len(), "{answer}");
    let mut seen = std::collections::HashSet::new();
    for (number, (allowed, own)) in categories.iter().enumerate() {
        let tags = given[&format!("c{number}")].as_array().unwrap();
        assert!(tags.len() <= k.unwrap_or(*own), "too many: {answer}");
        let mut before = 1.0;
        for tag in tags {
            let name = tag["tag"].as_str().unwrap();
            assert!(allowed.iter().any(|word| word == name), "{name} is not allowed: {answer}");
            assert!(seen.insert(name.to_owned()), "{name} is there twice: {answer}");
            let score = tag["score"].as_f64().unwrap();
            assert!((least..=before).contains(&score), "{answer}");
            before = score;
        }
    }
    assert_eq!(answer["violations"], 0, "{answer}");
}

#[tokio::test]
async fn every_strategy_keeps_the_rules_whatever_is_asked() {
    const WORDS: [&str; 9] =
        ["photo", "square", "of", "red", "a", "violin", "red square", "other", "squares"];
    let folder = tempfile::tempdir().unwrap();
    let fixture = with_neighbours(folder.path());
    let words = Just(WORDS.map(str::to_owned).to_vec()).prop_shuffle();
    let sizes = prop::collection::vec((1_usize..4, 1_usize..4), 1..4);
    let k = prop::option::of(1_usize..3);
    let cases =
        (words, sizes, k, prop::option::of(prop_oneof![Just(0.0), 0.0_f64..1.0]), any::<bool>());
    let mut runner = TestRunner::deterministic();
    let mut found = std::collections::HashMap::new();
    for _ in 0..32 {
        let (words, sizes, k, min_score, synonym) = cases.new_tree(&mut runner).unwrap().current();
        let mut words = words.into_iter();
        let mut categories = Vec::new();
        for (count, own) in sizes {
            categories.push((words.by_ref().take(count).collect::<Vec<String>>(), own));
        }
        categories.retain(|(tags, _)| !tags.is_empty());
        let last = words.next().filter(|_| synonym);
        let written = categories.iter().enumerate().map(|(number, (tags, own))| {
            let mut tags: Vec<Value> = tags.iter().map(|tag| json!(tag)).collect();
            if let (0, Some(word)) = (number, &last) {
                tags[0] = json!({"name": tags[0], "synonyms": [word]});
            }
            json!({"name": format!("c{number}"), "tags": tags, "k": own})
        });
        let vocabulary = json!({"categories": written.collect::<Vec<_>>()});
        for strategy in TagStrategy::ALL.map(TagStrategy::as_str) {
            let fields = json!({
                "vocabulary": vocabulary, "strategy": strategy, "k": k, "min_score": min_score,
            });
            let answer = fixture.send(json(fields)).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let answer = answer.json();
            check_rules(&answer, &categories, k, min_score.unwrap_or(0.0) - 1e-6);
            let filled = answer["coverage"]["filled"].as_u64().unwrap();
            *found.entry(strategy).or_insert(0) += filled;
        }
    }
    // No strategy keeps the rules by saying nothing.
    assert!(found.values().all(|filled| *filled > 0), "{found:?}");
}

#[tokio::test]
async fn the_weights_of_the_server_decide() {
    for (bias, count) in [(50.0, 2), (-50.0, 0)] {
        let zero = Weights { bias, likelihood: 0.0, caption: 0.0, near: 0.0, not_near: 0.0 };
        let settings = HttpSettings { tag_weights: Some(zero), ..HttpSettings::default() };
        let fixture = Fixture::build(settings, 8, MemoryLimits::default());
        fixture.state.ready(fixture.captioner.clone());
        let answer = fixture.send(json(json!({"vocabulary": words()}))).await.json();
        assert_eq!(tags(&answer, "other").len(), count, "{answer}");
    }
}

/// Tags of other programs' interfaces are words of the vocabulary as well, and as it writes them.
#[tokio::test]
async fn other_contracts_give_words_of_the_vocabulary() {
    let allowed =
        Source::parse(r#"["Squares", "violin", {"name": "Colours", "synonyms": ["red"]}]"#);
    let settings =
        HttpSettings { tag_vocabulary: Some(allowed.unwrap()), ..HttpSettings::default() };
    let fixture = Fixture::build(settings, 8, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    let image = BASE64_STANDARD.encode(png());
    let send = async |path: &str, body: Value| {
        let mut request = post_to(path, "application/json", body.to_string());
        request.headers_mut().insert("host", "127.0.0.1:8000".parse().unwrap());
        fixture.send(request).await.json()
    };
    let sorted = |list: &Value, field: &str| {
        let names = list.as_array().unwrap_or_else(|| panic!("{list}")).iter();
        let mut names: Vec<String> =
            names.map(|one| one[field].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let expected = ["Colours", "Squares"];
    let body = json!({"images": [format!("data:image/png;base64,{image}")]});
    let answer = send("/api/v1/vision/labels", body).await;
    assert_eq!(sorted(&answer["result"]["labels"], "name"), expected, "{answer}");
    let body = json!({"inputs": image, "parameters": {"top_k": 5}});
    let answer = send("/pipeline/image-classification", body).await;
    assert_eq!(sorted(&answer, "label"), expected, "{answer}");
    let body = json!({
        "model": "scripted", "prompt": "List tags for this image", "images": [image], "stream": false,
    });
    let answer = send("/api/generate", body).await;
    let mut names: Vec<&str> = answer["response"].as_str().unwrap().split(", ").collect();
    names.sort_unstable();
    assert_eq!(names, expected, "{answer}");
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "tag_image", "arguments": {"image": image}},
    });
    let answer = send("/mcp", body).await;
    let tags = &answer["result"]["structuredContent"]["tags"];
    assert_eq!(sorted(tags, "name"), expected, "{answer}");
}
