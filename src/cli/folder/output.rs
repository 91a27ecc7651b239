//! Results on standard output or in a file, row after row.
//!
//! A row of a file is one write to the system, so a kill leaves it there or not there. A file with an
//! array is closed after every row, and the next one overwrites the bracket.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use super::record::{Format, Record, head};
use super::results::{Entry, Results};
use crate::cli::unwritable;
use cutline_error::{Error, ErrorKind, Result};

/// Where results go.
#[derive(Debug)]
pub(in crate::cli) struct Output {
    target: Target,
    format: Format,
    rows: usize,
}

#[derive(Debug)]
enum Target {
    Stdout(Stdout),
    File {
        file: File,
        path: PathBuf,
        /// Where the next row goes.
        end: u64,
    },
}

/// How a row can fail to be written.
#[derive(Debug)]
pub(in crate::cli) enum Trouble {
    /// Whoever read this has seen enough.
    ReaderLeft,
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Output {
    /// Standard output.
    pub(in crate::cli) fn stdout(format: Format) -> Self {
        Self { target: Target::Stdout(io::stdout()), format, rows: 0 }
    }

    /// The file at `path`, with what it holds already; `anew` throws that away.
    ///
    /// # Errors
    /// It cannot be written, another run writes it, or it holds something else.
    pub(in crate::cli) fn file(
        path: &Path,
        format: Format,
        anew: bool,
    ) -> Result<(Self, Vec<Entry>)> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(|error| failed(path, &error))?;
        // Where a file system knows no locks, there is none.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let detail = format!(
                "{}: another run writes to it; wait for that, or give another --output",
                path.display()
            );
            return Err(Error::new(ErrorKind::Config, detail));
        }
        let mut bytes = Vec::new();
        if !anew {
            file.read_to_end(&mut bytes).map_err(|error| failed(path, &error))?;
        }
        let results = Results::parse(&bytes, format)
            .and_then(|results| {
                if results.ours { Ok(results) } else { Err("its columns are others".to_owned()) }
            })
            .map_err(|what| {
                let detail = format!(
                    "{}: {what}, so it cannot be written on as {}; give another --output or \
                     --format, or --overwrite",
                    path.display(),
                    format.name()
                );
                Error::new(ErrorKind::Config, detail)
            })?;
        let end = results.end as u64;
        let target = Target::File { file, path: path.to_owned(), end };
        Ok((Self { target, format, rows: results.entries.len() }, results.entries))
    }

    /// What stands before the first row.
    pub(in crate::cli) fn begin(&mut self) -> Result<(), Trouble> {
        let begun = matches!(self.target, Target::File { end, .. } if end > 0);
        match self.format {
            Format::Csv if !begun => self.put(&head()?),
            Format::Json if !begun => self.put("["),
            // What was cut off goes, even if no row follows.
            _ => self.put(""),
        }
    }

    /// One row.
    pub(in crate::cli) fn row(&mut self, record: &Record<'_>) -> Result<(), Trouble> {
        let row = record.write(self.format)?;
        self.rows += 1;
        match self.format {
            Format::Json if self.rows == 1 => self.put(&format!("\n{row}")),
            Format::Json => self.put(&format!(",\n{row}")),
            _ => self.put(&row),
        }
    }

    /// What stands behind the last row.
    pub(in crate::cli) fn end(&mut self) -> Result<(), Trouble> {
        let closing = self.closing();
        match &mut self.target {
            Target::Stdout(out) => {
                out.write_all(closing.as_bytes()).and_then(|()| out.flush()).map_err(stdout_failed)
            }
            Target::File { file, path, .. } => {
                file.sync_all().map_err(|error| failed(path, &error).into())
            }
        }
    }

    fn closing(&self) -> &'static str {
        match (self.format, self.rows) {
            (Format::Json, 0) => "]\n",
            (Format::Json, _) => "\n]\n",
            _ => "",
        }
    }

    fn put(&mut self, text: &str) -> Result<(), Trouble> {
        let closing = self.closing();
        match &mut self.target {
            Target::Stdout(out) => {
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_failed)
            }
            Target::File { file, path, end } => {
                let whole = format!("{text}{closing}");
                let written = file
                    .seek(SeekFrom::Start(*end))
                    .and_then(|_| file.write_all(whole.as_bytes()))
                    .and_then(|()| file.set_len(*end + whole.len() as u64));
                if let Err(error) = written {
                    // Half a row is none. What cannot be taken back is found at the next start.
                    let _ = file.set_len(*end);
                    return Err(failed(path, &error).into());
                }
                *end += text.len() as u64;
                Ok(())
            }
        }
    }
}

fn stdout_failed(error: io::Error) -> Trouble {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Trouble::ReaderLeft
    } else {
        Trouble::Error(unwritable(error))
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "make its folder first",
        io::ErrorKind::StorageFull => "make room, and run the same command again",
        _ => "give a file that can be written",
    };
    Error::new(ErrorKind::Io, format!("{}: cannot be written ({error}); {remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::record::Described;
    use super::*;
    use crate::captioner::Fallback;

    fn write(path: &Path, format: Format, names: &[&str]) -> Vec<String> {
        let (mut output, known) = Output::file(path, format, false).unwrap();
        let described = Described::Nothing { text: "x".into(), reason: Fallback::because("y") };
        assert!(output.begin().is_ok());
        for path in names {
            assert!(output.row(&Record { path, described: &described, stamp: None }).is_ok());
            if format == Format::Json {
                let bytes = std::fs::read(path_of(&output)).unwrap();
                assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).is_ok());
            }
        }
        assert!(output.end().is_ok());
        known.into_iter().map(|entry| entry.path).collect()
    }

    fn path_of(output: &Output) -> &Path {
        match &output.target {
            Target::File { path, .. } => path,
            Target::Stdout(_) => Path::new(""),
        }
    }

    #[test]
    fn files_are_written_on_and_are_whole_after_every_row() {
        let folder = tempfile::tempdir().unwrap();
        for format in [Format::Text, Format::JsonLines, Format::Csv, Format::Json] {
            let path = folder.path().join(format.name());
            assert!(write(&path, format, &[]).is_empty());
            assert!(write(&path, format, &["a", "b"]).is_empty());
            assert_eq!(write(&path, format, &["c"]), ["a", "b"]);
            assert_eq!(write(&path, format, &[]), ["a", "b", "c"]);
            let once = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            write(&path, format, &["a", "b", "c"]);
            assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?}");
            // Half a row.
            std::fs::write(&path, &once[..once.len() - 4]).unwrap();
            let known = write(&path, format, &[]);
            assert!(!known.is_empty() && known.len() <= 3, "{known:?}");
            let missing = &["a", "b", "c"][known.len()..];
            write(&path, format, missing);
            assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?} after half a row");
        }
    }

    #[test]
    fn other_files_and_other_runs_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.csv");
        std::fs::write(&path, "path,caption\na,b\n").unwrap();
        let error = Output::file(&path, Format::Csv, false).unwrap_err();
        assert!(error.detail().contains("--overwrite"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"path,caption\na,b\n");
        let held = Output::file(&path, Format::Csv, true).unwrap();
        let error = Output::file(&path, Format::Csv, true).unwrap_err();
        assert!(error.detail().contains("another run"), "{error}");
        drop(held);
        let error = Output::file(&folder.path().join("no/such"), Format::Csv, true).unwrap_err();
        assert!(error.detail().contains("folder"), "{error}");
    }
}
