//! How the C library's heap treats large blocks.

/// Blocks from this size on are mapped by themselves, and unmapped when they are freed. A photo's
/// pixels for the model, 384 × 384 × 3 in f32, are 1.7 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 1 << 20;

/// Makes freed photos go back to the system at once. To be called before there are other threads.
///
/// glibc raises that size to that of the largest block that was freed, up to 32 MiB. Pixels that are
/// decoded on one thread and freed on another then leave holes in the heap of each, and a server's
/// memory after a crowd depends on the order in which its answers came.
pub fn set_mmap_threshold() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: sets a number of the allocator; a refusal changes nothing.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) };
    }
}
