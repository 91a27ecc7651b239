//! `POST /image/process`, and the colours that come with a caption.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::config::HttpSettings;
use serde_json::{Value, json as value};

use super::fixture::{Fixture, form_bytes, picture, png, post};

fn process(query: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("/image/process{query}"))
        .header("content-type", content_type)
        .body(body.into())
        .unwrap()
}

/// A server whose model is still loading.
fn fixture() -> Fixture {
    Fixture::loading(HttpSettings::default())
}

#[tokio::test]
async fn an_image_is_described_while_the_model_loads() {
    let fixture = fixture();
    let encoded = BASE64_STANDARD.encode(png());
    let form = form_bytes(&[("; name=\"image\"; filename=\"a.png\"", &png())]);
    let requests = [
        ("raw", process("", "image/png", png())),
        ("part", process("", "multipart/form-data; boundary=line", form)),
        ("json", process("", "application/json", value!({"image": encoded}).to_string())),
    ];
    for (way, request) in requests {
        let answer = fixture.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{way}: {answer:?}");
        let told = answer.json();
        let image = value!({
            "hash": format!("blake3:{}", blake3::hash(&png()).to_hex()),
            "format": "png", "width": 40, "height": 30, "size_bytes": png().len(), "orientation": 1,
        });
        assert_eq!(told["image"], image, "{way}");
        // Red starts at 200; there is little green and blue.
        assert_eq!(told["colors"][0]["fraction"], 1.0, "{told}");
        assert_eq!(told["colors"][0]["name"], "firebrick", "{told}");
        assert!(told["mood"]["warmth"].as_f64().unwrap() > 0.6, "{told}");
        for name in ["brightness", "contrast", "sharpness", "colorfulness"] {
            assert!(told[name].is_number(), "{name}: {told}");
        }
        assert!(told["timings"]["total_ms"].as_f64().unwrap() > 0.0);
    }
    fixture.state.ready(fixture.captioner.clone());
    assert_eq!(fixture.send(process("", "image/png", png())).await.status, StatusCode::OK);
    fixture.state.stop();
    fixture.send(process("", "image/png", png())).await.problem(503, "shutting_down");
}

#[tokio::test]
async fn the_orientation_is_reported() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/image/zoo/jpeg_exif_6.jpg");
    let bytes = std::fs::read(path).unwrap();
    let image = fixture().send(process("", "image/jpeg", bytes)).await.json()["image"].clone();
    assert_eq!(image["orientation"], 6);
    assert_eq!((&image["width"], &image["height"]), (&24.into(), &36.into()));
}

#[tokio::test]
async fn errors_are_the_same_as_for_captions() {
    let settings = HttpSettings { max_image_pixels: 1000, ..HttpSettings::default() };
    let fixture = Fixture::loading(settings);
    let large = vec![0xFF; 11 << 20];
    let small = picture(image::ImageFormat::Png, 8, 8);
    let cut = small[..small.len() / 2].to_vec();
    for (request, status, code, field) in [
        (process("", "image/png", "no image"), 415, "unsupported_format", None),
        (process("", "text/plain", small.clone()), 415, "unsupported_format", None),
        (process("", "image/png", cut), 422, "undecodable_image", None),
        (process("", "image/png", png()), 413, "image_too_large", None),
        (process("", "image/png", large), 413, "image_too_large", None),
        (process("", "application/json", "{}"), 400, "malformed_request", None),
        (
            process("?num_beams=2", "image/png", small.clone()),
            422,
            "invalid_parameter",
            Some("num_beams"),
        ),
        (
            process("?colors=true", "image/png", small.clone()),
            422,
            "invalid_parameter",
            Some("colors"),
        ),
    ] {
        let problem = fixture.send(request).await.problem(status, code);
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    }
    assert_eq!(fixture.send(process("", "image/png", small)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_caption_has_the_same_colours_unless_they_are_switched_off() {
    let fixture = Fixture::new();
    let described = fixture.send(process("", "image/png", png())).await.json();
    let caption = fixture.send(post("", "image/png", png())).await.json();
    assert_eq!(caption["colors"], described["colors"]);
    assert_eq!(caption["mood"], described["mood"]);
    assert!(caption["colors"].is_array() && caption["mood"]["label"].is_string(), "{caption}");
    let fields: Vec<&str> = caption.as_object().unwrap().keys().map(String::as_str).collect();
    let contract = [
        "caption",
        "captions",
        "model",
        "cache",
        "vision_cache",
        "image",
        "colors",
        "mood",
        "timings",
    ];
    assert_eq!(fields, contract);

    let plain = fixture.send(post("?colors=false", "image/png", png())).await.json();
    assert!(plain.get("colors").is_none() && plain.get("mood").is_none(), "{plain}");
    assert_eq!(plain["caption"], caption["caption"]);
}
