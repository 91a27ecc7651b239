//! Backends that do as a test says, in memory, so that the clock can be the test's.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use crate::routing::upstream::{Dial, Io};

/// What a backend does with one request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// There is no connection.
    Refuse,
    /// Answers with this status, more headers, and this body.
    Status(u16, &'static str, String),
    /// Sends these pieces one second apart, then closes.
    Pieces(Vec<String>),
    /// Sends the first piece, then nothing.
    Stall(String),
    /// Sends this piece again and again.
    Endless(String),
    /// Sends a byte of its headers each second.
    Trickle,
    /// Says nothing.
    Hang,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) at: Instant,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    next: HashMap<String, VecDeque<Reply>>,
    usual: HashMap<String, Reply>,
    seen: Vec<Seen>,
    /// Connections that the other side has closed.
    closed: usize,
}

/// All backends by their hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct Script(Arc<Mutex<State>>);

impl Script {
    pub(super) fn usually(&self, host: &str, reply: Reply) {
        self.0.lock().unwrap().usual.insert(host.to_owned(), reply);
    }

    pub(super) fn next(&self, host: &str, reply: Reply) {
        self.0.lock().unwrap().next.entry(host.to_owned()).or_default().push_back(reply);
    }

    pub(super) fn seen(&self, host: &str) -> Vec<Seen> {
        let state = self.0.lock().unwrap();
        state.seen.iter().filter(|seen| seen.host == host).cloned().collect()
    }

    pub(super) fn closed(&self) -> usize {
        self.0.lock().unwrap().closed
    }

    fn reply(&self, host: &str) -> Reply {
        let mut state = self.0.lock().unwrap();
        let next = state.next.get_mut(host).and_then(VecDeque::pop_front);
        next.or_else(|| state.usual.get(host).cloned()).unwrap_or(Reply::Refuse)
    }

    async fn serve(self, host: String, mut stream: DuplexStream, reply: Reply) -> io::Result<()> {
        let (head, body) = read_request(&mut stream).await?;
        let is_probe = head.starts_with("GET");
        if !is_probe {
            let seen = Seen { host, at: Instant::now(), head, body };
            self.0.lock().unwrap().seen.push(seen);
        }
        let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
        match reply {
            Reply::Refuse => {}
            Reply::Status(status, headers, body) => {
                let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n");
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Reply::Pieces(pieces) => {
                stream.write_all(ok.as_bytes()).await?;
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Reply::Stall(piece) => {
                stream.write_all(ok.as_bytes()).await?;
                stream.write_all(piece.as_bytes()).await?;
                self.wait_for_end(&mut stream).await;
            }
            Reply::Endless(piece) => {
                stream.write_all(ok.as_bytes()).await?;
                loop {
                    stream.write_all(piece.as_bytes()).await?;
                }
            }
            Reply::Trickle => {
                for byte in ok.bytes() {
                    stream.write_all(&[byte]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Reply::Hang => self.wait_for_end(&mut stream).await,
        }
        Ok(())
    }

    async fn wait_for_end(&self, stream: &mut DuplexStream) {
        let mut one = [0];
        while let Ok(1..) = stream.read(&mut one).await {}
        self.0.lock().unwrap().closed += 1;
    }
}

async fn read_request(stream: &mut DuplexStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        stream.read_buf(&mut bytes).await?;
    }
    Ok((head, bytes.split_off(end)))
}

impl Dial for Script {
    fn dial<'a>(
        &'a self,
        host: &'a str,
        _port: u16,
    ) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>> {
        Box::pin(async move {
            let reply = self.reply(host);
            if matches!(reply, Reply::Refuse) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = duplex(64 * 1024);
            tokio::spawn(self.clone().serve(host.to_owned(), theirs, reply));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// A line of a stream of OpenAI's.
pub(super) fn delta(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// A whole stream of OpenAI's.
pub(super) fn openai(text: &str) -> Reply {
    let usage = "data: {\"model\":\"big\",\"choices\":[],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":10}}\n\n";
    Reply::Status(200, "", format!("{}{usage}data: [DONE]\n\n", delta(text)))
}

/// A whole stream of Ollama's.
pub(super) fn ollama(text: &str) -> Reply {
    let first =
        format!("{{\"model\":\"llava\",\"message\":{{\"content\":\"{text}\"}},\"done\":false}}\n");
    let last = "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"eval_count\":7}\n";
    Reply::Status(200, "", first + last)
}
