//! `/prompts…`, `/experiments…`, and templates in requests for captions.

use std::sync::Arc;

use axum::http::StatusCode;
use cutline::config::HttpSettings;
use cutline_library::{ContentHash, Store, open};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Answer, Fixture, distinct, png, post, post_to};
use super::realtime::client::{connect_to, problem};
use super::routes::listen;

/// A server with a library.
struct Server {
    fixture: Fixture,
    store: Arc<dyn Store>,
    _folder: TempDir,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("sqlite:{}", folder.path().join("a.db").display())).unwrap();
        let fixture = Fixture::loading(HttpSettings::default());
        fixture.state.keep_in(Arc::clone(&store)).unwrap();
        fixture.state.ready(fixture.captioner.clone());
        Self { fixture, store, _folder: folder }
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.fixture.send(post_to(path, "application/json", body.to_string())).await
    }

    async fn save(&self, name: &str, content: Value) -> Value {
        let path = format!("/prompts/{name}/versions");
        let answer = self.post(&path, json!({"content": content, "message": "why"})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["version"].clone()
    }

    async fn label(&self, name: &str, label: &str, version: u32) {
        let body = json!({"label": label, "version": version});
        let answer = self.post(&format!("/prompts/{name}/labels"), body).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    }

    async fn caption(&self, query: &str) -> Value {
        let answer = self.fixture.send(post(query, "image/png", png())).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }

    async fn flush(&self) {
        let state = self.fixture.state.clone();
        tokio::task::spawn_blocking(move || state.flush_library()).await.unwrap();
    }
}

#[tokio::test]
async fn versions_are_saved_labelled_compared_and_rendered() {
    let server = Server::new();
    assert_eq!(server.fixture.get("/prompts").await.json(), json!([]));
    let one = json!({"kind": "prefix", "template": "a photo of a {{ breed }}"});
    assert_eq!(server.save("dogs", one.clone()).await, 1);
    assert_eq!(server.save("dogs", one).await, 1, "the same again");
    let two = json!({"kind": "prefix", "template": "a picture of a {{ breed }}"});
    assert_eq!(server.save("dogs", two).await, 2);
    server.label("dogs", "production", 1).await;
    server.label("dogs", "production", 2).await;
    server.label("dogs", "production", 1).await;
    let shown = server.fixture.get("/prompts/dogs").await.json();
    assert_eq!(shown["prompt"]["labels"][0]["version"], 1);
    assert_eq!(shown["versions"][0]["content"]["variables"]["breed"]["type"], "text");
    let moves: Vec<&Value> =
        shown["moves"].as_array().unwrap().iter().map(|one| &one["version"]).collect();
    assert_eq!(moves, [1, 2, 1], "{shown}");
    let diff = server.fixture.get("/prompts/dogs/diff?from=production&to=2").await.json();
    assert_eq!((&diff["from"], &diff["to"]), (&json!(1), &json!(2)));
    assert!(diff["parts"].as_array().unwrap().iter().any(|part| part["text"] == "photo"), "{diff}");
    let body = json!({"template": "dogs", "variables": {"breed": "pug"}});
    assert_eq!(server.post("/prompts/render", body).await.json()["text"], "a photo of a pug");
    let chain = json!({"kind": "chain", "template": "{{ title }}!"});
    let body = json!({"content": chain, "caption": "a dog on a beach"});
    assert_eq!(server.post("/prompts/render", body).await.json()["text"], "Dog on a Beach!");
    for (path, body, status, code) in [
        (
            "/prompts/dogs/versions",
            json!({"content": {"kind": "prefix"}}),
            422,
            "invalid_parameter",
        ),
        ("/prompts/dogs/versions", json!({"content": {"kind": "x"}}), 400, "malformed_request"),
        (
            "/prompts/a%20b/versions",
            json!({"content": {"kind": "style", "style": "title"}}),
            422,
            "invalid_parameter",
        ),
        ("/prompts/cats/labels", json!({"label": "production", "version": 1}), 404, "not_found"),
        (
            "/prompts/dogs/labels",
            json!({"label": "latest", "version": 1}),
            422,
            "invalid_parameter",
        ),
        ("/prompts/render", json!({}), 422, "invalid_parameter"),
        ("/prompts/render", json!({"template": "cats"}), 404, "not_found"),
    ] {
        server.post(path, body).await.problem(status, code);
    }
    server.fixture.get("/prompts/cats").await.problem(404, "not_found");
    server.fixture.get("/prompts/dogs/diff?from=1").await.problem(422, "invalid_parameter");
}

