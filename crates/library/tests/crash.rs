//! Nothing that was acknowledged is lost: processes that are killed, a full disk, two writers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cutline_error::ErrorKind;
use cutline_library::sqlite::SqliteStore;
use cutline_library::{
    Author, Change, ContentHash, Features, Field, NameKind, NewAsset, Store, TextAction, TextChange,
};

/// Where the child process writes, if this is one.
const LIBRARY: &str = "CUTLINE_TEST_LIBRARY";
/// What the child calls itself.
const NAME: &str = "CUTLINE_TEST_NAME";

fn hash(writer: &str, number: u32) -> ContentHash {
    ContentHash::of(format!("{writer} {number}").as_bytes())
}

fn photo(writer: &str, number: u32) -> Change {
    let mut asset = NewAsset::new(hash(writer, number), Author::model("m"));
    asset.name(NameKind::Path, format!("{writer}/{number}.jpg"));
    asset.text(Field::Caption, format!("a dog number{number} by {writer}"), Some(0.5));
    asset.text(Field::Tags, "dog\nanimal", None);
    asset.features = Some(Features { space: "m".into(), vector: vec![1.0, number as f32] });
    Change::Asset(Box::new(asset))
}

fn edit(writer: &str, number: u32) -> Change {
    Change::Text(TextChange {
        hash: hash(writer, number),
        field: Field::Caption,
        lang: "en".into(),
        action: TextAction::Write { text: format!("Rex number{number}") },
        author: Author::person("kim"),
        if_version: None,
        run: None,
    })
}

/// Not a test: the child process of the others. Adds photos and edits every second one; says so after
/// each call that was acknowledged.
#[test]
fn child() {
    let Ok(path) = std::env::var(LIBRARY) else { return };
    let name = std::env::var(NAME).unwrap();
    let store = SqliteStore::open(Path::new(&path)).unwrap();
    for number in 0_u32.. {
        match store.apply(vec![photo(&name, number)]) {
            Ok(_) => println!("added {number}"),
            Err(error) => {
                println!("refused {:?} {error}", error.kind());
                return;
            }
        }
        if number % 2 == 1 && store.apply(vec![edit(&name, number)]).is_ok() {
            println!("edited {number}");
        }
        if number % 50 == 49 && store.apply(vec![Change::Purge(hash(&name, number - 9))]).is_ok() {
            println!("purged {}", number - 9);
        }
    }
}

fn command(path: &Path, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]);
    as_child(&mut command, path, name);
    command
}

fn as_child(command: &mut Command, path: &Path, name: &str) {
    command.env(LIBRARY, path).env(NAME, name).stdout(Stdio::piped()).stderr(Stdio::null());
}

/// What was acknowledged about each photo, the last of it.
fn acknowledged(child: &mut Child) -> BTreeMap<u32, &'static str> {
    let mut said = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // The name of the test stands in front of the first line.
        let Ok(line) = line else { break };
        for word in ["added", "edited", "purged"] {
            let Some((_, number)) = line.split_once(&format!("{word} ")) else { continue };
            // A line may be cut off by the end of the process.
            if let Ok(number) = number.trim().parse() {
                said.insert(number, word);
            }
        }
    }
    said
}

fn compare(store: &dyn Store, writer: &str, said: &BTreeMap<u32, &str>) {
    for (number, word) in said {
        let asset = store.asset(&hash(writer, *number)).unwrap();
        if *word == "purged" {
            assert_eq!(asset, None, "photo {number} of {writer} is back");
            continue;
        }
        // It may have been purged and that not acknowledged.
        if asset.is_none() && number % 50 == 40 && said.contains_key(&(number + 9)) {
            continue;
        }
        let asset = asset.unwrap_or_else(|| panic!("photo {number} of {writer} is lost"));
        let caption = asset.text(Field::Caption, "en").unwrap();
        match (*word, caption.reviewed) {
            // An edit may have been made and not acknowledged.
            ("added", false) => {
                assert_eq!(caption.text, format!("a dog number{number} by {writer}"))
            }
            _ => assert_eq!(caption.text, format!("Rex number{number}"), "{word}"),
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    let mut all: Vec<(String, BTreeMap<u32, &str>)> = Vec::new();
    for round in 0..12_u64 {
        let name = format!("writer{round}");
        let mut child = command(&path, &name).spawn().unwrap();
        // Moments that differ from round to round, some before the file is complete.
        std::thread::sleep(Duration::from_millis(7 + (round * 97) % 400));
        child.kill().unwrap();
        let said = acknowledged(&mut child);
        child.wait().unwrap();
        all.push((name, said));
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.check().unwrap().problems, [""; 0], "after round {round}");
        for (name, said) in &all {
            compare(&store, name, said);
        }
    }
    let acknowledged: usize = all.iter().map(|(_, said)| said.len()).sum();
    assert!(acknowledged > 50, "only {acknowledged} photos: the test tests little");
}

#[test]
fn two_processes_write_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    let names = ["one", "two"];
    let mut children: Vec<Child> =
        names.iter().map(|name| command(&path, name).spawn().unwrap()).collect();
    // A third one reads and writes meanwhile.
    let store = SqliteStore::open(&path).unwrap();
    for number in 0..15 {
        store.apply(vec![photo("here", number)]).unwrap();
        assert!(store.asset(&hash("here", number)).unwrap().is_some());
        std::thread::sleep(Duration::from_millis(5));
    }
    children.iter_mut().for_each(|child| child.kill().unwrap());
    for (name, child) in names.iter().zip(&mut children) {
        let said = acknowledged(child);
        child.wait().unwrap();
        assert!(said.len() > 5, "{name} wrote {} photos", said.len());
        compare(&store, name, &said);
    }
    assert_eq!(store.check().unwrap().problems, [""; 0]);
}

