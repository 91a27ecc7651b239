//! What tags photos may get, and how they are scored.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::options::TagOptions;
use super::{Values, library_address};
use cutline_error::{Error, Result};
use cutline_tags::{FIELD, MAX_BYTES, Reference, Source, Vocabulary, Weights};

/// The most bytes of a file with weights.
const MAX_WEIGHTS: u64 = 64 << 10;

/// The tags that photos may get: the file of `TAG_VOCABULARY`, or a vocabulary of the library; `None` if it
/// is not set.
///
/// # Errors
/// As [`Settings::new`](super::Settings::new).
pub fn tag_vocabulary(values: &Values) -> Result<Option<Source>> {
    let Some(path) = values.read::<TagOptions>()?.tag_vocabulary else { return Ok(None) };
    let unusable = |remedy: &str| values.unusable("TAG_VOCABULARY", remedy);
    let source = vocabulary_source(&path).map_err(|error| unusable(error.detail()))?;
    if matches!(source, Source::Library(_)) && library_address(values)?.is_none() {
        return Err(unusable("it needs LIBRARY; set that too"));
    }
    Ok(Some(source))
}

/// The weights of the strategy `hybrid`: the file of `TAG_WEIGHTS`; `None` if it is not set.
///
/// # Errors
/// As [`Settings::new`](super::Settings::new).
pub fn tag_weights(values: &Values) -> Result<Option<Weights>> {
    let Some(path) = values.read::<TagOptions>()?.tag_weights else { return Ok(None) };
    let unusable = |remedy: &str| values.unusable("TAG_WEIGHTS", remedy);
    let mut bytes = Vec::new();
    let opened = File::open(path);
    let read = opened.and_then(|file| file.take(MAX_WEIGHTS).read_to_end(&mut bytes));
    read.map_err(|error| unusable(&format!("it cannot be read ({error}); check the path")))?;
    Weights::from_json(&bytes).map(Some).map_err(|error| unusable(error.detail()))
}

/// The vocabulary of a library that is named, or else that of the file.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it cannot be read or used.
pub fn vocabulary_source(path: &Path) -> Result<Source> {
    match path.to_str().and_then(Reference::in_text) {
        Some(reference) => reference.map(Source::Library),
        None => read_vocabulary(path).map(Source::Own),
    }
}

/// Reads a file of allowed tags.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it cannot be read or used.
pub fn read_vocabulary(path: &Path) -> Result<Vocabulary> {
    let mut bytes = Vec::new();
    let opened = File::open(path);
    let read = opened.and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        let detail = format!("{}: cannot be read ({error}); check the path", path.display());
        Error::parameter(FIELD, detail)
    })?;
    let named = |error: Error| {
        let detail = format!("{}: {}", path.display(), error.detail());
        Error::parameter(FIELD, detail).with_source(error)
    };
    Vocabulary::parse(&bytes).map_err(named)
}
