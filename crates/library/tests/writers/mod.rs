//! Processes that write to a library, to be killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cutline_library::{
    Author, Change, ContentHash, Features, Field, NameKind, NewAsset, Store, TextAction,
    TextChange, open,
};

/// Where the child process writes, if this is one.
const LIBRARY: &str = "CUTLINE_TEST_LIBRARY";
/// What the child calls itself.
const NAME: &str = "CUTLINE_TEST_NAME";

pub(crate) fn hash(writer: &str, number: u32) -> ContentHash {
    ContentHash::of(format!("{writer} {number}").as_bytes())
}

pub(crate) fn photo(writer: &str, number: u32) -> Change {
    let mut asset = NewAsset::new(hash(writer, number), Author::model("m"));
    asset.name(NameKind::Path, format!("{writer}/{number}.jpg"));
    asset.text(Field::Caption, format!("a dog number{number} by {writer}"), Some(0.5));
    asset.text(Field::Tags, "dog\nanimal", None);
    asset.features = Some(Features { space: "m".into(), vector: vec![1.0, number as f32] });
    Change::Asset(Box::new(asset))
}

pub(crate) fn edit(writer: &str, number: u32) -> Change {
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

/// The child process, if this is one. Adds photos and edits every second one; says so after each call that
/// was acknowledged.
pub(crate) fn write_if_child() {
    let Ok(address) = std::env::var(LIBRARY) else { return };
    let name = std::env::var(NAME).unwrap();
    let store = open(&address).unwrap();
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

/// This program as a child, which must have a test `child`.
pub(crate) fn command(address: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]);
    as_child(&mut command, address, name);
    command
}

pub(crate) fn as_child(command: &mut Command, address: &str, name: &str) {
    command.env(LIBRARY, address).env(NAME, name).stdout(Stdio::piped()).stderr(Stdio::null());
}

/// What was acknowledged about each photo, the last of it.
pub(crate) fn acknowledged(child: &mut Child) -> BTreeMap<u32, &'static str> {
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

pub(crate) fn compare(store: &dyn Store, writer: &str, said: &BTreeMap<u32, &str>) {
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

/// Waits for a photo of a process, for a minute at most.
pub(crate) fn wait_for(store: &dyn Store, writer: &str, number: u32) {
    let end = Instant::now() + Duration::from_secs(60);
    while store.asset(&hash(writer, number)).unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two processes write, and this one as well.
pub(crate) fn write_at_once(address: &str) {
    let names = ["one", "two"];
    let mut children: Vec<Child> =
        names.iter().map(|name| command(address, name).spawn().unwrap()).collect();
    let store = open(address).unwrap();
    for number in 0..15 {
        store.apply(vec![photo("here", number)]).unwrap();
        assert!(store.asset(&hash("here", number)).unwrap().is_some());
        std::thread::sleep(Duration::from_millis(5));
    }
    names.iter().for_each(|name| wait_for(&*store, name, 9));
    children.iter_mut().for_each(|child| child.kill().unwrap());
    for (name, child) in names.iter().zip(&mut children) {
        let said = acknowledged(child);
        child.wait().unwrap();
        assert!(said.len() > 5, "{name} wrote {} photos", said.len());
        compare(&*store, name, &said);
    }
    assert_eq!(store.check().unwrap().problems, [""; 0]);
}

/// Ends writing processes at moments that differ from round to round, `rounds` times or more often, until
/// they have written something. `delay`: milliseconds from their start, or else from their first photo on.
pub(crate) fn kill_and_compare(
    address: &str,
    rounds: u64,
    from_start: bool,
    delay: impl Fn(u64) -> u64,
) {
    let mut all: Vec<(String, BTreeMap<u32, &str>)> = Vec::new();
    let written = |all: &[(String, BTreeMap<u32, &str>)]| -> usize {
        all.iter().map(|(_, said)| said.len()).sum()
    };
    for round in 0..10 * rounds {
        if round >= rounds && written(&all) > 50 {
            break;
        }
        let name = format!("writer{round}");
        let mut child = command(address, &name).spawn().unwrap();
        if !from_start {
            wait_for(&*open(address).unwrap(), &name, 0);
        }
        std::thread::sleep(Duration::from_millis(delay(round)));
        child.kill().unwrap();
        let said = acknowledged(&mut child);
        child.wait().unwrap();
        all.push((name, said));
        let store = open(address).unwrap();
        assert_eq!(store.check().unwrap().problems, [""; 0], "after round {round}");
        for (name, said) in &all {
            compare(&*store, name, said);
        }
    }
    assert!(written(&all) > 50, "only {} photos: the test tests little", written(&all));
}
