//! Every way of sending an image, and every invalid upload.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::ImageFormat;
use serde_json::{Value, json as value};

use super::fixture::{Fixture, form, form_bytes, json, picture, png, post, raw};

const IMAGE: &str = "; name=\"image\"; filename=\"a.png\"";

#[tokio::test]
async fn an_image_can_be_sent_in_three_ways() {
    let encoded = BASE64_STANDARD.encode(png());
    let requests = [
        ("raw", raw(png())),
        ("octets", post("", "application/octet-stream", png())),
        ("wrong type", post("", "image/jpeg", png())),
        ("part", form(&[(IMAGE, &png())])),
        ("alias", form(&[("; name=\"file\"", &png())])),
        ("json", json(&value!({"image": encoded}))),
        (
            "charset",
            post("", "Application/JSON; charset=utf-8", value!({"image": encoded}).to_string()),
        ),
        ("data", json(&value!({"image": format!("data:image/png;base64,{encoded}")}))),
    ];
    for (way, request) in requests {
        let fixture = Fixture::new();
        let answer = fixture.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{way}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        let caption = answer.json();
        assert_eq!(caption["caption"], "a red square", "{way}");
        assert_eq!(caption["captions"][0]["text"], "a red square");
        assert_eq!(caption["captions"][0]["finish_reason"], "stop");
        assert_eq!(caption["model"], "scripted");
        assert_eq!(caption["cache"], "miss");
        assert_eq!(caption["image"]["format"], "png", "{way}");
        assert_eq!(caption["image"]["width"], 40);
        assert_eq!(caption["image"]["size_bytes"], png().len());
        let hash = format!("blake3:{}", blake3::hash(&png()).to_hex());
        assert_eq!(caption["image"]["hash"], hash);
        assert!(caption["timings"]["total_ms"].as_f64().unwrap() > 0.0);
        for part in ["decode;dur=", "queue;dur=", "inference;dur=", "total;dur="] {
            assert!(answer.header("server-timing").contains(part), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn parameters_are_accepted_in_every_way() {
    let fixture = Fixture::new();
    let encoded = BASE64_STANDARD.encode(png());
    let fields = "; name=\"image\"";
    let requests = [
        ("query", post("?prompt=photo+of&max_new_tokens=2&cache=bypass", "image/png", png())),
        (
            "parts",
            form(&[
                ("; name=\"prompt\"", b"photo of"),
                (fields, &png()),
                ("; name=\"max_new_tokens\"", b"2"),
                ("; name=\"colors\"", b"off"),
            ]),
        ),
        (
            "fields",
            json(&value!({
                "prompt": "photo of", "image": encoded, "max_new_tokens": 2, "colors": false,
            })),
        ),
        (
            "query and part",
            post(
                "?max_new_tokens=2",
                "multipart/form-data; boundary=line",
                form_bytes(&[("; name=\"prompt\"", b"photo of"), (fields, &png())]),
            ),
        ),
    ];
    for (way, request) in requests {
        let answer = fixture.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{way}: {answer:?}");
        assert_eq!(answer.json()["caption"], "photo of a red", "{way}");
        assert_eq!(answer.json()["captions"][0]["finish_reason"], "length");
    }
    let several = post("?num_captions=3&do_sample=1&seed=1", "image/png", png());
    assert_eq!(fixture.send(several).await.json()["captions"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn small_and_odd_images_are_captioned() {
    let fixture = Fixture::new();
    for (format, name) in [
        (ImageFormat::Png, "png"),
        (ImageFormat::Jpeg, "jpeg"),
        (ImageFormat::Gif, "gif"),
        (ImageFormat::Bmp, "bmp"),
        (ImageFormat::Tiff, "tiff"),
        (ImageFormat::WebP, "webp"),
    ] {
        let answer = fixture.send(raw(picture(format, 1, 1))).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {answer:?}");
        assert_eq!(answer.json()["image"]["format"], name);
    }
}

/// A complete PNG file whose header declares more pixels than it has.
fn png_bomb() -> Vec<u8> {
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut crc = u32::MAX;
        for byte in kind.iter().chain(data) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        let length = u32::try_from(data.len()).unwrap();
        [&length.to_be_bytes(), &kind[..], data, &(!crc).to_be_bytes()].concat()
    }
    let side = 20_000_u32.to_be_bytes();
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
    let empty_deflate = [0x78, 0x9C, 3, 0, 0, 0, 0, 1];
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &empty_deflate),
        chunk(b"IEND", b""),
    ]
    .concat()
}

/// A description, the request, and the expected status, code and field.
pub(super) type Case<'c> = (&'c str, Request<Body>, u16, &'c str, Option<&'c str>);

pub(super) async fn refuse(table: Vec<Case<'_>>) {
    let fixture = Fixture::new();
    for (what, request, status, code, field) in table {
        let answer = fixture.send(request).await;
        eprintln!("{what}: {}", String::from_utf8_lossy(&answer.body));
        let problem = answer.problem(status, code);
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{what}: {problem}");
        fixture.still_answers().await;
    }
}

#[tokio::test]
async fn bad_images_are_refused() {
    let large = vec![0x89; 11 << 20];
    let jpeg = picture(ImageFormat::Jpeg, 64, 64);
    let cut = jpeg[..jpeg.len() * 2 / 3].to_vec();
    // A stream announces no length.
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = vec![Ok(vec![0; 1 << 20]); 11]
        .into_iter()
        .map(|r: Result<Vec<u8>, ()>| Ok(r.unwrap()))
        .collect();
    let streamed = Body::from_stream(tokio_stream::iter(chunks));
    let text = form(&[("; name=\"image\"; filename=\"photo.jpg\"", b"just words, no photo")]);
    refuse(vec![
        ("nothing", raw(""), 415, "unsupported_format", None),
        ("an empty part", form(&[(IMAGE, b"")]), 415, "unsupported_format", None),
        ("an empty field", json(&value!({"image": ""})), 415, "unsupported_format", None),
        ("text named .jpg", text, 415, "unsupported_format", None),
        (
            "text in a URI",
            json(&value!({"image": "data:text/plain,hello"})),
            415,
            "unsupported_format",
            None,
        ),
        ("a cut JPEG", raw(cut), 422, "undecodable_image", None),
        ("many pixels", raw(png_bomb()), 413, "image_too_large", None),
        ("many bytes", raw(large.clone()), 413, "image_too_large", None),
        ("a large part", form(&[(IMAGE, &large)]), 413, "image_too_large", None),
        (
            "a large field",
            json(&value!({"image": BASE64_STANDARD.encode(&large)})),
            413,
            "image_too_large",
            None,
        ),
        ("a large stream", raw(streamed), 413, "image_too_large", None),
        ("no type", post("", "", png()), 415, "unsupported_format", None),
        ("text", post("", "text/plain", png()), 415, "unsupported_format", None),
        (
            "curl's default",
            post("", "application/x-www-form-urlencoded", png()),
            415,
            "unsupported_format",
            None,
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_image_of_exactly_the_limit_is_accepted() {
    let fixture = Fixture::new();
    let mut jpeg = picture(ImageFormat::Jpeg, 8, 8);
    jpeg.resize(10 << 20, 0);
    let encoded = BASE64_STANDARD.encode(&jpeg);
    for request in [raw(jpeg.clone()), form(&[(IMAGE, &jpeg)]), json(&value!({"image": encoded}))] {
        let answer = fixture.send(request).await;
        // The decoder may or may not accept the zeros after the image.
        assert!(matches!(answer.status.as_u16(), 200 | 422), "{answer:?}");
    }
    jpeg.push(0);
    fixture.send(raw(jpeg.clone())).await.problem(413, "image_too_large");
    // Within the limit of the body, but beyond that of the image.
    fixture.send(form(&[(IMAGE, &jpeg)])).await.problem(413, "image_too_large");
    let encoded = BASE64_STANDARD.encode(&jpeg);
    fixture.send(json(&value!({"image": encoded}))).await.problem(413, "image_too_large");
}

#[tokio::test]
async fn malformed_bodies_are_refused() {
    let whole = form_bytes(&[(IMAGE, &png())]);
    let cut = whole[..whole.len() - 40].to_vec();
    let multipart = "multipart/form-data; boundary=line";
    let bad = |body: &str| post("", "application/json", body.to_owned());
    let malformed = "malformed_request";
    refuse(vec![
        ("no boundary", post("", "multipart/form-data", whole.clone()), 400, malformed, None),
        ("cut off", post("", multipart, cut), 400, malformed, None),
        ("no end", post("", multipart, whole[..whole.len() - 10].to_vec()), 400, malformed, None),
        ("no parts", post("", multipart, "--line--\r\n"), 400, malformed, None),
        ("nothing", post("", multipart, ""), 400, malformed, None),
        ("noise", post("", multipart, png()), 400, malformed, None),
        ("no image", form(&[("; name=\"prompt\"", b"a")]), 400, malformed, None),
        ("no name", form(&[("", &png())]), 400, malformed, None),
        ("no JSON", bad("{\"image\": "), 400, malformed, None),
        ("an array", bad("[]"), 400, malformed, None),
        ("not UTF-8", post("", "application/json", vec![b'"', 0xFF, b'"']), 400, malformed, None),
        ("deep", bad(&"[".repeat(100_000)), 400, malformed, None),
        ("no field", bad("{}"), 400, malformed, None),
        ("a number", bad("{\"image\": 5}"), 400, malformed, None),
        ("a null", bad("{\"image\": null}"), 400, malformed, None),
        ("bad base64", bad("{\"image\": \"%%%\"}"), 400, malformed, None),
        ("cut base64", bad("{\"image\": \"aGVsbG\"}"), 400, malformed, None),
        ("an address", bad("{\"image\": \"https://example.org/a.jpg\"}"), 400, malformed, None),
    ])
    .await;
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    let query = |query: &str| post(query, "image/png", png());
    let encoded = BASE64_STANDARD.encode(png());
    let field = |name: &str, v: Value| {
        let mut body = value!({"image": encoded});
        body[name] = v;
        json(&body)
    };
    let part = |name: &str, v: &[u8]| form(&[(IMAGE, &png()), (&format!("; name=\"{name}\""), v)]);
    let twice = format!("{{\"image\": \"{encoded}\", \"seed\": 1, \"seed\": 2}}");
    let invalid = "invalid_parameter";
    refuse(vec![
        ("unknown", query("?beams=3"), 422, invalid, Some("beams")),
        ("unknown part", part("beams", b"3"), 422, invalid, Some("beams")),
        ("unknown field", field("beams", value!(3)), 422, invalid, Some("beams")),
        ("out of range", query("?num_beams=11"), 422, invalid, Some("num_beams")),
        ("out of range", part("num_beams", b"0"), 422, invalid, Some("num_beams")),
        ("out of range", field("top_p", value!(1.5)), 422, invalid, Some("top_p")),
        ("the model's limit", query("?max_new_tokens=65"), 422, invalid, Some("max_new_tokens")),
        ("no number", query("?num_beams=three"), 422, invalid, Some("num_beams")),
        ("no value", query("?num_beams="), 422, invalid, Some("num_beams")),
        ("wrong type", field("num_beams", value!("3")), 422, invalid, Some("num_beams")),
        ("wrong type", field("prompt", value!({"a": [1]})), 422, invalid, Some("prompt")),
        ("contradiction", query("?num_captions=2"), 422, invalid, Some("num_captions")),
        ("twice", query("?seed=1&seed=1"), 422, invalid, Some("seed")),
        (
            "twice in parts",
            form(&[("; name=\"seed\"", b"1"), ("; name=\"seed\"", b"2"), (IMAGE, &png())]),
            422,
            invalid,
            Some("seed"),
        ),
        ("twice in fields", post("", "application/json", twice), 422, invalid, Some("seed")),
        (
            "two images",
            form(&[(IMAGE, &png()), ("; name=\"file\"", &png())]),
            422,
            invalid,
            Some("image"),
        ),
        (
            "in query and part",
            post(
                "?seed=1",
                "multipart/form-data; boundary=line",
                form_bytes(&[(IMAGE, &png()), ("; name=\"seed\"", b"1")]),
            ),
            422,
            invalid,
            Some("seed"),
        ),
        ("not UTF-8", part("prompt", &[0xFF, 0xFE]), 422, invalid, Some("prompt")),
        ("very long", part("prompt", &[b'a'; 20_000]), 422, invalid, Some("prompt")),
        ("too long", part("prompt", "a ".repeat(80).as_bytes()), 422, invalid, Some("prompt")),
        ("no policy", query("?cache=never"), 422, invalid, Some("cache")),
    ])
    .await;
    let fixture = Fixture::new();
    assert_eq!(fixture.send(query("?stream=false")).await.status, StatusCode::OK);
}
