//! A limit on the bytes of images in memory: bodies that are being received, photos that wait to be
//! decoded, and inputs that wait for the model.

use std::collections::TryReserveError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cutline_error::{Error, ErrorKind, Result};

/// A limited number of bytes. Cheap to clone; clones share the bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<BudgetInner>,
}

#[derive(Debug)]
struct BudgetInner {
    capacity: u64,
    held: AtomicU64,
}

impl Budget {
    /// A budget of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { inner: Arc::new(BudgetInner { capacity, held: AtomicU64::new(0) }) }
    }

    /// The limit in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.inner.capacity
    }

    /// Bytes in use.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, all or none.
    ///
    /// # Errors
    /// [`QueueFull`](ErrorKind::QueueFull): fewer bytes are left.
    pub fn take(&self, bytes: u64) -> Result<Permit> {
        let mut permit = Permit { budget: self.clone(), bytes: 0 };
        permit.grow(bytes)?;
        Ok(permit)
    }
}

/// Bytes taken from a budget. Dropping it returns them.
#[derive(Debug)]
pub struct Permit {
    budget: Budget,
    bytes: u64,
}

impl Permit {
    /// The number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes, all or none.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub fn grow(&mut self, more: u64) -> Result<()> {
        let BudgetInner { capacity, held } = &*self.budget.inner;
        let within = |held: u64| held.checked_add(more).filter(|held| held <= capacity);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| full())?;
        self.bytes += more;
        Ok(())
    }

    /// Moves `bytes` into a new permit, or all if there are fewer.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.inner.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn full() -> Error {
    Error::new(
        ErrorKind::QueueFull,
        "the server's memory for images (MAX_INFLIGHT_BYTES) is full; nothing was queued, try again a \
         little later",
    )
    .with_retry_after(Duration::from_secs(1))
}

/// Appends `chunk`. The capacity stays within an eighth of the length, or 64 KiB, because the budget counts
/// lengths: a vector that doubles its capacity would take up to twice as much.
///
/// # Errors
/// [`QueueFull`](ErrorKind::QueueFull): the system has no memory.
pub(crate) fn append(bytes: &mut Vec<u8>, chunk: &[u8]) -> Result<()> {
    if bytes.capacity() - bytes.len() < chunk.len() {
        let more = chunk.len().max(bytes.len() / 8).max(64 << 10);
        bytes.try_reserve_exact(more).map_err(no_memory)?;
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

/// The refusal of an image file of more than `most` bytes.
pub(crate) fn image_too_large(most: usize) -> Error {
    let detail =
        format!("the image is larger than {most} bytes; scale it down or compress it more");
    Error::new(ErrorKind::ImageTooLarge, detail)
}

/// The system has no memory for an image that the budget allows.
pub(crate) fn no_memory(error: TryReserveError) -> Error {
    Error::new(
        ErrorKind::QueueFull,
        "the system has no memory for this image; nothing was queued, try again a little later",
    )
    .with_retry_after(Duration::from_secs(1))
    .with_source(error)
}

/// The bytes of an image file, with their permit.
#[derive(Debug)]
pub struct Photo {
    pub(super) bytes: Vec<u8>,
    /// Returned when the bytes are dropped.
    _permit: Option<Permit>,
}

impl Photo {
    /// The hash of its bytes.
    #[must_use]
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.bytes)
    }

    /// A photo with the permit for its bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>, permit: Permit) -> Self {
        Self { bytes, _permit: Some(permit) }
    }

    /// A copy, whose bytes count as well.
    ///
    /// # Errors
    /// As [`Budget::take`].
    pub fn copy(&self, budget: &Budget) -> Result<Self> {
        let permit = budget.take(self.bytes.len() as u64)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes.len()).map_err(no_memory)?;
        bytes.extend_from_slice(&self.bytes);
        Ok(Self::new(bytes, permit))
    }

    /// The size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the file is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl From<Vec<u8>> for Photo {
    /// A photo whose size the caller limits in another way.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, _permit: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_bytes_are_returned() {
        let budget = Budget::new(100);
        let mut permit = budget.take(60).unwrap();
        assert!(budget.take(41).is_err());
        let other = permit.split(50);
        assert_eq!((permit.bytes(), other.bytes(), budget.held()), (10, 50, 60));
        let error = permit.grow(41).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueFull);
        assert!(error.retry_after().is_some());
        assert_eq!((permit.bytes(), budget.held()), (10, 60), "a refused request takes nothing");
        drop(permit);
        assert_eq!(budget.held(), 50);
        drop(other);
        assert_eq!(budget.held(), 0);
        assert!(budget.take(u64::MAX).is_err());
        assert!(budget.take(100).is_ok());
    }
}
