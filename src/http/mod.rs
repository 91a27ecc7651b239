//! The HTTP server.
//!
//! - [`app`] is the whole service as a router, without a socket;
//! - [`run`] serves it on a listener, loads the model in the background, and shuts down gracefully;
//! - one file per resource: `index` with `page`, `health`, `model`, `generate` with `stream`,
//!   `batch`, `tags`, `process`, `metrics`, `backends`, `openapi` with Swagger UI; `dto` holds their JSON;
//! - `library` searches and edits captions that are kept;
//! - `realtime` answers the same requests as messages of a WebSocket;
//! - `extract` reads the ways of sending images, `body` limits what is read, `coding`
//!   decompresses it;
//! - `accept` reads which format of an answer the client prefers;
//! - `error` is the only place where an [`ErrorKind`] becomes a status;
//! - `observe` gives every request its id, its log line and its `server-timing`;
//! - `auth` and `rate` check who may send requests and how often, `cors` and `headers` instruct
//!   browsers;
//! - `connection` limits the sockets; `http2` is for gRPC;
//! - `contracts` are the interfaces of other programs, one folder each.
//!
//! A new endpoint is a handler with its documentation, and a line in `routes`.

mod accept;
mod auth;
mod backends;
mod batch;
mod body;
mod coding;
mod connection;
mod contracts;
mod cors;
mod dto;
mod error;
mod extract;
mod generate;
mod headers;
mod health;
#[cfg(feature = "grpc")]
mod http2;
mod index;
mod library;
mod metrics;
mod model;
mod observe;
mod openapi;
mod page;
mod process;
mod rate;
mod realtime;
mod server;
mod state;
mod stream;
mod tags;
mod unread;

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::MatchedPath;
use axum::http::Method;
use axum::middleware;
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use self::auth::Access;
use self::dto::Endpoint;
use self::error::Failure;
pub(crate) use self::extract::encoded::image as image_in_text;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use self::extract::fuzzing;
pub use self::openapi::contract_json;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use self::realtime::fuzzing as fuzzing_realtime;
pub use self::server::{Listeners, Shutdown, run, serve};
pub use self::state::AppState;
use cutline_error::{Error, ErrorKind};

/// Every route and who may use it. Path, method and documentation are declared at the handler; the
/// router, the contract, the list at `GET /` and the check of API keys all follow from this list.
fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    let own = [
        (Access::Key, routes!(generate::generate)),
        (Access::Key, routes!(batch::batch)),
        (Access::Key, routes!(tags::generate)),
        (Access::Key, routes!(process::process)),
        (Access::Key, routes!(realtime::connect)),
        (Access::Open, routes!(index::show)),
        (Access::Health, routes!(health::show)),
        (Access::Open, routes!(health::live)),
        (Access::Open, routes!(health::ready)),
        (Access::Key, routes!(model::info)),
        (Access::Key, routes!(backends::show)),
        (Access::Metrics, routes!(metrics::show)),
        (Access::Key, routes!(library::show::find)),
        (Access::Key, routes!(library::show::asset, library::edit::purge)),
        (Access::Picture, routes!(library::show::thumbnail)),
        (Access::Key, routes!(library::show::history)),
        (Access::Key, routes!(library::show::similar)),
        (Access::Key, routes!(library::edit::edit)),
        (Access::Key, routes!(library::show::duplicates)),
        (Access::Key, routes!(library::show::facets)),
        (Access::Key, routes!(library::show::stats)),
        (Access::Key, routes!(library::show::feedback, library::edit::rate)),
        (Access::Key, routes!(library::edit::change)),
        (Access::Key, routes!(library::show::runs)),
        (Access::Key, routes!(library::edit::undo)),
        (Access::Key, routes!(library::regenerate::one)),
        (Access::Key, routes!(library::jobs::start)),
        (Access::Key, routes!(library::jobs::list)),
        (Access::Key, routes!(library::jobs::cancel)),
        (Access::Docs, routes!(openapi::document)),
    ];
    own.into_iter().chain(contracts::routes()).collect()
}

/// The page of the library, which is not part of the contract.
const GALLERY: &str = "/gallery";

/// The files of the pages, which are not part of the contract.
const PAGE_FILES: &str = "/page/{name}";

/// Who may use the route with this pattern. A route that is not in [`routes`] needs a key.
fn access(method: &Method, route: &str) -> Access {
    /// Of requests that read, and of those that send something.
    static ACCESS: LazyLock<[HashMap<String, Access>; 2]> = LazyLock::new(|| {
        let pages = [PAGE_FILES, GALLERY].map(|route| (route.to_owned(), Access::Open));
        let mut all = [HashMap::from(pages), HashMap::new()];
        for (access, (_, item, _)) in routes() {
            for (path, item) in item.paths {
                all[usize::from(item.post.is_some())].insert(path, access);
            }
        }
        all
    });
    #[cfg(feature = "grpc")]
    if contracts::grpc::is_probe(route) {
        return Access::Open;
    }
    let sends = !matches!(*method, Method::GET | Method::HEAD);
    let documented = ACCESS[usize::from(sends)].get(route).copied();
    documented.unwrap_or(if openapi::is_docs(route) { Access::Docs } else { Access::Key })
}

/// The endpoints of the contract.
fn endpoints() -> &'static [Endpoint] {
    static ENDPOINTS: LazyLock<Vec<Endpoint>> = LazyLock::new(|| {
        let paths = openapi::contract().paths.paths.into_iter();
        let endpoints = paths.flat_map(|(path, item)| {
            let operations = [
                ("GET", item.get),
                ("POST", item.post),
                ("PATCH", item.patch),
                ("DELETE", item.delete),
            ]
            .into_iter();
            operations.filter_map(move |(method, operation)| {
                let description = operation?.summary.unwrap_or_default();
                Some(Endpoint { method, path: path.clone(), description })
            })
        });
        endpoints.collect()
    });
    &ENDPOINTS
}

/// The whole service.
pub fn app(state: AppState) -> Router {
    let documented = routes().into_iter();
    let routes = documented.fold(OpenApiRouter::new(), |router, (_, route)| router.routes(route));
    let routes = Router::from(routes)
        .route(PAGE_FILES, get(page::asset))
        .route(GALLERY, get(page::gallery))
        .merge(contracts::more_routes())
        .merge(openapi::swagger_ui())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), library::sites::check))
        .layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(CatchPanicLayer::custom(error::from_panic));
    // Before the keys: a preflight request has none, and a page may read why a request was refused.
    let routes = match cors::layer(&state.settings().protection.cors) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes
        .layer(middleware::from_fn_with_state(state.clone(), observe::observe))
        .layer(middleware::map_response(headers::harden))
        .with_state(state)
}

/// KServe's gRPC service, without a socket.
#[cfg(feature = "grpc")]
pub fn grpc_app(state: AppState) -> Router {
    contracts::grpc::app(state)
}

async fn not_found() -> Failure {
    Failure(unknown_address())
}

fn unknown_address() -> Error {
    Error::new(ErrorKind::NotFound, "this address does not exist; GET / lists those that do")
}

async fn method_not_allowed(method: Method, route: Option<MatchedPath>) -> Failure {
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    let here = endpoints().iter().filter(|endpoint| endpoint.path == route);
    let mut allowed: Vec<&str> = here.map(|endpoint| endpoint.method).collect();
    if allowed.is_empty() {
        // Routes that are not in the document.
        allowed.extend(contracts::methods(route));
    }
    Failure(Error::new(
        ErrorKind::MethodNotAllowed,
        format!("{method} is not allowed here; use {}", allowed.join(" or ")),
    ))
}
