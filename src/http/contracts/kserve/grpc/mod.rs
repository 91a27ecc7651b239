//! The same protocol over gRPC, on a port of its own: the service `inference.GRPCInferenceService`.
//!
//! A unary call is a POST with one message as its body, and the answer is one message with the status
//! after it. So the layers of the HTTP server do their work here as well: keys, rates, ids, logs, limits
//! of bodies. `wire` reads and writes that framing, `request` reads messages, `messages` are those of
//! the answers, `status` translates errors.

mod messages;
mod request;
mod status;
mod wire;

use axum::extract::{Request, State};
use axum::middleware;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

pub(in crate::http) use self::status::set as set_status;

use self::messages::{
    DataType, InferOutputTensor, ModelConfig, ModelConfigResponse, ModelInferResponse, ModelInput,
    ModelMetadataResponse, ModelOutput, ReadyResponse, ServerMetadataResponse, TensorMetadata,
    TransactionPolicy,
};
use self::request::{InferMessage, ModelMessage};
use self::wire::{message, respond};
use super::infer::{caption, photos};
use super::options::Options;
use super::outputs::{InferResponse, RawOutput, Wanted};
use super::server::EXTENSIONS;
use super::{Address, PLATFORM, VERSION};
use crate::captioner::Captioner;
use crate::http::contracts::Contract;
use crate::http::contracts::body::receive;
use crate::http::error::{Failure, from_panic};
use crate::http::state::{AppState, loading};
use crate::http::{auth, health, method_not_allowed, not_found, observe};
use cutline_error::Result;

/// All methods, with the layers of the HTTP server.
pub(in crate::http) fn app(state: AppState) -> Router {
    let methods = Router::new()
        .route("/inference.GRPCInferenceService/ServerLive", post(server_live))
        .route("/inference.GRPCInferenceService/ServerReady", post(server_ready))
        .route("/inference.GRPCInferenceService/ServerMetadata", post(server_metadata))
        .route("/inference.GRPCInferenceService/ModelReady", post(model_ready))
        .route("/inference.GRPCInferenceService/ModelMetadata", post(model_metadata))
        .route("/inference.GRPCInferenceService/ModelConfig", post(model_config))
        .route("/inference.GRPCInferenceService/ModelInfer", post(model_infer));
    methods
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(CatchPanicLayer::custom(from_panic))
        .layer(middleware::from_fn_with_state(state.clone(), observe::observe))
        .layer(Extension(Contract::KserveGrpc))
        .with_state(state)
}

/// The methods that need no key, as the HTTP addresses.
pub(in crate::http) fn is_probe(route: &str) -> bool {
    let method = route.strip_prefix("/inference.GRPCInferenceService/");
    matches!(method, Some("ServerLive" | "ServerReady"))
}

async fn server_live(State(state): State<AppState>) -> Response {
    let failed = state.loaded().is_some_and(Captioner::has_failed);
    respond(&ReadyResponse { is: !failed })
}

async fn server_ready(State(state): State<AppState>) -> Response {
    respond(&ReadyResponse { is: health::is_ready(&state) })
}

async fn server_metadata() -> Response {
    respond(&ServerMetadataResponse {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    })
}

async fn model_ready(State(state): State<AppState>, request: Request) -> Result<Response, Failure> {
    named_model(&state, request).await?;
    Ok(respond(&ReadyResponse { is: health::is_ready(&state) }))
}

async fn model_metadata(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let name = named_model(&state, request).await?;
    let tensor = |name: &str, datatype: &str| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![-1, 1],
    };
    Ok(respond(&ModelMetadataResponse {
        name,
        versions: vec![VERSION.to_owned()],
        platform: PLATFORM.to_owned(),
        inputs: vec![tensor("image", "BYTES"), tensor("prompt", "BYTES")],
        outputs: vec![tensor("caption", "BYTES"), tensor("confidence", "FP32")],
    }))
}

async fn model_config(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let name = named_model(&state, request).await?;
    let input = |name: &str, optional| ModelInput {
        name: name.to_owned(),
        data_type: DataType::String.into(),
        dims: vec![1],
        optional,
    };
    let output = |name: &str, kind: DataType| ModelOutput {
        name: name.to_owned(),
        data_type: kind.into(),
        dims: vec![1],
    };
    let most = state.settings().max_images_per_request;
    let config = ModelConfig {
        name,
        platform: PLATFORM.to_owned(),
        max_batch_size: i32::try_from(most).unwrap_or(i32::MAX),
        input: vec![input("image", false), input("prompt", true)],
        output: vec![output("caption", DataType::String), output("confidence", DataType::Fp32)],
        backend: "cutline".to_owned(),
        model_transaction_policy: Some(TransactionPolicy { decoupled: false }),
    };
    Ok(respond(&ModelConfigResponse { config: Some(config) }))
}

/// The name of the model that a message asks for.
async fn named_model(state: &AppState, request: Request) -> Result<String> {
    let captioner = state.loaded().ok_or_else(loading)?;
    let received = receive(request, state, captioner.budget(), 0).await?;
    let ModelMessage { name, version } = ModelMessage::read(message(&received.bytes)?)?;
    Address::new(name, version)?.name(state, captioner)
}

async fn model_infer(State(state): State<AppState>, request: Request) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let call = InferMessage::read(message(&received.bytes)?)?;
    let address = Address::new(call.model, call.version)?;
    let model = address.name(&state, captioner)?;
    let id = call.id()?.to_owned();
    let inputs = call.inputs(most)?;
    let mut options = Options::read(call.parameters, inputs.prompt.as_deref())?;
    options.params.model = address.meant(&state, captioner)?;
    let outputs = Wanted::of(&call.outputs, true)?;
    let photos = photos(&inputs, &received, &state).await?;
    drop(received);
    let reply = Box::pin(caption(photos, options, &state, captioner)).await?;
    let answer =
        InferResponse { model: &model, id: None, outputs: &outputs, captions: &reply.captions };
    let (outputs, raw_output_contents) = answer.raw()?.into_iter().map(split).unzip();
    let mut response = respond(&ModelInferResponse {
        model_name: model.to_owned(),
        model_version: VERSION.to_owned(),
        id,
        outputs,
        raw_output_contents,
    });
    if let Some(report) = reply.report() {
        response.extensions_mut().insert(report);
    }
    Ok(response)
}

/// The declaration of an output and its contents, which are apart in the message.
fn split(output: RawOutput) -> (InferOutputTensor, Vec<u8>) {
    let RawOutput { name, datatype, rows, bytes } = output;
    let shape = vec![i64::try_from(rows).unwrap_or(i64::MAX), 1];
    (InferOutputTensor { name: name.to_owned(), datatype: datatype.to_owned(), shape }, bytes)
}
