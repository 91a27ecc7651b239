//! `POST /v2/models/{model}/infer`

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::model::not_allowed;
use super::options::Options;
use super::outputs::{InferResponse, OutputTensor, Wanted};
use super::tensors::{Element, InputTensor, Inputs, TENSORS};
use super::{Action, Address, JSON_LENGTH};
use crate::captioner::{Captioner, Photo};
use crate::http::body::TooLarge;
use crate::http::contracts::ask::{Ask, Reply, Urgency};
use crate::http::contracts::body::{Received, from_json, receive};
use crate::http::contracts::images;
use crate::http::contracts::intent::Intent;
use crate::http::contracts::json::{List, Text};
use crate::http::contracts::structured::Format;
use crate::http::error::Failure;
use crate::http::openapi::bodies::SQUARE;
use crate::http::openapi::errors::KserveProblems;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// The longest id of a request, which the answer repeats.
const MAX_ID: usize = 1024;

#[derive(Debug, Deserialize)]
struct InferRequest<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: List<InputTensor<'a>, TENSORS>,
    #[serde(borrow, default)]
    outputs: List<OutputTensor<'a>, TENSORS>,
}

/// A request that has been read and checked.
#[derive(Debug)]
struct Call<'a> {
    id: Option<String>,
    inputs: Inputs<'a>,
    options: Options,
    outputs: Vec<Wanted>,
}

pub(super) async fn infer(
    State(state): State<AppState>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let captioner = state.captioner()?;
    let address = Address::of(path)?;
    // Before the body is read: a client that waits for `100 Continue` need not send it.
    let model = address.name(&state, captioner)?;
    if address.action != Action::Infer {
        return Ok(not_allowed("use GET", HeaderValue::from_static("GET, HEAD")));
    }
    let json_length = json_length(request.headers())?;
    let most = state.settings().max_images_per_request;
    let received = receive(request, &state, captioner.budget(), most).await?;
    let Call { id, inputs, mut options, outputs } = Call::read(&received.bytes, json_length, most)?;
    options.params.model = address.meant(&state, captioner)?;
    let photos = photos(&inputs, &received, &state).await?;
    drop(received);
    let reply = Box::pin(caption(photos, options, &state, captioner)).await?;
    let answer = InferResponse {
        model: &model,
        id: id.as_deref(),
        outputs: &outputs,
        captions: &reply.captions,
    };
    let mut response = answer.respond()?;
    if let Some(report) = reply.report() {
        response.extensions_mut().insert(report);
    }
    Ok(response)
}

impl<'a> Call<'a> {
    /// Reads a body whose JSON has `json_length` bytes; all of them if there is no length.
    fn read(body: &'a [u8], json_length: Option<usize>, most: usize) -> Result<Self> {
        if json_length == Some(0) {
            // Triton's raw binary request.
            let inputs = Inputs::image(body);
            let options = Options::of(None, &inputs)?;
            return Ok(Self { id: None, inputs, options, outputs: Wanted::of(&[], false)? });
        }
        let parts = body.split_at_checked(json_length.unwrap_or(body.len()));
        let (json, binary) = parts.ok_or_else(|| {
            malformed(
                "Inference-Header-Content-Length is larger than the body; send the length of its \
                 JSON in bytes",
            )
        })?;
        let InferRequest { id, parameters, inputs, outputs } = from_json(json)?;
        id.as_deref().map_or(Ok(()), check_id)?;
        let inputs = Inputs::read(&inputs, binary, most)?;
        let options = Options::of(parameters, &inputs)?;
        let outputs = Wanted::of(&outputs, options.binary)?;
        Ok(Self { id: id.map(|id| id.0.into_owned()), inputs, options, outputs })
    }
}

/// Checks the id of a request.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): it is too long.
pub(super) fn check_id(id: &str) -> Result<()> {
    if id.len() <= MAX_ID {
        return Ok(());
    }
    let detail = format!("id must not be longer than {MAX_ID} bytes; shorten it");
    Err(Error::parameter("id", detail))
}

/// The length of the JSON, if the request has binary tensors after it.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let length = length.and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        malformed("Inference-Header-Content-Length must be the length of the JSON in bytes")
    })
}

/// The images of a request.
///
/// # Errors
/// Those of [`images::photo`].
pub(super) async fn photos(
    inputs: &Inputs<'_>,
    received: &Received,
    state: &AppState,
) -> Result<Vec<Photo>> {
    let references: Option<Vec<&str>> = inputs.images.iter().map(Element::reference).collect();
    if let Some(references) = references {
        // Several addresses are fetched at the same time.
        return images::photos(&references, received, state).await;
    }
    let mut photos = Vec::with_capacity(inputs.images.len());
    for element in &inputs.images {
        photos.push(photo(element, received, state).await?);
    }
    Ok(photos)
}

