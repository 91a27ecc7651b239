//! The HTTP server.
//!
//! - [`app`] is the whole service as a router, without a socket;
//! - [`run`] serves it on a listener, loads the model in the background, and shuts down gracefully;
//! - one file per resource: `index` with `page`, `health`, `model`, `generate` with `stream`,
//!   `batch`, `tags`, `texts`, `process`, `metrics`, `backends`, `openapi` with Swagger UI; `dto` holds
//!   their JSON;
//! - `library` searches and edits captions that are kept; `prompts` has prompts and experiments, and
//!   `vocabularies` the allowed tags, which `taggers` prepares;
//! - `realtime` answers the same requests as messages of a WebSocket;
//! - `extract` reads the ways of sending images, `body` limits what is read, `coding`
//!   decompresses it;
//! - `accept` reads which format of an answer the client prefers;
//! - `error` is the only place where an [`ErrorKind`] becomes a status;
//! - `observe` gives every request its id, its log line and its `server-timing`;
//! - `keys` makes and lists keys of clients, `limits` tells what is left of their limits;
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
mod held;
#[cfg(feature = "grpc")]
mod http2;
mod index;
mod keys;
mod library;
mod limits;
mod metrics;
mod model;
mod observe;
mod openapi;
mod page;
mod process;
mod prompts;
mod rate;
mod realtime;
mod server;
mod state;
mod stream;
mod taggers;
mod tags;
mod texts;
mod unread;
mod vocabularies;

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::MatchedPath;
use axum::http::Method;
use axum::middleware;
use axum::routing::get;
use cutline_library::Scope;
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
    use Access::{Docs, Health, Key, Metrics, Open, Picture};
    const CAPTION: Access = Access::CAPTION;
    const TAGS: Access = Access::Scope(Scope::Tags);
    const READ: Access = Access::Scope(Scope::LibraryRead);
    const WRITE: Access = Access::Scope(Scope::LibraryWrite);
    const PROMPTS: Access = Access::Scope(Scope::Prompts);
    const ADMIN: Access = Access::Scope(Scope::Admin);
    let own = [
        (CAPTION, routes!(generate::generate)),
        (CAPTION, routes!(batch::batch)),
        (TAGS, routes!(tags::generate)),
        (TAGS, routes!(vocabularies::list)),
        (TAGS, routes!(vocabularies::show)),
        (WRITE, routes!(vocabularies::save)),
        (WRITE, routes!(vocabularies::choose)),
        (WRITE, routes!(vocabularies::delete)),
        (CAPTION, routes!(texts::score)),
        (CAPTION, routes!(texts::embed)),
        (CAPTION, routes!(texts::ask)),
        (CAPTION, routes!(process::process)),
        (CAPTION, routes!(realtime::connect)),
        (Open, routes!(index::show)),
        (Health, routes!(health::show)),
        (Open, routes!(health::live)),
        (Open, routes!(health::ready)),
        (Key, routes!(model::info)),
        (ADMIN, routes!(backends::show)),
        (Metrics, routes!(metrics::show)),
        (READ, routes!(library::show::find)),
        (READ, routes!(library::show::asset)),
        (WRITE, routes!(library::edit::purge)),
        (Picture, routes!(library::show::thumbnail)),
        (READ, routes!(library::show::history)),
        (READ, routes!(library::show::similar)),
        (READ, routes!(library::show::matching)),
        (WRITE, routes!(library::edit::edit)),
        (READ, routes!(library::show::duplicates)),
        (READ, routes!(library::show::facets)),
        (READ, routes!(library::show::stats)),
        (READ, routes!(library::show::feedback)),
        (WRITE, routes!(library::edit::rate)),
        (WRITE, routes!(library::edit::change)),
        (READ, routes!(library::show::runs)),
        (WRITE, routes!(library::edit::undo)),
        (WRITE, routes!(library::regenerate::one)),
        (WRITE, routes!(library::jobs::start)),
        (READ, routes!(library::jobs::list)),
        (WRITE, routes!(library::jobs::cancel)),
        (ADMIN, routes!(keys::create)),
        (ADMIN, routes!(keys::list)),
        (ADMIN, routes!(keys::edit)),
        (ADMIN, routes!(keys::rotate)),
        (ADMIN, routes!(keys::revoke)),
        (Key, routes!(keys::usage)),
        (PROMPTS, routes!(prompts::list)),
        (PROMPTS, routes!(prompts::show)),
        (PROMPTS, routes!(prompts::save)),
        (PROMPTS, routes!(prompts::label)),
        (PROMPTS, routes!(prompts::diff)),
        (PROMPTS, routes!(prompts::render)),
        (PROMPTS, routes!(prompts::experiments::list)),
        (PROMPTS, routes!(prompts::experiments::start)),
        (PROMPTS, routes!(prompts::experiments::report)),
        (PROMPTS, routes!(prompts::experiments::promote)),
        (PROMPTS, routes!(prompts::experiments::stop)),
        (Docs, routes!(openapi::document)),
    ];
    own.into_iter().chain(contracts::routes()).collect()
}

/// The page of the library, which is not part of the contract.
const GALLERY: &str = "/gallery";

/// The page of prompts, which is not part of the contract.
const PLAYGROUND: &str = "/playground";

/// The files of the pages, which are not part of the contract.
const PAGE_FILES: &str = "/page/{name}";

/// Who may use the route with this pattern. A route that is not in [`routes`] needs a key, and if something
/// is sent, one for captions: those are other addresses of the contracts.
fn access(method: &Method, route: &str) -> Access {
    static ACCESS: LazyLock<HashMap<(Method, String), Access>> = LazyLock::new(|| {
        let pages = [PAGE_FILES, GALLERY, PLAYGROUND]
            .map(|route| ((Method::GET, route.to_owned()), Access::Open));
        let mut all = HashMap::from(pages);
        for (access, (_, item, _)) in routes() {
            for (path, item) in item.paths {
                let methods = [
                    (Method::GET, item.get.is_some()),
                    (Method::POST, item.post.is_some()),
                    (Method::PATCH, item.patch.is_some()),
                    (Method::DELETE, item.delete.is_some()),
                ];
                let declared = methods.into_iter().filter(|(_, declared)| *declared);
                all.extend(declared.map(|(method, _)| ((method, path.clone()), access)));
            }
        }
        all
    });
    #[cfg(feature = "grpc")]
    if contracts::grpc::is_probe(route) {
        return Access::Open;
    }
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let documented = ACCESS.get(&(method.clone(), route.to_owned())).copied();
    documented.unwrap_or(match *method {
        _ if openapi::is_docs(route) && *method == Method::GET => Access::Docs,
        Method::POST if !route.is_empty() => Access::CAPTION,
        _ => Access::Key,
    })
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
        .route(PLAYGROUND, get(page::playground))
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
