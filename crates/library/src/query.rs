//! What is asked of the library, and the language that people ask it in.
//!
//! `dog beach` finds both words; `"a dog"` words in a row; `dog OR cat` one of them; `do*` a beginning;
//! `-dog` what has no such word. `caption:`, `alt:` and `name:` look there only. `tag:`, `color:`,
//! `mood:`, `model:`, `missing:`, `is:`, `after:`, `before:` and `confidence:` filter.

use cutline_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::parse_time;
use crate::types::Field;

/// Terms and filters of a query at most.
const MAX_TERMS: usize = 64;
/// Bytes of a query at most.
const MAX_BYTES: usize = 2000;
/// Photos on a page at most.
pub(crate) const MAX_LIMIT: usize = 200;

/// Asks for a page of photos.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// What is searched for, in the language of [`parse`]; empty for all photos.
    pub text: String,
    /// Filters, in addition to those in `text`.
    pub filters: Vec<Attribute>,
    /// Whether the last word may be the beginning of one, for searching as somebody types.
    pub unfinished: bool,
    /// The order; `None` for the best for this query.
    pub sort: Option<Sort>,
    /// Photos on the page: 1 to 200, or 0 for 50.
    pub limit: usize,
    /// The `next` of the page before.
    pub cursor: Option<String>,
    /// Whether to count all photos that there are.
    pub count: bool,
}

/// The order of photos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Those that match best first. For a text that very many photos match: the newest of the library.
    Relevance,
    /// Those last taken first; without a date, when they were added.
    Taken,
    /// Those last added first.
    Added,
    /// Those with the least sure caption first.
    Confidence,
}

impl Sort {
    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relevance => "relevance",
            Self::Taken => "taken",
            Self::Added => "added",
            Self::Confidence => "confidence",
        }
    }
}

/// A filter.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// Photos with a label, or without.
    Label {
        /// `color`, `mood`, `model`, `tag`, `missing`, `is`.
        kind: &'static str,
        /// The value.
        value: String,
        /// Whether they must not have it.
        not: bool,
    },
    /// Photos from this time on.
    After(i64),
    /// Photos before this time.
    Before(i64),
    /// Captions at least so sure.
    MinConfidence(f32),
    /// Captions at most so sure.
    MaxConfidence(f32),
}

/// The kinds of labels.
pub(crate) const KINDS: [&str; 6] = ["color", "mood", "model", "tag", "missing", "is"];

impl Attribute {
    /// The filter `name:value`; `None` if there is none of this name.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): the value is not one of this filter.
    pub fn new(name: &str, value: &str, not: bool) -> Result<Option<Self>> {
        let name = if name == "colour" { "color" } else { name };
        if let Some(kind) = KINDS.iter().copied().find(|kind| *kind == name) {
            return Self::label(kind, value, not).map(Some);
        }
        if !matches!(name, "after" | "before" | "confidence") {
            return Ok(None);
        }
        if not {
            return Err(wrong(format!("-{name}: is not a filter; say what is wanted instead")));
        }
        match name {
            "after" => parse_time(value).map(|time| Some(Self::After(time))),
            "before" => parse_time(value).map(|time| Some(Self::Before(time))),
            _ => Self::confidence(value).map(Some),
        }
    }

    fn label(kind: &'static str, value: &str, not: bool) -> Result<Self> {
        let value = value.trim();
        let allowed: &[&str] = match kind {
            "missing" => &["caption", "alt_text", "tags"],
            "is" => &["reviewed", "suggested", "cleared"],
            _ => &[],
        };
        let value = if kind == "missing" && value == "alt" { "alt_text" } else { value };
        let (value, not) = match (kind, value) {
            ("is", "unreviewed") => ("reviewed", !not),
            other => (other.1, not),
        };
        if !allowed.is_empty() && !allowed.contains(&value) {
            let allowed = allowed.join(", ");
            return Err(wrong(format!("{kind}: is followed by one of {allowed}; correct it")));
        }
        if value.is_empty() {
            return Err(wrong(format!("{kind}: is followed by a value; add it")));
        }
        Ok(Self::Label { kind, value: value.to_lowercase(), not })
    }

    fn confidence(value: &str) -> Result<Self> {
        let (least, number) = match value.split_at_checked(1) {
            Some(("<", number)) => (false, number),
            Some((">", number)) => (true, number),
            _ => (true, value),
        };
        let number: f32 = number.parse().unwrap_or(f32::NAN);
        if !(0.0..=1.0).contains(&number) {
            return Err(wrong("confidence: is followed by <0.5 or >0.5, from 0 to 1; correct it"));
        }
        Ok(if least { Self::MinConfidence(number) } else { Self::MaxConfidence(number) })
    }
}

