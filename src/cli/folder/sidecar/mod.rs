//! Captions in files next to their photos.
//!
//! A file that is not known to be ours stays as it is: JSON must have the fields of our rows and
//! nothing else, text must have our mark, and in XMP only texts that are missing are added.

mod namesakes;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::Value;

use self::namesakes::{Namesakes, folders};
use super::inputs::InputPhoto;
use super::mark::Mark;
use super::name;
use super::record::{FileStamp, Record};
use super::replace::{Current, remove_leftovers, replace};
use super::results::is_ours;
use super::resume::ResumeMode;
use crate::captioner::TextStyle;
use cutline_error::{Error, ErrorKind, Result};
use cutline_xmp::{self, Existing, Texts};

/// How often a sidecar is read again because another program wrote it.
const ATTEMPTS: usize = 3;

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

/// The name of a sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum SidecarName {
    /// `photo.jpg.txt`
    #[default]
    Full,
    /// `photo.txt`
    Stem,
}

/// Reads and writes the sidecars of one kind.
#[derive(Debug)]
pub(in crate::cli) struct Sidecars {
    kind: SidecarKind,
    naming: SidecarName,
    namesakes: Namesakes,
    /// Files that are never sidecars, without symbolic links: photos, and the output of the run.
    reserved: HashSet<PathBuf>,
}

impl Sidecars {
    pub(in crate::cli) fn new(
        kind: SidecarKind,
        naming: SidecarName,
        photos: &[InputPhoto],
    ) -> Self {
        let short = kind == SidecarKind::Xmp || naming == SidecarName::Stem;
        let namesakes = if short { Namesakes::of(photos) } else { Namesakes::default() };
        let like_sidecars = photos.iter().filter(|photo| is_sidecar(&photo.path));
        let reserved = like_sidecars.filter_map(|photo| fs::canonicalize(&photo.path).ok());
        Self { kind, naming, namesakes, reserved: reserved.collect() }
    }

    /// Keeps sidecars from being written over the output of the run.
    pub(in crate::cli) fn reserve(&mut self, output: &Path) {
        self.reserved.extend(fs::canonicalize(output));
    }

    /// The sidecar of `photo`. By its full name this is `photo.jpg.xmp`; or `photo.xmp`, as some
    /// programs name it, if that file exists and cannot belong to another photo.
    ///
    /// # Errors
    /// By its short name it would be the sidecar of another file as well.
    fn path(&self, photo: &Path) -> Result<PathBuf> {
        let short = photo.with_extension(self.kind.extension());
        if self.naming == SidecarName::Stem {
            let rival = self.namesakes.rival(photo, self.kind == SidecarKind::Xmp);
            let what = match rival {
                Some(rival) => format!("would be that of {} as well", name::line(Path::new(rival))),
                None if short == photo => "would be the photo itself".to_owned(),
                None if self.kind == SidecarKind::Xmp && !may_be_of(&short, photo) => {
                    "may belong to another file".to_owned()
                }
                None => return Ok(short),
            };
            return Err(refused(&short, &what, "give --sidecar-name full, or rename one of them"));
        }
        let mut name = photo.as_os_str().to_owned();
        name.push(".");
        name.push(self.kind.extension());
        let full = PathBuf::from(name);
        let is_short = self.kind == SidecarKind::Xmp
            && full.symlink_metadata().is_err()
            && short.exists()
            && self.namesakes.are_known(photo)
            && self.namesakes.rival(photo, true).is_none()
            && may_be_of(&short, photo);
        Ok(if is_short { short } else { full })
    }

