//! KServe's protocol over gRPC, without a socket: messages as clients encode them.

use std::collections::HashMap;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings};
use cutline::http::grpc_app;
use http_body_util::BodyExt as _;
use prost::Message;
use tower::ServiceExt as _;

use super::fixture::{Fixture, distinct, png};
use super::urls::Images;

#[derive(Clone, PartialEq, Message)]
struct Ready {
    #[prost(bool, tag = "1")]
    ready: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, repeated, tag = "3")]
    extensions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(oneof = "Choice", tags = "1, 2, 3, 4, 5")]
    choice: Option<Choice>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Choice {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(int64, tag = "2")]
    Int(i64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(uint64, tag = "5")]
    Uint(u64),
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(bytes = "vec", repeated, tag = "8")]
    bytes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Wanted {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct InferRequest {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<Wanted>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferResponse {
    #[prost(string, tag = "1")]
    model: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<Tensor>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
}

impl Answer {
    #[track_caller]
    pub(super) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.trailers["grpc-status"], "0", "{self:?}");
        assert_eq!(self.headers["content-type"], "application/grpc");
        let (head, message) = self.body.split_at(5);
        assert_eq!(head[0], 0);
        assert_eq!(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize, message.len());
        M::decode(message).unwrap()
    }

    #[track_caller]
    pub(super) fn failed(&self, status: &str, words: &str) {
        assert_eq!(self.headers["grpc-status"], status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/grpc");
        assert!(self.body.is_empty() && self.trailers.is_empty());
        assert!(!self.headers["x-request-id"].is_empty());
        let message = self.headers["grpc-message"].to_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat()
}

async fn send(fixture: &Fixture, request: Request<Body>) -> Answer {
    let response = grpc_app(fixture.state.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Answer { headers: parts.headers, body: body.to_bytes().to_vec(), trailers }
}

fn request(method: &str, body: Vec<u8>) -> Request<Body> {
    let path = format!("/inference.GRPCInferenceService/{method}");
    Request::post(path).body(Body::from(body)).unwrap()
}

async fn call(fixture: &Fixture, method: &str, message: &impl Message) -> Answer {
    send(fixture, request(method, frame(&message.encode_to_vec()))).await
}

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn tensor(name: &str, shape: &[i64]) -> Tensor {
    Tensor { name: name.into(), datatype: "BYTES".into(), shape: shape.to_vec(), contents: None }
}

fn elements(all: &[&[u8]]) -> Vec<u8> {
    let element =
        |bytes: &&[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), *bytes].concat();
    all.iter().flat_map(element).collect()
}

fn infer() -> InferRequest {
    InferRequest {
        model: "scripted".into(),
        inputs: vec![tensor("image", &[1, 1])],
        raw: vec![elements(&[&png()])],
        ..InferRequest::default()
    }
}

/// Captions these images with a key.
pub(super) async fn infer_with(fixture: &Fixture, key: &str, pictures: &[&[u8]]) -> Answer {
    let count = i64::try_from(pictures.len()).unwrap();
    let inputs = vec![tensor("image", &[count])];
    let message = InferRequest { inputs, raw: vec![elements(pictures)], ..infer() };
    let mut request = request("ModelInfer", frame(&message.encode_to_vec()));
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    send(fixture, request).await
}

#[tokio::test]
async fn an_address_stands_for_the_image() {
    let images = Images::start().await;
    let fixture = images.fixture();
    let infer_at = |path: &str| {
        let url = images.url(path);
        InferRequest { raw: vec![elements(&[url.as_bytes()])], ..infer() }
    };
    for path in ["1.png", "moved/2.png"] {
        let answer: InferResponse = call(&fixture, "ModelInfer", &infer_at(path)).await.message();
        assert_eq!(answer.raw[0], elements(&[b"a red square"]), "{path}");
    }
    call(&fixture, "ModelInfer", &infer_at("missing")).await.failed("3", "the status 404");
    call(&fixture, "ModelInfer", &infer_at("large")).await.failed("3", "100000 bytes");
    call(&fixture, "ModelInfer", &infer_at("away")).await.failed("3", "redirects to another");
    let before = images.requests();
    let off = self::fixture();
    call(&off, "ModelInfer", &infer_at("1.png")).await.failed("3", "FETCH_URLS");
    assert_eq!(images.requests(), before);
}

#[tokio::test]
async fn server_and_model_describe_themselves() {
    let fixture = fixture();
    let none = Named::default();
    assert!(call(&fixture, "ServerLive", &none).await.message::<Ready>().ready);
    assert!(call(&fixture, "ServerReady", &none).await.message::<Ready>().ready);
    let server: Named = call(&fixture, "ServerMetadata", &none).await.message();
    assert_eq!((server.name.as_str(), server.extensions.len()), ("cutline", 3));
    let model = Named { name: "scripted".into(), version: "1".into(), ..Named::default() };
    assert!(call(&fixture, "ModelReady", &model).await.message::<Ready>().ready);
    let metadata: InferResponse = call(&fixture, "ModelMetadata", &model).await.message();
    assert_eq!((metadata.model.as_str(), metadata.version.as_str()), ("scripted", "1"));
    assert_eq!(metadata.outputs[1].name, "confidence");
    assert_eq!(metadata.outputs[1].shape, [-1, 1]);
    // The configuration is one field; its field 4 is the size of a batch, 32.
    let config = call(&fixture, "ModelConfig", &model).await;
    assert!(config.body.windows(2).any(|bytes| bytes == [0x20, 32]), "{config:?}");
    for method in ["ModelReady", "ModelMetadata", "ModelConfig"] {
        let nope = Named { name: "nope".into(), ..Named::default() };
        call(&fixture, method, &nope).await.failed("5", "model 'nope' not found");
        let other = Named { version: "2".into(), ..model.clone() };
        call(&fixture, method, &other).await.failed("5", "version 1");
    }
}

#[tokio::test]
async fn raw_contents_are_answered_with_raw_contents() {
    let fixture = fixture();
    let parameter = |choice| Parameter { choice: Some(choice) };
    let message = InferRequest {
        id: "42".into(),
        parameters: HashMap::from([
            ("num_beams".into(), parameter(Choice::Int(2))),
            ("temperature".into(), parameter(Choice::Double(0.5))),
            ("max_new_tokens".into(), parameter(Choice::Text("4".into()))),
            ("triton_x".into(), parameter(Choice::Bool(true))),
            ("timeout".into(), parameter(Choice::Uint(20_000_000))),
        ]),
        inputs: vec![tensor("prompt", &[1]), tensor("image", &[2, 1])],
        raw: vec![elements(&[b"photo of"]), elements(&[&png(), &distinct(2)])],
        ..infer()
    };
    let answer: InferResponse = call(&fixture, "ModelInfer", &message).await.message();
    assert_eq!((answer.model.as_str(), answer.id.as_str()), ("scripted", "42"));
    let captions = elements(&[b"photo of a red square", b"photo of a red square"]);
    let confidences = [0.5_f32.to_le_bytes(), 0.5_f32.to_le_bytes()].concat();
    assert_eq!(answer.raw, [captions, confidences]);
    let shapes: Vec<(&str, &str, &[i64])> =
        answer.outputs.iter().map(|o| (&*o.name, &*o.datatype, &*o.shape)).collect();
    assert_eq!(shapes, [("caption", "BYTES", &[2, 1][..]), ("confidence", "FP32", &[2, 1])]);
}

#[tokio::test]
async fn contents_may_be_in_the_input_and_outputs_are_chosen() {
    let fixture = fixture();
    let contents = Some(Contents { bytes: vec![png()] });
    let message = InferRequest {
        inputs: vec![Tensor { contents, ..tensor("image", &[1]) }],
        outputs: vec![Wanted { name: "confidence".into() }],
        raw: Vec::new(),
        ..infer()
    };
    let answer: InferResponse = call(&fixture, "ModelInfer", &message).await.message();
    assert_eq!(answer.raw, [0.5_f32.to_le_bytes().to_vec()]);
    assert_eq!(answer.outputs[0].name, "confidence");
}

#[tokio::test]
async fn errors_are_statuses() {
    let fixture = fixture();
    let failed = async |message: InferRequest, status: &str, words: &str| {
        call(&fixture, "ModelInfer", &message).await.failed(status, words);
    };
    failed(InferRequest { model: "nope".into(), ..infer() }, "5", "not found").await;
    failed(InferRequest { inputs: vec![], raw: vec![], ..infer() }, "3", "no image").await;
    failed(InferRequest { raw: vec![], ..infer() }, "3", "must have 1 elements").await;
    failed(InferRequest { raw: vec![vec![]; 2], ..infer() }, "3", "raw_input_contents").await;
    failed(InferRequest { raw: vec![vec![0xFF; 4]], ..infer() }, "3", "not 1 elements").await;
    failed(InferRequest { raw: vec![vec![]; 17], ..infer() }, "3", "send fewer").await;
    failed(InferRequest { inputs: vec![tensor("image", &[33])], ..infer() }, "3", "32 images")
        .await;
    failed(InferRequest { inputs: vec![tensor("image", &[1; 9])], ..infer() }, "3", "fewer").await;
    let broken = InferRequest { raw: vec![elements(&[b"\0no image"])], ..infer() };
    failed(broken, "3", "not a supported image").await;
    call(&fixture, "ModelStreamInfer", &infer()).await.failed("12", "does not exist");
    for body in [vec![], vec![0; 4], vec![1, 0, 0, 0, 0], frame(b"\x0A\xFF"), vec![0, 0, 0, 0, 9]] {
        send(&fixture, request("ModelInfer", body)).await.failed("3", "send");
    }
    fixture.script.set_broken(true);
    failed(infer(), "13", "the server failed").await;
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn a_full_queue_and_a_loading_model_have_their_statuses() {
    let fixture = Fixture::new();
    let message = InferRequest {
        inputs: vec![tensor("image", &[3])],
        raw: vec![elements(&[&distinct(1), &distinct(2), &distinct(3)])],
        ..infer()
    };
    call(&fixture, "ModelInfer", &message).await.failed("8", "queue");
    let loading = Fixture::loading(HttpSettings::default());
    call(&loading, "ModelInfer", &infer()).await.failed("14", "loading");
    let ready: Ready = call(&loading, "ServerReady", &Named::default()).await.message();
    assert!(!ready.ready);
}

#[tokio::test]
async fn keys_are_needed_but_for_probes_and_calls_are_counted() {
    let keys = ApiKeys::new(["right"]);
    let protection = ProtectionSettings { keys, ..ProtectionSettings::default() };
    let fixture = Fixture::with(HttpSettings { protection, ..HttpSettings::default() });
    call(&fixture, "ServerLive", &Named::default()).await.message::<Ready>();
    call(&fixture, "ServerReady", &Named::default()).await.message::<Ready>();
    call(&fixture, "ServerMetadata", &Named::default()).await.failed("16", "API key");
    let with_key = |key: &'static str| {
        let mut request = request("ModelInfer", frame(&infer().encode_to_vec()));
        request.headers_mut().insert("authorization", key.parse().unwrap());
        request
    };
    send(&fixture, with_key("Bearer wrong")).await.failed("7", "API key");
    send(&fixture, with_key("Bearer right")).await.message::<InferResponse>();
    let request = Request::get("/metrics").header("x-api-key", "right");
    let metrics = fixture.send(request.body(Body::empty()).unwrap()).await;
    let text = std::str::from_utf8(&metrics.body).unwrap();
    for status in ["200", "401", "403"] {
        let counted = |line: &str| {
            line.contains("contract=\"kserve\"") && line.contains(&format!("\"{status}\""))
        };
        assert!(text.lines().any(counted), "{status}: {text}");
    }
}
