//! The contract: the committed document, the served document and the routes agree.

use std::collections::BTreeSet;
use std::path::Path;

use cutline::http::contract_json;
use serde_json::Value;

use axum::http::StatusCode;
use cutline::captioner::{MemoryLimits, Parameter};

use super::fixture::Fixture;

fn contract() -> Value {
    serde_json::from_str(contract_json()).unwrap()
}

#[test]
fn the_committed_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == contract_json(),
        "openapi.json differs from the contract; review the changes, and if they are intended run \
         `cargo run -- openapi > openapi.json`"
    );
}

/// Method and path of every operation in the contract.
pub(super) fn operations() -> BTreeSet<(String, String)> {
    let contract = contract();
    let paths = contract["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

#[test]
fn it_describes_the_endpoints_of_the_design() {
    assert_eq!(contract()["openapi"], "3.1.0");
    let expected = [
        ("GET", "/"),
        ("GET", "/admin/backends"),
        ("DELETE", "/library/assets/{hash}"),
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("PATCH", "/admin/keys/{id}"),
        ("POST", "/admin/keys/{id}/revoke"),
        ("POST", "/admin/keys/{id}/rotate"),
        ("GET", "/usage"),
        ("GET", "/library/assets"),
        ("GET", "/library/assets/{hash}"),
        ("GET", "/library/assets/{hash}/history"),
        ("GET", "/library/assets/{hash}/similar"),
        ("GET", "/library/assets/{hash}/thumbnail"),
        ("GET", "/experiments"),
        ("GET", "/experiments/{name}"),
        ("GET", "/library/duplicates"),
        ("GET", "/library/facets"),
        ("GET", "/library/feedback"),
        ("GET", "/library/jobs"),
        ("GET", "/library/runs"),
        ("GET", "/library/similar"),
        ("GET", "/library/stats"),
        ("PATCH", "/library/assets/{hash}/texts/{field}"),
        ("POST", "/library/assets/{hash}/regenerate"),
        ("POST", "/library/bulk"),
        ("POST", "/library/feedback"),
        ("POST", "/library/jobs/{run}/cancel"),
        ("POST", "/library/regenerate"),
        ("POST", "/library/runs/{run}/undo"),
        ("GET", "/api/docs/"),
        ("GET", "/api/ps"),
        ("GET", "/api/realtime"),
        ("GET", "/api/tags"),
        ("GET", "/api/version"),
        ("GET", "/health"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/info"),
        ("GET", "/metrics"),
        ("GET", "/model/info"),
        ("GET", "/openapi.json"),
        ("GET", "/prompts"),
        ("GET", "/prompts/{name}"),
        ("GET", "/prompts/{name}/diff"),
        ("GET", "/v1/models"),
        ("GET", "/vocabularies"),
        ("GET", "/vocabularies/{name}"),
        ("PATCH", "/vocabularies/{name}"),
        ("DELETE", "/vocabularies/{name}"),
        ("POST", "/vocabularies/{name}/versions"),
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/{model}"),
        ("GET", "/v2/models/{model}/config"),
        ("GET", "/v2/models/{model}/ready"),
        ("POST", "/"),
        ("POST", "/api/chat"),
        ("POST", "/api/generate"),
        ("POST", "/api/pull"),
        ("POST", "/api/show"),
        ("POST", "/api/v1/vision/caption"),
        ("POST", "/api/v1/vision/labels"),
        ("POST", "/caption/batch"),
        ("POST", "/caption/generate"),
        ("POST", "/embeddings"),
        ("POST", "/experiments"),
        ("POST", "/experiments/{name}/promote"),
        ("POST", "/experiments/{name}/stop"),
        ("POST", "/image-text/score"),
        ("POST", "/image/process"),
        ("POST", "/mcp"),
        ("POST", "/pipeline/{task}"),
        ("POST", "/predict"),
        ("POST", "/prompts/render"),
        ("POST", "/prompts/{name}/labels"),
        ("POST", "/prompts/{name}/versions"),
        ("POST", "/tags/generate"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/vqa"),
        ("POST", "/v2/models/{model}/infer"),
        ("POST", "/v2/repository/index"),
    ];
    let expected = expected.map(|(method, path)| (method.to_owned(), path.to_owned()));
    assert_eq!(operations(), BTreeSet::from(expected));
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_is_described() {
    fn references<'v>(value: &'v Value, found: &mut BTreeSet<&'v str>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    found.insert(reference);
                }
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let contract = contract();
    let mut found = BTreeSet::new();
    references(&contract, &mut found);
    assert!(found.contains("#/components/schemas/Caption"), "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(contract.pointer(pointer).is_some(), "{reference}");
    }
    for (path, item) in contract["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for what in ["summary", "operationId", "responses"] {
                assert!(!operation[what].is_null(), "{method} {path} has no {what}");
            }
        }
    }
    let text = contract_json();
    assert!(!text.contains("](") && !text.contains("[`"), "a link that only rustdoc follows");
}

#[test]
fn an_image_is_sent_in_three_ways_and_errors_have_examples() {
    let contract = contract();
    let post = &contract["paths"]["/caption/generate"]["post"];
    let ways: Vec<_> = post["requestBody"]["content"].as_object().unwrap().keys().collect();
    assert_eq!(
        ways,
        ["application/json", "application/octet-stream", "image/*", "multipart/form-data"]
    );
    let form = &contract["components"]["schemas"]["CaptionForm"];
    assert!(form["required"].is_null(), "an image or its address: {form}");
    assert_eq!(form["properties"]["image"]["format"], "binary");
    for name in ["CaptionForm", "ImageForm"] {
        let url = &contract["components"]["schemas"][name]["properties"]["image_url"];
        assert_eq!((&url["type"], &url["format"]), (&"string".into(), &"uri".into()), "{name}");
    }
    let batch = &contract["components"]["schemas"]["BatchForm"]["properties"]["image_url"];
    assert_eq!((&batch["type"], &batch["items"]["format"]), (&"array".into(), &"uri".into()));
    for (status, codes) in [
        ("400", &["malformed_request"][..]),
        ("422", &["undecodable_image", "invalid_parameter"]),
        ("429", &["queue_full"]),
        ("503", &["not_ready", "shutting_down"]),
    ] {
        let content = &post["responses"][status]["content"]["application/problem+json"];
        let examples = content["examples"].as_object().unwrap();
        for code in codes {
            assert_eq!(examples[*code]["value"]["code"], *code, "{status}");
            assert_eq!(examples[*code]["value"]["status"].to_string(), status);
        }
    }
}

#[tokio::test]
async fn it_is_served_with_a_page_to_read_it_on() {
    let fixture = Fixture::roomy(1, MemoryLimits::default());
    let answer = fixture.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.body, contract_json().as_bytes());
    let page = fixture.get("/api/docs/").await;
    assert!(page.header("content-type").starts_with("text/html"), "{:?}", page.headers);
    assert!(page.header("content-security-policy").contains("script-src 'self';"));
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(!text.contains("http://") && !text.contains("https://"), "nothing from elsewhere");
    let script = fixture.get("/api/docs/swagger-initializer.js").await;
    assert!(String::from_utf8(script.body.to_vec()).unwrap().contains("\"../../openapi.json\""));
}

#[tokio::test]
async fn a_proxy_may_serve_it_under_a_path_of_its_own() {
    let fixture = Fixture::new();
    let redirect = fixture.get("/api/docs").await;
    assert_eq!(redirect.status, StatusCode::SEE_OTHER);
    assert_eq!(redirect.header("location"), "docs/", "relative to /prefix/api/");
    assert_eq!(contract()["servers"], serde_json::json!([{"url": "."}]));
    for file in ["", "index.html", "swagger-initializer.js", "index.css"] {
        let answer = fixture.get(&format!("/api/docs/{file}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{file}");
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        for absolute in ["=\"/", "='/", ": \"/", "url(/", "url(\"/"] {
            assert!(!text.contains(absolute), "{file} has an absolute address: {text}");
        }
    }
    for path in ["/api/docs/nothing.js", "/api/docs/../../etc/passwd", "/api/docs/%FF", "/page/%FF"]
    {
        fixture.get(path).await.problem(404, "not_found");
    }
}

#[test]
fn it_says_which_values_are_accepted() {
    let contract = contract();
    let schemas = &contract["components"]["schemas"];
    let image = &schemas["CaptionRequest"]["properties"]["image"];
    assert!(image["minLength"].as_u64().unwrap() > 0, "an empty image is none: {image}");
    assert_eq!(image["type"], "string", "an image is not optional");
    let elements = &schemas["BatchRequest"]["properties"]["images"]["items"]["oneOf"];
    assert_eq!(elements[0], *image);
    assert_eq!(elements[1]["$ref"], "#/components/schemas/ImageReference");
    for by_url in ["CaptionUrlRequest", "ImageUrlRequest", "ImageReference"] {
        let url = &schemas[by_url]["properties"]["image_url"];
        assert_eq!((&url["type"], &url["format"]), (&"string".into(), &"uri".into()), "{by_url}");
        assert_eq!(schemas[by_url]["required"], serde_json::json!(["image_url"]));
        assert_eq!(schemas[by_url]["additionalProperties"], false);
    }
    for request in ["CaptionRequest", "BatchRequest"] {
        for parameter in Parameter::all() {
            let schema = &schemas[request]["properties"][parameter.name()];
            assert_eq!(schema["type"][1], "null", "{schema}");
            let choices = schema["enum"].as_array();
            assert!(choices.is_none_or(|choices| choices.contains(&Value::Null)), "{schema}");
        }
    }
    let form = &schemas["CaptionForm"]["properties"];
    assert_eq!(form["seed"]["type"], serde_json::json!(["integer", "null"]), "{form}");
    assert_eq!(form["prompt"]["type"], "string", "the text null is text: {form}");
}
