//! A small server that speaks the hub's protocol, and a second one as its storage.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A request that a server received.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let headers = lines
            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect();
        Some(Self { method, path, headers })
    }
}

/// The answer of a server.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Send only this many bytes of the body, then close the connection.
    cut: Option<usize>,
    /// Send nothing, and keep the connection open.
    silent: bool,
    /// Instead of the body, send this many bytes at a time with this pause, until the client leaves.
    endless: Option<(usize, Duration)>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn write(&self, stream: &mut TcpStream, head: bool) -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {} Fake\r\nconnection: close\r\n", self.status)?;
        let has_length = self.headers.iter().any(|(name, _)| *name == "content-length");
        if !has_length && self.endless.is_none() {
            write!(stream, "content-length: {}\r\n", self.body.len())?;
        }
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        if let Some((bytes, pause)) = self.endless.filter(|_| !head) {
            loop {
                stream.write_all(&vec![b' '; bytes])?;
                std::thread::sleep(pause);
            }
        }
        if !head {
            stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        }
        stream.shutdown(Shutdown::Write)
    }
}

/// A fault of the next answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Other bytes of the same number.
    Other,
    /// Blanks without an end, this many at a time with this pause.
    Endless(usize, Duration),
    /// Only this many bytes of the answer, then the connection breaks.
    Break(usize),
    /// This status instead of an answer.
    Status(u16),
    /// The range of the request is ignored.
    IgnoreRange,
    /// No answer at all.
    Silence,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (log, stop) = (Arc::clone(&log), Arc::clone(&stop));
            move || {
                let mut held = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let mut stream = stream.unwrap();
                    let Some(request) = Request::read(&stream) else { continue };
                    log.lock().unwrap().push(request.clone());
                    let reply = handler(&request);
                    if reply.silent {
                        held.push(stream);
                    } else {
                        let _ = reply.write(&mut stream, request.method == "HEAD");
                    }
                }
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the hub has, and how it answers.
#[derive(Debug, Default, Clone)]
pub(super) struct Script {
    /// Revision → commit → its files.
    pub(super) revisions: BTreeMap<String, String>,
    pub(super) commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The token that every request must have.
    pub(super) token: Option<String>,
    /// Whether `x-error-code` says that the repository is gated.
    pub(super) gated: bool,
    /// HEAD is not allowed.
    pub(super) no_head: bool,
    /// Small files are redirected once within the hub, as the real one does.
    pub(super) indirect: bool,
    /// The hub answers everything with this status and location.
    pub(super) redirect: Option<(u16, String)>,
    /// The hub says of large files that they have this size, and of all files that they have this etag.
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    /// The hub sends a small file of this name without an end.
    pub(super) endless: Option<&'static str>,
    /// For the next requests for contents, in order.
    pub(super) faults: VecDeque<Fault>,
    /// For the next requests to the hub itself, in order.
    pub(super) hub_faults: VecDeque<Fault>,
}

/// The repository that the fake hub has.
pub(super) const REPO: &str = "org/tiny-blip";

/// A hub whose large files are on another host.
pub(super) struct FakeHub {
    hub: Server,
    storage: Server,
    pub(super) script: Arc<Mutex<Script>>,
}

impl FakeHub {
    pub(super) fn start(script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let storage = Server::start(Arc::new({
            let script = Arc::clone(&script);
            move |request: &Request| script.lock().unwrap().storage(request)
        }));
        let address = storage.address;
        let hub = Server::start(Arc::new({
            let script = Arc::clone(&script);
            move |request: &Request| script.lock().unwrap().hub(request, address)
        }));
        Self { hub, storage, script }
    }

    /// The value for `HF_ENDPOINT`.
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.hub.address)
    }

    /// The requests to the hub so far.
    pub(super) fn asked(&self) -> Vec<Request> {
        self.hub.log.lock().unwrap().clone()
    }

    /// The requests to its storage so far.
    pub(super) fn fetched(&self) -> Vec<Request> {
        self.storage.log.lock().unwrap().clone()
    }
}

/// A mirror that has nothing itself: it redirects every request to the hub.
pub(super) struct Mirror(Server);

impl Mirror {
    pub(super) fn start(hub: &FakeHub, status: u16) -> Self {
        let hub = hub.endpoint();
        Self(Server::start(Arc::new(move |request: &Request| {
            Reply::new(status).with("location", format!("{hub}{}", request.path))
        })))
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }

