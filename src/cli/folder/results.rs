//! Reads results that this program or another wrote earlier.

use std::fs;
use std::io;
use std::path::Path;

use csv::StringRecord;
use serde_json::Value;

use super::record::{COLUMNS, FileStamp, OutputFormat};
use super::spreadsheet::{MARK, unguarded};
use cutline_error::{Error, ErrorKind, Result};

/// One photo in a file of results.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct ResultEntry {
    /// Its path, or another name or id.
    pub(in crate::cli) path: String,
    /// The best text.
    pub(in crate::cli) caption: String,
    pub(in crate::cli) confidence: Option<f64>,
    /// Whether the caption is only the fallback text.
    pub(in crate::cli) fallback: bool,
    pub(in crate::cli) stamp: Option<FileStamp>,
}

/// The content of a file of results.
#[derive(Debug, Default, PartialEq)]
pub(in crate::cli) struct Results {
    /// In the order of the file. A photo that was captioned again occurs again.
    pub(in crate::cli) entries: Vec<ResultEntry>,
    /// The offset after the last whole row, where the next row is written. What follows is a row that
    /// was cut off, or the end of an array.
    pub(in crate::cli) end: usize,
    /// Whether the last whole row lacks its line break.
    pub(in crate::cli) unterminated: bool,
    /// Whether all rows have the fields that this program writes. Text has none that others lack.
    pub(in crate::cli) ours: bool,
}

impl Results {
    /// Reads the file at `path`, in the format of its extension.
    ///
    /// # Errors
    /// The file cannot be read, or contains something else.
    pub(in crate::cli) fn read(path: &Path) -> Result<Self> {
        let unreadable = |error: &io::Error| {
            let detail = format!("{}: cannot be read ({error}); check the path", path.display());
            Error::new(ErrorKind::Io, detail)
        };
        let bytes = fs::read(path).map_err(|error| unreadable(&error))?;
        Self::parse(&bytes, OutputFormat::of_path(path)).map_err(|what| {
            let detail = format!(
                "{}: {what}; give a file that cutline caption wrote as jsonl, csv, json or text",
                path.display()
            );
            Error::new(ErrorKind::Config, detail)
        })
    }

    /// Parses `bytes`.
    ///
    /// # Errors
    /// What is wrong with the bytes, in words.
    pub(in crate::cli) fn parse(bytes: &[u8], format: OutputFormat) -> Result<Self, String> {
        match format {
            OutputFormat::Text => text(bytes, |cell| cell),
            OutputFormat::Tsv => text(bytes, unguarded),
            OutputFormat::JsonLines => json_lines(bytes),
            OutputFormat::Csv => table(bytes),
            OutputFormat::Json => array(bytes),
        }
    }
}

/// A line of a file.
struct Line<'a> {
    number: usize,
    /// Without the line break.
    text: &'a [u8],
    /// The offset of the next line.
    end: usize,
    /// Whether it has a line break. Only the last line may lack it.
    terminated: bool,
}

/// The lines after the byte order mark, if there is one.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let marked = bytes.strip_prefix(MARK.as_bytes()).unwrap_or(bytes);
    let mut end = bytes.len() - marked.len();
    marked.split_inclusive(|byte| *byte == b'\n').enumerate().map(move |(index, line)| {
        end += line.len();
        let text = line.strip_suffix(b"\n");
        let terminated = text.is_some();
        Line { number: index + 1, text: text.unwrap_or(line), end, terminated }
    })
}

fn text(bytes: &[u8], read: fn(&str) -> &str) -> Result<Results, String> {
    let mut results = Results { ours: true, ..Results::default() };
    for line in lines(bytes) {
        let row = std::str::from_utf8(line.text).ok().and_then(|line| line.split_once('\t'));
        let Some((path, caption)) = row else {
            if !line.terminated {
                break;
            }
            return Err(format!("line {} is not a path, a tab and a caption", line.number));
        };
        results.end = line.end;
        results.unterminated = !line.terminated;
        let path = read(path);
        // Several lines of one photo are alternatives, best first.
        if results.entries.last().is_none_or(|last| last.path != path) {
            results.entries.push(ResultEntry {
                path: path.to_owned(),
                caption: read(caption.trim_end_matches('\r')).to_owned(),
                confidence: None,
                fallback: false,
                stamp: None,
            });
        }
    }
    Ok(results)
}

