//! Keeps pages of other sites away from a library without keys.
//!
//! A page can give a name of its own the address of this machine (DNS rebinding), and its browser then takes
//! the server for the page's own. Its requests have that name as `Host`. Captions of a photo that the page
//! sends itself tell it nothing new; the library has everybody's, and so have tags, which come from similar
//! photos and from vocabularies there.

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;

use crate::config::HttpSettings;
use crate::http::cors;
use crate::http::error::Failure;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The layer that refuses requests for the library.
pub(in crate::http) async fn check(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let kept = ["/library/", "/prompts", "/experiments", "/vocabularies", "/tags/"];
    if kept.iter().any(|kept| route.starts_with(kept)) && state.library().is_some() {
        allowed(request.headers(), &state)?;
    }
    Ok(next.run(request).await)
}

/// [`OriginNotAllowed`](ErrorKind::OriginNotAllowed) if a page of another site may have sent this.
fn allowed(headers: &HeaderMap, state: &AppState) -> Result<()> {
    let HttpSettings { protection, loopback_host, .. } = state.settings();
    // No page of another site has a key.
    if state.guard().needs_key() {
        return Ok(());
    }
    cors::check_origin(headers, &protection.cors)?;
    // A server for other machines, or behind a proxy, may have any name.
    let Some(listens) = loopback_host.as_deref().filter(|_| protection.proxies == 0) else {
        return Ok(());
    };
    // Browsers always send it.
    let Some(given) = headers.get(HOST) else { return Ok(()) };
    let host = given.to_str().ok().and_then(|given| given.parse::<Authority>().ok());
    let names = ["localhost", "127.0.0.1", "::1", listens];
    let own = host.is_some_and(|host| {
        let host = host.host().trim_start_matches('[').trim_end_matches(']');
        names.iter().any(|name| name.eq_ignore_ascii_case(host))
    });
    if own {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::OriginNotAllowed,
        "the library is not available under this Host, because a web page may have forged it; use the \
         address that the server listens on, or let its operator set API_KEYS or TRUSTED_PROXY_COUNT",
    ))
}
