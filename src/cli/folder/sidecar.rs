//! Captions in files beside their photos.
//!
//! A sidecar is written under another name in the same folder and renamed: whoever looks finds the
//! old one or the new one. That name is hidden, and always the same for a photo, so that what a kill
//! left behind is overwritten by the next run and never taken for a sidecar.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::inputs::Photo;
use super::record::{Record, Stamp};
use crate::captioner::TextStyle;
use cutline_error::{Error, ErrorKind, Result};
use cutline_xmp::{self, Existing, Texts};

/// What a sidecar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Kind {
    /// The text and the end of its line.
    Txt,
    /// The row that `--format jsonl` prints.
    Json,
    /// Metadata for programs that manage photos.
    Xmp,
}

impl Kind {
    pub(in crate::cli) const NAMES: [&'static str; 3] = ["txt", "json", "xmp"];
    pub(in crate::cli) const ALL: [Self; 3] = [Self::Json, Self::Xmp, Self::Txt];

    pub(in crate::cli) fn named(name: &str) -> Self {
        match name {
            "json" => Self::Json,
            "xmp" => Self::Xmp,
            _ => Self::Txt,
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Xmp => "xmp",
        }
    }
}

/// Where the sidecars of some photos are.
#[derive(Debug)]
pub(in crate::cli) struct Sidecars {
    kind: Kind,
    /// How many photos have a name that differs in the ending only.
    namesakes: HashMap<PathBuf, usize>,
}

impl Sidecars {
    pub(in crate::cli) fn new(kind: Kind, photos: &[Photo]) -> Self {
        let mut namesakes = HashMap::new();
        for photo in photos {
            *namesakes.entry(photo.path.with_extension("")).or_default() += 1;
        }
        Self { kind, namesakes }
    }

    /// `photo.jpg.xmp`; or `photo.xmp`, as some programs call it, if that one is there and is no
    /// other photo's.
    pub(in crate::cli) fn path(&self, photo: &Path) -> PathBuf {
        let mut name = photo.as_os_str().to_owned();
        name.push(".");
        name.push(self.kind.ending());
        let full = PathBuf::from(name);
        if self.kind == Kind::Xmp && !full.exists() {
            let short = photo.with_extension(self.kind.ending());
            let namesakes = self.namesakes.get(&photo.with_extension("")).copied();
            if short.exists() && namesakes.unwrap_or(0) < 2 {
                return short;
            }
        }
        full
    }

    /// What the sidecar of `photo` says, where there is one that can be read.
    pub(in crate::cli) fn read(&self, photo: &Path) -> Option<Said> {
        let path = self.path(photo);
        let text = fs::read_to_string(&path).ok()?;
        let said = match self.kind {
            Kind::Txt => Said { text: text.trim().to_owned(), ..Said::default() },
            Kind::Json => {
                let row: Value = serde_json::from_str(&text).ok()?;
                Said {
                    text: row["caption"].as_str()?.to_owned(),
                    confidence: row["captions"][0]["confidence"].as_f64(),
                    fallback: row["fallback"].as_bool().unwrap_or(false),
                    stamp: serde_json::from_value(row["file"].clone()).ok(),
                    ..Said::default()
                }
            }
            Kind::Xmp => {
                let texts = cutline_xmp::read(&text).ok()?;
                let complete = texts.description.is_some() && texts.alt_text.is_some();
                let text = texts.alt_text.or(texts.description).unwrap_or_default();
                Said { text, complete, ..Said::default() }
            }
        };
        Some(said)
    }

    /// Whether the sidecar of `photo` is what would be written of it now, as far as it tells: JSON
    /// knows file and parameters, XMP whether both of its texts are there, text its age.
    pub(in crate::cli) fn is_current(&self, photo: &Path, stamp: Option<&Stamp>) -> bool {
        let Some(said) = self.read(photo).filter(|said| !said.text.is_empty()) else {
            return false;
        };
        match self.kind {
            Kind::Json => said.stamp.as_ref() == stamp,
            Kind::Xmp => said.complete,
            Kind::Txt => {
                let age = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
                age(&self.path(photo)) >= age(photo)
            }
        }
    }

