//! Which model a request means: the main one under its own name and under those of `MODEL_ALIASES`, another
//! one in this process, or a route.

use std::borrow::Cow;

use crate::captioner::Captioner;
use crate::http::state::AppState;
use cutline_error::Result;

/// Ollama's tag of a model without one.
const LATEST: &str = ":latest";

/// Accepts any name.
const ANY: &str = "*";

/// What `huggingface_hub` sends if it was given an address in the place of a model.
const UNNAMED: &str = "dummy";

/// What `name` means for [`CaptionParams::model`](crate::captioner::CaptionParams::model): the name of another
/// model or of a route, or `None` for the main model. Percent-encoding is undone, because some clients
/// encode the slash of a hub id.
///
/// # Errors
/// [`ModelNotFound`](cutline_error::ErrorKind::ModelNotFound).
pub(in crate::http) fn check(
    name: Option<&str>,
    state: &AppState,
    captioner: &Captioner,
) -> Result<Option<String>> {
    let named = name.filter(|name| !name.is_empty() && *name != UNNAMED);
    let Some(name) = named else { return Ok(None) };
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
    let wanted = bare(&decoded.unwrap_or(Cow::Borrowed(name))).to_owned();
    // Models and routes come first: a route may have the name of the model that it usually asks.
    if captioner.other_names().contains(&wanted) {
        return Ok(Some(wanted));
    }
    let others = captioner.other_models();
    if let Some((other, _)) = others.into_iter().find(|(_, model)| model.is_named(&wanted)) {
        return Ok(Some(other.to_owned()));
    }
    if captioner.is_named(&wanted) {
        return Ok(Some(wanted));
    }
    let aliases = &state.settings().model_aliases;
    if aliases.iter().any(|alias| alias == ANY || bare(alias) == wanted) {
        return Ok(None);
    }
    Err(captioner.unknown(&wanted))
}

/// The names of the main model, its own first, and those of all other models and routes.
pub(super) fn all(state: &AppState, captioner: &Captioner) -> Vec<String> {
    let aliases = state.settings().model_aliases.iter().filter(|name| *name != ANY);
    let own = std::iter::once(&captioner.info().id);
    let mut all: Vec<String> = own.chain(aliases).cloned().collect();
    for name in captioner.other_names() {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn bare(name: &str) -> &str {
    name.strip_suffix(LATEST).unwrap_or(name)
}