/// Captions `photos`.
///
/// # Errors
/// Those of [`Ask::answer`].
pub(super) async fn caption(
    photos: Vec<Photo>,
    options: Options,
    state: &AppState,
    captioner: &Captioner,
) -> Result<Reply> {
    let urgency = options.urgency(Urgency::usual(photos.len(), state));
    let params = options.params;
    let ask = Ask { photos, params, intent: Intent::Caption, format: Format::Text };
    ask.answer_as(state, captioner, urgency).await
}

/// The image in an element: a file, or text that is or names one.
async fn photo(element: &Element<'_>, received: &Received, state: &AppState) -> Result<Photo> {
    match (element.reference(), element) {
        (Some(text), _) => images::photo(text, received, state).await,
        (None, Element::Bytes(bytes)) => {
            let most = state.settings().max_image_bytes;
            if bytes.len() > most {
                return Err(TooLarge::Image(most).error());
            }
            Ok(received.permit.photo(bytes.to_vec()))
        }
        (None, Element::Text(_)) => Err(Error::internal("a text is no reference")),
    }
}

fn malformed(detail: &'static str) -> Error {
    Error::new(ErrorKind::MalformedRequest, detail)
}

/// Captions the images of a tensor
///
/// The input `image` holds files of images: base64 or `data:` URIs in JSON, or bytes after the JSON
/// (`Inference-Header-Content-Length`, `binary_data_size`). `parameters` are the native ones.
#[utoipa::path(
    post,
    path = "/v2/models/{model}/infer",
    operation_id = "kserve_infer",
    tag = "kserve",
    params(
        ("model" = String, Path, description = "The model's name or one of `MODEL_ALIASES`."),
        (
            "inference-header-content-length" = Option<u32>,
            Header,
            description = "The length of the JSON, if binary tensors follow it.",
        ),
    ),
    request_body(
        content = Object,
        content_type = "application/json",
        example = json!({"inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [SQUARE]},
        ]}),
    ),
    responses(
        (
            status = OK,
            description = "The outputs `caption` and `confidence`",
            content((Object = "application/json"), (Object = "application/octet-stream")),
        ),
        KserveProblems,
    ),
)]
#[allow(dead_code, reason = "described here, served by infer")]
pub(super) async fn described() {}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lengths(value: &'static [u8]) -> Result<Option<usize>> {
        let mut headers = HeaderMap::new();
        headers.insert(JSON_LENGTH, HeaderValue::from_bytes(value).unwrap());
        json_length(&headers)
    }

    #[test]
    fn the_length_of_the_json_is_a_number() {
        assert_eq!(json_length(&HeaderMap::new()).unwrap(), None);
        assert_eq!(lengths(b"12").unwrap(), Some(12));
        for value in [&b""[..], b"-1", b"+1", b" 1x", b"1.0", b"99999999999999999999999", b"\xFF"] {
            assert_eq!(lengths(value).unwrap_err().kind(), ErrorKind::MalformedRequest);
        }
    }

    #[test]
    fn a_body_is_json_and_then_binary() {
        let json = br#"{"id": "7", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
            "parameters": {"binary_data_size": 5}}], "parameters": {"binary_data_output": true}}"#;
        let body = [&json[..], b"\x01\0\0\0\xFF"].concat();
        let call = Call::read(&body, Some(json.len()), 4).unwrap();
        assert_eq!(call.id.as_deref(), Some("7"));
        assert_eq!(call.inputs, Inputs::image(b"\xFF"));
        assert!(call.options.binary);
        for length in [json.len() - 1, json.len() + 1, body.len(), body.len() + 1, usize::MAX] {
            let error = Call::read(&body, Some(length), 4).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MalformedRequest, "{length}: {error}");
        }
        assert_eq!(Call::read(&body, None, 4).unwrap_err().kind(), ErrorKind::MalformedRequest);
        assert_eq!(Call::read(b"\xFF", Some(0), 4).unwrap().inputs, Inputs::image(b"\xFF"));
    }

    #[test]
    fn an_id_is_repeated_only_if_it_is_short() {
        let body = |id: &str| {
            json!({"id": id, "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a"]},
            ]})
            .to_string()
        };
        let longest = "x".repeat(MAX_ID);
        let text = body(&longest);
        assert_eq!(Call::read(text.as_bytes(), None, 4).unwrap().id, Some(longest));
        let error = Call::read(body(&"x".repeat(MAX_ID + 1)).as_bytes(), None, 4).unwrap_err();
        assert_eq!(error.field(), Some("id"));
    }
}
