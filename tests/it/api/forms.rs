//! Forms as different clients write them: names of parts and files, boundaries, sizes of headers.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cutline::captioner::MemoryLimits;

use super::fixture::{Answer, Fixture, distinct, form, form_bytes, png, post, post_to};
use super::uploads::refuse;

const BATCH: &str = "/caption/batch";
const LINE: &str = "multipart/form-data; boundary=line";

/// A part with these headers.
fn part(head: &str, content: &[u8]) -> Vec<u8> {
    [b"--line\r\n", head.as_bytes(), b"\r\n\r\n", content, b"\r\n"].concat()
}

fn batch(parts: &[(&str, &[u8])]) -> Request<Body> {
    post_to(BATCH, LINE, form_bytes(parts))
}

fn detail(answer: &Answer) -> String {
    answer.json()["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_names_that_libraries_give_to_images_are_accepted() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    for name in ["image", "Image", "image[]", "image[0]", "file", "FILE[]"] {
        let answer = fixture.send(form(&[(&format!("; name=\"{name}\""), &png())])).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {answer:?}");
    }
    let names = ["images[]", "images[]", "images[17]", "image[]", "IMAGES", "files[]", "file"];
    let names: Vec<String> = names.iter().map(|name| format!("; name=\"{name}\"")).collect();
    let images: Vec<Vec<u8>> = (0..7).map(distinct).collect();
    let parts: Vec<(&str, &[u8])> =
        names.iter().zip(&images).map(|(name, image)| (name.as_str(), image.as_slice())).collect();
    let answer = fixture.send(batch(&parts)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.json()["summary"]["ok"], 7, "{answer:?}");
}

#[tokio::test]
async fn an_unknown_name_is_refused_before_its_content_is_judged() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let large = vec![0xFF; 100_000];
    let one = |name: &str| form(&[(&format!("; name=\"{name}\"; filename=\"a.png\""), &large)]);
    let many = |name: &str| batch(&[(&format!("; name=\"{name}\"; filename=\"a.png\""), &large)]);
    for name in ["photo", "upload[]", "image[a]", "image]", "[]", "prompt[]"] {
        for (request, right) in
            [(one(name), "in the field image, "), (many(name), "in the field images, ")]
        {
            let answer = fixture.send(request).await;
            let problem = answer.problem(422, "invalid_parameter");
            assert_eq!(problem["field"], name);
            let detail = detail(&answer);
            assert!(detail.contains(&format!("\"{name}\"")) && detail.contains(right), "{detail}");
            assert!(detail.contains("num_beams"), "parameters are listed: {detail}");
        }
    }
    // A name that belongs to the other endpoint.
    for name in ["images", "images[]", "Images[3]", "files"] {
        let answer = fixture.send(one(name)).await;
        assert_eq!(answer.problem(422, "invalid_parameter")["field"], name);
        let detail = detail(&answer);
        assert!(
            detail.contains("in the field image,") && detail.contains("/caption/batch"),
            "{detail}"
        );
    }
    for (name, right) in
        [("numBeams", "num_beams"), ("num-beams", "num_beams"), ("Prompt", "prompt")]
    {
        let answer = fixture.send(one(name)).await;
        assert_eq!(answer.problem(422, "invalid_parameter")["field"], name);
        assert!(detail(&answer).ends_with(&format!("write it {right}")), "{answer:?}");
    }
    let body = form_bytes(&[("; name=\"photo\"", &large)]);
    let answer = fixture.send(post_to("/image/process", LINE, body)).await;
    answer.problem(422, "invalid_parameter");
    assert!(detail(&answer).contains("send the image in the field image"), "{answer:?}");
    // A parameter that is given twice is refused without its second value.
    let twice = form(&[("; name=\"seed\"", b"1"), ("; name=\"seed\"", &large)]);
    let answer = fixture.send(twice).await;
    assert!(detail(&answer).contains("twice"), "{answer:?}");
    fixture.still_answers().await;
}

