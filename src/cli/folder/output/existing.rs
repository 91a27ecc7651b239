//! Decides whether a file of results is ours, so that rows may be appended to it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{failed, start};
use crate::cli::folder::inputs::InputPhoto;
use crate::cli::folder::mark::Mark;
use crate::cli::folder::name;
use crate::cli::folder::record::{OutputFormat, path_cell};
use crate::cli::folder::results::Results;
use crate::cli::folder::spreadsheet::MARK;
use cutline_error::{Error, ErrorKind, Result};

/// How much of a file is read to see whether it is ours. A row is much shorter.
const BEGINNING: usize = 1 << 20;

/// How a row of JSON begins.
pub(super) const JSON_ROW: &[u8] = b"{\"path\":";

const NOT_OURS: &str = "it contains rows that cutline did not write";

/// The results in a file to which rows are to be appended, and its last row if that may have been cut off
/// inside its caption: it is a whole row, but no line break follows.
pub(super) fn continued(
    file: &mut File,
    path: &Path,
    format: OutputFormat,
    photos: &[InputPhoto],
) -> Result<(Results, Vec<u8>)> {
    let refused = |what: &str| {
        let detail = format!(
            "{}: {what}, so rows cannot be appended as {}; give another --output or --format, or \
             --overwrite",
            name::line(path),
            format.name()
        );
        Error::new(ErrorKind::Config, detail)
    };
    let unreadable = |error: io::Error| failed(path, &error);
    let mut bytes = Vec::new();
    file.take(BEGINNING as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() == BEGINNING {
        // A large file of somebody else is not read to its end.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let beginning = Results::parse(&bytes[..whole], format).map_err(|what| refused(&what))?;
        if whole == 0 || !beginning.ours {
            return Err(refused(NOT_OURS));
        }
        file.read_to_end(&mut bytes).map_err(unreadable)?;
    }
    let mut results = Results::parse(&bytes, format).map_err(|what| refused(&what))?;
    if !results.ours || (format.is_plain() && !bytes.is_empty() && !is_marked(file)) {
        return Err(refused(NOT_OURS));
    }
    if !may_be_cut(&bytes[results.end..], format, photos) {
        return Err(refused("its last line is incomplete, and not the beginning of a row"));
    }
    let mut torn = Vec::new();
    if results.unterminated && format != OutputFormat::JsonLines {
        // The photo gets another row.
        results.entries.pop();
        let start = bytes[..results.end].iter().rposition(|byte| *byte == b'\n');
        torn = bytes[start.map_or(0, |at| at + 1)..results.end].to_vec();
    }
    Ok((results, torn))
}

/// Whether a file of text carries our mark. Where files have no such marks, its rows must do.
fn is_marked(file: &File) -> bool {
    match Mark::of_file(file) {
        Ok(mark) => mark.is_some(),
        Err(error) => error.kind() == io::ErrorKind::Unsupported,
    }
}

/// Whether `rest`, what follows the last whole row, is the beginning of a row that a killed run wrote,
/// or the end of an array.
fn may_be_cut(rest: &[u8], format: OutputFormat, photos: &[InputPhoto]) -> bool {
    match format {
        OutputFormat::JsonLines => begins(rest, JSON_ROW),
        OutputFormat::Json => {
            let between = |byte: &u8| b"[,]".contains(byte) || byte.is_ascii_whitespace();
            let row = rest.iter().position(|byte| !between(byte)).map_or(&[][..], |at| &rest[at..]);
            begins(row, JSON_ROW)
        }
        OutputFormat::Csv if is_numbered(rest) => true,
        // The beginning of a path could be any text, so it must be that of a photo.
        OutputFormat::Csv | OutputFormat::Text | OutputFormat::Tsv => {
            let is_start = |start: &str| {
                let bare = start.trim_start_matches(MARK);
                [start, bare].iter().any(|start| start.as_bytes().starts_with(rest))
            };
            let is_path = |photo: &InputPhoto| {
                path_cell(&photo.path, format)
                    .is_ok_and(|cell| begins(rest, (cell + ",").as_bytes()))
            };
            start(format, MARK).is_ok_and(|start| is_start(&start)) || photos.iter().any(is_path)
        }
    }
}

/// Whether one of two texts begins with the other.
fn begins(text: &[u8], other: &[u8]) -> bool {
    text.starts_with(other) || other.starts_with(text)
}

/// Whether an incomplete row of a table has the number of a caption in its second column.
fn is_numbered(rest: &[u8]) -> bool {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(rest);
    let row = reader.byte_records().next().and_then(std::result::Result::ok);
    row.is_some_and(|row| {
        let number = row.get(1).unwrap_or_default();
        row.len() > 2 && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
    })
}
