//! The answer: the outputs that are wanted, in JSON or in binary after it.

use axum::Json;
use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::tensors::TensorParameters;
use super::{JSON_LENGTH, VERSION};
use crate::captioner::{Caption, given_twice, shortened};
use crate::http::contracts::json::Text;
use cutline_error::{Error, ErrorKind, Result};

/// An output as a request asks for it.
#[derive(Debug, Deserialize)]
pub(super) struct OutputTensor<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    pub(super) parameters: Option<TensorParameters>,
}

/// The outputs of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Caption,
    Confidence,
}

/// An output that is wanted, and whether in binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    output: Output,
    binary: bool,
}

impl Wanted {
    /// What the request lists, or both outputs.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter) or [`Unsupported`](ErrorKind::Unsupported).
    pub(super) fn of(outputs: &[OutputTensor<'_>], binary: bool) -> Result<Vec<Self>> {
        if outputs.is_empty() {
            return Ok(vec![
                Self { output: Output::Caption, binary },
                Self { output: Output::Confidence, binary },
            ]);
        }
        let mut all: Vec<Self> = Vec::with_capacity(outputs.len());
        for OutputTensor { name, parameters } in outputs {
            let output = Output::named(name)?;
            if all.iter().any(|other| other.output == output) {
                return Err(given_twice(output.name()));
            }
            let parameters = parameters.as_ref();
            parameters.map_or(Ok(()), TensorParameters::check)?;
            if parameters.and_then(|p| p.classification).is_some_and(|classes| classes > 0) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the model has no classes; leave classification out",
                ));
            }
            let binary = parameters.and_then(|p| p.binary_data).unwrap_or(binary);
            all.push(Self { output, binary });
        }
        Ok(all)
    }
}

impl Output {
    fn named(name: &str) -> Result<Self> {
        match name {
            "caption" => Ok(Self::Caption),
            "confidence" => Ok(Self::Confidence),
            other => {
                let other = shortened(other);
                let detail =
                    format!("the model has no output '{other}'; ask for caption or confidence");
                Err(Error::parameter(other, detail))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Confidence => "confidence",
        }
    }

    fn datatype(self) -> &'static str {
        match self {
            Self::Caption => "BYTES",
            Self::Confidence => "FP32",
        }
    }

    fn values(self, captions: &[Caption]) -> Values<'_> {
        match self {
            Self::Caption => Values::Texts(captions.iter().map(|c| c.caption.as_str()).collect()),
            Self::Confidence => Values::Numbers(captions.iter().map(confidence).collect()),
        }
    }
}

fn confidence(caption: &Caption) -> f32 {
    caption.captions.first().map_or(0.0, |best| best.confidence)
}

/// The elements of an output.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Values<'a> {
    Texts(Vec<&'a str>),
    Numbers(Vec<f32>),
}

impl Values<'_> {
    /// Appends the elements in the binary format.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal): a caption of four gigabytes.
    fn write(&self, into: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Texts(texts) => {
                for text in texts {
                    let length = u32::try_from(text.len())
                        .map_err(|e| Error::internal("a caption is too long").with_source(e))?;
                    into.extend_from_slice(&length.to_le_bytes());
                    into.extend_from_slice(text.as_bytes());
                }
            }
            Self::Numbers(numbers) => {
                numbers.iter().for_each(|number| into.extend_from_slice(&number.to_le_bytes()));
            }
        }
        Ok(())
    }
}

/// The answer to a request.
pub(super) struct InferResponse<'a> {
    /// The model's name as the client knows it.
    pub(super) model: &'a str,
    /// The client's id, which is repeated.
    pub(super) id: Option<&'a str>,
    pub(super) outputs: &'a [Wanted],
    /// One for each image.
    pub(super) captions: &'a [Caption],
}

/// An output in the binary format.
#[cfg(feature = "grpc")]
pub(super) struct RawOutput {
    pub(super) name: &'static str,
    pub(super) datatype: &'static str,
    pub(super) rows: usize,
    pub(super) bytes: Vec<u8>,
}

#[derive(Serialize)]
struct InferJson<'a> {
    model_name: &'a str,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<OutputJson<'a>>,
}