    /// The sidecar of `photo`, and its content if there is one.
    fn open(&self, photo: &Path) -> Result<(PathBuf, Option<Current>)> {
        let path = self.path(photo)?;
        let current = Current::read(&path).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::InvalidFilename => "rename the photo, or give --sidecar-name stem",
                _ => "correct it or move it away",
            };
            refused(&path, &format!("cannot be read ({error})"), remedy)
        })?;
        if current.as_ref().is_some_and(|current| self.reserved.contains(current.path())) {
            return Err(refused(&path, "is a photo or the output of this run", "rename it"));
        }
        Ok((path, current))
    }

    /// The content of the sidecar of `photo`; `None` if there is none that can be read.
    pub(in crate::cli) fn read(&self, photo: &Path) -> Option<SidecarText> {
        let (_, current) = self.open(photo).ok()?;
        let bytes = current?.bytes;
        match self.kind {
            SidecarKind::Txt => {
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                Some(SidecarText { text, ..SidecarText::default() })
            }
            SidecarKind::Json => {
                let row: Value = serde_json::from_slice(&bytes).ok()?;
                Some(SidecarText {
                    text: row["caption"].as_str()?.to_owned(),
                    confidence: row["captions"][0]["confidence"].as_f64(),
                    fallback: row["fallback"].as_bool().unwrap_or(false),
                })
            }
            SidecarKind::Xmp => {
                let texts = cutline_xmp::read_bytes(&bytes).ok()?;
                let text = texts.alt_text.or(texts.description).unwrap_or_default();
                Some(SidecarText { text, ..SidecarText::default() })
            }
        }
    }

    /// Whether the sidecar of `photo` needs no writing. One of ours must be made from the same version
    /// of the photo with the same parameters. A text of somebody else stays. XMP must have both texts,
    /// whoever wrote them.
    ///
    /// # Errors
    /// The sidecar cannot be written: another file has its name.
    pub(in crate::cli) fn is_finished(
        &self,
        photo: &Path,
        stamp: Option<&FileStamp>,
        mode: ResumeMode,
    ) -> Result<bool> {
        let (path, current) = self.open(photo)?;
        let Some(current) = current.filter(|current| !current.is_blank()) else {
            return Ok(false);
        };
        if self.kind == SidecarKind::Xmp {
            let texts = texts(&path, &current)?;
            return Ok(match mode {
                ResumeMode::Overwrite => false,
                ResumeMode::OnlyMissing => texts.description.is_some() || texts.alt_text.is_some(),
                ResumeMode::Resume => texts.description.is_some() && texts.alt_text.is_some(),
            });
        }
        match (self.writer(&current), mode) {
            (_, ResumeMode::Overwrite) => Ok(false),
            (Writer::Cutline(_), ResumeMode::OnlyMissing) | (Writer::Caption, _) => Ok(true),
            (Writer::Cutline(made_from), ResumeMode::Resume) => Ok(made_from.as_ref() == stamp),
            (Writer::Other, _) => Err(foreign(&path)),
        }
    }

    /// Writes the sidecar of `photo`. What somebody else wrote stays, unless `overwrite` is set.
    ///
    /// # Errors
    /// The file cannot be written, or another file has its name.
    pub(in crate::cli) fn write(
        &self,
        photo: &Path,
        record: &Record<'_>,
        overwrite: bool,
    ) -> Result<()> {
        let mut attempt = 1;
        loop {
            let (path, current) = self.open(photo)?;
            if let Some(current) = current.as_ref().filter(|current| !current.is_blank())
                && self.kind != SidecarKind::Xmp
                && !overwrite
            {
                match self.writer(current) {
                    Writer::Cutline(_) => {}
                    Writer::Caption => return Ok(()),
                    Writer::Other => return Err(foreign(&path)),
                }
            }
            let content = self.content(&path, current.as_ref(), record, overwrite)?;
            let mark = (self.kind != SidecarKind::Xmp).then(|| Mark::of(&content, record.stamp));
            let is_same = current.as_ref().is_some_and(|current| current.bytes == content);
            if self.kind == SidecarKind::Xmp && is_same {
                return Ok(());
            }
            match replace(&path, current.as_ref(), &content, mark.as_ref()) {
                Ok(()) => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => {
                    let remedy = match error.kind() {
                        io::ErrorKind::InvalidFilename => {
                            "rename the photo, or give --sidecar-name stem"
                        }
                        _ => "check the permissions of file and folder, and the free space",
                    };
                    return Err(refused(&path, &format!("cannot be written ({error})"), remedy));
                }
            }
        }
    }

    fn content(
        &self,
        path: &Path,
        current: Option<&Current>,
        record: &Record<'_>,
        overwrite: bool,
    ) -> Result<Vec<u8>> {
        let text = record.description.text();
        match self.kind {
            SidecarKind::Txt => Ok(format!("{text}\n").into_bytes()),
            SidecarKind::Json => Ok((record.json()? + "\n").into_bytes()),
            SidecarKind::Xmp => {
                let texts = Texts {
                    description: Some(text.to_owned()),
                    alt_text: Some(TextStyle::alt_text().apply(text, None))
                        .filter(|text| !text.is_empty()),
                };
                let existing = if overwrite { Existing::Replace } else { Existing::Keep };
                let current = current.map(|current| current.bytes.as_slice());
                cutline_xmp::merge_bytes(current, &texts, existing)
                    .map_err(|error| unusable(path, error))
            }
        }
    }

    /// Who wrote a sidecar of text or JSON.
    fn writer(&self, current: &Current) -> Writer {
        let mark = current.mark.as_ref();
        let fits = mark.is_some_and(|mark| mark.fits(&current.bytes));
        if self.kind == SidecarKind::Txt {
            let stamp = mark.filter(|_| fits).and_then(|mark| mark.stamp().cloned());
            return stamp.map_or(Writer::Caption, |stamp| Writer::Cutline(Some(stamp)));
        }
        let row: Value = serde_json::from_slice(&current.bytes).unwrap_or_default();
        // A mark that does not fit tells that somebody edited the file.
        if is_row(&row) && (fits || mark.is_none()) {
            return Writer::Cutline(serde_json::from_value(row["file"].clone()).ok());
        }
        let has_caption = row["caption"].as_str().is_some_and(|text| !text.trim().is_empty());
        if has_caption && row["fallback"] != true { Writer::Caption } else { Writer::Other }
    }
}

