//! Files that the command line reads.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cutline::cli::fuzzing::{self, ReadResults};
use cutline::config::{Settings, Values};
use cutline::xmp::{Existing, Texts, extensions, merge, merge_bytes, read_bytes};
use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;

use crate::{Corpus, Seeds, bounded, seeds};

/// For a file of a few kilobytes.
const MEMORY: usize = 16 << 20;

/// Names of files of results, one for each format.
const NAMES: [&str; 5] = ["a.jsonl", "a.csv", "a.json", "a.txt", "a.tsv"];

/// Reads results; the first byte chooses the format. The part that would be kept gives the same rows.
pub fn results(data: &[u8]) -> Corpus {
    let Some((format, bytes)) = data.split_first() else { return Corpus::Reject };
    let name = NAMES[usize::from(*format) % NAMES.len()];
    let Ok(found) = bounded(MEMORY, || fuzzing::results(bytes, name)) else { return Corpus::Keep };
    assert!(found.end <= bytes.len());
    if found.ours && found.end > 0 {
        let kept = &bytes[..found.end];
        let closed = if name == "a.json" { [kept, b"\n]\n"].concat() } else { kept.to_vec() };
        let again = fuzzing::results(&closed, name).expect("the kept part is valid");
        assert_eq!(again.rows, found.rows, "{name}");
    }
    Corpus::Keep
}

/// Results of this program and of others, whole and cut off.
pub fn results_seeds() -> Seeds {
    let rows = [("a b.jpg", "a cat, \"quite\""), ("ä\"b.jpg", "a dog\r\nand=more")];
    let rows = rows.map(|(path, text)| (PathBuf::from(path), text.to_owned()));
    let mut all = Seeds::new();
    for (format, name) in NAMES.iter().enumerate() {
        let file = fuzzing::written(&rows, name).unwrap_or_default();
        let file = [&[format as u8], file.as_bytes()].concat();
        all.push((format!("{name}.cut"), file[..file.len() * 3 / 4].to_vec()));
        all.push(((*name).to_owned(), file));
    }
    all.extend(seeds::texts([
        "\0{\"image_id\": 42, \"caption\": \"a cat\"}\n{\"file_name\": \"b\", \"text\": \"c\"}",
        "\u{1}\u{feff}path,caption\na,b\n\"c\"\"d\",\"e\nf\"\n",
        "\u{2}[{\"path\": \"a\", \"caption\": \"b\"}",
        "\u{3}a\tone\na\ttwo\r\nb\tthree",
    ]));
    all
}

/// What is written is read back: paths of any bytes and texts, separated by 0x01.
pub fn results_written(data: &[u8]) -> Corpus {
    let mut parts = data.split(|byte| *byte == 1);
    let mut rows: Vec<(PathBuf, String)> = Vec::new();
    while let (Some(path), Some(text)) = (parts.next(), parts.next()) {
        let path = PathBuf::from(OsStr::from_bytes(path));
        // Rows of one path would be alternatives in text.
        if rows.iter().any(|(known, _)| *known == path) || path.as_os_str().is_empty() {
            return Corpus::Reject;
        }
        rows.push((path, String::from_utf8_lossy(text).into_owned()));
    }
    for name in NAMES {
        let plain = matches!(name, "a.txt" | "a.tsv");
        let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        let words = |text: &String| if plain { text.replace(breaks, " ") } else { text.clone() };
        let expected: Vec<_> =
            rows.iter().map(|(path, text)| (path.clone(), words(text))).collect();
        let file = fuzzing::written(&rows, name).expect("texts can be written");
        let read = fuzzing::results(file.as_bytes(), name).expect("our own file is read");
        let end = if name == "a.json" { read.end } else { file.len() };
        assert_eq!(read, ReadResults { rows: expected.clone(), end, ours: true }, "{name}");
        // Cut off anywhere, its complete rows are found. Of text, a piece of the last row may be too.
        let cut = data.len() * 7 % (file.len() + 1);
        let Some(head) = file.get(..cut) else { continue };
        let read = fuzzing::results(head.as_bytes(), name);
        let mut read = read.unwrap_or_else(|reason| panic!("{name} cut off at {cut}: {reason}"));
        if plain {
            read.rows.pop();
        }
        assert!(expected.starts_with(&read.rows), "{name} cut off at {cut}: {read:?}");
    }
    Corpus::Keep
}

