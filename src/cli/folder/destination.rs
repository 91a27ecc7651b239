//! Where `--output` leads: to standard output, to a stream, or to a file.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::name;
use cutline_error::{Error, ErrorKind, Result};

/// How long a pipe may be without a reader.
const READER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Destination {
    Stdout,
    /// A pipe, a terminal, a device, or an open descriptor: what is written to it cannot be read back.
    Stream(PathBuf),
    /// A regular file, or none yet.
    File(PathBuf),
}

impl Destination {
    /// What `path` stands for; `-` for standard output.
    ///
    /// # Errors
    /// It is a folder or a disk.
    pub(in crate::cli) fn of(path: &Path) -> Result<Self> {
        if ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]
            .iter()
            .any(|name| path == Path::new(name))
        {
            return Ok(Self::Stdout);
        }
        let Ok(kind) = path.metadata().map(|metadata| metadata.file_type()) else {
            return Ok(Self::File(path.to_owned()));
        };
        let what = match (kind.is_dir(), is_disk(kind)) {
            (true, _) => "is a folder",
            (_, true) => "is a disk",
            _ if kind.is_file() && !is_descriptor(path) => return Ok(Self::File(path.to_owned())),
            _ => return Ok(Self::Stream(path.to_owned())),
        };
        let detail =
            format!("{}: {what}; give a file or - for stdout as --output", name::line(path));
        Err(Error::new(ErrorKind::Config, detail))
    }
}

/// Opens a stream for writing.
///
/// # Errors
/// It cannot be written, or nothing reads the pipe.
pub(super) fn open_stream(path: &Path) -> io::Result<File> {
    let (sender, opened) = mpsc::channel();
    let path = path.to_owned();
    // Opening a pipe waits for its reader, and some devices wait for a line.
    thread::spawn(move || sender.send(OpenOptions::new().append(true).open(path)));
    opened
        .recv_timeout(READER_TIMEOUT)
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no program reads it")))
}

/// Whether standard output is a file with nothing in it.
#[cfg(unix)]
pub(super) fn stdout_is_new_file() -> bool {
    use std::os::fd::AsFd;
    let descriptor = io::stdout().as_fd().try_clone_to_owned();
    let metadata = descriptor.and_then(|descriptor| File::from(descriptor).metadata());
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

#[cfg(not(unix))]
pub(super) fn stdout_is_new_file() -> bool {
    false
}

/// Whether the path names an open descriptor. The file behind it is shared with other programs.
fn is_descriptor(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    matches!(parts[..], ["/", "dev", "stderr"] | ["/", "dev", "fd", _] | ["/", "proc", _, "fd", _])
}

#[cfg(unix)]
fn is_disk(kind: FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&kind)
}

#[cfg(not(unix))]
fn is_disk(_: FileType) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_streams_and_folders_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.csv");
        assert_eq!(Destination::of(&file).unwrap(), Destination::File(file.clone()));
        std::fs::write(&file, "x").unwrap();
        assert_eq!(Destination::of(&file).unwrap(), Destination::File(file));
        assert_eq!(Destination::of(Path::new("-")).unwrap(), Destination::Stdout);
        let error = Destination::of(folder.path()).unwrap_err();
        assert!(error.detail().contains("is a folder"), "{error}");
        #[cfg(unix)]
        for stream in ["/dev/null", "/dev/fd/2", "/dev/stderr"] {
            let path = PathBuf::from(stream);
            assert_eq!(Destination::of(&path).unwrap(), Destination::Stream(path), "{stream}");
        }
    }
}
