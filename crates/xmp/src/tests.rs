use super::*;

fn texts(description: &str, alt_text: &str) -> Texts {
    Texts { description: Some(description.into()), alt_text: Some(alt_text.into()) }
}

/// A file like those of photo managers: other prefixes, two descriptions, comments, other properties,
/// other languages, padding.
const OTHER_PROGRAM: &str = "\u{feff}<?xpacket begin='\u{feff}' id='W5M0MpCehiHzreSzNTczkc9d'?>
<!-- mine -->
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Some &amp; Tool'>
<r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>
  <r:Description r:about='' xmlns:xmp='http://ns.adobe.com/xap/1.0/' xmp:Rating='4'
      xmlns:lr=\"http://ns.adobe.com/lightroom/1.0/\">
    <lr:hierarchicalSubject><r:Bag><r:li>Animals|Cat &lt;3</r:li></r:Bag></lr:hierarchicalSubject>
  </r:Description>
  <r:Description xmlns:d='http://purl.org/dc/elements/1.1/' r:about=''>
    <d:description><r:Alt>
      <r:li xml:lang='de'>Eine Katze</r:li>
      <r:li xml:lang='x-default'>my cat</r:li>
    </r:Alt></d:description>
    <other:description xmlns:other='urn:other'>untouched</other:description>
  </r:Description>
</r:RDF>
</x:xmpmeta>
          \n<?xpacket end='w'?>";

#[test]
fn a_new_file_has_both_texts_and_can_be_read() {
    let wanted = texts("a cat & a <dog>", "\"cats\"\u{1}");
    let xmp = merge(None, &wanted, Existing::Keep).unwrap();
    assert!(
        xmp.contains("<rdf:li xml:lang=\"x-default\">a cat &amp; a &lt;dog&gt;</rdf:li>"),
        "{xmp}"
    );
    assert!(xmp.contains("<Iptc4xmpCore:AltTextAccessibility xmlns:Iptc4xmpCore=\"http://iptc"));
    assert_eq!(read(&xmp).unwrap(), texts("a cat & a <dog>", "\"cats\""));
    assert_eq!(merge(Some(&xmp), &wanted, Existing::Keep).unwrap(), xmp);
    let other = merge(Some(&xmp), &texts("one", "two"), Existing::Replace).unwrap();
    assert_eq!(read(&other).unwrap(), texts("one", "two"));
    assert_eq!(
        read(&merge(None, &Texts::default(), Existing::Keep).unwrap()).unwrap(),
        Texts::default()
    );
}

#[test]
fn everything_else_in_a_file_stays_byte_for_byte() {
    let kept = merge(Some(OTHER_PROGRAM), &texts("a cat", "cat"), Existing::Keep).unwrap();
    let added = "\n   <Iptc4xmpCore:AltTextAccessibility \
                 xmlns:Iptc4xmpCore=\"http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/\">\
                 <r:Alt><r:li xml:lang=\"x-default\">cat</r:li></r:Alt>\
                 </Iptc4xmpCore:AltTextAccessibility>";
    assert!(kept.contains(added), "{kept}");
    assert_eq!(kept.replace(added, ""), OTHER_PROGRAM);
    assert_eq!(read(&kept).unwrap(), texts("my cat", "cat"));

    let replaced = merge(Some(OTHER_PROGRAM), &texts("a cat", "cat"), Existing::Replace).unwrap();
    assert_eq!(replaced, kept.replace(">my cat<", ">a cat<"));
    assert!(replaced.contains("Eine Katze"), "other languages stay");
}

#[test]
fn properties_are_filled_in_every_form() {
    let rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";
    let dc = "http://purl.org/dc/elements/1.1/";
    for inside in [
        String::new(),
        "<rdf:Description/>".into(),
        "<rdf:Description rdf:about=''></rdf:Description>".into(),
        format!("<rdf:Description xmlns:dc='{dc}'><dc:description/></rdf:Description>"),
        format!(
            "<rdf:Description xmlns:dc='{dc}'><dc:description></dc:description></rdf:Description>"
        ),
        format!(
            "<rdf:Description xmlns:dc='{dc}'><dc:description><rdf:Alt/></dc:description>\
             </rdf:Description>"
        ),
        format!(
            "<rdf:Description xmlns:dc='{dc}'><dc:description><rdf:Alt>\
             <rdf:li xml:lang=\"x-default\"/></rdf:Alt></dc:description></rdf:Description>"
        ),
        format!("<rdf:Description xmlns:dc='{dc}' dc:description=''/>"),
    ] {
        let xmp = format!("<rdf:RDF xmlns:rdf='{rdf}'>{inside}</rdf:RDF>");
        assert_eq!(read(&xmp).unwrap(), Texts::default(), "{xmp}");
        let merged = merge(Some(&xmp), &texts("a \"b\"", "c"), Existing::Keep).unwrap();
        assert_eq!(read(&merged).unwrap(), texts("a \"b\"", "c"), "{merged}");
    }
    // A text without languages, an attribute, and a text in another language.
    for inside in [
        format!(
            "<rdf:Description xmlns:dc='{dc}'><dc:description>old</dc:description></rdf:Description>"
        ),
        format!("<rdf:Description dc:description=\"old\" xmlns:dc='{dc}'/>"),
        format!(
            "<rdf:Description xmlns:dc='{dc}'><dc:description><rdf:Alt><rdf:li xml:lang='en'>old\
             </rdf:li></rdf:Alt></dc:description></rdf:Description>"
        ),
    ] {
        let xmp = format!("<rdf:RDF xmlns:rdf='{rdf}'>{inside}</rdf:RDF>");
        let kept = merge(Some(&xmp), &texts("new", "c"), Existing::Keep).unwrap();
        assert_eq!(read(&kept).unwrap(), texts("old", "c"), "{kept}");
        let replaced = merge(Some(&xmp), &texts("new", "c"), Existing::Replace).unwrap();
        assert_eq!(read(&replaced).unwrap(), texts("new", "c"), "{replaced}");
    }
}

#[test]
fn invalid_files_are_rejected() {
    for text in ["notes", "<a/>", "<a><b></a>", "<rdf:RDF xmlns:rdf='urn:x'/>", "<a>", "{\"a\": 1}"]
    {
        let error = read(text).unwrap_err();
        assert!(error.detail().starts_with("is not valid XMP"), "{text}: {error}");
        assert!(merge(Some(text), &texts("a", "b"), Existing::Replace).is_err());
    }
}
