//! The error responses that the handlers' documentation names, with an example of every problem.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Type,
    example::ExampleBuilder,
};

use super::super::contracts::Contract;
use super::super::contracts::error::{contract_status, value};
use super::super::error::{problem, status};
use cutline_error::{Error, ErrorKind};

/// Every request with a body may fail like this.
const BODY: &[ErrorKind] = &[
    ErrorKind::MalformedRequest,
    ErrorKind::RequestTimeout,
    ErrorKind::ImageTooLarge,
    ErrorKind::UnsupportedFormat,
    ErrorKind::UndecodableImage,
    ErrorKind::FetchFailed,
    ErrorKind::InvalidParameter,
    ErrorKind::QueueFull,
    ErrorKind::InferenceTimeout,
    ErrorKind::Internal,
];
/// Every request that needs a key and is rate limited.
const KEY: &[ErrorKind] = &[
    ErrorKind::Unauthorized,
    ErrorKind::Forbidden,
    ErrorKind::InsufficientScope,
    ErrorKind::RateLimited,
];
/// Every request that a key pays for.
const PAID: &[ErrorKind] = &[ErrorKind::QuotaExhausted, ErrorKind::LibraryBusy];
/// Every request that needs the model.
const MODEL: &[ErrorKind] = &[ErrorKind::NotReady, ErrorKind::ShuttingDown];

/// Every request for the library.
const LIBRARY: &[ErrorKind] = &[
    ErrorKind::OriginNotAllowed,
    ErrorKind::NotFound,
    ErrorKind::InvalidParameter,
    ErrorKind::LibraryBusy,
    ErrorKind::InferenceTimeout,
    ErrorKind::Internal,
];

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
    CaptionProblems: KEY, PAID, BODY, MODEL, &[ErrorKind::ModelNotFound, ErrorKind::Unsupported];
    TagProblems: KEY, PAID, BODY, MODEL, &[
        ErrorKind::ModelNotFound,
        ErrorKind::NotFound,
        ErrorKind::OriginNotAllowed,
        ErrorKind::Unsupported,
    ];
    TextProblems: KEY, PAID, BODY, MODEL, &[ErrorKind::Unsupported];
    BatchProblems: KEY, PAID, BODY, MODEL, &[
        ErrorKind::BatchTooLarge,
        ErrorKind::ModelNotFound,
        ErrorKind::Unsupported,
    ];
    ImageProblems: KEY, BODY;
    RealtimeProblems: KEY, MODEL, &[ErrorKind::MalformedRequest, ErrorKind::OriginNotAllowed];
    LibraryProblems: KEY, LIBRARY;
    LibraryChangeProblems: KEY, LIBRARY, &[
        ErrorKind::MalformedRequest,
        ErrorKind::RequestTimeout,
        ErrorKind::BatchTooLarge,
        ErrorKind::UnsupportedFormat,
        ErrorKind::QueueFull,
        ErrorKind::ShuttingDown,
        ErrorKind::PreconditionFailed,
        ErrorKind::PreconditionRequired,
        ErrorKind::StorageFull,
    ];
    LibraryRegenerateProblems: KEY, LIBRARY, MODEL, &[
        ErrorKind::QuotaExhausted,
        ErrorKind::MalformedRequest,
        ErrorKind::RequestTimeout,
        ErrorKind::ImageTooLarge,
        ErrorKind::BatchTooLarge,
        ErrorKind::UnsupportedFormat,
        ErrorKind::UndecodableImage,
        ErrorKind::QueueFull,
        ErrorKind::PhotoUnavailable,
        ErrorKind::StorageFull,
    ];
    KeyChangeProblems: KEY, LIBRARY, &[
        ErrorKind::MalformedRequest,
        ErrorKind::RequestTimeout,
        ErrorKind::BatchTooLarge,
        ErrorKind::UnsupportedFormat,
        ErrorKind::QueueFull,
        ErrorKind::ShuttingDown,
        ErrorKind::StorageFull,
    ];
    ModelProblems: KEY, MODEL;
    LiveProblems: &[ErrorKind::NotReady];
    ReadyProblems: MODEL;
    MetricsProblems: &[ErrorKind::Unauthorized, ErrorKind::Forbidden];
}

/// Declares the errors of other programs' contracts.
macro_rules! contract_problems {
    ($($name:ident: $contract:ident, $($kinds:expr),+;)+) => {$(
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let kinds: &[&[ErrorKind]] = &[$($kinds),+];
                contract_responses(Contract::$contract, &kinds.concat())
            }
        }
    )+};
}

