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
mod tests {
    use super::super::mark::is_supported_in;
    use super::super::record::Description;
    use super::existing::JSON_ROW;
    use super::*;
    use crate::captioner::Fallback;

    fn write(path: &Path, format: OutputFormat, names: &[&str]) -> Vec<String> {
        let (mut output, known) = Output::file(path, format, false, &[]).unwrap();
        let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
        for path in names {
            assert!(
                output
                    .row(&Record { path: Path::new(path), description: &description, stamp: None })
                    .is_ok()
            );
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
            OutputTarget::File { path, .. } | OutputTarget::Stream { path, .. } => path,
            OutputTarget::Stdout(_) => Path::new(""),
        }
    }

    #[test]
    fn rows_are_appended_and_the_file_is_valid_after_each() {
        let folder = tempfile::tempdir().unwrap();
        for format in [
            OutputFormat::Text,
            OutputFormat::Tsv,
            OutputFormat::JsonLines,
            OutputFormat::Csv,
            OutputFormat::Json,
        ] {
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
        let error = Output::file(&path, OutputFormat::Csv, false, &[]).unwrap_err();
        assert!(error.detail().contains("--overwrite"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"path,caption\na,b\n");
        let held = Output::file(&path, OutputFormat::Csv, true, &[]).unwrap();
        let error = Output::file(&path, OutputFormat::Csv, true, &[]).unwrap_err();
        assert!(error.detail().contains("another run"), "{error}");
        drop(held);
        let error =
            Output::file(&folder.path().join("no/such"), OutputFormat::Csv, true, &[]).unwrap_err();
        assert!(error.detail().contains("folder"), "{error}");
    }

    fn photos(names: &[&str]) -> Vec<InputPhoto> {
        names.iter().map(|name| InputPhoto { path: name.into(), content: None }).collect()
    }

    /// The files of other programs, of people, and of killed runs that cannot be told from those.
    #[test]
    fn a_file_that_is_not_ours_stays_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let ours = |format| {
            let path = folder.path().join("ours");
            write(&path, format, &["a", "b"]);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            text
        };
        let rows = ours(OutputFormat::JsonLines);
        let table = ours(OutputFormat::Csv);
        let array = ours(OutputFormat::Json);
        let foreign = "{\"file_name\":\"1.jpg\",\"text\":\"one\"}";
        let short = "{\"path\":\"1.jpg\",\"caption\":\"one\"}";
        for (name, content) in [
            ("a.jsonl", format!("{foreign}\n{foreign}")),
            ("a.jsonl", foreign.to_owned()),
            ("a.jsonl", format!("{foreign}\n{{\"file_na")),
            ("a.jsonl", format!("{short}\n{short}\n")),
            ("a.jsonl", format!("{rows}{short}")),
            ("a.jsonl", format!("{rows}{short}\n")),
            ("a.jsonl", format!("{rows}my notes")),
            ("a.jsonl", "my notes".to_owned()),
            ("a.json", format!("[{foreign}]")),
            ("a.json", format!("[\n{foreign},\n{foreign}\n]\n")),
            ("a.json", format!("[\n{foreign},\n{{\"file_na")),
            ("a.json", array.replace("\n]", ",\nmy notes\n]")),
            ("a.json", array.replace("\n]", ",\nmy notes")),
            ("a.csv", "path,caption\na,b".to_owned()),
            ("a.csv", format!("{table}my notes")),
            ("a.csv", format!("{table}my notes\n")),
            ("a.csv", format!("{table}my notes, and more")),
            ("a.csv", "my notes".to_owned()),
            ("a.tsv", "1.jpg\tone\n2.jpg\ttwo".to_owned()),
            ("a.tsv", "1.jpg\tone\n2.jpg\ttwo\n".to_owned()),
            ("a.tsv", "1.jpg\tone\n2.j".to_owned()),
            ("a.txt", "my notes".to_owned()),
            ("a.txt", "my notes\n".to_owned()),
        ] {
            let path = folder.path().join(name);
            let format = OutputFormat::of_path(&path);
            if format.is_plain() && !is_supported_in(folder.path()) {
                // Without marks, rows of text are not told apart.
                continue;
            }
            std::fs::write(&path, &content).unwrap();
            let error = Output::file(&path, format, false, &photos(&["my.jpg"]));
            let error = error.expect_err(&content);
            assert!(error.detail().contains("--overwrite"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_row_without_line_break_is_kept_and_a_torn_one_of_ours_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a.tsv", "a.jsonl", "a.csv"] {
            let path = folder.path().join(name);
            let format = OutputFormat::of_path(&path);
            write(&path, format, &["a", "b"]);
            let whole = std::fs::read_to_string(&path).unwrap();
            let open = |content: &str, known: &[&str]| {
                std::fs::write(&path, content).unwrap();
                Output::file(&path, format, false, &photos(known)).map(|(_, entries)| entries)
            };
            // The last caption may be incomplete, except in JSON.
            let known = open(whole.trim_end(), &[]).unwrap();
            assert_eq!(known.len(), if name == "a.jsonl" { 2 } else { 1 }, "{name}");
            if name != "a.jsonl" {
                // The row that begins like it replaces it; another one follows it.
                assert_eq!(std::fs::read_to_string(&path).unwrap(), whole.trim_end(), "{name}");
                write(&path, format, &["b"]);
                assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
                let edited = format!("{} edited", whole.trim_end());
                open(&edited, &[]).unwrap();
                write(&path, format, &["b"]);
                let kept = std::fs::read_to_string(&path).unwrap();
                assert!(kept.starts_with(&format!("{edited}\n")) && kept.len() > edited.len() + 3);
                std::fs::write(&path, &whole).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
            let torn = if name == "a.jsonl" { "{\"path\":\"photo" } else { "phot" };
            assert_eq!(open(&format!("{whole}{torn}"), &["photo.jpg"]).unwrap().len(), 2);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
            if name != "a.jsonl" {
                assert!(open(&format!("{whole}{torn}"), &["other.jpg"]).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn blank_lines_before_an_array_are_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        for start in ["\n\n", "\n\n[", "\n[\n"] {
            std::fs::write(&path, start).unwrap();
            write(&path, OutputFormat::Json, &["a"]);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).unwrap().len(), 1);
        }
    }

    #[test]
    fn nothing_is_discarded_before_there_is_something_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "old\n").unwrap();
        let (mut output, _) = Output::file(&path, OutputFormat::JsonLines, true, &[]).unwrap();
        assert!(output.end().is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), b"old\n");
        let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
        let record = Record { path: Path::new("a"), description: &description, stamp: None };
        assert!(output.row(&record).is_ok());
        assert!(std::fs::read(&path).unwrap().starts_with(JSON_ROW));
    }

    #[test]
    fn rows_of_another_program_are_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let (mut output, _) = Output::file(&path, OutputFormat::Json, false, &[]).unwrap();
        std::fs::write(&path, "[\n]\nmy notes").unwrap();
        let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
        let record = Record { path: Path::new("a"), description: &description, stamp: None };
        match output.row(&record) {
            Err(WriteError::Error(error)) => assert!(error.detail().contains("changed"), "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"[\n]\nmy notes");
    }
}
