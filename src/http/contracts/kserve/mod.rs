//! KServe's Open Inference Protocol, version 2, with Triton's extensions that its clients use.
//!
//! - `server` and `model` describe what there is; `infer` captions;
//! - `tensors` with `texts` reads the inputs of a request, `options` its parameters, `outputs` writes
//!   the answer.
//!
//! The model has the inputs `image` and, optionally, `prompt`, and the outputs `caption` and
//! `confidence`. A tensor is JSON, or binary after the JSON of the body.

#[cfg(feature = "grpc")]
pub(in crate::http) mod grpc;
mod infer;
mod model;
mod options;
mod outputs;
mod server;
mod tensors;
mod texts;

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::HeaderName;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::names;
use crate::captioner::Captioner;
use crate::http::auth::Access;
use crate::http::state::AppState;
use crate::http::unknown_address;
use cutline_error::{Error, ErrorKind, Result};

/// The addresses of the model.
pub(super) const BY_MODEL: &str = "/v2/models/{*rest}";

/// The only version of the model.
const VERSION: &str = "1";

/// The last parts of Triton's own addresses, which would be taken for the names of models.
const TRITONS: [&str; 3] = ["stats", "generate", "generate_stream"];

/// The framework that runs the model, in Triton's way of naming them.
const PLATFORM: &str = "candle_blip";

/// The length of the JSON in front of binary tensors, in requests and answers.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) fn routes() -> Vec<(Access, UtoipaMethodRouter<AppState>)> {
    vec![
        (Access::Key, routes!(server::show)),
        (Access::Open, routes!(server::live)),
        (Access::Open, routes!(server::ready)),
        (Access::Key, routes!(server::index)),
    ]
}

/// Routes whose patterns OpenAPI cannot express: names of models contain slashes.
pub(super) fn more_routes() -> Router<AppState> {
    Router::new().route(BY_MODEL, get(model::show).post(infer::infer))
}

/// What the routes of [`more_routes`] are for a name without slashes.
#[derive(OpenApi)]
#[openapi(paths(model::metadata, model::ready, model::config, infer::described))]
pub(super) struct ModelRoutes;

/// What an address below `/v2/models/` names.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    model: String,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Metadata,
    Ready,
    Config,
    Infer,
}

impl Address {
    /// Reads `{model}[/versions/{version}][/{action}]`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) or [`ModelNotFound`](ErrorKind::ModelNotFound).
    fn of(path: Result<Path<String>, PathRejection>) -> Result<Self> {
        // It may be no UTF-8.
        let Path(path) = path.map_err(|rejection| unknown_address().with_source(rejection))?;
        Self::parse(&path)
    }

    fn parse(path: &str) -> Result<Self> {
        let (rest, action) = match path.rsplit_once('/') {
            Some((rest, "ready")) => (rest, Action::Ready),
            Some((rest, "config")) => (rest, Action::Config),
            Some((rest, "infer")) => (rest, Action::Infer),
            Some((_, last)) if TRITONS.contains(&last) => return Err(unknown_address()),
            _ if path.ends_with("/trace/setting") => return Err(unknown_address()),
            _ => (path, Action::Metadata),
        };
        let (model, version) = rest.rsplit_once("/versions/").unwrap_or((rest, VERSION));
        Self::version(version)?;
        Ok(Self { model: model.to_owned(), action })
    }

    /// The model `name`; an empty version means any.
    ///
    /// # Errors
    /// [`ModelNotFound`](ErrorKind::ModelNotFound).
    #[cfg(feature = "grpc")]
    fn new(name: &str, version: &str) -> Result<Self> {
        Self::version(if version.is_empty() { VERSION } else { version })?;
        Ok(Self { model: name.to_owned(), action: Action::Metadata })
    }

    fn version(version: &str) -> Result<()> {
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::ModelNotFound,
                format!("the model has no such version; ask for version {VERSION}, or for none"),
            ));
        }
        Ok(())
    }

    /// What the name means for the parameters of a caption.
    ///
    /// # Errors
    /// [`ModelNotFound`](ErrorKind::ModelNotFound).
    fn meant(&self, state: &AppState, captioner: &Captioner) -> Result<Option<String>> {
        names::check(Some(&self.model), state, captioner)
    }

    /// The name of the model as the client knows it.
    ///
    /// # Errors
    /// [`ModelNotFound`](ErrorKind::ModelNotFound).
    fn name(&self, state: &AppState, captioner: &Captioner) -> Result<String> {
        let _known = self.meant(state, captioner)?;
        let mut all = names::all(state, captioner).into_iter();
        let found = all.find(|name| *name == self.model);
        Ok(found.unwrap_or_else(|| captioner.info().id.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_names_with_slashes_versions_and_actions() {
        for (path, model, action) in [
            ("m", "m", Action::Metadata),
            ("m/versions/1", "m", Action::Metadata),
            ("m/ready", "m", Action::Ready),
            ("m/versions/1/infer", "m", Action::Infer),
            ("Salesforce/blip/infer", "Salesforce/blip", Action::Infer),
            ("Salesforce/blip/versions/1/config", "Salesforce/blip", Action::Config),
            ("/models/blip/infer", "/models/blip", Action::Infer),
            ("infer", "infer", Action::Metadata),
        ] {
            let expected = Address { model: model.to_owned(), action };
            assert_eq!(Address::parse(path).unwrap(), expected, "{path}");
        }
        for path in [
            "m/stats",
            "m/versions/1/stats",
            "a/b/generate",
            "m/generate_stream",
            "m/trace/setting",
        ] {
            assert_eq!(Address::parse(path).unwrap_err().kind(), ErrorKind::NotFound, "{path}");
        }
        for path in ["m/versions/2", "m/versions/1/x/infer", "m/versions//infer"] {
            assert_eq!(
                Address::parse(path).unwrap_err().kind(),
                ErrorKind::ModelNotFound,
                "{path}"
            );
        }
    }
}
