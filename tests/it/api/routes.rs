//! Several models in one server, routes over them, and another server as a backend.

use axum::http::StatusCode;
use cutline::captioner::{CaptionParams, Captioner, CaptionerSettings, MemoryLimits, Photo};
use cutline::engine::source::ModelSource;
use cutline::routing::RoutingSettings;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::fixture::{Fixture, distinct, form_bytes, png, post, post_to};
use super::metrics::ROUTES;

fn roomy() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn chat(model: &str) -> String {
    use base64::Engine as _;
    let image = base64::engine::general_purpose::STANDARD.encode(png());
    let content =
        json!([{"type": "image_url", "image_url": {"url": format!("data:;base64,{image}")}}]);
    json!({"model": model, "messages": [{"role": "user", "content": content}]}).to_string()
}

fn names(list: &Value, field: &str) -> Vec<String> {
    let names = list.as_array().unwrap().iter();
    names.map(|one| one[field].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_request_chooses_a_model_by_its_name_and_lists_show_all() {
    let (server, second) = (roomy(), roomy());
    server.route_with(ROUTES, vec![("second".to_owned(), second.captioner.clone())]);
    let finished = |captioner: &Captioner| captioner.status().finished;
    for query in ["?model=second", "?model=second:latest"] {
        let answer = server.send(post(query, "image/png", distinct(query.len() as u32))).await;
        assert_eq!(answer.json()["caption"], "a red square", "{answer:?}");
        assert!(answer.json().get("routing").is_none(), "no route was asked");
    }
    let form = form_bytes(&[("; name=\"image\"", &png()), ("; name=\"model\"", b"second")]);
    let form = post("", "multipart/form-data; boundary=line", form);
    assert_eq!(server.send(form).await.status, StatusCode::OK);
    let reply =
        server.send(post_to("/v1/chat/completions", "application/json", chat("second"))).await;
    assert_eq!(reply.json()["model"], "second", "{reply:?}");
    assert!(finished(&second.captioner) >= 3);
    assert_eq!(finished(&server.captioner), 0);
    for query in ["", "?model=scripted", "?model=scripted:latest"] {
        assert_eq!(
            server.send(post(query, "image/png", png())).await.json()["caption"],
            "a red square"
        );
    }
    assert_eq!(finished(&server.captioner), 1, "answers of the other model are not this one's");
    server.send(post("?model=third", "image/png", png())).await.problem(404, "model_not_found");

    let tag = async |model: &str| {
        let query = format!("/tags/generate?strategy=caption&vocabulary=red{model}");
        server.send(post_to(&query, "image/png", distinct(77))).await
    };
    let before = finished(&second.captioner);
    assert_eq!(tag("&model=second").await.json()["tags"]["tags"][0]["tag"], "red");
    assert!(finished(&second.captioner) > before && finished(&server.captioner) == 1);
    assert_eq!(tag("").await.json()["tags"]["tags"][0]["tag"], "red");
    assert_eq!(finished(&server.captioner), 2);
    tag("&model=third").await.problem(404, "model_not_found");
    // A route is no model of this process, whose likelihoods could be asked.
    tag("&model=best").await.problem(404, "model_not_found");

    let models = server.get("/v1/models").await.json();
    assert_eq!(names(&models["data"], "id"), ["scripted", "second", "best"]);
    let models = server.get("/api/tags").await.json();
    let tagged = ["scripted:latest", "second:latest", "best:latest"];
    assert_eq!(names(&models["models"], "name"), tagged);
    assert_eq!(server.get("/v1/models/best").await.json()["id"], "best");
    assert_eq!(server.get("/v2/models/second").await.json()["name"], "second");
    assert_eq!(names(&server.get("/model/info").await.json()["others"], "name"), ["second"]);
    assert_eq!(names(&server.get("/health").await.json()["models"], "name"), ["second"]);
}

#[tokio::test]
async fn a_server_without_routes_answers_as_before() {
    let server = roomy();
    let answer = server.send(post("", "image/png", png())).await;
    assert!(answer.json().get("routing").is_none());
    assert_eq!(answer.header("x-cutline-backend"), "");
    assert_eq!(server.get("/admin/backends").await.json(), json!({"backends": [], "routes": []}));
    assert!(server.get("/model/info").await.json().get("others").is_none());
    server.send(post("?model=best", "image/png", png())).await.problem(404, "model_not_found");
}

#[tokio::test]
async fn another_backend_answers_and_the_answer_and_the_board_say_so() {
    let server = roomy();
    server.route(&ROUTES.replace("name = \"best\"", "name = \"best\"\nmatch = { default = true }"));
    let answer = server.send(post("", "image/png", png())).await;
    assert_eq!(answer.json()["caption"], "a red square", "{answer:?}");
    assert_eq!(answer.header("x-cutline-backend"), "here");
    assert_eq!(answer.header("x-cutline-attempts"), "2");
    let expected = json!({
        "route": "best", "backend": "here", "attempts": 2, "fallback": true, "reason": "connect",
        "sent_to": [], "cost": 0.01,
    });
    assert_eq!(answer.json()["routing"], expected);
    let board = server.get("/admin/backends").await.json();
    assert_eq!(board["routes"][0]["tiers"], json!([["away"], ["here"]]));
    let [away, here] = [&board["backends"][0], &board["backends"][1]];
    assert_eq!((&away["failed"], &away["last_failure"]), (&json!(1), &json!("connect")));
    assert_eq!((&here["answered"], &here["privacy"]), (&json!(1), &json!("local")));
    // The model's own name means the model.
    let own = server.send(post("?model=scripted", "image/png", png())).await;
    assert!(own.json().get("routing").is_none(), "{own:?}");
    // The other interfaces go the same way.
    let reply =
        server.send(post_to("/v1/chat/completions", "application/json", chat("best"))).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "a red square", "{reply:?}");
    assert_eq!(
        (reply.json()["model"].as_str(), reply.header("x-cutline-backend")),
        (Some("best"), "here")
    );
    let batch =
        form_bytes(&[("; name=\"images\"", &distinct(1)), ("; name=\"images\"", &distinct(2))]);
    let batch = post_to("/caption/batch", "multipart/form-data; boundary=line", batch);
    let batch = server.send(batch).await.json();
    assert_eq!(batch["summary"]["ok"], 2, "{batch}");
    assert_eq!(batch["results"][1]["routing"]["backend"], "here");
    // After five failures in a row it is not even asked.
    for number in 3..8 {
        server.send(post("", "image/png", distinct(number))).await;
    }
    let board = server.get("/admin/backends").await.json();
    assert_eq!(board["backends"][0]["state"], "open");
    let answer = server.send(post("", "image/png", distinct(9))).await;
    assert_eq!(answer.header("x-cutline-attempts"), "1");
}

#[tokio::test]
async fn a_stream_that_nobody_can_answer_has_a_status_of_its_own() {
    let server = roomy();
    server.route(&ROUTES.replace("[[\"away\"], [\"here\"]]", "[[\"away\"]]"));
    let query = "?model=best&stream=true";
    server.send(post(query, "image/png", png())).await.problem(503, "not_ready");
    server
        .send(post(query, "image/png", b"no image".to_vec()))
        .await
        .problem(415, "unsupported_format");
    let events = server.send(post("?model=scripted&stream=true", "image/png", png())).await;
    assert!(String::from_utf8_lossy(&events.body).contains("event: done"), "{events:?}");
}

/// A server with this fixture's model, on a port of its own.
pub(super) async fn listen(fixture: &Fixture) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = fixture.app();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

#[tokio::test]
async fn another_cutline_is_a_backend_in_both_protocols() {
    let other = roomy();
    let address = listen(&other).await;
    for kind in ["openai", "ollama"] {
        let server = roomy();
        server.route(&format!(
            "[[backend]]\nname = \"other\"\nkind = \"{kind}\"\nbase_url = \"{address}\"\n\
             model = \"scripted\"\n[[route]]\nname = \"far\"\nbackends = [[\"other\"]]\n"
        ));
        let answer = server.send(post("?model=far&cache=bypass", "image/png", png())).await;
        let caption = answer.json();
        assert_eq!(caption["caption"], "a red square", "{kind}: {answer:?}");
        assert_eq!(caption["model"].as_str().unwrap().trim_end_matches(":latest"), "scripted");
        assert_eq!(
            (&caption["image"]["width"], &caption["image"]["format"]),
            (&json!(40), &json!("png"))
        );
        assert!(caption["captions"][0]["confidence"].is_null() && caption["colors"].is_array());
        let events = server.send(post("?model=far&stream=true", "image/png", png())).await;
        assert_eq!(events.header("x-cutline-backend"), "other");
        let events = String::from_utf8_lossy(&events.body).into_owned();
        assert!(
            events.contains("event: done") && events.contains("\"backend\":\"other\""),
            "{events}"
        );
        let text = server.send(post("?model=far&style=alt_text", "image/png", png())).await;
        assert_eq!(text.json()["caption"], "a red square", "{text:?}");
        assert_eq!(server.captioner.status().finished, 0, "its own model had nothing to do");
    }
    assert!(other.captioner.status().finished > 0);
}

#[tokio::test]
async fn models_that_do_not_fit_are_refused_and_those_that_do_keep_their_answers_apart() {
    let settings = CaptionerSettings::default();
    let mut routing = RoutingSettings {
        models: vec![("again".to_owned(), ModelSource::Embedded)],
        max_weight_bytes: Some(1),
        ..RoutingSettings::default()
    };
    let error = cutline::routing::load(&settings, &routing).unwrap_err();
    assert!(error.detail().contains("MAX_MODEL_BYTES leaves 1"), "{error}");
    let main = Captioner::load(&settings).unwrap();
    let bytes = main.info().weight_bytes;
    assert!(bytes > 1_000_000, "{bytes}");
    routing.max_weight_bytes = Some(2 * bytes - 1);
    let error = cutline::routing::load(&settings, &routing).unwrap_err();
    assert!(error.detail().starts_with("the model 'again': "), "{error}");
    routing.max_weight_bytes = Some(2 * bytes);
    let both = cutline::routing::load(&settings, &routing).unwrap().captioner;
    for (model, cache) in
        [(None, "miss"), (Some("again"), "miss"), (Some("again"), "hit"), (None, "hit")]
    {
        let params = CaptionParams { model: model.map(str::to_owned), ..CaptionParams::default() };
        let caption = both.caption(Photo::from(png()), params).await.unwrap();
        assert_eq!(caption.cache.as_str(), cache, "{model:?}");
    }
}
