//! Finds the byte ranges of the properties in an XMP file.

use std::ops::Range;

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, NamespaceResolver, ResolveResult};

use super::{PROPERTIES, RDF, not_xmp};
use cutline_error::Result;

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
        /// The text in the first language.
        first: Option<Element>,
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
}

/// The role of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Rdf,
    Description,
    Property(usize),
    Alternative(usize),
    Item { property: usize, default: bool },
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
    /// Parts of the property whose end has not been read yet.
    alternative: Option<Element>,
    default: Option<Element>,
    first: Option<Element>,
}

/// Finds the properties in `xmp`.
///
/// # Errors
/// [`Io`](cutline_error::ErrorKind::Io): `xmp` is not well-formed XML, or contains no RDF.
pub(super) fn find(xmp: &str) -> Result<Layout> {
    // The reader skips a byte order mark and does not count it.
    let mark = if xmp.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
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
                search.end_element(range.end..range.end, true);
            }
            Event::End(_) => search.end_element(range, false),
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
    Ok(Layout { prefix, insertion_point, properties: search.properties })
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
            (Role::Description, _) => {
                property(&namespace, local).map_or(Role::Other, Role::Property)
            }
            (Role::Property(property), "Alt") if rdf => Role::Alternative(property),
            (Role::Alternative(property), "li") if rdf => {
                Role::Item { property, default: is_default(tag) }
            }
            _ => Role::Other,
        };
        if role == Role::Description {
            self.attributes(xmp, tag, names);
        }
        self.open.push(OpenElement { role, name: tag.name().into_inner().to_owned(), tag: range });
    }

    /// Records properties that are attributes.
    fn attributes(&mut self, xmp: &str, tag: &BytesStart<'_>, names: &NamespaceResolver) {
        for attribute in tag.attributes().flatten() {
            let (namespace, local) = names.resolve_attribute(attribute.key);
            let Some(property) = property(&namespace, local.into_inner()) else { continue };
            // The value is borrowed from the text, so its address gives the range.
            let start = (attribute.value.as_ptr() as usize).wrapping_sub(xmp.as_ptr() as usize);
            let range = start..start.saturating_add(attribute.value.len());
            if xmp.get(range.clone()).is_some() {
                self.properties[property].get_or_insert(Property::Attribute(range));
            }
        }
    }

    fn end_element(&mut self, end: Range<usize>, is_empty: bool) {
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
                    first: self.first.take(),
                };
                self.properties[property].get_or_insert(found);
            }
            Role::Alternative(_) => {
                self.alternative.get_or_insert(element);
            }
            Role::Item { default, .. } => {
                if default {
                    self.default.get_or_insert(element.clone());
                }
                self.first.get_or_insert(element);
            }
            Role::Other => {}
        }
    }
}

fn is_default(tag: &BytesStart<'_>) -> bool {
    tag.attributes().flatten().any(|attribute| {
        attribute.key.into_inner() == "xml:lang" && &*attribute.value == "x-default"
    })
}
