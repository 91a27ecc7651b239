//! Errors in the shape that the clients of each contract read.

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use super::Contract;
use crate::http::error::{problem, problem_body, status};
use cutline_error::{Error, ErrorKind};

/// Tells OpenAI's clients that the same request fails again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// OpenAI's error object.
#[derive(Debug, Serialize)]
pub(in crate::http) struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// Gives an error response the status, the headers and the body of its contract.
pub(in crate::http) fn shape(
    contract: Contract,
    response: &mut Response,
    error: &Error,
    request_id: &str,
) {
    // It is the length of the body without the id.
    response.headers_mut().remove(CONTENT_LENGTH);
    #[cfg(feature = "grpc")]
    if contract == Contract::KserveGrpc {
        super::grpc::set_status(response, error);
        return;
    }
    let Some(value) = value(contract, error) else {
        *response.body_mut() = problem_body(error, Some(request_id));
        return;
    };
    *response.status_mut() = contract_status(contract, error.kind());
    *response.body_mut() = Body::from(value.to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let hopeless = matches!(
        error.kind(),
        ErrorKind::ImageTooLarge
            | ErrorKind::BatchTooLarge
            | ErrorKind::UnsupportedFormat
            | ErrorKind::QuotaExhausted
    );
    if contract == Contract::OpenAi && hopeless {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

/// The error as JSON; `None` for contracts that use problem documents.
pub(in crate::http) fn value(contract: Contract, error: &Error) -> Option<Value> {
    match contract {
        Contract::Native | Contract::Realtime => None,
        Contract::Mcp => Some(jsonrpc(error)),
        Contract::OpenAi => Some(json!({"error": openai(error)})),
        Contract::Ollama | Contract::HuggingFace | Contract::Kserve => {
            Some(json!({"error": message(error)}))
        }
        #[cfg(feature = "grpc")]
        Contract::KserveGrpc => None,
        Contract::PhotoPrism => {
            let code = contract_status(contract, error.kind()).as_u16();
            Some(json!({"code": code, "error": message(error)}))
        }
    }
}

/// A JSON-RPC error that answers no request in particular: its id was not read.
fn jsonrpc(error: &Error) -> Value {
    let problem = problem(error, None);
    // The codes of JSON-RPC, and the first of those that it leaves to servers.
    let number = match error.kind() {
        ErrorKind::MalformedRequest => -32600,
        kind if status(kind) == StatusCode::INTERNAL_SERVER_ERROR => -32603,
        _ => -32000,
    };
    let error = json!({"code": number, "message": problem.detail, "data": {"code": problem.code}});
    json!({"jsonrpc": "2.0", "id": null, "error": error})
}

/// The message for users of the server, without internals.
fn message(error: &Error) -> &str {
    problem(error, None).detail
}

pub(in crate::http) fn openai(error: &Error) -> OpenAiError<'_> {
    let kind = error.kind();
    let problem = problem(error, None);
    let (r#type, code) = match kind {
        ErrorKind::Unauthorized | ErrorKind::Forbidden => {
            ("authentication_error", "invalid_api_key")
        }
        ErrorKind::InsufficientScope => ("permission_error", problem.code),
        ErrorKind::QuotaExhausted => ("insufficient_quota", problem.code),
        ErrorKind::ModelNotFound | ErrorKind::NotFound => ("not_found_error", problem.code),
        ErrorKind::RateLimited | ErrorKind::QueueFull => {
            ("rate_limit_error", "rate_limit_exceeded")
        }
        ErrorKind::NotReady => ("server_error", "model_loading"),
        _ if status(kind).is_server_error() => ("server_error", problem.code),
        _ => ("invalid_request_error", problem.code),
    };
    OpenAiError { message: problem.detail, r#type, param: problem.field, code }
}

/// The status by which the clients of a contract recognise an error.
pub(in crate::http) fn contract_status(contract: Contract, kind: ErrorKind) -> StatusCode {
    match (contract, kind) {
        (Contract::Native | Contract::Realtime | Contract::Mcp, _) => status(kind),
        // OpenAI answers 401 to a wrong key as well.
        (Contract::OpenAi, ErrorKind::Forbidden) => StatusCode::UNAUTHORIZED,
        _ if status(kind) == StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        _ => status(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contract_has_its_shape() {
        let error = Error::parameter("n", "n is wrong; send 1");
        assert_eq!(value(Contract::Native, &error), None);
        let expected = json!({"error": {
            "message": "n is wrong; send 1",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_parameter",
        }});
        assert_eq!(value(Contract::OpenAi, &error), Some(expected));
        let expected = json!({"error": "n is wrong; send 1"});
        for contract in [Contract::Ollama, Contract::Kserve, Contract::HuggingFace] {
            assert_eq!(value(contract, &error), Some(expected.clone()));
        }
        let expected = json!({"code": 400, "error": "n is wrong; send 1"});
        assert_eq!(value(Contract::PhotoPrism, &error), Some(expected));
        let expected = json!({"jsonrpc": "2.0", "id": null, "error": {
            "code": -32000, "message": "n is wrong; send 1", "data": {"code": "invalid_parameter"},
        }});
        assert_eq!(value(Contract::Mcp, &error), Some(expected));
    }

    #[test]
    fn internals_stay_hidden_and_statuses_are_those_of_the_contract() {
        let error = Error::internal("the secret");
        let text = value(Contract::Ollama, &error).unwrap_or_default().to_string();
        assert!(!text.contains("secret") && text.contains("the server failed"), "{text}");
        let kind = ErrorKind::Forbidden;
        assert_eq!(contract_status(Contract::OpenAi, kind), StatusCode::UNAUTHORIZED);
        assert_eq!(contract_status(Contract::Ollama, kind), StatusCode::FORBIDDEN);
        let kind = ErrorKind::UndecodableImage;
        assert_eq!(contract_status(Contract::OpenAi, kind), StatusCode::BAD_REQUEST);
        assert_eq!(contract_status(Contract::Native, kind), StatusCode::UNPROCESSABLE_ENTITY);
    }
}
