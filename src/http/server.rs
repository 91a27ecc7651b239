//! The life cycle of the server: listening, loading, serving, stopping.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{Connection, ConnectionLimit, TimeoutListener};
use super::{AppState, app, taggers};
#[cfg(feature = "redis")]
use crate::cache::Shared;
use crate::captioner::{Captioner, TagParams};
use crate::config::{Settings, read_routes};
use crate::engine::Ability;
use crate::metrics::{Metrics, max_descriptors};
use crate::routing::{self, Loaded, Routes};
use cutline_error::{Error, ErrorKind, Result};

/// Time for connections to write their last answers, even when the grace period is over.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How a server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shutdown {
    /// New requests are accepted for `SHUTDOWN_DELAY`, while the server reports that it is not ready.
    #[default]
    Delayed,
    /// New requests are refused at once.
    Immediate,
}

/// The sockets of a server.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For gRPC, in programs with the feature `grpc`.
    pub grpc: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, grpc: None }
    }
}

/// Serves on `listeners` at once and loads the model in the background. Returns when `shutdown` has
/// ended and accepted requests are answered. For each message from `reloads`, the file of routes is read
/// again, if there is one.
///
/// # Errors
/// The model cannot be loaded or has stopped for good, or the listener fails.
pub async fn run(
    listeners: impl Into<Listeners>,
    settings: Settings,
    reloads: mpsc::Receiver<()>,
    shutdown: impl Future<Output = Shutdown> + Send + 'static,
) -> Result<()> {
    let metrics = Metrics::new();
    let state = AppState::new(settings.http).with_metrics(metrics.clone());
    if let Some(address) = &settings.library {
        state.keep_in(cutline_library::open(address)?)?;
    }
    #[cfg(feature = "redis")]
    let shared = match settings.shared_cache {
        Some(options) => Some((Shared::new(&options, metrics.clone())?, options.scope)),
        None => None,
    };
    let captioner = settings.captioner.with_metrics(metrics);
    // One limit for images before and after the model is loaded.
    let captioner = captioner.with_image_memory(state.image_memory().clone());
    let routing = settings.routing;
    let file = routing.file.clone();
    let loading = tokio::task::spawn_blocking(move || routing::load(&captioner, &routing));
    let mut serving = Box::pin(serve_until(listeners.into(), state.clone(), shutdown));
    let loaded = tokio::select! {
        loaded = loading => loaded,
        // Stopped before the model was loaded.
        ended = &mut serving => return ended,
    };
    let Loaded { captioner, routes } = loaded.map_err(|join| {
        Error::model("loading the model crashed; fetch its files again").with_source(join)
    })??;
    let info = captioner.info();
    let ready_ms = info.load_ms + info.warm_up_ms;
    tracing::info!(
        model = info.id,
        device = info.device,
        gpu = info.gpu.as_ref().map(|gpu| gpu.name.as_str()),
        precision = info.precision,
        load_ms = info.load_ms,
        warm_up_ms = info.warm_up_ms,
        "model ready in {ready_ms:.0} ms"
    );
    // Ends with this function.
    let mut tasks = JoinSet::new();
    if let Some(routes) = routes {
        if let Some(file) = file {
            tasks.spawn(reload(file, routes.clone(), reloads));
        }
        state.show_routes(routes);
    }
    #[cfg(feature = "redis")]
    if let Some((cache, scope)) = shared {
        for (_, other) in captioner.other_models() {
            other.share_with(cache.clone(), scope);
        }
        captioner.share_with(cache, scope);
    }
    if settings.library_embeddings {
        embed(&captioner)?;
    }
    state.ready(captioner.clone());
    if state.settings().tag_vocabulary.is_some() {
        tokio::spawn(warm_tagger(state.clone(), captioner));
    }
    let ended = serving.await;
    // Captions that were answered are kept.
    let _ = tokio::task::spawn_blocking(move || state.flush_library()).await;
    ended
}

/// Reads the file of routes again whenever that is asked for. A file that cannot be used changes nothing.
async fn reload(file: PathBuf, routes: Routes, mut reloads: mpsc::Receiver<()>) {
    while reloads.recv().await.is_some() {
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || read_routes(&path)).await;
        let read = read.unwrap_or_else(|join| {
            Err(Error::internal("reading the file of routes crashed").with_source(join))
        });
        match read.and_then(|(config, keys)| routes.replace(config, keys)) {
            Ok(()) => tracing::info!("the routes in ROUTES_FILE are in use from now on"),
            Err(error) => {
                tracing::error!(%error, "ROUTES_FILE cannot be used; the routes stay as they were");
            }
        }
    }
}

/// Embeds photos whose captions are kept.
fn embed(captioner: &Captioner) -> Result<()> {
    let embedder = captioner.able(Ability::Embed).map_err(|error| {
        let detail = format!("LIBRARY_EMBEDDINGS needs a model that embeds, among MODELS: {error}");
        Error::new(ErrorKind::Config, detail)
    })?;
    for (_, other) in captioner.other_models() {
        other.embed_with(embedder)?;
    }
    captioner.embed_with(embedder)
}

/// Computes what the first request for tags would otherwise wait for.
async fn warm_tagger(state: AppState, captioner: Captioner) {
    let warm = async {
        let tagger = taggers::of(&state, &captioner, None).await?;
        captioner.warm_tagger(&tagger, &TagParams::default()).await
    };
    if let Err(error) = warm.await {
        tracing::warn!(%error, "the tags of TAG_VOCABULARY are not ready; the first request prepares them");
    }
}

