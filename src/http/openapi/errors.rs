//! The error responses that the handlers' documentation names, with an example of every problem.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Type,
    example::ExampleBuilder,
};

use super::super::error::{problem, status};
use cutline_error::{Error, ErrorKind};

/// Every request with a body may fail like this.
const BODY: &[ErrorKind] = &[
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
/// Every request that needs a key and is rate limited.
const KEY: &[ErrorKind] = &[ErrorKind::Unauthorized, ErrorKind::Forbidden, ErrorKind::RateLimited];
/// Every request that needs the model.
const MODEL: &[ErrorKind] = &[ErrorKind::NotReady, ErrorKind::ShuttingDown];

/// Declares types for `#[utoipa::path(responses(…))]`.
macro_rules! problems {
    ($($name:ident: $($kinds:expr),+;)+) => {$(
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let kinds: &[&[ErrorKind]] = &[$($kinds),+];
                responses(&kinds.concat())
            }
        }
    )+};
}

problems! {
    CaptionProblems: KEY, BODY, MODEL;
    BatchProblems: KEY, BODY, MODEL, &[ErrorKind::BatchTooLarge];
    ImageProblems: KEY, BODY;
    RealtimeProblems: KEY, MODEL, &[ErrorKind::MalformedRequest, ErrorKind::OriginNotAllowed];
    ModelProblems: KEY, MODEL;
    LiveProblems: &[ErrorKind::NotReady];
    ReadyProblems: MODEL;
    MetricsProblems: &[ErrorKind::Unauthorized, ErrorKind::Forbidden];
}

fn responses(kinds: &[ErrorKind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<ErrorKind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(status(*kind).as_u16()).or_default().push(*kind);
    }
    let each = by_status.into_iter();
    each.map(|(status, kinds)| (status.to_string(), response(status, &kinds).into())).collect()
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

/// An error as the server may report it.
fn example(kind: ErrorKind) -> Error {
    let detail = match kind {
        ErrorKind::MalformedRequest => {
            "the image is not valid base64; encode the file's bytes with the standard alphabet"
        }
        ErrorKind::RequestTimeout => {
            "the body did not arrive within 30 s; send a smaller image or use a faster connection"
        }
        ErrorKind::InferenceTimeout => {
            "the caption was not ready within 30 s; ask for fewer tokens or beams, or try again \
             when the server is less busy"
        }
        ErrorKind::ImageTooLarge => {
            "the image is larger than 10485760 bytes; scale it down or compress it more"
        }
        ErrorKind::BatchTooLarge => "a batch may have at most 32 images; send several batches",
        ErrorKind::UnsupportedFormat => {
            "the image format is not supported; send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
        }
        ErrorKind::UndecodableImage => "the PNG image is cut off; send the whole file",
        ErrorKind::InvalidParameter => {
            return Error::parameter("num_beams", "num_beams must be between 1 and 10");
        }
        ErrorKind::Unauthorized => {
            "this server requires an API key; send one as `Authorization: Bearer KEY` or as \
             `x-api-key: KEY`"
        }
        ErrorKind::Forbidden => {
            "this server does not know the API key; check it, or ask the operator of the server for one"
        }
        ErrorKind::OriginNotAllowed => {
            "pages of this origin may not connect; list it in CORS_ALLOW_ORIGINS, and let a proxy \
             pass the header Host on"
        }
        ErrorKind::RateLimited => {
            "your address may send 60 requests per minute; wait as long as Retry-After says"
        }
        ErrorKind::QueueFull => "the queue is full; wait as long as Retry-After says",
        ErrorKind::NotReady => "the model is still loading; try again in a few seconds",
        ErrorKind::ShuttingDown => "the server is stopping; send the request to another server",
        _ => "",
    };
    Error::new(kind, detail)
}
