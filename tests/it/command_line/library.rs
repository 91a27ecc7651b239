//! `cutline library`, and `cutline caption` with a library.

use std::fs;
use std::process::Output;

use cutline_library::{Author, Change, ContentHash, Field, NameKind, NewAsset, open};
use serde_json::Value;
use tempfile::TempDir;

use super::{assert_sentence, assert_status, cutline, photo, text};

/// The command with a library in its folder.
fn with_library(folder: &TempDir, arguments: &[&str]) -> Output {
    cutline(folder, arguments).env("LIBRARY", "sqlite:photos.db").output().unwrap()
}

/// The lines of a command that succeeds.
#[track_caller]
fn lines(folder: &TempDir, arguments: &[&str]) -> Vec<String> {
    let output = with_library(folder, arguments);
    assert_status(&output, 0);
    text(&output.stdout).lines().map(str::to_owned).collect()
}

fn copy(folder: &TempDir, names: &[&str]) {
    for name in names {
        fs::copy(photo(name), folder.path().join(format!("{name}.jpg"))).unwrap();
    }
}

#[test]
fn captions_are_kept_found_and_continued() {
    let folder = tempfile::tempdir().unwrap();
    copy(&folder, &["cat", "coffee"]);
    let printed = lines(&folder, &["caption", "."]);
    assert_eq!(printed.len(), 2);
    let captions: Vec<&str> = printed.iter().map(|line| line.split_once('\t').unwrap().1).collect();

    let word = captions[0].split(' ').next_back().unwrap();
    let found = lines(&folder, &["library", "search", word]);
    assert!(
        found.iter().any(|line| line.contains("cat.jpg") && line.ends_with(captions[0])),
        "{found:?}"
    );
    let full = folder.path().canonicalize().unwrap().join("cat.jpg");
    assert!(found[0].starts_with(full.parent().unwrap().to_str().unwrap()), "{found:?}");

    // What is there already is not captioned again, with the same parameters.
    copy(&folder, &["rocket"]);
    let again = lines(&folder, &["caption", "."]);
    assert_eq!(again.len(), 1);
    assert!(again[0].contains("rocket.jpg"), "{again:?}");
    assert_eq!(lines(&folder, &["caption", ".", "--prompt", "a photo of"]).len(), 3);
    assert_eq!(lines(&folder, &["caption", ".", "--only-missing"]).len(), 0);
    assert_eq!(lines(&folder, &["caption", ".", "--only-missing", "--style", "alt_text"]).len(), 3);

    let export = lines(&folder, &["library", "export", "name:cat"]);
    let asset: Value = serde_json::from_str(&export[0]).unwrap();
    assert_eq!(asset["texts"].as_array().unwrap().len(), 2);
    assert_eq!(asset["texts"][0]["author"]["name"], "cutline-small");
    assert_eq!(asset["texts"][0]["author"]["prompt"], "a photo of");
    assert!(asset["colors"][0]["name"].is_string() && asset["mood"].is_string());
    let stats: Value =
        serde_json::from_str(&lines(&folder, &["library", "stats", "--json"])[0]).unwrap();
    assert_eq!((&stats["assets"], &stats["without_caption"]), (&3.into(), &0.into()));
    assert_eq!(lines(&folder, &["library", "check"]), ["3 photos, nothing is wrong"]);
}

#[test]
fn photos_are_kept_with_thumbnails_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    copy(&folder, &["cat", "coffee", "rocket"]);
    // The same photo in another file.
    let cat = [fs::read(photo("cat")).unwrap(), b"more".to_vec()].concat();
    fs::write(folder.path().join("cat copy.jpg"), cat).unwrap();
    assert_eq!(lines(&folder, &["caption", "."]).len(), 4);
    let stats = |folder: &TempDir| -> Value {
        serde_json::from_str(&lines(folder, &["library", "stats", "--json"])[0]).unwrap()
    };
    let kept = stats(&folder);
    assert_eq!((&kept["thumbnails"], &kept["features"]), (&4.into(), &4.into()), "{kept}");
    let alike = lines(&folder, &["library", "search", "--similar", "cat.jpg", "--limit", "1"]);
    assert!(alike.len() == 1 && alike[0].contains("cat copy.jpg"), "{alike:?}");

    let folder = tempfile::tempdir().unwrap();
    copy(&folder, &["cat"]);
    let output = cutline(&folder, &["caption", "."])
        .env("LIBRARY", "sqlite:photos.db")
        .env("LIBRARY_THUMBNAILS", "false")
        .output()
        .unwrap();
    assert_status(&output, 0);
    let kept = stats(&folder);
    assert_eq!((&kept["thumbnails"], &kept["features"]), (&0.into(), &1.into()), "{kept}");
}

