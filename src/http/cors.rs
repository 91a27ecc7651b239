//! CORS: which web sites may use the server from a browser.

use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::auth::API_KEY;
use super::observe::{REQUEST_ID, SERVER_TIMING};
use crate::config::CorsOrigins;

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
        ])
        .expose_headers([REQUEST_ID, SERVER_TIMING, RETRY_AFTER])
        .max_age(MAX_AGE);
    Some(layer)
}