/// As those of `/library`: programs without integers write 1.0.
#[tokio::test]
async fn whole_numbers_may_have_a_point() {
    let server = Server::new();
    for most in [40, 50] {
        let most = f64::from(most);
        server.save("alt", json!({"kind": "style", "style": "alt_text", "max_chars": most})).await;
    }
    let shown = server.fixture.get("/prompts/alt").await.json();
    assert_eq!(shown["versions"][0]["content"]["max_chars"], 50);
    let moved = json!({"label": "production", "version": 1.0});
    assert_eq!(server.post("/prompts/alt/labels", moved).await.status, StatusCode::NO_CONTENT);
    let wrong = json!({"label": "production", "version": 1.5});
    server.post("/prompts/alt/labels", wrong).await.problem(400, "malformed_request");
    let start = |planned: Value| {
        json!({
            "name": "shorter", "prompt": "alt", "planned": planned,
            "variants": [{"version": 1.0, "weight": 2.0}, {"version": 2.0, "weight": 1.0}],
        })
    };
    for wrong in [json!(-1.0), json!(0.5), json!(null)] {
        server.post("/experiments", start(wrong)).await.problem(400, "malformed_request");
    }
    let started = server.post("/experiments", start(json!(7.0))).await;
    assert_eq!((started.status, &started.json()["planned"]), (StatusCode::CREATED, &json!(7)));
    assert_eq!(started.json()["variants"][0], json!({"version": 1, "weight": 2}));
    let promote = server.post("/experiments/shorter/promote", json!({"version": 2.0})).await;
    assert_eq!(promote.status, StatusCode::NO_CONTENT, "{promote:?}");
}

#[tokio::test]
async fn without_a_library_prompts_say_that_one_is_needed() {
    let fixture = Fixture::new();
    fixture.get("/prompts").await.problem(404, "not_found");
    let answer = fixture.send(post("?template=dogs", "image/png", png())).await;
    answer.problem(422, "invalid_parameter");
    assert!(answer.json()["detail"].as_str().unwrap().contains("LIBRARY"), "{answer:?}");
    let styled = fixture.send(post("?style=title", "image/png", png())).await;
    assert_eq!(styled.status, StatusCode::OK);
}

#[tokio::test]
async fn a_caption_has_the_version_that_it_asks_for() {
    let server = Server::new();
    server.save("words", json!({"kind": "style", "style": "keywords"})).await;
    server
        .save(
            "words",
            json!({
                "kind": "chain", "template": "{{ name }}: {{ caption }}",
            }),
        )
        .await;
    server.label("words", "production", 1).await;
    let plain = server.caption("").await;
    let styled = server.caption("?style=keywords").await;
    let first = server.caption("?template=words").await;
    assert_eq!((&first["template"], &first["caption"]), (&json!("words:1"), &styled["caption"]));
    let chain = "?template=words:2&variables=%7B%22name%22%3A%22Rex%22%7D";
    let second = server.caption(chain).await;
    let caption = plain["caption"].as_str().unwrap();
    assert_eq!(second["caption"], format!("Rex: {caption}"));
    // Versions never share an answer, and the same one is found again.
    assert_eq!((&first["cache"], &second["cache"]), (&json!("miss"), &json!("miss")));
    assert_eq!(server.caption(chain).await["cache"], "hit");
    assert!(plain.get("template").is_none());
    // As JSON, with an object; and in a batch.
    let image = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, png());
    let asked = json!({"image": image, "template": "words:2", "variables": {"name": "Tom"}});
    let answer = server.post("/caption/generate", asked).await.json();
    assert_eq!(answer["caption"], format!("Tom: {caption}"), "{answer}");
    let asked = json!({"images": [image], "template": "words:2", "variables": {"name": "Tom"}});
    let answer = server.post("/caption/batch", asked).await.json();
    assert_eq!(answer["results"][0]["caption"], format!("Tom: {caption}"), "{answer}");
    for (query, field) in [
        ("?template=cats", "template"),
        ("?template=words@staging", "template"),
        ("?template=words:9", "template"),
        ("?template=words:2", "variables"),
        ("?template=words:2&variables=1", "variables"),
        ("?template=a+b", "template"),
        ("?variables=%7B%7D", "variables"),
        ("?user=kim", "user"),
    ] {
        let answer = server.fixture.send(post(query, "image/png", png())).await;
        answer.problem(422, "invalid_parameter");
        assert_eq!(answer.json()["field"], field, "{query}");
    }
    let streamed =
        server.fixture.send(post(&format!("{chain}&stream=true"), "image/png", png())).await;
    let text = String::from_utf8_lossy(&streamed.body).into_owned();
    assert!(text.contains(&format!("Rex: {caption}")), "{text}");
}

