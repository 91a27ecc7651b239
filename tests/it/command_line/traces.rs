//! Traces over OTLP: a server, a request, and a collector that decodes the spans.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use super::photo;
use super::server::Server;

/// One span of a trace.
#[derive(Debug)]
struct Collected {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    start: u64,
    end: u64,
    attributes: HashMap<String, String>,
    events: usize,
}

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn bytes(&self) -> &'a [u8] {
        let Field::Bytes(bytes) = self else { panic!("a number instead of bytes") };
        bytes
    }

    fn number(&self) -> u64 {
        let Field::Number(number) = self else { panic!("bytes instead of a number") };
        *number
    }
}

/// The fields of a protobuf message, by their numbers;
/// <https://protobuf.dev/programming-guides/encoding/>.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let end = message.iter().position(|byte| byte & 0x80 == 0).expect("a number ends");
        let (number, rest) = message.split_at(end + 1);
        *message = rest;
        number.iter().rev().fold(0, |sum, byte| (sum << 7) | u64::from(byte & 0x7f))
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => {
                let (number, rest) = message.split_at(8);
                message = rest;
                Field::Number(u64::from_le_bytes(number.try_into().unwrap()))
            }
            2 => {
                let length = usize::try_from(varint(&mut message)).unwrap();
                let (bytes, rest) = message.split_at(length);
                message = rest;
                Field::Bytes(bytes)
            }
            5 => {
                let (number, rest) = message.split_at(4);
                message = rest;
                Field::Number(u32::from_le_bytes(number.try_into().unwrap()).into())
            }
            kind => panic!("there is no wire type {kind}"),
        };
        found.push((tag >> 3, field));
    }
    found
}

/// The sub-messages of this number.
fn inside(message: &[u8], number: u64) -> Vec<&[u8]> {
    let fields = fields(message).into_iter().filter(|(own, _)| *own == number);
    fields.map(|(_, field)| field.bytes()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `KeyValue`s with a string or a number: field 1 is the key, 2 the value.
fn attribute(message: &[u8]) -> (String, String) {
    let value = fields(inside(message, 2)[0]).pop().map(|(_, value)| match value {
        Field::Bytes(bytes) => text(bytes),
        Field::Number(number) => number.to_string(),
    });
    (text(inside(message, 1)[0]), value.unwrap_or_default())
}

/// A `Span` of opentelemetry/proto/trace/v1/trace.proto.
fn span(message: &[u8]) -> Collected {
    let one = |number| inside(message, number).first().map(|bytes| bytes.to_vec());
    let time = |number| {
        let fields = fields(message);
        fields.iter().find(|(own, _)| *own == number).map(|(_, field)| field.number()).unwrap()
    };
    Collected {
        trace: one(1).unwrap(),
        id: one(2).unwrap(),
        parent: one(4).unwrap_or_default(),
        name: text(&one(5).unwrap()),
        start: time(7),
        end: time(8),
        attributes: inside(message, 9).into_iter().map(attribute).collect(),
        events: inside(message, 11).len(),
    }
}

/// Everything that a collector received.
#[derive(Debug, Default)]
struct Collector {
    resource: HashMap<String, String>,
    spans: Vec<Collected>,
}

impl Collector {
    /// An `ExportTraceServiceRequest`.
    fn take(&mut self, body: &[u8]) {
        for resource_spans in inside(body, 1) {
            let resource = inside(resource_spans, 1);
            self.resource.extend(resource.into_iter().flat_map(|r| inside(r, 1)).map(attribute));
            for scope_spans in inside(resource_spans, 2) {
                self.spans.extend(inside(scope_spans, 2).into_iter().map(span));
            }
        }
    }

    /// Listens on a free port.
    fn start() -> (String, Arc<Mutex<Self>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let collector = Arc::new(Mutex::new(Self::default()));
        let shared = Arc::clone(&collector);
        spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                spawn(move || Self::serve(&stream.unwrap(), &shared));
            }
        });
        (address, collector)
    }

    fn serve(mut stream: &TcpStream, shared: &Mutex<Self>) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                match line.trim_end() {
                    "" => break,
                    line => head.push(line.to_ascii_lowercase()),
                }
            }
            assert_eq!(head[0], "post /v1/traces http/1.1");
            assert!(head.contains(&"content-type: application/x-protobuf".to_owned()), "{head:?}");
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            shared.lock().unwrap().take(&body);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    }
}

#[test]
fn a_request_is_traced_with_its_stages() {
    let (endpoint, collector) = Collector::start();
    let server = Server::start_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_SERVICE_NAME", "captions"),
    ]);
    server.wait_until_ready();
    let photo = std::fs::read(photo("cat")).unwrap();
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    ureq::post(format!("{}/caption/generate", server.address))
        .header("content-type", "image/jpeg")
        .header("x-request-id", "from-the-test")
        .header("traceparent", &format!("00-{trace_id}-b7ad6b7169203331-01"))
        .send(photo.as_slice())
        .unwrap();
    // The server sends the remaining spans before it exits.
    server.signal("-TERM");
    let (status, output, errors) = server.end();
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");
    assert!(!output.contains("\"message\":\"step\""), "traces are not logged: {output}");

    let collector = collector.lock().unwrap();
    assert_eq!(collector.resource["service.name"], "captions");
    assert_eq!(collector.resource["service.version"], env!("CARGO_PKG_VERSION"));
    let request = |span: &&Collected| {
        span.attributes.get("request_id").is_some_and(|id| id == "from-the-test")
    };
    let request = collector.spans.iter().find(request).expect("the request");
    assert_eq!(request.name, "request");
    assert_eq!(request.attributes["http.route"], "/caption/generate");
    assert_eq!(request.attributes["http.request.method"], "POST");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hexadecimal(&request.trace), trace_id, "the trace of the client is continued");
    assert_eq!(hexadecimal(&request.parent), "b7ad6b7169203331");

    let mut stages: Vec<&Collected> =
        collector.spans.iter().filter(|span| span.parent == request.id).collect();
    stages.sort_by_key(|span| span.start);
    let names: Vec<&str> = stages.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["decode", "queue", "vision", "decoder"]);
    for pair in stages.windows(2) {
        assert!(pair[0].end <= pair[1].start, "the stages do not overlap: {stages:?}");
    }
    for stage in &stages {
        assert!(stage.trace == request.trace && stage.start < stage.end, "{stage:?}");
        assert!(request.start <= stage.start && stage.end <= request.end, "{stage:?}");
    }
    assert!(stages[3].events > 3, "an event for each step: {stages:?}");
    let probe = |span: &&Collected| {
        span.attributes.get("http.route").is_some_and(|route| route == "/health/ready")
    };
    let probe = collector.spans.iter().find(probe).expect("a probe has a trace of its own");
    assert!(probe.parent.is_empty() && probe.trace != request.trace);
}

#[test]
fn a_server_works_without_its_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let server = Server::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", gone.as_str())]);
    server.wait_until_ready();
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn a_second_signal_still_sends_the_remaining_traces() {
    let (endpoint, collector) = Collector::start();
    let server = Server::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]);
    server.wait_until_ready();
    // An accepted request that is never completed holds the server up.
    let mut stream = TcpStream::connect(server.address.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /caption/generate HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n\
                expect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    server.signal("-TERM");
    server.wait_until_stopping();
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(128 + 15));
    let collector = collector.lock().unwrap();
    let stopping = |span: &&Collected| {
        span.attributes.get("http.response.status_code").is_some_and(|status| status == "503")
    };
    assert!(collector.spans.iter().any(|span| stopping(&span)), "{collector:?}");
}
