//! Writes results to standard output, to another stream, or to a file, row by row.
//!
//! A stream is only written, in order. Each row of a file is a single write, so a killed run leaves
//! only whole rows, except for the last one. A JSON array is closed after each row, and the next row
//! overwrites the bracket. A file is continued only if all of it is ours.

mod existing;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use self::existing::continued;
use super::destination::{Destination, open_stream, stdout_is_new_file};
use super::inputs::InputPhoto;
use super::mark::Mark;
use super::name;
use super::record::{OutputFormat, Record, header};
use super::replace::{links, lock};
use super::results::ResultEntry;
use super::spreadsheet::MARK;
use crate::cli::unwritable;
use cutline_error::{Error, ErrorKind, Result};

/// Where results are written.
#[derive(Debug)]
pub(in crate::cli) struct Output {
    target: OutputTarget,
    format: OutputFormat,
    rows: usize,
    /// What comes before the next row.
    before: String,
    /// The last row of the file, if it may have been cut off. A row that begins like it replaces it.
    torn: Vec<u8>,
}

#[derive(Debug)]
enum OutputTarget {
    Stdout(Stdout),
    Stream {
        file: File,
        path: PathBuf,
    },
    File {
        file: File,
        path: PathBuf,
        /// The offset of the next row.
        end: u64,
        /// The length that this run knows of.
        length: u64,
    },
}

/// Why a row could not be written.
#[derive(Debug)]
pub(in crate::cli) enum WriteError {
    /// The reader of standard output closed it, as `head` does.
    ReaderLeft,
    Error(Error),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Output {
    /// Standard output.
    ///
    /// # Errors
    /// As [`header`].
    pub(in crate::cli) fn stdout(format: OutputFormat) -> Result<Self> {
        // A program that reads a pipe takes the mark for a part of the first name.
        let mark = if stdout_is_new_file() { MARK } else { "" };
        let before = start(format, mark)?;
        Ok(Self {
            target: OutputTarget::Stdout(io::stdout()),
            format,
            rows: 0,
            before,
            torn: Vec::new(),
        })
    }

    /// What `destination` stands for, and the results that it already contains; `overwrite` discards
    /// those as soon as there is a new row.
    ///
    /// # Errors
    /// The file cannot be written, another run writes to it, or it contains something else.
    pub(in crate::cli) fn open(
        destination: &Destination,
        format: OutputFormat,
        overwrite: bool,
        photos: &[InputPhoto],
    ) -> Result<(Self, Option<Vec<ResultEntry>>)> {
        match destination {
            Destination::Stdout => Ok((Self::stdout(format)?, None)),
            Destination::Stream(path) => {
                let file = open_stream(path).map_err(|error| failed(path, &error))?;
                let target = OutputTarget::Stream { file, path: path.clone() };
                let before = start(format, "")?;
                Ok((Self { target, format, rows: 0, before, torn: Vec::new() }, None))
            }
            Destination::File(path) => {
                let (output, entries) = Self::file(path, format, overwrite, photos)?;
                Ok((output, Some(entries)))
            }
        }
    }

    fn file(
        path: &Path,
        format: OutputFormat,
        overwrite: bool,
        photos: &[InputPhoto],
    ) -> Result<(Self, Vec<ResultEntry>)> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(|error| failed(path, &error))?;
        if !lock(&file) {
            let detail = format!(
                "{}: another run writes to it; wait for that, or give another --output",
                name::line(path)
            );
            return Err(Error::new(ErrorKind::Config, detail));
        }
        let (results, torn) = if overwrite {
            Default::default()
        } else {
            continued(&mut file, path, format, photos)?
        };
        let end = results.end as u64;
        let mut before = if end == 0 { start(format, MARK)? } else { String::new() };
        if results.unterminated {
            before.push('\n');
        }
        let length = file.metadata().map_err(|error| failed(path, &error))?.len();
        let target = OutputTarget::File { file, path: path.to_owned(), end, length };
        let waits = overwrite || !torn.is_empty();
        let mut output = Self { target, format, rows: results.entries.len(), before, torn };
        // The file is complete even if no row follows. Only what is to be discarded, or may be cut off,
        // waits for a row.
        if !waits && let Err(WriteError::Error(error)) = output.put("") {
            return Err(error);
        }
        Ok((output, results.entries))
    }

