//! The memory of images that are being decoded, and the most memory that a server takes.
//!
//! [`Budget`] counts the bytes of image files, and refuses a file if there is no memory for it.
//! [`DecodeMemory`] counts decoded pixels, and lets an image wait. A waiting file costs little, and a
//! timeout ends a long wait. [`MemoryBound`] is the sum of these limits and all others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Budget, MemoryLimits};
use crate::metrics::peak_resident_bytes;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::ImageHeader;

/// Memory is counted in units of this many bytes, because a semaphore counts in 32 bits.
const UNIT: u64 = 64 << 10;

/// A limited number of bytes for images that are being decoded. They are given out in the order of
/// the requests: a large image waits until there is enough, and smaller ones behind it wait with it.
/// Cheap to clone; clones share the bytes.
#[derive(Debug, Clone)]
pub struct DecodeMemory {
    units: Arc<Semaphore>,
    total: u32,
}

impl DecodeMemory {
    /// Memory of `capacity` bytes, rounded up to 64 KiB.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let total = u32::try_from(capacity.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        // Semaphore::MAX_PERMITS is smaller than that only on machines of 32 bits.
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// The limit in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.total) * UNIT
    }

    /// Bytes in use, or kept for the image that is next.
    #[must_use]
    pub fn held(&self) -> u64 {
        let free = self.units.available_permits() as u64 * UNIT;
        self.capacity().saturating_sub(free)
    }

    /// Takes the memory to decode the image with this header and do `extra` bytes of further work,
    /// as soon as it is free. Dropping the result returns it.
    ///
    /// # Errors
    /// [`ImageTooLarge`](ErrorKind::ImageTooLarge), at once: it would never be free.
    pub(super) async fn take(
        &self,
        header: &ImageHeader,
        extra: u64,
    ) -> Result<OwnedSemaphorePermit> {
        let bytes = header.peak_bytes.saturating_add(extra);
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        if units > self.total {
            let (format, ImageHeader { width, height, .. }) = (header.format, header);
            return Err(Error::new(
                ErrorKind::ImageTooLarge,
                format!(
                    "the {format} image of {width}×{height} pixels takes {bytes} bytes of memory to decode, \
                     and the limit (MAX_DECODE_BYTES) is {}; scale it down, or save it as an 8-bit \
                     RGB image that is not progressive",
                    self.capacity()
                ),
            ));
        }
        Arc::clone(&self.units)
            .acquire_many_owned(units)
            .await
            .map_err(|error| Error::internal("the memory is closed").with_source(error))
    }
}

/// The memory that images may take: their files, and their pixels. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct ImageMemory {
    /// Bytes of files and of the model's inputs.
    pub files: Budget,
    /// Bytes of images that are being decoded.
    pub decoding: DecodeMemory,
}

impl ImageMemory {
    /// Memory within these limits.
    #[must_use]
    pub fn new(max_inflight_bytes: u64, max_decode_bytes: u64) -> Self {
        Self {
            files: Budget::new(max_inflight_bytes),
            decoding: DecodeMemory::new(max_decode_bytes),
        }
    }
}

/// The default of `MAX_DECODE_BYTES`: the memory that decoding takes for any JPEG, PNG, GIF or BMP, and for
/// a WebP that is not animated, of `pixels` pixels. A TIFF of 16 or 32 bits may take more.
#[must_use]
pub const fn decode_bytes(pixels: u64) -> u64 {
    pixels.saturating_mul(DECODE_BYTES_PER_PIXEL).saturating_add(64 << 20)
}

/// Bytes a pixel of the most demanding of them, CMYK in a progressive JPEG, rounded up.
const DECODE_BYTES_PER_PIXEL: u64 = 14;

/// The most resident memory of a server, by purpose. All numbers are bytes.
///
/// It does not include memory on a GPU, files in the page cache, and the kernel's buffers of
/// connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBound {
    /// The most that the process took until the model was loaded: program, weights, buffers.
    pub loaded: u64,
    /// Image files in requests, and inputs that wait for the model: `MAX_INFLIGHT_BYTES`, and an eighth more
    /// for buffers that grow.
    pub files: u64,
    /// Images that are being decoded: `MAX_DECODE_BYTES`.
    pub decoding: u64,
    /// `CACHE_MAX_BYTES` and `VISION_CACHE_BYTES`.
    pub caches: u64,
    /// Jobs in the model: caches of keys and values, logits.
    pub batch: u64,
}

impl MemoryBound {
    /// The bound within these limits, after the model was loaded; `None` where the system does not tell
    /// what the process has taken so far.
    pub(super) fn new(limits: MemoryLimits, batch: u64) -> Option<Self> {
        Some(Self {
            loaded: peak_resident_bytes()?,
            files: limits.max_inflight_bytes.saturating_add(limits.max_inflight_bytes / 8),
            decoding: limits.max_decode_bytes,
            caches: limits.cache_max_bytes.saturating_add(limits.vision_cache_bytes),
            batch,
        })
    }

    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { loaded, files, decoding, caches, batch } = *self;
        [files, decoding, caches, batch].into_iter().fold(loaded, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutline_image::ImageFormat;

    fn header(peak_bytes: u64) -> ImageHeader {
        ImageHeader { format: ImageFormat::Png, width: 40, height: 30, peak_bytes }
    }

    #[tokio::test]
    async fn memory_is_returned_and_too_much_is_refused_at_once() {
        let memory = DecodeMemory::new(10 * UNIT - 1);
        assert_eq!((memory.capacity(), memory.held()), (10 * UNIT, 0));
        let taken = memory.take(&header(3 * UNIT), UNIT + 1).await.unwrap();
        assert_eq!(memory.held(), 5 * UNIT, "rounded up");
        // Although half of the memory is taken.
        let error = memory.take(&header(10 * UNIT), 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
        for part in ["png", "40×30", "655361", "655360", "MAX_DECODE_BYTES"] {
            assert!(error.detail().contains(part), "{error}");
        }
        assert!(memory.take(&header(u64::MAX), u64::MAX).await.is_err());
        drop(taken);
        assert_eq!(memory.held(), 0);
        drop(memory.take(&header(10 * UNIT), 0).await.unwrap());
    }

    #[tokio::test]
    async fn small_images_do_not_overtake_a_large_one() {
        let memory = DecodeMemory::new(10 * UNIT);
        let first = memory.take(&header(6 * UNIT), 0).await.unwrap();
        let (large, small) = (header(8 * UNIT), header(UNIT));
        let large = memory.take(&large, 0);
        let small = memory.take(&small, 0);
        tokio::pin!(large, small);
        tokio::select! {
            biased;
            _ = &mut large => panic!("only four units are free"),
            _ = &mut small => panic!("it came later"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        let large = large.await.unwrap();
        drop(small.await.unwrap());
        drop(large);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn an_image_that_leaves_while_it_waits_lets_the_next_one_pass() {
        let memory = DecodeMemory::new(10 * UNIT);
        let _first = memory.take(&header(6 * UNIT), 0).await.unwrap();
        {
            let large = header(8 * UNIT);
            let large = memory.take(&large, 0);
            tokio::pin!(large);
            tokio::select! {
                biased;
                _ = &mut large => panic!("only four units are free"),
                () = tokio::task::yield_now() => {}
            }
        }
        drop(memory.take(&header(4 * UNIT), 0).await.unwrap());
        assert_eq!(memory.held(), 6 * UNIT);
    }
}
