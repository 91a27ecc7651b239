//! Which model a request means. There is one, under its own name and under those of `MODEL_ALIASES`.

use std::borrow::Cow;

use crate::captioner::Captioner;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// Ollama's tag of a model without one.
const LATEST: &str = ":latest";

/// Accepts any name.
const ANY: &str = "*";

/// What `huggingface_hub` sends if it was given an address in the place of a model.
const UNNAMED: &str = "dummy";

/// Checks that `name` means the loaded model. Percent-encoding is undone, because some clients encode
/// the slash of a hub id.
///
/// # Errors
/// [`ModelNotFound`](ErrorKind::ModelNotFound).
pub(super) fn check(name: Option<&str>, state: &AppState, captioner: &Captioner) -> Result<()> {
    let named = name.filter(|name| !name.is_empty() && *name != UNNAMED);
    let Some(name) = named else { return Ok(()) };
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
    let wanted = bare(&decoded.unwrap_or(Cow::Borrowed(name))).to_owned();
    let own = &captioner.info().id;
    let aliases = &state.settings().model_aliases;
    if wanted == bare(own) || aliases.iter().any(|alias| alias == ANY || bare(alias) == wanted) {
        return Ok(());
    }
    let shown: String = wanted.chars().filter(|c| !c.is_control()).take(64).collect();
    Err(Error::new(
        ErrorKind::ModelNotFound,
        format!(
            "model '{shown}' not found; use '{own}', or let the operator of the server add the name \
             to MODEL_ALIASES"
        ),
    ))
}

/// The names of the loaded model, its own first.
pub(super) fn all<'a>(state: &'a AppState, captioner: &'a Captioner) -> Vec<&'a str> {
    let aliases = state.settings().model_aliases.iter().map(String::as_str);
    [captioner.info().id.as_str()].into_iter().chain(aliases.filter(|name| *name != ANY)).collect()
}

fn bare(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}
