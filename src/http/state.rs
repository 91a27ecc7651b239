//! The state that all handlers share.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cutline_library::Store;
use tokio::sync::{SetOnce, watch};

use super::auth::Guard;
use super::library::Library;
use super::taggers::Taggers;
use crate::accounts::{Accounts, Clock};
use crate::captioner::{Captioner, Decoders, ImageMemory, Keep, NearTags};
use crate::config::HttpSettings;
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::near_tags::LibraryTags;
use crate::routing::Routes;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::DecodeLimits;

/// The state that all handlers share: the captioner once it is loaded, the limits, and the number of
/// active requests. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<ServerState>,
    metrics: Metrics,
}

struct ServerState {
    settings: HttpSettings,
    guard: Guard,
    started: Instant,
    captioner: SetOnce<Captioner>,
    /// For images that arrive before the captioner is loaded.
    decoders: Decoders,
    fetcher: Fetcher,
    library: OnceLock<Library>,
    /// Tags of similar photos in the library.
    near_tags: OnceLock<Arc<dyn NearTags>>,
    /// Vocabularies that were prepared.
    taggers: Taggers,
    /// Backends and routes, if there are any.
    routes: OnceLock<Routes>,
    draining: watch::Sender<bool>,
    refusing: AtomicBool,
    /// Requests in progress.
    active: watch::Sender<usize>,
    /// Open WebSocket connections.
    sessions: watch::Sender<usize>,
}

impl AppState {
    /// A state in which the model is still loading.
    #[must_use]
    pub fn new(settings: HttpSettings) -> Self {
        let limits = DecodeLimits {
            max_bytes: settings.max_image_bytes,
            max_pixels: settings.max_image_pixels,
        };
        Self {
            inner: Arc::new(ServerState {
                guard: Guard::new(&settings.protection),
                decoders: Decoders::with_memory(
                    limits,
                    settings.max_workers,
                    ImageMemory::new(settings.max_inflight_bytes, settings.max_decode_bytes),
                ),
                fetcher: Fetcher::new(settings.fetch.clone()),
                library: OnceLock::new(),
                near_tags: OnceLock::new(),
                taggers: Taggers::default(),
                routes: OnceLock::new(),
                settings,
                started: Instant::now(),
                captioner: SetOnce::new(),
                draining: watch::Sender::new(false),
                refusing: AtomicBool::new(false),
                active: watch::Sender::new(0),
                sessions: watch::Sender::new(0),
            }),
            metrics: Metrics::new(),
        }
    }

