//! Captions folders of photos with the embedded model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use super::{assert_sentence, assert_status, cutline, photo, text};

/// Two photos, one of them in a subfolder, and files that are skipped.
fn album() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    fs::copy(photo("cat"), folder.path().join("a.jpg")).unwrap();
    fs::copy(photo("coffee"), folder.path().join("b/c.JPG")).unwrap();
    fs::copy(photo("coffee"), folder.path().join(".hidden.jpg")).unwrap();
    fs::write(folder.path().join("notes.txt"), "no photo").unwrap();
    folder
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    cutline(folder, &[&["caption"], arguments].concat()).output().unwrap()
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn paths(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["path"].as_str().unwrap()).collect()
}

#[track_caller]
fn assert_reported(output: &Output, parts: &[&str]) {
    let stderr = text(&output.stderr);
    for part in parts {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
}

#[test]
fn finished_photos_are_skipped_until_something_changes() {
    let folder = album();
    let out = folder.path().join("out.jsonl");
    let command = ["-r", ".", "--output", "out.jsonl"];
    let first = run(&folder, &command);
    assert_status(&first, 0);
    assert!(first.stdout.is_empty());
    assert_reported(&first, &["2 captioned", "0 failed", "1 hidden, 1 of unknown format"]);
    let done = rows(&out);
    assert_eq!(paths(&done), ["./a.jpg", "./b/c.JPG"]);
    let before = fs::read(&out).unwrap();

    let again = run(&folder, &command);
    assert_status(&again, 0);
    assert_reported(&again, &["0 captioned", "2 there already", "of unknown format"]);
    assert_eq!(fs::read(&out).unwrap(), before);

    // Photos with other parameters, and files that changed, are captioned again.
    let plan = run(&folder, &[&command[..], &["--num-beams=2", "--dry-run"]].concat());
    assert_eq!(text(&plan.stdout), "./a.jpg\n./b/c.JPG\n");
    let plan =
        run(&folder, &[&command[..], &["--num-beams=2", "--dry-run", "--only-missing"]].concat());
    assert_eq!(text(&plan.stdout), "");
    let day = SystemTime::now() - Duration::from_secs(86400);
    let file = fs::File::options().write(true).open(folder.path().join("a.jpg")).unwrap();
    file.set_modified(day).unwrap();
    assert_status(&run(&folder, &[&command[..], &["--quiet"]].concat()), 0);
    assert_eq!(paths(&rows(&out)), ["./a.jpg", "./b/c.JPG", "./a.jpg"]);

    let again = run(&folder, &[&command[..], &["--overwrite", "--limit", "1"]].concat());
    assert_status(&again, 0);
    assert_eq!(paths(&rows(&out)), ["./a.jpg"]);
    let rest = run(&folder, &[&command[..], &["-v"]].concat());
    assert_reported(&rest, &["1 captioned", "notes.txt: skipped", "1 there already"]);
    assert_eq!(paths(&rows(&out)), ["./a.jpg", "./b/c.JPG"]);
}

#[test]
fn rows_are_appended_to_tables_and_arrays() {
    let folder = album();
    for (name, lines) in [("out.csv", 3), ("out.json", 4), ("out.txt", 2)] {
        assert_status(&run(&folder, &["a.jpg", "-o", name, "-q"]), 0);
        assert_status(&run(&folder, &["a.jpg", "b", "-o", name, "-q"]), 0);
        let written = fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(written.lines().count(), lines, "{written}");
        if name == "out.json" {
            let rows: Vec<Value> = serde_json::from_str(&written).unwrap();
            assert_eq!(paths(&rows), ["a.jpg", "b/c.JPG"]);
            assert_eq!(rows[0]["file"]["size_bytes"], rows[0]["image"]["size_bytes"]);
        }
    }
    fs::write(folder.path().join("mine.csv"), "name,size\n").unwrap();
    let output = run(&folder, &["a.jpg", "-o", "mine.csv"]);
    assert_sentence(&output, 2, &["mine.csv", "--overwrite"]);
    assert_eq!(fs::read_to_string(folder.path().join("mine.csv")).unwrap(), "name,size\n");
    let output = run(&folder, &["a.jpg", "*.gif", "--format", "csv"]);
    assert_status(&output, 1);
    assert!(text(&output.stdout).starts_with("path,choice,caption,"), "{output:?}");
    assert_reported(&output, &["*.gif: there is no such file; check the pattern"]);
}

fn with_stdin(folder: &TempDir, arguments: &[&str], input: PathBuf) -> Output {
    let input = fs::File::open(input).unwrap();
    cutline(folder, arguments).stdin(Stdio::from(input)).output().unwrap()
}

#[test]
fn paths_and_photos_are_read_from_stdin() {
    let folder = album();
    let list = folder.path().join("list");
    fs::write(&list, "a.jpg\0b/c.JPG\0notes.txt\0").unwrap();
    let output = with_stdin(&folder, &["caption", "-"], list);
    assert_status(&output, 0);
    assert_eq!(text(&output.stdout).lines().count(), 2);
    assert_reported(&output, &["skipped: 1 of unknown format"]);

    let cat = folder.path().join("a.jpg");
    let output = with_stdin(&folder, &["caption", "--stdin-image", "--format=jsonl"], cat.clone());
    assert_status(&output, 0);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&row["path"], row["image"]["format"].as_str()), (&"-".into(), Some("jpeg")));
    let small = ["caption", "--stdin-image", "--max-image-size", "1000"];
    assert_sentence(&with_stdin(&folder, &small, cat), 1, &["-: ", "1000 bytes"]);
}

