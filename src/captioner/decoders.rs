//! Decoding and analysis of images on blocking threads, away from the model and the async runtime.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tracing::Instrument;

use super::budget::{Budget, Photo};
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::DecodeLimits;

/// Works on a limited number of images at a time. Cheap to clone; clones share the limit.
#[derive(Debug, Clone)]
pub struct Decoders {
    limits: DecodeLimits,
    /// One permit per image in work.
    permits: Arc<Semaphore>,
    workers: usize,
    /// The memory that images may take, including those still being received.
    budget: Budget,
}

impl Decoders {
    /// Decoders for images within `limits`, at most `max_workers` (at least 1) at a time, with the memory
    /// of `budget`.
    #[must_use]
    pub fn new(limits: DecodeLimits, max_workers: usize, budget: Budget) -> Self {
        let workers = max_workers.max(1);
        Self { limits, permits: Arc::new(Semaphore::new(workers)), workers, budget }
    }

    /// The number of images in work at a time.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The memory that images may take.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Runs `work` on the bytes of an image, on a blocking thread, as soon as a worker is free.
    ///
    /// # Errors
    /// Those of `work`. A panic in it counts as an error in the image.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        photo: Photo,
        work: impl FnOnce(&[u8], &DecodeLimits) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|e| Error::internal("the image workers are closed").with_source(e))?;
        let limits = self.limits;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work, because the core stays busy even if the caller leaves.
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
