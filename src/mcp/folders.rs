//! Files in the folders that were given at the start.
//!
//! A path is first resolved with all its symbolic links. What is left must be below one of the folders,
//! which were resolved in the same way. From there it is opened step by step, and no step follows a link:
//! whoever changes a folder into a link in between gets an error. The file that was opened is checked
//! again, because only that one will be read.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::definitions::PATH;
use crate::captioner::{Budget, Photo};
use cutline_error::{Error, ErrorKind, Result};

/// Folders that may be read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Folders {
    folders: Arc<[Folder]>,
    max_bytes: usize,
}

#[derive(Debug)]
struct Folder {
    /// Without links.
    path: PathBuf,
    /// Opened at the start. It stays the same folder whatever its path becomes.
    opened: File,
}

impl Folders {
    /// These folders, for files of at most `max_bytes`.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config): one of them is no folder or cannot be opened.
    pub fn open(paths: &[PathBuf], max_bytes: usize) -> Result<Self> {
        let open = |path: &PathBuf| -> io::Result<Folder> {
            let resolved = path.canonicalize()?;
            let opened = File::open(&resolved)?;
            if !opened.metadata()?.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(Folder { path: resolved, opened })
        };
        let folders = paths.iter().map(|path| {
            open(path).map_err(|error| {
                let path = path.display();
                let detail = format!("{path} cannot be read ({error}); give an existing folder");
                Error::new(ErrorKind::Config, detail)
            })
        });
        Ok(Self { folders: folders.collect::<Result<_>>()?, max_bytes })
    }

    /// Where files may be, in a sentence.
    #[must_use]
    pub fn description(&self) -> String {
        if self.folders.is_empty() {
            return "No files can be read, because no folder was given at the start.".to_owned();
        }
        format!("Files can be read in {}.", self.names())
    }

    fn names(&self) -> String {
        let mut names = String::new();
        for (index, folder) in self.folders.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(names, "{separator}{}", folder.path.display());
        }
        names
    }

    /// Reads the image file at `path`, which may be relative to any of the folders. Its bytes count against
    /// `budget`.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter) if there is no such file. That it is outside of the
    /// folders is the same error. [`ImageTooLarge`](ErrorKind::ImageTooLarge), or
    /// [`QueueFull`](ErrorKind::QueueFull) if there is no memory for it now.
    pub async fn read(&self, path: String, budget: &Budget) -> Result<Photo> {
        if self.folders.is_empty() {
            return Err(wrong(
                "this server reads no files, because it was started without a folder; start it as \
                 cutline mcp FOLDER, or give the image itself as image",
            ));
        }
        let (folders, budget) = (self.clone(), budget.clone());
        let reading =
            tokio::task::spawn_blocking(move || folders.read_now(Path::new(&path), &budget));
        reading.await.map_err(|error| Error::internal("a file was not read").with_source(error))?
    }

    fn read_now(&self, path: &Path, budget: &Budget) -> Result<Photo> {
        let file = self.find(path)?;
        let size = file.metadata().map_err(|error| unreadable(&error))?.len();
        if size > self.max_bytes as u64 {
            let most = self.max_bytes;
            let detail = format!(
                "the file is larger than {most} bytes; scale the image down or compress it more"
            );
            return Err(Error::new(ErrorKind::ImageTooLarge, detail));
        }
        let permit = budget.take(size)?;
        let mut bytes = Vec::new();
        // Exactly, because the budget counts it; and one more byte shows whether the file has grown.
        bytes.try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX)).map_err(|error| {
            Error::new(ErrorKind::QueueFull, "there is no memory for this file; try again later")
                .with_source(error)
        })?;
        let read =
            file.take(size + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        if read as u64 != size {
            return Err(wrong("the file is changing; try again when it is complete"));
        }
        Ok(Photo::new(bytes, permit))
    }

    /// The regular file at `path`, opened.
    fn find(&self, path: &Path) -> Result<File> {
        for folder in &*self.folders {
            // An absolute path replaces the folder's.
            let Ok(resolved) = folder.path.join(path).canonicalize() else { continue };
            let within = |other: &&Folder| resolved.starts_with(&other.path);
            let Some(folder) = self.folders.iter().find(within) else { continue };
            let Ok(relative) = resolved.strip_prefix(&folder.path) else { continue };
            return match beneath(&folder.opened, relative) {
                Ok(Some(file)) => Ok(file),
                Ok(None) => {
                    Err(wrong("the path is not that of a file; give the path of an image file"))
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Err(unreadable(&error))
                }
                Err(_) => Err(self.missing()),
            };
        }
        Err(self.missing())
    }

    fn missing(&self) -> Error {
        let names = self.names();
        wrong(format!("there is no such file in {names}; give the path of an image there"))
    }
}

fn wrong(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::parameter(PATH, detail)
}

fn unreadable(error: &io::Error) -> Error {
    wrong(format!("the file cannot be read ({error}); change its permissions, or give another"))
}

