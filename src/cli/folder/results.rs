//! Results that were written before, by this program or another.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::record::{COLUMNS, Format, Stamp};
use cutline_error::{Error, ErrorKind, Result};

/// One photo of which a file of results tells.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Entry {
    /// Its path, or whatever names it.
    pub(in crate::cli) path: String,
    /// The best text.
    pub(in crate::cli) caption: String,
    pub(in crate::cli) confidence: Option<f64>,
    /// Whether the text is no description.
    pub(in crate::cli) fallback: bool,
    pub(in crate::cli) stamp: Option<Stamp>,
}

/// What a file of results holds.
#[derive(Debug, Default, PartialEq)]
pub(in crate::cli) struct Results {
    /// In the order of the file; a photo that was done again is there again.
    pub(in crate::cli) entries: Vec<Entry>,
    /// Where whole rows end and the next one goes. What is behind it was being written when the
    /// program was killed, or closes an array.
    pub(in crate::cli) end: usize,
    /// Whether rows of this program can follow.
    pub(in crate::cli) ours: bool,
}

impl Results {
    /// Reads the file at `path`, in the format that its name promises.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub(in crate::cli) fn read(path: &Path) -> Result<Self> {
        let unreadable = |error: &io::Error| {
            let detail = format!("{}: cannot be read ({error}); check the path", path.display());
            Error::new(ErrorKind::Io, detail)
        };
        let bytes = fs::read(path).map_err(|error| unreadable(&error))?;
        Self::parse(&bytes, Format::of_path(path)).map_err(|what| {
            let detail = format!(
                "{}: {what}; results are what cutline caption writes as jsonl, csv, json or text",
                path.display()
            );
            Error::new(ErrorKind::Config, detail)
        })
    }

    /// What `bytes` hold in `format`.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub(in crate::cli) fn parse(bytes: &[u8], format: Format) -> Result<Self, String> {
        match format {
            Format::Text => text(bytes),
            Format::JsonLines => json_lines(bytes),
            Format::Csv => table(bytes),
            Format::Json => array(bytes),
        }
    }
}

/// Whole lines with where each ends, its end of line not counted.
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
            return Err(format!("line {} is no path, tab and caption", number + 1));
        };
        results.end = end;
        // The lines of one photo are its choices, best first.
        if results.entries.last().is_none_or(|last| last.path != path) {
            results.entries.push(Entry {
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
            .ok_or_else(|| format!("line {} is no object with path and caption", number + 1))?;
        results.entries.push(entry);
    }
    Ok(results)
}

/// An array; or as much of one as was written, an element a line.
fn array(bytes: &[u8]) -> Result<Results, String> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Results { ours: true, ..Results::default() });
    }
    if let Ok(values) = serde_json::from_slice::<Vec<Value>>(bytes) {
        let entries: Option<Vec<Entry>> = values.iter().map(entry).collect();
        let entries = entries.ok_or("an element of the array has no path and caption")?;
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
        return Err("it is no array of objects with path and caption".to_owned());
    }
    Ok(results)
}

/// The names that programs give to a photo and its caption.
fn entry(value: &Value) -> Option<Entry> {
    let name = ["path", "file", "file_name", "image", "image_id", "id"]
        .iter()
        .find_map(|name| name_of(&value[*name]))?;
    let caption = ["caption", "text"].iter().find_map(|name| value[*name].as_str())?;
    Some(Entry {
        path: name,
        caption: caption.to_owned(),
        confidence: value["captions"][0]["confidence"].as_f64(),
        fallback: value["fallback"].as_bool().unwrap_or(false),
        stamp: serde_json::from_value(value["file"].clone()).ok(),
    })
}

