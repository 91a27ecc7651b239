//! Vocabularies as lines of text: `[category]`, then a tag a line, with synonyms after a colon.

use cutline_error::{Error, Result};

use crate::vocabulary::{MAX_NAMES, RawCategory, RawTag, Vocabulary, wrong};

/// The category of tags before the first header.
const FIRST: &str = "tags";

/// Reads the lines. What follows `#` at the beginning of a line is a comment.
pub(crate) fn read(text: &str) -> Result<Vocabulary> {
    let mut categories: Vec<RawCategory> = Vec::new();
    let mut names = 0;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let in_line = |what: &str| wrong(format!("line {}: {what}", at + 1));
        if let Some(header) = line.strip_prefix('[') {
            let name = header.strip_suffix(']').ok_or_else(|| in_line("a ] is missing"))?;
            categories.push(RawCategory { name: name.to_owned(), ..RawCategory::default() });
            continue;
        }
        let tag = tag(line, &in_line)?;
        names += 1 + tag.synonyms.len();
        if names > MAX_NAMES {
            return Err(in_line(&format!("there may be {MAX_NAMES} names; leave some out")));
        }
        if categories.is_empty() {
            categories.push(RawCategory { name: FIRST.into(), ..RawCategory::default() });
        }
        if let Some(category) = categories.last_mut() {
            category.tags.push(tag);
        }
    }
    Vocabulary::new("", categories)
}

/// `dog: puppy, hound`
fn tag(line: &str, wrong: &impl Fn(&str) -> Error) -> Result<RawTag> {
    let (name, synonyms) = line.split_once(':').unwrap_or((line, ""));
    let synonyms: Vec<&str> = synonyms.split(',').map(str::trim).collect();
    if name.trim().is_empty() || synonyms.len() > 1 && synonyms.iter().any(|name| name.is_empty()) {
        return Err(wrong("a name is missing; write a tag, or a tag: synonym, synonym"));
    }
    let synonyms = synonyms.into_iter().filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(RawTag { name: name.to_owned(), synonyms: synonyms.collect() })
}
