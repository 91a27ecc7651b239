//! Compressed bodies.

use std::io::Write;

use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::json;

use super::fixture::{Fixture, form_bytes, png, post, post_to};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn with_codings(codings: &[&str], mut request: Request<Body>) -> Request<Body> {
    for coding in codings {
        let value = HeaderValue::from_str(coding).unwrap();
        request.headers_mut().append("content-encoding", value);
    }
    request
}

/// A body that arrives in these pieces.
fn pieces<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Body {
    let pieces: Vec<_> =
        pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    Body::from_stream(tokio_stream::iter(pieces))
}

#[tokio::test]
async fn compressed_bodies_are_decoded_in_every_way_of_sending_an_image() {
    let fixture = Fixture::new();
    let form = form_bytes(&[("; name=\"image\"", &png()), ("; name=\"max_new_tokens\"", b"2")]);
    let fields = json!({"image": BASE64_STANDARD.encode(png()), "max_new_tokens": 2}).to_string();
    for (content_type, query, body) in [
        ("image/png", "?max_new_tokens=2", png()),
        ("multipart/form-data; boundary=line", "", form),
        ("application/json", "", fields.into_bytes()),
    ] {
        for (codings, body) in [
            (&["gzip"][..], gzip(&body)),
            (&["X-GZip"], gzip(&body)),
            (&["deflate"], zlib(&body)),
            (&["identity, gzip", ""], gzip(&body)),
            (&["identity"], body.clone()),
            // As several files, one after the other, like those of parallel compressors.
            (&["gzip"], [gzip(&body[..9]), gzip(b""), gzip(&body[9..])].concat()),
        ] {
            let request = with_codings(codings, post(query, content_type, body));
            let answer = fixture.send(request).await;
            assert_eq!(answer.status, StatusCode::OK, "{content_type} {codings:?}: {answer:?}");
            assert_eq!(answer.json()["caption"], "a red");
        }
        let compressed = gzip(&body);
        let body = pieces(compressed.chunks(1));
        let answer = fixture.send(with_codings(&["gzip"], post(query, content_type, body))).await;
        assert_eq!(answer.status, StatusCode::OK, "byte by byte: {answer:?}");
    }
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn other_codings_are_named_and_so_are_the_accepted_ones() {
    let fixture = Fixture::new();
    for (codings, named) in [
        (&["br"][..], "\"br\""),
        (&["zstd"], "\"zstd\""),
        (&["gzip, br"], "\"gzip, br\""),
        (&["gzip", "gzip"], "\"gzip, gzip\""),
        (&["gzip;q=1"], "\"gzip;q=1\""),
    ] {
        for path in ["/caption/generate", "/caption/batch", "/image/process"] {
            let request = with_codings(codings, post_to(path, "image/png", gzip(&png())));
            let answer = fixture.send(request).await;
            let problem = answer.problem(415, "unsupported_format");
            assert_eq!(answer.header("accept-encoding"), "gzip, deflate");
            assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
        }
    }
    // A format that is not supported has nothing to do with codings.
    let answer = fixture.send(with_codings(&["gzip"], post("", "text/plain", gzip(b"a")))).await;
    answer.problem(415, "unsupported_format");
    assert_eq!(answer.header("accept-encoding"), "");
    fixture.still_answers().await;
}

#[tokio::test]
async fn what_is_not_compressed_as_announced_is_malformed() {
    let fixture = Fixture::new();
    let whole = gzip(&png());
    let mut wrong_sum = whole.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    for (what, coding, body) in [
        ("plain", "gzip", png()),
        ("empty", "gzip", Vec::new()),
        ("cut in its header", "gzip", whole[..5].to_vec()),
        ("cut", "gzip", whole[..whole.len() / 2].to_vec()),
        ("without its sum", "gzip", whole[..whole.len() - 1].to_vec()),
        ("with a wrong sum", "gzip", wrong_sum),
        ("with something after it", "gzip", [&whole[..], b"x"].concat()),
        ("gzip", "deflate", whole.clone()),
        ("zlib with something after it", "deflate", [&zlib(&png())[..], b"x"].concat()),
        ("cut zlib", "deflate", zlib(&png())[..20].to_vec()),
        ("empty zlib", "deflate", Vec::new()),
    ] {
        for body in [Body::from(body.clone()), pieces(body.chunks(1))] {
            let answer = fixture.send(with_codings(&[coding], post("", "image/png", body))).await;
            eprintln!("{what}");
            let problem = answer.problem(400, "malformed_request");
            assert!(problem["detail"].as_str().unwrap().contains(coding), "{what}: {problem}");
        }
    }
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.still_answers().await;
}

#[tokio::test]
async fn limits_apply_to_the_decoded_bytes() {
    let settings = HttpSettings { max_image_bytes: 1 << 20, ..HttpSettings::default() };
    let fixture = Fixture::build(settings, 64, MemoryLimits::default());
    fixture.state.ready(fixture.captioner.clone());
    // A bomb: a thousandth of the size that it decodes to.
    let bomb = gzip(&vec![0; 256 << 20]);
    assert!(bomb.len() < 300_000);
    let raw = with_codings(&["gzip"], post("", "image/png", bomb.clone()));
    fixture.send(raw).await.problem(413, "image_too_large");
    let fields = with_codings(&["gzip"], post("", "application/json", bomb.clone()));
    fixture.send(fields).await.problem(413, "image_too_large");
    let batch = with_codings(&["gzip"], post_to("/caption/batch", "application/json", bomb));
    fixture.send(batch).await.problem(413, "batch_too_large");
    // A body that decodes to nothing is limited as well.
    let nothing = gzip(b"").repeat(100_000);
    let request = with_codings(&["gzip"], post("", "image/png", pieces(nothing.chunks(1 << 16))));
    fixture.send(request).await.problem(413, "image_too_large");
    let mut request = with_codings(&["gzip"], post("", "image/png", nothing.clone()));
    request.headers_mut().insert("content-length", nothing.len().into());
    fixture.send(request).await.problem(413, "image_too_large");

    // Bytes that do not shrink may grow a little, up to the limit of what they decode to.
    let random: Vec<u8> = (0..1_u32 << 18)
        .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec())
        .collect();
    let compressed = gzip(&random);
    assert!(random.len() == 1 << 20 && compressed.len() > random.len());
    let mut request = with_codings(&["gzip"], post("", "image/png", compressed.clone()));
    request.headers_mut().insert("content-length", compressed.len().into());
    fixture.send(request).await.problem(415, "unsupported_format");
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.still_answers().await;
}