/// A name as text; numbers are names too.
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
        // Not even the head was written to its end.
        return Ok(Results { ours: true, ..Results::default() });
    }
    let mut rows = reader.records();
    let Some(Ok(head)) = rows.next() else {
        return Ok(Results { ours: true, ..Results::default() });
    };
    let column = |name: &str| head.iter().position(|column| column == name);
    let (Some(path), Some(caption)) = (column("path"), column("caption")) else {
        return Err("its first line names no columns path and caption".to_owned());
    };
    let ours = head.iter().eq(COLUMNS);
    let mut results = Results { entries: Vec::new(), end: 0, ours };
    let mut found: Vec<(u64, Option<Entry>)> = Vec::new();
    let mut short = false;
    for row in rows {
        let row = row.map_err(|error| format!("it is no table ({error})"))?;
        let begin = row.position().map_or(0, csv::Position::byte);
        let get = |name: &str| column(name).and_then(|at| row.get(at)).filter(|t| !t.is_empty());
        let stamp = || {
            Some(Stamp {
                size_bytes: get("size_bytes")?.parse().ok()?,
                modified_ms: get("modified_ms")?.parse().ok()?,
                parameters: get("parameters")?.to_owned(),
            })
        };
        let entry = |path: &str, caption: &str| Entry {
            path: path.to_owned(),
            caption: caption.to_owned(),
            confidence: get("confidence").and_then(|number| number.parse().ok()),
            fallback: get("fallback") == Some("true"),
            stamp: stamp(),
        };
        let best = get("choice").is_none_or(|choice| choice == "1");
        if short {
            return Err(format!("row {} has another number of columns", found.len() + 1));
        }
        // Only the last one may be: it was cut off.
        short = row.len() != head.len();
        let row = row.get(path).zip(row.get(caption)).filter(|_| best && !short);
        found.push((begin, row.map(|(path, caption)| entry(path, caption))));
    }
    results.end = bytes.len();
    // Without its end of line it may have been cut off within its last column.
    if short || !bytes.ends_with(b"\n") {
        let begin = found.pop().map_or(0, |(begin, _)| begin);
        results.end = usize::try_from(begin).unwrap_or(0);
    }
    results.entries = found.into_iter().filter_map(|(_, entry)| entry).collect();
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Described, Record, head};
    use super::*;
    use crate::captioner::Fallback;

    fn stamp() -> Stamp {
        Stamp { size_bytes: 5, modified_ms: 7, parameters: "abc".into() }
    }

    fn row(path: &str, format: Format) -> String {
        let reason = Fallback::because("it is broken, \"quite\"");
        let described = Described::Nothing { text: "a, \"b\"\nc".into(), reason };
        let record = Record { path, described: &described, stamp: Some(&stamp()) };
        record.write(format).unwrap()
    }

    fn paths(results: &Results) -> Vec<&str> {
        results.entries.iter().map(|entry| entry.path.as_str()).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (format, text) in [
            (Format::JsonLines, row("a,b", Format::JsonLines)),
            (Format::Csv, head().unwrap() + &row("a,b", Format::Csv)),
            (Format::Json, format!("[\n{}\n]\n", row("a,b", Format::Json))),
        ] {
            let results = Results::parse(text.as_bytes(), format).unwrap();
            let entry = &results.entries[0];
            assert_eq!((entry.path.as_str(), entry.caption.as_str()), ("a,b", "a, \"b\"\nc"));
            assert!(entry.fallback && results.ours && results.entries.len() == 1, "{format:?}");
            assert_eq!(entry.stamp, Some(stamp()), "{format:?}");
        }
        let results = Results::parse(b"a\tone\na\ttwo\nb\tthree\n", Format::Text).unwrap();
        assert_eq!((paths(&results), results.end), (vec!["a", "b"], 20));
        assert_eq!(results.entries[0].caption, "one");
    }

    /// Wherever a kill cuts a file, the whole rows are found and the rest is not.
    #[test]
    fn a_row_that_was_cut_off_is_none() {
        for format in [Format::JsonLines, Format::Csv, Format::Json] {
            let (start, between, end) = match format {
                Format::Csv => (head().unwrap(), "", ""),
                Format::Json => ("[\n".to_owned(), ",\n", "\n]\n"),
                _ => (String::new(), "", ""),
            };
            let whole = start.clone() + &row("a", format) + between;
            let all = whole.clone() + &row("b", format) + end;
            for cut in whole.len()..all.len() {
                let results = Results::parse(&all.as_bytes()[..cut], format).unwrap();
                let known = paths(&results).len();
                assert!(results.end <= cut && (1..=2).contains(&known), "{format:?} at {cut}");
                // What is kept is whole: written on, it is what it would have been.
                let kept = &all[..results.end];
                let closed =
                    if format == Format::Json { format!("{kept}\n]\n") } else { kept.into() };
                let again = Results::parse(closed.as_bytes(), format).unwrap();
                assert_eq!(paths(&again).len(), known, "{format:?} at {cut}");
            }
        }
        for (text, end) in [("", 0), ("[", 0), ("[\n", 1), ("[]", 1), ("[]\n", 1), ("[\n]\n", 1)] {
            let results = Results::parse(text.as_bytes(), Format::Json).unwrap();
            assert_eq!((results.entries.len(), results.end), (0, end), "{text:?}");
        }
    }

    #[test]
    fn other_files_are_refused_with_their_line() {
        for (format, text, part) in [
            (Format::Text, "a\tb\nno tab\n", "line 2"),
            (Format::JsonLines, "{\"path\": \"a\"}\n", "line 1"),
            (Format::Csv, "name,size\na,1\n", "first line"),
            (Format::Csv, "path,caption\nc\na,b\n", "row 2"),
            (Format::Json, "{\"a\": 1}\n", "array"),
            (Format::Json, "[{\"a\": 1}]", "element"),
        ] {
            let error = Results::parse(text.as_bytes(), format).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let foreign = Results::parse(b"path,caption\na,b\n", Format::Csv).unwrap();
        assert!(!foreign.ours && paths(&foreign) == ["a"]);
        let coco = Results::parse(br#"[{"image_id": 42, "caption": "a cat"}]"#, Format::Json);
        assert_eq!(paths(&coco.unwrap()), ["42"]);
    }
}
