//! Photos with their texts, as files for other programs.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cutline_error::{Error, ErrorKind, Result};
use cutline_xmp::{Existing, Texts, merge};
use serde_json::json;

use super::guarded;
use crate::query::{MAX_LIMIT, Query, Sort};
use crate::store::Store;
use crate::time::format_time;
use crate::types::{Asset, Field};

/// A format of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One photo a line, with everything but its history. It can be imported again.
    JsonLines,
    /// A table for spreadsheets. It can be imported again.
    Csv,
    /// The format of COCO's captions, for training and evaluation.
    Coco,
    /// What models wrote and what people made of it, one text a line.
    Pairs,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "jsonl" => Self::JsonLines,
            "csv" => Self::Csv,
            "coco" => Self::Coco,
            "pairs" => Self::Pairs,
            _ => {
                return Err(Error::parameter(
                    "format",
                    "the formats are jsonl, csv, coco and pairs; use one of them",
                ));
            }
        })
    }
}

/// The columns of the table.
pub(super) const COLUMNS: [&str; 12] = [
    "hash",
    "path",
    "caption",
    "alt_text",
    "tags",
    "model",
    "confidence",
    "reviewed",
    "colors",
    "mood",
    "taken_at",
    "added_at",
];

/// Writes the photos that `query` finds, and returns their number. Those last added come first. The
/// language of the texts in tables and COCO is `lang`.
///
/// # Errors
/// Those of [`Store::find`]. [`Io`](ErrorKind::Io): the output cannot be written.
pub fn export(
    store: &dyn Store,
    query: &Query,
    lang: &str,
    format: Format,
    output: &mut dyn Write,
) -> Result<u64> {
    let written = match format {
        Format::JsonLines => each(store, query, |asset| {
            line(output, asset)?;
            Ok(true)
        }),
        Format::Csv => {
            // The mark by which spreadsheets recognise UTF-8.
            output.write_all("\u{feff}".as_bytes()).map_err(unwritable)?;
            let mut table = csv::Writer::from_writer(&mut *output);
            table.write_record(COLUMNS).map_err(unwritable)?;
            each(store, query, |asset| {
                table.write_record(row(asset, lang)).map_err(unwritable)?;
                Ok(true)
            })
        }
        Format::Coco => coco(store, query, lang, output),
        Format::Pairs => pairs(store, output),
    };
    let written = written?;
    output.flush().map_err(unwritable)?;
    Ok(written)
}

/// Calls `write` for each photo, page by page; counts those for which it returns true.
fn each(
    store: &dyn Store,
    query: &Query,
    mut write: impl FnMut(&Asset) -> Result<bool>,
) -> Result<u64> {
    let mut query = Query {
        sort: Some(Sort::Added),
        limit: MAX_LIMIT,
        cursor: None,
        count: false,
        ..query.clone()
    };
    let mut written = 0;
    loop {
        let page = store.find(&query)?;
        for found in &page.items {
            written += u64::from(write(&found.asset)?);
        }
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(written),
        }
    }
}

fn line(output: &mut dyn Write, value: &impl serde::Serialize) -> Result<()> {
    serde_json::to_writer(&mut *output, value).map_err(unwritable)?;
    output.write_all(b"\n").map_err(unwritable)
}

fn row(asset: &Asset, lang: &str) -> [String; 12] {
    let text = |field| asset.text(field, lang).map(|text| text.text.as_str()).unwrap_or_default();
    let caption = asset.text(Field::Caption, lang);
    let guard = |text: &str| guarded(text).into_owned();
    let model = caption.map(|caption| caption.author.name()).unwrap_or_default();
    let colors: Vec<&str> = asset.colors.iter().map(|color| color.name.as_str()).collect();
    [
        asset.hash.to_string(),
        guard(asset.names.first().map(|name| name.name.as_str()).unwrap_or_default()),
        guard(text(Field::Caption)),
        guard(text(Field::AltText)),
        guard(&text(Field::Tags).replace('\n', ";")),
        guard(model),
        caption
            .and_then(|caption| caption.confidence)
            .map(|value| value.to_string())
            .unwrap_or_default(),
        caption.is_some_and(|caption| caption.reviewed).to_string(),
        colors.join(";"),
        asset.mood.clone().unwrap_or_default(),
        asset.taken_at.map(format_time).unwrap_or_default(),
        format_time(asset.added_at),
    ]
}

