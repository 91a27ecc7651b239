//! Runs that are interrupted or killed.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{assert_status, cutline, photo, text};

/// Photos with different bytes, so that no caption comes from the cache. Decoders ignore bytes after
/// the end of the image.
fn album(count: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let cat = fs::read(photo("cat")).unwrap();
    for number in 0..count {
        let bytes = [cat.as_slice(), number.to_string().as_bytes()].concat();
        fs::write(folder.path().join(format!("{number:03}.jpg")), bytes).unwrap();
    }
    folder
}

fn begin(folder: &TempDir, arguments: &[&str]) -> Child {
    cutline(folder, &[&["caption", "."], arguments].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until `reached` returns true or the program ends.
fn wait_for(child: &mut Child, mut reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !reached() && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing was written");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn an_interrupted_run_finishes_photos_in_progress_and_can_be_continued() {
    const PHOTOS: usize = 60;
    let folder = album(PHOTOS);
    let out = folder.path().join("out.jsonl");
    let mut child = begin(&folder, &["--output", "out.jsonl"]);
    wait_for(&mut child, || lines(&out) > 0);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_status(&output, 130);
    let reported = text(&output.stderr);
    assert!(
        reported.contains("photos are left; run the same command again to continue"),
        "{reported}"
    );
    let done = lines(&out);
    assert!((1..PHOTOS).contains(&done), "{done}");
    assert!(
        reported.contains(&format!("{} of {PHOTOS} photos are left", PHOTOS - done)),
        "{reported}"
    );

    let output = begin(&folder, &["--output", "out.jsonl"]).wait_with_output().unwrap();
    assert_status(&output, 0);
    assert!(text(&output.stderr).contains(&format!("{done} there already")), "{output:?}");
    let rows = fs::read_to_string(&out).unwrap();
    let paths: Vec<String> = rows
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].to_string())
        .collect();
    assert!(paths.len() == PHOTOS && paths.is_sorted(), "each once and in order: {paths:?}");
}

#[test]
fn a_killed_run_leaves_valid_files_and_loses_only_photos_in_progress() {
    const PHOTOS: usize = 40;
    // Twice the sum of a batch of eight and two decoders.
    const IN_PROGRESS: usize = 20;
    let folder = album(PHOTOS);
    let out = folder.path().join("out.json");
    let sidecars = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let xmps = names.filter(|path| path.extension().is_some_and(|ending| ending == "xmp"));
        xmps.collect::<Vec<_>>()
    };
    let mut before = 0;
    for more in [1, 3, 8] {
        let mut child = begin(&folder, &["--output", "out.json", "--sidecar", "xmp"]);
        wait_for(&mut child, || lines(&out) > before + more + 2);
        child.kill().unwrap();
        let status = child.wait_with_output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "it was still running");
        let rows: Vec<Value> = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
        for sidecar in sidecars() {
            let texts = cutline::xmp::read(&fs::read_to_string(sidecar).unwrap()).unwrap();
            assert!(texts.description.is_some() && texts.alt_text.is_some());
        }
        let beside = sidecars().len();
        assert!(
            beside >= rows.len() && beside <= rows.len() + IN_PROGRESS,
            "{beside} {}",
            rows.len()
        );
        before = rows.len();
    }
    let output = begin(&folder, &["--output", "out.json", "--sidecar", "xmp"]);
    assert_status(&output.wait_with_output().unwrap(), 0);
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!((rows.len(), sidecars().len()), (PHOTOS, PHOTOS));
}

/// A limit for the size of files stands in for a full disk: both end in a write that is cut off.
#[test]
fn a_file_that_cannot_grow_keeps_its_whole_rows_and_is_continued_later() {
    const PHOTOS: usize = 20;
    let folder = album(PHOTOS);
    for name in ["out.json", "out.jsonl"] {
        let mut shell = Command::new("/bin/sh");
        shell.current_dir(folder.path()).env_clear().stdin(Stdio::null()).arg("-c");
        // Blocks of 512 bytes. Without the signal, writing beyond the limit is an error.
        shell.arg("trap '' XFSZ; ulimit -f 16; exec \"$0\" caption . --output \"$1\"");
        let output = shell.args([env!("CARGO_BIN_EXE_cutline"), name]).output().unwrap();
        assert_status(&output, 1);
        let reported = text(&output.stderr);
        assert!(reported.contains(&format!("{name}: cannot be written")), "{reported}");
        let bytes = fs::read(folder.path().join(name)).unwrap();
        let rows: Vec<Value> = if name == "out.json" {
            serde_json::from_slice(&bytes).unwrap()
        } else {
            text(&bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert!((1..PHOTOS).contains(&rows.len()), "{name}: {}", rows.len());

        let output = begin(&folder, &["--output", name]).wait_with_output().unwrap();
        assert_status(&output, 0);
        let known = format!("{} there already", rows.len());
        assert!(text(&output.stderr).contains(&known), "{output:?}");
    }
}

#[test]
fn a_second_signal_ends_a_run_without_waiting_for_photos_in_progress() {
    const PHOTOS: usize = 60;
    let folder = album(PHOTOS);
    let out = folder.path().join("out.json");
    // Long captions, so that photos in progress take a while.
    let slow = ["--output", "out.json", "--num-beams", "10", "--min-new-tokens", "20"];
    let mut child = begin(&folder, &slow);
    wait_for(&mut child, || lines(&out) > 2);
    let pid = child.id().to_string();
    let interrupt = || Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(interrupt().success());
    // Signals of the same kind that arrive together count once.
    std::thread::sleep(Duration::from_millis(50));
    assert!(interrupt().success());
    let output = child.wait_with_output().unwrap();
    assert_status(&output, 130);
    assert!(text(&output.stderr).contains("photos are left"), "{output:?}");
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert!((1..PHOTOS).contains(&rows.len()), "{}", rows.len());
}
