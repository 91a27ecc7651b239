//! Photos with the tags that people gave.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cutline_library::{Asset, Attribute, Field, NameKind, Query, Sort, Store};
use serde::Deserialize;

use crate::captioner::Tagger;
use crate::text;
use cutline_error::{Error, ErrorKind, Result};
use cutline_tags::TagId;

/// The most bytes of a truth file: it is held in memory.
const MAX_BYTES: u64 = 1 << 28;
/// Photos of the library that are read together.
const PAGE: usize = 200;

/// A line of the truth file.
#[derive(Deserialize)]
struct Line {
    path: String,
    tags: Option<Given>,
    /// What people wrote: the tags that are named in it count as given.
    #[serde(default)]
    captions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    List(Vec<String>),
    Categories(BTreeMap<String, Vec<String>>),
}

/// A photo with the tags that people gave.
pub(super) struct TruePhoto {
    pub(super) path: PathBuf,
    pub(super) tags: Vec<(Option<String>, String)>,
    pub(super) captions: Vec<String>,
}

/// The tags of the vocabulary that were given, and how many others.
pub(super) fn known(tagger: &Tagger, photo: &TruePhoto) -> (HashSet<TagId>, usize) {
    let vocabulary = tagger.vocabulary();
    let named = photo.captions.iter().flat_map(|caption| tagger.matcher().find(caption));
    let mut known: HashSet<TagId> = named.map(|found| found.tag).collect();
    let mut unknown = 0;
    for (category, name) in &photo.tags {
        let is_meant = |(id, tag): &(TagId, &cutline_tags::Tag)| {
            let own = vocabulary.category(*id).name();
            category.as_deref().is_none_or(|category| category == own)
                && tag.names().any(|word| word.to_lowercase() == name.to_lowercase())
        };
        match vocabulary.tags().find(is_meant) {
            Some((id, _)) => drop(known.insert(id)),
            None => unknown += 1,
        }
    }
    (known, unknown)
}

/// Reads a file of photos.
pub(super) fn read(path: &Path, folder: &Path) -> Result<Vec<TruePhoto>> {
    let failed = |kind, what: String| Error::new(kind, format!("{}: {what}", path.display()));
    let mut bytes = Vec::new();
    let opened = File::open(path);
    let read = opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| failed(ErrorKind::Io, format!("cannot be read ({e}); check the path")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(ErrorKind::Config, format!("it has more than {MAX_BYTES} bytes")));
    }
    let bytes =
        text::without_mark(&bytes).map_err(|why| failed(ErrorKind::Config, why.to_owned()))?;
    let mut photos = Vec::new();
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_slice(line).map_err(|error| {
            let what = format!(
                "line {} is not {{\"path\": …, \"tags\": {{\"category\": […]}}}} ({error})",
                at + 1
            );
            failed(ErrorKind::Config, what)
        })?;
        let tags = match line.tags {
            None => Vec::new(),
            Some(Given::List(tags)) => tags.into_iter().map(|tag| (None, tag)).collect(),
            Some(Given::Categories(all)) => {
                let one = |(name, tags): (String, Vec<String>)| {
                    tags.into_iter().map(move |tag| (Some(name.clone()), tag))
                };
                all.into_iter().flat_map(one).collect()
            }
        };
        let path = folder.join(line.path);
        photos.push(TruePhoto { path, tags, captions: line.captions });
    }
    Ok(photos)
}

/// The photos of a library whose tags people wrote, accepted, imported or deleted, as far as their files are
/// where the library last saw them. Those that were changed last come first.
pub(super) fn of_library(store: &dyn Store, most: usize) -> Result<Vec<TruePhoto>> {
    let reviewed = Attribute::new("is", "reviewed", false)?;
    let mut query = Query {
        filters: reviewed.into_iter().collect(),
        sort: Some(Sort::Added),
        limit: PAGE,
        ..Query::default()
    };
    let mut photos = Vec::new();
    loop {
        let page = store.find(&query)?;
        for found in page.items {
            photos.extend(reviewed_photo(&found.asset));
            if photos.len() == most {
                return Ok(photos);
            }
        }
        query.cursor = page.next;
        if query.cursor.is_none() {
            return Ok(photos);
        }
    }
}

fn reviewed_photo(asset: &Asset) -> Option<TruePhoto> {
    let tags = asset.text(Field::Tags, "en").filter(|tags| tags.reviewed)?;
    let is_here = |path: &&Path| {
        let size = path.metadata().ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
        path.is_absolute() && size.is_some_and(|size| asset.bytes.is_none_or(|known| known == size))
    };
    let paths = asset.names.iter().filter(|name| name.kind == NameKind::Path);
    let path = paths.map(|name| Path::new(&name.name)).find(is_here)?.to_owned();
    let tags = tags.text.lines().map(|tag| (None, tag.to_owned())).collect();
    Some(TruePhoto { path, tags, captions: Vec::new() })
}
