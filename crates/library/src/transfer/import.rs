//! Texts from other programs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use cutline_error::{Error, ErrorKind, Result};
use serde::Serialize;
use utoipa::ToSchema;

use super::rows::Row;
use super::sidecar;
use crate::change::{Applied, Change, NewAsset, NewText, Written};
use crate::store::{RunId, Store};
use crate::types::{Author, ContentHash, Name, NameKind};

/// Photos that share a transaction.
const CHUNK: usize = 500;
/// Problems that are listed.
const LISTED: usize = 100;
/// The longest line of a file, in bytes.
const MAX_LINE: u64 = 4 << 20;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct ImportReport {
    /// The run, to undo it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Photos that are new in the library.
    pub added: u64,
    /// Photos that were there already.
    pub known: u64,
    /// Texts that became the current ones.
    pub texts: u64,
    /// Texts that wait to be accepted, because a person decided about the current ones.
    pub suggested: u64,
    /// Texts that were there already.
    pub unchanged: u64,
    /// Rows and files that could not be imported.
    pub skipped: u64,
    /// The first of these, with the reasons.
    pub problems: Vec<String>,
}

/// Imports texts. Nothing is lost if it ends early; what it did can be undone.
#[derive(Debug)]
pub struct Importer<'a> {
    store: &'a dyn Store,
    author: Author,
    lang: String,
    report: ImportReport,
    waiting: Vec<NewAsset>,
}

impl<'a> Importer<'a> {
    /// `author` wrote what does not name its author. A text of a person or a program stays as it is; one
    /// of a model may be replaced by later runs.
    #[must_use]
    pub fn new(store: &'a dyn Store, author: Author, lang: &str) -> Self {
        let lang = lang.to_owned();
        Self { store, author, lang, report: ImportReport::default(), waiting: Vec::new() }
    }

    /// Imports a photo with the texts in its sidecars; without any, its name.
    ///
    /// # Errors
    /// Those of [`Store::apply`]. A photo that cannot be read is a problem in the report.
    pub fn photo(&mut self, photo: &Path) -> Result<()> {
        let from_xmp = match &self.author {
            Author::Import { .. } => Author::import("XMP"),
            other => other.clone(),
        };
        let (mut row, problems) = sidecar::read(photo, &self.lang, &from_xmp);
        problems.into_iter().for_each(|problem| self.problem(problem));
        row.path = Some(photo.to_string_lossy().into_owned());
        self.row(row, photo.parent().unwrap_or(Path::new(".")), &photo.display().to_string())
    }

