//! KServe's Open Inference Protocol: what its clients send and read.

use std::io::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cutline::captioner::MemoryLimits;
use cutline::config::{ApiKeys, HttpSettings, ProtectionSettings};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use super::fixture::{Answer, Fixture, distinct, emptied, png};

const INFER: &str = "/v2/models/scripted/infer";

fn fixture() -> Fixture {
    Fixture::roomy(8, MemoryLimits::default())
}

fn tensor(name: &str, shape: Value, data: Value) -> Value {
    json!({"name": name, "datatype": "BYTES", "shape": shape, "data": data})
}

fn image() -> Value {
    tensor("image", json!([1, 1]), json!([STANDARD.encode(png())]))
}

async fn infer(fixture: &Fixture, body: &Value) -> Answer {
    fixture.send(Request::post(INFER).body(Body::from(body.to_string())).unwrap()).await
}

/// Elements in the binary format.
fn elements(all: &[&[u8]]) -> Vec<u8> {
    let element =
        |bytes: &&[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), *bytes].concat();
    all.iter().flat_map(element).collect()
}

/// A request with binary tensors after its JSON, as tritonclient builds it.
fn binary(json: &Value, tensors: &[u8]) -> (usize, Vec<u8>) {
    let json = json.to_string();
    (json.len(), [json.as_bytes(), tensors].concat())
}

fn post(length: usize, body: Vec<u8>) -> Request<Body> {
    let request = Request::post(INFER).header("Inference-Header-Content-Length", length);
    request.body(Body::from(body)).unwrap()
}

/// Splits an answer with binary outputs.
#[track_caller]
fn split(answer: &Answer) -> (Value, Vec<u8>) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    let length = answer.header("inference-header-content-length").parse().unwrap();
    let (json, tensors) = answer.body.split_at(length);
    (serde_json::from_slice(json).unwrap(), tensors.to_vec())
}

#[track_caller]
fn error(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(!answer.header("x-request-id").is_empty());
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    assert!(body["error"].as_str().unwrap().contains(words), "{body}");
}

#[tokio::test]
async fn server_and_model_describe_themselves() {
    let fixture = fixture();
    let server = fixture.get("/v2").await.json();
    assert_eq!(server["name"], "cutline");
    assert_eq!(server["version"], env!("CARGO_PKG_VERSION"));
    let extensions = server["extensions"].as_array().unwrap();
    assert!(extensions.contains(&json!("binary_tensor_data")));
    // Otherwise Triton's load tester asks for them.
    assert!(!extensions.contains(&json!("statistics")));
    let expected = json!({
        "name": "scripted",
        "versions": ["1"],
        "platform": "candle_blip",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "caption", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "confidence", "datatype": "FP32", "shape": [-1, 1]},
        ],
    });
    for path in ["/v2/models/scripted", "/v2/models/scripted/versions/1"] {
        assert_eq!(fixture.get(path).await.json(), expected, "{path}");
    }
    let config = fixture.get("/v2/models/scripted/config").await.json();
    assert_eq!(config["max_batch_size"], 32);
    assert_eq!(
        config["input"][0],
        json!({"name": "image", "data_type": "TYPE_STRING", "dims": [1]})
    );
    assert_eq!(config["input"][1]["optional"], true);
    assert_eq!(config["model_transaction_policy"]["decoupled"], false);
    let ready = fixture.get("/v2/models/scripted/versions/1/ready").await.json();
    assert_eq!(ready, json!({"name": "scripted", "ready": true}));
    let index = Request::post("/v2/repository/index").body(Body::from("{}")).unwrap();
    let expected = json!([{"name": "scripted", "version": "1", "state": "READY", "reason": ""}]);
    assert_eq!(fixture.send(index).await.json(), expected);
}

