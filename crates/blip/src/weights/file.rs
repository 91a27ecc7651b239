//! Files that are read piece by piece and must not change meanwhile.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cutline_error::{Error, Result};

/// The bytes of a checkpoint's file.
#[derive(Debug)]
pub(super) enum ByteSource {
    File(CheckedFile),
    Memory { name: String, bytes: Cow<'static, [u8]> },
}

impl ByteSource {
    /// Opens a file that must start with `magic`; otherwise the error consists of its name and
    /// `mismatch`.
    pub(super) fn open(path: &Path, magic: &[u8], mismatch: &str) -> Result<Self> {
        let file = CheckedFile::open(path)?;
        if file.length() < magic.len() as u64 || file.read_at(0, magic.len())? != magic {
            return Err(Error::model(format!("{} {mismatch}", file.name())));
        }
        Ok(Self::File(file))
    }

    /// The path or name, for messages.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::File(file) => file.name(),
            Self::Memory { name, .. } => name,
        }
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::File(file) => file.length(),
            Self::Memory { bytes, .. } => bytes.len() as u64,
        }
    }

    /// `length` bytes from `offset` on; the caller has checked the range against
    /// [`length`](Self::length).
    pub(super) fn read_at(&self, offset: u64, length: usize) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::File(file) => file.read_at(offset, length).map(Cow::Owned),
            Self::Memory { name, bytes } => usize::try_from(offset)
                .ok()
                .and_then(|offset| bytes.get(offset..offset.checked_add(length)?))
                .map(Cow::Borrowed)
                .ok_or_else(|| Error::internal(format!("{name}: read past the end"))),
        }
    }

    /// Checks that a file has not changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        match self {
            Self::File(file) => file.check_unchanged(),
            Self::Memory { .. } => Ok(()),
        }
    }

    /// Feeds all bytes to `hasher`.
    pub(super) fn hash(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        match self {
            Self::File(file) => file.pieces(&mut |piece| {
                hasher.update_rayon(piece);
            }),
            Self::Memory { bytes, .. } => {
                hasher.update_rayon(bytes);
                Ok(())
            }
        }
    }
}

/// A file that existed and was neither empty nor a placeholder when it was opened. Its length and
/// modification time are compared after every read.
#[derive(Debug)]
pub struct CheckedFile {
    path: PathBuf,
    name: String,
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
    version: FileVersion,
}

#[derive(Debug, PartialEq, Eq)]
struct FileVersion {
    length: u64,
    modified: Option<SystemTime>,
}

impl FileVersion {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl CheckedFile {
    /// Opens a file and checks its first bytes.
    ///
    /// # Errors
    /// It is missing, unreadable, empty, a Git LFS pointer or a web page.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Before it is opened: opening a named pipe waits for its writer.
        let metadata = path.metadata().map_err(|error| unreadable(&name, error))?;
        if metadata.is_dir() {
            return Err(Error::model(format!("{name} is a folder where a file should be")));
        }
        if !metadata.is_file() {
            return Err(Error::model(format!(
                "{name} is a device, pipe or socket, not a regular file; replace it with the file"
            )));
        }
        let file = File::open(path).map_err(|error| unreadable(&name, error))?;
        let metadata = file.metadata().map_err(|error| unreadable(&name, error))?;
        if metadata.len() == 0 {
            return Err(Error::model(format!(
                "{name} is empty; replace it with a complete copy, or wait until it is written"
            )));
        }
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        let file = Self { path: path.into(), name, file, version: FileVersion::of(&metadata) };
        file.refuse_placeholders()?;
        Ok(file)
    }

    /// The path, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes when the file was opened.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.version.length
    }

    /// `length` bytes from `offset` on; the caller has checked that they are within the file.
    ///
    /// # Errors
    /// The file cannot be read, or has changed since it was opened.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let read = self.fill(&mut bytes, offset);
        self.check_unchanged()?;
        read.map_err(|error| unreadable(&self.name, error))?;
        Ok(bytes)
    }

    /// The whole file.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at), and if it is larger than `limit`.
    pub fn read_all(&self, limit: usize) -> Result<Vec<u8>> {
        match usize::try_from(self.length()) {
            Ok(length) if length <= limit => self.read_at(0, length),
            _ => Err(Error::model(format!(
                "{} has {} bytes, more than the {limit} allowed for such a file; replace it with the \
                 real one",
                self.name,
                self.length(),
            ))),
        }
    }

    /// Passes the whole file to `take`, piece by piece.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn pieces(&self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        // Enough for a hash on all threads.
        const PIECE: u64 = 8 << 20;
        let mut buffer = vec![0; PIECE as usize];
        let mut offset = 0;
        while offset < self.length() {
            // At most PIECE, so the cast loses nothing.
            let piece = &mut buffer[..PIECE.min(self.length() - offset) as usize];
            if let Err(error) = self.fill(piece, offset) {
                self.check_unchanged()?;
                return Err(unreadable(&self.name, error));
            }
            take(piece);
            offset += piece.len() as u64;
        }
        self.check_unchanged()
    }

    /// Checks that the file has not changed since it was opened.
    ///
    /// # Errors
    /// It has another length or modification time, or another file has taken its place.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata =
            std::fs::metadata(&self.path).map_err(|error| unreadable(&self.name, error))?;
        if FileVersion::of(&metadata) == self.version {
            return Ok(());
        }
        Err(Error::model(format!(
            "{} changed while it was read; wait until the copy has finished and start again",
            self.name,
        )))
    }

    #[cfg(unix)]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().map_err(|_| std::io::Error::other("lock poisoned"))?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }

    fn refuse_placeholders(&self) -> Result<()> {
        let start = self.read_at(0, self.length().min(64) as usize)?;
        let text = String::from_utf8_lossy(&start);
        let text = text.trim_start();
        if text.starts_with("version https://git-lfs") {
            return Err(Error::model(format!(
                "{} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder",
                self.name,
            )));
        }
        let page = ["<!doctype", "<html", "<head", "<?xml"];
        if page.iter().any(|tag| text.get(..tag.len()).is_some_and(|t| t.eq_ignore_ascii_case(tag)))
        {
            return Err(Error::model(format!(
                "{} is a web page, not the file itself; download it again from its \"resolve\" \
                 address",
                self.name,
            )));
        }
        Ok(())
    }
}

fn unreadable(name: &str, error: std::io::Error) -> Error {
    let sentence = match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("{name} is missing; complete the folder, or point MODEL at another")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("{name} may not be read by this user; give it permission to read the file")
        }
        _ => format!("{name} cannot be read ({error}); check the disk"),
    };
    Error::model(sentence).with_source(error)
}
