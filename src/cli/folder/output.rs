//! Writes results to standard output or to a file, row by row.
//!
//! Each row of a file is a single write, so a killed run leaves only whole rows, except for the last
//! one. A JSON array is closed after each row, and the next row overwrites the bracket.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use super::record::{OutputFormat, Record, header};
use super::results::{ResultEntry, Results};
use crate::cli::unwritable;
use cutline_error::{Error, ErrorKind, Result};

/// Where results are written.
#[derive(Debug)]
pub(in crate::cli) struct Output {
    target: OutputTarget,
    format: OutputFormat,
    rows: usize,
}

#[derive(Debug)]
enum OutputTarget {
    Stdout(Stdout),
    File {
        file: File,
        path: PathBuf,
        /// The offset of the next row.
        end: u64,
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
    pub(in crate::cli) fn stdout(format: OutputFormat) -> Self {
        Self { target: OutputTarget::Stdout(io::stdout()), format, rows: 0 }
    }

    /// The file at `path`, and the results that it already contains; `overwrite` discards those.
    ///
    /// # Errors
    /// The file cannot be written, another run writes to it, or it contains something else.
    pub(in crate::cli) fn file(
        path: &Path,
        format: OutputFormat,
        overwrite: bool,
    ) -> Result<(Self, Vec<ResultEntry>)> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(|error| failed(path, &error))?;
        // Some file systems have no locks; there the file is not locked.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let detail = format!(
                "{}: another run writes to it; wait for that, or give another --output",
                path.display()
            );
            return Err(Error::new(ErrorKind::Config, detail));
        }
        let mut bytes = Vec::new();
        if !overwrite {
            file.read_to_end(&mut bytes).map_err(|error| failed(path, &error))?;
        }
        let results = Results::parse(&bytes, format)
            .and_then(|results| {
                if results.ours { Ok(results) } else { Err("it has other columns".to_owned()) }
            })
            .map_err(|what| {
                let detail = format!(
                    "{}: {what}, so rows cannot be appended as {}; give another --output or \
                     --format, or --overwrite",
                    path.display(),
                    format.name()
                );
                Error::new(ErrorKind::Config, detail)
            })?;
        let end = results.end as u64;
        let target = OutputTarget::File { file, path: path.to_owned(), end };
        Ok((Self { target, format, rows: results.entries.len() }, results.entries))
    }

    /// Writes what comes before the first row.
    pub(in crate::cli) fn begin(&mut self) -> Result<(), WriteError> {
        let has_rows = matches!(self.target, OutputTarget::File { end, .. } if end > 0);
        match self.format {
            OutputFormat::Csv if !has_rows => self.put(&header()?),
            OutputFormat::Json if !has_rows => self.put("["),
            // Cuts off an incomplete row, even if no row follows.
            _ => self.put(""),
        }
    }

    /// Writes one row.
    pub(in crate::cli) fn row(&mut self, record: &Record<'_>) -> Result<(), WriteError> {
        let row = record.write(self.format)?;
        self.rows += 1;
        match self.format {
            OutputFormat::Json if self.rows == 1 => self.put(&format!("\n{row}")),
            OutputFormat::Json => self.put(&format!(",\n{row}")),
            _ => self.put(&row),
        }
    }

    /// Writes what comes after the last row.
    pub(in crate::cli) fn end(&mut self) -> Result<(), WriteError> {
        let closing = self.closing();
        match &mut self.target {
            OutputTarget::Stdout(out) => {
                out.write_all(closing.as_bytes()).and_then(|()| out.flush()).map_err(stdout_failed)
            }
            OutputTarget::File { file, path, .. } => {
                file.sync_all().map_err(|error| failed(path, &error).into())
            }
        }
    }

    fn closing(&self) -> &'static str {
        match (self.format, self.rows) {
            (OutputFormat::Json, 0) => "]\n",
            (OutputFormat::Json, _) => "\n]\n",
            _ => "",
        }
    }

    fn put(&mut self, text: &str) -> Result<(), WriteError> {
        let closing = self.closing();
        match &mut self.target {
            OutputTarget::Stdout(out) => {
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_failed)
            }
            OutputTarget::File { file, path, end } => {
                let whole = format!("{text}{closing}");
                let written = file
                    .seek(SeekFrom::Start(*end))
                    .and_then(|_| file.write_all(whole.as_bytes()))
                    .and_then(|()| file.set_len(*end + whole.len() as u64));
                if let Err(error) = written {
                    // Removes the incomplete row. If that fails too, the next run finds it.
                    let _ = file.set_len(*end);
                    return Err(failed(path, &error).into());
                }
                *end += text.len() as u64;
                Ok(())
            }
        }
    }
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
        io::ErrorKind::StorageFull => "free some space, and run the same command again",
        _ => "name a file that can be written",
    };
    Error::new(ErrorKind::Io, format!("{}: cannot be written ({error}); {remedy}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::record::Description;
    use super::*;
    use crate::captioner::Fallback;

    fn write(path: &Path, format: OutputFormat, names: &[&str]) -> Vec<String> {
        let (mut output, known) = Output::file(path, format, false).unwrap();
        let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
        assert!(output.begin().is_ok());
        for path in names {
            assert!(output.row(&Record { path, description: &description, stamp: None }).is_ok());
            if format == OutputFormat::Json {
                let bytes = std::fs::read(path_of(&output)).unwrap();
                assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).is_ok());
            }
        }
        assert!(output.end().is_ok());
        known.into_iter().map(|entry| entry.path).collect()
    }

    fn path_of(output: &Output) -> &Path {
        match &output.target {
            OutputTarget::File { path, .. } => path,
            OutputTarget::Stdout(_) => Path::new(""),
        }
    }

    #[test]
    fn rows_are_appended_and_the_file_is_valid_after_each() {
        let folder = tempfile::tempdir().unwrap();
        for format in
            [OutputFormat::Text, OutputFormat::JsonLines, OutputFormat::Csv, OutputFormat::Json]
        {
            let path = folder.path().join(format.name());
            assert!(write(&path, format, &[]).is_empty());
            assert!(write(&path, format, &["a", "b"]).is_empty());
            assert_eq!(write(&path, format, &["c"]), ["a", "b"]);
            assert_eq!(write(&path, format, &[]), ["a", "b", "c"]);
            let once = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            write(&path, format, &["a", "b", "c"]);
            assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?}");
            // An incomplete row.
            std::fs::write(&path, &once[..once.len() - 4]).unwrap();
            let known = write(&path, format, &[]);
            assert!(!known.is_empty() && known.len() <= 3, "{known:?}");
            let missing = &["a", "b", "c"][known.len()..];
            write(&path, format, missing);
            assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?} after an incomplete row");
        }
    }

    #[test]
    fn foreign_files_and_files_of_other_runs_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.csv");
        std::fs::write(&path, "path,caption\na,b\n").unwrap();
        let error = Output::file(&path, OutputFormat::Csv, false).unwrap_err();
        assert!(error.detail().contains("--overwrite"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"path,caption\na,b\n");
        let held = Output::file(&path, OutputFormat::Csv, true).unwrap();
        let error = Output::file(&path, OutputFormat::Csv, true).unwrap_err();
        assert!(error.detail().contains("another run"), "{error}");
        drop(held);
        let error =
            Output::file(&folder.path().join("no/such"), OutputFormat::Csv, true).unwrap_err();
        assert!(error.detail().contains("folder"), "{error}");
    }
}