/// The parameters of a request are those of a message too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_with_variables_goes_over_the_websocket() {
    let server = Server::new();
    let chain = json!({"kind": "chain", "template": "{{ name }} and {{ photo.name or 'x' }}: {{ caption }}"});
    server.save("words", chain).await;
    server.save("words", json!({"kind": "style", "style": "title"})).await;
    server.label("words", "production", 1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving =
        cutline::http::serve(listener, server.fixture.state.clone(), std::future::pending());
    tokio::spawn(serving);
    let mut client = connect_to(address, &[]).await.unwrap().0;
    let caption = server.caption("").await["caption"].as_str().unwrap().to_owned();
    let asked = json!({"template": "words", "variables": {"name": "Rex"}});
    client.caption("text", &png(), asked.clone()).await;
    let done = client.last("text").await;
    assert_eq!(done["result"]["caption"], format!("Rex and x: {caption}"), "{done}");
    assert_eq!(done["result"]["template"], "words:1");
    // In a binary message, with a string as in forms; the same answer is found again.
    let mut head = json!({"type": "caption", "id": "binary"});
    head["template"] = json!("words");
    head["variables"] = json!(r#"{"name": "Rex"}"#);
    client.binary(&head, &png()).await;
    let done = client.last("binary").await;
    assert_eq!(done["result"]["caption"], format!("Rex and x: {caption}"), "{done}");
    assert_eq!(done["result"]["cache"], "hit");
    client.caption("other", &png(), json!({"template": "words@latest"})).await;
    let done = client.last("other").await;
    assert_eq!(done["result"]["template"], "words:2", "{done}");
    for (id, asked, field) in [
        ("missing", json!({"template": "words"}), "variables"),
        ("unknown", json!({"template": "words", "variables": {"name": 1, "x": 2}}), "variables"),
        ("nobody", json!({"template": "cats"}), "template"),
        ("alone", json!({"variables": {"name": "Rex"}}), "variables"),
    ] {
        client.caption(id, &png(), asked).await;
        let refusal = problem(&client.last(id).await, Some(id), 422, "invalid_parameter");
        assert_eq!(refusal["field"], field, "{refusal}");
    }
    // Both messages are exposures of the version in the history of the photo.
    server.flush().await;
    let history = server.store.history(&ContentHash::of(&png())).unwrap().unwrap();
    assert!(history.iter().any(|one| one.text == format!("Rex and x: {caption}")), "{history:?}");
}

#[tokio::test]
async fn long_prefixes_are_refused() {
    let server = Server::new();
    server.save("long", json!({"kind": "prefix", "template": "{{ a }}"})).await;
    let words = "a ".repeat(40);
    let asked = json!({
        "image": base64::Engine::encode(&base64::prelude::BASE64_STANDARD, png()),
        "template": "long:1",
        "variables": {"a": words},
    });
    let answer = server.post("/caption/generate", asked).await;
    answer.problem(422, "invalid_parameter");
    assert_eq!(answer.json()["field"], "template", "{answer:?}");
}

#[tokio::test]
async fn an_experiment_logs_its_captions_and_ends() {
    let server = Server::new();
    server.save("alt", json!({"kind": "style", "style": "alt_text"})).await;
    server.save("alt", json!({"kind": "style", "style": "alt_text", "max_chars": 20})).await;
    server.label("alt", "production", 1).await;
    let start = json!({
        "name": "shorter", "prompt": "alt", "planned": 1, "unit": "photo", "metric": "confidence",
        "variants": [{"version": 1, "weight": 1}, {"version": 2, "weight": 1}],
    });
    let started = server.post("/experiments", start.clone()).await;
    assert_eq!(started.status, StatusCode::CREATED, "{started:?}");
    server.post("/experiments", start).await.problem(412, "precondition_failed");
    let one = server.caption("?template=alt").await;
    assert_eq!(one["experiment"], "shorter");
    assert_eq!(server.caption("?template=alt").await["template"], one["template"], "sticky");
    assert!(server.caption("?template=alt:1").await.get("experiment").is_none());
    server.flush().await;
    let found = server.fixture.get("/experiments/shorter").await.json();
    let exposures = |found: &Value| -> u64 {
        found["report"]["arms"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arm| arm["exposures"].as_u64().unwrap())
            .sum()
    };
    assert_eq!(exposures(&found), 2, "{found}");
    assert_eq!(found["report"]["verdict"]["verdict"], "too_early");
    let hash = ContentHash::of(&png());
    let history = server.store.history(&hash).unwrap().unwrap();
    assert!(history.iter().any(|one| one.experiment.as_deref() == Some("shorter")), "{history:?}");
    let promote = server.post("/experiments/shorter/promote", json!({"version": 2})).await;
    assert_eq!(promote.status, StatusCode::NO_CONTENT, "{promote:?}");
    let after = server.caption("?template=alt").await;
    assert!(after["template"] == "alt:2" && after.get("experiment").is_none(), "{after}");
    let ended = server.fixture.get("/experiments").await.json();
    assert!(ended[0]["stopped_at"].is_u64() && ended[0]["promoted"] == 2, "{ended}");
    let stop = server.post("/experiments/shorter/stop", json!({})).await;
    assert_eq!(stop.status, StatusCode::NO_CONTENT);
    server.post("/experiments/none/stop", json!({})).await.problem(404, "not_found");
    let wrong = json!({"name": "x", "prompt": "alt", "planned": 1, "variants": [{"version": 1, "weight": 1}]});
    server.post("/experiments", wrong).await.problem(422, "invalid_parameter");
}

/// What an upstream costs decides an experiment; what a model in this process costs is not known.
#[tokio::test]
async fn an_experiment_knows_what_captions_of_routes_cost() {
    let server = Server::new();
    let other = Fixture::roomy(8, cutline::captioner::MemoryLimits::default());
    let address = listen(&other).await;
    server.fixture.route(&format!(
        "[[backend]]\nname = \"other\"\nkind = \"openai\"\nbase_url = \"{address}\"\nmodel = \"scripted\"\n\
         price = {{ per_image = 0.25 }}\n[[route]]\nname = \"far\"\nbackends = [[\"other\"]]\n"
    ));
    for words in ["Describe it.", "Describe it in a word."] {
        server.save("tell", json!({"kind": "instruction", "template": words})).await;
    }
    server.label("tell", "production", 1).await;
    let start = json!({
        "name": "words", "prompt": "tell", "planned": 2, "unit": "photo", "metric": "cost",
        "variants": [{"version": 1, "weight": 1}, {"version": 2, "weight": 1}],
    });
    assert_eq!(server.post("/experiments", start).await.status, StatusCode::CREATED);
    let mut paid = 0.0;
    for (number, model) in
        (0..12).map(|number| (number, if number < 9 { "far" } else { "scripted" }))
    {
        let query = format!("?template=tell&model={model}");
        let answer = server.fixture.send(post(&query, "image/png", distinct(number))).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        paid += answer.json()["routing"]["cost"].as_f64().unwrap_or(0.0);
    }
    assert!((paid - 9.0 * 0.25).abs() < 1e-9, "{paid}");
    // From the cache: nothing is paid, and the caption counts.
    let again =
        server.fixture.send(post("?template=tell&model=far", "image/png", distinct(0))).await;
    assert_eq!(again.json()["routing"]["cost"], 0.0, "{again:?}");
    server.flush().await;
    let found = server.fixture.get("/experiments/words").await.json();
    let arms = found["report"]["arms"].as_array().unwrap();
    let sum = |read: fn(&Value) -> f64| arms.iter().map(read).sum::<f64>();
    assert_eq!(sum(|arm| arm["exposures"].as_f64().unwrap()), 13.0, "{found}");
    assert_eq!(sum(|arm| arm["cost"]["n"].as_f64().unwrap()), 10.0, "{found}");
    let total = |arm: &Value| {
        arm["cost"]["n"].as_f64().unwrap() * arm["cost"]["mean"].as_f64().unwrap_or(0.0)
    };
    assert!((sum(total) - paid).abs() < 1e-9, "{found}");
    assert_eq!(found["report"]["metric"], "cost");
    assert_eq!(found["report"]["verdict"]["verdict"], "no_difference", "{found}");
}