    /// The results in a file that is not written to.
    ///
    /// # Errors
    /// The file cannot be read, or contains something else.
    pub(in crate::cli) fn read(
        path: &Path,
        format: OutputFormat,
        photos: &[InputPhoto],
    ) -> Result<Vec<ResultEntry>> {
        match File::open(path) {
            Ok(mut file) => Ok(continued(&mut file, path, format, photos)?.0.entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(path, &error)),
        }
    }

    /// Writes one row.
    pub(in crate::cli) fn row(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        let row = record.write(self.format)?;
        let text = match self.format {
            OutputFormat::Json if self.rows == 0 => format!("\n{row}"),
            OutputFormat::Json => format!(",\n{row}"),
            _ => row,
        };
        self.rows += 1;
        let torn = std::mem::take(&mut self.torn);
        if let OutputTarget::File { end, .. } = &mut self.target
            && !torn.is_empty()
            && text.as_bytes().starts_with(&torn)
        {
            *end -= torn.len() as u64;
            self.before.clear();
        }
        self.put(&text)
    }

    /// Writes what comes after the last row.
    pub(in crate::cli) fn end(&mut self) -> Result<(), WriteError> {
        if let OutputTarget::File { file, path, .. } = &self.target {
            return file.sync_all().map_err(|error| failed(path, &error).into());
        }
        let closing = self.closing();
        self.put(closing)
    }

    fn closing(&self) -> &'static str {
        match (self.format, self.rows) {
            (OutputFormat::Json, 0) => "]\n",
            (OutputFormat::Json, _) => "\n]\n",
            _ => "",
        }
    }

    /// Writes `text`, after what comes before it.
    fn put(&mut self, text: &str) -> Result<(), WriteError> {
        let closing = self.closing();
        let text = std::mem::take(&mut self.before) + text;
        match &mut self.target {
            OutputTarget::Stdout(out) => {
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_failed)
            }
            OutputTarget::Stream { file, path } => {
                file.write_all(text.as_bytes()).map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => WriteError::ReaderLeft,
                    _ => WriteError::Error(failed(path, &error)),
                })
            }
            OutputTarget::File { file, path, end, length } => {
                check_unchanged(file, path, *length)?;
                // Text does not tell that it is ours.
                if *end == 0 && self.format.is_plain() {
                    Mark::default().write(file);
                }
                let written = write_at(file, *end, &text, closing);
                *length = written.map_err(|error| failed(path, &error))?;
                *end += text.len() as u64;
                Ok(())
            }
        }
    }
}

/// What comes before the first row.
fn start(format: OutputFormat, mark: &str) -> Result<String> {
    Ok(match format {
        OutputFormat::Csv => mark.to_owned() + &header()?,
        OutputFormat::Tsv => mark.to_owned(),
        OutputFormat::Json => "[".to_owned(),
        OutputFormat::Text | OutputFormat::JsonLines => String::new(),
    })
}

/// Writes `text` at `end`, and `closing` as the last bytes of the file. Returns its length. If that
/// fails, the file is as it was, as far as the disk allows.
fn write_at(file: &mut File, end: u64, text: &str, closing: &str) -> io::Result<u64> {
    let mut write = |bytes: &[u8]| {
        file.seek(SeekFrom::Start(end))?;
        file.write_all(bytes)?;
        let length = end + bytes.len() as u64;
        file.set_len(length).map(|()| length)
    };
    write(&[text.as_bytes(), closing.as_bytes()].concat()).inspect_err(|_| {
        let _ = write(closing.as_bytes());
    })
}

/// Another program may have written to the file, or deleted it, since this run wrote its last row.
fn check_unchanged(file: &File, path: &Path, length: u64) -> Result<()> {
    let metadata = file.metadata().map_err(|error| failed(path, &error))?;
    let what = if links(&metadata) == 0 {
        "was deleted"
    } else if metadata.len() != length {
        "was changed by another program"
    } else {
        return Ok(());
    };
    let detail = format!(
        "{}: {what} during the run, so no more rows are written; run the same command again",
        name::line(path)
    );
    Err(Error::new(ErrorKind::Io, detail))
}

fn stdout_failed(error: io::Error) -> WriteError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        WriteError::ReaderLeft
    } else {
        WriteError::Error(unwritable(error))
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "create its folder first",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, and run the same command again"
        }
        io::ErrorKind::TimedOut => "start the program that reads it first",
        _ => "name a file that can be written",
    };
    Error::new(
        ErrorKind::Io,
        format!("{}: cannot be written ({error}); {remedy}", name::line(path)),
    )
}

#[cfg(test)]
mod tests;
