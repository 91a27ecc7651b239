//! `cutline mcp`, as an assistant runs it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::spawn;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{cutline, photo};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(120);

const CAT: &str = "a cat sitting on top of a table";

/// An assistant with its server.
struct Assistant {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Answers that came before they were asked for.
    early: HashMap<u64, Value>,
    next: u64,
    folder: TempDir,
}

impl Assistant {
    /// Starts the server in an empty folder.
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let arguments = [&["mcp"], arguments].concat();
        let mut command = cutline(&folder, &arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .take_while(|line| sender.send(line.clone()).is_ok())
                .count()
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, early: HashMap::new(), next: 0, folder }
    }

    /// [`start`](Self::start), and the handshake.
    fn greeted(arguments: &[&str]) -> Self {
        Self::start(arguments).greet()
    }

    fn greet(mut self) -> Self {
        let client = json!({"name": "test", "version": "1"});
        let hello =
            json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
        let answer = self.ask("initialize", &hello);
        assert_eq!(answer["result"]["serverInfo"]["name"], "cutline", "{answer}");
        self.write(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
        self
    }

    fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Sends a request and returns its id.
    fn send(&mut self, method: &str, params: &Value) -> u64 {
        self.next += 1;
        let id = self.next;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.write(&request.to_string());
        id
    }

    /// The answer to a request. Everything on standard output is a message of the protocol.
    fn answer(&mut self, id: u64) -> Value {
        loop {
            if let Some(answer) = self.early.remove(&id) {
                return answer;
            }
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            let message: Value =
                serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_eq!(message["jsonrpc"], "2.0", "{line}");
            self.early.insert(message["id"].as_u64().unwrap(), message);
        }
    }

    fn ask(&mut self, method: &str, params: &Value) -> Value {
        let id = self.send(method, params);
        self.answer(id)
    }

    /// Calls a tool and returns its result.
    fn call(&mut self, name: &str, arguments: &Value) -> Value {
        let answer = self.ask("tools/call", &json!({"name": name, "arguments": arguments}));
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].clone()
    }

    /// The sentence of a call that fails.
    fn fails(&mut self, name: &str, arguments: &Value) -> String {
        let result = self.call(name, arguments);
        assert_eq!(result["isError"], true, "{arguments}: {result}");
        result["content"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Closes standard input. Returns the exit status, what was still written, and standard error.
    fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        self.stdin = None;
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the server does not end"),
            }
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code(), rest, errors)
    }
}

impl Drop for Assistant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(path: &str) -> Value {
    json!({"path": path})
}

#[test]
fn an_assistant_captions_the_photos_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(photo("cat"), folder.path().join("cat.jpg")).unwrap();
    let mut assistant = Assistant::greeted(&[folder.path().to_str().unwrap()]);
    let listed = assistant.ask("tools/list", &json!({}));
    let tools = listed["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 4);
    for tool in tools {
        let about = &tool["inputSchema"]["properties"]["path"]["description"];
        let folder = folder.path().canonicalize().unwrap();
        assert!(about.as_str().unwrap().contains(folder.to_str().unwrap()), "{about}");
    }
    let absolute = folder.path().join("cat.jpg");
    for path in [path("cat.jpg"), path("./cat.jpg"), path(absolute.to_str().unwrap())] {
        let result = assistant.call("caption_image", &path);
        assert_eq!(result["content"][0]["text"], CAT, "{result}");
        assert_eq!(result["structuredContent"]["caption"], CAT);
    }
    let text = assistant.call("alt_text", &path("cat.jpg"));
    assert!(text["structuredContent"]["alt_text"].as_str().unwrap().contains("cat"), "{text}");
    let tags = assistant.call("tag_image", &path("cat.jpg"));
    assert_eq!(tags["structuredContent"]["tags"][0]["name"], "cat", "{tags}");
    let colors = assistant.call("image_colors", &path("cat.jpg"));
    assert!(colors["structuredContent"]["colors"][0]["hex"].as_str().unwrap().starts_with('#'));
    let encoded = STANDARD.encode(fs::read(photo("cat")).unwrap());
    let result = assistant.call("caption_image", &json!({"image": encoded}));
    assert_eq!(result["structuredContent"]["caption"], CAT);
    let (status, rest, errors) = assistant.end();
    assert_eq!((status, rest.len(), errors.as_str()), (Some(0), 0, ""));
}