#[test]
#[cfg(unix)]
fn a_full_disk_refuses_changes_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    // Blocks of 1 KiB. The signal that the limit sends by default would end the process.
    let script = "trap '' XFSZ; ulimit -f 3000; exec \"$0\" --exact child --nocapture";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap());
    as_child(&mut command, &path, "full");
    let mut child = command.spawn().unwrap();
    let said = acknowledged(&mut child);
    child.wait().unwrap();
    assert!(said.len() > 15, "{} photos", said.len());
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.check().unwrap().problems, [""; 0]);
    compare(&store, "full", &said);
    // With room again, work goes on.
    store.apply(vec![photo("full", 1_000_000)]).unwrap();
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    let script = "trap '' XFSZ; ulimit -f 600; exec \"$0\" --exact child --nocapture";
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap());
    as_child(&mut command, &path, "full");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let refused = said.lines().find(|line| line.contains("refused")).expect("it is refused");
    let kinds = [ErrorKind::StorageFull, ErrorKind::Io].map(|kind| format!("{kind:?}"));
    assert!(kinds.iter().any(|kind| refused.contains(kind)), "{refused}");
    assert!(refused.contains("space"), "{refused}");
}

#[test]
fn purged_words_are_not_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    let store = SqliteStore::open(&path).unwrap();
    let photos: Vec<Change> = (0..400)
        .map(|number| {
            let mut asset = NewAsset::new(hash("w", number), Author::model("m"));
            asset.name(NameKind::Path, format!("folder/clandestine{number}x.jpg"));
            asset.text(
                Field::Caption,
                format!("a confidential{number}x meeting of people in a room"),
                None,
            );
            asset.text(Field::Tags, format!("secret{number}x"), None);
            Change::Asset(Box::new(asset))
        })
        .collect();
    for part in photos.chunks(37) {
        store.apply(part.to_vec()).unwrap();
    }
    let edits = (0..400).step_by(3).map(|number| match edit("w", number) {
        Change::Text(mut change) => {
            change.action = TextAction::Write { text: format!("private{number}x words") };
            Change::Text(change)
        }
        other => other,
    });
    store.apply(edits.collect()).unwrap();
    let purged: Vec<u32> = (0..400).filter(|number| number % 5 != 1).collect();
    for part in purged.chunks(50) {
        store.apply(part.iter().map(|number| Change::Purge(hash("w", *number))).collect()).unwrap();
    }
    let contains = |bytes: &[u8], word: &str| {
        bytes.windows(word.len()).any(|window| window == word.as_bytes())
    };
    let everything = || -> Vec<u8> {
        std::fs::read_dir(folder.path())
            .unwrap()
            .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect()
    };
    let bytes = everything();
    assert!(contains(&bytes, "confidential1x"), "what stays is there");
    let left: Vec<String> = ["clandestine", "confidential", "secret", "private"]
        .iter()
        .flat_map(|stem| numbered(&bytes, stem).into_iter().map(move |number| (stem, number)))
        .filter(|(_, number)| purged.contains(number))
        .map(|(stem, number)| format!("{stem}{number}x"))
        .collect();
    assert_eq!(left, [""; 0]);
    store.compact().unwrap();
    assert_eq!(store.check().unwrap().problems, [""; 0]);
    assert_eq!(store.stats().unwrap().assets, 80);
}

/// The numbers between `stem` and an x.
fn numbered(bytes: &[u8], stem: &str) -> Vec<u32> {
    let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    let after = text.split(stem).skip(1);
    after.filter_map(|rest| rest.split_once('x')?.0.parse().ok()).collect()
}

#[test]
fn a_backup_is_complete_while_others_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("photos.db")).unwrap();
    store.apply((0..500).map(|number| photo("w", number)).collect()).unwrap();
    let copy = folder.path().join("copy.db");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for number in 500..600 {
                store.apply(vec![photo("w", number)]).unwrap();
            }
        });
        store.backup(&copy).unwrap();
        writing.join().unwrap();
    });
    assert!(store.backup(&copy).is_err(), "a file is never overwritten");
    let copy = SqliteStore::open(&copy).unwrap();
    let assets = copy.stats().unwrap().assets;
    assert!((500..=600).contains(&assets), "{assets}");
    assert_eq!(copy.check().unwrap().problems, [""; 0]);
    assert_eq!(copy.check().unwrap().assets, assets);
    assert!(copy.asset(&hash("w", 7)).unwrap().is_some());
}

#[test]
fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    let store = SqliteStore::open(&path).unwrap();
    store.apply((0..200).map(|number| photo("w", number)).collect()).unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 2000].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let found = SqliteStore::open(&path).and_then(|store| store.check());
    assert!(found.is_err() || !found.unwrap().problems.is_empty());
}
