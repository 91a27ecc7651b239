//! Reads results that this program or another wrote earlier.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::record::{COLUMNS, FileStamp, OutputFormat};
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
    /// The offset after the last complete row, where the next row is written. What follows is an
    /// incomplete row of a killed run, or the end of an array.
    pub(in crate::cli) end: usize,
    /// Whether this program can append its rows.
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
            OutputFormat::Text => text(bytes),
            OutputFormat::JsonLines => json_lines(bytes),
            OutputFormat::Csv => table(bytes),
            OutputFormat::Json => array(bytes),
        }
    }
}

/// Complete lines without their line breaks, each with the offset of the next line.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut end = 0;
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
        end += line.len();
        line.strip_suffix(b"\n").map(|line| (end, line))
    })
}

fn text(bytes: &[u8]) -> Result<Results, String> {
    let mut results = Results { ours: true, ..Results::default() };
    for (number, (end, line)) in lines(bytes).enumerate() {
        let line = std::str::from_utf8(line).ok().and_then(|line| line.split_once('\t'));
        let Some((path, caption)) = line else {
            return Err(format!("line {} is not a path, a tab and a caption", number + 1));
        };
        results.end = end;
        // Several lines of one photo are alternatives, best first.
        if results.entries.last().is_none_or(|last| last.path != path) {
            results.entries.push(ResultEntry {
                path: path.to_owned(),
                caption: caption.trim_end_matches('\r').to_owned(),
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
    for (number, (end, line)) in lines(bytes).enumerate() {
        results.end = end;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let entry = serde_json::from_slice(line).ok().as_ref().and_then(entry);
        let entry = entry
            .ok_or_else(|| format!("line {} is not an object with path and caption", number + 1))?;
        results.entries.push(entry);
    }
    Ok(results)
}

/// An array, or the beginning of one with an element per line.
fn array(bytes: &[u8]) -> Result<Results, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Results { ours: true, ..Results::default() });
    }
    if let Ok(values) = serde_json::from_slice::<Vec<Value>>(bytes) {
        let entries: Option<Vec<ResultEntry>> = values.iter().map(entry).collect();
        let entries = entries.ok_or("an element of the array lacks path or caption")?;
        let open = bytes.trim_ascii_end();
        let open = open.strip_suffix(b"]").unwrap_or(open).trim_ascii_end();
        return Ok(Results { entries, end: open.len(), ours: true });
    }
    let mut results = Results { ours: true, ..Results::default() };
    for (end, line) in lines(bytes) {
        let bare = line.strip_prefix(b"[").unwrap_or(line);
        let row = bare.strip_suffix(b",").unwrap_or(bare);
        if row.is_empty() {
            // The bracket that opens the array.
            results.end = results.end.max(end - 1);
            continue;
        }
        let Some(entry) = serde_json::from_slice(row).ok().as_ref().and_then(entry) else { break };
        results.entries.push(entry);
        results.end = end - 1 - (bare.len() - row.len());
    }
    if results.entries.is_empty() && bytes.trim_ascii() != b"[" {
        return Err("it is not an array of objects with path and caption".to_owned());
    }
    Ok(results)
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
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    if COLUMNS.join(",").as_bytes().starts_with(bytes) {
        // Not even the header is complete.
        return Ok(Results { ours: true, ..Results::default() });
    }
    let mut rows = reader.records();
    let Some(Ok(header)) = rows.next() else {
        return Ok(Results { ours: true, ..Results::default() });
    };
    let column = |name: &str| header.iter().position(|column| column == name);
    let (Some(path), Some(caption)) = (column("path"), column("caption")) else {
        return Err("its first line does not name the columns path and caption".to_owned());
    };
    let ours = header.iter().eq(COLUMNS);
    let mut results = Results { entries: Vec::new(), end: 0, ours };
    let mut found: Vec<(u64, Option<ResultEntry>)> = Vec::new();
    let mut short = false;
    for row in rows {
        let row = row.map_err(|error| format!("it is not a valid table ({error})"))?;
        let begin = row.position().map_or(0, csv::Position::byte);
        let get = |name: &str| column(name).and_then(|at| row.get(at)).filter(|t| !t.is_empty());
        let stamp = || {
            Some(FileStamp {
                size_bytes: get("size_bytes")?.parse().ok()?,
                modified_ms: get("modified_ms")?.parse().ok()?,
                parameters: get("parameters")?.to_owned(),
            })
        };
        let entry = |path: &str, caption: &str| ResultEntry {
            path: path.to_owned(),
            caption: caption.to_owned(),
            confidence: get("confidence").and_then(|number| number.parse().ok()),
            fallback: get("fallback") == Some("true"),
            stamp: stamp(),
        };
        let best = get("choice").is_none_or(|choice| choice == "1");
        if short {
            return Err(format!("row {} has a different number of columns", found.len() + 1));
        }
        // Only the last row may be short: it was cut off.
        short = row.len() != header.len();
        let row = row.get(path).zip(row.get(caption)).filter(|_| best && !short);
        found.push((begin, row.map(|(path, caption)| entry(path, caption))));
    }
    results.end = bytes.len();
    // Without a line break, the last row may have been cut off in its last column.
    if short || !bytes.ends_with(b"\n") {
        let begin = found.pop().map_or(0, |(begin, _)| begin);
        results.end = usize::try_from(begin).unwrap_or(0);
    }
    results.entries = found.into_iter().filter_map(|(_, entry)| entry).collect();
    Ok(results)
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
        let record = Record { path, description: &description, stamp: Some(&stamp()) };
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