#[tokio::test]
async fn file_names_come_back_as_they_were_meant() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let heads = [
        ("Content-Disposition: form-data; name=\"images\"; filename=\"käse.png\"", "käse.png"),
        (
            "content-disposition: Form-Data; FILENAME*=utf-8''k%C3%A4se.png; filename=\"k_se.png\"; \
             NAME=images",
            "käse.png",
        ),
        (
            "Content-Disposition: form-data; name=\"images\"; filename=\"=?utf-8?B?a8OkdHplLmpwZw==?=\"",
            "kätze.jpg",
        ),
        (
            "Content-Disposition: form-data; name=\"images\"; filename=\"a\\\"b%22.png\"",
            "a\"b\".png",
        ),
        ("Content-Disposition: form-data; filename=\"; name=x\"; name=\"images\"", "; name=x"),
        (
            "Content-Disposition: form-data; name=\"images\"; filename*=UTF-8''a%0D%0A%22level%22.png",
            "a\u{FFFD}\u{FFFD}\"level\".png",
        ),
    ];
    let mut body = Vec::new();
    for (number, (head, _)) in (0..).zip(&heads) {
        body.extend(part(head, &distinct(number)));
    }
    body.extend(b"--line--\r\n");
    let answer = fixture.send(post_to(BATCH, LINE, body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    for (result, (head, expected)) in answer.json()["results"].as_array().unwrap().iter().zip(heads)
    {
        assert_eq!(result["name"], expected, "{head}");
        assert_eq!(result["status"], "ok");
    }
}

#[tokio::test]
async fn parts_in_base64_are_decoded() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let encoded = BASE64_STANDARD.encode(png());
    let head = |name: &str, transfer: &str| {
        format!(
            "Content-Disposition: form-data; name=\"{name}\"\r\nContent-Transfer-Encoding: {transfer}"
        )
    };
    let send = |parts: &[Vec<u8>]| post("", LINE, [&parts.concat()[..], b"--line--\r\n"].concat());
    let broken_lines: Vec<&[u8]> = encoded.as_bytes().chunks(76).collect();
    let answer = fixture
        .send(send(&[
            part(&head("image", "BASE64"), &broken_lines.join(&b"\r\n"[..])),
            part(&head("prompt", "base64"), BASE64_STANDARD.encode("photo of").as_bytes()),
            part(&head("max_new_tokens", "8bit"), b"2"),
        ]))
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.json()["caption"], "photo of a red");
    for (transfer, content) in [("base64", &b"%%%"[..]), ("quoted-printable", &png())] {
        let answer = fixture.send(send(&[part(&head("image", transfer), content)])).await;
        answer.problem(400, "malformed_request");
    }
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn boundaries_are_read_as_clients_write_them() {
    let fixture = Fixture::new();
    let body = |boundary: &str| {
        let text = String::from_utf8(form_bytes(&[("; name=\"image\"", b"@")])).unwrap();
        let text = text.replace("--line", &format!("--{boundary}"));
        let (before, after) = text.split_once('@').unwrap();
        [before.as_bytes(), &png(), after.as_bytes()].concat()
    };
    let longest = "b".repeat(70);
    for (declared, boundary) in [
        ("boundary=\"line\"", "line"),
        ("charset=utf-8; Boundary=line; x=y", "line"),
        ("boundary=----=_Part_7_(1).2:/?", "----=_Part_7_(1).2:/?"),
        (&format!("boundary={longest}"), &*longest),
    ] {
        let request = post("", &format!("Multipart/Form-Data; {declared}"), body(boundary));
        let answer = fixture.send(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{declared}: {answer:?}");
    }
    let malformed = "malformed_request";
    let declare = |declared: &str, boundary: &str| {
        post("", &format!("multipart/form-data{declared}"), body(boundary))
    };
    let too_long = "b".repeat(71);
    let mut two = declare("; boundary=line", "line");
    two.headers_mut().append("content-type", "application/json".parse().unwrap());
    refuse(vec![
        ("none", declare("", "line"), 400, malformed, None),
        ("no value", declare("; boundary", "line"), 400, malformed, None),
        ("an empty one", declare("; boundary=", ""), 400, malformed, None),
        ("an empty one in quotes", declare("; boundary=\"\"", ""), 400, malformed, None),
        ("a long one", declare(&format!("; boundary={too_long}"), &too_long), 400, malformed, None),
        ("another one", declare("; boundary=other", "line"), 400, malformed, None),
        ("two types", two, 400, malformed, None),
    ])
    .await;
    let mut same = declare("; boundary=line", "line");
    same.headers_mut()
        .append("content-type", "multipart/form-data; boundary=line".parse().unwrap());
    assert_eq!(fixture.send(same).await.status, StatusCode::OK);
}

#[tokio::test]
async fn headers_of_parts_are_limited_and_content_is_not_mistaken_for_them() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let malformed = "malformed_request";
    let long = "x".repeat(1 << 20);
    let endless = format!("--line\r\nContent-Disposition: form-data; name=\"images\"; x={long}");
    let many = format!("--line\r\n{}\r\n", "A: b\r\n".repeat(5000));
    let before = format!("{long}\r\n");
    for (what, body) in [("endless", endless), ("many", many), ("text before the first", before)] {
        let body = [body.as_bytes(), b"\r\n\r\nx\r\n--line--\r\n"].concat();
        let chunks: Vec<_> =
            body.chunks(1000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
        let streamed = Body::from_stream(tokio_stream::iter(chunks));
        for body in [Body::from(body.clone()), streamed] {
            eprintln!("{what}");
            fixture.send(post_to(BATCH, LINE, body)).await.problem(400, malformed);
        }
    }
    // However the body is cut into pieces, its parts are the same.
    let image = [png(), b"\r\n--lin\r\n\r\n--".repeat(5000)].concat();
    let disposition =
        format!("Content-Disposition: form-data; name=\"images\"; x={}", &long[..9000]);
    let body = [
        part(&disposition, &image),
        part("Content-Disposition: form-data; name=\"images\"", &image),
        part("Content-Disposition: form-data; name=\"max_new_tokens\"", b"2"),
        b"--line--\r\n".to_vec(),
    ]
    .concat();
    for size in [1, 7, 4096, 10_000, body.len()] {
        let chunks: Vec<_> =
            body.chunks(size).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
        let streamed = Body::from_stream(tokio_stream::iter(chunks));
        let answer = fixture.send(post_to(BATCH, LINE, streamed)).await;
        assert_eq!(answer.status, StatusCode::OK, "{size}: {answer:?}");
        for result in answer.json()["results"].as_array().unwrap() {
            assert_eq!(result["image"]["size_bytes"], image.len(), "{size}: {result}");
        }
    }
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn thousands_of_parts_are_refused() {
    let fixture = Fixture::roomy(64, MemoryLimits::default());
    let empty: Vec<(&str, &[u8])> = vec![("; name=\"images\"", b""); 10_000];
    fixture.send(batch(&empty)).await.problem(413, "batch_too_large");
    let seeds: Vec<(&str, &[u8])> = vec![("; name=\"seed\"", b"1"); 10_000];
    fixture.send(batch(&seeds)).await.problem(422, "invalid_parameter");
    assert_eq!(fixture.captioner.budget().held(), 0);
    fixture.still_answers().await;
}
