//! `/vocabularies…`, and their use in requests for tags.

use std::sync::Arc;

use axum::http::StatusCode;
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use cutline::tags::Source;
use cutline_library::{Store, open};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Answer, Fixture, png, post_to};

/// A server with a library.
struct Server {
    fixture: Fixture,
    store: Arc<dyn Store>,
    _folder: TempDir,
}

impl Server {
    fn new(settings: HttpSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
        let fixture = Fixture::build(settings, 8, MemoryLimits::default());
        fixture.state.keep_in(Arc::clone(&store)).unwrap();
        fixture.state.ready(fixture.captioner.clone());
        Self { fixture, store, _folder: folder }
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let mut request = post_to(path, "application/json", body.to_string());
        *request.method_mut() = method.parse().unwrap();
        self.fixture.send(request).await
    }

    async fn save(&self, vocabulary: Value) -> Value {
        let body = json!({"vocabulary": vocabulary, "message": "why"});
        let answer = self.send("POST", "/vocabularies/shop/versions", &body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["version"].clone()
    }

    /// The answer to a request for tags by captions.
    async fn tag(&self, query: &str) -> Answer {
        let path = format!("/tags/generate?strategy=caption{query}");
        self.fixture.send(post_to(&path, "image/png", png())).await
    }

    /// The vocabulary that was used, and the tags of the category `tags`.
    async fn tagged(&self, query: &str) -> (String, Vec<String>) {
        let answer = self.tag(query).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let answer = answer.json();
        let tags = answer["tags"]["tags"].as_array().unwrap().iter();
        (
            answer["vocabulary"].as_str().unwrap_or_default().to_owned(),
            tags.map(|tag| tag["tag"].as_str().unwrap().to_owned()).collect(),
        )
    }
}

#[tokio::test]
async fn versions_are_saved_chosen_used_and_removed() {
    let server = Server::new(HttpSettings::default());
    assert_eq!(server.fixture.get("/vocabularies").await.json(), json!([]));
    assert_eq!(server.save(json!(["red"])).await, 1);
    assert_eq!(server.save(json!("square: box\nviolin")).await, 2, "lines of text");
    assert_eq!(server.save(json!("square:  box\nviolin")).await, 2, "the same again");
    let shop = |version: u32, tag: &str| (format!("library:shop:{version}"), vec![tag.to_owned()]);
    assert_eq!(server.tagged("&vocabulary=library:shop").await, shop(2, "square"));
    assert_eq!(server.tagged("&vocabulary=library:shop:1").await, shop(1, "red"));
    let chosen = server.send("PATCH", "/vocabularies/shop", &json!({"current": 1.0})).await;
    assert_eq!(chosen.status, StatusCode::NO_CONTENT, "{chosen:?}");
    assert_eq!(server.tagged("&vocabulary=library:shop").await, shop(1, "red"));
    // In a form and in JSON as well.
    let image = {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(png())
    };
    let body = json!({"image": image, "vocabulary": "library:shop:2", "strategy": "caption"});
    let answer = server.send("POST", "/tags/generate", &body).await.json();
    assert_eq!(answer["vocabulary"], "library:shop:2", "{answer}");

    let shown = server.fixture.get("/vocabularies/shop").await.json();
    let vocabulary = &shown["vocabulary"];
    assert_eq!((&vocabulary["latest"], &vocabulary["current"]), (&2.into(), &1.into()));
    assert_eq!((&shown["version"], &shown["versions"][0]["version"]), (&1.into(), &2.into()));
    assert_eq!(shown["versions"][0]["message"], "why");
    let second = server.fixture.get("/vocabularies/shop?version=2").await.json();
    let square = json!([{"name": "square", "synonyms": ["box"]}, "violin"]);
    assert_eq!(second["content"]["categories"][0]["tags"], square);
    // What is read can be saved again, and says the same.
    assert_eq!(server.save(second["content"].clone()).await, 2);
    let list = server.fixture.get("/vocabularies").await.json();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &"shop".into()));

    let removed = server.send("DELETE", "/vocabularies/shop", &Value::Null).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{removed:?}");
    server.tag("&vocabulary=library:shop").await.problem(404, "not_found");
    assert_eq!(server.save(json!(["a"])).await, 3);
    assert_eq!(server.tagged("&vocabulary=library:shop").await, shop(3, "a"));
    server.tag("&vocabulary=library:shop:1").await.problem(404, "not_found");
}

#[tokio::test]
async fn what_is_wrong_or_missing_is_refused() {
    let server = Server::new(HttpSettings::default());
    server.save(json!(["red"])).await;
    let save = "/vocabularies/shop/versions";
    for (method, path, body, status, code) in [
        ("POST", save, json!({"vocabulary": []}), 422, "invalid_parameter"),
        ("POST", save, json!({"vocabulary": 7}), 422, "invalid_parameter"),
        ("POST", save, json!({"vocabulary": "dog\ndog"}), 422, "invalid_parameter"),
        ("POST", save, json!({"message": "why"}), 400, "malformed_request"),
        ("POST", save, json!({"vocabulary": ["a"], "name": "b"}), 400, "malformed_request"),
        (
            "POST",
            "/vocabularies/a%20b/versions",
            json!({"vocabulary": ["a"]}),
            422,
            "invalid_parameter",
        ),
        ("PATCH", "/vocabularies/shop", json!({"current": 2}), 404, "not_found"),
        ("PATCH", "/vocabularies/none", json!({"current": 1}), 404, "not_found"),
        ("PATCH", "/vocabularies/shop", json!({"current": 1.5}), 400, "malformed_request"),
        ("DELETE", "/vocabularies/none", Value::Null, 404, "not_found"),
    ] {
        server.send(method, path, &body).await.problem(status, code);
    }
    for (path, status, code) in [
        ("/vocabularies/none", 404, "not_found"),
        ("/vocabularies/shop?version=2", 404, "not_found"),
        ("/vocabularies/shop?version=x", 422, "invalid_parameter"),
        ("/vocabularies/shop?k=2", 422, "invalid_parameter"),
    ] {
        server.fixture.get(path).await.problem(status, code);
    }
    server.tag("&vocabulary=library:").await.problem(422, "invalid_parameter");
    let without = Fixture::new();
    let request = post_to("/tags/generate?vocabulary=library:shop", "image/png", png());
    let problem = without.send(request).await.problem(422, "invalid_parameter");
    assert_eq!(problem["field"], "vocabulary");
    assert!(problem["detail"].as_str().unwrap().contains("LIBRARY"), "{problem}");
}

#[tokio::test]
async fn the_server_may_use_one_of_its_library() {
    let source = Source::parse("library:shop").unwrap();
    let settings = HttpSettings { tag_vocabulary: Some(source), ..HttpSettings::default() };
    let server = Server::new(settings);
    let problem = server.tag("").await.problem(404, "not_found");
    assert!(problem["detail"].as_str().unwrap().contains("shop"), "{problem}");
    server.save(json!(["red", "violin"])).await;
    assert_eq!(server.tagged("").await.0, "library:shop:1");
    server.save(json!(["square"])).await;
    assert_eq!(server.tagged("").await, ("library:shop:2".into(), vec!["square".into()]));
    let own = server.tagged("&vocabulary=red").await;
    assert_eq!(own, (String::new(), vec!["red".into()]), "that of the request counts");
    assert_eq!(server.store.vocabularies().unwrap()[0].current, 2);
}
