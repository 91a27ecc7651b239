//! Reads and writes the description and the alternative text of a photo in an XMP sidecar.
//!
//! A namespace-aware XML reader finds the properties, and only the bytes that change are replaced.
//! Everything else in the file, including comments, whitespace, prefixes and the encoding, stays as it
//! is.
//!
//! ```
//! use cutline_xmp::{Existing, Texts, merge, read};
//!
//! let texts = Texts { description: Some("a cat on a sofa".into()), alt_text: None };
//! let xmp = merge(None, &texts, Existing::Keep)?;
//! assert_eq!(read(&xmp)?, texts);
//!
//! // A text that exists already is kept unless it is to be replaced.
//! let other = Texts { description: Some("a dog".into()), alt_text: Some("a pet".into()) };
//! let merged = read(&merge(Some(&xmp), &other, Existing::Keep)?)?;
//! assert_eq!(merged.description.as_deref(), Some("a cat on a sofa"));
//! assert_eq!(merged.alt_text.as_deref(), Some("a pet"));
//! # Ok::<(), cutline_error::Error>(())
//! ```

mod encoding;
mod find;
mod keywords;

use std::ops::Range;

use quick_xml::Reader;
use quick_xml::escape::{partial_escape, resolve_predefined_entity, unescape};
use quick_xml::events::Event;

use self::encoding::Encoding;
use self::find::{Element, InsertionPoint, Layout, Property, find};
pub use self::keywords::keywords;
use cutline_error::{Error, ErrorKind, Result};

const RDF: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";

/// The names and namespaces of the two properties.
const PROPERTIES: [(&str, &str); 2] = [
    ("dc:description", "http://purl.org/dc/elements/1.1/"),
    ("Iptc4xmpCore:AltTextAccessibility", "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"),
];

/// The mark of a file in UTF-8.
const MARK: char = '\u{feff}';

/// A file without properties.
const EMPTY: &str = "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
    <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n \
    <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n  \
    <rdf:Description rdf:about=\"\"/>\n \
    </rdf:RDF>\n\
    </x:xmpmeta>\n\
    <?xpacket end=\"w\"?>\n";

/// The texts of a photo. [`merge`] takes a text for `None` if nothing but whitespace is left of it
/// without the characters that XML cannot express: [`read`] would not find it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// `dc:description`.
    pub description: Option<String>,
    /// `Iptc4xmpCore:AltTextAccessibility`.
    pub alt_text: Option<String>,
}

/// What happens to a text that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// It is replaced in the default language; other languages stay.
    Replace,
}

/// The texts in `xmp`, the content of a file; in the default language or else in the first.
///
/// # Errors
/// [`Io`](ErrorKind::Io): `xmp` is not valid XMP.
pub fn read(xmp: &str) -> Result<Texts> {
    let found = find(xmp)?;
    let [description, alt_text] =
        found.properties.map(|property| property.and_then(|property| property.text(xmp)));
    Ok(Texts { description, alt_text })
}

/// As [`read`], for the bytes of a file in UTF-8, UTF-16 or UTF-32.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(xmp: &[u8]) -> Result<Texts> {
    read(&Encoding::decode(xmp)?.0)
}

/// The extensions of the files that a sidecar names as its own, without the dot: usually none, or that
/// of the raw file whose settings it holds.
///
/// # Errors
/// As [`read_bytes`].
pub fn extensions(xmp: &[u8]) -> Result<Vec<String>> {
    find(&Encoding::decode(xmp)?.0).map(|found| found.extensions)
}

/// As [`merge`], for the bytes of a file in UTF-8, UTF-16 or UTF-32. The encoding stays.
///
/// # Errors
/// As [`merge`].
pub fn merge_bytes(xmp: Option<&[u8]>, texts: &Texts, existing: Existing) -> Result<Vec<u8>> {
    let (xmp, encoding) = xmp.map_or(Ok((String::new(), Encoding::Utf8)), Encoding::decode)?;
    Ok(encoding.encode(&merge(Some(&xmp), texts, existing)?))
}

