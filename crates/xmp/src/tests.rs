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
fn a_text_may_begin_with_the_mark_of_a_file() {
    let wanted = texts("\u{feff}a cat", "\u{feff}a pet");
    let merged = merge(None, &wanted, Existing::Keep).unwrap();
    assert_eq!(read(&merged).unwrap(), wanted, "{merged}");
}

#[test]
fn a_blank_text_counts_as_none() {
    let twice = described(
        "<dc:description>one</dc:description><dc:description>two</dc:description>\
         <i:AltTextAccessibility xmlns:i='http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/'>three\
         </i:AltTextAccessibility>",
    );
    for blank in ["", " ", "\u{2003}\t", "\u{1}\u{fffe}", "\u{7f} \n"] {
        let wanted = texts(blank, blank);
        for existing in [Existing::Keep, Existing::Replace] {
            for file in [&twice, &described(""), &described("<dc:description/>"), EMPTY] {
                assert_eq!(merge(Some(file), &wanted, existing).unwrap(), *file, "{blank:?}");
            }
            assert_eq!(merge(None, &wanted, existing).unwrap(), EMPTY, "{blank:?}");
        }
        let one = merge(Some(&twice), &texts("a cat", blank), Existing::Replace).unwrap();
        assert_eq!(read(&one).unwrap(), texts("a cat", "three"), "{blank:?}");
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

fn encoded(text: &str) -> [Vec<u8>; 4] {
    [
        text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(),
        text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
    ]
}

#[test]
fn the_encoding_of_a_file_is_recognised_and_kept() {
    let bare = "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'></rdf:RDF>";
    let declared = format!("\u{feff}<?xml version=\"1.0\" encoding=\"UTF-16\"?>{bare}");
    for xmp in [OTHER_PROGRAM, bare, &declared] {
        let wanted = texts("a cät \u{1f431}", "a pet");
        let merged = merge(Some(xmp), &wanted, Existing::Replace).unwrap();
        for (before, after) in encoded(xmp).iter().zip(encoded(&merged)) {
            assert_eq!(merge_bytes(Some(before), &wanted, Existing::Replace).unwrap(), after);
            assert_eq!(read_bytes(&after).unwrap(), wanted);
            let cut = read_bytes(&after[..after.len() - 1]).unwrap_err();
            assert!(cut.detail().starts_with("is not valid XMP"), "{cut}");
        }
        assert_eq!(read_bytes(merged.as_bytes()).unwrap(), wanted);
    }
    assert!(read_bytes(b"\xff\xfe\x00\xd8").is_err(), "half a surrogate pair");
    assert!(read_bytes(b"\xff\xfe\0\0\0\0\x11\0").is_err(), "no character");
    let latin = "<?xml version='1.0' encoding='ISO-8859-1'?><a/>";
    assert!(read(latin).unwrap_err().detail().contains("ISO-8859-1"));
    let new = merge_bytes(None, &texts("a", "b"), Existing::Keep).unwrap();
    assert_eq!(new, merge(None, &texts("a", "b"), Existing::Keep).unwrap().as_bytes());
}

/// A file whose description is `inside`.
fn described(inside: &str) -> String {
    format!(
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description \
         xmlns:dc='http://purl.org/dc/elements/1.1/' xmlns:q='urn:q'>{inside}</rdf:Description></rdf:RDF>"
    )
}

#[test]
fn language_tags_know_no_case() {
    for tag in ["X-Default", "X-DEFAULT", "x-defaul&#116;"] {
        let xmp = described(&format!(
            "<dc:description><rdf:Alt><rdf:li xml:lang='de'>meine</rdf:li>\
             <rdf:li xml:lang='{tag}'>mine</rdf:li></rdf:Alt></dc:description>"
        ));
        assert_eq!(read(&xmp).unwrap().description.as_deref(), Some("mine"));
        let kept = merge(Some(&xmp), &texts("a cat", "cat"), Existing::Keep).unwrap();
        assert_eq!(read(&kept).unwrap(), texts("mine", "cat"));
        let replaced = merge(Some(&xmp), &texts("a cat", "cat"), Existing::Replace).unwrap();
        assert_eq!(replaced, kept.replace(">mine<", ">a cat<"), "no second item");
    }
}

#[test]
fn texts_are_read_in_every_form_of_xml() {
    let alternative =
        |item: &str| format!("<dc:description><rdf:Alt>{item}</rdf:Alt></dc:description>");
    for (inside, text) in [
        (alternative("<rdf:li xml:lang='x-default'><![CDATA[a <cat>]]></rdf:li>"), "a <cat>"),
        (
            alternative("<rdf:li xml:lang='x-default'>a <!-- big -->cat &amp; a d&#111;g</rdf:li>"),
            "a cat & a dog",
        ),
        (
            alternative("<rdf:li xml:lang='x-default'/><rdf:li xml:lang='de'>Katze</rdf:li>"),
            "Katze",
        ),
        (
            alternative(
                "<rdf:li xml:lang='x-default' rdf:parseType='Resource'><q:by>me</q:by>\
                 <rdf:value>a cat</rdf:value></rdf:li>",
            ),
            "a cat",
        ),
        (
            alternative(
                "<rdf:li xml:lang='x-default'><rdf:Description><rdf:value>a cat</rdf:value>\
                 <q:by>me</q:by></rdf:Description></rdf:li>",
            ),
            "a cat",
        ),
        (
            "<dc:description rdf:parseType='Resource'><rdf:value>a cat</rdf:value><q:by>me</q:by>\
             </dc:description>"
                .to_owned(),
            "a cat",
        ),
    ] {
        let xmp = described(&inside);
        assert_eq!(read(&xmp).unwrap().description.as_deref(), Some(text), "{xmp}");
        let kept = merge(Some(&xmp), &texts("new", "alt"), Existing::Keep).unwrap();
        assert_eq!(read(&kept).unwrap(), texts(text, "alt"), "{kept}");
        let replaced = merge(Some(&xmp), &texts("new", "alt"), Existing::Replace).unwrap();
        assert_eq!(read(&replaced).unwrap(), texts("new", "alt"), "{replaced}");
        assert_eq!(replaced.contains("<q:by>me</q:by>"), xmp.contains("q:by"), "{replaced}");
    }
}

/// An empty property does not hide one with a text.
#[test]
fn a_text_is_found_behind_an_empty_property() {
    let xmp = described(
        "<dc:description/><dc:description><rdf:Alt><rdf:li xml:lang='x-default'>mine</rdf:li>\
         </rdf:Alt></dc:description>",
    );
    let kept = merge(Some(&xmp), &texts("a cat", "cat"), Existing::Keep).unwrap();
    assert_eq!(read(&kept).unwrap(), texts("mine", "cat"));
    assert!(!kept.contains("a cat"));
}

#[test]
fn files_that_a_sidecar_names_are_found() {
    let photoshop = "xmlns:p='http://ns.adobe.com/photoshop/1.0/'";
    let media = "xmlns:m='http://ns.adobe.com/xap/1.0/mm/'";
    for (inside, wanted) in [
        (format!("<rdf:Description {photoshop} p:SidecarForExtension='NEF'/>"), &["NEF"][..]),
        (
            format!(
                "<rdf:Description {photoshop}><p:SidecarForExtension>CR2</p:SidecarForExtension>\
                 </rdf:Description>"
            ),
            &["CR2"],
        ),
        (format!("<rdf:Description {media} m:PreservedFileName='DSC 1.nef'/>"), &["nef"]),
        (
            format!(
                "<rdf:Description {media}><m:DerivedFrom>a.jpg</m:DerivedFrom></rdf:Description>"
            ),
            &["jpg"],
        ),
        (format!("<rdf:Description {media} m:DerivedFrom='no extension'/>"), &[]),
        ("<rdf:Description SidecarForExtension='NEF'/>".to_owned(), &[]),
    ] {
        let rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";
        let xmp = format!("<rdf:RDF xmlns:rdf='{rdf}'>{inside}</rdf:RDF>");
        assert_eq!(extensions(xmp.as_bytes()).unwrap(), wanted, "{xmp}");
    }
}
