//! The parameters of a caption as the document shows them. `captioner::params` reads them; a test
//! compares the two.

use utoipa::ToSchema;

/// What may be asked of a caption.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only its schema is of use")]
pub(super) struct CaptionParameters {
    /// Text that the caption continues, as in BLIP's conditional captioning. Together with the
    /// answer it must fit into the model's positions.
    #[schema(required = false)]
    prompt: String,
    /// Most tokens that are written, the end token included; `/model/info` tells the model's limit.
    #[schema(required = false, minimum = 1, default = 20)]
    max_new_tokens: u32,
    /// Fewest tokens before the end; at most `max_new_tokens`.
    #[schema(required = false, minimum = 0, default = 0)]
    min_new_tokens: u32,
    /// Beams; more than 1 is beam search.
    #[schema(required = false, minimum = 1, maximum = 10, default = 1)]
    num_beams: u32,
    /// Captions to return: at most `num_beams` when beams are searched, else `do_sample` must be
    /// true.
    #[schema(required = false, minimum = 1, maximum = 10, default = 1)]
    num_captions: u32,
    /// Draw each token at random by its probability instead of taking the best.
    #[schema(required = false, default = false)]
    do_sample: bool,
    /// Of sampling: below 1 likely tokens become likelier, above 1 less so.
    #[schema(required = false, exclusive_minimum = 0.0, default = 1.0)]
    temperature: f32,
    /// Of sampling: only so many of the best tokens are drawn from; 0 for all.
    #[schema(required = false, minimum = 0, maximum = 1_048_576, default = 50)]
    top_k: u32,
    /// Of sampling: only the fewest best tokens are drawn from whose probabilities add up to this.
    #[schema(required = false, exclusive_minimum = 0.0, maximum = 1.0, default = 1.0)]
    top_p: f32,
    /// Of sampling: the same seed gives the same captions; without one they differ each time.
    #[schema(required = false, format = "uint64")]
    seed: u64,
    /// Divides the scores of tokens that are there already; 1 changes nothing.
    #[schema(required = false, exclusive_minimum = 0.0, default = 1.0)]
    repetition_penalty: f32,
    /// Of beam search: the power of its length by which a caption's score is divided.
    #[schema(required = false, default = 1.0)]
    length_penalty: f32,
    /// No run of so many tokens occurs twice; 0 for no such rule.
    #[schema(required = false, minimum = 0, maximum = 1_048_576, default = 0)]
    no_repeat_ngram_size: u32,
    #[schema(required = false, inline)]
    style: TextStyle,
    /// Most characters of an `alt_text`, and only for one; 125 if it is left out.
    #[schema(required = false, minimum = 20, maximum = 1000)]
    max_chars: u32,
    /// Dominant colours and mood with the caption.
    #[schema(required = false, default = true)]
    colors: bool,
    /// Server-sent events: `token` with the text so far, then `done` with the whole answer, or
    /// `error` with a problem. Not for a batch.
    #[schema(required = false, default = false)]
    stream: bool,
    #[schema(required = false, inline)]
    cache: CacheMode,
}

/// What the cache may do: `use` answers from what is known, `refresh` computes anew and remembers
/// the new answer, `bypass` computes anew and remembers nothing.
#[derive(Debug, ToSchema)]
#[schema(default = "use", rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is of use")]
pub(super) enum CacheMode {
    Use,
    Refresh,
    Bypass,
}

/// The text as the model writes it, or as alternative text after the practice of WCAG: no "a picture
/// of" at the start, nothing twice in a row, cut at a word.
#[derive(Debug, ToSchema)]
#[schema(default = "caption", rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is of use")]
pub(super) enum TextStyle {
    Caption,
    AltText,
}
