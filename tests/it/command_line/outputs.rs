//! What `cutline caption` writes, and what it leaves alone.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use super::{assert_sentence, assert_status, cutline, photo, text};

fn album(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        fs::copy(photo("cat"), folder.path().join(name)).unwrap();
    }
    folder
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    cutline(folder, &[&["caption"], arguments].concat()).output().unwrap()
}

/// Runs a command line of a shell, in which `$cutline` is the program.
fn shell(folder: &TempDir, script: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(folder).stdin(Stdio::null());
    command.env("cutline", env!("CARGO_BIN_EXE_cutline")).output().unwrap()
}

fn read(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap()
}

fn known(output: &Output, count: usize) {
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&format!("{count} there already")), "{stderr}");
}

#[test]
fn results_of_another_tool_are_refused_and_stay() {
    let folder = album(&["a.jpg"]);
    for (name, content) in [
        (
            "metadata.jsonl",
            "{\"file_name\":\"1.jpg\",\"text\":\"one\"}\n{\"file_name\":\"2.jpg\",\"text\":\"two\"}",
        ),
        ("metadata.tsv", "1.jpg\tone\na.jpg\ttwo"),
        ("notes.txt", "buy milk"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
        for more in [&[][..], &["--dry-run"], &["--only-missing"]] {
            let output = run(&folder, &[&["a.jpg", "-o", name], more].concat());
            assert_sentence(&output, 2, &[name, "cutline did not write", "--overwrite"]);
            assert_eq!(read(&folder, name), content);
        }
    }
    let output = run(&folder, &["a.jpg", "-o", "a.jpg", "--overwrite"]);
    assert_sentence(&output, 2, &["a.jpg", "is one of the photos"]);
}

/// As with `-o *.jpg`, where the first photo becomes the output.
#[test]
fn other_data_is_no_output_even_with_overwrite() {
    let folder = album(&["a.jpg", "b.jpg"]);
    let before = fs::read(folder.path().join("b.jpg")).unwrap();
    for more in [&[][..], &["--overwrite"]] {
        let output = run(&folder, &[&["a.jpg", "-o", "b.jpg"], more].concat());
        assert_sentence(&output, 2, &["b.jpg", "is not a text file"]);
    }
    assert_eq!(fs::read(folder.path().join("b.jpg")).unwrap(), before);
}

#[test]
fn sidecars_of_another_tool_and_of_people_stay() {
    let folder = album(&["a.jpg", "b.jpg"]);
    let takeout = "{\"title\":\"a.jpg\",\"description\":\"Grandma at the lake\"}";
    fs::write(folder.path().join("a.jpg.json"), takeout).unwrap();
    for more in [&[][..], &["--only-missing"], &["--dry-run"]] {
        let output = run(&folder, &[&[".", "--sidecar", "json"], more].concat());
        assert_status(&output, 1);
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("./a.jpg: its sidecar ./a.jpg.json was not written by"),
            "{stderr}"
        );
        assert_eq!(read(&folder, "a.jpg.json"), takeout);
    }
    let other: Value = serde_json::from_str(&read(&folder, "b.jpg.json")).unwrap();
    assert!(other["caption"].is_string(), "the other photo got its sidecar");
    // With an output, the row is written once, and not again by the next run.
    for _ in 0..2 {
        assert_status(&run(&folder, &["a.jpg", "--sidecar", "json", "-o", "out.jsonl"]), 1);
        assert_eq!(read(&folder, "out.jsonl").lines().count(), 1);
    }
    let output = run(&folder, &["a.jpg", "--sidecar", "json", "-o", "-"]);
    assert_status(&output, 1);
    assert!(text(&output.stdout).starts_with("a.jpg\t"), "{output:?}");
    assert_status(&run(&folder, &["a.jpg", "--sidecar", "json", "--overwrite"]), 0);
    assert!(read(&folder, "a.jpg.json").contains("\"captions\""));

    // Words that are older than their photo.
    let words = folder.path().join("a.jpg.txt");
    fs::write(&words, "my own words\n").unwrap();
    let file = fs::File::options().write(true).open(&words).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1_000_000_000)).unwrap();
    let output = run(&folder, &["a.jpg", "--sidecar", "txt"]);
    assert_status(&output, 0);
    known(&output, 1);
    assert_eq!(read(&folder, "a.jpg.txt"), "my own words\n");
    assert_status(&run(&folder, &["a.jpg", "--sidecar", "txt", "--overwrite"]), 0);
    let ours = read(&folder, "a.jpg.txt");
    assert_ne!(ours, "my own words\n");
    if xattr::get(&words, "user.cutline").is_err() {
        // A file system without extended attributes.
        return;
    }
    // Ours is renewed when the photo changes.
    fs::copy(photo("coffee"), folder.path().join("a.jpg")).unwrap();
    assert_status(&run(&folder, &["a.jpg", "--sidecar", "txt"]), 0);
    assert_ne!(read(&folder, "a.jpg.txt"), ours);
}

