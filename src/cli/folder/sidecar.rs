//! Captions in files next to their photos.
//!
//! A sidecar is written under a temporary name in the same folder and then renamed, so readers see
//! either the old content or the new. The temporary name is hidden and always the same for a photo:
//! what a killed run left behind is overwritten by the next run and never read as a sidecar.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value;

use super::inputs::InputPhoto;
use super::record::{FileStamp, Record};
use crate::captioner::TextStyle;
use cutline_error::{Error, ErrorKind, Result};
use cutline_xmp::{self, Existing, Texts};

/// The format of a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum SidecarKind {
    /// The caption and a line break.
    Txt,
    /// The row that `--format jsonl` prints.
    Json,
    /// Metadata for programs that organise photos.
    Xmp,
}

impl SidecarKind {
    pub(in crate::cli) const ALL: [Self; 3] = [Self::Json, Self::Xmp, Self::Txt];

    fn extension(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Xmp => "xmp",
        }
    }
}

/// Reads and writes the sidecars of one kind.
#[derive(Debug)]
pub(in crate::cli) struct Sidecars {
    kind: SidecarKind,
    /// How many photos share a path apart from the extension.
    namesakes: HashMap<PathBuf, usize>,
}

impl Sidecars {
    pub(in crate::cli) fn new(kind: SidecarKind, photos: &[InputPhoto]) -> Self {
        let mut namesakes = HashMap::new();
        for photo in photos {
            *namesakes.entry(photo.path.with_extension("")).or_default() += 1;
        }
        Self { kind, namesakes }
    }

    /// `photo.jpg.xmp`; or `photo.xmp`, as some programs name it, if that file exists and cannot
    /// belong to another photo.
    pub(in crate::cli) fn path(&self, photo: &Path) -> PathBuf {
        let mut name = photo.as_os_str().to_owned();
        name.push(".");
        name.push(self.kind.extension());
        let full = PathBuf::from(name);
        if self.kind == SidecarKind::Xmp && !full.exists() {
            let short = photo.with_extension(self.kind.extension());
            let namesakes = self.namesakes.get(&photo.with_extension("")).copied();
            if short.exists() && namesakes.unwrap_or(0) < 2 {
                return short;
            }
        }
        full
    }

    /// The content of the sidecar of `photo`; `None` if there is none that can be read.
    pub(in crate::cli) fn read(&self, photo: &Path) -> Option<SidecarText> {
        let path = self.path(photo);
        let text = fs::read_to_string(&path).ok()?;
        let content = match self.kind {
            SidecarKind::Txt => {
                SidecarText { text: text.trim().to_owned(), ..SidecarText::default() }
            }
            SidecarKind::Json => {
                let row: Value = serde_json::from_str(&text).ok()?;
                SidecarText {
                    text: row["caption"].as_str()?.to_owned(),
                    confidence: row["captions"][0]["confidence"].as_f64(),
                    fallback: row["fallback"].as_bool().unwrap_or(false),
                    stamp: serde_json::from_value(row["file"].clone()).ok(),
                    ..SidecarText::default()
                }
            }
            SidecarKind::Xmp => {
                let texts = cutline_xmp::read(&text).ok()?;
                let complete = texts.description.is_some() && texts.alt_text.is_some();
                let text = texts.alt_text.or(texts.description).unwrap_or_default();
                SidecarText { text, complete, ..SidecarText::default() }
            }
        };
        Some(content)
    }

    /// Whether the sidecar of `photo` is up to date, as far as its format can tell: JSON stores the
    /// stamp, XMP must have both texts, and text must not be older than the photo.
    pub(in crate::cli) fn is_current(&self, photo: &Path, stamp: Option<&FileStamp>) -> bool {
        let Some(content) = self.read(photo).filter(|content| !content.text.is_empty()) else {
            return false;
        };
        match self.kind {
            SidecarKind::Json => content.stamp.as_ref() == stamp,
            SidecarKind::Xmp => content.complete,
            SidecarKind::Txt => {
                let age = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
                age(&self.path(photo)) >= age(photo)
            }
        }
    }

    /// Writes the sidecar of `photo`. Texts that are already in an XMP stay unless `existing` says
    /// otherwise.
    ///
    /// # Errors
    /// The file cannot be written, or an existing one is not XMP.
    pub(in crate::cli) fn write(
        &self,
        photo: &Path,
        record: &Record<'_>,
        existing: Existing,
    ) -> Result<()> {
        let path = self.path(photo);
        let content = match self.kind {
            SidecarKind::Txt => format!("{}\n", record.description.text()),
            SidecarKind::Json => record.json()? + "\n",
            SidecarKind::Xmp => merged(&path, record.description.text(), existing)?,
        };
        replace(&path, content.as_bytes()).map_err(|error| {
            let detail = format!(
                "its sidecar {} cannot be written ({error}); check the permissions of the folder and the free space",
                path.display()
            );
            Error::new(ErrorKind::Io, detail)
        })
    }
}