/// Adds `texts` to `xmp`, the content of a file, or to a new file if it is `None` or empty. A blank text
/// replaces nothing; see [`Texts`].
///
/// # Errors
/// [`Io`](ErrorKind::Io): `xmp` is not valid XMP.
pub fn merge(xmp: Option<&str>, texts: &Texts, existing: Existing) -> Result<String> {
    let xmp = xmp.filter(|xmp| !xmp.trim().is_empty()).unwrap_or(EMPTY);
    let found = find(xmp)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut new = String::new();
    let wanted = [&texts.description, &texts.alt_text]
        .map(|text| text.as_deref().map(escaped).filter(|text| !text.trim().is_empty()));
    for ((property, text), (name, namespace)) in
        found.properties.iter().zip(&wanted).zip(PROPERTIES)
    {
        let Some(text) = text else { continue };
        match property {
            None => {
                new += &format!(
                    "\n   <{name} xmlns:{}=\"{namespace}\">{}</{name}>",
                    name.split(':').next().unwrap_or_default(),
                    alternative(&found.prefix, text)
                )
            }
            Some(old) if existing == Existing::Keep && old.text(xmp).is_some() => {}
            Some(old) => edits.push(old.replaced(&found.prefix, text)),
        }
    }
    if !new.is_empty() {
        edits.push(added(&found, xmp, &new));
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut merged = xmp.to_owned();
    for (range, text) in edits.into_iter().rev() {
        merged.replace_range(range, &text);
    }
    // The caller overwrites the file of another program, so the result is checked.
    let after = read(&merged)?;
    let after = [after.description, after.alt_text];
    if wanted.iter().zip(&after).all(|(wanted, after)| wanted.is_none() || after.is_some()) {
        return Ok(merged);
    }
    Err(Error::internal("a merged XMP file lacks a text that was added to it"))
}

/// A language alternative with a text in the default language.
fn alternative(rdf: &str, text: &str) -> String {
    format!("<{rdf}Alt>{}</{rdf}Alt>", item(rdf, text))
}

fn item(rdf: &str, text: &str) -> String {
    format!("<{rdf}li xml:lang=\"x-default\">{text}</{rdf}li>")
}

/// The edit that adds the properties `new`.
fn added(found: &Layout, xmp: &str, new: &str) -> (Range<usize>, String) {
    match &found.insertion_point {
        InsertionPoint::Description(description) => description.append(xmp, &format!("{new}\n  ")),
        InsertionPoint::Rdf(rdf) => {
            let prefix = &found.prefix;
            let description = format!(
                "\n  <{prefix}Description {prefix}about=\"\">{new}\n  </{prefix}Description>\n "
            );
            rdf.append(xmp, &description)
        }
    }
}

impl Property {
    /// The text in the default language, or else in the first that has one; `None` if all are empty.
    fn text(&self, xmp: &str) -> Option<String> {
        match self {
            Self::Attribute(value) => {
                let value = &xmp[value.clone()];
                trimmed(&unescape(value).unwrap_or(value.into()))
            }
            Self::Element { whole, alternative: None, value, .. } => {
                value.as_ref().unwrap_or(whole).text(xmp)
            }
            Self::Element { default, filled, .. } => default
                .as_ref()
                .and_then(|item| item.text(xmp))
                .or_else(|| filled.as_ref()?.text(xmp)),
        }
    }

    /// The edit that replaces its text in the default language.
    fn replaced(&self, rdf: &str, text: &str) -> (Range<usize>, String) {
        match self {
            Self::Attribute(value) => {
                (value.clone(), text.replace('"', "&quot;").replace('\'', "&apos;"))
            }
            Self::Element { default: Some(item), .. } => item.replace_content(text),
            Self::Element { alternative: Some(all), .. } => all.prepend(&item(rdf, text)),
            Self::Element { value: Some(value), .. } => value.replace_content(text),
            Self::Element { whole, .. } => whole.replace_content(&alternative(rdf, text)),
        }
    }
}

impl Element {
    /// The characters in it, without comments and the tags of other elements.
    fn text(&self, xmp: &str) -> Option<String> {
        let markup = &xmp[self.inside()?];
        let mut reader = Reader::from_str(markup);
        // The reader takes this character for the mark of a file.
        let mut text = if markup.starts_with(MARK) { MARK.to_string() } else { String::new() };
        loop {
            match reader.read_event() {
                Ok(Event::Text(part)) => text += &part.xml10_content(),
                Ok(Event::CData(part)) => text += &part.xml10_content(),
                Ok(Event::GeneralRef(entity)) => match entity.resolve_char_ref() {
                    Ok(Some(character)) => text.push(character),
                    // Entities of a document type are not resolved.
                    _ => match resolve_predefined_entity(&entity.xml10_content()) {
                        Some(character) => text += character,
                        None => return trimmed(markup),
                    },
                },
                Ok(Event::Eof) => return trimmed(&text),
                Ok(_) => {}
                Err(_) => return trimmed(markup),
            }
        }
    }

    fn inside(&self) -> Option<Range<usize>> {
        (!self.is_empty).then(|| self.inner.clone())
    }

    /// The edit that replaces its content.
    fn replace_content(&self, content: &str) -> (Range<usize>, String) {
        if self.is_empty { self.opened(content) } else { (self.inner.clone(), content.into()) }
    }

    /// The edit that adds `content` before its content.
    fn prepend(&self, content: &str) -> (Range<usize>, String) {
        let start = self.inner.start;
        if self.is_empty { self.opened(content) } else { (start..start, content.into()) }
    }

    /// The edit that adds `content` after its content, before trailing whitespace.
    fn append(&self, xmp: &str, content: &str) -> (Range<usize>, String) {
        if self.is_empty {
            return self.opened(content);
        }
        let end = self.inner.start + xmp[self.inner.clone()].trim_end().len();
        // The whitespace before the end tag is still there.
        let content = if end < self.inner.end { content.trim_end() } else { content };
        (end..end, content.into())
    }

    /// The edit from `<a b="c"/>` to `<a b="c">content</a>`. Other edits may change attributes of the
    /// tag, so this one covers only its end.
    fn opened(&self, content: &str) -> (Range<usize>, String) {
        let end = self.whole.end;
        (end - "/>".len()..end, format!(">{content}</{}>", self.name))
    }
}

fn trimmed(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Escapes a text for XML and removes characters that XML cannot express.
fn escaped(text: &str) -> String {
    let allowed = |c: &char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let text: String = text.chars().filter(allowed).collect();
    partial_escape(text.as_str()).into_owned()
}

/// The message continues the name of a file.
fn not_xmp(reason: &str) -> Error {
    Error::new(ErrorKind::Io, format!("is not valid XMP ({reason}); correct it or move it away"))
}

#[cfg(test)]
mod tests;