fn json_lines(bytes: &[u8]) -> Result<Results, String> {
    let mut results = Results { ours: true, ..Results::default() };
    for line in lines(bytes) {
        if !line.text.trim_ascii().is_empty() {
            let value = serde_json::from_slice::<Value>(line.text);
            if value.is_err() && !line.terminated {
                break;
            }
            let row = value.ok().and_then(|value| Some((entry(&value)?, is_ours(&value))));
            let (entry, ours) = row.ok_or_else(|| {
                format!("line {} is not an object with path and caption", line.number)
            })?;
            results.entries.push(entry);
            results.ours &= ours;
        }
        results.end = line.end;
        results.unterminated = !line.terminated;
    }
    Ok(results)
}

/// An array, or the beginning of one with an element per line.
fn array(bytes: &[u8]) -> Result<Results, String> {
    const OTHER: &str = "it is not an array of objects with path and caption";
    let mut results = Results { ours: true, ..Results::default() };
    let text = bytes.strip_prefix(MARK.as_bytes()).unwrap_or(bytes);
    if text.trim_ascii().is_empty() {
        return Ok(results);
    }
    if let Ok(values) = serde_json::from_slice::<Vec<Value>>(text) {
        results.ours = values.iter().all(is_ours);
        let entries: Option<Vec<ResultEntry>> = values.iter().map(entry).collect();
        results.entries = entries.ok_or("an element of the array lacks path or caption")?;
        let open = bytes.trim_ascii_end();
        let open = open.strip_suffix(b"]").unwrap_or(open).trim_ascii_end();
        results.end = open.len();
        return Ok(results);
    }
    if !text.trim_ascii_start().starts_with(b"[") {
        return Err(OTHER.to_owned());
    }
    for line in lines(bytes) {
        let bare = line.text.strip_prefix(b"[").unwrap_or(line.text);
        // A row ends with a brace; what follows may be the remains of the end of the array.
        let row = bare.trim_ascii_end();
        let row = &row[..row.iter().rposition(|byte| !b",]".contains(byte)).map_or(0, |at| at + 1)];
        let start = line.end - usize::from(line.terminated) - bare.len();
        if row.is_empty() {
            // The bracket that opens the array, or one that closes it.
            if results.entries.is_empty() && line.terminated && line.text.starts_with(b"[") {
                results.end = start;
            }
            continue;
        }
        let value: Option<Value> = serde_json::from_slice(row).ok();
        let Some(entry) = value.as_ref().and_then(entry) else {
            if line.terminated {
                return Err(format!("line {} is not an object with path and caption", line.number));
            }
            break;
        };
        results.ours &= value.as_ref().is_some_and(is_ours);
        results.entries.push(entry);
        results.end = start + row.len();
    }
    Ok(results)
}

/// Whether a row has the fields that this program writes, beyond those that any program may write.
pub(super) fn is_ours(row: &Value) -> bool {
    let described = row["model"].is_string() && row["image"].is_object();
    row["path"].is_string()
        && row["caption"].is_string()
        && row["captions"].is_array()
        && (described || row["fallback"] == true)
}

/// Accepts the names that various programs give to a photo and its caption.
fn entry(value: &Value) -> Option<ResultEntry> {
    let name = ["path", "file", "file_name", "image", "image_id", "id"]
        .iter()
        .find_map(|name| name_of(&value[*name]))?;
    let caption = ["caption", "text"].iter().find_map(|name| value[*name].as_str())?;
    Some(ResultEntry {
        path: name,
        caption: caption.to_owned(),
        confidence: value["captions"][0]["confidence"].as_f64(),
        fallback: value["fallback"].as_bool().unwrap_or(false),
        stamp: serde_json::from_value(value["file"].clone()).ok(),
    })
}