/// Serves `state` on `listener` until `shutdown` ends. From then on the server is not ready. After
/// `SHUTDOWN_DELAY`, new captions are refused with 503. Connections are closed when accepted requests
/// are answered or the grace period is over.
///
/// Without its model, the server stops in the same way by itself, because only a new process can help.
///
/// # Errors
/// - [`Io`](ErrorKind::Io): the listener fails;
/// - [`Model`](ErrorKind::Model): the model has stopped for good.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let shutdown = async {
        shutdown.await;
        Shutdown::Delayed
    };
    serve_until(listener.into(), state, shutdown).await
}

async fn serve_until(
    listeners: Listeners,
    state: AppState,
    shutdown: impl Future<Output = Shutdown> + Send + 'static,
) -> Result<()> {
    let settings = state.settings();
    match listeners.http.local_addr() {
        Ok(address) => tracing::info!("listening on http://{address}"),
        Err(error) => return Err(broken_listener(error)),
    }
    let most = most_connections(settings.max_connections, max_descriptors());
    let limit = ConnectionLimit::new(most);
    let listener = TimeoutListener::new(listeners.http, settings.idle_timeout, limit.clone());
    let service = app(state.clone()).into_make_service_with_connect_info::<Connection>();
    let (close, mut closed) = watch::channel(false);
    #[cfg(feature = "grpc")]
    let grpc = match listeners.grpc {
        Some(listener) => Some(serve_grpc(listener, &state, limit, closed.clone())?),
        None => None,
    };
    let mut server = Box::pin(
        axum::serve(listener, service)
            .with_graceful_shutdown(async move {
                let _ = closed.wait_for(|closed| *closed).await;
            })
            .into_future(),
    );

    let deadline = tokio::select! {
        ended = &mut server => return ended.map_err(broken_listener),
        deadline = stop(&state, shutdown) => deadline,
    };
    let _ = close.send(true);
    let end = deadline.max(Instant::now() + DRAIN_TIMEOUT);
    // Connections that remain after that neither send nor receive; they end with the process.
    let ended = async {
        let ended = server.await;
        #[cfg(feature = "grpc")]
        if let Some(grpc) = grpc {
            let _ = grpc.await;
        }
        ended
    };
    if let Ok(ended) = timeout_at(end, ended).await {
        ended.map_err(broken_listener)?;
    }
    // They close themselves once their requests have ended.
    let _ = timeout_at(end, state.sessions_closed()).await;
    if state.loaded().is_some_and(Captioner::has_failed) {
        return Err(Error::model(
            "the model has stopped and cannot recover, see the log; start the server again",
        ));
    }
    Ok(())
}

/// Serves gRPC until `closed` changes; its connections count as those of HTTP.
#[cfg(feature = "grpc")]
fn serve_grpc(
    listener: TcpListener,
    state: &AppState,
    limit: ConnectionLimit,
    closed: watch::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<()>> {
    let address = listener.local_addr().map_err(broken_listener)?;
    tracing::info!("listening on grpc://{address}");
    let listener = TimeoutListener::new(listener, state.settings().idle_timeout, limit);
    let app = super::grpc_app(state.clone());
    Ok(tokio::spawn(super::http2::serve(listener, app, closed)))
}

/// Waits for a reason to stop, then until no request is in progress. Returns the end of the grace
/// period.
async fn stop(state: &AppState, shutdown: impl Future<Output = Shutdown>) -> Instant {
    let settings = state.settings();
    let delay = settings.shutdown_delay;
    tokio::select! {
        how = shutdown => {
            state.drain();
            // A server that was never ready gets no requests from a load balancer.
            if how == Shutdown::Delayed && !delay.is_zero() && state.loaded().is_some() {
                tracing::info!(
                    "stopping: not ready from now on, refusing new requests in {} s",
                    delay.as_secs_f64()
                );
                tokio::select! {
                    () = sleep(delay) => {}
                    () = state.model_failed() => {}
                }
            }
        }
        () = state.model_failed() => {
            state.drain();
            tracing::error!(
                "the model has stopped for good: exiting in {} s, to be started again",
                delay.as_secs_f64()
            );
            // Probes and clients learn the reason before the port closes.
            sleep(delay).await;
        }
    }
    let deadline = Instant::now() + settings.shutdown_grace;
    state.stop();
    tracing::info!("stopping: finishing accepted requests, refusing new ones");
    if timeout_at(deadline, state.idle()).await.is_err() {
        tracing::warn!("some requests were not finished within SHUTDOWN_GRACE");
    }
    deadline
}

/// File descriptors that are not for connections: the runtime's own, and files that are read.
const OTHER_DESCRIPTORS: u64 = 32;

/// At most `wanted` connections, but no more than the system's limit for file descriptors leaves room
/// for. Without a free descriptor nothing can be accepted, so silent connections could not be closed
/// in favour of new ones.
fn most_connections(wanted: usize, descriptors: Option<u64>) -> usize {
    let room = descriptors.map(|most| most.saturating_sub(OTHER_DESCRIPTORS).max(1));
    let Some(room) = room.and_then(|room| usize::try_from(room).ok()).filter(|room| *room < wanted)
    else {
        return wanted;
    };
    tracing::info!(
        "at most {room} connections instead of MAX_CONNECTIONS={wanted}: the system's limit for open \
         files leaves no room for more; raise it with ulimit -n or LimitNOFILE"
    );
    room
}

fn broken_listener(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "the listening socket failed; start the server again")
        .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(most_connections(1024, None), 1024);
        assert_eq!(most_connections(1024, Some(4096)), 1024);
        assert_eq!(most_connections(1024, Some(1024)), 992);
        assert_eq!(most_connections(20, Some(64)), 20);
        assert_eq!(most_connections(1024, Some(8)), 1, "the server must not refuse everyone");
    }
}
