//! Images by URL. The servers of the tests are on this machine, so the operator lists them.

mod contracts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use cutline::fetch::{FetchSettings, FetchSources, MAX_URL_BYTES};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::fixture::{
    Answer, Fixture, distinct, eventually, form, form_bytes, json as fields, png, post, post_to,
};

/// The largest image that is fetched.
const MAX_BYTES: usize = 100_000;

/// A server of images: `/NUMBER.png` is a different one for each number, `/moved/NUMBER.png` redirects to
/// it, `/loop` to itself and `/away` to another host, `/page` is HTML, `/large` announces too many bytes,
/// `/silent` never answers, and everything else is missing.
pub(super) struct Images {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    /// Connections to `/silent` that are open.
    silent: Arc<AtomicUsize>,
}

impl Images {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, silent) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (seen, waiting) = (Arc::clone(&requests), Arc::clone(&silent));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, waiting) = (Arc::clone(&seen), Arc::clone(&waiting));
                tokio::spawn(async move {
                    let mut head = vec![0; 4096];
                    let length = stream.read(&mut head).await.unwrap();
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    seen.fetch_add(1, Ordering::SeqCst);
                    let number = path.trim_matches('/').strip_suffix(".png");
                    let to = |location: &str| format!("302 Found\r\nlocation: {location}");
                    let found = || "200 OK".to_owned();
                    let (status, body) = match (path, number.and_then(|n| n.parse().ok())) {
                        (_, Some(number)) => (found(), distinct(number)),
                        ("/page", _) => (found(), b"<!DOCTYPE html><p>No image".to_vec()),
                        ("/large", _) => (found(), vec![0xFF; MAX_BYTES + 1]),
                        ("/loop", _) => (to("/loop"), Vec::new()),
                        ("/away", _) => (to("http://127.0.0.1:1/"), Vec::new()),
                        (moved, _) if moved.starts_with("/moved/") => {
                            (to(&moved["/moved".len()..]), Vec::new())
                        }
                        ("/silent", _) => {
                            waiting.fetch_add(1, Ordering::SeqCst);
                            while stream.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
                            waiting.fetch_sub(1, Ordering::SeqCst);
                            return;
                        }
                        _ => ("404 Not Found".to_owned(), Vec::new()),
                    };
                    let head =
                        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                });
            }
        });
        Self { address, requests, silent }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(super) fn silent(&self) -> usize {
        self.silent.load(Ordering::SeqCst)
    }

    /// Settings that allow fetching from here.
    pub(super) fn settings(&self) -> HttpSettings {
        let sources = FetchSources::Listed(self.address.to_string().parse().unwrap());
        let fetch = FetchSettings { sources, max_bytes: MAX_BYTES, ..off() };
        HttpSettings { fetch, ..HttpSettings::default() }
    }

    pub(super) fn fixture(&self) -> Fixture {
        Self::fixture_with(self.settings())
    }

    fn fixture_with(settings: HttpSettings) -> Fixture {
        let fixture = Fixture::build(settings, 8, MemoryLimits::default());
        fixture.state.ready(fixture.captioner.clone());
        fixture
    }
}

fn off() -> FetchSettings {
    HttpSettings::default().fetch
}

fn encoded(url: &str) -> String {
    url.replace(':', "%3A").replace('/', "%2F")
}

/// A request without a body.
fn bodiless(uri: &str) -> Request<Body> {
    post_to(uri, "", Body::empty())
}

#[track_caller]
fn assert_captioned(answer: &Answer, number: u32) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["caption"], "a red square");
    assert_eq!(answer["image"]["width"], 20 + number, "{answer}");
}

#[tokio::test]
async fn an_address_stands_for_the_image_in_every_way_of_sending_it() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let url = |number: u32| images.url(&format!("{number}.png"));
    let answer =
        fixture.send(fields(&json!({"image_url": url(1), "num_beams": 2, "image": null}))).await;
    assert_captioned(&answer, 1);
    let part = url(2);
    let answer = fixture
        .send(form(&[("; name=\"image_url\"", part.as_bytes()), ("; name=\"num_beams\"", b"2")]))
        .await;
    assert_captioned(&answer, 2);
    let query = format!("/caption/generate?image_url={}", encoded(&url(3)));
    assert_captioned(&fixture.send(bodiless(&query)).await, 3);
    // A body with parameters only.
    let query = format!("?image_url={}", encoded(&url(4)));
    assert_captioned(
        &fixture.send(post(&query, "application/json", "{\"num_beams\": 2}")).await,
        4,
    );
    let parameters = form_bytes(&[("; name=\"num_beams\"", b"2")]);
    let answer = fixture.send(post(&query, "multipart/form-data; boundary=line", parameters)).await;
    assert_captioned(&answer, 4);
    // As a stream.
    let answer = fixture.send(fields(&json!({"image_url": url(5), "stream": true}))).await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.contains("event: done") && text.contains("\"width\":25"), "{text}");
    assert_eq!(images.requests(), 6);
    assert_eq!(fixture.captioner.budget().held(), 0);
    // The same bytes are the same image, wherever they come from.
    let answer = fixture.send(post("", "image/png", distinct(3))).await;
    assert_eq!(answer.json()["cache"], "hit");
}

