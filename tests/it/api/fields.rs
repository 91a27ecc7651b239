//! JSON and query strings as different clients write them.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use cutline::captioner::MemoryLimits;
use serde_json::{Value, json};

use super::fixture::{Fixture, form, json as fields, png, post, post_to};
use super::uploads::refuse;

fn encoded() -> String {
    BASE64_STANDARD.encode(png())
}

fn text(body: impl Into<Body>) -> Request<Body> {
    post("", "application/json", body)
}

/// An image and one more field, which is written as it is.
fn with(field: &str) -> Request<Body> {
    text(format!("{{\"image\": \"{}\", {field}}}", encoded()))
}

#[tokio::test]
async fn null_means_not_given() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let nulls: serde_json::Map<String, Value> = cutline::captioner::Parameter::all()
        .iter()
        .map(|parameter| (parameter.name().to_owned(), Value::Null))
        .collect();
    let mut body = Value::Object(nulls.clone());
    body["image"] = encoded().into();
    let answer = fixture.send(fields(&body)).await;
    assert_eq!(answer.json()["caption"], "a red square", "{answer:?}");
    let mut body = Value::Object(nulls);
    body["images"] = json!([encoded()]);
    let answer =
        fixture.send(post_to("/caption/batch", "application/json", body.to_string())).await;
    assert_eq!(answer.json()["results"][0]["caption"], "a red square", "{answer:?}");
    let answer = fixture.send(with("\"seed\": null, \"seed\": 2")).await;
    assert_eq!(answer.problem(422, "invalid_parameter")["field"], "seed");

    let answer =
        fixture.send(post("?seed=null&cache=null&max_new_tokens=2", "image/png", png())).await;
    assert_eq!(answer.json()["caption"], "a red", "{answer:?}");
    let image = ("; name=\"image\"", &*png());
    let answer = fixture.send(form(&[image, ("; name=\"seed\"", b"null")])).await;
    assert_eq!(answer.json()["caption"], "a red square", "{answer:?}");

    fixture.send(fields(&json!({"image": null}))).await.problem(400, "malformed_request");
    let batch = |images: Value| {
        post_to("/caption/batch", "application/json", json!({"images": images}).to_string())
    };
    fixture.send(batch(Value::Null)).await.problem(400, "malformed_request");
    let answer = fixture.send(batch(json!([encoded(), null]))).await;
    assert_eq!(answer.json()["results"][1]["error"]["code"], "malformed_request", "{answer:?}");
    let answer = fixture.send(with("\"beams\": null")).await;
    assert_eq!(answer.problem(422, "invalid_parameter")["field"], "beams");
}