    /// Imports the lines of a file of JSON Lines. Paths in it start from `folder`.
    ///
    /// # Errors
    /// Those of [`Store::apply`]; [`Io`](ErrorKind::Io): the file cannot be read.
    pub fn json_lines(&mut self, file: &mut dyn BufRead, folder: &Path) -> Result<()> {
        for number in 1_u64.. {
            let mut line = Vec::new();
            let read = file
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)
                .map_err(|error| unreadable(&error))?;
            if read == 0 {
                return Ok(());
            }
            if read as u64 == MAX_LINE {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "line {number} has more than {MAX_LINE} bytes; is it JSON Lines? Correct the file"
                    ),
                ));
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.is_empty() {
                continue;
            }
            let place = format!("line {number}");
            match serde_json::from_str(text) {
                Ok(value) => match Row::of_json(&value, &self.lang) {
                    Some(row) => self.row(row, folder, &place)?,
                    None => self.problem(format!("{place}: names no photo, or has no caption")),
                },
                Err(error) => self.problem(format!("{place}: is not JSON ({error})")),
            }
        }
        Ok(())
    }

    /// Imports a table with a header: `path` or `hash`, and `caption`, `alt_text` or `tags`. Paths in it
    /// start from `folder`.
    ///
    /// # Errors
    /// As [`json_lines`](Self::json_lines).
    pub fn csv(&mut self, file: &mut dyn Read, folder: &Path) -> Result<()> {
        let mut table = csv::ReaderBuilder::new().flexible(true).from_reader(file);
        let header = table.headers().map_err(|error| unreadable(&error))?.clone();
        let columns: Vec<String> = header
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim().to_lowercase())
            .collect();
        let has = |names: &[&str]| columns.iter().any(|column| names.contains(&column.as_str()));
        if !has(&["path", "hash"]) || !has(&["caption", "alt_text", "tags"]) {
            return Err(Error::new(
                ErrorKind::Io,
                "the table needs a header with path or hash, and with caption, alt_text or tags; add it",
            ));
        }
        for (number, record) in (2_u64..).zip(table.records()) {
            let place = format!("row {number}");
            match record {
                Ok(record) => {
                    let cells: HashMap<&str, &str> =
                        columns.iter().map(String::as_str).zip(record.iter()).collect();
                    if let Some(row) = Row::of_cells(&cells, &self.lang) {
                        self.row(row, folder, &place)?;
                    }
                }
                Err(error) => self.problem(format!("{place}: cannot be read ({error})")),
            }
        }
        Ok(())
    }

    /// Makes all changes that wait, and tells what was done.
    ///
    /// # Errors
    /// Those of [`Store::apply`].
    pub fn finish(mut self) -> Result<ImportReport> {
        self.flush()?;
        if let Some(run) = self.report.run {
            self.store.finish_run(run)?;
        }
        Ok(self.report)
    }

    fn problem(&mut self, problem: String) {
        self.report.skipped += 1;
        if self.report.problems.len() < LISTED {
            self.report.problems.push(problem);
        }
    }

    fn row(&mut self, row: Row, folder: &Path, place: &str) -> Result<()> {
        let hash = match (row.hash, &row.path) {
            (Some(hash), _) => hash,
            (None, Some(path)) => {
                match hash_of(&folder.join(path)).or_else(|_| hash_of(Path::new(path))) {
                    Ok(hash) => hash,
                    Err(error) => {
                        self.problem(format!("{place}: {path} cannot be read ({error})"));
                        return Ok(());
                    }
                }
            }
            (None, None) => {
                self.problem(format!("{place}: names no photo"));
                return Ok(());
            }
        };
        // A photo with texts of several authors is several changes; the first has the facts.
        let mut first = NewAsset::new(hash, self.author.clone());
        first.names = row.names.clone();
        first.names.extend(row.path_name().map(|name| with_facts(name, folder)));
        let Row { format, width, height, taken_at, colors, mood, texts, .. } = row;
        (first.format, first.width, first.height) = (format, width, height);
        (first.taken_at, first.colors, first.mood) = (taken_at, colors, mood);
        let mut assets = vec![first];
        for (author, text) in texts {
            add(&mut assets, author.unwrap_or_else(|| self.author.clone()), text);
        }
        self.waiting.extend(assets);
        if self.waiting.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let run = match self.report.run {
            Some(run) => run,
            None => self.store.start_run("import", "{}", &self.author)?,
        };
        self.report.run = Some(run);
        let mut seen = std::collections::HashSet::new();
        let change = |mut asset: NewAsset| {
            asset.run = Some(run);
            Change::Asset(Box::new(asset))
        };
        let changes = self.waiting.drain(..).map(change).collect();
        for applied in self.store.apply(changes)? {
            let Applied::Asset { hash, created, texts, .. } = applied else { continue };
            if seen.insert(hash) {
                *if created { &mut self.report.added } else { &mut self.report.known } += 1;
            }
            for written in texts {
                match written {
                    Written::Current(_) => self.report.texts += 1,
                    Written::Suggested(_) => self.report.suggested += 1,
                    Written::Rejected(_) | Written::Unchanged => self.report.unchanged += 1,
                }
            }
        }
        Ok(())
    }
}

/// Adds a text to the change by the same author.
fn add(assets: &mut Vec<NewAsset>, author: Author, text: NewText) {
    if let Some(asset) =
        assets.iter_mut().find(|asset| asset.author == author || asset.texts.is_empty())
    {
        asset.author = author;
        asset.texts.push(text);
        return;
    }
    let hash = assets.first().map(|asset| asset.hash);
    let Some(hash) = hash else { return };
    let mut asset = NewAsset::new(hash, author);
    asset.texts.push(text);
    assets.push(asset);
}

/// A path with the size and the time of its file, if it is there.
fn with_facts(mut name: Name, folder: &Path) -> Name {
    debug_assert_eq!(name.kind, NameKind::Path);
    let joined: PathBuf = folder.join(&name.name);
    let path = if joined.is_file() { joined } else { PathBuf::from(&name.name) };
    if let Ok(metadata) = path.metadata() {
        name.size = Some(metadata.len());
        let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        name.modified_at = since.and_then(|since| i64::try_from(since.as_millis()).ok());
    }
    // One name for a file, wherever a command was started.
    if let Ok(full) = std::path::absolute(&path)
        && full.is_file()
    {
        name.name = full.to_string_lossy().into_owned();
    }
    name
}

fn hash_of(path: &Path) -> io::Result<ContentHash> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut hasher = blake3::Hasher::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(ContentHash(*hasher.finalize().as_bytes())),
            count => hasher.update(&part[..count]),
        };
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("the file cannot be read ({error}); correct it"))
}
