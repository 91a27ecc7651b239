//! What the handlers share.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::auth::Guard;
use crate::captioner::{Budget, Captioner, Decoders};
use crate::config::HttpSettings;
use crate::metrics::Metrics;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::DecodeLimits;

/// What the handlers share: the captioner once it is loaded, the limits, and who is being served.
/// Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

struct Inner {
    settings: HttpSettings,
    guard: Guard,
    started: Instant,
    captioner: OnceLock<Captioner>,
    /// For images that come before the captioner is there.
    decoders: Decoders,
    stopping: AtomicBool,
    /// Requests that are being answered.
    active: watch::Sender<usize>,
    metrics: Metrics,
}

impl AppState {
    /// A state in which the model is still loading.
    #[must_use]
    pub fn new(settings: HttpSettings) -> Self {
        Self::measured(settings, Metrics::new())
    }

    /// [`new`](Self::new), with what happens counted in `metrics`; a captioner that counts in the
    /// same ones is shown with it at `/metrics`.
    #[must_use]
    pub fn measured(settings: HttpSettings, metrics: Metrics) -> Self {
        let limits = DecodeLimits {
            max_bytes: settings.max_image_bytes,
            max_pixels: settings.max_image_pixels,
        };
        Self {
            inner: Arc::new(Inner {
                guard: Guard::new(&settings.protection),
                decoders: Decoders::new(
                    limits,
                    settings.max_workers,
                    Budget::new(settings.max_inflight_bytes),
                ),
                settings,
                started: Instant::now(),
                captioner: OnceLock::new(),
                stopping: AtomicBool::new(false),
                active: watch::Sender::new(0),
                metrics,
            }),
        }
    }

    /// From now on captions are made by `captioner`. Only the first call counts.
    pub fn ready(&self, captioner: Captioner) {
        let _ = self.inner.captioner.set(captioner);
    }

    /// From now on new captions are refused; what was accepted goes on.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until no request is being answered.
    pub async fn idle(&self) {
        // The sender lives in `self`, so this cannot fail before it is true.
        let _ = self.inner.active.subscribe().wait_for(|active| *active == 0).await;
    }

    pub(super) fn settings(&self) -> &HttpSettings {
        &self.inner.settings
    }

    /// Who may ask.
    pub(super) fn guard(&self) -> &Guard {
        &self.inner.guard
    }

    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    pub(super) fn stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Relaxed)
    }

    /// The captioner, whether or not the server is stopping.
    pub(super) fn loaded(&self) -> Option<&Captioner> {
        self.inner.captioner.get()
    }

    /// The captioner for a new request.
    pub(super) fn captioner(&self) -> Result<&Captioner> {
        if self.stopping() {
            return Err(shutting_down());
        }
        self.loaded().ok_or_else(loading)
    }

    /// Where a new request's image is worked on: beside those that are captioned, as soon as there is
    /// a captioner.
    pub(super) fn decoders(&self) -> Result<&Decoders> {
        if self.stopping() {
            return Err(shutting_down());
        }
        Ok(self.loaded().map_or(&self.inner.decoders, Captioner::decoders))
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Bytes of images that may be in memory.
    pub(super) fn budget(&self) -> &Budget {
        self.loaded().map_or(&self.inner.decoders, Captioner::decoders).budget()
    }

    /// Requests that are being answered.
    pub(super) fn active(&self) -> usize {
        *self.inner.active.borrow()
    }

    /// Counts a request until the result is dropped.
    pub(super) fn enter(&self) -> Active {
        self.inner.active.send_modify(|active| *active += 1);
        Active(self.clone())
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// A request that is being answered.
pub(super) struct Active(AppState);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.inner.active.send_modify(|active| *active -= 1);
    }
}

pub(super) fn loading() -> Error {
    Error::new(ErrorKind::NotReady, "the model is still loading; try again in a few seconds")
        .with_retry_after(Duration::from_secs(2))
}

pub(super) fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the server is stopping; send the request to another one")
        .with_retry_after(Duration::from_secs(5))
}