#[tokio::test]
async fn names_have_slashes_and_aliases() {
    let aliases = vec!["Salesforce/blip".into(), "blip".into()];
    let settings = HttpSettings { model_aliases: aliases, ..HttpSettings::default() };
    let fixture = Fixture::with(settings);
    for path in [
        "/v2/models/Salesforce/blip",
        "/v2/models/Salesforce%2Fblip",
        "/v2/models/Salesforce/blip/versions/1",
        "/v2/models/Salesforce%2Fblip/ready",
        "/v2/models/Salesforce/blip/config",
    ] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
        assert_eq!(answer.json()["name"], "Salesforce/blip", "{path}");
    }
    let body = json!({"inputs": [image()]}).to_string();
    for (path, name) in [
        ("/v2/models/Salesforce/blip/infer", "Salesforce/blip"),
        ("/v2/models/blip/versions/1/infer", "blip"),
        ("/v2/models/scripted/infer", "scripted"),
    ] {
        let request = Request::post(path).body(Body::from(body.clone())).unwrap();
        assert_eq!(fixture.send(request).await.json()["model_name"], name);
    }
    let index = Request::post("/v2/repository/index").body(Body::empty()).unwrap();
    assert_eq!(fixture.send(index).await.json().as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn probes_are_open_and_as_ready_as_the_native_ones() {
    let protection =
        ProtectionSettings { keys: ApiKeys::new(["right"]), ..ProtectionSettings::default() };
    let settings = HttpSettings { protection, ..HttpSettings::default() };
    let loading = Fixture::loading(settings);
    assert_eq!(loading.get("/v2/health/live").await.json(), json!({"live": true}));
    let answer = loading.get("/v2/health/ready").await;
    error(&answer, 503, "loading");
    assert!(!answer.header("retry-after").is_empty());
    loading.state.ready(loading.captioner.clone());
    assert_eq!(loading.get("/v2/health/ready").await.json(), json!({"ready": true}));
    for path in ["/v2", "/v2/models/scripted", "/v2/models/scripted/ready", "/v2/nothing"] {
        error(&loading.get(path).await, 401, "API key");
    }
    let request = Request::post(INFER).header("authorization", "Bearer wrong");
    error(&loading.send(request.body(Body::from("{}")).unwrap()).await, 403, "API key");
    loading.state.drain();
    error(&loading.get("/v2/health/ready").await, 503, "stopping");
    assert_eq!(loading.get("/v2/health/live").await.status, StatusCode::OK);
}

#[tokio::test]
async fn json_is_answered_in_json() {
    let fixture = fixture();
    let answer = infer(&fixture, &json!({"id": "42", "inputs": [image()]})).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("inference-header-content-length"), "");
    assert!(answer.header("server-timing").contains("inference"));
    let expected = json!({
        "model_name": "scripted",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "caption", "datatype": "BYTES", "shape": [1, 1], "data": ["a red square"]},
            {"name": "confidence", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
        ],
    });
    assert_eq!(answer.json(), expected);
    let uri = format!("data:image/png;base64,{}", STANDARD.encode(png()));
    let body = json!({
        "inputs": [tensor("image", json!([1]), json!([uri]))],
        "outputs": [{"name": "confidence"}],
    });
    let answer = infer(&fixture, &body).await.json();
    assert_eq!(answer["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(answer["outputs"][0]["name"], "confidence");
    assert!(answer.get("id").is_none(), "{answer}");
}

#[tokio::test]
async fn binary_tensors_are_answered_in_binary() {
    let fixture = fixture();
    let tensors = elements(&[&png(), &distinct(2)]);
    let parameters = json!({"binary_data_size": tensors.len()});
    let input = json!({
        "name": "image", "datatype": "BYTES", "shape": [2, 1], "parameters": parameters,
    });
    let body = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
    let (length, bytes) = binary(&body, &tensors);
    let (json, outputs) = split(&fixture.send(post(length, bytes)).await);
    let captions = elements(&[b"a red square", b"a red square"]);
    let expected = json!([
        {"name": "caption", "datatype": "BYTES", "shape": [2, 1],
         "parameters": {"binary_data_size": captions.len()}},
        {"name": "confidence", "datatype": "FP32", "shape": [2, 1],
         "parameters": {"binary_data_size": 8}},
    ]);
    assert_eq!(json["outputs"], expected);
    let confidences = [0.5_f32.to_le_bytes(), 0.5_f32.to_le_bytes()].concat();
    assert_eq!(outputs, [captions, confidences].concat());
}

#[tokio::test]
async fn formats_and_outputs_are_mixed() {
    let fixture = fixture();
    let tensors = elements(&[&png()]);
    let parameters = json!({"binary_data_size": tensors.len()});
    let input =
        json!({"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters});
    let prompt = tensor("prompt", json!([1]), json!(["photo of"]));
    let body = json!({
        "inputs": [prompt, input],
        "outputs": [
            {"name": "confidence", "parameters": {"binary_data": true}},
            {"name": "caption", "parameters": {"binary_data": false}},
        ],
        "parameters": {"binary_data_output": true, "num_beams": 2},
    });
    let (length, bytes) = binary(&body, &tensors);
    let (json, outputs) = split(&fixture.send(post(length, bytes)).await);
    assert_eq!(json["outputs"][1]["data"], json!(["photo of a red square"]));
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 4);
    assert_eq!(outputs, 0.5_f32.to_le_bytes());
}

#[tokio::test]
async fn an_image_may_be_the_whole_body() {
    let fixture = fixture();
    let answer = fixture.send(post(0, png())).await.json();
    assert_eq!(answer["outputs"][0]["data"], json!(["a red square"]));
}

#[tokio::test]
async fn compressed_bodies_are_inflated_before_lengths_count() {
    let fixture = fixture();
    // Some clients send base64 even in binary tensors.
    let tensors = elements(&[STANDARD.encode(png()).as_bytes()]);
    let parameters = json!({"binary_data_size": tensors.len()});
    let input =
        json!({"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters});
    let (length, bytes) = binary(&json!({"inputs": [input]}), &tensors);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&bytes).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::default());
    deflate.write_all(&bytes).unwrap();
    for (coding, body) in [("gzip", gzip.finish().unwrap()), ("deflate", deflate.finish().unwrap())]
    {
        let mut request = post(length, body);
        request.headers_mut().insert("content-encoding", coding.parse().unwrap());
        let answer = fixture.send(request).await;
        assert_eq!(answer.json()["outputs"][0]["data"], json!(["a red square"]), "{coding}");
    }
}

#[tokio::test]
async fn parameters_are_native_but_for_tritons() {
    let fixture = fixture();
    let body = json!({
        "inputs": [image()],
        "parameters": {
            "max_new_tokens": 2, "cache": "bypass", "sequence_id": 0, "sequence_start": false,
            "sequence_end": false, "priority": 1, "timeout": 20_000_000, "triton_x": 1,
        },
    });
    assert_eq!(infer(&fixture, &body).await.json()["outputs"][0]["data"], json!(["a red"]));
    let wrong = json!({"inputs": [image()], "parameters": {"beams": 3}});
    error(&infer(&fixture, &wrong).await, 400, "beams");
}

#[tokio::test]
async fn a_clients_timeout_ends_its_work() {
    let fixture = fixture();
    fixture.script.set_stuck(true);
    let body = json!({"inputs": [image()], "parameters": {"timeout": 50_000}});
    error(&infer(&fixture, &body).await, 504, "0.05 s");
    emptied(&fixture.captioner).await;
}

#[tokio::test]
async fn errors_have_kserves_shape() {
    let fixture = fixture();
    error(&fixture.get("/v2/nothing").await, 404, "does not exist");
    error(&fixture.get("/v2/models/nope").await, 404, "model 'nope' not found");
    error(&fixture.get("/v2/models/nope/ready").await, 404, "model 'nope' not found");
    error(&fixture.get("/v2/models/scripted/versions/2").await, 404, "version 1");
    error(&fixture.get("/v2/models/%FF").await, 404, "does not exist");
    for path in
        ["scripted/stats", "scripted/versions/1/stats", "nope/stats", "scripted/trace/setting"]
    {
        error(&fixture.get(&format!("/v2/models/{path}")).await, 404, "does not exist");
    }
    let generate = Request::post("/v2/models/scripted/generate").body(Body::from("{}")).unwrap();
    error(&fixture.send(generate).await, 404, "does not exist");
    let answer = fixture.get(INFER).await;
    error(&answer, 405, "use POST");
    assert_eq!(answer.header("allow"), "POST");
    let config = Request::post("/v2/models/scripted/config").body(Body::empty()).unwrap();
    let answer = fixture.send(config).await;
    error(&answer, 405, "use GET");
    assert_eq!(answer.header("allow"), "GET, HEAD");
    let request = Request::builder().method(Method::DELETE).uri(INFER).body(Body::empty()).unwrap();
    error(&fixture.send(request).await, 405, "DELETE");
    let nope = Request::post("/v2/models/nope/infer").body(Body::from("{}")).unwrap();
    error(&fixture.send(nope).await, 404, "model 'nope' not found");
    error(&infer(&fixture, &json!({})).await, 400, "missing field `inputs`");
    error(&infer(&fixture, &json!({"inputs": []})).await, 400, "there is no image");
    let broken = json!({"inputs": [tensor("image", json!([1]), json!(["AAAA"]))]});
    error(&infer(&fixture, &broken).await, 415, "not a supported image");
    let many = tensor("image", json!([33]), json!(vec!["AAAA"; 33]));
    error(&infer(&fixture, &json!({"inputs": [many]})).await, 413, "at most 32 images");
    fixture.script.set_broken(true);
    let answer = infer(&fixture, &json!({"inputs": [image()]})).await;
    error(&answer, 500, "the server failed");
    assert!(!format!("{answer:?}").contains("secret"), "{answer:?}");
}

#[tokio::test]
async fn a_full_queue_is_429_for_the_whole_batch() {
    let fixture = Fixture::new();
    let data = json!([
        STANDARD.encode(distinct(1)),
        STANDARD.encode(distinct(2)),
        STANDARD.encode(distinct(3))
    ]);
    let body = json!({"inputs": [tensor("image", json!([3, 1]), data)]});
    let answer = infer(&fixture, &body).await;
    error(&answer, 429, "queue");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(fixture.script.starts(), 0);
    infer(&fixture, &json!({"inputs": [image()]})).await.json();
}

#[tokio::test]
async fn lengths_in_a_request_are_only_claims() {
    let fixture = fixture();
    let huge = json!({"binary_data_size": u64::MAX});
    let input = json!({"name": "image", "datatype": "BYTES", "shape": [1], "parameters": huge});
    let (length, bytes) = binary(&json!({"inputs": [input.clone()]}), b"\xFF\xFF\xFF\xFF");
    error(&fixture.send(post(length, bytes.clone())).await, 400, "only 4 bytes are left");
    error(&fixture.send(post(bytes.len() + 1, bytes.clone())).await, 400, "larger than the body");
    error(&infer(&fixture, &json!({"inputs": [input]})).await, 400, "only 0 bytes are left");
    let mut request = post(length, bytes);
    let wrong = "99999999999999999999999".parse().unwrap();
    request.headers_mut().insert("inference-header-content-length", wrong);
    error(&fixture.send(request).await, 400, "length of the JSON");
    let deep = format!("{{\"inputs\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let request = Request::post(INFER).body(Body::from(deep)).unwrap();
    error(&fixture.send(request).await, 400, "not JSON as expected");
    let inputs = vec![image(); 100];
    error(&infer(&fixture, &json!({"inputs": inputs})).await, 400, "at most 16");
    assert_eq!(fixture.captioner.budget().held(), 0);
}

#[tokio::test]
async fn requests_are_counted_as_kserves() {
    let fixture = fixture();
    infer(&fixture, &json!({"inputs": [image()]})).await;
    fixture.get("/v2/health/ready").await;
    let metrics = fixture.get("/metrics").await;
    let text = std::str::from_utf8(&metrics.body).unwrap();
    assert!(text.contains("contract=\"kserve\""), "{text}");
    assert!(text.contains("/v2/models/{*rest}"), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_captions() {
    let fixture = fixture();
    fixture.script.set_stuck(true);
    let body = json!({"inputs": [image()]}).to_string();
    let request = Request::post(INFER).body(Body::from(body)).unwrap();
    let call = tokio::spawn(tower::ServiceExt::oneshot(fixture.app(), request));
    for _ in 0..500 {
        let status = fixture.captioner.status();
        if status.queue_depth + status.in_flight == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    call.abort();
    emptied(&fixture.captioner).await;
}