    /// Counts in `metrics`, which `/metrics` exports. A captioner with the same metrics is
    /// included.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Keeps captions in `store` from now on, and answers requests for it. Only the first call has an
    /// effect, and it must come before [`ready`](Self::ready).
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): the system provides no thread; or the keys cannot be read.
    pub fn keep_in(&self, store: Arc<dyn Store>) -> Result<()> {
        self.keep_in_with(store, Clock::default())
    }

    /// As [`keep_in`](Self::keep_in), with another clock for the budgets of keys.
    ///
    /// # Errors
    /// Those of [`keep_in`](Self::keep_in).
    pub fn keep_in_with(&self, store: Arc<dyn Store>, clock: Clock) -> Result<()> {
        let near: Arc<dyn NearTags> = Arc::new(LibraryTags::new(Arc::clone(&store)));
        let _ = self.inner.near_tags.set(near);
        let accounts = Accounts::start(Arc::clone(&store), clock, self.metrics.clone())?;
        self.inner.guard.manage(accounts);
        let _ = self.inner.library.set(Library::new(store)?);
        Ok(())
    }

    /// Waits until all captions are kept that were made, if any are.
    pub fn flush_library(&self) {
        if let Some(library) = self.library() {
            library.keeper.flush();
        }
    }

    /// The library, if captions are kept.
    pub(super) fn library(&self) -> Option<&Library> {
        self.inner.library.get()
    }

    /// Tags of similar photos, if there is a library.
    pub(super) fn near_tags(&self) -> Option<Arc<dyn NearTags>> {
        self.inner.near_tags.get().cloned()
    }

    /// Vocabularies that were prepared.
    pub(super) fn taggers(&self) -> &Taggers {
        &self.inner.taggers
    }

    /// Sets the captioner. Only the first call has an effect.
    pub fn ready(&self, captioner: Captioner) {
        if let Some(library) = self.library() {
            captioner.keep_with(Arc::clone(&library.keeper) as Arc<dyn Keep>);
            for (_, model) in captioner.other_models() {
                model.keep_with(Arc::clone(&library.keeper) as Arc<dyn Keep>);
            }
        }
        let _ = self.inner.captioner.set(captioner);
    }

    /// Shows the state of `routes`. Only the first call has an effect.
    pub fn show_routes(&self, routes: Routes) {
        let _ = self.inner.routes.set(routes);
    }

    /// Backends and routes, if there are any.
    pub(super) fn routes(&self) -> Option<&Routes> {
        self.inner.routes.get()
    }

    /// Reports from now on that the server is not ready, and asks clients to close their connections,
    /// so that a load balancer sends new requests elsewhere. Requests are still answered.
    pub fn drain(&self) {
        self.inner.draining.send_replace(true);
    }

    /// Refuses new captions from now on; accepted requests continue. Includes [`drain`](Self::drain).
    pub fn stop(&self) {
        self.drain();
        self.inner.refusing.store(true, Ordering::Relaxed);
    }

    /// Waits until the model has stopped for good. Pending while it loads and works.
    pub async fn model_failed(&self) {
        self.inner.captioner.wait().await.failed().await;
    }

    /// Waits until no request is in progress.
    pub async fn idle(&self) {
        // Fails only if the sender is dropped, and `self` holds it.
        let _ = self.inner.active.subscribe().wait_for(|active| *active == 0).await;
    }

    pub(super) fn settings(&self) -> &HttpSettings {
        &self.inner.settings
    }

    /// Checks API keys and rates.
    pub(super) fn guard(&self) -> &Guard {
        &self.inner.guard
    }

    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// Whether the server is about to stop. It may still accept requests.
    pub(super) fn draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// Changes when the server is about to stop.
    pub(super) fn watch_draining(&self) -> watch::Receiver<bool> {
        self.inner.draining.subscribe()
    }

    /// Waits until no WebSocket connection is open.
    pub(super) async fn sessions_closed(&self) {
        // As in `idle`.
        let _ = self.inner.sessions.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Counts a WebSocket connection until the result is dropped.
    pub(super) fn open_session(&self) -> OpenSession {
        self.inner.sessions.send_modify(|open| *open += 1);
        OpenSession(self.clone())
    }

    fn refusing(&self) -> bool {
        self.inner.refusing.load(Ordering::Relaxed)
    }

    /// The captioner if it is loaded, even while the server is stopping.
    pub(super) fn loaded(&self) -> Option<&Captioner> {
        self.inner.captioner.get()
    }

    /// The captioner for a new request.
    pub(super) fn captioner(&self) -> Result<&Captioner> {
        if self.refusing() {
            return Err(Error::shutting_down());
        }
        let captioner = self.loaded().ok_or_else(loading)?;
        if captioner.has_failed() {
            return Err(Error::model_stopped());
        }
        Ok(captioner)
    }

    /// The threads that decode a new request's image: the captioner's as soon as it is loaded.
    pub(super) fn decoders(&self) -> Result<&Decoders> {
        if self.refusing() {
            return Err(Error::shutting_down());
        }
        Ok(self.loaded().map_or(&self.inner.decoders, Captioner::decoders))
    }

    /// Fetches images by URL, if the settings allow it.
    #[must_use]
    pub fn fetcher(&self) -> &Fetcher {
        &self.inner.fetcher
    }

    /// The metrics.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The memory for images.
    pub(super) fn image_memory(&self) -> &ImageMemory {
        self.loaded().map_or(&self.inner.decoders, Captioner::decoders).memory()
    }

    /// Requests in progress.
    pub(super) fn active(&self) -> usize {
        *self.inner.active.borrow()
    }

    /// Counts a request until the result is dropped.
    pub(super) fn enter(&self) -> ActiveRequest {
        self.inner.active.send_modify(|active| *active += 1);
        ActiveRequest(self.clone())
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// A request in progress.
pub(super) struct ActiveRequest(AppState);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.inner.active.send_modify(|active| *active -= 1);
    }
}

/// An open WebSocket connection.
pub(super) struct OpenSession(AppState);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.inner.sessions.send_modify(|open| *open -= 1);
    }
}

pub(super) fn loading() -> Error {
    Error::new(ErrorKind::NotReady, "the model is still loading; try again in a few seconds")
        .with_retry_after(Duration::from_secs(2))
}
