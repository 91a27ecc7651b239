//! Finds the byte ranges of the properties in an XMP file.

use std::ops::Range;

use quick_xml::NsReader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, NamespaceResolver, ResolveResult};

use super::encoding::Encoding;
use super::{MARK, PROPERTIES, RDF, not_xmp};
use cutline_error::Result;

/// The properties whose value is the name of a file, or an extension, and their namespaces. Camera Raw
/// and Lightroom write the first three, darktable the last.
const FILES: [(&str, &str); 4] = [
    ("SidecarForExtension", "http://ns.adobe.com/photoshop/1.0/"),
    ("RawFileName", "http://ns.adobe.com/camera-raw-settings/1.0/"),
    ("PreservedFileName", "http://ns.adobe.com/xap/1.0/mm/"),
    ("DerivedFrom", "http://ns.adobe.com/xap/1.0/mm/"),
];

/// An XML element and its byte ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// The name with its prefix.
    pub(super) name: String,
    /// From the start of its first tag to the end of its last.
    pub(super) whole: Range<usize>,
    /// Between its tags.
    pub(super) inner: Range<usize>,
    /// Whether it is a single tag, `<a/>`.
    pub(super) is_empty: bool,
}

/// A property of a file.
#[allow(clippy::large_enum_variant, reason = "a file has at most two of them")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Property {
    /// An attribute, an unusual form for these properties; the range of its value.
    Attribute(Range<usize>),
    /// An element.
    Element {
        whole: Element,
        /// `rdf:Alt`, the list of languages.
        alternative: Option<Element>,
        /// The text in the default language.
        default: Option<Element>,
        /// The text in the first language that is not empty.
        filled: Option<Element>,
        /// The text of a property that has qualifiers instead of languages.
        value: Option<Element>,
    },
}

/// Where a new property is added.
#[derive(Debug)]
pub(super) enum InsertionPoint {
    /// The first `rdf:Description`.
    Description(Element),
    /// There is no `rdf:Description`; a new one is added to this `rdf:RDF`.
    Rdf(Element),
}

/// The parts of a file that matter here.
#[derive(Debug)]
pub(super) struct Layout {
    /// The prefix of RDF in this file, with the colon.
    pub(super) prefix: String,
    pub(super) insertion_point: InsertionPoint,
    /// In the order of [`PROPERTIES`].
    pub(super) properties: [Option<Property>; 2],
    /// Of the files that it names, without the dot.
    pub(super) extensions: Vec<String>,
}

/// The role of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Rdf,
    Description,
    Property(usize),
    Alternative(usize),
    Item {
        default: bool,
    },
    /// `rdf:Description` in a property or an item, the long form of its qualifiers.
    Qualified,
    /// `rdf:value`, the text of a property or an item with qualifiers.
    Value,
    /// One of [`FILES`].
    File,
    Other,
}

/// An element whose end has not been read yet.
struct OpenElement {
    role: Role,
    name: String,
    /// The range of its start tag.
    tag: Range<usize>,
}

#[derive(Default)]
struct Finder {
    open: Vec<OpenElement>,
    rdf: Option<Element>,
    description: Option<Element>,
    properties: [Option<Property>; 2],
    /// Whether each of them has a text.
    has_text: [bool; 2],
    /// Parts of the property whose end has not been read yet.
    alternative: Option<Element>,
    default: Option<Element>,
    filled: Option<Element>,
    value: Option<Element>,
    extensions: Vec<String>,
}

