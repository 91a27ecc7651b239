//! Reads keywords.

use quick_xml::NsReader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};

use super::encoding::Encoding;
use super::{MARK, RDF, not_xmp};
use cutline_error::Result;

/// The lists of keywords, and what stands between the levels of a hierarchy in them.
const LISTS: [(&str, &str, Option<char>); 4] = [
    ("subject", "http://purl.org/dc/elements/1.1/", None),
    ("hierarchicalSubject", "http://ns.adobe.com/lightroom/1.0/", Some('|')),
    ("TagsList", "http://www.digikam.org/ns/1.0/", Some('/')),
    ("LastKeywordXMP", "http://ns.microsoft.com/photo/1.0/", Some('/')),
];

/// The keywords in the bytes of a file: those of `dc:subject`, and the last level of those in the
/// hierarchies of Lightroom, digiKam and Windows. None comes twice, whatever its case.
///
/// # Errors
/// [`Io`](cutline_error::ErrorKind::Io): the file is not well-formed XML.
pub fn keywords(xmp: &[u8]) -> Result<Vec<String>> {
    let (text, _) = Encoding::decode(xmp)?;
    let mut reader = NsReader::from_str(text.trim_start_matches(MARK));
    let mut found = Found::default();
    let mut depth = 0_usize;
    // The list that is being read, with its depth; and the text of its item.
    let mut list: Option<(Option<char>, usize)> = None;
    let mut item: Option<String> = None;
    loop {
        let event = reader
            .read_event()
            .map_err(|e| not_xmp("its XML is not well-formed").with_source(e))?;
        match event {
            Event::Start(tag) => {
                depth += 1;
                let (namespace, local) = reader.resolver().resolve_element(tag.name());
                let is = |wanted: &str| namespace == ResolveResult::Bound(Namespace(wanted));
                let local = local.into_inner();
                if list.is_none() {
                    let known = LISTS.iter().find(|(name, wanted, _)| *name == local && is(wanted));
                    list = known.map(|(_, _, separator)| (*separator, depth));
                } else if local == "li" && is(RDF) {
                    item = Some(String::new());
                }
            }
            Event::End(_) => {
                if let (Some(keyword), Some((separator, _))) = (item.take(), list) {
                    found.add(&keyword, separator);
                }
                if list.is_some_and(|(_, of)| of == depth) {
                    list = None;
                }
                depth = depth.saturating_sub(1);
            }
            Event::Eof => return Ok(found.keywords),
            Event::Text(part) => push(&mut item, &part.xml10_content()),
            Event::CData(part) => push(&mut item, &part.xml10_content()),
            Event::GeneralRef(entity) => match entity.resolve_char_ref() {
                Ok(Some(character)) => push(&mut item, character.encode_utf8(&mut [0; 4])),
                _ => {
                    let name = entity.xml10_content();
                    push(&mut item, resolve_predefined_entity(&name).unwrap_or_default());
                }
            },
            _ => {}
        }
    }
}

fn push(item: &mut Option<String>, text: &str) {
    if let Some(item) = item {
        item.push_str(text);
    }
}

#[derive(Default)]
struct Found {
    keywords: Vec<String>,
    seen: std::collections::HashSet<String>,
}

impl Found {
    fn add(&mut self, keyword: &str, separator: Option<char>) {
        let last = match separator {
            Some(separator) => keyword.rsplit(separator).next().unwrap_or_default(),
            None => keyword,
        };
        let last = last.trim();
        if !last.is_empty() && self.seen.insert(last.to_lowercase()) {
            self.keywords.push(last.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_of_several_programs_are_one_list() {
        let xmp = r#"<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
            xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
            xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
            xmlns:digiKam="http://www.digikam.org/ns/1.0/">
            <d:title><rdf:Alt><rdf:li>not a keyword</rdf:li></rdf:Alt></d:title>
            <d:subject><rdf:Bag><rdf:li>dog</rdf:li><rdf:li>salt &amp; pepper</rdf:li><rdf:li/>
            </rdf:Bag></d:subject>
            <lr:hierarchicalSubject><rdf:Bag><rdf:li>animal|Dog</rdf:li><rdf:li>animal|cat</rdf:li>
            </rdf:Bag></lr:hierarchicalSubject>
            <digiKam:TagsList><rdf:Seq><rdf:li>Places/Rome</rdf:li></rdf:Seq></digiKam:TagsList>
            </rdf:Description></rdf:RDF></x:xmpmeta>"#;
        assert_eq!(keywords(xmp.as_bytes()).unwrap(), ["dog", "salt & pepper", "cat", "Rome"]);
        assert!(keywords(b"<a><b>").is_err() || keywords(b"<a><b>").unwrap().is_empty());
        assert!(keywords(b"<a></b>").is_err());
    }
}