/// Where a term is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// In one of the texts.
    Text(Field),
    /// In the names.
    Names,
}

/// A word, or words in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The words.
    pub words: String,
    /// Where; `None` for everywhere.
    pub column: Option<Column>,
    /// Whether the last word may go on.
    pub prefix: bool,
}

impl Term {
    /// Whether the index is asked for beginnings. One letter begins too many words.
    pub(crate) fn is_prefix(&self) -> bool {
        self.prefix && self.words.trim().chars().count() > 1
    }
}

/// A query, understood.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expression {
    /// All of these must be found; of each, one of its terms.
    pub all: Vec<Vec<Term>>,
    /// None of these may be found.
    pub none: Vec<Term>,
    /// The filters.
    pub filters: Vec<Attribute>,
}

impl Query {
    /// What `text` and `filters` mean together.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn expression(&self) -> Result<Expression> {
        let mut expression = parse(&self.text, self.unfinished)?;
        expression.filters.extend(self.filters.iter().cloned());
        if expression.filters.len() > MAX_TERMS {
            return Err(too_many());
        }
        Ok(expression)
    }

    /// Photos on the page.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): more than a page may have.
    pub(crate) fn page_size(&self) -> Result<usize> {
        match self.limit {
            0 => Ok(50),
            limit if limit <= MAX_LIMIT => Ok(limit),
            _ => Err(Error::parameter(
                "limit",
                format!("a page has at most {MAX_LIMIT} photos; lower limit"),
            )),
        }
    }
}

/// Reads a query. `unfinished`: the last word may be the beginning of one.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): it says what cannot be understood.
pub fn parse(text: &str, unfinished: bool) -> Result<Expression> {
    if text.len() > MAX_BYTES {
        return Err(wrong(format!("a search may have {MAX_BYTES} bytes; shorten it")));
    }
    let mut expression = Expression::default();
    let mut or = false;
    let mut rest = text.trim();
    while let Some(item) = Item::take(&mut rest)? {
        if item.is_or() {
            if or || expression.all.is_empty() {
                return Err(wrong(
                    "OR stands between two words; add the missing one, or write \"OR\"",
                ));
            }
            or = true;
            continue;
        }
        let last = rest.is_empty() && unfinished && !text.ends_with(char::is_whitespace);
        item.add(&mut expression, or, last)?;
        or = false;
        if expression.all.len() + expression.none.len() + expression.filters.len() > MAX_TERMS {
            return Err(too_many());
        }
    }
    if or {
        return Err(wrong("OR stands between two words; add the missing one, or write \"OR\""));
    }
    Ok(expression)
}

/// One item of a query, as written.
struct Item<'a> {
    not: bool,
    name: Option<&'a str>,
    words: &'a str,
    quoted: bool,
}

impl<'a> Item<'a> {
    fn take(rest: &mut &'a str) -> Result<Option<Self>> {
        *rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(None);
        }
        let (not, after) = match rest.strip_prefix('-') {
            Some(after) if !after.is_empty() && !after.starts_with(char::is_whitespace) => {
                (true, after)
            }
            _ => (false, *rest),
        };
        let (name, after) = match field_name(after) {
            Some(name) => (Some(name), &after[name.len() + 1..]),
            None => (None, after),
        };
        if let Some(quoted) = after.strip_prefix('"') {
            let Some(end) = quoted.find('"') else {
                return Err(wrong("a quotation mark is not closed; close it or remove it"));
            };
            *rest = &quoted[end + 1..];
            return Ok(Some(Self { not, name, words: &quoted[..end], quoted: true }));
        }
        let end = after.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(after.len());
        *rest = &after[end..];
        Ok(Some(Self { not, name, words: &after[..end], quoted: false }))
    }

    fn is_or(&self) -> bool {
        self.words == "OR" && !self.quoted && !self.not && self.name.is_none()
    }

    fn add(&self, expression: &mut Expression, or: bool, last: bool) -> Result<()> {
        let column = match self.name {
            None => None,
            Some("caption") => Some(Column::Text(Field::Caption)),
            Some("alt") => Some(Column::Text(Field::AltText)),
            Some("name") => Some(Column::Names),
            Some(name) => {
                if or {
                    return Err(wrong("OR stands between words, not between filters; remove it"));
                }
                let filter = Attribute::new(name, self.words, self.not)?;
                expression.filters.push(filter.ok_or_else(|| unknown(name))?);
                return Ok(());
            }
        };
        let starred = !self.quoted && self.words.ends_with('*');
        let term = Term {
            words: self.words.replace(['\0', '*'], " "),
            column,
            prefix: starred || (last && !self.quoted),
        };
        if !term.words.chars().any(char::is_alphanumeric) {
            // Nothing of it is in the index: it cannot narrow the search.
            return match self.name {
                Some(name) => Err(wrong(format!("{name}: is followed by a word; add it"))),
                None => Ok(()),
            };
        }
        match (self.not, or) {
            (true, true) => return Err(wrong("OR and - cannot be combined; search twice")),
            (true, false) => expression.none.push(term),
            (false, false) => expression.all.push(vec![term]),
            (false, true) => match expression.all.last_mut() {
                Some(terms) if terms.len() < MAX_TERMS => terms.push(term),
                _ => return Err(too_many()),
            },
        }
        Ok(())
    }
}