/// Finds the properties in `xmp`.
///
/// # Errors
/// [`Io`](cutline_error::ErrorKind::Io): `xmp` is not well-formed XML, or contains no RDF.
pub(super) fn find(xmp: &str) -> Result<Layout> {
    // The reader skips a byte order mark and does not count it.
    let mark = if xmp.starts_with(MARK) { MARK.len_utf8() } else { 0 };
    let mut reader = NsReader::from_str(&xmp[mark..]);
    let mut search = Finder::default();
    loop {
        let start = position(&reader) + mark;
        let event = reader
            .read_event()
            .map_err(|e| not_xmp("its XML is not well-formed").with_source(e))?;
        let range = start..position(&reader) + mark;
        match event {
            Event::Start(tag) => search.start_element(xmp, &tag, reader.resolver(), range),
            Event::Empty(tag) => {
                search.start_element(xmp, &tag, reader.resolver(), range.clone());
                search.end_element(xmp, range.end..range.end, true);
            }
            Event::End(_) => search.end_element(xmp, range, false),
            Event::Decl(declaration) => {
                if let Some(Ok(name)) = declaration.encoding()
                    && !Encoding::may_be_declared(&name)
                {
                    return Err(not_xmp(&format!("it is in {name} rather than UTF-8")));
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !search.open.is_empty() {
        return Err(not_xmp("its XML is truncated"));
    }
    let rdf = search.rdf.ok_or_else(|| not_xmp("it contains no rdf:RDF"))?;
    let prefix = rdf.name.split_once(':').map_or(String::new(), |(prefix, _)| format!("{prefix}:"));
    let insertion_point =
        search.description.map_or(InsertionPoint::Rdf(rdf), InsertionPoint::Description);
    Ok(Layout {
        prefix,
        insertion_point,
        properties: search.properties,
        extensions: search.extensions,
    })
}

fn position(reader: &NsReader<&[u8]>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

fn is(namespace: &ResolveResult<'_>, wanted: &str) -> bool {
    *namespace == ResolveResult::Bound(Namespace(wanted))
}

/// The index of the property with this name, if it is one.
fn property(namespace: &ResolveResult<'_>, local: &str) -> Option<usize> {
    PROPERTIES.iter().position(|(name, wanted)| {
        name.split_once(':').is_some_and(|(_, name)| name == local) && is(namespace, wanted)
    })
}

/// The extension in the value of one of [`FILES`].
fn extension(local: &str, value: &str) -> Option<String> {
    let value = value.trim();
    let extension = match value.rsplit_once('.') {
        Some((_, extension)) => extension,
        None if local == FILES[0].0 => value,
        None => return None,
    };
    Some(extension.to_owned()).filter(|extension| !extension.is_empty())
}

fn names_file(namespace: &ResolveResult<'_>, local: &str) -> bool {
    FILES.iter().any(|(name, wanted)| *name == local && is(namespace, wanted))
}

impl Finder {
    fn start_element(
        &mut self,
        xmp: &str,
        tag: &BytesStart<'_>,
        names: &NamespaceResolver,
        range: Range<usize>,
    ) {
        let parent = self.open.last().map_or(Role::Other, |open| open.role);
        let (namespace, local) = names.resolve_element(tag.name());
        let local = local.into_inner();
        let rdf = is(&namespace, RDF);
        let role = match (parent, local) {
            (Role::Other, "RDF") if rdf => Role::Rdf,
            (Role::Rdf, "Description") if rdf => Role::Description,
            (Role::Description, _) if names_file(&namespace, local) => Role::File,
            (Role::Description, _) => {
                property(&namespace, local).map_or(Role::Other, Role::Property)
            }
            (Role::Property(_) | Role::Item { .. }, "Description") if rdf => Role::Qualified,
            (Role::Property(_) | Role::Item { .. } | Role::Qualified, "value") if rdf => {
                Role::Value
            }
            (Role::Property(property), "Alt") if rdf => Role::Alternative(property),
            (Role::Alternative(_), "li") if rdf => Role::Item { default: is_default(tag) },
            _ => Role::Other,
        };
        if role == Role::Description {
            self.attributes(xmp, tag, names);
        }
        self.open.push(OpenElement { role, name: tag.name().into_inner().to_owned(), tag: range });
    }

    /// Records properties that are attributes.
    fn attributes(&mut self, xmp: &str, tag: &BytesStart<'_>, names: &NamespaceResolver) {
        // The check for equal names takes quadratic time.
        for attribute in tag.attributes().with_checks(false).flatten() {
            let (namespace, local) = names.resolve_attribute(attribute.key);
            if names_file(&namespace, local.into_inner()) {
                let value = unescape(&attribute.value).unwrap_or_default();
                self.extensions.extend(extension(local.into_inner(), &value));
            }
            let Some(property) = property(&namespace, local.into_inner()) else { continue };
            // The value is borrowed from the text, so its address gives the range.
            let start = (attribute.value.as_ptr() as usize).wrapping_sub(xmp.as_ptr() as usize);
            let range = start..start.saturating_add(attribute.value.len());
            if xmp.get(range.clone()).is_some() {
                self.found(xmp, property, Property::Attribute(range));
            }
        }
    }

    /// Records a property: the first one, or the first that has a text.
    fn found(&mut self, xmp: &str, property: usize, found: Property) {
        // Asked once for each, so that many empty ones take linear time.
        let has_text = found.text(xmp).is_some();
        if self.properties[property].is_none() || (has_text && !self.has_text[property]) {
            self.properties[property] = Some(found);
            self.has_text[property] = has_text;
        }
    }

    fn end_element(&mut self, xmp: &str, end: Range<usize>, is_empty: bool) {
        // The reader rejects end tags without a start tag.
        let Some(OpenElement { role, name, tag }) = self.open.pop() else { return };
        let element = Element {
            name,
            whole: tag.start..end.end,
            inner: tag.end..end.start.max(tag.end),
            is_empty,
        };
        match role {
            Role::Rdf => {
                self.rdf.get_or_insert(element);
            }
            Role::Description => {
                self.description.get_or_insert(element);
            }
            Role::Property(property) => {
                let found = Property::Element {
                    whole: element,
                    alternative: self.alternative.take(),
                    default: self.default.take(),
                    filled: self.filled.take(),
                    value: self.value.take(),
                };
                self.found(xmp, property, found);
            }
            Role::Alternative(_) => {
                self.alternative.get_or_insert(element);
            }
            Role::Item { default } => {
                // The text of an item with qualifiers is in one of its elements.
                let element = self.value.take().unwrap_or(element);
                if self.filled.is_none() && element.text(xmp).is_some() {
                    self.filled = Some(element.clone());
                }
                if default {
                    self.default.get_or_insert(element);
                }
            }
            Role::Value => {
                self.value.get_or_insert(element);
            }
            Role::File => {
                let local = element.name.rsplit(':').next().unwrap_or_default();
                let value = element.text(xmp).unwrap_or_default();
                self.extensions.extend(extension(local, &value));
            }
            Role::Qualified | Role::Other => {}
        }
    }
}

fn is_default(tag: &BytesStart<'_>) -> bool {
    tag.attributes().with_checks(false).flatten().any(|attribute| {
        // Language tags know no case.
        attribute.key.into_inner() == "xml:lang"
            && unescape(&attribute.value)
                .is_ok_and(|language| language.trim().eq_ignore_ascii_case("x-default"))
    })
}