#[test]
fn the_xmp_of_a_raw_file_stays() {
    let folder = album(&["DSC1.jpg", "b.jpg"]);
    let xmp = |attributes: &str| {
        format!(
            "<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"><rdf:Description \
             rdf:about=\"\" {attributes}/></rdf:RDF>"
        )
    };
    let of_raw =
        xmp("xmlns:p=\"http://ns.adobe.com/photoshop/1.0/\" p:SidecarForExtension=\"NEF\"");
    fs::write(folder.path().join("DSC1.xmp"), &of_raw).unwrap();
    fs::write(folder.path().join("b.xmp"), xmp("")).unwrap();
    fs::write(folder.path().join("b.png"), "not in the run").unwrap();
    assert_status(&run(&folder, &["DSC1.jpg", "b.jpg", "--sidecar", "xmp"]), 0);
    assert_eq!((read(&folder, "DSC1.xmp"), read(&folder, "b.xmp")), (of_raw, xmp("")));
    assert!(read(&folder, "DSC1.jpg.xmp").contains("x-default"));
    assert!(read(&folder, "b.jpg.xmp").contains("x-default"));
}

#[test]
fn an_xmp_keeps_its_encoding_owner_mode_and_links() {
    let folder = album(&["a.jpg"]);
    let path = folder.path().join("a.jpg.xmp");
    let xmp = "\u{feff}<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"/>";
    let bytes: Vec<u8> = xmp.encode_utf16().flat_map(u16::to_be_bytes).collect();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(&path, folder.path().join("copy.xmp")).unwrap();
    let before = path.metadata().unwrap();
    assert_status(&run(&folder, &["a.jpg", "--sidecar", "xmp"]), 0);
    let after = path.metadata().unwrap();
    assert_eq!((after.ino(), after.mode(), after.nlink()), (before.ino(), before.mode(), 2));
    let texts = cutline::xmp::read_bytes(&fs::read(&path).unwrap()).unwrap();
    assert!(texts.description.is_some() && texts.alt_text.is_some());
}

#[test]
fn streams_are_only_written() {
    let folder = album(&["a.jpg", "b.jpg"]);
    let plain = run(&folder, &["."]);
    let rows = text(&plain.stdout);
    assert_eq!(rows.lines().count(), 2);
    for script in [
        "$cutline caption . -o -",
        "$cutline caption . -o /dev/stdout",
        "$cutline caption . -o /dev/stdout | cat",
        "echo begin > o; $cutline caption . -o /dev/stdout >> o; tail -n +2 o; rm o",
        "$cutline caption . -o >(cat > p); wait $!; cat p; rm p",
        "mkfifo f; cat f & $cutline caption . -o f; wait; rm f",
        "mkfifo f; (sleep 1; cat f) & $cutline caption . -o f; wait; rm f",
    ] {
        let output = shell(&folder, script);
        assert_status(&output, 0);
        assert_eq!(text(&output.stdout), rows, "{script}");
    }
    let array = shell(&folder, "$cutline caption . -o /dev/stderr --format json 2>&1 >/dev/null");
    let rows: Vec<Value> = serde_json::from_slice(&array.stdout).unwrap();
    assert_eq!(rows.len(), 2);
    assert!(!folder.path().join("-").exists());

    assert_status(&shell(&folder, "$cutline caption . -o /dev/null"), 0);
    let full = shell(&folder, "ulimit -v 4000000; $cutline caption . -o /dev/full");
    assert_status(&full, 1);
    assert!(text(&full.stderr).contains("/dev/full: cannot be written (No space left"), "{full:?}");
    assert_status(&shell(&folder, "mkfifo g; head -c 1 g & $cutline caption . -o g"), 0);
    assert_sentence(&run(&folder, &["a.jpg", "-o", "."]), 2, &[".: is a folder"]);
    assert_sentence(&run(&folder, &["a.jpg", "-o", "g"]), 1, &["g: cannot be written", "reads it"]);
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
    assert_sentence(&run(&folder, &["a.jpg", "-o", "s"]), 1, &["s: cannot be written"]);
}