#[test]
fn a_list_from_another_system_is_read_or_refused_whole() {
    let folder = album();
    let list = folder.path().join("list");
    fs::write(&list, "\u{feff}a.jpg\r\nb/c.JPG\r\n").unwrap();
    let output = with_stdin(&folder, &["caption", "-", "--dry-run"], list.clone());
    assert_status(&output, 0);
    assert_eq!(text(&output.stdout), "a.jpg\nb/c.JPG\n");
    for mark in ["\u{feff}", ""] {
        let wide: Vec<u8> =
            format!("{mark}a.jpg\r\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(&list, wide).unwrap();
        let output = with_stdin(&folder, &["caption", "-"], list.clone());
        assert_sentence(&output, 2, &["list on standard input", "UTF-16", "save it as UTF-8"]);
    }
}

#[test]
fn photos_in_other_formats_are_named_once_and_fail_the_run() {
    let folder = album();
    for name in ["b/1.heic", "b/2.HEIC", "b/3.nef"] {
        fs::write(folder.path().join(name), "not looked at").unwrap();
    }
    let output = run(&folder, &["-r", ".", "-o", "out.jsonl"]);
    assert_status(&output, 1);
    let sentence = "3 photos are in formats that cannot be read (2 HEIC, 1 NEF); convert";
    assert_reported(&output, &[sentence, "2 captioned", "0 failed, 3 in formats"]);
    assert_eq!(text(&output.stderr).matches("HEIC").count(), 1);
    assert_status(&run(&folder, &["-r", ".", "-o", "out.jsonl", "--dry-run"]), 1);
    let output = run(&folder, &["b/*.heic", "--json-progress"]);
    assert_status(&output, 1);
    let end: Value = serde_json::from_str(text(&output.stderr).lines().last().unwrap()).unwrap();
    assert_eq!((&end["unreadable"], &end["skipped"]), (&1.into(), &0.into()), "{end}");
    let output = cutline(&folder, &["check", "-r", "."]).output().unwrap();
    assert_reported(&output, &[sentence]);
}

#[test]
fn nothing_to_caption_has_a_status_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::write(folder.path().join("list"), "\n\n").unwrap();
    fs::write(folder.path().join("out.jsonl"), "kept").unwrap();
    let says = "there are no photos to caption; check the paths";
    for arguments in [&["empty"][..], &["-r", "empty", "-o", "out.jsonl", "--overwrite"]] {
        assert_sentence(&run(&folder, arguments), 3, &[says]);
        assert_sentence(&run(&folder, &[arguments, &["--dry-run"]].concat()), 3, &[says]);
        assert_sentence(&run(&folder, &[arguments, &["--quiet"]].concat()), 3, &[says]);
    }
    assert_eq!(fs::read_to_string(folder.path().join("out.jsonl")).unwrap(), "kept");
    let list = folder.path().join("list");
    assert_sentence(&with_stdin(&folder, &["caption", "-"], list), 3, &[says]);
    assert_sentence(&run(&folder, &["*.jpg"]), 1, &["*.jpg: there is no such file"]);
    // Other files are counted.
    let output = run(&folder, &["."]);
    assert_status(&output, 3);
    let recursive = "there are no photos to caption; give --recursive";
    assert_reported(&output, &[recursive, "skipped: 2 of unknown format, 1 folders"]);
}

#[cfg(unix)]
#[test]
fn linked_photos_are_captioned_when_they_are_meant() {
    use std::os::unix::fs::symlink;
    let folder = album();
    let annex = folder.path().join(".git/annex/objects");
    fs::create_dir_all(&annex).unwrap();
    fs::rename(folder.path().join("a.jpg"), annex.join("SHA256E-s1--cat")).unwrap();
    symlink(".git/annex/objects/SHA256E-s1--cat", folder.path().join("a.jpg")).unwrap();
    fs::write(folder.path().join("list"), "a.jpg\n").unwrap();
    let output = with_stdin(&folder, &["caption", "-"], folder.path().join("list"));
    assert_status(&output, 0);
    assert!(text(&output.stdout).starts_with("a.jpg\t"), "{output:?}");
    let output = run(&folder, &["-r", ".", "--dry-run"]);
    assert_eq!(text(&output.stdout), "./b/c.JPG\n");
    assert_reported(&output, &["1 links"]);
    let output = run(&folder, &["-r", ".", "--follow-links", "--dry-run"]);
    assert_eq!(text(&output.stdout), "./a.jpg\n./b/c.JPG\n");
    // The content that a link leads to may be on another machine.
    fs::remove_file(annex.join("SHA256E-s1--cat")).unwrap();
    let output = run(&folder, &[".", "-L"]);
    assert_status(&output, 1);
    assert_reported(&output, &["./a.jpg: cannot be read", "it is a link: restore the file"]);
}