/// Requests for a caption in the words of another program.
const FOREIGN: &[ErrorKind] = &[
    ErrorKind::ModelNotFound,
    ErrorKind::ImageRequired,
    ErrorKind::Unsupported,
    ErrorKind::BatchTooLarge,
];

contract_problems! {
    OpenAiProblems: OpenAi, KEY, PAID, BODY, MODEL, FOREIGN;
    OpenAiModelProblems: OpenAi, KEY, MODEL;
    OllamaProblems: Ollama, KEY, PAID, BODY, MODEL, FOREIGN;
    OllamaModelProblems: Ollama, KEY, MODEL, &[ErrorKind::MalformedRequest, ErrorKind::ModelNotFound];
    PhotoPrismProblems: PhotoPrism, KEY, PAID, BODY, MODEL, FOREIGN;
    HuggingFaceProblems: HuggingFace, KEY, PAID, BODY, MODEL, FOREIGN;
    HuggingFaceModelProblems: HuggingFace, KEY, MODEL;
    KserveProblems: Kserve, KEY, PAID, BODY, MODEL, FOREIGN;
    KserveModelProblems: Kserve, KEY, MODEL, &[ErrorKind::ModelNotFound];
    KserveServerProblems: Kserve, KEY;
    KserveLiveProblems: Kserve, &[ErrorKind::NotReady];
    KserveReadyProblems: Kserve, MODEL;
    McpProblems: Mcp, KEY, PAID, &[
        ErrorKind::OriginNotAllowed,
        ErrorKind::MalformedRequest,
        ErrorKind::NotFound,
        ErrorKind::RequestTimeout,
        ErrorKind::ImageTooLarge,
        ErrorKind::UnsupportedFormat,
        ErrorKind::QueueFull,
        ErrorKind::ShuttingDown,
        ErrorKind::Internal,
    ];
}

/// The errors as the clients of a contract read them.
fn contract_responses(
    contract: Contract,
    kinds: &[ErrorKind],
) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<ErrorKind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(contract_status(contract, *kind).as_u16()).or_default().push(*kind);
    }
    let response = |kinds: Vec<ErrorKind>| {
        let codes: Vec<_> = kinds.iter().map(|kind| format!("`{}`", kind.code())).collect();
        let examples = kinds.iter().map(|kind| {
            let value = value(contract, &example(*kind));
            (kind.code(), ExampleBuilder::new().value(value).build())
        });
        let object = ObjectBuilder::new().schema_type(Type::Object).build();
        let content =
            ContentBuilder::new().schema(Some(object)).examples_from_iter(examples).build();
        let response = ResponseBuilder::new().description(codes.join(" or "));
        response.content("application/json", content).build()
    };
    let each = by_status.into_iter();
    each.map(|(status, kinds)| (status.to_string(), response(kinds).into())).collect()
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
        ErrorKind::FetchFailed => {
            "the server of the image answered with the status 404; check that the address leads to an \
             image that everyone may read"
        }
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
        ErrorKind::InsufficientScope => {
            "this API key has not the scope caption; use another key, or ask the operator of the server for \
             it"
        }
        ErrorKind::QuotaExhausted => {
            "the budget of this API key, 1000 images a month, is used up, or what is left is too little for \
             this request; it begins again at 2026-12-01T00:00:00Z, or ask the operator of the server for more"
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
        ErrorKind::NotFound => "there is nothing of this name; check it, or look at the list",
        ErrorKind::PreconditionFailed => {
            "the photo has been changed since version 3 and is at version 4; read it again, then repeat the \
             change"
        }
        ErrorKind::PreconditionRequired => {
            "the version that is changed is missing; read the photo, and send its ETag as If-Match"
        }
        ErrorKind::StorageFull => {
            "the disk of the library is full, and nothing was stored; free space, then try again"
        }
        ErrorKind::PhotoUnavailable => {
            "the library knows no file of this photo; caption it once with `cutline caption --library`"
        }
        ErrorKind::LibraryBusy => {
            "the library is being written by another process; try again, or end that process"
        }
        ErrorKind::ModelNotFound => {
            "model 'x' not found; use 'cutline-small', or let the operator of the server add the name \
             to MODEL_ALIASES"
        }
        ErrorKind::ImageRequired => {
            "there is no image in the request, and this model only describes images; send one"
        }
        ErrorKind::Unsupported => {
            "the loaded model cannot answer questions; it can write captions; load a checkpoint such \
             as Salesforce/blip-vqa-base"
        }
        _ => "",
    };
    Error::new(kind, detail)
}