#[tokio::test]
async fn numbers_are_read_as_numbers() {
    let fixture = Fixture::new();
    for field in [
        "\"max_new_tokens\": 2.0",
        "\"max_new_tokens\": 2e0",
        "\"max_new_tokens\": 20E-1",
        "\"max_new_tokens\": 2, \"min_new_tokens\": -0, \"top_k\": -0.0",
        "\"max_new_tokens\": 2, \"seed\": 18446744073709551615",
        "\"max_new_tokens\": 2, \"temperature\": 1",
    ] {
        let answer = fixture.send(with(field)).await;
        assert_eq!(answer.status, StatusCode::OK, "{field}: {answer:?}");
        assert_eq!(answer.json()["caption"], "a red", "{field}");
    }
    let invalid = "invalid_parameter";
    refuse(vec![
        ("a fraction", with("\"num_beams\": 1.5"), 422, invalid, Some("num_beams")),
        ("beyond u64", with("\"seed\": 18446744073709551616"), 422, invalid, Some("seed")),
        ("a large exponent", with("\"num_beams\": 1e400"), 422, invalid, Some("num_beams")),
        ("infinite", with("\"temperature\": 1e400"), 422, invalid, Some("temperature")),
        ("infinite", with("\"prompt\": -1e999"), 422, invalid, Some("prompt")),
        ("beyond f32", with("\"length_penalty\": 1e39"), 422, invalid, Some("length_penalty")),
        (
            "many digits",
            with(&format!("\"seed\": {}", "9".repeat(10_000))),
            422,
            invalid,
            Some("seed"),
        ),
        ("NaN", with("\"temperature\": NaN"), 400, "malformed_request", None),
        ("NaN", post("?temperature=NaN", "image/png", png()), 422, invalid, Some("temperature")),
        (
            "1e400",
            post("?temperature=1e400", "image/png", png()),
            422,
            invalid,
            Some("temperature"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_mark_at_the_start_of_json_is_skipped() {
    let fixture = Fixture::new();
    let body = json!({"image": encoded()}).to_string();
    let answer = fixture.send(text([b"\xEF\xBB\xBF", body.as_bytes()].concat())).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    for twice in [[b"\xEF\xBB\xBF\xEF\xBB\xBF", body.as_bytes()].concat(), vec![0xEF, 0xBB, 0xBF]] {
        fixture.send(text(twice)).await.problem(400, "malformed_request");
    }
}

#[tokio::test]
async fn data_uris_are_read_as_browsers_read_them() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let standard = encoded();
    let percent: String = standard.replace('+', "%2B").replace('/', "%2f").replace('=', "%3D");
    let bytes: String = png().iter().map(|byte| format!("%{byte:02X}")).collect();
    let lines: Vec<&str> =
        standard.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap()).collect();
    for uri in [
        format!("data:image/png;base64,{percent}"),
        format!("DATA:image/png;Base64,{standard}"),
        format!("  data:;base64,{}", lines.join("\r\n ")),
        format!("data:image/png;charset=utf-8;name=a.png;base64,{}", lines.join("%0A")),
        format!("data:image/png;base64,{}", BASE64_URL_SAFE_NO_PAD.encode(png())),
        format!("data:image/png,{bytes}"),
        format!("data:image/jpeg;base64,{standard}#top"),
        lines.join("\n"),
    ] {
        let answer = fixture.send(fields(&json!({"image": uri}))).await;
        assert_eq!(answer.status, StatusCode::OK, "{uri}: {answer:?}");
        let body = json!({"images": [uri]}).to_string();
        let answer = fixture.send(post_to("/caption/batch", "application/json", body)).await;
        assert_eq!(answer.json()["summary"]["ok"], 1, "{uri}: {answer:?}");
    }
}

#[tokio::test]
async fn fields_of_another_endpoint_are_named() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let batch = |body: Value| post_to("/caption/batch", "application/json", body.to_string());
    let detail = async |request: Request<Body>, field: &str| {
        let problem = fixture.send(request).await.problem(422, "invalid_parameter");
        assert_eq!(problem["field"], field, "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    for field in ["images", "files"] {
        let told = detail(fields(&json!({field: [encoded()]})), field).await;
        assert!(told.contains("in the field image,") && told.contains("/caption/batch"), "{told}");
    }
    for field in ["image", "file"] {
        let told = detail(batch(json!({field: encoded()})), field).await;
        assert!(
            told.contains("in the field images,") && told.contains("/caption/generate"),
            "{told}"
        );
    }
    let told = detail(fields(&json!({"img": encoded()})), "img").await;
    assert!(told.contains("send the image in the field image"), "{told}");
    let told = detail(post("?image=x", "image/png", png()), "image").await;
    assert!(told.contains("in the body"), "{told}");
    let told = detail(post_to("/image/process?seed=1", "image/png", png()), "seed").await;
    assert!(told.contains("in the body"), "{told}");
    let twice = format!("{{\"images\": [\"{0}\"], \"images\": [\"{0}\"]}}", encoded());
    detail(post_to("/caption/batch", "application/json", twice), "images").await;
    let twice = format!("{{\"image\": \"{0}\", \"image\": \"{0}\"}}", encoded());
    detail(text(twice), "image").await;
}

#[tokio::test]
async fn text_that_is_not_unicode_is_refused() {
    let invalid = "invalid_parameter";
    let query = |query: &str| post(query, "image/png", png());
    refuse(vec![
        ("half a pair", with("\"prompt\": \"a \\uD83D b\""), 422, invalid, Some("prompt")),
        ("half a pair in a name", with("\"\\uDC00\": 1"), 400, "malformed_request", None),
        ("bytes", query("?prompt=a%FFb"), 422, invalid, Some("prompt")),
        ("a cut character", query("?prompt=%C3"), 422, invalid, Some("prompt")),
        ("a surrogate", query("?prompt=%ED%A0%80"), 422, invalid, Some("prompt")),
        ("a name", query("?%FF=1"), 422, invalid, Some("%FF=1")),
        ("many", query(&format!("?{}", "seed=1&".repeat(5000))), 422, invalid, Some("seed")),
        ("many", query(&format!("?{}", "a=1&".repeat(10_000))), 422, invalid, Some("a")),
    ])
    .await;
    let fixture = Fixture::new();
    for query in ["?prompt=photo%20of", "?&prompt=photo+of&", "?prompt=photo%20of%", "?prompt=%zz"]
    {
        let answer = fixture.send(post(query, "image/png", png())).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {answer:?}");
    }
    let answer = fixture.send(with("\"prompt\": \"\\uD83D\\uDE00 photo \\u006Ff\"")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}