#[test]
fn sidecars_are_written_next_to_their_photos() {
    let folder = album();
    fs::write(folder.path().join("broken.jpg"), "no photo").unwrap();
    let file = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    for kind in ["txt", "json", "xmp"] {
        let command = ["-r", ".", "--sidecar", kind, "--style", "alt_text"];
        let output = run(&folder, &command);
        assert_status(&output, 1);
        assert!(output.stdout.is_empty());
        assert_reported(&output, &["2 captioned", "1 failed", "./broken.jpg: "]);
        let again = run(&folder, &command);
        assert_reported(&again, &["0 captioned", "1 failed", "2 there already"]);
    }
    let row: Value = serde_json::from_str(&file("a.jpg.json")).unwrap();
    let caption = row["caption"].as_str().unwrap();
    assert_eq!(file("a.jpg.txt"), format!("{caption}\n"));
    let texts = cutline::xmp::read(&file("b/c.JPG.xmp")).unwrap();
    assert_eq!(texts.description, texts.alt_text);
    assert_eq!(cutline::xmp::read(&file("a.jpg.xmp")).unwrap().alt_text.as_deref(), Some(caption));
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("cutline") || name.starts_with("broken.jpg."))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // Text that a person wrote is kept, except with --overwrite.
    let mine = file("a.jpg.xmp").replacen(caption, "my own words", 1);
    fs::write(folder.path().join("a.jpg.xmp"), &mine).unwrap();
    run(&folder, &["a.jpg", "--sidecar", "xmp"]);
    assert_eq!(file("a.jpg.xmp"), mine);
    run(&folder, &["a.jpg", "--sidecar", "xmp", "--overwrite"]);
    assert!(!file("a.jpg.xmp").contains("my own words"));
}

#[test]
fn an_unreadable_photo_gets_the_fallback_text_only_as_alternative_text() {
    let folder = album();
    fs::write(folder.path().join("broken.jpg"), "no photo").unwrap();
    let command = ["broken.jpg", "a.jpg", "--style=alt_text", "-o", "out.jsonl"];
    let command = [&command[..], &["--fallback-text", "nothing to say"]].concat();
    let output = run(&folder, &command);
    assert_status(&output, 1);
    let written = rows(&folder.path().join("out.jsonl"));
    assert_eq!(paths(&written), ["broken.jpg", "a.jpg"]);
    assert_eq!(
        (&written[0]["caption"], &written[0]["fallback"]),
        (&"nothing to say".into(), &true.into())
    );
    assert!(written[0]["fallback_reason"].as_str().unwrap().contains("JPEG, PNG"));
    assert!(written[1].get("fallback").is_none());
    // With --style caption there is no row at all.
    let output = run(&folder, &["broken.jpg", "--format", "jsonl"]);
    assert_status(&output, 1);
    assert!(output.stdout.is_empty());
}

#[test]
fn progress_is_reported_as_json() {
    let folder = album();
    fs::write(folder.path().join("broken.jpg"), "no photo").unwrap();
    let output = run(&folder, &["-r", ".", "--json-progress"]);
    assert_status(&output, 1);
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let lines: Vec<Value> =
        text(&output.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed = lines.iter().find(|line| line["event"] == "failed").unwrap();
    assert_eq!(
        (&failed["path"], &failed["code"]),
        (&"./broken.jpg".into(), &"unsupported_format".into())
    );
    let end = lines.last().unwrap();
    for (name, value) in
        [("total", 3), ("captioned", 2), ("failed", 1), ("skipped", 2), ("status", 1)]
    {
        assert_eq!(end[name], value, "{name} of {end}");
    }
    let quiet = run(&folder, &["-r", ".", "--quiet"]);
    assert_eq!(text(&quiet.stderr).lines().count(), 1, "{quiet:?}");
}

#[test]
fn a_pipe_is_not_waited_for() {
    let folder = album();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("p.jpg")).status();
    assert!(made.unwrap().success());
    let named = run(&folder, &["p.jpg"]);
    assert_status(&named, 1);
    assert!(text(&named.stderr).contains("not a regular file"), "{named:?}");
    assert_status(&run(&folder, &["."]), 0);
}