/// A name or a numeric id, as text.
pub(in crate::cli) fn name_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn table(bytes: &[u8]) -> Result<Results, String> {
    let text = bytes.strip_prefix(MARK.as_bytes()).unwrap_or(bytes);
    let mark = bytes.len() - text.len();
    let mut results = Results { ours: true, ..Results::default() };
    let whole = format!("{MARK}{}", COLUMNS.join(","));
    if whole.as_bytes().starts_with(bytes) || whole.as_bytes()[MARK.len()..].starts_with(text) {
        // Not even the header is complete.
        return Ok(results);
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
    let mut rows = reader.records();
    let Some(Ok(header)) = rows.next() else {
        return Err("its first line is not the header of a table".to_owned());
    };
    results.ours = header.iter().eq(COLUMNS);
    let columns =
        Columns::of(&header).ok_or("its first line does not name the columns path and caption")?;
    let mut rows = rows.enumerate().peekable();
    results.end = mark + rows.peek().map_or(text.len(), |(_, row)| begin(row));
    while let Some((index, row)) = rows.next() {
        let row_begin = begin(&row);
        let row = row.map_err(|error| format!("it is not a valid table ({error})"))?;
        let last = rows.peek().is_none();
        if row.len() != header.len() {
            let rest = &text[row_begin..];
            let open_quotes = rest.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
            if last && (open_quotes || !rest.ends_with(b"\n")) {
                return Ok(results);
            }
            return Err(format!("row {} has a different number of columns", index + 2));
        }
        results.entries.extend(columns.entry(&row));
        results.end = mark + rows.peek().map_or(text.len(), |(_, row)| begin(row));
        results.unterminated = last && !text.ends_with(b"\n");
    }
    Ok(results)
}

/// The offset of a row.
fn begin(row: &csv::Result<StringRecord>) -> usize {
    let position = row.as_ref().ok().and_then(StringRecord::position);
    position.map_or(0, |position| usize::try_from(position.byte()).unwrap_or(usize::MAX))
}

/// Where the columns of a table are.
struct Columns<'h> {
    header: &'h StringRecord,
    path: usize,
    caption: usize,
}

impl<'h> Columns<'h> {
    fn of(header: &'h StringRecord) -> Option<Self> {
        let column = |name: &str| header.iter().position(|column| column == name);
        Some(Self { header, path: column("path")?, caption: column("caption")? })
    }

