//! Parsers of files for the fuzz targets in `fuzz/`; compiled with `--cfg fuzzing` only.

use std::path::{Path, PathBuf};

use super::eval::References;
use super::folder::record::{Description, FileStamp, OutputFormat, Record, header};
use super::folder::results::Results;
use super::folder::{inputs, name};
use crate::captioner::Fallback;
use cutline_error::Result;

/// What a file of results contains.
#[derive(Debug, PartialEq)]
pub struct ReadResults {
    /// Paths and texts.
    pub rows: Vec<(PathBuf, String)>,
    /// The offset of the next row.
    pub end: usize,
    /// Whether the program would append to the file.
    pub ours: bool,
}

/// Reads a file of results with this name.
///
/// # Errors
/// What is wrong with it, in words.
pub fn results(bytes: &[u8], file: &str) -> Result<ReadResults, String> {
    let format = OutputFormat::of_path(Path::new(file));
    let Results { entries, end, ours, .. } = Results::parse(bytes, format)?;
    let rows = entries.into_iter().map(|entry| (name::path(&entry.path), entry.caption)).collect();
    Ok(ReadResults { rows, end, ours })
}

/// The file of results with this name that holds `rows`, paths and texts.
///
/// # Errors
/// A row cannot be written.
pub fn written(rows: &[(PathBuf, String)], file: &str) -> Result<String> {
    let format = OutputFormat::of_path(Path::new(file));
    let mut file = match format {
        OutputFormat::Csv => header()?,
        OutputFormat::Json => "[\n".to_owned(),
        _ => String::new(),
    };
    let stamp = FileStamp { size_bytes: 5, modified_ms: 7, parameters: "p".to_owned() };
    for (number, (path, text)) in rows.iter().enumerate() {
        if format == OutputFormat::Json && number > 0 {
            file += ",\n";
        }
        let reason = Fallback::because("a reason");
        let description = Description::Nothing { text: text.clone(), reason };
        let record = Record { path, description: &description, stamp: Some(&stamp) };
        file += &record.write(format)?;
    }
    if format == OutputFormat::Json {
        file += "\n]\n";
    }
    Ok(file)
}

/// The paths of a list.
#[must_use]
pub fn paths(list: &[u8]) -> Vec<PathBuf> {
    inputs::paths(list).collect()
}

/// Whether the bytes are references for `cutline eval`.
#[must_use]
pub fn references(bytes: &[u8]) -> bool {
    References::parse(bytes).is_ok()
}