/// Rows with everything that a format must escape.
pub fn results_written_seeds() -> Seeds {
    seeds::texts([
        "a.jpg\u{1}a cat\u{1}b.jpg\u{1}a dog",
        "a,\"b\".jpg\u{1}=1+1\u{1}\r\n\u{1}\ttab\u{1}-\u{1}'quoted'",
        "@x\u{1}\u{0}\u{1}[\u{1}]\u{1}\u{feff}\u{1}\\",
    ])
}

/// References for `cutline eval`.
pub fn references(data: &[u8]) -> Corpus {
    bounded(MEMORY, || fuzzing::references(data));
    Corpus::Keep
}

/// References in each of their forms.
pub fn references_seeds() -> Seeds {
    let mut all = seeds::files("tests/goldens/eval", &[".json", ".jsonl"]);
    all.extend(seeds::texts([
        r#"{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "b"}]}"#,
        r#"[{"path": "a", "captions": ["b", "c"]}]"#,
        "{\"image\": \"a\", \"references\": [\"b\"]}\n\n{\"id\": 2.5, \"caption\": \"c\"}",
    ]));
    all
}

/// Lists of paths. A list that is written with NUL holds the same paths.
pub fn list(data: &[u8]) -> Corpus {
    let paths = bounded(MEMORY, || fuzzing::paths(data));
    let mut again = Vec::new();
    for path in &paths {
        again.extend_from_slice(path.as_os_str().as_encoded_bytes());
        again.push(0);
    }
    assert_eq!(fuzzing::paths(&again), paths);
    Corpus::Keep
}

/// Lists with each separator.
pub fn list_seeds() -> Seeds {
    seeds::texts([
        "a b.jpg\r\n\nc.jpg",
        "a\nb.jpg\0c.jpg\0",
        "\u{feff}ä.jpg\n",
        "\\x.jpg\n\"y.jpg\"",
    ])
}

/// `.env`, and every setting that it gives.
pub fn dotenv(data: &[u8]) -> Corpus {
    // A setting that names a file would make the target read any file of this machine.
    if data.windows(5).any(|window| window == b"_FILE") {
        return Corpus::Reject;
    }
    let file = temporary(".env", data);
    let values = bounded(MEMORY, || Values::default().with_file(file.path()));
    if let Ok(values) = values {
        let _ = Settings::new(&values);
    }
    Corpus::Keep
}

/// The documented example with all its settings, and odd lines.
pub fn dotenv_seeds() -> Seeds {
    let example = include_str!("../../.env.example");
    let set =
        example.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| line.contains('='));
    let mut all: Seeds =
        set.enumerate().map(|(at, line)| (format!("line{at}"), line.into())).collect();
    all.extend(seeds::texts([
        "\u{feff}PORT=8080\nexport HOST='::1'\n",
        "PORT=\"80\\n\" # comment\nHOST=${PORT}$HOST\\\n",
        "=\nA B=c\n'",
    ]));
    all.push(("example".to_owned(), example.replace("\n#", "\n").into()));
    all
}

/// A file in memory with these bytes, whose name ends with `ending`.
pub(crate) fn temporary(ending: &str, bytes: &[u8]) -> tempfile::NamedTempFile {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let file = tempfile::Builder::new().suffix(ending).tempfile_in(folder);
    let mut file = file.expect("a temporary file can be made");
    file.write_all(bytes).expect("a temporary file can be written");
    file
}

/// Adds texts to an XMP file: the first line is the description, the second the alternative text. They
/// are read back, and everything else in the file stays.
pub fn xmp(data: &[u8]) -> Corpus {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let text = |bytes: &[u8]| {
        Some(String::from_utf8_lossy(bytes).into_owned()).filter(|text| !text.is_empty())
    };
    let texts = Texts { description: text(part()), alt_text: text(part()) };
    let file = part();
    let Ok(before) = bounded(MEMORY, || read_bytes(file)) else { return Corpus::Keep };
    extensions(file).expect("a file that was read before");
    for existing in [Existing::Keep, Existing::Replace] {
        let merged = bounded(MEMORY, || merge_bytes(Some(file), &texts, existing));
        let merged = match merged {
            Ok(merged) => merged,
            // The reader of XML accepts some files that are not well-formed, such as those with a slash
            // at the end of an attribute without quotes. They may be refused here.
            Err(error) => {
                assert_eq!(error.kind(), cutline::error::ErrorKind::Io, "{error:?}");
                continue;
            }
        };
        let after = read_bytes(&merged).expect("what was merged is valid");
        for (before, wanted, after) in [
            (&before.description, &texts.description, after.description),
            (&before.alt_text, &texts.alt_text, after.alt_text),
        ] {
            let kept = before.is_some() && existing == Existing::Keep;
            // A blank text counts as none.
            let wanted = wanted.as_deref().map(written).filter(|text| !text.is_empty() && !kept);
            assert_eq!(after, wanted.or(before.clone()), "{existing:?}");
        }
        if let (Ok(file), Ok(merged)) = (std::str::from_utf8(file), std::str::from_utf8(&merged)) {
            assert_eq!(others(merged), others(file), "{existing:?}\n{merged}");
        }
    }
    Corpus::Keep
}

