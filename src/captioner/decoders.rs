//! The threads on which images are decoded and looked at, beside the model and beside the runtime.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tracing::Instrument;

use super::budget::{Budget, Photo};
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::DecodeLimits;

/// Works on images, so many at a time. Cheap to clone; all clones share their number.
#[derive(Debug, Clone)]
pub struct Decoders {
    limits: DecodeLimits,
    /// One permit for each image that may be worked on.
    permits: Arc<Semaphore>,
    workers: usize,
    /// Bytes of images that may be held, those that are still received included.
    budget: Budget,
}

impl Decoders {
    /// For images within `limits`, `max_workers` (at least 1) at a time, which are held in `budget`.
    #[must_use]
    pub fn new(limits: DecodeLimits, max_workers: usize, budget: Budget) -> Self {
        let workers = max_workers.max(1);
        Self { limits, permits: Arc::new(Semaphore::new(workers)), workers, budget }
    }

    /// Images that are worked on at a time.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The bytes of images that may be held at a time.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Does `work` on the bytes of an image, on a thread for blocking work, when it is its turn.
    ///
    /// # Errors
    /// Those of `work`. A panic in it is taken for the image's fault.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        photo: Photo,
        work: impl FnOnce(&[u8], &DecodeLimits) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|e| Error::internal("image workers are closed").with_source(e))?;
        let limits = self.limits;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work, not by the caller: a caller that leaves does not free the core.
            let _permit = permit;
            work(&photo.bytes, &limits)
        });
        let span = tracing::info_span!(target: "trace", "decode");
        match work.instrument(span).await {
            Ok(result) => result,
            Err(join) if join.is_panic() => Err(Error::new(
                ErrorKind::UndecodableImage,
                "the image is damaged in a way that its decoder cannot handle; send it re-encoded",
            )
            .with_source(join)),
            Err(join) => Err(Error::internal("the image was not decoded").with_source(join)),
        }
    }
}
