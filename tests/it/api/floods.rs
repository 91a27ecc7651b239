//! Hostile or slow clients: each is answered or disconnected in bounded time, and the server keeps
//! serving others.

use std::net::SocketAddr;
use std::time::Duration;

use cutline::captioner::MemoryLimits;
use cutline::config::HttpSettings;
use cutline::http::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::fixture::{Fixture, eventually, png};

/// Longer than anything here takes.
const BOUND: Duration = Duration::from_secs(20);

struct Server {
    fixture: Fixture,
    address: SocketAddr,
}

impl Server {
    async fn start(settings: HttpSettings) -> Self {
        let fixture = Fixture::build(settings, 8, MemoryLimits::default());
        fixture.state.ready(fixture.captioner.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, fixture.state.clone(), std::future::pending()));
        Self { fixture, address }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Asserts that a normal client gets a caption.
    async fn still_answers(&self) {
        let mut stream = self.connect().await;
        stream.write_all(&request("?cache=bypass", png().len())).await.unwrap();
        stream.write_all(&png()).await.unwrap();
        let answer = read_until(&mut stream, "\"timings\"").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

fn request(query: &str, length: usize) -> Vec<u8> {
    let head = format!(
        "POST /caption/generate{query} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
         content-length: {length}\r\n\r\n"
    );
    head.into_bytes()
}

async fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut text = String::new();
    let reading = async {
        let mut part = [0; 4096];
        while !text.contains(mark) {
            let length = stream.read(&mut part).await.unwrap();
            assert!(length > 0, "the server hung up: {text}");
            text.push_str(&String::from_utf8_lossy(&part[..length]));
        }
    };
    timeout(BOUND, reading).await.unwrap();
    text
}

/// One answer with the length that it announces.
async fn one_answer(stream: &mut TcpStream) -> String {
    let mut answer = read_until(stream, "\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut rest = vec![0; length.parse::<usize>().unwrap() - body.len()];
    timeout(BOUND, stream.read_exact(&mut rest)).await.unwrap().unwrap();
    answer.push_str(&String::from_utf8_lossy(&rest));
    answer
}

/// Waits for the server to close the connection, and returns what it sent.
async fn closed(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = timeout(BOUND, stream.read_to_end(&mut text)).await.expect("it is closed in time");
    String::from_utf8_lossy(&text).into_owned()
}

fn short_timeouts() -> HttpSettings {
    HttpSettings {
        idle_timeout: Duration::from_millis(200),
        request_timeout: Duration::from_secs(1),
        ..HttpSettings::default()
    }
}

/// A client would send its next request on that connection, and lose it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_a_body_announces_that_the_connection_ends() {
    let server = Server::start(HttpSettings::default()).await;
    let whole = 20_000;
    for (query, sent) in [("?num_beam=3", whole), ("?num_beam=3", 100), ("/nothing", whole)] {
        let mut stream = server.connect().await;
        stream.write_all(&request(query, whole)).await.unwrap();
        stream.write_all(&vec![0; sent]).await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.contains("\r\nconnection: close\r\n"), "{query} {sent}: {head}");
    }
    // A body that was read, whatever the answer: the connection remains.
    let mut stream = server.connect().await;
    for (body, status) in [(vec![0; whole], "415"), (png(), "200"), (vec![0; 10], "415")] {
        stream.write_all(&request("?cache=bypass", body.len())).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let answer = one_answer(&mut stream).await.to_ascii_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_headers_are_refused() {
    let server = Server::start(HttpSettings::default()).await;
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    for headers in [many, long] {
        let mut stream = server.connect().await;
        let text = format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        // The server may close the connection before it has all of them.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut start = [0; 12];
        timeout(BOUND, stream.read_exact(&mut start)).await.unwrap().unwrap();
        assert_eq!(&start, b"HTTP/1.1 431");
    }
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slow_clients_are_disconnected() {
    let server = Server::start(short_timeouts()).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..60 {
        let mut stream = server.connect().await;
        clients.spawn(async move {
            let (start, expected): (&[u8], _) = match number % 3 {
                0 => (b"", ""),
                1 => (b"POST /caption/generate HTTP/1.1\r\nhost: x\r\nx-drip: ", ""),
                _ => (&request("", 1000), "HTTP/1.1 408"),
            };
            stream.write_all(start).await.unwrap();
            // A byte now and then, until the server closes the connection.
            let (mut reader, mut writer) = stream.into_split();
            let drip = tokio::spawn(async move {
                while number % 3 > 0 && writer.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                writer
            });
            let mut text = Vec::new();
            let _ = timeout(BOUND, reader.read_to_end(&mut text)).await.expect("closed in time");
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(
                text.starts_with(expected) && (text.is_empty() == expected.is_empty()),
                "{text}"
            );
            drip.abort();
        });
    }
    // Meanwhile others are served.
    server.still_answers().await;
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    server.still_answers().await;
    assert_eq!(server.fixture.captioner.budget().held(), 0);
    server.fixture.state.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_connection_ends_in_time() {
    let server = Server::start(short_timeouts()).await;
    // The client closes its sending side in the middle of its headers or its body, and keeps
    // reading.
    for start in [&b"POST /caption/gen"[..], &request("", 1000)] {
        let mut stream = server.connect().await;
        stream.write_all(start).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = closed(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    server.fixture.state.idle().await;
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = Server::start(short_timeouts()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    // More answers than any buffer holds, and none is read.
    let flood = b"GET /model/info HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let writing = async { while stream.write_all(&flood).await.is_ok() {} };
    timeout(BOUND, writing).await.expect("the server hangs up");
    server.fixture.state.idle().await;
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_evicted_for_new_ones() {
    let settings = HttpSettings { max_connections: 50, ..HttpSettings::default() };
    let server = Server::start(settings).await;
    // One has a request in progress all the time.
    server.fixture.script.set_stuck(true);
    let mut busy = server.connect().await;
    busy.write_all(&request("", png().len())).await.unwrap();
    busy.write_all(&png()).await.unwrap();
    let captioner = server.fixture.captioner.clone();
    eventually("one in the model", || captioner.status().in_flight == 1).await;

    let mut idle = Vec::new();
    for number in 0..400 {
        let mut stream = server.connect().await;
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        }
        idle.push(stream);
    }
    server.fixture.script.set_stuck(false);
    read_until(&mut busy, "\"timings\"").await;
    server.still_answers().await;
    // The oldest idle ones were evicted.
    assert_eq!(closed(&mut idle[0]).await, "");
    drop(idle);
    server.still_answers().await;
}
