//! What may go wrong with each operation, with an example of every problem.

use std::collections::BTreeMap;

use utoipa::openapi::path::Operation;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi, Ref, Response, ResponseBuilder, Type,
    example::ExampleBuilder,
};

use super::super::error::{problem, status};
use cutline_error::{Error, ErrorKind};

/// Whatever has a body may have these.
const OF_BODIES: [ErrorKind; 9] = [
    ErrorKind::MalformedRequest,
    ErrorKind::RequestTimeout,
    ErrorKind::ImageTooLarge,
    ErrorKind::UnsupportedFormat,
    ErrorKind::UndecodableImage,
    ErrorKind::InvalidParameter,
    ErrorKind::QueueFull,
    ErrorKind::InferenceTimeout,
    ErrorKind::Internal,
];
/// Whatever may need a key, and counts, these.
const OF_KEYS: [ErrorKind; 3] =
    [ErrorKind::Unauthorized, ErrorKind::Forbidden, ErrorKind::RateLimited];
/// And whatever needs the model these.
const OF_MODELS: [ErrorKind; 2] = [ErrorKind::NotReady, ErrorKind::ShuttingDown];

/// Puts the errors into every operation that has some.
pub(super) fn describe(contract: &mut OpenApi) {
    for (path, item) in &mut contract.paths.paths {
        let kinds = match path.as_str() {
            "/caption/generate" => [&OF_KEYS[..], &OF_BODIES, &OF_MODELS].concat(),
            "/caption/batch" => {
                [&OF_KEYS[..], &OF_BODIES, &OF_MODELS, &[ErrorKind::BatchTooLarge]].concat()
            }
            "/image/process" => [&OF_KEYS[..], &OF_BODIES].concat(),
            "/model/info" => [&OF_KEYS[..], &OF_MODELS].concat(),
            "/health/ready" => OF_MODELS.to_vec(),
            "/metrics" => vec![ErrorKind::Unauthorized, ErrorKind::Forbidden],
            _ => Vec::new(),
        };
        for operation in [item.get.as_mut(), item.post.as_mut()].into_iter().flatten() {
            add(operation, &kinds);
        }
    }
}

fn add(operation: &mut Operation, kinds: &[ErrorKind]) {
    let mut by_status: BTreeMap<u16, Vec<ErrorKind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(status(*kind).as_u16()).or_default().push(*kind);
    }
    for (status, kinds) in by_status {
        operation.responses.responses.insert(status.to_string(), response(status, &kinds).into());
    }
}

fn response(status: u16, kinds: &[ErrorKind]) -> Response {
    let codes: Vec<_> = kinds.iter().map(|kind| format!("`{}`", kind.code())).collect();
    let examples = kinds.iter().map(|kind| {
        let error = example(*kind);
        let value = serde_json::to_value(problem(&error, Some("0192f0c1-example"))).ok();
        (kind.code(), ExampleBuilder::new().value(value).build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let response = ResponseBuilder::new()
        .description(codes.join(" or "))
        .content("application/problem+json", content);
    if !matches!(status, 429 | 503) {
        return response.build();
    }
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).build();
    let after =
        HeaderBuilder::new().schema(Some(seconds)).description(Some("Seconds to wait.")).build();
    response.header("retry-after", after).build()
}

/// An error as it may occur.
fn example(kind: ErrorKind) -> Error {
    let detail = match kind {
        ErrorKind::MalformedRequest => "the base64 of image breaks off; send all of it",
        ErrorKind::RequestTimeout => "the body did not arrive within 30 s; send it faster",
        ErrorKind::InferenceTimeout => {
            "the caption was not ready within 30 s; ask for fewer tokens or beams, or try again \
             when the server is less busy"
        }
        ErrorKind::ImageTooLarge => "the image is larger than 10485760 bytes; send a smaller one",
        ErrorKind::BatchTooLarge => {
            "there are more than the 32 images that one batch may have; send several"
        }
        ErrorKind::UnsupportedFormat => "this is no image of a format that is read here",
        ErrorKind::UndecodableImage => "the PNG image breaks off; send the whole file",
        ErrorKind::InvalidParameter => {
            return Error::parameter("num_beams", "num_beams must be between 1 and 10");
        }
        ErrorKind::Unauthorized => {
            "send one of the server's keys as Authorization: Bearer KEY or as x-api-key: KEY"
        }
        ErrorKind::Forbidden => "this key is none of the server's; send another one",
        ErrorKind::RateLimited => "too many requests; try again after the time in Retry-After",
        ErrorKind::QueueFull => "the queue is full; try again after the time in Retry-After",
        ErrorKind::NotReady => "the model is being loaded; try again in a few seconds",
        ErrorKind::ShuttingDown => "the server is stopping; send the request to another one",
        _ => "",
    };
    Error::new(kind, detail)
}
