//! Files that are read piece by piece and must not change while they are.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cutline_error::{Error, Result};

use std::fs::File;

/// A file that was there, was not empty and was no placeholder when it was opened, and whose length
/// and time of change are compared after every read.
#[derive(Debug)]
pub struct CheckedFile {
    path: PathBuf,
    name: String,
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
struct State {
    length: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl CheckedFile {
    /// Opens a file and looks at its first bytes.
    ///
    /// # Errors
    /// It is missing, unreadable, empty, a Git LFS pointer or a web page.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| unreadable(&name, error))?;
        let metadata = file.metadata().map_err(|error| unreadable(&name, error))?;
        if metadata.is_dir() {
            return Err(Error::model(format!("{name} is a folder where a file should be")));
        }
        if metadata.len() == 0 {
            return Err(Error::model(format!(
                "{name} is empty; replace it with a complete copy, or wait until it is written"
            )));
        }
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        let file = Self { path: path.into(), name, file, state: State::of(&metadata) };
        file.refuse_placeholders()?;
        Ok(file)
    }

    /// The path, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes in the file when it was opened.
    pub fn length(&self) -> u64 {
        self.state.length
    }

    /// `length` bytes from `offset` on, which the caller has checked to lie within the file.
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
                "{} has {} bytes, more than the {limit} that such a file may have; it is not what \
                 its name says",
                self.name,
                self.length(),
            ))),
        }
    }

    /// Feeds the whole file to `hasher`.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn hash(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut buffer = vec![0; CHUNK as usize];
        let mut offset = 0;
        while offset < self.length() {
            // At most CHUNK, so the cast loses nothing.
            let piece = &mut buffer[..CHUNK.min(self.length() - offset) as usize];
            if let Err(error) = self.fill(piece, offset) {
                self.check_unchanged()?;
                return Err(unreadable(&self.name, error));
            }
            hasher.update(piece);
            offset += piece.len() as u64;
        }
        self.check_unchanged()
    }

    /// Compares the file with what it was when it was opened.
    ///
    /// # Errors
    /// It has another length or time of change, or another file has taken its place.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata =
            std::fs::metadata(&self.path).map_err(|error| unreadable(&self.name, error))?;
        if State::of(&metadata) == self.state {
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