#[test]
fn nothing_outside_of_the_folders_is_read() {
    let place = tempfile::tempdir().unwrap();
    let (inside, outside) = (place.path().join("inside"), place.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let secret = outside.join("secret.jpg");
    fs::copy(photo("cat"), &secret).unwrap();
    fs::copy(photo("cat"), inside.join("cat.jpg")).unwrap();
    symlink(&secret, inside.join("file.jpg")).unwrap();
    symlink("../outside", inside.join("folder")).unwrap();
    symlink("/proc/self/cwd", inside.join("cwd")).unwrap();
    symlink("/dev/zero", inside.join("zero")).unwrap();
    symlink("/dev/stdin", inside.join("stdin")).unwrap();
    let pipe = inside.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = fs::File::create(inside.join("huge.jpg")).unwrap();
    huge.set_len(1 << 40).unwrap();

    let mut assistant = Assistant::greeted(&[inside.to_str().unwrap()]);
    // The working directory of the server, which has a photo as well.
    fs::copy(photo("cat"), assistant.folder.path().join("own.jpg")).unwrap();
    let missing = assistant.fails("image_colors", &path("missing.jpg"));
    assert!(missing.contains("there is no such file in"), "{missing}");
    for attempt in [
        "../outside/secret.jpg",
        "cat.jpg/../../outside/secret.jpg",
        secret.to_str().unwrap(),
        "file.jpg",
        "folder/secret.jpg",
        "cwd/own.jpg",
        "own.jpg",
        "zero",
        "stdin",
        "/dev/zero",
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/proc/self/root/etc/passwd",
        "/etc/passwd",
        "~/secret.jpg",
        "cat.jpg\0.txt",
        "file:///etc/passwd",
    ] {
        let sentence = assistant.fails("image_colors", &path(attempt));
        assert_eq!(sentence, missing, "{attempt}: the sentence tells what is there");
    }
    for (attempt, part) in [
        ("pipe", "not that of a file"),
        (".", "not that of a file"),
        ("huge.jpg", "larger than 10485760 bytes"),
    ] {
        let sentence = assistant.fails("image_colors", &path(attempt));
        assert!(sentence.contains(part), "{attempt}: {sentence}");
    }
    let colors = assistant.call("image_colors", &path("cat.jpg"));
    assert_eq!(colors["isError"], false, "{colors}");
    assert_eq!(assistant.end().0, Some(0));
}

#[test]
fn without_a_folder_no_file_is_read() {
    let mut assistant = Assistant::greeted(&[]);
    let cat = photo("cat");
    let sentence = assistant.fails("image_colors", &path(&cat));
    assert!(sentence.contains("start it as cutline mcp FOLDER"), "{sentence}");
    let sentence = assistant.fails("image_colors", &json!({"url": "https://example.org/a.jpg"}));
    assert!(sentence.contains("FETCH_URLS"), "{sentence}");
    let sentence = assistant.fails("image_colors", &json!({"image": "äöü"}));
    assert!(sentence.contains("not valid base64"), "{sentence}");
    // Larger than the largest image, in one line.
    let sentence = assistant.fails("image_colors", &json!({"image": "A".repeat(16 << 20)}));
    assert!(sentence.contains("larger than 10485760 bytes"), "{sentence}");
    assert_eq!(assistant.end().0, Some(0));
}

/// A server that answers with a photo, or with 404 for other paths, to the end of the test.
fn photos() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let (status, body) = match line.split(' ').nth(1) {
                Some("/cat.jpg") => ("200 OK", fs::read(photo("cat")).unwrap()),
                _ => ("404 Not Found", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            // The client may leave early.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    address
}

#[test]
fn an_address_is_fetched_from_listed_hosts() {
    let address = photos().to_string();
    let arguments = ["--fetch-urls", "list", "--fetch-hosts", &address];
    let mut assistant = Assistant::greeted(&arguments);
    let listed = assistant.ask("tools/list", &json!({}));
    let properties = &listed["result"]["tools"][0]["inputSchema"]["properties"];
    assert!(properties["url"].is_object(), "{listed}");
    let url = |path: &str| json!({"url": format!("http://{address}/{path}")});
    let caption = assistant.call("caption_image", &url("cat.jpg"));
    assert_eq!(caption["structuredContent"]["caption"], CAT, "{caption}");
    let sentence = assistant.fails("image_colors", &url("dog.jpg"));
    assert!(sentence.contains("the status 404"), "{sentence}");
    let sentence = assistant.fails("image_colors", &json!({"url": "http://127.0.0.1:1/cat.jpg"}));
    assert!(sentence.contains("FETCH_HOSTS"), "{sentence}");
    assert_eq!(assistant.end().0, Some(0));
}

#[test]
fn a_folder_that_does_not_exist_is_refused_at_once() {
    let assistant = Assistant::start(&["no/such/folder"]);
    let (status, rest, errors) = assistant.end();
    assert_eq!((status, rest.len()), (Some(2), 0));
    assert!(errors.contains("no/such/folder") && errors.contains("existing folder"), "{errors}");
}

/// The protocol is answered while the model loads, and also if that fails.
#[test]
fn tools_are_listed_without_a_model() {
    let mut assistant = Assistant::greeted(&["--model", "no/such/model.gguf"]);
    let listed = assistant.ask("tools/list", &json!({}));
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 4);
    let image = json!({"image": STANDARD.encode(fs::read(photo("cat")).unwrap())});
    let sentence = assistant.fails("caption_image", &image);
    assert!(sentence.contains("no/such"), "{sentence}");
    assert_eq!(assistant.call("image_colors", &image)["isError"], false);
    let (status, _, errors) = assistant.end();
    assert_eq!(status, Some(1));
    assert!(errors.contains("no/such"), "{errors}");
}

#[test]
fn a_cancelled_call_is_not_answered() {
    let mut assistant = Assistant::greeted(&[]);
    let image = json!({"image": STANDARD.encode(fs::read(photo("cat")).unwrap())});
    // The model is still loading, so the call cannot be faster than its cancellation.
    let call = assistant.send("tools/call", &json!({"name": "caption_image", "arguments": image}));
    let params = json!({"requestId": call, "reason": "changed my mind"});
    let note = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
    assistant.write(&note.to_string());
    let result = assistant.call("caption_image", &image);
    assert_eq!(result["structuredContent"]["caption"], CAT);
    assert!(!assistant.early.contains_key(&call), "the cancelled call was answered");
    let (status, rest, _) = assistant.end();
    assert_eq!((status, rest.len()), (Some(0), 0));
}

#[test]
fn what_is_no_message_is_passed_over() {
    let mut assistant = Assistant::greeted(&[]);
    for line in ["", "no JSON", "{\"half\": ", "\u{feff}", "[[[[[["] {
        assistant.write(line);
    }
    let answer = assistant.ask("tools/call", &json!({"name": "nonsense"}));
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    let answer = assistant.ask("no/such/method", &json!({}));
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    assert_eq!(assistant.ask("ping", &json!({}))["result"], json!({}));
    assert_eq!(assistant.end().0, Some(0));
}

/// The protocol of 2026 has no handshake.
#[test]
fn an_assistant_needs_no_handshake() {
    let mut assistant = Assistant::start(&[]);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let found = assistant.ask("server/discover", &json!({"_meta": meta}));
    assert!(found["result"]["capabilities"]["tools"].is_object(), "{found}");
    let image = STANDARD.encode(fs::read(photo("cat")).unwrap());
    let params = json!({"name": "image_colors", "arguments": {"image": image}, "_meta": meta});
    let answer = assistant.ask("tools/call", &params);
    assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    assert_eq!(assistant.end().0, Some(0));
}

#[test]
fn an_assistant_that_says_nothing_is_left_in_peace() {
    let (status, rest, errors) = Assistant::start(&[]).end();
    assert_eq!((status, rest.len(), errors.as_str()), (Some(0), 0, ""));
    let mut assistant = Assistant::start(&[]);
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assistant.write(&note.to_string());
    let (status, _, errors) = assistant.end();
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("does not begin with the Model Context Protocol"), "{errors}");
}