    /// Writes what `record` says beside its photo. Texts that an XMP has already are kept unless
    /// `existing` says otherwise.
    ///
    /// # Errors
    /// It cannot be written; or what is there is no XMP.
    pub(in crate::cli) fn write(
        &self,
        photo: &Path,
        record: &Record<'_>,
        existing: Existing,
    ) -> Result<()> {
        let path = self.path(photo);
        let content = match self.kind {
            Kind::Txt => format!("{}\n", record.described.text()),
            Kind::Json => record.json()? + "\n",
            Kind::Xmp => merged(&path, record.described.text(), existing)?,
        };
        replace(&path, content.as_bytes()).map_err(|error| {
            let detail = format!(
                "its sidecar {} cannot be written ({error}); check the folder's permissions and room",
                path.display()
            );
            Error::new(ErrorKind::Io, detail)
        })
    }
}

/// What a sidecar says of its photo.
#[derive(Debug, Default)]
pub(in crate::cli) struct Said {
    /// Empty if it says nothing.
    pub(in crate::cli) text: String,
    pub(in crate::cli) confidence: Option<f64>,
    pub(in crate::cli) fallback: bool,
    stamp: Option<Stamp>,
    /// Whether an XMP has both texts.
    complete: bool,
}

fn merged(path: &Path, text: &str, existing: Existing) -> Result<String> {
    let texts = Texts {
        description: Some(text.to_owned()),
        alt_text: Some(TextStyle::alt_text().apply(text)).filter(|text| !text.is_empty()),
    };
    let there = match fs::read_to_string(path) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let detail = format!(
                "its sidecar {} cannot be read ({error}); correct it or move it away",
                path.display()
            );
            return Err(Error::new(ErrorKind::Io, detail));
        }
    };
    cutline_xmp::merge(there.as_deref(), &texts, existing).map_err(|error| {
        let detail = format!("its sidecar {} {error}", path.display());
        Error::new(ErrorKind::Io, detail).with_source(error)
    })
}

/// The content of the file at `path` becomes `content`, at once.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".cutline");
    let fresh = path.with_file_name(name);
    let written = File::create(&fresh).and_then(|mut file| {
        file.write_all(content)?;
        if let Ok(metadata) = path.metadata() {
            file.set_permissions(metadata.permissions())?;
        }
        // Its bytes before its name: a machine that loses power has the old one or the new one.
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&fresh, &path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::record::Described;
    use super::*;
    use crate::captioner::Fallback;

    fn write(sidecars: &Sidecars, photo: &Path, text: &str) -> Result<()> {
        let described = Described::Nothing { text: text.into(), reason: Fallback::because("test") };
        let stamp = Stamp::of(photo, "abc");
        let record = Record { path: "a.jpg", described: &described, stamp: stamp.as_ref() };
        sidecars.write(photo, &record, Existing::Keep)
    }

    fn photo(folder: &tempfile::TempDir, name: &str) -> Photo {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        Photo { path, content: None }
    }

    #[test]
    fn each_kind_says_what_was_written_and_whether_it_is_current() {
        let folder = tempfile::tempdir().unwrap();
        let photo = photo(&folder, "a.jpg");
        let stamp = Stamp::of(&photo.path, "abc");
        for kind in Kind::ALL {
            let sidecars = Sidecars::new(kind, std::slice::from_ref(&photo));
            assert!(!sidecars.is_current(&photo.path, stamp.as_ref()));
            write(&sidecars, &photo.path, "a cat & <b>").unwrap();
            assert_eq!(sidecars.read(&photo.path).unwrap().text, "a cat & <b>");
            assert!(sidecars.is_current(&photo.path, stamp.as_ref()), "{kind:?}");
            let other = Stamp::of(&photo.path, "other");
            assert_eq!(sidecars.is_current(&photo.path, other.as_ref()), kind != Kind::Json);
        }
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.jpg", "a.jpg.json", "a.jpg.txt", "a.jpg.xmp"], "nothing is left");
    }

    #[test]
    fn an_xmp_by_another_name_is_written_on_unless_it_may_be_another_photos() {
        let folder = tempfile::tempdir().unwrap();
        let photos = [photo(&folder, "a.jpg"), photo(&folder, "b.jpg"), photo(&folder, "b.png")];
        for name in ["a.xmp", "b.xmp"] {
            let xmp = cutline_xmp::merge(None, &Texts::default(), Existing::Keep).unwrap();
            fs::write(folder.path().join(name), xmp).unwrap();
        }
        let sidecars = Sidecars::new(Kind::Xmp, &photos);
        let name = |photo: &Photo| sidecars.path(&photo.path).file_name().unwrap().to_owned();
        assert_eq!(photos.each_ref().map(name), ["a.xmp", "b.jpg.xmp", "b.png.xmp"]);
    }

    #[test]
    fn what_is_no_xmp_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let photo = photo(&folder, "a.jpg");
        let path = folder.path().join("a.jpg.xmp");
        fs::write(&path, "my notes").unwrap();
        let sidecars = Sidecars::new(Kind::Xmp, std::slice::from_ref(&photo));
        let error = write(&sidecars, &photo.path, "a cat").unwrap_err();
        assert!(error.detail().contains("a.jpg.xmp"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "my notes");
    }
}
