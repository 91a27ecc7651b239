//! CORS: which web sites may use the server from a browser.

use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::auth::API_KEY;
use super::limits;
use super::observe::{REQUEST_ID, SERVER_TIMING};
use crate::config::CorsOrigins;
use cutline_error::{Error, ErrorKind, Result};

/// How long a browser may cache a preflight; Chromium's maximum.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// The layer that sets the headers and answers preflights; `None` if no other site may use the
/// server. Cookies are not allowed: a key goes in a header.
pub(super) fn layer(origins: &CorsOrigins) -> Option<CorsLayer> {
    let origins = match origins {
        CorsOrigins::None => return None,
        CorsOrigins::Any => AllowOrigin::any(),
        CorsOrigins::List(list) => {
            // Origins are visible ASCII.
            AllowOrigin::list(list.iter().filter_map(|one| HeaderValue::from_str(one).ok()))
        }
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            ACCEPT,
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static(API_KEY),
            REQUEST_ID,
            HeaderName::from_static("mcp-protocol-version"),
            HeaderName::from_static("mcp-method"),
            HeaderName::from_static("mcp-name"),
        ])
        .expose_headers(
            [REQUEST_ID, SERVER_TIMING, RETRY_AFTER]
                .into_iter()
                .chain(limits::names())
                .collect::<Vec<_>>(),
        )
        .max_age(MAX_AGE);
    Some(layer)
}

/// Checks the origin of a WebSocket. Browsers let every page open one to every server and ask nobody
/// before, so the server must refuse pages of other sites. Programs send no origin.
///
/// # Errors
/// [`OriginNotAllowed`](ErrorKind::OriginNotAllowed).
pub(super) fn check_origin(headers: &HeaderMap, allowed: &CorsOrigins) -> Result<()> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else { return Ok(()) };
    let listed = match allowed {
        CorsOrigins::None => false,
        CorsOrigins::Any => true,
        CorsOrigins::List(list) => list.iter().any(|one| one.as_bytes() == origin.as_bytes()),
    };
    if origins.next().is_none() && (listed || is_own(origin, headers)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::OriginNotAllowed,
        "pages of this origin may not connect; list it in CORS_ALLOW_ORIGINS, and let a proxy pass the \
         header Host on",
    ))
}

/// Whether the origin is this server's, as far as its own address in the request tells. That has no
/// scheme, which may be that of a proxy in any case.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    let (Some(origin), Some(host)) = (origin, host) else { return false };
    let standard = match origin.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let port = |port: Option<u16>| port.unwrap_or(standard);
    origin.host().is_some_and(|name| name.eq_ignore_ascii_case(host.host()))
        && port(origin.port_u16()) == port(host.port_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origin: &str, host: &str, list: &CorsOrigins) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        check_origin(&headers, list).is_ok()
    }

    #[test]
    fn pages_of_this_server_may_connect_and_others_if_they_are_listed() {
        let none = CorsOrigins::None;
        for (origin, host) in [
            ("http://localhost:8000", "localhost:8000"),
            ("https://photos.example.com", "photos.example.com"),
            ("https://photos.example.com", "Photos.Example.com:443"),
            ("http://photos.example.com:80", "photos.example.com"),
            ("http://[::1]:8000", "[::1]:8000"),
        ] {
            assert!(allowed(origin, host, &none), "{origin} {host}");
        }
        let list = CorsOrigins::List(vec!["https://app.example.com".to_owned()]);
        for (origin, host) in [
            ("http://localhost:3000", "localhost:8000"),
            ("http://localhost", "localhost:8000"),
            ("https://photos.example.com:80", "photos.example.com"),
            ("https://evil.example", "photos.example.com"),
            ("https://photos.example.com.evil.example", "photos.example.com"),
            ("https://evil.example/photos.example.com", "photos.example.com"),
            ("https://photos.example.com@evil.example", "photos.example.com"),
            ("null", "photos.example.com"),
            ("null", "null"),
            ("file://", "photos.example.com"),
            ("chrome-extension://photos.example.com", "photos.example.com"),
            ("https://app.example.com.evil.example", "photos.example.com"),
            ("", ""),
        ] {
            assert!(!allowed(origin, host, &none), "{origin} {host}");
            assert!(!allowed(origin, host, &list), "{origin} {host}");
            assert!(allowed(origin, host, &CorsOrigins::Any), "{origin} {host}");
        }
        assert!(allowed("https://app.example.com", "photos.example.com", &list));
        assert!(check_origin(&HeaderMap::new(), &none).is_ok(), "a program has no origin");
        let mut two = HeaderMap::new();
        two.append(HOST, HeaderValue::from_static("a"));
        two.append(ORIGIN, HeaderValue::from_static("http://a"));
        two.append(ORIGIN, HeaderValue::from_static("http://b"));
        assert!(check_origin(&two, &CorsOrigins::Any).is_err());
    }
}