/// A text as XML can express it.
fn written(text: &str) -> String {
    let allowed = |c: &char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    text.chars().filter(allowed).collect::<String>().trim().to_owned()
}

/// The events of a file without the two properties, without empty descriptions, and without whitespace
/// between tags.
fn others(xmp: &str) -> Vec<String> {
    let mut reader = NsReader::from_str(xmp.trim_start_matches('\u{feff}'));
    let mut events: Vec<String> = Vec::new();
    // The depth below the property that is being skipped.
    let mut skipped = 0;
    loop {
        let event = reader.read_event().expect("a file that was read before");
        let (tag, empty) = match &event {
            Event::Eof => return events,
            Event::Start(tag) => (tag, false),
            Event::Empty(tag) => (tag, true),
            Event::End(_) if skipped > 0 => {
                skipped -= 1;
                continue;
            }
            _ if skipped > 0 => continue,
            Event::End(tag) => {
                close(&mut events, &format!("{:?}", tag.name()));
                continue;
            }
            Event::Text(text) => {
                if !text.trim().is_empty() {
                    events.push(text.trim().to_owned());
                }
                continue;
            }
            other => {
                events.push(format!("{other:?}"));
                continue;
            }
        };
        let (namespace, local) = reader.resolver().resolve_element(tag.name());
        if skipped > 0 || is_property(&namespace, local.into_inner()) {
            skipped += usize::from(!empty);
            continue;
        }
        events.push(format!("{:?} {:?}", tag.name(), attributes(tag, &reader)));
        if empty {
            close(&mut events, &format!("{:?}", tag.name()));
        }
    }
}

/// Adds the end of an element, or removes an element that is an empty description.
fn close(events: &mut Vec<String>, name: &str) {
    let empty = |event: &&String| event.starts_with(name) && event.contains("Description");
    if events.last().as_ref().is_some_and(empty) {
        events.pop();
    } else {
        events.push(format!("end {name}"));
    }
}

fn attributes(tag: &BytesStart<'_>, reader: &NsReader<&[u8]>) -> Vec<String> {
    let other = tag.attributes().flatten().filter(|attribute| {
        let (namespace, local) = reader.resolver().resolve_attribute(attribute.key);
        !is_property(&namespace, local.into_inner())
    });
    other.map(|attribute| format!("{attribute:?}")).collect()
}

fn is_property(namespace: &ResolveResult<'_>, local: &str) -> bool {
    let ResolveResult::Bound(namespace) = namespace else { return false };
    matches!(
        (namespace.0, local),
        ("http://purl.org/dc/elements/1.1/", "description")
            | ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "AltTextAccessibility")
    )
}

/// Sidecars of several programs.
pub fn xmp_seeds() -> Seeds {
    let rdf = |inside: &str| {
        format!(
            "a cat\nalt\n<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF \
             xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\" \
             xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
             xmlns:i=\"http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/\">{inside}</rdf:RDF></x:xmpmeta>"
        )
    };
    let new = merge(None, &Texts { description: Some("a".into()), alt_text: None }, Existing::Keep);
    let alternatives = "<rdf:Alt><rdf:li xml:lang=\"de\">Katze</rdf:li>\
                        <rdf:li xml:lang=\"x-default\">cat &amp; <!-- c --> dog</rdf:li></rdf:Alt>";
    seeds::texts([
        format!("a\nb\n{}", new.expect("an empty file can be extended")),
        rdf("<rdf:Description rdf:about=\"\"/>"),
        rdf(""),
        rdf("<rdf:Description dc:description='x' i:AltTextAccessibility=\"y\" other='1'/>"),
        rdf(&format!(
            "<rdf:Description><dc:description>{alternatives}</dc:description></rdf:Description>"
        )),
        rdf("<rdf:Description><dc:description/><i:AltTextAccessibility><rdf:Alt/>\
             </i:AltTextAccessibility></rdf:Description>"),
        rdf(
            "<rdf:Description>\n <dc:description><![CDATA[x]]></dc:description>\n</rdf:Description>\n",
        ),
    ])
}
