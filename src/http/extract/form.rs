//! Parameters as they come in, each at most once.

use axum::extract::Query;
use axum::http::Uri;
use serde_json::Value;

use super::{malformed, twice};
use crate::captioner::CaptionParams;
use cutline_error::{Error, Result};

/// Longest value of one parameter; the longest prompt that a model reads is far shorter.
const VALUE_BYTES: usize = 16 * 1024;

/// The parameters so far.
#[derive(Debug, Default)]
pub(super) struct Form {
    params: CaptionParams,
    seen: Vec<String>,
    /// There are no parameters at this address.
    image_only: bool,
}

impl Form {
    /// For an address that takes an image and no parameters.
    pub(super) fn image_only() -> Self {
        Self { image_only: true, ..Self::default() }
    }

    pub(super) fn query(&mut self, uri: &Uri) -> Result<()> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            malformed("the query string cannot be read; write it as name=value&name=value")
                .with_source(error)
        })?;
        pairs.iter().try_for_each(|(name, value)| self.set_text(name, value))
    }

    pub(super) fn set_text(&mut self, name: &str, text: &str) -> Result<()> {
        self.note(name, text.len())?;
        self.params.set_text(name, text)
    }

    pub(super) fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        self.note(name, value.as_str().map_or(0, str::len))?;
        self.params.set(name, value)
    }

    /// Refuses what is given twice or too long. Names that do not exist are refused after this, at
    /// the first of them, so the list stays short.
    fn note(&mut self, name: &str, length: usize) -> Result<()> {
        if self.image_only {
            let shown: String = name.chars().take(64).collect();
            let detail = format!("there is no parameter \"{shown}\" here; send the image alone");
            return Err(Error::parameter(shown, detail));
        }
        if self.seen.iter().any(|seen| seen == name) {
            return Err(twice(name));
        }
        if length > VALUE_BYTES && CaptionParams::NAMES.contains(&name) {
            return Err(too_long(name));
        }
        self.seen.push(name.to_owned());
        Ok(())
    }

    pub(super) fn finish(self) -> Result<CaptionParams> {
        self.params.validate()?;
        Ok(self.params)
    }
}

pub(super) fn too_long(name: &str) -> Error {
    let name: String = name.chars().take(64).collect();
    let detail = format!("{name} must not be longer than {VALUE_BYTES} bytes; shorten it");
    Error::parameter(name, detail)
}