#[test]
fn nothing_changes_without_a_library() {
    let folder = tempfile::tempdir().unwrap();
    copy(&folder, &["cat"]);
    let row = |library: Option<&str>| {
        let mut command = cutline(&folder, &["caption", "cat.jpg", "--format", "jsonl"]);
        command.envs(library.map(|library| ("LIBRARY", library)));
        let output = command.output().unwrap();
        assert_status(&output, 0);
        let mut row: Value = serde_json::from_slice(&output.stdout).unwrap();
        row.as_object_mut().unwrap().remove("timings");
        let written = cutline(&folder, &["caption", "cat.jpg", "--sidecar", "json", "--overwrite"])
            .envs(library.map(|library| ("LIBRARY", library)))
            .output()
            .unwrap();
        assert_status(&written, 0);
        let sidecar = fs::read(folder.path().join("cat.jpg.json")).unwrap();
        let mut sidecar: Value = serde_json::from_slice(&sidecar).unwrap();
        sidecar.as_object_mut().unwrap().remove("timings");
        (row, sidecar)
    };
    let without = row(None);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "a photo and its sidecar");
    assert_eq!(without, row(Some("sqlite:photos.db")), "rows are the same with one");
}

#[test]
fn a_person_decides_about_suggestions() {
    let folder = tempfile::tempdir().unwrap();
    copy(&folder, &["cat"]);
    let table = "path,caption\ncat.jpg,Minka on the sofa\n";
    fs::write(folder.path().join("mine.csv"), table).unwrap();
    let imported = with_library(&folder, &["library", "import", "mine.csv"]);
    assert_status(&imported, 0);
    assert!(text(&imported.stderr).contains("1 texts taken"), "{imported:?}");

    let caption = lines(&folder, &["caption", "cat.jpg"])[0].split_once('\t').unwrap().1.to_owned();
    let waiting = lines(&folder, &["library", "review"]);
    assert!(waiting[0].ends_with(&format!("\tMinka on the sofa\t{caption}")), "{waiting:?}");
    let rehearsal = with_library(&folder, &["library", "review", "--accept", "--dry-run"]);
    assert!(text(&rehearsal.stderr).contains("would change 1"), "{rehearsal:?}");
    let accepted = with_library(&folder, &["library", "review", "--accept", "--author", "kim"]);
    let run = text(&accepted.stderr).trim().rsplit(' ').next().unwrap().to_owned();
    assert!(lines(&folder, &["library", "search"])[0].ends_with(&caption));
    assert_status(&with_library(&folder, &["library", "undo", &run]), 0);
    assert!(lines(&folder, &["library", "search"])[0].ends_with("Minka on the sofa"));
    assert_eq!(lines(&folder, &["library", "review"]).len(), 1, "it waits again");

    assert_status(&with_library(&folder, &["library", "backup", "copy.db"]), 0);
    assert_status(&with_library(&folder, &["library", "purge", "cat.jpg"]), 0);
    assert_eq!(lines(&folder, &["library", "search"]).len(), 0);
    let copy =
        cutline(&folder, &["library", "search", "--library", "copy.db", "minka"]).output().unwrap();
    assert!(text(&copy.stdout).contains("Minka on the sofa"), "{copy:?}");
}

#[test]
fn copies_and_histories_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path().join("photos.db").to_str().unwrap()).unwrap();
    for (number, dhash) in [(1_u32, 0_u64), (2, 0b111), (3, u64::MAX)] {
        let mut asset = NewAsset::new(ContentHash::of(&[number as u8]), Author::model("m"));
        (asset.dhash, asset.width, asset.height) = (Some(dhash), Some(100 * number), Some(80));
        asset.name(NameKind::Upload, format!("{number}.jpg"));
        asset.text(Field::Caption, format!("photo {number}"), None);
        store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    }
    drop(store);
    assert_eq!(
        lines(&folder, &["library", "duplicates"]),
        ["1\t200x80\t2.jpg", "1\t100x80\t1.jpg"]
    );
    assert_eq!(lines(&folder, &["library", "duplicates", "--bits", "2"]).len(), 0);
    let json = lines(&folder, &["library", "duplicates", "--json"]);
    let group: Value = serde_json::from_str(&json[0]).unwrap();
    assert_eq!((&group[0]["name"], &group[1]["width"]), (&"2.jpg".into(), &100.into()));
    assert_status(&with_library(&folder, &["library", "duplicates", "--bits", "8"]), 2);

    let hash = ContentHash::of(&[1]).to_string();
    fs::write(folder.path().join("mine.csv"), format!("hash,caption\n{hash},Rex\n")).unwrap();
    lines(&folder, &["library", "import", "mine.csv"]);
    let history = lines(&folder, &["library", "history", &hash]);
    assert_eq!(history.len(), 2);
    assert!(history[0].ends_with("\tcaption en\twrite*\timport\tRex"), "{history:?}");
    assert!(history[1].ends_with("\tcaption en\twrite\tm\tphoto 1"), "{history:?}");
}