#[test]
fn odd_names_are_written_one_to_one_and_read_back() {
    let folder = album(&["=1+1.jpg", "a\tb\nc.jpg", "\"q\".jpg"]);
    for name in [b"x\xff.jpg", b"x\xfe.jpg"] {
        fs::copy(photo("coffee"), folder.path().join(OsStr::from_bytes(name))).unwrap();
    }
    for name in ["out.jsonl", "out.csv", "out.tsv", "out.txt", "out.json"] {
        assert_status(&run(&folder, &[".", "-o", name, "-q"]), 0);
        let written = read(&folder, name);
        let again = run(&folder, &[".", "-o", name]);
        known(&again, 5);
        assert_eq!(read(&folder, name), written);
        if name == "out.txt" {
            assert_eq!(written.lines().count(), 5, "{written}");
            for line in [r#"./=1+1.jpg"#, r#""./a\tb\nc.jpg""#, r#"./"q".jpg"#, r#""./x\376.jpg""#]
            {
                assert!(written.contains(&format!("{line}\t")), "{line} is not in {written}");
            }
        }
    }
    // What --dry-run prints is read as a list.
    let listed = shell(&folder, "$cutline caption . --dry-run -q | $cutline caption - -o list.txt");
    assert_status(&listed, 0);
    assert_eq!(read(&folder, "list.txt"), read(&folder, "out.txt"));
    // Without the folder before it.
    assert_status(&run(&folder, &["=1+1.jpg", "-o", "plain.csv", "-q"]), 0);
    let table = read(&folder, "plain.csv");
    assert!(table.starts_with("\u{feff}path,choice,caption,"), "{table}");
    assert!(table.contains("\n'=1+1.jpg,1,"), "{table}");
    known(&run(&folder, &["=1+1.jpg", "-o", "plain.csv"]), 1);
    let redirected = shell(&folder, "$cutline caption =1+1.jpg --format csv > new.csv");
    assert_status(&redirected, 0);
    assert!(read(&folder, "new.csv").starts_with('\u{feff}'));
}

#[test]
fn sidecars_may_have_short_names() {
    let longest = format!("{}.jpg", "a".repeat(251));
    let folder = album(&["a.jpg", "b.jpg", "b.png", &longest]);
    let command = [".", "--sidecar", "txt", "--sidecar-name", "stem"];
    let output = run(&folder, &command);
    assert_status(&output, 1);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("./b.jpg: its sidecar ./b.txt would be that of b.png"), "{stderr}");
    assert!(read(&folder, "a.txt").ends_with('\n') && !folder.path().join("b.txt").exists());
    assert!(folder.path().join("a".repeat(251) + ".txt").exists());
    known(&run(&folder, &command), 2);
    let check = cutline(&folder, &["check", ".", "--sidecar-name", "stem"]).output().unwrap();
    assert!(text(&check.stdout).contains("with a caption  2 "), "{check:?}");
    let output = run(&folder, &[&longest, "--sidecar", "txt"]);
    assert_status(&output, 1);
    assert!(text(&output.stderr).contains("--sidecar-name stem"), "{output:?}");
}

#[test]
fn linked_outputs_stay_links_and_leftovers_are_removed() {
    let folder = album(&["a.jpg"]);
    fs::create_dir(folder.path().join("elsewhere")).unwrap();
    symlink("elsewhere/out.csv", folder.path().join("out.csv")).unwrap();
    let leftover = folder.path().join(".cutline-Ab12cd.tmp");
    fs::write(&leftover, "half").unwrap();
    assert_status(&run(&folder, &["a.jpg", "-o", "out.csv", "--sidecar", "txt"]), 0);
    assert!(folder.path().join("out.csv").is_symlink() && !leftover.exists());
    assert!(folder.path().join("elsewhere/out.csv").exists());
    // A sidecar that is a pipe, which is not waited for.
    assert_status(&shell(&folder, "mkfifo a.jpg.json; $cutline caption a.jpg --sidecar json"), 1);
    // A sidecar that is a link to nothing, as those of git-annex are before they are fetched.
    symlink("not/here", folder.path().join("a.jpg.xmp")).unwrap();
    let output = run(&folder, &["a.jpg", "--sidecar", "xmp", "--overwrite"]);
    assert_status(&output, 1);
    assert!(folder.path().join("a.jpg.xmp").is_symlink(), "{output:?}");
}

/// A limit on the size of files, unlike a full disk, needs no rights.
#[test]
fn a_full_disk_loses_no_row() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| name.repeat(120) + ".jpg");
    let folder = album(&names.each_ref().map(String::as_str));
    for name in ["out.json", "out.jsonl", "out.csv", "out.txt"] {
        let blocks = if name.starts_with("out.json") { 3 } else { 1 };
        let command = format!("$cutline caption . -o {name}");
        let output = shell(&folder, &format!("trap '' XFSZ; ulimit -f {blocks}; {command}"));
        assert_status(&output, 1);
        assert!(text(&output.stderr).contains(&format!("{name}: cannot be written")), "{output:?}");
        let written = read(&folder, name);
        let whole = if name == "out.json" { "\n]\n" } else { "\n" };
        assert!(written.ends_with(whole) && written.len() > 100, "{written}");
        let rows = |text: &str| text.matches(".jpg").count();
        let before = rows(&written);
        assert_status(&shell(&folder, &command), 0);
        let all = read(&folder, name);
        assert!(before > 0 && rows(&all) > before, "{name}");
        assert!(all.starts_with(written.trim_end_matches("\n]\n")), "{name}: a row was lost");
    }
    assert_status(&run(&folder, &[&names[0], "--sidecar", "json"]), 0);
    let sidecar = names[0].clone() + ".json";
    let before = read(&folder, &sidecar);
    let command = "$cutline caption a*.jpg --sidecar json --overwrite --num-beams 2";
    let output = shell(&folder, &format!("trap '' XFSZ; ulimit -f 0; {command}"));
    assert_status(&output, 1);
    assert!(text(&output.stderr).contains(".jpg.json cannot be written"), "{output:?}");
    assert_eq!(read(&folder, &sidecar), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), names.len() + 5, "no leftovers");
}
