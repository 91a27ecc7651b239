//! Replaces a whole file, so that readers see either the old content or the new.
//!
//! The new content is written under a temporary name in the same folder, which is then renamed. Owner,
//! mode and extended attributes stay. A file with several names, or whose owner cannot be kept, is
//! written in place instead. A symbolic link stays one: its target is replaced.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::mark::Mark;

/// The start and the end of temporary names. They are short whatever the name of the photo.
const TEMPORARY: (&str, &str) = (".cutline-", ".tmp");

/// The largest sidecar that is read. Those of photo programs have some kilobytes.
const MAX_BYTES: u64 = 64 << 20;

/// A file as it was when it was read.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) bytes: Vec<u8>,
    pub(super) mark: Option<Mark>,
    /// Without symbolic links.
    path: PathBuf,
    metadata: Metadata,
}

impl Current {
    /// Reads the file at `path`; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, is not a regular file, or is too large. A link without a target is an error
    /// too: its target may only be out of reach.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        match path.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let path = fs::canonicalize(path)?;
        // Before it is opened: opening a pipe would wait.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        let mark = Mark::of_file(&file).ok().flatten();
        let mut bytes = Vec::new();
        if file.take(MAX_BYTES + 1).read_to_end(&mut bytes)? as u64 > MAX_BYTES {
            return Err(io::Error::other("it is too large"));
        }
        Ok(Some(Self { bytes, mark, path, metadata }))
    }

    /// Whether there is nothing in it that could be lost.
    pub(super) fn is_blank(&self) -> bool {
        self.bytes.trim_ascii().is_empty()
    }

    /// Its path without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is still as it was.
    fn is_unchanged(&self) -> bool {
        self.path.metadata().is_ok_and(|now| {
            now.len() == self.metadata.len() && now.modified().ok() == self.metadata.modified().ok()
        })
    }
}

/// Writes the file at `path`, which was `current` when it was read, and marks it if there is a mark.
///
/// # Errors
/// The file cannot be written, and is as it was. [`AlreadyExists`](io::ErrorKind::AlreadyExists): another
/// program wrote it in the meantime.
pub(super) fn replace(
    path: &Path,
    current: Option<&Current>,
    content: &[u8],
    mark: Option<&Mark>,
) -> io::Result<()> {
    let path = current.map_or(path, |current| &current.path);
    // A file that may not be written is not replaced either.
    let old = current.map(|_| File::options().read(true).write(true).open(path)).transpose()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let temporary = temporary(folder.unwrap_or(Path::new(".")))?;
    temporary.as_file().write_all(content)?;
    let in_place = match (&old, current) {
        (Some(old), Some(current)) => {
            links(&current.metadata) > 1 || !take_over(old, &current.metadata, temporary.as_file())?
        }
        _ => false,
    };
    if let Some(mark) = mark {
        mark.write(temporary.as_file());
    }
    // The bytes before the name, so that a power failure leaves the old content or the new.
    temporary.as_file().sync_all()?;
    match (old, current) {
        (Some(_), Some(current)) if !current.is_unchanged() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "another program is writing it"))
        }
        (Some(old), Some(current)) if in_place => {
            overwrite(old, &current.bytes, content)?;
            if let Some(mark) = mark {
                mark.write(&File::open(path)?);
            }
            Ok(())
        }
        (Some(_), _) => temporary.persist(path).map(drop).map_err(|error| error.error),
        (None, _) => create(temporary, path),
    }
}

/// Gives a file that was written a name which must be free.
fn create(temporary: NamedTempFile, path: &Path) -> io::Result<()> {
    let Err(failed) = temporary.persist_noclobber(path) else { return Ok(()) };
    // Some file systems cannot check and rename in one step.
    if failed.error.kind() == io::ErrorKind::AlreadyExists || path.symlink_metadata().is_ok() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, failed.error));
    }
    failed.file.persist(path).map(drop).map_err(|error| error.error)
}

/// A locked file under a temporary name.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less the umask of the process, as for any new file.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // Without the temporary name, which would be news to the user.
    let file = builder.tempfile_in(folder).map_err(|error| io::Error::from(error.kind()))?;
    // Tells other runs that it is in use. Some file systems have no locks.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Removes what killed runs left behind in `folder`.
pub(super) fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let ours =
            name.starts_with(TEMPORARY.0.as_bytes()) && name.ends_with(TEMPORARY.1.as_bytes());
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // A run that is alive holds the lock.
        let file = File::options().write(true).open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes over the content of a file that keeps all its names. If that fails, the old content is