/// Opens the regular file at `relative`, which has no links, below `folder`. `None` if it is a folder, a
/// device, a pipe or a socket: those are not opened, because opening alone may block or have effects.
#[cfg(unix)]
fn beneath(folder: &File, relative: &Path) -> io::Result<Option<File>> {
    use std::path::Component;

    use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};

    let open = |at: &File, name: &std::ffi::OsStr, more: OFlags| -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
        Ok(openat(at, name, flags, Mode::empty())?.into())
    };
    let Some(name) = relative.file_name() else { return Ok(None) };
    let mut at = folder.try_clone()?;
    for part in relative.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(part) = part else { return Err(io::ErrorKind::NotFound.into()) };
        at = open(&at, part, OFlags::DIRECTORY)?;
    }
    let kind = FileType::from_raw_mode(statat(&at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    if kind != FileType::RegularFile {
        return Ok(None);
    }
    let file = open(&at, name, OFlags::NONBLOCK | OFlags::NOCTTY)?;
    // It may have been replaced in between.
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Without steps that refuse links, a folder could be replaced by a link at the right moment.
#[cfg(not(unix))]
fn beneath(_folder: &File, _relative: &Path) -> io::Result<Option<File>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        inside: PathBuf,
        outside: PathBuf,
        folders: Folders,
        _temporary: tempfile::TempDir,
    }

    fn place() -> Place {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        let (inside, outside) = (root.join("inside"), root.join("outside"));
        fs::create_dir_all(inside.join("deep/er")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(inside.join("deep/er/photo"), b"photo").unwrap();
        fs::write(outside.join("secret"), b"secret").unwrap();
        let folders = Folders::open(std::slice::from_ref(&inside), 100).unwrap();
        Place { inside, outside, folders, _temporary: temporary }
    }

    fn read(place: &Place, path: &str) -> Result<usize> {
        place.folders.read_now(Path::new(path), &Budget::new(1000)).map(|photo| photo.len())
    }

    #[test]
    fn files_inside_are_read_whatever_the_way_to_them() {
        let place = place();
        let inside = place.inside.display();
        symlink("deep", place.inside.join("relative")).unwrap();
        symlink(place.inside.join("deep/er/photo"), place.inside.join("absolute")).unwrap();
        symlink(&place.inside, place.outside.join("back")).unwrap();
        for path in [
            "deep/er/photo".to_owned(),
            "./deep/../deep/er/photo".to_owned(),
            "../inside/deep/er/photo".to_owned(),
            "relative/er/photo".to_owned(),
            "absolute".to_owned(),
            "../outside/back/deep/er/photo".to_owned(),
            format!("{inside}/deep//er/photo"),
        ] {
            assert_eq!(read(&place, &path).unwrap(), 5, "{path}");
        }
    }

    #[test]
    fn what_is_outside_looks_like_what_does_not_exist() {
        let place = place();
        symlink(place.outside.join("secret"), place.inside.join("file-link")).unwrap();
        symlink("../outside", place.inside.join("folder-link")).unwrap();
        symlink("/proc/self/environ", place.inside.join("proc-link")).unwrap();
        symlink("loop", place.inside.join("loop")).unwrap();
        let missing = read(&place, "no/such/file").unwrap_err();
        assert_eq!(missing.field(), Some("path"));
        let outside = place.outside.join("secret");
        let sibling = format!("{}-2/photo", place.inside.display());
        for path in [
            "../outside/secret",
            "deep/er/../../../outside/secret",
            outside.to_str().unwrap(),
            "file-link",
            "folder-link/secret",
            "proc-link",
            "loop",
            "/proc/self/environ",
            "/dev/zero",
            "/etc/passwd",
            "/",
            "..",
            "deep/er/photo/",
            "deep/er/photo/..",
            "nul\0l",
            sibling.as_str(),
            &"a/".repeat(5000),
        ] {
            let error = read(&place, path).unwrap_err();
            assert_eq!(error.detail(), missing.detail(), "{path}");
        }
    }

    /// Whoever replaces a folder or a file by a link after the path was resolved.
    #[test]
    fn no_step_follows_a_link() {
        let place = place();
        let root = File::open(&place.inside).unwrap();
        symlink("deep", place.inside.join("folder-link")).unwrap();
        symlink("deep/er/photo", place.inside.join("file-link")).unwrap();
        assert!(beneath(&root, Path::new("deep/er/photo")).unwrap().is_some());
        assert!(beneath(&root, Path::new("folder-link/er/photo")).is_err());
        assert!(beneath(&root, Path::new("file-link")).unwrap().is_none());
        assert!(beneath(&root, Path::new("../outside/secret")).is_err());
    }

    #[test]
    fn only_regular_files_of_the_right_size_are_read() {
        let place = place();
        let pipe = place.inside.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(place.inside.join("socket")).unwrap();
        for path in ["pipe", "socket", "deep", "."] {
            let error = read(&place, path).unwrap_err();
            assert!(error.detail().contains("not that of a file"), "{path}: {error}");
        }
        fs::write(place.inside.join("large"), [0; 101]).unwrap();
        assert_eq!(read(&place, "large").unwrap_err().kind(), ErrorKind::ImageTooLarge);
        fs::write(place.inside.join("empty"), []).unwrap();
        assert_eq!(read(&place, "empty").unwrap(), 0);
        let error = place.folders.read_now(Path::new("deep/er/photo"), &Budget::new(4));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::QueueFull);
    }

    #[test]
    fn folders_must_exist() {
        let place = place();
        for path in [place.inside.join("no"), place.outside.join("secret")] {
            let error = Folders::open(&[place.inside.clone(), path], 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.detail().contains("give an existing folder"), "{error}");
        }
        assert!(place.folders.description().contains("inside"));
        let none = Folders::open(&[], 100).unwrap();
        assert!(none.description().contains("No files"));
    }
}
