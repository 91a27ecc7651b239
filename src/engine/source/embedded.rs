//! The model in the binary.

use std::borrow::Cow;

use super::{ModelFiles, TokenizerFiles};
use cutline_blip::weights::Weights;
use cutline_error::Result;
use cutline_small_model as small;

const LICENSE: &str = "other: see models/cutline-small/README.md";

/// Returns the embedded files; the weights are not copied.
pub(super) fn open() -> Result<ModelFiles> {
    let bytes = Cow::Borrowed(small::WEIGHTS);
    let weights = Weights::from_safetensors_bytes("the embedded model", bytes)?;
    Ok(ModelFiles {
        id: small::ID.into(),
        source: "embedded".into(),
        revision: None,
        config: small::CONFIG.to_vec(),
        tokenizer: TokenizerFiles {
            json: Some(small::TOKENIZER.to_vec()),
            vocab: None,
            config: Some(small::TOKENIZER_CONFIG.to_vec()),
        },
        preprocessor: Some(small::PREPROCESSOR_CONFIG.to_vec()),
        generation: Some(small::GENERATION_CONFIG.to_vec()),
        extras: Some(small::EXTRAS.to_vec()),
        license: Some(LICENSE.into()),
        digest: weights.digest()?,
        weights,
    })
}
