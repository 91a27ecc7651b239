//! `POST /caption/generate`

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::extract;
use super::observe::Outcome;
use super::state::AppState;
use crate::error::{Error, ErrorKind, Result};

/// One image to its caption.
pub(super) async fn generate(State(state): State<AppState>, request: Request) -> Result<Response> {
    // Asked before the body is read: a client that waits for `100 Continue` sends nothing in vain.
    let captioner = state.captioner()?;
    let settings = state.settings();
    let upload = extract::upload(request, settings).await?;
    let limit = settings.request_timeout;
    // Boxed: the state of decoding and waiting is large, and so would be every future around it.
    let work = Box::pin(captioner.caption(upload.image, upload.params));
    // When the time is up the future is dropped, which takes the image back from the model.
    let caption = timeout(limit, work).await.map_err(|_| {
        Error::new(
            ErrorKind::InferenceTimeout,
            format!(
                "the caption was not ready within {} s; ask for fewer tokens or beams, or try \
                 again when the server is less busy",
                limit.as_secs_f64()
            ),
        )
    })??;
    let outcome = Outcome::of(&caption);
    let mut response = Json(caption).into_response();
    response.extensions_mut().insert(outcome);
    Ok(response)
}
