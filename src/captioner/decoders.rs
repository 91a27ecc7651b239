//! Decoding and analysis of images on blocking threads, away from the model and the async runtime.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tracing::Instrument;

use super::budget::{Budget, Photo};
use super::memory::{DecodeMemory, ImageMemory, decode_bytes};
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::{DecodeLimits, ImageHeader};

/// Works on a limited number of images at a time. Cheap to clone; clones share the limit.
#[derive(Debug, Clone)]
pub struct Decoders {
    limits: DecodeLimits,
    /// One permit per image in work.
    permits: Arc<Semaphore>,
    workers: usize,
    memory: ImageMemory,
}

impl Decoders {
    /// Decoders for images within `limits`, at most `max_workers` (at least 1) at a time. `budget` is for
    /// their files, and there is as much memory for decoding as the largest of them may need.
    #[must_use]
    pub fn new(limits: DecodeLimits, max_workers: usize, budget: Budget) -> Self {
        let decoding = DecodeMemory::new(decode_bytes(limits.max_pixels));
        Self::with_memory(limits, max_workers, ImageMemory { files: budget, decoding })
    }

    /// [`new`](Self::new) with other memory for decoding, or with memory that is shared.
    #[must_use]
    pub fn with_memory(limits: DecodeLimits, max_workers: usize, memory: ImageMemory) -> Self {
        let workers = max_workers.clamp(1, Semaphore::MAX_PERMITS);
        Self { limits, permits: Arc::new(Semaphore::new(workers)), workers, memory }
    }

    /// The number of images in work at a time.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The memory that files of images may take, including those still being received.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.memory.files
    }

    /// The memory that decoding may take.
    #[must_use]
    pub fn decode_memory(&self) -> &DecodeMemory {
        &self.memory.decoding
    }

    /// The memory of both kinds, to be shared with other decoders.
    #[must_use]
    pub fn memory(&self) -> &ImageMemory {
        &self.memory
    }

    /// Runs `work` on the bytes of an image, on a blocking thread, as soon as there is memory for it and
    /// a worker is free. `extra` says how many bytes the work takes in addition to
    /// [`ImageHeader::peak_bytes`].
    ///
    /// # Errors
    /// The header cannot be read, or the image takes more memory than there is; those of `work`. A panic
    /// in it counts as an error in the image.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        photo: Photo,
        extra: impl FnOnce(&ImageHeader) -> u64,
        work: impl FnOnce(&[u8], &DecodeLimits) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let limits = self.limits;
        let reading = tokio::task::spawn_blocking(move || {
            let header = ImageHeader::read(&photo.bytes, &limits)?;
            Ok((header, photo))
        });
        let (header, photo) = finished(reading.await)?;
        // Before a worker is taken, so that none is kept from an image that has its memory.
        let memory = self.memory.decoding.take(&header, extra(&header)).await?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|e| Error::internal("the image workers are closed").with_source(e))?;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work, because core and memory stay in use even if the caller leaves.
            let _held = (permit, memory);
            work(&photo.bytes, &limits)
        });
        let span = tracing::info_span!(target: "trace", "decode");
        finished(work.instrument(span).await)
    }
}

/// The result of work on an image.
fn finished<T>(joined: Result<Result<T>, JoinError>) -> Result<T> {
    match joined {
        Ok(result) => result,
        Err(join) if join.is_panic() => Err(Error::new(
            ErrorKind::UndecodableImage,
            "the image is damaged in a way that its decoder cannot handle; send it re-encoded",
        )
        .with_source(join)),
        Err(join) => Err(Error::internal("the image was not decoded").with_source(join)),
    }
}
