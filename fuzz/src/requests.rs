//! Requests over HTTP, and messages on a WebSocket.

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use cutline::config::{HttpSettings, Settings};
use cutline::http::fuzzing::{ReadRequest, read};
use cutline::http::fuzzing_realtime::read_connection;
use cutline::http::{AppState, app};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use crate::{Corpus, Seeds, bounded, seeds};

/// The largest image in these requests.
const MAX_IMAGE: usize = 1 << 12;

/// Copies of a body of the largest image, its parts and the runtime's own structures.
const MEMORY: usize = 16 << 20;

static SETTINGS: LazyLock<HttpSettings> = LazyLock::new(|| HttpSettings {
    max_image_bytes: MAX_IMAGE,
    max_image_pixels: 1 << 16,
    ..HttpSettings::default()
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

fn parsed(
    kind: &str,
    query: &str,
    body: &[u8],
    piece: usize,
    limit: Option<usize>,
) -> Option<Result<ReadRequest, String>> {
    let uri: Uri = format!("/?{query}").parse().ok()?;
    let request = async { read(kind, uri, body, piece, limit, &SETTINGS).await };
    let result = bounded(MEMORY, || RUNTIME.block_on(request));
    if let Ok(request) = &result {
        assert!((1..=limit.unwrap_or(1)).contains(&request.images.len()));
        for size in request.images.iter().filter_map(|(_, image)| image.as_ref().ok()) {
            assert!(*size <= MAX_IMAGE && *size <= body.len());
        }
        request.params.validate().expect("what was read is valid");
    }
    Some(result.map_err(|error| {
        assert_ne!(error.kind(), cutline::error::ErrorKind::Internal, "{error:?}");
        error.to_string()
    }))
}

/// Reads a body in one piece and in small pieces, which must not differ.
fn bodies(kind: &str, data: &[u8]) -> Corpus {
    let Some((mode, body)) = data.split_first() else { return Corpus::Reject };
    let limit = (mode & 1 == 1).then_some(3);
    let whole = parsed(kind, "", body, usize::MAX, limit);
    let pieces = parsed(kind, "", body, usize::from(mode >> 1) + 1, limit);
    assert_eq!(
        whole.map(Result::ok),
        pieces.map(Result::ok),
        "the answer depends on how the body arrives"
    );
    Corpus::Keep
}

/// `multipart/form-data` with the boundary `X`. The lowest bit of the first byte chooses a batch, and the
/// others the size of the pieces.
pub fn multipart(data: &[u8]) -> Corpus {
    bodies("multipart/form-data; boundary=X", data)
}

/// Forms as browsers and libraries write them.
pub fn multipart_seeds() -> Seeds {
    let part = |head: &str, content: &str| {
        format!("--X\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    };
    let image = part("name=\"image\"; filename=\"a.jpg\"\r\nContent-Type: image/jpeg", "bytes");
    let many = part("name=\"images\"; filename*=UTF-8''%e2%82%ac.png", "one")
        + &part("name=images[]; filename=\"=?utf-8?b?4oKs?=\"", "two");
    let params = part("name=\"num_beams\"", "3") + &part("name=\"do_sample\"", "on");
    seeds::texts([
        format!("\0{image}--X--\r\n"),
        format!("\u{20}{params}{image}--X--"),
        format!("\u{1}{many}{params}--X--\r\nepilogue"),
        format!("\u{5}preamble\r\n{many}{image}--X--\r\n"),
        format!("\0{}--X--\r\n", part("name=\"photo\"", "x")),
    ])
}

/// `application/json`; the first byte as for [`multipart`].
pub fn json(data: &[u8]) -> Corpus {
    bodies("application/json", data)
}

/// Bodies with every parameter, and images in each of their forms.
pub fn json_seeds() -> Seeds {
    let all = r#""prompt": "a", "max_new_tokens": 7, "num_beams": 3, "num_captions": 2,
        "do_sample": false, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "seed": 18446744073709551615,
        "repetition_penalty": 1.5, "length_penalty": -1, "style": "alt_text", "max_chars": 80,
        "colors": true, "stream": false, "cache": "bypass", "min_new_tokens": null"#;
    seeds::texts([
        format!("\0{{\"image\": \"aGVsbG8=\", {all}}}"),
        "\u{20}{\"image\": \"data:image/png;base64,aGVs\\/w==\"}".to_owned(),
        "\0{\"image\": \"data:image/png,%89PNG%0d%0a\"}".to_owned(),
        "\u{1}{\"images\": [\"aGVsbG8\", 5, \"aGVs\\r\\nbG8=\"], \"num_beams\": 3.0}".to_owned(),
        "\u{feff}{\"image\": \"\\u0061GVs\"}".to_owned(),
    ])
}

/// What a client sends on a WebSocket after the handshake. The first byte chooses the size of the pieces.
pub fn realtime(data: &[u8]) -> Corpus {
    let Some((piece, sent)) = data.split_first() else { return Corpus::Reject };
    let read =
        |piece| bounded(MEMORY, || RUNTIME.block_on(read_connection(sent, piece, &SETTINGS)));
    let whole = read(usize::MAX);
    assert_eq!(whole, read(usize::from(*piece) + 1), "it depends on how the bytes arrive");
    Corpus::Keep
}

/// Messages of every type, in one frame and in several, and frames between them.
pub fn realtime_seeds() -> Seeds {
    let frame = |first: u8, payload: &str| {
        let length = 0x80 | u8::try_from(payload.len()).expect("a short payload");
        [&[first, length, 0, 0, 0, 0][..], payload.as_bytes()].concat()
    };
    let text = r#"{"type": "caption", "id": "a", "image": "aGVsbG8=", "num_beams": 3}"#;
    let (start, rest) = text.split_at(30);
    seeds::texts([
        [vec![0], frame(0x81, text), frame(0x81, r#"{"type": "cancel", "id": "a"}"#)].concat(),
        [vec![3], frame(0x82, "{\"type\": \"caption\", \"id\": \"b\"}\nimage")].concat(),
        [vec![1], frame(0x01, start), frame(0x89, "ping"), frame(0x80, rest)].concat(),
        [vec![9], frame(0x81, r#"{"type": "ping"}"#), frame(0x88, "\u{3}\u{e}")].concat(),
        // Longer than a message may be.
        [vec![7], vec![0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0x86, 0xA0, 0, 0, 0, 0], text.into()].concat(),
    ])
}

/// A query string, as forms write their fields too.
pub fn form(data: &[u8]) -> Corpus {
    let Ok(query) = std::str::from_utf8(data) else { return Corpus::Reject };
    if parsed("image/png", query, b"x", 1, None).is_none() {
        return Corpus::Reject;
    }
    Corpus::Keep
}

/// Query strings with every parameter.
pub fn form_seeds() -> Seeds {
    seeds::texts([
        "prompt=a+photo%20of&max_new_tokens=7&num_beams=3&do_sample=on&temperature=0.5",
        "top_k=0&top_p=0.9&seed=18446744073709551615&repetition_penalty=1.5&length_penalty=-1e0",
        "style=alt_text&max_chars=80&colors=0&cache=bypass&stream=false&min_new_tokens=",
        "PROMPT=%F0%9F%98%80&%6eum_beams=3.0&prompt=%ff",
    ])
}

/// Bytes that are sent in base64 arrive as they are, however it is written.
pub fn base64(data: &[u8]) -> Corpus {
    let bytes = &data[..data.len().min(MAX_IMAGE)];
    if bytes.is_empty() {
        return Corpus::Reject;
    }
    let plain = STANDARD.encode(bytes);
    let lines = plain.as_bytes().chunks(76).map(String::from_utf8_lossy).collect::<Vec<_>>();
    for text in [
        plain.clone(),
        STANDARD_NO_PAD.encode(bytes),
        lines.join("\\r\\n"),
        plain.replace('/', "\\/"),
        format!("data:image/png;base64,{plain}"),
        format!("DATA:;BASE64,{plain}"),
        format!("data:image/png,{}", bytes.iter().map(|b| format!("%{b:02x}")).collect::<String>()),
    ] {
        let body = format!("{{\"image\": \"{text}\"}}");
        let read = parsed("application/json", "", body.as_bytes(), usize::MAX, None);
        let read = read.expect("the address is valid").expect("base64 is read");
        assert_eq!(read.images, [(None, Ok(bytes.len()))]);
    }
    // Nor may any text that is not base64 do harm.
    if let Ok(text) = std::str::from_utf8(data) {
        let body = serde_json::json!({ "image": format!("data:{text}") }).to_string();
        let _ = parsed("application/json", "", body.as_bytes(), usize::MAX, None);
    }
    Corpus::Keep
}

/// Bytes, and what follows `data:`.
pub fn base64_seeds() -> Seeds {
    seeds::texts([
        "hello",
        "image/png;base64,aGVsbG8=",
        "image/png,%89PNG",
        ";charset=x;base64, aGVs bG8=",
    ])
}

/// The whole service without a model: `METHOD path?query`, header lines, an empty line, the body.
pub fn request(data: &[u8]) -> Corpus {
    let Some((head, body)) = split(data, b"\n\n") else { return Corpus::Reject };
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let Some((method, address)) = first.and_then(|line| line.split_once(' ')) else {
        return Corpus::Reject;
    };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), address.parse::<Uri>()) else {
        return Corpus::Reject;
    };
    let mut request = Request::new(Body::from(body.to_vec()));
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    for line in lines {
        let Some((name, value)) = split(line, b": ") else { return Corpus::Reject };
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        else {
            return Corpus::Reject;
        };
        request.headers_mut().append(name, value);
    }
    let answer = async {
        let answer = service().oneshot(request).await.expect("a router does not fail");
        let (head, body) = answer.into_parts();
        (head.status, to_bytes(body, usize::MAX).await.expect("a complete answer"))
    };
    let (status, body) = RUNTIME.block_on(answer);
    let text = String::from_utf8_lossy(&body);
    assert!(
        !status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE,
        "{status} {text}"
    );
    Corpus::Keep
}

fn split<'d>(data: &'d [u8], at: &[u8]) -> Option<(&'d [u8], &'d [u8])> {
    let found = data.windows(at.len()).position(|window| window == at)?;
    Some((&data[..found], &data[found + at.len()..]))
}

/// With keys, limits and origins, so that every check of a request's head runs.
fn service() -> Router {
    static SERVICE: LazyLock<Router> = LazyLock::new(|| {
        let values = cutline::config::Values::of_environment([
            ("API_KEYS", "secret"),
            ("PUBLIC_ENDPOINTS", "health,docs"),
            ("CORS_ALLOW_ORIGINS", "https://example.org"),
            ("RATE_LIMIT", "100000"),
            ("TRUSTED_PROXY_COUNT", "1"),
            ("MAX_IMAGE_PIXELS", "65536"),
        ]);
        let settings = Settings::new(&values).expect("valid settings");
        app(AppState::new(settings.http))
    });
    SERVICE.clone()
}

/// A request to every kind of address.
pub fn request_seeds() -> Seeds {
    let image = |kind: &str| {
        format!("POST /image/process\nauthorization: Bearer secret\ncontent-type: {kind}\n\n")
            .into_bytes()
    };
    let png: &[u8] = include_bytes!("../../tests/goldens/image/zoo/png_tiny.png");
    let form =
        [b"--X\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\n", png, b"\r\n--X--"]
            .concat();
    let json = format!("{{\"image\": \"{}\"}}", STANDARD.encode(png));
    seeds::texts([
        b"GET /\naccept: text/html;q=0.5, application/json;q=0\naccept-encoding: gzip\n\n".to_vec(),
        b"GET /health\nx-forwarded-for: 10.0.0.1, ::1\nx-request-id: a\n\n".to_vec(),
        b"OPTIONS /caption/generate\norigin: https://example.org\naccess-control-request-method: POST\n\n"
            .to_vec(),
        b"POST /caption/generate?num_beams=3\nx-api-key: secret\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\n".to_vec(),
        b"GET /page/page.js\nif-none-match: \"x\", W/\"y\"\nrange: bytes=0-\n\n".to_vec(),
        b"GET /api/docs/index.html\n\n".to_vec(),
        b"GET /openapi.json\n\n".to_vec(),
        [image("image/png"), png.to_vec()].concat(),
        [image("multipart/form-data; boundary=\"X\""), form].concat(),
        [image("application/json; charset=utf-8"), json.into_bytes()].concat(),
        [image("image/png\ncontent-encoding: gzip\ncontent-length: 5"), b"hello".to_vec()].concat(),
    ])
}
