//! Memory for kernels: aligned buffers, scratch memory for tasks, and output that tasks share.

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::{fmt, slice};

use aligned_vec::{AVec, RuntimeAlign};

/// Alignment of a buffer: a cache line, the widest vector, and a row of a tile.
const ALIGNMENT: usize = 64;

/// Size of a huge page, and the alignment of buffers that are large enough for one.
///
/// Every decode step reads all weights. With pages of 4 KiB much of that time goes into address
/// translation, on a virtual machine twice.
const HUGE_PAGE: usize = 2 * 1024 * 1024;

/// A growable array of numbers, aligned to a cache line, that keeps its memory.
pub struct Buffer<T: Copy + Default> {
    /// Longer than the buffer if that was longer before.
    storage: AVec<T, RuntimeAlign>,
    len: usize,
}

impl<T: Copy + Default> Default for Buffer<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy + Default> Buffer<T> {
    /// An empty buffer; allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { storage: AVec::new(ALIGNMENT), len: 0 }
    }

    /// A buffer of `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::new();
        buffer.resize(len);
        buffer
    }

    /// Changes the length to `len`. The contents are unspecified afterwards: old numbers or zeros.
    /// Allocates only if the buffer was never as long.
    pub fn resize(&mut self, len: usize) {
        if len > self.storage.len() {
            let bytes = len.saturating_mul(size_of::<T>());
            let alignment = if bytes >= HUGE_PAGE / 2 { HUGE_PAGE } else { ALIGNMENT };
            // Freed first: the old numbers are not needed, and both may be large.
            self.storage = AVec::new(alignment);
            self.storage = AVec::with_capacity(alignment, len);
            if alignment == HUGE_PAGE {
                advise_huge_pages(self.storage.as_mut_ptr().cast(), bytes);
            }
            self.storage.resize(len, T::default());
        }
        self.len = len;
    }

    /// The largest length so far, for which there is memory.
    pub(crate) fn allocated(&self) -> usize {
        self.storage.len()
    }

    /// The numbers.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        &self.storage[..self.len]
    }

    /// The numbers, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.storage[..self.len]
    }
}

impl<T: Copy + Default> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} × {})", self.len, std::any::type_name::<T>())
    }
}

/// Asks for huge pages, which the first write to a page decides. A refusal changes nothing.
fn advise_huge_pages(start: *mut libc::c_void, bytes: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: this advice changes how memory is mapped, never what is in it; for addresses that
    // are not mapped the call fails.
    unsafe {
        libc::madvise(start, bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// A mutable slice that several tasks write to, each to its own part.
#[derive(Debug)]
pub(crate) struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Clone for DisjointMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DisjointMut<'_, T> {}

// SAFETY: it stands for a `&mut [T]`, which can be sent if `T` can.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: the only access is `slice`, whose callers guarantee that no two parts overlap; a part is a
// `&mut [T]`, which can be sent if `T` can.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// `len` elements from `first` on.
    ///
    /// # Panics
    /// They are not within the slice.
    ///
    /// # Safety
    /// During the lifetime of the result there is no other reference to any of these elements.
    #[allow(clippy::mut_from_ref, reason = "the caller guarantees that the parts are disjoint")]
    pub(crate) unsafe fn slice(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first, "{first} + {len} > {}", self.len);
        // SAFETY: within the slice by the assertion, and unique as the caller guarantees.
        unsafe { slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// Scratch memory for as many tasks as run at a time.
#[derive(Debug, Default)]
pub(crate) struct ScratchPool<T>(Vec<Mutex<T>>);

impl<T: Default> ScratchPool<T> {
    /// Makes scratch memory for `count` tasks and prepares each with `resize`.
    pub(crate) fn resize(&mut self, count: usize, resize: impl Fn(&mut T)) {
        self.0.resize_with(count, Mutex::default);
        for scratch in &mut self.0 {
            // A task that panicked leaves nothing behind that the next one could not overwrite.
            resize(scratch.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()));
        }
    }

    /// Memory that no other task uses; waits if more tasks run than there is memory for.
    pub(crate) fn take(&self) -> MutexGuard<'_, T> {
        loop {
            for scratch in &self.0 {
                match scratch.try_lock() {
                    Ok(scratch) => return scratch,
                    Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_memory_is_free_again_after_its_task() {
        let mut pool = ScratchPool::<usize>::default();
        pool.resize(2, |value| *value = 7);
        let (mut first, mut second) = (pool.take(), pool.take());
        (*first, *second) = (1, 2);
        drop(first);
        assert_eq!((*pool.take(), *second), (1, 2));
    }

    #[test]
    fn a_buffer_is_aligned_and_keeps_its_memory() {
        for len in [100, 3 * HUGE_PAGE / 4] {
            let mut buffer = Buffer::<f32>::zeroed(len);
            assert!(buffer.as_slice().iter().all(|&value| value == 0.0));
            let start = buffer.as_slice().as_ptr();
            let alignment = if len > 100 { HUGE_PAGE } else { ALIGNMENT };
            assert_eq!(start.addr() % alignment, 0);
            buffer.resize(7);
            assert_eq!(buffer.as_slice().len(), 7);
            buffer.resize(len);
            assert_eq!(buffer.as_slice().as_ptr(), start);
            buffer.as_mut_slice()[99] = 2.0;
            assert_eq!(buffer.as_slice()[99], 2.0);
        }
        assert!(Buffer::<u8>::new().as_slice().is_empty());
    }
}