    /// A cell that is not empty.
    fn get<'r>(&self, row: &'r StringRecord, name: &str) -> Option<&'r str> {
        let column = self.header.iter().position(|column| column == name)?;
        row.get(column).filter(|text| !text.is_empty())
    }

    /// The photo of a row; `None` for a row with another of its captions.
    fn entry(&self, row: &StringRecord) -> Option<ResultEntry> {
        if self.get(row, "choice").is_some_and(|choice| choice != "1") {
            return None;
        }
        let stamp = || {
            Some(FileStamp {
                size_bytes: self.get(row, "size_bytes")?.parse().ok()?,
                modified_ms: self.get(row, "modified_ms")?.parse().ok()?,
                parameters: self.get(row, "parameters")?.to_owned(),
            })
        };
        Some(ResultEntry {
            path: unguarded(row.get(self.path)?).to_owned(),
            caption: unguarded(row.get(self.caption)?).to_owned(),
            confidence: self.get(row, "confidence").and_then(|number| number.parse().ok()),
            fallback: self.get(row, "fallback") == Some("true"),
            stamp: stamp(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Description, Record, header};
    use super::*;
    use crate::captioner::Fallback;

    fn stamp() -> FileStamp {
        FileStamp { size_bytes: 5, modified_ms: 7, parameters: "abc".into() }
    }

    fn row(path: &str, format: OutputFormat) -> String {
        let reason = Fallback::because("it is broken, \"quite\"");
        let description = Description::Nothing { text: "a, \"b\"\nc".into(), reason };
        let record =
            Record { path: Path::new(path), description: &description, stamp: Some(&stamp()) };
        record.write(format).unwrap()
    }

    fn paths(results: &Results) -> Vec<&str> {
        results.entries.iter().map(|entry| entry.path.as_str()).collect()
    }

    #[test]
    fn written_results_are_read_back() {
        for (format, text) in [
            (OutputFormat::JsonLines, row("a,b", OutputFormat::JsonLines)),
            (OutputFormat::Csv, header().unwrap() + &row("a,b", OutputFormat::Csv)),
            (OutputFormat::Json, format!("[\n{}\n]\n", row("a,b", OutputFormat::Json))),
        ] {
            let results = Results::parse(text.as_bytes(), format).unwrap();
            let entry = &results.entries[0];
            assert_eq!((entry.path.as_str(), entry.caption.as_str()), ("a,b", "a, \"b\"\nc"));
            assert!(entry.fallback && results.ours && results.entries.len() == 1, "{format:?}");
            assert_eq!(entry.stamp, Some(stamp()), "{format:?}");
        }
        let results = Results::parse(b"a\tone\na\ttwo\nb\tthree\n", OutputFormat::Text).unwrap();
        assert_eq!((paths(&results), results.end), (vec!["a", "b"], 20));
        assert_eq!(results.entries[0].caption, "one");
    }

    /// Wherever a file is cut off, its complete rows are found and nothing else.
    #[test]
    fn an_incomplete_row_is_ignored() {
        for format in [OutputFormat::JsonLines, OutputFormat::Csv, OutputFormat::Json] {
            let (start, between, end) = match format {
                OutputFormat::Csv => (header().unwrap(), "", ""),
                OutputFormat::Json => ("[\n".to_owned(), ",\n", "\n]\n"),
                _ => (String::new(), "", ""),
            };
            let whole = start.clone() + &row("a", format) + between;
            let all = whole.clone() + &row("b", format) + end;
            for cut in whole.len()..all.len() {
                let results = Results::parse(&all.as_bytes()[..cut], format).unwrap();
                let known = paths(&results).len();
                assert!(results.end <= cut && (1..=2).contains(&known), "{format:?} at {cut}");
                // The complete rows are a valid file again once it is closed.
                let kept = &all[..results.end];
                let closed =
                    if format == OutputFormat::Json { format!("{kept}\n]\n") } else { kept.into() };
                let again = Results::parse(closed.as_bytes(), format).unwrap();
                assert_eq!(paths(&again).len(), known, "{format:?} at {cut}");
            }
        }
        for (text, end) in [("", 0), ("[", 0), ("[\n", 1), ("[]", 1), ("[]\n", 1), ("[\n]\n", 1)] {
            let results = Results::parse(text.as_bytes(), OutputFormat::Json).unwrap();
            assert_eq!((results.entries.len(), results.end), (0, end), "{text:?}");
        }
    }

    /// As other tools write them.
    #[test]
    fn the_last_line_needs_no_line_break() {
        let csv = format!("{MARK}path,caption\r\na,one\r\nb,two");
        for (format, text) in [
            (OutputFormat::Text, "a\tone\nb\ttwo"),
            (OutputFormat::Tsv, "\u{feff}a\tone\r\n'=b\ttwo"),
            (OutputFormat::JsonLines, "{\"id\":1,\"text\":\"one\"}\n{\"id\":2,\"text\":\"two\"}"),
            (OutputFormat::Csv, &csv),
        ] {
            let results = Results::parse(text.as_bytes(), format).unwrap();
            assert!(results.unterminated && results.end == text.len(), "{format:?}");
            let captions: Vec<&str> =
                results.entries.iter().map(|entry| entry.caption.as_str()).collect();
            assert_eq!(captions, ["one", "two"], "{format:?}");
            assert!(results.ours == format.is_plain(), "{format:?}");
        }
    }

    #[test]
    fn foreign_files_are_refused_with_the_line_at_fault() {
        for (format, text, part) in [
            (OutputFormat::Text, "a\tb\nno tab\n", "line 2"),
            (OutputFormat::JsonLines, "{\"path\": \"a\"}\n", "line 1"),
            (OutputFormat::Csv, "name,size\na,1\n", "first line"),
            (OutputFormat::Csv, "path,caption\nc\na,b\n", "row 2"),
            (OutputFormat::Json, "{\"a\": 1}\n", "array"),
            (OutputFormat::Json, "[{\"a\": 1}]", "element"),
        ] {
            let error = Results::parse(text.as_bytes(), format).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let foreign = Results::parse(b"path,caption\na,b\n", OutputFormat::Csv).unwrap();
        assert!(!foreign.ours && paths(&foreign) == ["a"]);
        let coco = Results::parse(br#"[{"image_id": 42, "caption": "a cat"}]"#, OutputFormat::Json);
        assert_eq!(paths(&coco.unwrap()), ["42"]);
    }
}
