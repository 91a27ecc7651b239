//! The server with the embedded model, from start to stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, scope, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{cutline, photo};

/// A running server, which ends with the test.
pub(super) struct Server {
    child: Child,
    /// Reads standard output all the time: a full pipe would block the server.
    stdout: JoinHandle<String>,
    pub(super) address: String,
    _folder: TempDir,
}

impl Server {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the server with these environment variables.
    pub(super) fn start_with(environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = cutline(&folder, &["serve", "--port", "0"]);
        command.env("SHUTDOWN_DELAY", "0").envs(environment.iter().copied());
        Self::spawn(command, folder)
    }

    fn spawn(mut command: Command, folder: TempDir) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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

    pub(super) fn get(&self, path: &str) -> (u16, Value) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(format!("{}{path}", self.address)).call().unwrap();
        let body = answer.body_mut().read_to_vec().unwrap();
        (answer.status().as_u16(), serde_json::from_slice(&body).unwrap())
    }

    pub(super) fn wait_until_ready(&self) {
        let begin = Instant::now();
        while self.get("/health/ready").0 != 200 {
            assert!(begin.elapsed() < Duration::from_secs(120), "{:?}", self.get("/health"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server has noticed a signal.
    pub(super) fn wait_until_stopping(&self) {
        while self.get("/health/ready").1["code"] != "shutting_down" {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// The exit status, the rest of standard output, and standard error.
    pub(super) fn end(mut self) -> (Option<i32>, String, String) {
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

/// Without a free descriptor nothing is accepted until a silent connection has run out of time.
#[test]
fn silent_connections_leave_descriptors_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\" serve --port 0", env!("CARGO_BIN_EXE_cutline")]);
    shell.env_clear().current_dir(&folder).stdin(Stdio::null());
    let server = Server::spawn(shell, folder);
    let address = server.address.strip_prefix("http://").unwrap();
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begin = Instant::now();
    assert_eq!(server.get("/health/live").0, 200);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    drop(silent);
}

#[test]
fn a_server_serves_until_a_signal_stops_it() {
    let server = Server::start();
    assert_eq!(server.get("/health/live").0, 200);
    server.wait_until_ready();
    assert_eq!(server.get("/health").1["status"], "ok");
    assert_eq!(health(&server.address), (Some(0), "ready\n".to_owned(), String::new()));
    let photo = std::fs::read(photo("cat")).unwrap();
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

/// The exit status and the output of `cutline health`.
fn health(address: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = cutline(&folder, &["health", "--url", address]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn health_distinguishes_ready_loading_and_absent_servers() {
    // Port and host as the server itself reads them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let loading = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        let answer = "HTTP/1.1 503 x\r\ncontent-type: application/problem+json\r\n\r\n\
                      {\"detail\": \"the model is still loading\"}";
        stream.write_all(answer.as_bytes()).unwrap();
        request
    });
    let folder = tempfile::tempdir().unwrap();
    let ask = || {
        let arguments = ["health", "--port", &port, "--host", "0.0.0.0"];
        cutline(&folder, &arguments).output().unwrap()
    };
    let output = ask();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected =
        format!("http://127.0.0.1:{port}/health/ready answers 503: the model is still loading\n");
    assert_eq!(said, expected);
    assert_eq!(loading.join().unwrap(), "GET /health/ready HTTP/1.1\r\n");
    // The port is closed now.
    let output = ask();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("does not answer"));
    assert_eq!(health("https://127.0.0.1").0, Some(2), "TLS is not supported");
}

#[test]
fn a_server_can_be_stopped_while_its_model_loads() {
    let server = Server::start();
    server.signal("-INT");
    let (status, output, errors) = server.end();
    assert_eq!(status, Some(0), "{output}{errors}");
}

/// Sends a request over a new connection, since a stopping server closes idle ones.
fn post(address: &str, body: &[u8]) -> Result<(u16, Value), ureq::Error> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent
        .post(format!("{address}/caption/generate?cache=bypass&num_beams=3"))
        .header("content-type", "image/jpeg")
        .header("connection", "close")
        .send(body)?;
    let body = answer.body_mut().read_to_vec()?;
    Ok((answer.status().as_u16(), serde_json::from_slice(&body).unwrap()))
}

#[test]
fn a_server_that_stops_under_load_finishes_accepted_requests() {
    const CLIENTS: usize = 12;
    let server = Server::start_with(&[("SHUTDOWN_DELAY", "0.5")]);
    server.wait_until_ready();
    let photo = std::fs::read(photo("cat")).unwrap();
    let (answered, stopping) = (AtomicUsize::new(0), AtomicBool::new(false));
    let refused = Mutex::new(Vec::new());
    let client = || {
        loop {
            let late = stopping.load(Ordering::SeqCst);
            match post(&server.address, &photo) {
                Ok((200, answer)) => {
                    assert!(answer["caption"].is_string(), "{answer}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok((status, answer)) => {
                    refused.lock().unwrap().push((status, answer));
                    return;
                }
                // The listening socket is closed after the last answer.
                Err(error) => {
                    assert!(late, "a request before the signal was lost: {error}");
                    return;
                }
            }
        }
    };
    scope(|threads| {
        (0..CLIENTS).for_each(|_| drop(threads.spawn(client)));
        while answered.load(Ordering::SeqCst) < 2 * CLIENTS {
            std::thread::sleep(Duration::from_millis(5));
        }
        stopping.store(true, Ordering::SeqCst);
        server.signal("-TERM");
    });
    for (status, answer) in refused.into_inner().unwrap() {
        assert_eq!((status, &answer["code"]), (503, &"shutting_down".into()), "{answer}");
    }
    let (status, output, errors) = server.end();
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");
    let statuses: Vec<u64> = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["route"] == "/caption/generate")
        .map(|line| line["status"].as_u64().unwrap())
        .collect();
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
}

#[test]
fn ctrl_c_does_not_wait_for_a_load_balancer_and_a_second_signal_for_nothing() {
    let began = Instant::now();
    let server = Server::start_with(&[("SHUTDOWN_DELAY", "600")]);
    server.wait_until_ready();
    server.signal("-INT");
    let (status, output, errors) = server.end();
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");

    let server = Server::start_with(&[("SHUTDOWN_DELAY", "600")]);
    server.wait_until_ready();
    server.signal("-TERM");
    server.wait_until_stopping();
    let photo = std::fs::read(photo("cat")).unwrap();
    assert_eq!(post(&server.address, &photo).unwrap().0, 200, "it still serves");
    server.signal("-TERM");
    let (status, output, _) = server.end();
    assert_eq!(status, Some(128 + 15), "{output}");
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_second_signal_stops_the_server_at_once() {
    let server = Server::start();
    server.wait_until_ready();
    // An accepted request that is never completed.
    let mut stream = TcpStream::connect(server.address.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n\
                expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100");

    server.signal("-TERM");
    server.wait_until_stopping();
    let begin = Instant::now();
    server.signal("-TERM");
    let (status, output, _) = server.end();
    assert_eq!(status, Some(128 + 15), "{output}");
    assert!(begin.elapsed() < Duration::from_secs(10), "SHUTDOWN_GRACE is 30 s");
}
