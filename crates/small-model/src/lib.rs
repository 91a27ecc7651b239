//! The files of cutline-small, the model that is compiled into the program. They are a crate of
//! their own so that 68 MB are read once, however many programs and tests are linked with them.

macro_rules! file {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        pub static $name: &[u8] = include_bytes!(concat!(env!("SMALL_MODEL"), "/", $file));
    };
}

/// The name under which the model answers.
pub const ID: &str = "cutline-small";

file!(
    /// Shapes and constants of the model, as transformers writes them.
    CONFIG,
    "config.json"
);
file!(
    /// Defaults of `generate`.
    GENERATION_CONFIG,
    "generation_config.json"
);
file!(
    /// What only cutline reads: the model's own defaults of decoding, what its confidence is worth, and
    /// how often training showed it a word.
    EXTRAS,
    "cutline.json"
);
file!(
    /// Sizes, means and deviations of the pixels.
    PREPROCESSOR_CONFIG,
    "preprocessor_config.json"
);
file!(
    /// The tokenizer, as the library `tokenizers` writes it.
    TOKENIZER,
    "tokenizer.json"
);
file!(
    /// What transformers knows of the tokenizer beside it.
    TOKENIZER_CONFIG,
    "tokenizer_config.json"
);
file!(
    /// The weights, in f16.
    WEIGHTS,
    "model.safetensors"
);
