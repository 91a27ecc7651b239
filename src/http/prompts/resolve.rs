//! From a template in a request to the version of a prompt for each photo.

use axum::extract::Request;
use cutline_library::{ContentHash, Store};

use super::with;
use crate::captioner::{CaptionParams, Photo};
use crate::http::auth::Client;
use crate::http::rate::ClientId;
use crate::http::state::AppState;
use crate::prompts;
use cutline_error::{Error, ErrorKind, Result};

/// Where templates are, and for whom.
#[derive(Clone)]
pub(in crate::http) struct Templates {
    state: AppState,
    client: String,
}

impl Templates {
    /// For the sender of a request.
    pub(in crate::http) fn of(state: &AppState, request: &Request) -> Self {
        Self::for_client(state, &state.guard().client(request))
    }

    pub(in crate::http) fn for_client(state: &AppState, client: &Client) -> Self {
        let client = match client {
            Client::Account(account) => format!("account {}", account.name()),
            Client::Other(ClientId::Key(number)) => format!("key {number}"),
            Client::Other(ClientId::Account(number)) => format!("account {number}"),
            Client::Other(ClientId::Address(Some(address))) => format!("address {address}"),
            Client::Other(ClientId::Address(None)) => "address".to_owned(),
        };
        Self { state: state.clone(), client }
    }

    /// The parameters for one photo.
    ///
    /// # Errors
    /// As [`resolved`].
    pub(in crate::http) async fn one(
        &self,
        photo: Photo,
        params: CaptionParams,
    ) -> Result<(Photo, CaptionParams)> {
        let one = resolved(self, vec![photo], params).await?.pop();
        one.ok_or_else(|| Error::internal("an image was lost"))
    }
}

/// The parameters for each photo, with the version of the prompt that it gets.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): there is no such version, or variables are missing.
pub(in crate::http) async fn resolved(
    templates: &Templates,
    photos: Vec<Photo>,
    params: CaptionParams,
) -> Result<Vec<(Photo, CaptionParams)>> {
    // Without a library, the captioner says that one is needed.
    if params.template.is_none() || templates.state.library().is_none() {
        return Ok(photos.into_iter().map(|photo| (photo, params.clone())).collect());
    }
    let client = templates.client.clone();
    let find = move |store: &dyn Store| -> Result<Vec<_>> {
        let one = |photo: Photo| -> Result<(Photo, CaptionParams)> {
            let hash = ContentHash(*photo.hash().as_bytes());
            let params = prompts::resolve(store, &params, &client, Some(&hash))?;
            Ok((photo, params))
        };
        photos.into_iter().map(one).collect()
    };
    with(&templates.state, find).await.map_err(|error| match error.kind() {
        // The address exists; what is missing is what the parameter names.
        ErrorKind::NotFound => Error::parameter("template", error.detail().to_owned()),
        _ => error,
    })
}