/// COCO's two lists. Photos are read once for each, so that no list must fit the memory. A photo has
/// the same number in both: the first digits of its hash.
fn coco(store: &dyn Store, query: &Query, lang: &str, output: &mut dyn Write) -> Result<u64> {
    let number = |asset: &Asset| {
        let [a, b, c, d, e, f, ..] = asset.hash.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    };
    let caption = |asset: &Asset| {
        let text = asset.text(Field::Caption, lang)?;
        (!text.text.is_empty()).then(|| text.clone())
    };
    let written =
        list(store, query, output, "{\"info\":{},\"licenses\":[],\"images\":[", |asset| {
            caption(asset).map(|_| {
                json!({
                    "id": number(asset),
                    "file_name": asset.display_name(),
                    "width": asset.width,
                    "height": asset.height,
                })
            })
        })?;
    list(store, query, output, "],\n\"annotations\":[", |asset| {
        caption(asset).map(
            |text| json!({"id": text.revision, "image_id": number(asset), "caption": text.text}),
        )
    })?;
    output.write_all(b"]}\n").map_err(unwritable)?;
    Ok(written)
}

/// Writes the items of a list after `head`.
fn list(
    store: &dyn Store,
    query: &Query,
    output: &mut dyn Write,
    head: &str,
    item: impl Fn(&Asset) -> Option<serde_json::Value>,
) -> Result<u64> {
    output.write_all(head.as_bytes()).map_err(unwritable)?;
    let mut separator = "\n";
    each(store, query, |asset| {
        let Some(item) = item(asset) else { return Ok(false) };
        output.write_all(separator.as_bytes()).map_err(unwritable)?;
        separator = ",\n";
        serde_json::to_writer(&mut *output, &item).map_err(unwritable)?;
        Ok(true)
    })
}

fn pairs(store: &dyn Store, output: &mut dyn Write) -> Result<u64> {
    let (mut after, mut written) = (0, 0);
    loop {
        let pairs = store.training_pairs(after, 500)?;
        let Some(last) = pairs.last() else { return Ok(written) };
        after = last.id;
        for pair in &pairs {
            line(output, pair)?;
            written += 1;
        }
    }
}

/// Writes an XMP sidecar with caption and alternative text for each photo, into `folder`, which must be
/// empty or new. Returns their number.
///
/// # Errors
/// Those of [`Store::find`]. [`Io`](ErrorKind::Io): the folder is not empty or cannot be written.
pub fn export_xmp(store: &dyn Store, query: &Query, lang: &str, folder: &Path) -> Result<u64> {
    fs::create_dir_all(folder).map_err(|error| unwritable_in(folder, &error))?;
    let mut files = fs::read_dir(folder).map_err(|error| unwritable_in(folder, &error))?;
    if files.next().is_some() {
        return Err(Error::new(
            ErrorKind::Io,
            format!("the folder {} is not empty; name a new one", folder.display()),
        ));
    }
    let mut taken = HashSet::new();
    each(store, query, |asset| {
        let text = |field| {
            asset.text(field, lang).map(|text| text.text.clone()).filter(|text| !text.is_empty())
        };
        let texts = Texts { description: text(Field::Caption), alt_text: text(Field::AltText) };
        if texts == Texts::default() {
            return Ok(false);
        }
        let path = folder.join(sidecar_name(asset, &mut taken));
        let xmp = merge(None, &texts, Existing::Keep)?;
        fs::write(&path, xmp).map_err(|error| unwritable_in(folder, &error))?;
        Ok(true)
    })
}

/// The name of the photo's file with `.xmp`; with a part of the hash in front if another photo has it.
fn sidecar_name(asset: &Asset, taken: &mut HashSet<String>) -> PathBuf {
    let hash = asset.hash.to_string();
    let full = asset.names.first().map(|name| name.name.as_str()).unwrap_or(&hash);
    let name = full.rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(&hash);
    // Names come from outside: addresses have characters that files have not.
    let safe = |c: char| if c.is_control() || "<>:\"|?*".contains(c) { '_' } else { c };
    let name: String = name.chars().map(safe).take(120).collect();
    let mut file = format!("{name}.xmp");
    if !taken.insert(file.to_lowercase()) {
        file = format!("{}-{name}.xmp", &hash[..16]);
        taken.insert(file.to_lowercase());
    }
    file.into()
}

fn unwritable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let error = error.into();
    Error::new(
        ErrorKind::Io,
        format!("the export cannot be written ({error}); check where it goes and the free space"),
    )
    .with_source(error)
}

fn unwritable_in(folder: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "the folder {} cannot be written ({error}); check its permissions",
            folder.display()
        ),
    )
}
