//! What needs a model: the embedded one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{assert_sentence, assert_status, cutline, photo, run, text};

#[test]
fn a_limit_of_the_model_is_known_once_it_is_loaded() {
    let output = run(&["caption", &photo("cat"), "--max-new-tokens", "9999"]);
    assert_sentence(&output, 1, &["max_new_tokens", "cat.jpg"]);
}

#[test]
fn captions_come_in_the_order_of_the_files() {
    let names = ["rocket", "cat", "coffee", "astronaut"];
    let photos = names.map(photo);
    let mut arguments = vec!["caption"];
    arguments.extend(photos.iter().map(String::as_str));

    let output = run(&arguments);
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    let lines: Vec<(&str, &str)> =
        text(&output.stdout).lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(lines.iter().map(|(path, _)| *path).collect::<Vec<_>>(), photos);
    assert!(lines.iter().all(|(_, caption)| !caption.trim().is_empty()), "{lines:?}");

    arguments.extend(["--format", "json"]);
    let output = run(&arguments);
    assert_status(&output, 0);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for ((row, path), line) in rows.iter().zip(&photos).zip(&lines) {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys[..3], ["path", "caption", "captions"]);
        assert_eq!((&row["path"], &row["caption"]), (&path.as_str().into(), &line.1.into()));
        assert_eq!(row["image"]["format"], "jpeg");
        let size = std::fs::metadata(path).unwrap().len();
        assert_eq!(row["image"]["size_bytes"], size);
    }
    assert_eq!(rows.len(), names.len());
}

#[test]
fn a_bad_file_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.jpg"), "no photo").unwrap();
    let good = photo("cat");
    let files = ["missing.jpg", &good, "text.jpg", ".", &good];
    let output = cutline(&folder, &["caption", "--format=jsonl", "--num-beams=2"])
        .args(["--num-captions", "2"])
        .args(files)
        .output()
        .unwrap();
    assert_status(&output, 1);
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["captions"].as_array().unwrap().len() == 2), "{rows:?}");
    let complaints: Vec<&str> = text(&output.stderr).lines().collect();
    for (complaint, file) in complaints.iter().zip(["missing.jpg", "text.jpg", "."]) {
        assert!(complaint.starts_with(&format!("{file}: ")), "{complaint}");
    }
    assert_eq!(complaints.len(), 3, "{complaints:?}");

    let none = cutline(&folder, &["caption", "--format", "json", "missing.jpg"]).output().unwrap();
    assert_status(&none, 1);
    assert_eq!(text(&none.stdout), "[]\n");
}

#[test]
fn the_same_seed_gives_the_same_caption() {
    let cat = photo("cat");
    let sample = |seed: &str| {
        let output = run(&["caption", "--do-sample", "--seed", seed, &cat]);
        assert_status(&output, 0);
        text(&output.stdout).to_owned()
    };
    assert_eq!(sample("7"), sample("7"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = cutline(&folder, &["caption", &photo("cat"), &photo("coffee")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_model_is_described_as_json() {
    let output = run(&["model", "info"]);
    assert_status(&output, 0);
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["architecture"], "BlipForConditionalGeneration");
    assert!(info["parameters"].as_u64().unwrap() > 0);
    assert!(info["digest"].as_str().unwrap().starts_with("blake3:"));
    let output = run(&["model", "info", "./no-such-folder"]);
    assert_sentence(&output, 1, &["no-such-folder"]);
}

/// A running server, which ends with the test.
struct Server {
    child: Child,
    /// What it prints, read as it comes: a full pipe would stop it.
    stdout: JoinHandle<String>,
    address: String,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = cutline(&folder, &["serve", "--port", "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        let message = line["message"].as_str().unwrap();
        let address = message.strip_prefix("listening on ").unwrap().to_owned();
        let stdout = spawn(move || {
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            rest
        });
        Self { child, stdout, address, _folder: folder }
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("{}{path}", self.address)).call().unwrap();
        let body = answer.body_mut().read_to_vec().unwrap();
        (answer.status().as_u16(), serde_json::from_slice(&body).unwrap())
    }

    fn wait_until_ready(&self) {
        let begin = Instant::now();
        while self.get("/health/ready").0 != 200 {
            assert!(begin.elapsed() < Duration::from_secs(120), "{:?}", self.get("/health"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// The exit status, the rest of standard output, and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let status = self.child.wait().unwrap().code();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let stdout = std::mem::replace(&mut self.stdout, spawn(String::new));
        (status, stdout.join().unwrap(), errors)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn a_server_serves_until_it_is_told_to_stop() {
    let server = Server::start();
    assert_eq!(server.get("/health/live").0, 200);
    server.wait_until_ready();
    assert_eq!(server.get("/health").1["status"], "ok");
    let photo = std::fs::read(Path::new(&photo("cat"))).unwrap();
    let mut answer = ureq::post(format!("{}/caption/generate", server.address))
        .header("content-type", "image/jpeg")
        .header("x-request-id", "from-the-test")
        .send(photo.as_slice())
        .unwrap();
    let caption: Value = serde_json::from_slice(&answer.body_mut().read_to_vec().unwrap()).unwrap();
    assert!(caption["caption"].is_string(), "{caption}");

    server.signal("-TERM");
    let (status, output, errors) = server.end();
    assert_eq!(status, Some(0), "{output}{errors}");
    assert_eq!(errors, "");
    let lines: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|l| l["message"].as_str().unwrap().starts_with("model ready in ")));
    let line = lines.iter().find(|line| line["request_id"] == "from-the-test").unwrap();
    assert_eq!(line["status"], 200);
    assert_eq!(line["image_hash"], caption["image"]["hash"]);
}

#[cfg(unix)]
#[test]
fn a_server_can_be_stopped_while_its_model_loads() {
    let server = Server::start();
    server.signal("-INT");
    let (status, output, errors) = server.end();
    assert_eq!(status, Some(0), "{output}{errors}");
}
