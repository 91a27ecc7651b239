//! Which sites' pages may use the server, as browsers enforce it.

use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::auth::API_KEY;
use super::observe::{REQUEST_ID, SERVER_TIMING};
use crate::config::CorsOrigins;

/// How long a browser need not ask again; Chromium keeps it no longer than this.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// The layer that tells browsers, and answers their preflights; `None` where no other site's page
/// may use the server. Cookies are never part of it: a key goes in a header.
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
