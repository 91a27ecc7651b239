//! Settings of the C library's allocator.

/// Allocations of this size and more get their own memory mapping, which is unmapped when they are
/// freed. This is glibc's first value. An encoded image in the cache has hundreds of KB, and the pixels
/// of a photo for the model, 384 × 384 × 3 in f32, have 1.7 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Makes freed photos return to the operating system at once. Call it before other threads start.
///
/// glibc raises the threshold to the size of the largest freed block, up to 32 MiB. Pixels that one
/// thread decodes and another frees would then leave holes in the heaps of both, and the memory of a
/// server after high load would depend on the order of its responses. On other systems this does
/// nothing.
pub fn set_mmap_threshold() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: sets a parameter of the allocator; a refusal changes nothing.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD) };
    }
}