#[derive(Serialize)]
struct OutputJson<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Values<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

impl InferResponse<'_> {
    /// All outputs in the binary format.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal).
    #[cfg(feature = "grpc")]
    pub(super) fn raw(&self) -> Result<Vec<RawOutput>> {
        let raw = |wanted: &Wanted| {
            let mut bytes = Vec::new();
            wanted.output.values(self.captions).write(&mut bytes)?;
            let (name, datatype) = (wanted.output.name(), wanted.output.datatype());
            Ok(RawOutput { name, datatype, rows: self.captions.len(), bytes })
        };
        self.outputs.iter().map(raw).collect()
    }

    /// JSON, and if anything is wanted in binary, that after it.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal).
    pub(super) fn respond(&self) -> Result<Response> {
        let mut binary = Vec::new();
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for Wanted { output, binary: is_binary } in self.outputs {
            let values = output.values(self.captions);
            let begin = binary.len();
            if *is_binary {
                values.write(&mut binary)?;
            }
            outputs.push(OutputJson {
                name: output.name(),
                datatype: output.datatype(),
                shape: [self.captions.len(), 1],
                parameters: is_binary
                    .then(|| BinarySize { binary_data_size: binary.len() - begin }),
                data: (!is_binary).then_some(values),
            });
        }
        let json =
            InferJson { model_name: self.model, model_version: VERSION, id: self.id, outputs };
        if !self.outputs.iter().any(|wanted| wanted.binary) {
            return Ok(Json(json).into_response());
        }
        let mut body = serde_json::to_vec(&json)
            .map_err(|error| Error::internal("the answer does not serialise").with_source(error))?;
        let length = HeaderValue::from(body.len());
        body.append(&mut binary);
        let mut response = Response::new(Body::from(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(JSON_LENGTH, length);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn wanted(outputs: &Value, binary: bool) -> Result<Vec<(&'static str, bool)>> {
        let text = outputs.to_string();
        let outputs: Vec<OutputTensor<'_>> = serde_json::from_str(&text).unwrap();
        let all = Wanted::of(&outputs, binary)?;
        Ok(all.into_iter().map(|wanted| (wanted.output.name(), wanted.binary)).collect())
    }

    #[test]
    fn each_output_says_its_format_and_otherwise_the_request_does() {
        let both = wanted(&json!([]), true).unwrap();
        assert_eq!(both, [("caption", true), ("confidence", true)]);
        let outputs = json!([
            {"name": "confidence"},
            {"name": "caption", "parameters": {"binary_data": false, "classification": 0}},
        ]);
        assert_eq!(wanted(&outputs, true).unwrap(), [("confidence", true), ("caption", false)]);
        let outputs = json!([{"name": "caption", "parameters": {"binary_data": true}}]);
        assert_eq!(wanted(&outputs, false).unwrap(), [("caption", true)]);
    }

    #[test]
    fn unknown_and_repeated_outputs_are_refused() {
        let kind = |outputs| wanted(&outputs, false).unwrap_err().kind();
        assert_eq!(kind(json!([{"name": "logits"}])), ErrorKind::InvalidParameter);
        let twice = json!([{"name": "caption"}, {"name": "caption"}]);
        assert_eq!(kind(twice), ErrorKind::InvalidParameter);
        let classes = json!([{"name": "caption", "parameters": {"classification": 3}}]);
        assert_eq!(kind(classes), ErrorKind::Unsupported);
        let shared = json!([{"name": "caption", "parameters": {"shared_memory_region": "r"}}]);
        assert_eq!(kind(shared), ErrorKind::Unsupported);
    }

    #[test]
    fn texts_have_lengths_in_bytes_and_numbers_have_none() {
        let mut bytes = Vec::new();
        Values::Texts(vec!["ü", ""]).write(&mut bytes).unwrap();
        Values::Numbers(vec![0.5]).write(&mut bytes).unwrap();
        assert_eq!(bytes, [2, 0, 0, 0, 0xC3, 0xBC, 0, 0, 0, 0, 0, 0, 0, 0x3F]);
    }
}