/// The name in front of a colon. What looks like an address or a time has none.
fn field_name(text: &str) -> Option<&str> {
    let (name, after) = text.split_once(':')?;
    let is_name =
        !name.is_empty() && name.len() <= 12 && name.bytes().all(|b| b.is_ascii_lowercase());
    (is_name && !after.starts_with("//")).then_some(name)
}

fn unknown(name: &str) -> Error {
    wrong(format!(
        "there is no filter {name}:; use caption, alt, name, tag, color, mood, model, missing, is, after, \
         before or confidence, or put the words into quotation marks"
    ))
}

fn too_many() -> Error {
    wrong(format!("a search may have {MAX_TERMS} words and filters; leave some out"))
}

fn wrong(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    debug_assert_eq!(Error::parameter("q", "").kind(), ErrorKind::InvalidParameter);
    Error::parameter("q", detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(expression: &Expression) -> Vec<Vec<&str>> {
        expression.all.iter().map(|any| any.iter().map(|t| t.words.as_str()).collect()).collect()
    }

    #[test]
    fn words_phrases_and_alternatives() {
        let found = parse("dog  \"on a beach\" cat OR mouse -bird", false).unwrap();
        assert_eq!(words(&found), [vec!["dog"], vec!["on a beach"], vec!["cat", "mouse"]]);
        assert_eq!(found.none[0].words, "bird");
        assert!(found.all.iter().flatten().all(|term| !term.prefix));
        let found = parse("dog bea", true).unwrap();
        assert_eq!((found.all[0][0].prefix, found.all[1][0].prefix), (false, true));
        assert!(!parse("dog ", true).unwrap().all[0][0].prefix);
        assert!(parse("do*", false).unwrap().all[0][0].prefix);
    }

    #[test]
    fn filters_and_columns() {
        let found = parse("alt:dog tag:\"Golden Retriever\" -mood:calm after:1970-01-02 is:unreviewed confidence:<0.4", false).unwrap();
        assert_eq!(found.all[0][0].column, Some(Column::Text(Field::AltText)));
        let label = |kind, value: &str, not| Attribute::Label { kind, value: value.into(), not };
        let expected = [
            label("tag", "golden retriever", false),
            label("mood", "calm", true),
            Attribute::After(86_400_000),
            label("is", "reviewed", true),
            Attribute::MaxConfidence(0.4),
        ];
        assert_eq!(found.filters, expected);
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, hint) in [
            ("\"dog", "quotation mark"),
            ("dog OR", "OR"),
            ("OR dog", "OR"),
            ("a OR OR b", "OR"),
            ("colr:red", "no filter colr"),
            ("tag:", "followed by a value"),
            ("missing:dog", "alt_text"),
            ("is:nice", "reviewed"),
            ("after:yesterday", "2026-11-27"),
            ("confidence:2", "0 to 1"),
            ("-after:2020", "is not a filter"),
            ("a OR tag:b", "filters"),
            ("a OR -b", "combined"),
            ("name:!!", "followed by a word"),
        ] {
            let error = parse(text, false).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidParameter);
            assert!(error.detail().contains(hint), "{text}: {error}");
        }
        assert!(parse(&"a ".repeat(65), false).is_err());
        assert!(parse(&"a".repeat(2001), false).is_err());
    }

    #[test]
    fn what_looks_like_syntax_but_is_none_is_searched_for() {
        for text in
            ["http://example.org", "10:30", "a-b", "(cat", "cat AND", "NOT cat", "- cat", "'"]
        {
            parse(text, false).expect(text);
        }
        assert_eq!(parse("!!! ?", false).unwrap(), Expression::default());
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in ".{0,80}", unfinished: bool) {
            if let Err(error) = parse(&text, unfinished) {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidParameter);
            }
        }
    }
}