/// written back.
fn overwrite(mut file: File, old: &[u8], new: &[u8]) -> io::Result<()> {
    let mut write = |content: &[u8]| {
        file.rewind()?;
        file.write_all(content)?;
        file.set_len(content.len() as u64)?;
        file.sync_all()
    };
    write(new).inspect_err(|_| {
        let _ = write(old);
    })
}

/// Gives `new` the owner, the mode and the extended attributes of `old`; false if it may not have the
/// owner.
#[cfg(unix)]
fn take_over(old: &File, metadata: &Metadata, new: &File) -> io::Result<bool> {
    use std::os::unix::fs::{MetadataExt, fchown};
    use xattr::FileExt;
    let created = new.metadata()?;
    let id = |now: u32, wanted: u32| (now != wanted).then_some(wanted);
    let (owner, group) = (id(created.uid(), metadata.uid()), id(created.gid(), metadata.gid()));
    if (owner.is_some() || group.is_some()) && fchown(new, owner, group).is_err() {
        return Ok(false);
    }
    // After the owner, whose change clears some of its bits.
    new.set_permissions(metadata.permissions())?;
    for name in old.list_xattr().into_iter().flatten() {
        if let Ok(Some(value)) = old.get_xattr(&name) {
            // Some belong to the system.
            let _ = new.set_xattr(&name, &value);
        }
    }
    Ok(true)
}

#[cfg(not(unix))]
fn take_over(_: &File, metadata: &Metadata, new: &File) -> io::Result<bool> {
    new.set_permissions(metadata.permissions())?;
    Ok(true)
}

/// How many names a file has.
#[cfg(unix)]
pub(super) fn links(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(metadata)
}

#[cfg(not(unix))]
pub(super) fn links(_: &Metadata) -> u64 {
    1
}

/// Locks a file for one run; false if another run holds it. Some file systems have no locks; there the
/// file is not locked.
pub(super) fn lock(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(path: &Path, content: &str) -> io::Result<()> {
        let current = Current::read(path)?;
        replace(path, current.as_ref(), content.as_bytes(), None)
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_is_created_and_replaced_without_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a".repeat(255));
        rewrite(&path, "one").unwrap();
        rewrite(&path, "two").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), names(folder.path())), (&b"two"[..], 1));
        let too_long = folder.path().join("a".repeat(256));
        assert!(rewrite(&too_long, "x").is_err());
        assert_eq!(names(folder.path()), 1);
        for leftover in [".cutline-Ab1.tmp", ".cutline-notes", "a.tmp"] {
            fs::write(folder.path().join(leftover), "x").unwrap();
        }
        let held = temporary(folder.path()).unwrap();
        remove_leftovers(folder.path());
        assert!(held.path().exists() && names(folder.path()) == 4, "one is removed");
    }

    #[test]
    fn a_file_that_changed_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let none = Current::read(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        let error = replace(&path, none.as_ref(), b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let current = Current::read(&path).unwrap();
        fs::write(&path, "mine, edited").unwrap();
        let error = replace(&path, current.as_ref(), b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"mine, edited");
    }

    #[cfg(unix)]
    #[test]
    fn links_mode_and_attributes_stay() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let [path, link, other, dangling] =
            ["a.txt", "link.txt", "other.txt", "dangling.txt"].map(|name| folder.path().join(name));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let attributes = xattr::set(&path, "user.rating", b"5").is_ok();
        symlink("a.txt", &link).unwrap();
        rewrite(&link, "new").unwrap();
        assert!(link.is_symlink() && fs::read(&path).unwrap() == b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o604);
        assert!(!attributes || xattr::get(&path, "user.rating").unwrap().unwrap() == b"5");

        fs::hard_link(&path, &other).unwrap();
        rewrite(&path, "newer, longer").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"newer, longer");
        rewrite(&path, "short").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"short");
        assert_eq!(path.metadata().unwrap().ino(), other.metadata().unwrap().ino());

        symlink("none.txt", &dangling).unwrap();
        assert!(rewrite(&dangling, "x").is_err() && dangling.is_symlink());
        assert!(Current::read(folder.path()).is_err(), "a folder");
        assert_eq!(names(folder.path()), 4);
    }

    #[cfg(unix)]
    #[test]
    fn the_owner_stays() {
        use std::os::unix::fs::{MetadataExt, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        // Only root may give a file away.
        if chown(&path, Some(1234), Some(4321)).is_err() {
            return;
        }
        rewrite(&path, "new").unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321));
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
