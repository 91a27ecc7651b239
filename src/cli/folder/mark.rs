//! Marks files as ours where their format has no room for it.
//!
//! Text proves nothing about who wrote it. So a text file gets an extended attribute with the digest of
//! its content; if anyone edits the file, the digest no longer fits. Some file systems have no
//! extended attributes. There a text file is never known to be ours.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::record::FileStamp;

const NAME: &str = "user.cutline";

/// What the attribute says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// BLAKE3 of the content; `None` for a file that grows row by row.
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    /// The photo and the parameters that the content was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileStamp>,
}

impl Mark {
    /// For a file with this content.
    pub(super) fn of(content: &[u8], stamp: Option<&FileStamp>) -> Self {
        let blake3 = Some(blake3::hash(content).to_hex().to_string());
        Self { blake3, file: stamp.cloned() }
    }

    /// The mark of a file; `None` if it has none that can be read.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported): the file system has no extended attributes.
    pub(super) fn of_file(file: &File) -> io::Result<Option<Self>> {
        Ok(attributes::get(file)?.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Writes the mark. It fails silently where there are no extended attributes: the file then counts
    /// as somebody else's, and nothing is lost.
    pub(super) fn write(&self, file: &File) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = attributes::set(file, &text);
        }
    }

    /// Whether it fits a file with this content.
    pub(super) fn fits(&self, content: &[u8]) -> bool {
        self.blake3.as_deref() == Some(blake3::hash(content).to_hex().as_str())
    }

    /// The photo and the parameters that the content was made from.
    pub(super) fn stamp(&self) -> Option<&FileStamp> {
        self.file.as_ref()
    }
}

/// The attribute of a file.
#[cfg(unix)]
mod attributes {
    use std::fs::File;
    use std::io;

    use xattr::FileExt;

    use super::NAME;

    pub(super) fn get(file: &File) -> io::Result<Option<Vec<u8>>> {
        file.get_xattr(NAME)
    }

    pub(super) fn set(file: &File, text: &[u8]) -> io::Result<()> {
        file.set_xattr(NAME, text)
    }
}

/// There are none.
#[cfg(not(unix))]
mod attributes {
    use std::fs::File;
    use std::io;

    pub(super) fn get(_: &File) -> io::Result<Option<Vec<u8>>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn set(_: &File, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Whether files of this folder can be marked.
#[cfg(test)]
pub(super) fn is_supported_in(folder: &std::path::Path) -> bool {
    Mark::of_file(&tempfile::tempfile_in(folder).unwrap()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_fits_only_the_content_that_it_was_made_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a cat\n").unwrap();
        let stamp = FileStamp { size_bytes: 1, modified_ms: 2, parameters: "p".into() };
        let mark = Mark::of(b"a cat\n", Some(&stamp));
        assert!(mark.fits(b"a cat\n") && !mark.fits(b"my cat\n") && !Mark::default().fits(b""));
        let Ok(none) = Mark::of_file(file.as_file()) else {
            // No extended attributes here.
            return;
        };
        assert_eq!(none, None);
        mark.write(file.as_file());
        assert_eq!(Mark::of_file(file.as_file()).unwrap().as_ref(), Some(&mark));
        assert_eq!(mark.stamp(), Some(&stamp));
        attributes::set(file.as_file(), b"other").unwrap();
        assert_eq!(Mark::of_file(file.as_file()).unwrap(), None);
    }
}
