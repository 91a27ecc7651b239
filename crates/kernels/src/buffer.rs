//! Memory for the kernels: aligned to a cache line, zeroed when made, kept when used again.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

/// Alignment of every buffer: a cache line, the widest vector and a row of a tile.
const ALIGNMENT: usize = 64;

/// Plain numbers, for which any bits are a value.
pub trait Number: Copy + Send + Sync + 'static {}
impl Number for u8 {}
impl Number for i8 {}
impl Number for u16 {}
impl Number for u32 {}
impl Number for i32 {}
impl Number for f32 {}

/// A growable aligned array of numbers.
pub struct Buffer<T: Number> {
    start: NonNull<T>,
    len: usize,
    capacity: usize,
}

// SAFETY: it owns its memory alone and holds plain numbers.
unsafe impl<T: Number> Send for Buffer<T> {}
// SAFETY: a shared buffer can only be read.
unsafe impl<T: Number> Sync for Buffer<T> {}

impl<T: Number> Buffer<T> {
    pub const fn new() -> Self {
        Self { start: NonNull::dangling(), len: 0, capacity: 0 }
    }

    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::new();
        buffer.resize(len);
        buffer
    }

    /// Makes room for `len` numbers; what is in them is unspecified but initialised. Memory is
    /// taken only if there has never been as much.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity {
            let start = allocate::<T>(len);
            self.free();
            self.start = start;
            self.capacity = len;
        }
        self.len = len;
    }

    fn free(&mut self) {
        if self.capacity > 0 {
            // SAFETY: it was allocated with this layout, and nobody uses it after this.
            unsafe { dealloc(self.start.as_ptr().cast(), layout::<T>(self.capacity)) }
            self.capacity = 0;
        }
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised numbers lie at `start`, or `len` is 0 and it is aligned.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Size of a huge page, and from which size on a buffer asks for them.
///
/// Weights are read from end to end for every token. In pages of 4 KB much of that time goes to
/// looking the pages up, on a virtual machine twice over.
const HUGE: usize = 2 * 1024 * 1024;

fn layout<T>(len: usize) -> Layout {
    let bytes = len.saturating_mul(size_of::<T>());
    let alignment = if bytes >= HUGE / 2 { HUGE } else { ALIGNMENT };
    // Too large a size is refused as the standard collections do it.
    Layout::from_size_align(bytes, alignment)
        .unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()))
}

fn allocate<T: Number>(len: usize) -> NonNull<T> {
    let layout = layout::<T>(len);
    // SAFETY: the layout is not empty, for `resize` calls this only with len > capacity ≥ 0.
    let start = unsafe { alloc(layout) };
    let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE {
        // Before the first write, which decides what pages are used. A refusal changes nothing.
        // SAFETY: the range was just allocated, and the advice does not change what is in it.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    // SAFETY: as many bytes were allocated.
    unsafe { start.as_ptr().write_bytes(0, layout.size()) };
    start.cast()
}

impl<T: Number> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.free();
    }
}

impl<T: Number> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T: Number> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} × {})", self.len, std::any::type_name::<T>())
    }
}

/// A mutable slice that several tasks write, each to places of its own.
#[derive(Debug)]
pub struct DisjointMut<'a, T> {
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

// SAFETY: the only access is through `slice`, whose caller vouches for disjointness.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` numbers from `first` on.
    ///
    /// # Panics
    /// They do not lie in the slice.
    ///
    /// # Safety
    /// While it lives, no other reference to any of these numbers is made.
    #[allow(clippy::mut_from_ref, reason = "the caller vouches for disjointness")]
    pub unsafe fn slice(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first, "{first} + {len} > {}", self.len);
        // SAFETY: inside the slice by the assertion, unique by the caller's word.
        unsafe { slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// Places of scratch memory, as many as tasks run at a time.
#[derive(Debug, Default)]
pub struct ScratchSlots(Vec<AtomicBool>);

/// A place that a task has to itself.
pub struct ScratchSlot<'a> {
    taken: &'a AtomicBool,
    index: usize,
}

impl ScratchSlots {
    pub fn resize(&mut self, count: usize) {
        self.0.resize_with(count, AtomicBool::default);
    }

    /// A free place. There is one as long as no more tasks run than there are places.
    pub fn take(&self) -> ScratchSlot<'_> {
        loop {
            for (index, taken) in self.0.iter().enumerate() {
                if !taken.swap(true, Ordering::Acquire) {
                    return ScratchSlot { taken, index };
                }
            }
        }
    }
}

impl ScratchSlot<'_> {
    pub fn index(&self) -> usize {
        self.index
    }
}

impl Drop for ScratchSlot<'_> {
    fn drop(&mut self) {
        self.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_task_ends() {
        let mut slots = ScratchSlots::default();
        slots.resize(2);
        let (first, second) = (slots.take(), slots.take());
        assert_eq!((first.index(), second.index()), (0, 1));
        drop(first);
        assert_eq!(slots.take().index(), 0);
    }

    #[test]
    fn a_buffer_is_aligned_and_keeps_its_memory() {
        let mut buffer = Buffer::<f32>::zeroed(100);
        assert_eq!(buffer.as_slice(), [0.0; 100]);
        let start = buffer.as_slice().as_ptr();
        assert_eq!(start.addr() % ALIGNMENT, 0);
        buffer.resize(7);
        assert_eq!(buffer.as_slice().len(), 7);
        buffer.resize(100);
        assert_eq!(buffer.as_slice().as_ptr(), start);
        buffer.as_mut_slice()[99] = 2.0;
        assert_eq!(buffer.clone().as_slice()[99], 2.0);
        assert!(Buffer::<u8>::new().as_slice().is_empty());
    }
}
