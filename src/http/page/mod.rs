//! The web page on which a person can try the server, the gallery of its library, and the playground of
//! prompts.
//!
//! Its files are compiled into the binary and need no other host and no build step. Their content
//! security policy makes browsers refuse everything else.

use std::borrow::Cow;
use std::sync::LazyLock;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::accept::prefers;
use super::not_found;
use super::state::AppState;

/// Only files of this server, no inline scripts or styles, no framing. `blob:` is the chosen photo,
/// `data:` its thumbnail. Text can never become markup or script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// Features that the page does not use, denied even to an injected script.
const PERMISSIONS: &str = "camera=(), display-capture=(), geolocation=(), microphone=(), \
                           payment=(), usb=()";

/// Cached, but revalidated before each use, so that a page never runs scripts of another version.
const CACHING: &str = "no-cache";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    bytes: Cow<'static, [u8]>,
}

macro_rules! asset {
    ($name:literal, $media_type:expr) => {
        Asset {
            name: $name,
            media_type: $media_type,
            bytes: Cow::Borrowed(include_bytes!(concat!("assets/", $name))),
        }
    };
}

/// How all pages begin.
const HEAD: &str = include_str!("assets/head.html");

/// A page: its own part of the head, and the rest.
macro_rules! page {
    ($name:literal) => {
        LazyLock::new(|| Asset {
            name: $name,
            media_type: HTML,
            bytes: Cow::Owned(
                [HEAD, include_str!(concat!("assets/", $name))].concat().into_bytes(),
            ),
        })
    };
}

/// The page itself.
static INDEX: LazyLock<Asset> = page!("index.html");

/// The page of the library.
static GALLERY: LazyLock<Asset> = page!("gallery.html");

/// The page on which versions of prompts are compared.
static PLAYGROUND: LazyLock<Asset> = page!("playground.html");

/// The page of a server with a library: it leads to the gallery.
static INDEX_WITH_GALLERY: LazyLock<Asset> = LazyLock::new(|| {
    let page = String::from_utf8_lossy(&INDEX.bytes).replace(MARK, LINK);
    Asset { name: INDEX.name, media_type: HTML, bytes: Cow::Owned(page.into_bytes()) }
});

/// Where the page has the link to the gallery.
const MARK: &str = "<!-- gallery -->";
const LINK: &str = "<nav aria-label=\"Pages\"><a href=\"gallery\">Gallery</a> \
                    <a href=\"playground\">Playground</a></nav>";

/// The files that they load from `/page/`.
static ASSETS: [Asset; 27] = [
    asset!("api.js", SCRIPT),
    asset!("app.js", SCRIPT),
    asset!("bulk.js", SCRIPT),
    asset!("card.js", SCRIPT),
    asset!("cell.js", SCRIPT),
    asset!("detail.js", SCRIPT),
    asset!("diff.js", SCRIPT),
    asset!("dom.js", SCRIPT),
    asset!("editor.js", SCRIPT),
    asset!("gallery.css", CSS),
    asset!("gallery.js", SCRIPT),
    asset!("grid.js", SCRIPT),
    asset!("icon.svg", SVG),
    asset!("intake.js", SCRIPT),
    asset!("library.js", SCRIPT),
    asset!("page.css", CSS),
    asset!("photos.js", SCRIPT),
    asset!("playground.css", CSS),
    asset!("playground.js", SCRIPT),
    asset!("pool.js", SCRIPT),
    asset!("query.js", SCRIPT),
    asset!("results.js", SCRIPT),
    asset!("runs.js", SCRIPT),
    asset!("selection.js", SCRIPT),
    asset!("socket.js", SCRIPT),
    asset!("versions.js", SCRIPT),
    asset!("visit.js", SCRIPT),
];

/// Strong tags: the hashes of [`ASSETS`] in their order.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| ASSETS.iter().map(tag).collect());

fn tag(asset: &Asset) -> String {
    format!("\"{}\"", &blake3::hash(&asset.bytes).to_hex()[..32])
}

/// The page at `/`, with the way to the gallery if there is a library.
pub(super) fn show(request: &HeaderMap, with_gallery: bool) -> Response {
    let page: &'static Asset = if with_gallery { &INDEX_WITH_GALLERY } else { &INDEX };
    let mut response = page_response(page, request);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// `GET /gallery`
pub(super) async fn gallery(State(state): State<AppState>, request: HeaderMap) -> Response {
    match state.library() {
        Some(_) => page_response(&GALLERY, &request),
        None => not_found().await.into_response(),
    }
}

/// `GET /playground`
pub(super) async fn playground(State(state): State<AppState>, request: HeaderMap) -> Response {
    match state.library() {
        Some(_) => page_response(&PLAYGROUND, &request),
        None => not_found().await.into_response(),
    }
}

fn page_response(page: &'static Asset, request: &HeaderMap) -> Response {
    let mut response = respond(page, &tag(page), request);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static(PERMISSIONS),
    );
    response
}

/// `GET /page/{name}`
pub(super) async fn asset(
    name: Result<Path<String>, PathRejection>,
    request: HeaderMap,
) -> Response {
    // A name that is not UTF-8 is refused by the extractor.
    let Ok(Path(name)) = name else { return not_found().await.into_response() };
    let found = ASSETS.iter().zip(TAGS.iter()).find(|(asset, _)| asset.name == name);
    match found {
        Some((asset, tag)) => respond(asset, tag, &request),
        None => not_found().await.into_response(),
    }
}

/// The file, or 304 if the browser has it already.
fn respond(asset: &'static Asset, tag: &str, request: &HeaderMap) -> Response {
    let known = request.get_all(IF_NONE_MATCH).iter().any(|tags| names(tags, tag));
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, HeaderValue::from_static(asset.media_type))], &*asset.bytes)
            .into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(CACHING));
    headers.insert(
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    );
    response
}

/// Whether the list in `If-None-Match` contains `tag`; a proxy may have weakened it.
fn names(tags: &HeaderValue, tag: &str) -> bool {
    let Ok(tags) = tags.to_str() else { return false };
    tags.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

/// Whether a client with these headers prefers the page to JSON.
pub(super) fn wanted(request: &HeaderMap) -> bool {
    prefers(request, "text/html", "application/json")
}

#[cfg(test)]
mod tests {
    use axum::http::header::ACCEPT;

    use super::*;

    fn asks(accept: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        wanted(&headers)
    }

    #[test]
    fn browsers_prefer_the_page_and_programs_json() {
        assert!(asks("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"));
        assert!(asks("TEXT/HTML; q=0.5, */*; q=0.1"));
        assert!(asks("application/json;q=0.5, text/html;q=0.6"));
        for accept in [
            "*/*",
            "",
            "application/json",
            "text/plain",
            "text/html;q=0",
            "text/html;q=0.000, */*",
            "application/json, text/html;q=0.9",
            "text/html;q=nonsense",
            "text/htmlx",
        ] {
            assert!(!asks(accept), "{accept}");
        }
        assert!(!wanted(&HeaderMap::new()));
        let mut two = HeaderMap::new();
        two.append(ACCEPT, HeaderValue::from_static("image/webp"));
        two.append(ACCEPT, HeaderValue::from_static("text/html"));
        assert!(wanted(&two));
    }

    #[test]
    fn entity_tags_match_as_lists_and_weakly() {
        let names = |tags: &'static str| names(&HeaderValue::from_static(tags), "\"a\"");
        assert!(names("\"a\"") && names("W/\"a\"") && names("\"b\" , \"a\"") && names("*"));
        assert!(!names("\"b\"") && !names("a") && !names(""));
    }
}
