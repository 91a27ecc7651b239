//! Where in the text of an XMP its properties are.

use std::ops::Range;

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, NamespaceResolver, ResolveResult};

use super::{PROPERTIES, RDF, no_xmp};
use cutline_error::Result;

/// An element and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// With its prefix.
    pub(super) name: String,
    /// From its tag to its end.
    pub(super) whole: Range<usize>,
    /// Between its tags.
    pub(super) inner: Range<usize>,
    /// Whether it is one tag.
    pub(super) is_empty: bool,
}

/// A property that is there.
#[allow(clippy::large_enum_variant)] // There are two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Property {
    /// As an attribute, which no program should write for these; the range of its value.
    Attribute(Range<usize>),
    Element {
        whole: Element,
        /// The languages.
        alternative: Option<Element>,
        /// The text in the default language.
        default: Option<Element>,
        /// The text in whatever language is first.
        first: Option<Element>,
    },
}

/// Where a new property goes.
#[derive(Debug)]
pub(super) enum Home {
    /// The first `rdf:Description`.
    Description(Element),
    /// There is none: a new one goes into this `rdf:RDF`.
    Rdf(Element),
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// That of RDF in this file, with its colon.
    pub(super) prefix: String,
    pub(super) home: Home,
    /// In the order of [`PROPERTIES`].
    pub(super) properties: [Option<Property>; 2],
}

/// What an element is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Rdf,
    Description,
    Property(usize),
    Alternative(usize),
    Item { property: usize, default: bool },
    Other,
}

/// An element that is open.
struct Open {
    role: Role,
    name: String,
    /// Where its tag begins and ends.
    tag: Range<usize>,
}

#[derive(Default)]
struct Search {
    open: Vec<Open>,
    rdf: Option<Element>,
    description: Option<Element>,
    properties: [Option<Property>; 2],
    /// The parts of the property that is open.
    alternative: Option<Element>,
    default: Option<Element>,
    first: Option<Element>,
}

/// Finds the properties in `xmp`.
///
/// # Errors
/// [`Io`](cutline_error::ErrorKind::Io): it is no XML, or has no RDF in it.
pub(super) fn find(xmp: &str) -> Result<Found> {
    // The reader would take the mark off and count without it.
    let mark = if xmp.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut reader = NsReader::from_str(&xmp[mark..]);
    let mut search = Search::default();
    loop {
        let start = position(&reader) + mark;
        let event = reader.read_event().map_err(|e| no_xmp("its XML is broken").with_source(e))?;
        let range = start..position(&reader) + mark;
        match event {
            Event::Start(tag) => search.enter(xmp, &tag, reader.resolver(), range),
            Event::Empty(tag) => {
                search.enter(xmp, &tag, reader.resolver(), range.clone());
                search.leave(range.end..range.end, true);
            }
            Event::End(_) => search.leave(range, false),
            Event::Eof => break,
            _ => {}
        }
    }
    if !search.open.is_empty() {
        return Err(no_xmp("its XML is cut off"));
    }
    let rdf = search.rdf.ok_or_else(|| no_xmp("there is no rdf:RDF in it"))?;
    let prefix = rdf.name.split_once(':').map_or(String::new(), |(prefix, _)| format!("{prefix}:"));
    let home = search.description.map_or(Home::Rdf(rdf), Home::Description);
    Ok(Found { prefix, home, properties: search.properties })
}

fn position(reader: &NsReader<&[u8]>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

fn is(namespace: &ResolveResult<'_>, wanted: &str) -> bool {
    *namespace == ResolveResult::Bound(Namespace(wanted))
}

/// Which of the properties has this name.
fn property(namespace: &ResolveResult<'_>, local: &str) -> Option<usize> {
    PROPERTIES.iter().position(|(name, wanted)| {
        name.split_once(':').is_some_and(|(_, name)| name == local) && is(namespace, wanted)
    })
}

impl Search {
    fn enter(
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
        self.open.push(Open { role, name: tag.name().into_inner().to_owned(), tag: range });
    }

    /// Properties as attributes.
    fn attributes(&mut self, xmp: &str, tag: &BytesStart<'_>, names: &NamespaceResolver) {
        for attribute in tag.attributes().flatten() {
            let (namespace, local) = names.resolve_attribute(attribute.key);
            let Some(property) = property(&namespace, local.into_inner()) else { continue };
            // Its value is a part of the text.
            let start = (attribute.value.as_ptr() as usize).wrapping_sub(xmp.as_ptr() as usize);
            let range = start..start.saturating_add(attribute.value.len());
            if xmp.get(range.clone()).is_some() {
                self.properties[property].get_or_insert(Property::Attribute(range));
            }
        }
    }

    fn leave(&mut self, end: Range<usize>, is_empty: bool) {
        // The reader refuses ends without a beginning.
        let Some(Open { role, name, tag }) = self.open.pop() else { return };
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