#[test]
fn single_texts_are_shown_edited_and_rated() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path().join("photos.db").to_str().unwrap()).unwrap();
    let hash = ContentHash::of(b"a photo");
    let mut asset = NewAsset::new(hash, Author::model("m"));
    asset.name(NameKind::Upload, "dog.jpg");
    asset.text(Field::Caption, "a dog", None);
    store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
    drop(store);
    let hash = hash.to_string();
    let run = |arguments: &[&str]| {
        with_library(&folder, &[&["library", arguments[0], &hash], &arguments[1..]].concat())
    };
    let shown = || {
        let output = run(&["show"]);
        assert_status(&output, 0);
        text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(shown()[0], "dog.jpg\tversion 1");
    assert!(shown()[1].ends_with("\tm\ta dog"), "{:?}", shown());
    let first = shown()[1].split('\t').nth(1).unwrap().to_owned();

    assert_status(&run(&["rate", "--bad", "--reason", "it is a wolf"]), 0);
    let wrote = run(&["edit", "-a wolf-", "--if-version", "1", "--author", "kim"]);
    assert_status(&wrote, 0);
    assert!(text(&wrote.stderr).contains("version 2"), "{wrote:?}");
    assert!(shown()[1].ends_with("\tkim\t-a wolf-"), "{:?}", shown());
    // Somebody has changed it since.
    let late = run(&["edit", "a fox", "--if-version", "1"]);
    assert_sentence(&late, 1, &["version", "2"]);
    assert_status(&run(&["edit", "--revert", &first]), 0);
    assert!(shown()[1].ends_with("\ta dog"), "{:?}", shown());
    assert_status(&run(&["edit", "--clear"]), 0);
    assert_sentence(&run(&["edit", "--accept"]), 1, &["no suggestion waits"]);
    assert_status(&run(&["edit", "animal\npet", "--field", "tags"]), 0);
    let json: Value = serde_json::from_slice(&run(&["show", "--json"]).stdout).unwrap();
    assert_eq!(json["version"], 5);
    assert_eq!(
        (&json["texts"][0]["text"], &json["texts"][1]["text"]),
        (&"".into(), &"animal\npet".into())
    );
    let pairs = lines(&folder, &["library", "export", "--format", "pairs"]);
    assert!(pairs.iter().any(|pair| pair.contains("it is a wolf")), "{pairs:?}");

    assert_status(&run(&["edit"]), 2);
    assert_status(&run(&["edit", "a fox", "--clear"]), 2);
    assert_status(&run(&["rate"]), 2);
    let absent = ContentHash::of(b"another").to_string();
    for arguments in [&["show", &absent][..], &["edit", &absent, "x"], &["rate", &absent, "--good"]]
    {
        let output = with_library(&folder, &[&["library"], arguments].concat());
        assert_sentence(&output, 1, &["the library has no photo"]);
    }
}

#[test]
fn mistakes_are_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let none = cutline(&folder, &["library", "search", "dog"]).output().unwrap();
    assert_sentence(&none, 2, &["LIBRARY", "sqlite:FILE"]);
    let absent = with_library(&folder, &["library", "search", "dog"]);
    assert_sentence(&absent, 2, &["no library", "photos.db"]);
    fs::write(folder.path().join("empty.csv"), "path,caption\n").unwrap();
    assert_status(&with_library(&folder, &["library", "import", "empty.csv"]), 0);
    let query = with_library(&folder, &["library", "search", "colr:red"]);
    assert_sentence(&query, 2, &["colr", "color"]);
    let missing = with_library(&folder, &["library", "purge", "cat.jpg"]);
    assert_sentence(&missing, 1, &["cat.jpg", "search"]);
    fs::write(folder.path().join("text.db"), "not a database, but a text").unwrap();
    let text =
        cutline(&folder, &["caption", &photo("cat"), "--library", "text.db"]).output().unwrap();
    assert_sentence(&text, 1, &["text.db", "not a library"]);
    let other =
        cutline(&folder, &["library", "stats", "--library", "mysql://host/db"]).output().unwrap();
    assert_sentence(&other, 2, &["mysql", "sqlite:FILE"]);
    // Passwords are never shown.
    let nowhere = "postgres://kim:secret@%2Fnowhere/photos";
    let (status, hint) = if cfg!(feature = "postgres") {
        (1, "check that the server runs")
    } else {
        (2, "--features postgres")
    };
    for command in [vec!["library", "stats"], vec!["caption", &photo("cat")]] {
        let output = cutline(&folder, &command).env("LIBRARY", nowhere).output().unwrap();
        assert_sentence(&output, status, &[hint]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"), "{output:?}");
    }
}