/// Who wrote a file.
enum Writer {
    /// This program, for this version of a photo.
    Cutline(Option<FileStamp>),
    /// Somebody else, but it holds a caption.
    Caption,
    /// Somebody else, and it holds something else.
    Other,
}

/// The content of a sidecar.
#[derive(Debug, Default)]
pub(in crate::cli) struct SidecarText {
    /// Empty if the sidecar has no caption.
    pub(in crate::cli) text: String,
    pub(in crate::cli) confidence: Option<f64>,
    pub(in crate::cli) fallback: bool,
}

/// Removes temporary files that killed runs left next to `photos`.
pub(in crate::cli) fn remove_leftovers_of(photos: &[InputPhoto]) {
    for folder in folders(photos) {
        remove_leftovers(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    }
}

/// Whether a file is named like a sidecar rather than like a photo.
fn is_sidecar(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    SidecarKind::ALL.iter().any(|kind| extension.eq_ignore_ascii_case(kind.extension()))
}

/// Whether the XMP at `path`, if it exists, names no file with another extension than that of `photo`.
fn may_be_of(path: &Path, photo: &Path) -> bool {
    let extension = photo.extension().unwrap_or_default();
    match Current::read(path) {
        Ok(None) => true,
        Ok(Some(current)) => cutline_xmp::extensions(&current.bytes)
            .is_ok_and(|named| named.iter().all(|named| extension.eq_ignore_ascii_case(named))),
        Err(_) => false,
    }
}

/// Whether JSON is a row of ours and nothing else. What somebody added or changed by hand stays.
fn is_row(row: &Value) -> bool {
    const KEYS: [&str; 13] = [
        "path",
        "caption",
        "captions",
        "model",
        "cache",
        "vision_cache",
        "image",
        "colors",
        "mood",
        "timings",
        "file",
        "fallback",
        "fallback_reason",
    ];
    let known = |object: &serde_json::Map<String, Value>| {
        object.keys().all(|key| KEYS.contains(&key.as_str()))
    };
    is_ours(row)
        && row.as_object().is_some_and(known)
        && row["caption"] == row["captions"][0]["text"]
        && serde_json::from_value::<FileStamp>(row["file"].clone()).is_ok()
}

fn texts(path: &Path, current: &Current) -> Result<Texts> {
    cutline_xmp::read_bytes(&current.bytes).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, error: Error) -> Error {
    let detail = format!("its sidecar {} {error}", name::line(path));
    Error::new(ErrorKind::Io, detail).with_source(error)
}

fn foreign(path: &Path) -> Error {
    let remedy = "move it away, or give --sidecar-name or --overwrite";
    refused(path, "was not written by cutline", remedy)
}

fn refused(path: &Path, what: &str, remedy: &str) -> Error {
    Error::new(ErrorKind::Io, format!("its sidecar {} {what}; {remedy}", name::line(path)))
}

#[cfg(test)]
mod tests;