#[tokio::test]
async fn an_image_is_described_by_its_address_even_while_the_model_is_loading() {
    let images = Images::start().await;
    let loading = Fixture::loading(images.settings());
    for uri in
        [format!("/image/process?image_url={}", images.url("7.png")), "/image/process".to_owned()]
    {
        let request = if uri.contains('?') {
            bodiless(&uri)
        } else {
            post_to(&uri, "application/json", json!({"image_url": images.url("7.png")}).to_string())
        };
        let answer = loading.send(request).await;
        assert_eq!(answer.json()["image"]["width"], 27, "{answer:?}");
    }
}

#[tokio::test]
async fn a_batch_may_mix_images_and_addresses() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let base64 = {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(png())
    };
    let url = |path: &str| json!({"image_url": images.url(path)});
    let body = json!({"images": [
        url("1.png"), base64, url("missing"), url("2.png"), url("page"),
        {"image_url": "http://127.0.0.1:1/"}, {"image_url": 5}, {"url": "http://example.com/"},
    ]});
    let answer =
        fixture.send(post_to("/caption/batch", "application/json", body.to_string())).await;
    let answer = answer.json();
    let results = answer["results"].as_array().unwrap();
    let found: Vec<Value> = results
        .iter()
        .map(|result| match &result["error"]["code"] {
            Value::Null => result["image"]["width"].clone(),
            code => code.clone(),
        })
        .collect();
    assert_eq!(
        found,
        [
            json!(21),
            json!(40),
            json!("fetch_failed"),
            json!(22),
            json!("unsupported_format"),
            json!("invalid_parameter"),
            json!("malformed_request"),
            json!("malformed_request"),
        ],
        "{answer}"
    );
    assert_eq!(answer["summary"], json!({"total": 8, "ok": 3, "failed": 5}));

    // Forms and query strings may repeat the field.
    let (one, two) = (images.url("1.png"), images.url("2.png"));
    let parts = form_bytes(&[
        ("; name=\"image_url[]\"", one.as_bytes()),
        ("; name=\"images\"; filename=\"own.png\"", &png()),
        ("; name=\"image_url[]\"", two.as_bytes()),
    ]);
    let query = format!("/caption/batch?image_url={}", encoded(&two));
    let answer = fixture.send(post_to(&query, "multipart/form-data; boundary=line", parts)).await;
    let answer = answer.json();
    let widths: Vec<&Value> =
        answer["results"].as_array().unwrap().iter().map(|r| &r["image"]["width"]).collect();
    assert_eq!(widths, [&json!(22), &json!(21), &json!(40), &json!(22)], "{answer}");
    assert_eq!(answer["results"][2]["name"], "own.png");
    let query = format!("/caption/batch?image_url={}&image_url={}", encoded(&one), encoded(&two));
    let answer = fixture.send(bodiless(&query)).await;
    assert_eq!(answer.json()["summary"]["ok"], 2, "{answer:?}");
}