    pub(super) fn asked(&self) -> Vec<Request> {
        self.0.log.lock().unwrap().clone()
    }
}

impl Script {
    /// The hub's part: metadata, small files, and redirects to the storage.
    fn hub(&mut self, request: &Request, storage: SocketAddr) -> Reply {
        match self.hub_faults.pop_front() {
            Some(Fault::Status(status)) => return Reply::new(status),
            Some(Fault::Silence) => return Reply { silent: true, ..Reply::default() },
            _ => {}
        }
        if let Some((status, location)) = &self.redirect {
            return Reply::new(*status).with("location", location);
        }
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if bearer.is_some() && request.header("authorization") != bearer.as_deref() {
            let code = if self.gated { "GatedRepo" } else { "RepoNotFound" };
            return Reply::new(401).with("x-error-code", code);
        }
        if self.no_head && request.method == "HEAD" {
            return Reply::new(405);
        }
        let path = request.path.trim_start_matches("/cache");
        let Some(rest) = path.strip_prefix(&format!("/{REPO}/resolve/")) else {
            return Reply::new(404).with("x-error-code", "RepoNotFound");
        };
        let Some((revision, file)) = rest.split_once('/') else { return Reply::new(404) };
        let revision = revision.replace("%2F", "/");
        let commit = self.revisions.get(&revision).unwrap_or(&revision).clone();
        let Some(files) = self.commits.get(&commit) else {
            return Reply::new(404).with("x-error-code", "RevisionNotFound");
        };
        let Some(body) = files.get(file) else {
            return Reply::new(404).with("x-error-code", "EntryNotFound");
        };
        let etag = self.etag.clone().unwrap_or_else(|| etag(body));
        let known = |reply: Reply| reply.with("x-repo-commit", commit.clone());
        if file.ends_with(".safetensors") || file.ends_with(".bin") {
            return known(Reply::new(302))
                .with("x-linked-etag", format!("\"{etag}\""))
                .with("x-linked-size", self.size.unwrap_or(body.len() as u64).to_string())
                .with("etag", "\"of the redirect\"")
                .with("location", format!("http://{storage}/{commit}/{file}?signature=secret"));
        }
        if self.indirect && path == request.path {
            return known(Reply::new(307)).with("location", format!("/cache{path}"));
        }
        let endless = (self.endless == Some(file)).then_some((1 << 20, Duration::ZERO));
        let reply = Reply { endless, ..ranged(body, request.header("range")) };
        known(reply).with("etag", format!("W/\"{etag}\""))
    }

    /// The storage's part: contents, with ranges.
    fn storage(&mut self, request: &Request) -> Reply {
        let fault = self.faults.pop_front();
        let path = request.path.trim_start_matches('/').split('?').next().unwrap();
        let Some((commit, file)) = path.split_once('/') else { return Reply::new(404) };
        let Some(body) = self.commits.get(commit).and_then(|files| files.get(file)) else {
            return Reply::new(404);
        };
        let range = request.header("range");
        match fault {
            None => ranged(body, range),
            Some(Fault::Break(bytes)) => Reply { cut: Some(bytes), ..ranged(body, range) },
            Some(Fault::IgnoreRange) => ranged(body, None),
            Some(Fault::Other) => ranged(&vec![b'x'; body.len()], range),
            Some(Fault::Endless(bytes, pause)) => {
                Reply { endless: Some((bytes, pause)), ..ranged(body, range) }
            }
            Some(Fault::Status(status)) => Reply::new(status),
            Some(Fault::Silence) => Reply { silent: true, ..Reply::default() },
        }
    }
}

/// The hub's identifier of a content in Git LFS.
pub(super) fn etag(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ranged(body: &[u8], range: Option<&str>) -> Reply {
    let Some((from, to)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return Reply { body: body.to_vec(), ..Reply::new(200) };
    };
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(body.len(), |to: usize| to + 1).min(body.len());
    if from >= body.len() {
        return Reply::new(416).with("content-range", format!("bytes */{}", body.len()));
    }
    let header = format!("bytes {from}-{}/{}", to - 1, body.len());
    Reply { body: body[from..to].to_vec(), ..Reply::new(206) }.with("content-range", header)
}
