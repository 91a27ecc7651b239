//! Fetching on a scripted network: names resolve as the test says, and connections to public addresses
//! lead to servers of the test on loopback. The rules are the real ones; nothing reaches a network.

mod limits;
mod redirects;
mod rules;
mod tls;
mod transfers;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::network::Pending;
use super::*;

/// A public address, at which [`Script::server`] puts servers.
const PUBLIC: &str = "93.184.215.14";

/// The beginning of a PNG file is enough to be recognised.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0";

const MAX_BYTES: usize = 100_000;

#[derive(Debug, Clone, Default)]
struct Script {
    state: Arc<Mutex<ScriptState>>,
}

#[derive(Debug, Default)]
struct ScriptState {
    /// The answers to lookups, one after another; the last one stays.
    names: HashMap<String, VecDeque<Vec<IpAddr>>>,
    /// Where the server at a public address really listens.
    servers: HashMap<SocketAddr, SocketAddr>,
    lookups: Vec<String>,
    connections: Vec<SocketAddr>,
    /// Addresses of this machine.
    own: Vec<IpAddr>,
}

impl Network for Script {
    fn resolve<'a>(&'a self, name: &'a str) -> Pending<'a, Vec<IpAddr>> {
        let mut state = self.state.lock().unwrap();
        state.lookups.push(name.to_owned());
        let answers = state.names.get_mut(name);
        let answer = answers.and_then(|answers| {
            if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
        });
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
    }

    fn connect(&self, address: SocketAddr) -> Pending<'_, Connected> {
        let mut state = self.state.lock().unwrap();
        state.connections.push(address);
        let is_own = state.own.contains(&address.ip());
        let server = state.servers.get(&address).copied();
        Box::pin(async move {
            let server = server.ok_or_else(|| io::Error::other("connection refused"))?;
            Ok(Connected { stream: TcpStream::connect(server).await?, is_own })
        })
    }
}

impl Script {
    /// `name` resolves to the first of `answers`, then to the next one.
    fn name(&self, name: &str, answers: &[&[&str]]) {
        let parsed = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        let answers = answers.iter().map(parsed).collect();
        self.state.lock().unwrap().names.insert(name.to_owned(), answers);
    }

    /// A server at `address` of the public internet.
    async fn server_at(&self, address: &str, server: Server) {
        let (real, _) = server.start().await;
        self.state.lock().unwrap().servers.insert(address.parse().unwrap(), real);
    }

    /// example.com with one server, at port 80.
    async fn example(server: Server) -> Self {
        let script = Self::default();
        script.name("example.com", &[&[PUBLIC]]);
        script.server_at(&format!("{PUBLIC}:80"), server).await;
        script
    }

    fn fetcher(&self, sources: FetchSources) -> Fetcher {
        self.fetcher_within(sources, Duration::from_secs(10))
    }

    fn fetcher_within(&self, sources: FetchSources, timeout: Duration) -> Fetcher {
        let settings = FetchSettings { sources, timeout, max_bytes: MAX_BYTES };
        Fetcher::on(Box::new(self.clone()), exchange::tls(), settings)
    }

    async fn public(&self, url: &str) -> Result<Photo> {
        self.fetcher(FetchSources::Public).fetch(url, &Budget::new(1 << 20)).await
    }

    /// The addresses that were connected to, in order.
    fn connections(&self) -> Vec<String> {
        self.state.lock().unwrap().connections.iter().map(ToString::to_string).collect()
    }

    fn lookups(&self) -> Vec<String> {
        self.state.lock().unwrap().lookups.clone()
    }
}

fn listed(hosts: &str) -> FetchSources {
    FetchSources::Listed(hosts.parse().unwrap())
}

/// Asserts that `result` is the one sentence for everything that cannot or may not be reached.
#[track_caller]
fn assert_unreachable(result: Result<Photo>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::FetchFailed, "{what}: {error}");
    assert_eq!(error.to_string(), unreachable("").to_string(), "{what}");
}

/// What a server does, step by step, once the head of a request has arrived.
#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// Sends this until the client has gone.
    Repeat(Vec<u8>),
    /// Keeps the connection open until the client closes it.
    Hold,
}

/// A server of one connection after another, with an answer for each path.
#[derive(Clone, Default)]
struct Server {
    answers: HashMap<String, Vec<Step>>,
    log: Arc<Log>,
}

/// What a server has seen.
#[derive(Debug, Default)]
struct Log {
    /// The heads of all requests.
    heads: Mutex<Vec<String>>,
    /// Connections that are open now, and the most that ever were.
    open: Mutex<(usize, usize)>,
    /// Connections that clients have closed before their answer was complete.
    left: Mutex<usize>,
}

impl Server {
    fn new() -> Self {
        Self::default()
    }

    fn at(mut self, path: &str, steps: impl Into<Vec<Step>>) -> Self {
        self.answers.insert(path.to_owned(), steps.into());
        self
    }

    /// The path answers with an image.
    fn image(self, path: &str) -> Self {
        self.at(path, [Step::Send(ok(PNG))])
    }

    /// The path redirects to `location`.
    fn redirect(self, path: &str, location: &str) -> Self {
        let head =
            format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        self.at(path, [Step::Send(head.into_bytes())])
    }

    fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    async fn start(self) -> (SocketAddr, Arc<Log>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, log) = (listener.local_addr().unwrap(), self.log());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = self.clone();
                tokio::spawn(async move { server.answer(stream).await });
            }
        });
        (address, log)
    }

    async fn answer(&self, mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
        {
            let mut open = self.log.open.lock().unwrap();
            open.0 += 1;
            open.1 = open.1.max(open.0);
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        self.log.heads.lock().unwrap().push(head);
        let missing = vec![Step::Send(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".to_vec())];
        let steps = self.answers.get(&path).cloned().unwrap_or(missing);
        if self.play(steps, &mut stream).await.is_err() {
            *self.log.left.lock().unwrap() += 1;
        }
        self.log.open.lock().unwrap().0 -= 1;
    }

    async fn play(
        &self,
        steps: Vec<Step>,
        stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    ) -> io::Result<()> {
        for step in steps {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Wait(time) => tokio::time::sleep(time).await,
                Step::Repeat(bytes) => loop {
                    stream.write_all(&bytes).await?;
                    stream.flush().await?;
                },
                Step::Hold => {
                    stream.flush().await?;
                    while stream.read(&mut [0; 64]).await? > 0 {}
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            stream.flush().await?;
        }
        stream.shutdown().await
    }
}

impl Log {
    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn most_open(&self) -> usize {
        self.open.lock().unwrap().1
    }

    /// Waits until clients have left this many connections.
    async fn left(&self, connections: usize) {
        let waiting = async {
            while *self.left.lock().unwrap() < connections {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the client has gone");
    }
}

/// An answer with this body.
fn ok(body: &[u8]) -> Vec<u8> {
    ok_with("", body)
}

/// An answer with this body and more headers.
fn ok_with(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
