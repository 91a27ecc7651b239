//! Runs that are stopped in the middle, kindly or not.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{assert_status, cutline, photo, text};

/// Photos that differ, so that none is known from another: the decoder does not look behind the end.
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

/// Waits until `reached` says so, or the program has ended.
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
fn an_interrupt_finishes_what_is_in_hand_and_says_how_to_go_on() {
    const PHOTOS: usize = 60;
    let folder = album(PHOTOS);
    let out = folder.path().join("out.jsonl");
    let mut child = begin(&folder, &["--output", "out.jsonl"]);
    wait_for(&mut child, || lines(&out) > 0);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_status(&output, 130);
    let told = text(&output.stderr);
    assert!(told.contains("photos are left; run the same command again to go on"), "{told}");
    let done = lines(&out);
    assert!((1..PHOTOS).contains(&done), "{done}");
    assert!(told.contains(&format!("{} of {PHOTOS} photos are left", PHOTOS - done)), "{told}");

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
fn a_kill_leaves_whole_files_and_loses_what_was_in_hand() {
    const PHOTOS: usize = 40;
    // Twice a batch of eight with the two that are decoded.
    const IN_HAND: usize = 20;
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
        assert_eq!(status.signal(), Some(9), "it was still at it");
        let rows: Vec<Value> = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
        for sidecar in sidecars() {
            let texts = cutline::xmp::read(&fs::read_to_string(sidecar).unwrap()).unwrap();
            assert!(texts.description.is_some() && texts.alt_text.is_some());
        }
        let beside = sidecars().len();
        assert!(beside >= rows.len() && beside <= rows.len() + IN_HAND, "{beside} {}", rows.len());
        before = rows.len();
    }
    let output = begin(&folder, &["--output", "out.json", "--sidecar", "xmp"]);
    assert_status(&output.wait_with_output().unwrap(), 0);
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!((rows.len(), sidecars().len()), (PHOTOS, PHOTOS));
}
