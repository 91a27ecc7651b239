//! The same server behind a socket.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cutline::config::HttpSettings;
use cutline::error::{ErrorKind, Result};
use cutline::http::serve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::fixture::{Fixture, distinct, emptied, eventually, png};

struct Server {
    fixture: Fixture,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<()>>,
}

impl Server {
    async fn start(settings: HttpSettings) -> Self {
        let fixture = Fixture::with(settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(listener, fixture.state.clone(), async {
            let _ = stopped.await;
        }));
        Self { fixture, address, stop: Some(stop), ended }
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Posts `body` as an image over a new connection; returns status and body.
    fn post(&self, body: Vec<u8>) -> JoinHandle<(u16, String)> {
        let address = self.address;
        spawn_blocking(move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false).build();
            let mut answer = ureq::Agent::new_with_config(config)
                .post(format!("http://{address}/caption/generate"))
                .header("content-type", "image/png")
                .send(body.as_slice())
                .unwrap();
            (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
        })
    }

    async fn still_answers(&self) {
        let (status, body) = self.post(png()).await.unwrap();
        assert_eq!(status, 200, "{body}");
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

/// Everything that the server sends until it closes the connection.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = Server::start(HttpSettings::default()).await;
    for _ in 0..5 {
        let (status, body) = server.post(vec![0; 11 << 20]).await.unwrap();
        assert_eq!(status, 413, "{body}");
        assert!(body.contains("image_too_large"), "{body}");
    }
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_continue_need_not_send() {
    let server = Server::start(HttpSettings::default()).await;
    let mut stream = server.connect().await;
    let head = "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
                expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
    drop(stream);
    server.still_answers().await;
}

/// Reads an answer with a JSON object from a connection that stays open.
async fn expect_json(stream: &mut TcpStream) {
    let mut text = String::new();
    while !text.ends_with('}') {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "the server hung up: {text}");
        text.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_reused() {
    let server = Server::start(HttpSettings::default()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        expect_json(&mut stream).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_connections_are_closed() {
    let idle_timeout = Duration::from_millis(200);
    let server = Server::start(HttpSettings { idle_timeout, ..HttpSettings::default() }).await;
    let mut silent = server.connect().await;
    assert_eq!(read_all(&mut silent).await, "");

    let mut dripping = server.connect().await;
    let drip = async {
        dripping.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        // A header that never ends, until the server closes the connection.
        while dripping.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), drip).await.unwrap();

    // The time of an answer does not count as silence.
    server.fixture.script.set_stuck(true);
    let answer = server.post(png());
    eventually("one in the model", || server.fixture.captioner.status().in_flight == 1).await;
    tokio::time::sleep(idle_timeout * 2).await;
    server.fixture.script.set_stuck(false);
    assert_eq!(answer.await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_times_out() {
    let request_timeout = Duration::from_millis(100);
    let server = Server::start(HttpSettings { request_timeout, ..HttpSettings::default() }).await;
    let mut stream = server.connect().await;
    let head = "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
                content-length: 1000\r\n\r\nfirst bytes";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    drop(stream);
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_cancels_the_caption() {
    let server = Server::start(HttpSettings::default()).await;
    server.fixture.script.set_stuck(true);
    let mut stream = server.connect().await;
    let head = format!(
        "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
         content-length: {}\r\n\r\n",
        png().len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&png()).await.unwrap();
    let captioner = server.fixture.captioner.clone();
    eventually("one in the model", || captioner.status().in_flight == 1).await;
    drop(stream);
    emptied(&captioner).await;
    server.fixture.script.set_stuck(false);
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_does_not_stop_the_server() {
    let server = Server::start(HttpSettings::default()).await;
    for noise in [&b"\x16\x03\x01\x02\x00\x01"[..], b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    {
        let mut stream = server.connect().await;
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    server.still_answers().await;
}

/// The body in chunks of this size.
fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let mut all: Vec<u8> = body.chunks(size).flat_map(chunk).collect();
    all.extend(b"0\r\n\r\n");
    all
}

/// Two servers that disagree on where a request ends can be made to see another one in its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_request_is_never_guessed() {
    let server = Server::start(HttpSettings::default()).await;
    let image = png();
    let length = format!("content-length: {}\r\n", image.len());
    let te = "transfer-encoding: chunked\r\n";
    for (version, headers, body, expected) in [
        ("1.1", &*length, image.clone(), "200"),
        ("1.0", &*length, image.clone(), "200"),
        ("1.1", te, chunked(&image, 10), "200"),
        ("1.1", &format!("{length}{length}"), image.clone(), "200"),
        ("1.1", &format!("{length}expect: 100-continue\r\n"), image.clone(), "100"),
        ("1.1", &format!("{length}content-length: 5\r\n"), image.clone(), "400"),
        ("1.1", "content-length: -1\r\n", image.clone(), "400"),
        ("1.1", "content-length: 99999999999999999999\r\n", image.clone(), "400"),
        ("1.1", "content-length: 9223372036854775807\r\n", image.clone(), "413"),
        ("1.1", "transfer-encoding: gzip\r\n", chunked(&image, 10), "400"),
        ("1.1", "transfer-encoding: chunked, identity\r\n", chunked(&image, 10), "400"),
        ("1.1", "transfer-encoding : chunked\r\n", chunked(&image, 10), "400"),
        ("1.0", te, chunked(&image, 10), "400"),
        ("1.1", te, b"zz\r\nabc\r\n0\r\n\r\n".to_vec(), "400"),
        ("1.1", te, b"fffffffffffffffff\r\nabc".to_vec(), "400"),
        ("1.1", te, b"3\r\nabcdef\r\n0\r\n\r\n".to_vec(), "400"),
    ] {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /caption/generate HTTP/{version}\r\nhost: x\r\ncontent-type: image/png\r\n\
             {headers}\r\n"
        );
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let mut start = [0; 12];
        timeout(Duration::from_secs(20), stream.read_exact(&mut start)).await.unwrap().unwrap();
        let status = String::from_utf8_lossy(&start[9..]).into_owned();
        assert_eq!(status, expected, "HTTP/{version} {headers}");
    }
    // With both, only the chunks count, and nothing after them is read as a request.
    let smuggled = b"0\r\n\r\nGET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for headers in [format!("content-length: 6\r\n{te}"), format!("{te}content-length: 6\r\n")] {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /image/process HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n{headers}\r\n"
        );
        stream.write_all(&[head.as_bytes(), smuggled].concat()).await.unwrap();
        let answers = read_all(&mut stream).await;
        assert!(answers.starts_with("HTTP/1.1 415"), "an empty image: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    }
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_targets_are_refused() {
    let server = Server::start(HttpSettings::default()).await;
    for (line, expected) in [
        ("GET http://elsewhere/health/live HTTP/1.1", "200"),
        ("GET /page/../../etc/passwd HTTP/1.1", "404"),
        ("GET /page/..%2f..%2fetc%2fpasswd HTTP/1.1", "404"),
        ("GET /page/%00 HTTP/1.1", "404"),
        ("GET /health/live/ HTTP/1.1", "404"),
        ("OPTIONS * HTTP/1.1", "404"),
        ("CONNECT x:1 HTTP/1.1", "404"),
        ("get /health/live HTTP/1.1", "405"),
        ("GET health HTTP/1.1", "404"),
    ] {
        let mut stream = server.connect().await;
        let head = format!("{line}\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert_eq!(answer.get(9..12), Some(expected), "{line}: {answer}");
    }
    server.still_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_finishes_accepted_requests() {
    let shutdown_delay = Duration::ZERO;
    let mut server =
        Server::start(HttpSettings { shutdown_delay, ..HttpSettings::default() }).await;
    server.fixture.script.set_stuck(true);
    let accepted = server.post(png());
    let captioner = server.fixture.captioner.clone();
    eventually("one in the model", || captioner.status().in_flight == 1).await;
    server.stop();
    // Until the signal arrives, requests are still accepted.
    let address = server.address;
    let ready = move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("http://{address}/health/ready")).call().unwrap().status().as_u16()
    };
    while spawn_blocking(ready).await.unwrap() == 200 {}
    let (status, body) = server.post(png()).await.unwrap();
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("shutting_down"), "{body}");
    assert!(!server.ended.is_finished());
    server.fixture.script.set_stuck(false);
    assert_eq!(accepted.await.unwrap().0, 200);
    timeout(Duration::from_secs(20), &mut server.ended).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the socket is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_does_not_wait_forever() {
    let (shutdown_delay, shutdown_grace) = (Duration::ZERO, Duration::from_millis(50));
    let settings = HttpSettings { shutdown_delay, shutdown_grace, ..HttpSettings::default() };
    let mut server = Server::start(settings).await;
    server.fixture.script.set_stuck(true);
    let _unfinished = server.post(png());
    // Idle connections do not delay it either.
    let _idle = server.connect().await;
    let captioner = server.fixture.captioner.clone();
    eventually("one in the model", || captioner.status().in_flight == 1).await;
    server.stop();
    timeout(Duration::from_secs(20), &mut server.ended).await.unwrap().unwrap().unwrap();
    server.fixture.script.set_stuck(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_told_to_stop_serves_until_the_delay_is_over() {
    let shutdown_delay = Duration::from_millis(1500);
    let mut server =
        Server::start(HttpSettings { shutdown_delay, ..HttpSettings::default() }).await;
    // A connection that a proxy keeps open.
    let mut kept = server.connect().await;
    let request = b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n";
    kept.write_all(request).await.unwrap();
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let begin = Instant::now();
    server.stop();
    eventually("draining", || {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let url = format!("http://{}/health/ready", server.address);
        let answer = ureq::Agent::new_with_config(config).get(url).call().unwrap();
        answer.status() == 503
    })
    .await;
    server.still_answers().await;
    assert!(begin.elapsed() < shutdown_delay, "the machine is too slow for this test");
    kept.write_all(request).await.unwrap();
    let answer = read_all(&mut kept).await;
    assert!(answer.contains("HTTP/1.1 503") && answer.contains("connection: close"), "{answer}");
    timeout(Duration::from_secs(20), &mut server.ended).await.unwrap().unwrap().unwrap();
    assert!(begin.elapsed() >= shutdown_delay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_model_ends_by_itself_with_an_error() {
    let shutdown_delay = Duration::from_millis(300);
    let mut server =
        Server::start(HttpSettings { shutdown_delay, ..HttpSettings::default() }).await;
    server.still_answers().await;
    server.fixture.script.lose_the_device();
    let lost = server.post(distinct(7)).await.unwrap();
    assert_eq!(lost.0, 500, "{lost:?}");
    let next = server.post(distinct(8)).await.unwrap();
    assert!(next.0 == 503 && next.1.contains("not_ready"), "{next:?}");
    let ended = timeout(Duration::from_secs(20), &mut server.ended).await.unwrap().unwrap();
    let error = ended.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains("start the server again"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_bounded_for_each_request_and_not_for_a_connection() {
    let server = Server::start(HttpSettings::default()).await;
    let mut stream = server.connect().await;
    let head = format!("GET /health/live HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    for _ in 0..10 {
        stream.write_all(head.as_bytes()).await.unwrap();
        expect_json(&mut stream).await;
    }
    let mut stream = server.connect().await;
    stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
    stream.write_all(&[b'y'; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    server.still_answers().await;
}
