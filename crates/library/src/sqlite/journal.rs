//! How much of the disk the journal may take before it is moved into the file.

use std::path::Path;

/// 32 MiB instead of SQLite's 4: pages of the indexes that many changes touch are moved less often.
const MOST: u64 = 8192;
/// So few pages that one change needs more.
const LEAST: u64 = 16;
/// What SQLite takes for a new file.
const PAGE: u64 = 4096;

/// After how many pages in the journal of the library `path` they are moved into the file, if `free`
/// bytes of its disk are free.
///
/// Moving them may make the file larger. If the journal could take all of the disk, nothing could be
/// moved any more, and so nothing be written: the journal never gets smaller by itself. So it may take a
/// quarter of the room that there is without it.
pub(super) fn pages(path: &Path, free: Option<u64>) -> u64 {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-wal");
    let taken = std::fs::metadata(journal).map_or(0, |file| file.len());
    free.map_or(MOST, |free| (free.saturating_add(taken) / 4 / PAGE).clamp(LEAST, MOST))
}

/// Bytes that this process may still write on the disk of `path`; `None` if the system does not say it.
pub(super) fn free(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(path).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}
