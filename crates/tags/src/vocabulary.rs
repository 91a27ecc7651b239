//! Vocabularies: what may be a tag.

use std::collections::HashMap;
use std::ops::Range;

use cutline_error::{Error, Result};

use crate::{Reference, json, lines};

/// The parameter of a request that has a vocabulary.
pub const FIELD: &str = "vocabulary";
/// The most bytes of a vocabulary.
pub const MAX_BYTES: usize = 1 << 20;
/// The most categories.
pub const MAX_CATEGORIES: usize = 64;
/// The most names: tags and synonyms together.
pub const MAX_NAMES: usize = 4096;
/// The most tags that a category may take.
pub const MAX_K: usize = 50;
/// The longest name, in bytes.
const MAX_NAME: usize = 64;
/// The longest template, in bytes.
const MAX_TEMPLATE: usize = 128;
/// Tags of a category that does not say how many it takes.
const DEFAULT_K: usize = 5;
/// The sentence in which a captioner would write a tag.
const DEFAULT_TEMPLATE: &str = "a photo of a {tag}";
/// Stands for the tag in a template.
const PLACE: &str = "{tag}";

/// A tag's number in its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagId(pub(crate) usize);

impl TagId {
    /// The number: from 0, in the order of the vocabulary.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

/// The tags that are allowed, by category.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    name: String,
    categories: Vec<Category>,
    tags: Vec<Tag>,
}

/// Tags of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Category {
    name: String,
    template: Template,
    k: usize,
    threshold: Option<f32>,
    tags: Range<usize>,
}

/// A tag with the words that stand for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    name: String,
    synonyms: Vec<String>,
    category: usize,
}

/// A sentence with a place for a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    prompt: String,
}

/// A category as it is written.
#[derive(Debug, Default)]
pub(crate) struct RawCategory {
    pub(crate) name: String,
    pub(crate) tags: Vec<RawTag>,
    pub(crate) k: Option<usize>,
    pub(crate) threshold: Option<f32>,
    pub(crate) template: Option<String>,
}

/// A tag as it is written.
#[derive(Debug, Default)]
pub(crate) struct RawTag {
    pub(crate) name: String,
    pub(crate) synonyms: Vec<String>,
}

impl Vocabulary {
    /// Reads a vocabulary: JSON, or lines of text.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `vocabulary`: it is too
    /// large or malformed, or a name is missing, too long or given twice.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(wrong(format!("it may have {MAX_BYTES} bytes; split it")));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| wrong("it must be UTF-8 text; save it as such").with_source(error))?;
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        // A category of a text file begins with a bracket too, but not with a quote or an object.
        let is_json = match text.trim_start().strip_prefix('[') {
            Some(rest) => rest.trim_start().starts_with(['"', '{', ']']),
            None => text.trim_start().starts_with('{'),
        };
        if is_json { Self::from_json(text) } else { lines::read(text) }
    }

    /// Reads a vocabulary of a request: an object with `categories`, or a list of tags.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_json(text: &str) -> Result<Self> {
        let (name, categories) = json::read(text)?;
        Self::new(&name, categories)
    }

    /// Checks everything.
    pub(crate) fn new(name: &str, raw: Vec<RawCategory>) -> Result<Self> {
        if raw.is_empty() {
            return Err(wrong("there are no tags in it; add some"));
        }
        if raw.len() > MAX_CATEGORIES {
            return Err(wrong(format!("it may have {MAX_CATEGORIES} categories; join some")));
        }
        let name = if name.trim().is_empty() { String::new() } else { tidy(name, "its name")? };
        let mut vocabulary = Self { name, categories: Vec::new(), tags: Vec::new() };
        let mut names = 0;
        let mut tags = HashMap::new();
        for category in raw {
            vocabulary.add(category, &mut tags, &mut names)?;
        }
        Ok(vocabulary)
    }

    fn add(
        &mut self,
        raw: RawCategory,
        tags: &mut HashMap<String, String>,
        names: &mut usize,
    ) -> Result<()> {
        let name = tidy(&raw.name, "the name of a category")?;
        if self.categories.iter().any(|other| other.name.to_lowercase() == name.to_lowercase()) {
            return Err(wrong(format!("there are two categories \"{name}\"; join them")));
        }
        if raw.tags.is_empty() {
            return Err(wrong(format!(
                "the category \"{name}\" has no tags; add some, or drop it"
            )));
        }
        let k = raw.k.unwrap_or(DEFAULT_K);
        if !(1..=MAX_K).contains(&k) {
            return Err(wrong(format!("k of \"{name}\" must be between 1 and {MAX_K}")));
        }
        if raw.threshold.is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
            return Err(wrong(format!("the threshold of \"{name}\" must be between 0 and 1")));
        }
        let template = Template::new(raw.template.as_deref().unwrap_or(DEFAULT_TEMPLATE))?;
        let (first, category) = (self.tags.len(), self.categories.len());
        let mut known = HashMap::new();
        for tag in raw.tags {
            *names += 1 + tag.synonyms.len();
            if *names > MAX_NAMES {
                return Err(wrong(format!(
                    "it may have {MAX_NAMES} names, synonyms included; leave some out"
                )));
            }
            let tag = Tag::new(tag, category, &name, &mut known)?;
            if let Some(other) = tags.insert(tag.name.to_lowercase(), name.clone()) {
                return Err(wrong(format!(
                    "the tag \"{}\" is in \"{other}\" and in \"{name}\"; keep one of them",
                    tag.name
                )));
            }
            self.tags.push(tag);
        }
        let tags = first..self.tags.len();
        self.categories.push(Category { name, template, k, threshold: raw.threshold, tags });
        Ok(())
    }

    /// Its name; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with the name of its place in a library instead of its own.
    #[must_use]
    pub fn kept_as(self, reference: &Reference) -> Self {
        Self { name: reference.to_string(), ..self }
    }

    /// The categories in their order.
    #[must_use]
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// All tags in their order, with their numbers.
    pub fn tags(&self) -> impl Iterator<Item = (TagId, &Tag)> {
        self.tags.iter().enumerate().map(|(index, tag)| (TagId(index), tag))
    }

    /// How many tags there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there are no tags, which never happens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// The tag with this number.
    ///
    /// # Panics
    /// The number is one of another, larger vocabulary.
    #[must_use]
    pub fn tag(&self, id: TagId) -> &Tag {
        &self.tags[id.0]
    }

    /// The category of a tag.
    ///
    /// # Panics
    /// As [`tag`](Self::tag).
    #[must_use]
    pub fn category(&self, id: TagId) -> &Category {
        &self.categories[self.tags[id.0].category]
    }

    /// The tag of this name, whatever the case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<TagId> {
        let name = name.to_lowercase();
        self.tags.iter().position(|tag| tag.name.to_lowercase() == name).map(TagId)
    }
}

