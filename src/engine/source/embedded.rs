//! The model that is compiled into the binary.

use std::borrow::Cow;

use super::{ModelFiles, TokenizerFiles};
use crate::blip::weights::Weights;
use crate::error::Result;

const ID: &str = "cutline-small";
const LICENSE: &str = "other: see models/cutline-small/README.md";

/// A file of the embedded model.
macro_rules! embed {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/cutline-small/", $name))
    };
}

/// Hands out the embedded files; the weights are not copied.
pub(super) fn open() -> Result<ModelFiles> {
    let bytes = Cow::Borrowed(embed!("model.safetensors").as_slice());
    let weights = Weights::from_safetensors_bytes("the embedded model", bytes)?;
    Ok(ModelFiles {
        id: ID.into(),
        source: "embedded".into(),
        revision: None,
        config: embed!("config.json").to_vec(),
        tokenizer: TokenizerFiles {
            json: Some(embed!("tokenizer.json").to_vec()),
            vocab: None,
            config: Some(embed!("tokenizer_config.json").to_vec()),
        },
        preprocessor: Some(embed!("preprocessor_config.json").to_vec()),
        generation: Some(embed!("generation_config.json").to_vec()),
        license: Some(LICENSE.into()),
        digest: weights.digest()?,
        weights,
    })
}
