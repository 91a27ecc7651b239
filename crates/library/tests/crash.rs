//! Nothing that was acknowledged is lost: processes that are killed, a full disk, two writers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod writers;

use std::process::Command;

use cutline_error::ErrorKind;
use cutline_library::sqlite::SqliteStore;
use cutline_library::{Author, Change, Field, NameKind, NewAsset, Store, TextAction};

use self::writers::*;

/// Not a test: the child process of the others.
#[test]
fn child() {
    write_if_child();
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    // Some before the file is complete.
    kill_and_compare(path.to_str().unwrap(), 12, true, |round| 7 + (round * 97) % 400);
}

#[test]
fn two_processes_write_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write_at_once(folder.path().join("photos.db").to_str().unwrap());
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
    as_child(&mut command, path.to_str().unwrap(), "full");
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
    as_child(&mut command, path.to_str().unwrap(), "full");
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
    // The heads of pages, because what is in an empty part of one, or in the features, means nothing to SQLite.
    let pages = bytes.len() / 4096;
    for page in pages / 4..pages / 2 {
        bytes[page * 4096..page * 4096 + 100].fill(0x5a);
    }
    std::fs::write(&path, bytes).unwrap();
    let found = SqliteStore::open(&path).and_then(|store| store.check());
    assert!(found.is_err() || !found.unwrap().problems.is_empty());
}
