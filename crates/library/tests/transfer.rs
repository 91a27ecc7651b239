//! Import and export.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use cutline_library::sqlite::SqliteStore;
use cutline_library::transfer::{Format, ImportReport, Importer, export, export_xmp};
use cutline_library::{
    Author, Change, Color, ContentHash, Field, NameKind, NewAsset, Query, Store, TextAction,
    TextChange, bulk,
};
use tempfile::TempDir;

fn library(folder: &TempDir, name: &str) -> SqliteStore {
    SqliteStore::open(&folder.path().join(name)).unwrap()
}

fn file(folder: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn import(store: &dyn Store, run: impl FnOnce(&mut Importer<'_>)) -> ImportReport {
    let mut importer = Importer::new(store, Author::import("import"), "en");
    run(&mut importer);
    importer.finish().unwrap()
}

fn photo(number: u8) -> ContentHash {
    ContentHash::of(&[number])
}

/// Two photos: one with texts of a model, one with a person's.
fn two(store: &dyn Store) {
    for number in 1..=2 {
        let mut asset = NewAsset::new(photo(number), Author::model("small"));
        asset.name(NameKind::Path, format!("Photos/{number}.jpg"));
        asset.text(Field::Caption, format!("=a \"dog\", number{number}\nwith a line"), Some(0.25));
        asset.text(Field::Tags, "dog\nsalt & pepper", None);
        asset.colors = vec![Color { hex: "#d2b48c".into(), name: "tan".into(), percent: 40 }];
        asset.mood = Some("calm".into());
        asset.taken_at = Some(86_400_000);
        store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }
    let edit = TextChange {
        hash: photo(2),
        field: Field::Caption,
        lang: "en".into(),
        action: TextAction::Write { text: "Rex".into() },
        author: Author::person("kim"),
        if_version: None,
        run: None,
    };
    store.apply(vec![Change::Text(edit)]).unwrap();
}

fn exported(store: &dyn Store, format: Format) -> String {
    let mut bytes = Vec::new();
    export(store, &Query::default(), "en", format, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn text(store: &dyn Store, number: u8, field: Field) -> (String, bool) {
    let asset = store.asset(&photo(number)).unwrap().unwrap();
    let text = asset.text(field, "en").unwrap();
    (text.text.clone(), text.reviewed)
}

#[test]
fn an_export_is_imported_with_its_texts_and_facts() {
    let folder = tempfile::tempdir().unwrap();
    let from = library(&folder, "a.db");
    two(&from);
    for (name, format) in [("b.db", Format::JsonLines), ("c.db", Format::Csv)] {
        let file = exported(&from, format);
        let to = library(&folder, name);
        let report = import(&to, |importer| match format {
            Format::Csv => importer.csv(&mut file.as_bytes(), folder.path()).unwrap(),
            _ => importer.json_lines(&mut file.as_bytes(), folder.path()).unwrap(),
        });
        assert_eq!(
            (report.added, report.skipped, report.texts),
            (2, 0, 4),
            "{format:?} {report:?}"
        );
        for number in [1, 2] {
            assert_eq!(text(&to, number, Field::Caption), text(&from, number, Field::Caption));
            assert_eq!(text(&to, number, Field::Tags).0, "dog\nsalt & pepper");
            let (a, b) = (
                from.asset(&photo(number)).unwrap().unwrap(),
                to.asset(&photo(number)).unwrap().unwrap(),
            );
            assert_eq!((a.mood, a.taken_at), (b.mood, b.taken_at));
            assert_eq!(a.names[0].name, b.names[0].name);
        }
        assert_eq!(to.check().unwrap().problems, [""; 0]);
        // Again changes nothing.
        let again = import(&to, |importer| match format {
            Format::Csv => importer.csv(&mut file.as_bytes(), folder.path()).unwrap(),
            _ => importer.json_lines(&mut file.as_bytes(), folder.path()).unwrap(),
        });
        assert_eq!(
            (again.added, again.known, again.texts, again.suggested),
            (0, 2, 0, 0),
            "{format:?}"
        );
        bulk::undo(&to, report.run.unwrap(), &Author::person("kim"), false).unwrap();
        assert_eq!(to.asset(&photo(1)).unwrap().unwrap().texts, []);
    }
}

#[test]
fn coco_and_pairs_are_json() {
    let folder = tempfile::tempdir().unwrap();
    let store = library(&folder, "a.db");
    two(&store);
    let coco: serde_json::Value = serde_json::from_str(&exported(&store, Format::Coco)).unwrap();
    let images = coco["images"].as_array().unwrap();
    let annotations = coco["annotations"].as_array().unwrap();
    assert_eq!((images.len(), annotations.len()), (2, 2));
    for (image, annotation) in images.iter().zip(annotations) {
        assert_eq!(image["id"], annotation["image_id"]);
        assert!(image["id"].as_u64().unwrap() < 1 << 53, "JavaScript reads it exactly");
    }
    assert_eq!(annotations[0]["caption"], "Rex");
    let pairs = exported(&store, Format::Pairs);
    let pair: serde_json::Value = serde_json::from_str(pairs.lines().next().unwrap()).unwrap();
    assert_eq!((&pair["kind"], &pair["current"]), (&"edit".into(), &"Rex".into()));
    assert!(exported(&store, Format::Csv).contains("'=a"), "no formula for a spreadsheet");
}

#[test]
fn sidecars_are_read_with_keywords_and_count_as_texts_of_people() {
    let folder = tempfile::tempdir().unwrap();
    let store = library(&folder, "a.db");
    let photos: Vec<PathBuf> = (1..=4_u8)
        .map(|number| {
            let path = folder.path().join(format!("{number}.jpg"));
            fs::write(&path, [number]).unwrap();
            path
        })
        .collect();
    let xmp = r#"<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
        xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
        <dc:description><rdf:Alt><rdf:li xml:lang="x-default">Rex</rdf:li></rdf:Alt></dc:description>
        <dc:subject><rdf:Bag><rdf:li>dog</rdf:li></rdf:Bag></dc:subject>
        <lr:hierarchicalSubject><rdf:Bag><rdf:li>places|Rome</rdf:li></rdf:Bag></lr:hierarchicalSubject>
        </rdf:Description></rdf:RDF></x:xmpmeta>"#;
    file(&folder, "1.xmp", xmp);
    file(&folder, "1.jpg.txt", "not this one");
    file(&folder, "2.jpg.txt", "\u{feff}two dogs\n");
    let row = r#"{"path":"elsewhere.jpg","parameters":"0123","caption":"a cat","model":"small",
        "captions":[{"text":"a cat","confidence":0.5}],"image":{"width":640,"height":480}}"#;
    file(&folder, "3.jpg.json", row);
    file(&folder, "4.xmp", "<broken");
    let report = import(&store, |importer| {
        photos.iter().for_each(|photo| importer.photo(photo).unwrap());
    });
    assert_eq!((report.added, report.texts, report.skipped), (4, 4, 1), "{report:?}");
    assert!(report.problems[0].contains("4.xmp"), "{report:?}");
    assert_eq!(text(&store, 1, Field::Caption), ("Rex".into(), true));
    assert_eq!(text(&store, 1, Field::Tags), ("dog\nRome".into(), true));
    assert_eq!(text(&store, 2, Field::Caption), ("two dogs".into(), true));
    assert_eq!(text(&store, 3, Field::Caption), ("a cat".into(), false), "a model wrote it");
    let third = store.asset(&photo(3)).unwrap().unwrap();
    assert_eq!(third.width, Some(640));
    assert_eq!(third.names[0].name, photos[2].to_str().unwrap());
    assert_eq!(third.names[0].size, Some(1));
    let named = store.named(NameKind::Path, photos[3].to_str().unwrap()).unwrap();
    assert_eq!(named[0].0, photo(4));
}

#[test]
fn tables_of_others_name_files_and_mistakes_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = library(&folder, "a.db");
    fs::write(folder.path().join("1.jpg"), [1]).unwrap();
    let csv = "\u{feff}Path,Alt_Text,tags,other\n1.jpg,A dog.,dog; beach,x\nmissing.jpg,b,,\n";
    let report =
        import(&store, |importer| importer.csv(&mut csv.as_bytes(), folder.path()).unwrap());
    assert_eq!((report.added, report.skipped), (1, 1));
    assert!(report.problems[0].contains("missing.jpg"), "{report:?}");
    assert_eq!(text(&store, 1, Field::AltText), ("A dog.".into(), true));
    assert_eq!(text(&store, 1, Field::Tags).0, "beach\ndog");
    let mut importer = Importer::new(&store, Author::import("import"), "en");
    let error = importer.csv(&mut "a,b\n1,2\n".as_bytes(), Path::new(".")).unwrap_err();
    assert!(error.detail().contains("path or hash"), "{error}");
    let lines = "{\"path\":\"1.jpg\",\"caption\":\"a dog\"}\n\nnot json\n{\"fallback\":true,\"path\":\"1.jpg\"}\n[]\n";
    let report = import(&store, |importer| {
        importer.json_lines(&mut lines.as_bytes(), folder.path()).unwrap();
    });
    assert_eq!((report.known, report.texts, report.skipped), (1, 1, 3), "{report:?}");
    // A second caption of `cutline caption` is not a text of its own.
    let csv = "path,choice,caption,parameters\n1.jpg,1,first,p\n1.jpg,2,second,p\n";
    let report =
        import(&store, |importer| importer.csv(&mut csv.as_bytes(), folder.path()).unwrap());
    assert_eq!((report.suggested, report.texts), (1, 0), "{report:?}");
}

#[test]
fn xmp_sidecars_are_written_with_names_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = library(&folder, "a.db");
    for (number, name) in
        [(1, "a/x.jpg"), (2, "b/X.jpg"), (3, "https://example.org/?q=1"), (4, "d/no-text.jpg")]
    {
        let mut asset = NewAsset::new(photo(number), Author::model("small"));
        asset.name(NameKind::Path, name);
        if number < 4 {
            asset.text(Field::Caption, format!("number {number} & more"), None);
        }
        store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }
    let to = folder.path().join("sidecars");
    assert_eq!(export_xmp(&store, &Query::default(), "en", &to).unwrap(), 3);
    let mut found: Vec<String> = fs::read_dir(&to)
        .unwrap()
        .map(|file| {
            let xmp = fs::read_to_string(file.unwrap().path()).unwrap();
            cutline_xmp::read(&xmp).unwrap().description.unwrap()
        })
        .collect();
    found.sort();
    assert_eq!(found, ["number 1 & more", "number 2 & more", "number 3 & more"]);
    assert!(
        export_xmp(&store, &Query::default(), "en", &to).is_err(),
        "files are never overwritten"
    );
}
