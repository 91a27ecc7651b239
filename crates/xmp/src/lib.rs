//! What an XMP sidecar says of a photo, and putting it there.
//!
//! The text of a file is searched with an XML reader that knows namespaces, and only the ranges of
//! bytes that change are replaced: whatever else a program keeps in the file, its comments, spaces
//! and prefixes stay as they are.

mod find;

use std::ops::Range;

use quick_xml::escape::partial_escape;

use self::find::{Element, Found, Home, Property, find};
use cutline_error::{Error, ErrorKind, Result};

const RDF: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";

/// Two properties of a photo, each with its name and its namespace.
const PROPERTIES: [(&str, &str); 2] = [
    ("dc:description", "http://purl.org/dc/elements/1.1/"),
    ("Iptc4xmpCore:AltTextAccessibility", "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"),
];

const EMPTY: &str = "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
    <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n \
    <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n  \
    <rdf:Description rdf:about=\"\"/>\n \
    </rdf:RDF>\n\
    </x:xmpmeta>\n\
    <?xpacket end=\"w\"?>\n";

/// The texts for people that are read and written here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// `dc:description`.
    pub description: Option<String>,
    /// `Iptc4xmpCore:AltTextAccessibility`.
    pub alt_text: Option<String>,
}

/// What becomes of a text that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// It is replaced, in the default language; those in others stay.
    Replace,
}

/// The texts in the file with the content `xmp`, in the default language where there is one.
///
/// # Errors
/// [`Io`](ErrorKind::Io): it is no XMP.
pub fn read(xmp: &str) -> Result<Texts> {
    let found = find(xmp)?;
    let [description, alt_text] =
        found.properties.map(|property| property.and_then(|property| property.text(xmp)));
    Ok(Texts { description, alt_text })
}

/// `xmp`, or a new file where there is none, with `texts` in it.
///
/// # Errors
/// As [`read`].
pub fn merge(xmp: Option<&str>, texts: &Texts, existing: Existing) -> Result<String> {
    let xmp = xmp.filter(|xmp| !xmp.trim().is_empty()).unwrap_or(EMPTY);
    let found = find(xmp)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut fresh = String::new();
    let wanted = [&texts.description, &texts.alt_text];
    for ((property, text), (name, namespace)) in found.properties.iter().zip(wanted).zip(PROPERTIES)
    {
        let Some(text) = text.as_deref().map(escaped) else { continue };
        match property {
            None => {
                fresh += &format!(
                    "\n   <{name} xmlns:{}=\"{namespace}\">{}</{name}>",
                    name.split(':').next().unwrap_or_default(),
                    alternative(&found.prefix, &text)
                )
            }
            Some(there) if existing == Existing::Keep && there.text(xmp).is_some() => {}
            Some(there) => edits.push(there.replaced(&found.prefix, &text)),
        }
    }
    if !fresh.is_empty() {
        edits.push(added(&found, xmp, &fresh));
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut merged = xmp.to_owned();
    for (range, text) in edits.into_iter().rev() {
        merged.replace_range(range, &text);
    }
    // Nobody's file is replaced by one that says something else.
    let after = read(&merged)?;
    let there = |now: Option<String>, asked: &Option<String>| asked.is_none() || now.is_some();
    if there(after.description, &texts.description) && there(after.alt_text, &texts.alt_text) {
        return Ok(merged);
    }
    Err(Error::internal("an XMP was not merged as it should be"))
}

/// A text by language, with the default one.
fn alternative(rdf: &str, text: &str) -> String {
    format!("<{rdf}Alt>{}</{rdf}Alt>", item(rdf, text))
}

fn item(rdf: &str, text: &str) -> String {
    format!("<{rdf}li xml:lang=\"x-default\">{text}</{rdf}li>")
}

/// The edit that puts the properties `fresh` where properties are.
fn added(found: &Found, xmp: &str, fresh: &str) -> (Range<usize>, String) {
    match &found.home {
        Home::Description(description) => description.with_more(xmp, &format!("{fresh}\n  ")),
        Home::Rdf(rdf) => {
            let prefix = &found.prefix;
            let inside = format!(
                "\n  <{prefix}Description {prefix}about=\"\">{fresh}\n  </{prefix}Description>\n "
            );
            rdf.with_more(xmp, &inside)
        }
    }
}

impl Property {
    /// The text in the default language, or else in the first; `None` if it is empty.
    fn text(&self, xmp: &str) -> Option<String> {
        let range = match self {
            Self::Attribute(value) => value.clone(),
            Self::Element { whole, alternative: None, .. } => whole.inside()?,
            Self::Element { default, first, .. } => {
                default.as_ref().or(first.as_ref())?.inside()?
            }
        };
        let text = xmp[range].trim();
        let text =
            quick_xml::escape::unescape(text).map_or_else(|_| text.into(), |t| t.into_owned());
        Some(text).filter(|text| !text.is_empty())
    }

    /// The edit that makes `text` its text in the default language.
    fn replaced(&self, rdf: &str, text: &str) -> (Range<usize>, String) {
        match self {
            Self::Attribute(value) => {
                (value.clone(), text.replace('"', "&quot;").replace('\'', "&apos;"))
            }
            Self::Element { default: Some(item), .. } => item.with(text),
            Self::Element { alternative: Some(all), .. } => all.with_first(&item(rdf, text)),
            Self::Element { whole, .. } => whole.with(&alternative(rdf, text)),
        }
    }
}

impl Element {
    fn inside(&self) -> Option<Range<usize>> {
        (!self.is_empty).then(|| self.inner.clone())
    }

    /// The edit that makes `content` all that is in it.
    fn with(&self, content: &str) -> (Range<usize>, String) {
        if self.is_empty { self.opened(content) } else { (self.inner.clone(), content.into()) }
    }

    /// The edit that puts `content` before all that is in it.
    fn with_first(&self, content: &str) -> (Range<usize>, String) {
        let start = self.inner.start;
        if self.is_empty { self.opened(content) } else { (start..start, content.into()) }
    }

    /// The edit that puts `content` behind all that is in it, before the space that ends it.
    fn with_more(&self, xmp: &str, content: &str) -> (Range<usize>, String) {
        if self.is_empty {
            return self.opened(content);
        }
        let end = self.inner.start + xmp[self.inner.clone()].trim_end().len();
        // The line of the end tag is as it was.
        let content = if end < self.inner.end { content.trim_end() } else { content };
        (end..end, content.into())
    }

    /// `<a b="c"/>` becomes `<a b="c">content</a>`. The tag may change in other places too.
    fn opened(&self, content: &str) -> (Range<usize>, String) {
        let end = self.whole.end;
        (end - "/>".len()..end, format!(">{content}</{}>", self.name))
    }
}

/// For XML, which has no way to write control characters.
fn escaped(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    partial_escape(text.as_str()).into_owned()
}

fn no_xmp(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("is no XMP ({what}); correct it or move it away"))
}

#[cfg(test)]
mod tests;
