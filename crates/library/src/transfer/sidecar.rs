//! Texts in files beside photos.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::rows::Row;
use crate::types::{Author, Field};

/// Bytes of a sidecar that are read at most.
const MAX_BYTES: u64 = 16 << 20;

/// What the sidecars of `photo` say, of each kind the first that there is: `photo.jpg.xmp`, or
/// `photo.xmp`. The second value tells which could not be read, and why.
pub(super) fn read(photo: &Path, lang: &str, author: &Author) -> (Row, Vec<String>) {
    let mut row = Row::default();
    let mut problems = Vec::new();
    for kind in ["xmp", "json", "txt"] {
        let Some(path) = existing(photo, kind) else { continue };
        let read = content(&path).and_then(|bytes| match kind {
            "xmp" => xmp(&mut row, &bytes, lang, author),
            "json" => json(&mut row, &bytes, lang),
            _ => {
                let text = String::from_utf8_lossy(&bytes);
                let text = text.trim_start_matches('\u{feff}').trim().to_owned();
                row.add(None, Field::Caption, lang, text, None);
                Ok(())
            }
        });
        if let Err(reason) = read {
            problems.push(format!("{}: {reason}", path.display()));
        }
    }
    // The first text of a field counts: XMP is what people edit.
    let mut seen = Vec::new();
    row.texts.retain(|(_, text)| {
        let new = !seen.contains(&text.field);
        seen.push(text.field);
        new
    });
    (row, problems)
}

fn existing(photo: &Path, extension: &str) -> Option<PathBuf> {
    let mut full = photo.as_os_str().to_owned();
    full.push(".");
    full.push(extension);
    let short = photo.with_extension(extension);
    [PathBuf::from(full), short].into_iter().find(|path| path != photo && path.is_file())
}

fn content(path: &Path) -> Result<Vec<u8>, String> {
    let size = path.metadata().map_err(|error| error.to_string())?.len();
    if size > MAX_BYTES {
        return Err(format!("has more than {MAX_BYTES} bytes; remove it"));
    }
    fs::read(path).map_err(|error| format!("cannot be read ({error}); check its permissions"))
}

fn xmp(row: &mut Row, bytes: &[u8], lang: &str, author: &Author) -> Result<(), String> {
    let texts = cutline_xmp::read_bytes(bytes).map_err(|error| error.to_string())?;
    let tags = cutline_xmp::keywords(bytes).map_err(|error| error.to_string())?;
    let author = Some(author.clone());
    row.add(author.clone(), Field::Caption, lang, texts.description.unwrap_or_default(), None);
    row.add(author.clone(), Field::AltText, lang, texts.alt_text.unwrap_or_default(), None);
    row.add(author, Field::Tags, lang, tags.join("\n"), None);
    Ok(())
}

/// Takes over what a JSON file says, if `cutline caption` or an export wrote it.
fn json(row: &mut Row, bytes: &[u8], lang: &str) -> Result<(), String> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| format!("is not JSON ({error}); correct it"))?;
    let Some(found) = Row::of_json(&value, lang) else { return Ok(()) };
    let texts = std::mem::take(&mut row.texts);
    *row = Row { hash: None, path: None, ..found };
    row.texts.splice(0..0, texts);
    Ok(())
}