#[tokio::test]
async fn requests_with_an_error_fetch_nothing() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let url = images.url("1.png");
    let query = format!("?image_url={}", encoded(&url));
    let part = ("; name=\"image_url\"", url.as_bytes());
    let long = "a".repeat(MAX_URL_BYTES);
    for (request, field) in [
        (fields(&json!({"image_url": url, "num_beams": 99})), "num_beams"),
        (fields(&json!({"image_url": url, "beams": 2})), "beams"),
        (fields(&json!({"image_url": 5})), "image_url"),
        (fields(&json!({"image_url": [url]})), "image_url"),
        (fields(&json!({"image_url": {"url": url}})), "image_url"),
        (fields(&json!({"image_url": ""})), "image_url"),
        (fields(&json!({"image_url": "file:///etc/passwd"})), "image_url"),
        (fields(&json!({"image_url": format!("{url}?{long}")})), "image_url"),
        (post(&format!("{query}&image_url=x"), "", Body::empty()), "image_url"),
        (post(&query, "application/json", json!({"image_url": url}).to_string()), "image_url"),
        (post(&query, "image/png", png()), "image_url"),
        (form(&[part, ("; name=\"image\"", &png())]), "image_url"),
        (form(&[("; name=\"image\"", &png()), part]), "image_url"),
        (form(&[part, part]), "image_url"),
        (form(&[("; name=\"image_url\"", b"http://\xFF/")]), "image_url"),
        (form(&[part, ("; name=\"seed\"", b"x")]), "seed"),
    ] {
        let answer = fixture.send(request).await;
        assert_eq!(answer.problem(422, "invalid_parameter")["field"], field, "{answer:?}");
    }
    // The address in place of the image, and no image at all.
    fixture.send(fields(&json!({"image": url}))).await.problem(400, "malformed_request");
    fixture.send(fields(&json!({"image_url": null}))).await.problem(400, "malformed_request");
    let answer = fixture.send(form(&[("; name=\"image_url\"", b"null")])).await;
    answer.problem(400, "malformed_request");
    fixture
        .send(bodiless("/caption/generate?image_url=null"))
        .await
        .problem(415, "unsupported_format");
    let many = vec![json!({"image_url": url}); 9];
    let many = json!({"images": many}).to_string();
    let answer = fixture.send(post_to("/caption/batch", "application/json", many)).await;
    answer.problem(413, "batch_too_large");
    assert_eq!(images.requests(), 0);
    fixture.still_answers().await;
}

#[tokio::test]
async fn by_default_nothing_is_fetched() {
    let images = Images::start().await;
    let fixture = Fixture::roomy(8, MemoryLimits::default());
    let url = images.url("1.png");
    for request in [
        fields(&json!({"image_url": url})),
        form(&[("; name=\"image_url\"", url.as_bytes())]),
        bodiless(&format!("/caption/generate?image_url={url}")),
        bodiless(&format!("/caption/batch?image_url={url}")),
        bodiless(&format!("/image/process?image_url={url}")),
    ] {
        let batch = request.uri().path() == "/caption/batch";
        let answer = fixture.send(request).await;
        let problem = if batch {
            answer.json()["results"][0]["error"].clone()
        } else {
            answer.problem(422, "invalid_parameter")
        };
        assert_eq!(problem["field"], "image_url");
        assert!(problem["detail"].as_str().unwrap().contains("FETCH_URLS"), "{problem}");
    }
    assert_eq!(images.requests(), 0);
}

#[tokio::test]
async fn failures_are_told_apart_but_not_what_is_inside() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let send = async |url: &str| fixture.send(fields(&json!({"image_url": url}))).await;
    let missing = send(&images.url("missing")).await;
    let detail = missing.problem(422, "fetch_failed")["detail"].clone();
    assert!(detail.as_str().unwrap().contains("404"), "{detail}");
    send(&images.url("page")).await.problem(415, "unsupported_format");

    // On the public internet only: an open port, a closed one, and a name that does not exist.
    let fetch = FetchSettings { sources: FetchSources::Public, ..off() };
    let public = Fixture::with(HttpSettings { fetch, ..HttpSettings::default() });
    let mut details = Vec::new();
    for url in [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "https://0x7f.1/",
    ] {
        let answer = public.send(fields(&json!({"image_url": url}))).await;
        details.push(answer.problem(422, "fetch_failed")["detail"].clone());
    }
    details.dedup();
    assert_eq!(details.len(), 1, "{details:?}");
    let answer = public.send(fields(&json!({"image_url": images.url("1.png")}))).await;
    assert_eq!(answer.problem(422, "invalid_parameter")["field"], "image_url", "the port");
    assert_eq!(images.requests(), 2);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_transfer() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let body = json!({"images": [{"image_url": images.url("silent")}, {"image_url": images.url("silent")}]});
    for request in [
        fields(&json!({"image_url": images.url("silent")})),
        post_to("/caption/batch", "application/json", body.to_string()),
    ] {
        let mut sending = Box::pin(fixture.send(request));
        while images.silent() == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(5), &mut sending).await;
        }
        drop(sending);
        eventually("closed connections", || images.silent() == 0).await;
    }
    fixture.still_answers().await;
}