impl Category {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sentence of its tags.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// How many tags of it a photo gets at most.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The least score of a tag, if the category says so.
    #[must_use]
    pub fn threshold(&self) -> Option<f32> {
        self.threshold
    }

    /// Its tags.
    pub fn tags(&self) -> impl Iterator<Item = TagId> + use<> {
        self.tags.clone().map(TagId)
    }
}

impl Tag {
    /// `known` has the names of the category so far, and the tags that they stand for.
    fn new(
        raw: RawTag,
        category: usize,
        of: &str,
        known: &mut HashMap<String, String>,
    ) -> Result<Self> {
        let name = tidy(&raw.name, "a tag")?;
        let mut synonyms = Vec::with_capacity(raw.synonyms.len());
        for synonym in &raw.synonyms {
            synonyms.push(tidy(synonym, "a synonym")?);
        }
        for word in std::iter::once(&name).chain(&synonyms) {
            if let Some(other) = known.insert(word.to_lowercase(), name.clone()) {
                let what = if other.to_lowercase() == name.to_lowercase() {
                    format!("\"{word}\" is given twice in \"{of}\"; keep one")
                } else {
                    format!("\"{word}\" stands for two tags of \"{of}\"; keep it for one")
                };
                return Err(wrong(what));
            }
        }
        Ok(Self { name, synonyms, category })
    }

    /// The name, which is what a photo gets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Other words for it.
    #[must_use]
    pub fn synonyms(&self) -> &[String] {
        &self.synonyms
    }

    /// The number of its category.
    #[must_use]
    pub fn category(&self) -> usize {
        self.category
    }

    /// The name and the synonyms.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.synonyms.iter().map(String::as_str))
    }
}

impl Template {
    fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() > MAX_TEMPLATE || text.chars().any(char::is_control) {
            return Err(wrong(format!("a template may have {MAX_TEMPLATE} bytes in one line")));
        }
        match text.split_once(PLACE) {
            Some((before, after)) if !after.contains(PLACE) => {
                // What follows the tag cannot tell tags apart much, and is not read.
                Ok(Self { text: text.to_owned(), prompt: before.trim_end().to_lowercase() })
            }
            _ => Err(wrong(format!("a template must contain {PLACE} once, where the tag belongs"))),
        }
    }

    /// The whole sentence.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What precedes the tag.
    #[must_use]
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// The word as it follows the prompt: "a photo of a the sea" would be no English.
    #[must_use]
    pub fn continuation<'a>(&self, name: &'a str) -> &'a str {
        let has_article = self.prompt.ends_with(" a") || self.prompt == "a";
        let articles: &[&str] = if has_article { &["a ", "an ", "the "] } else { &[] };
        articles.iter().find_map(|article| name.strip_prefix(article)).unwrap_or(name)
    }
}

/// A name without spaces around it, and with single ones in it.
fn tidy(name: &str, what: &str) -> Result<String> {
    // A name of a megabyte is not copied first.
    if name.trim().len() > 4 * MAX_NAME {
        return Err(wrong(format!("{what} may have {MAX_NAME} bytes; shorten it")));
    }
    let words = name.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.len() > MAX_NAME {
        return Err(wrong(format!("{what} may have {MAX_NAME} bytes; shorten \"{words}\"")));
    }
    let shown: String = words.chars().filter(|c| !c.is_control()).collect();
    if shown.len() < words.len() {
        return Err(wrong(format!("\"{shown}\" has characters that no one sees; leave them out")));
    }
    if !words.chars().any(char::is_alphanumeric) {
        return Err(wrong(format!("{what} has no letters (\"{words}\"); give it a name")));
    }
    Ok(words)
}

pub(crate) fn wrong(detail: impl std::fmt::Display) -> Error {
    Error::parameter(FIELD, format!("the vocabulary cannot be used: {detail}"))
}

#[cfg(test)]
mod tests;