/// The content of a sidecar.
#[derive(Debug, Default)]
pub(in crate::cli) struct SidecarText {
    /// Empty if the sidecar has no caption.
    pub(in crate::cli) text: String,
    pub(in crate::cli) confidence: Option<f64>,
    pub(in crate::cli) fallback: bool,
    stamp: Option<FileStamp>,
    /// Whether an XMP has both of its texts.
    complete: bool,
}

fn merged(path: &Path, text: &str, existing: Existing) -> Result<String> {
    let texts = Texts {
        description: Some(text.to_owned()),
        alt_text: Some(TextStyle::alt_text().apply(text)).filter(|text| !text.is_empty()),
    };
    let current = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let detail = format!(
                "its sidecar {} cannot be read ({error}); correct it or move it away",
                path.display()
            );
            return Err(Error::new(ErrorKind::Io, detail));
        }
    };
    cutline_xmp::merge(current.as_deref(), &texts, existing).map_err(|error| {
        let detail = format!("its sidecar {} {error}", path.display());
        Error::new(ErrorKind::Io, detail).with_source(error)
    })
}

/// Replaces the content of the file at `path` atomically.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // A symbolic link stays one: its target is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".cutline");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        if let Ok(metadata) = path.metadata() {
            file.set_permissions(metadata.permissions())?;
        }
        // The bytes before the name, so that a power failure leaves the old content or the new.
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::record::Description;
    use super::*;
    use crate::captioner::Fallback;

    fn write(sidecars: &Sidecars, photo: &Path, text: &str) -> Result<()> {
        let description =
            Description::Nothing { text: text.into(), reason: Fallback::because("test") };
        let stamp = FileStamp::of(photo, "abc");
        let record = Record { path: "a.jpg", description: &description, stamp: stamp.as_ref() };
        sidecars.write(photo, &record, Existing::Keep)
    }

    fn photo(folder: &tempfile::TempDir, name: &str) -> InputPhoto {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        InputPhoto { path, content: None }
    }

    #[test]
    fn each_kind_is_read_back_and_known_to_be_current() {
        let folder = tempfile::tempdir().unwrap();
        let photo = photo(&folder, "a.jpg");
        let stamp = FileStamp::of(&photo.path, "abc");
        for kind in SidecarKind::ALL {
            let sidecars = Sidecars::new(kind, std::slice::from_ref(&photo));
            assert!(!sidecars.is_current(&photo.path, stamp.as_ref()));
            write(&sidecars, &photo.path, "a cat & <b>").unwrap();
            assert_eq!(sidecars.read(&photo.path).unwrap().text, "a cat & <b>");
            assert!(sidecars.is_current(&photo.path, stamp.as_ref()), "{kind:?}");
            let other = FileStamp::of(&photo.path, "other");
            assert_eq!(sidecars.is_current(&photo.path, other.as_ref()), kind != SidecarKind::Json);
        }
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            ["a.jpg", "a.jpg.json", "a.jpg.txt", "a.jpg.xmp"],
            "no temporary file is left"
        );
    }

    #[test]
    fn an_xmp_without_the_photos_extension_is_used_unless_it_is_ambiguous() {
        let folder = tempfile::tempdir().unwrap();
        let photos = [photo(&folder, "a.jpg"), photo(&folder, "b.jpg"), photo(&folder, "b.png")];
        for name in ["a.xmp", "b.xmp"] {
            let xmp = cutline_xmp::merge(None, &Texts::default(), Existing::Keep).unwrap();
            fs::write(folder.path().join(name), xmp).unwrap();
        }
        let sidecars = Sidecars::new(SidecarKind::Xmp, &photos);
        let name = |photo: &InputPhoto| sidecars.path(&photo.path).file_name().unwrap().to_owned();
        assert_eq!(photos.each_ref().map(name), ["a.xmp", "b.jpg.xmp", "b.png.xmp"]);
    }

    #[test]
    fn a_file_that_is_not_xmp_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let photo = photo(&folder, "a.jpg");
        let path = folder.path().join("a.jpg.xmp");
        fs::write(&path, "my notes").unwrap();
        let sidecars = Sidecars::new(SidecarKind::Xmp, std::slice::from_ref(&photo));
        let error = write(&sidecars, &photo.path, "a cat").unwrap_err();
        assert!(error.detail().contains("a.jpg.xmp"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "my notes");
    }
}
