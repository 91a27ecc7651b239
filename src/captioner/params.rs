//! The parameters of a caption, declared once.
//!
//! [`CaptionParams`] is the declaration. Its schema (names, types, ranges, defaults, documentation)
//! is what `/openapi.json` publishes, what JSON fields, form parts, query strings and command-line
//! options are checked against, and what `cutline caption --help` prints. A new parameter is a new
//! field here, and the code that it controls.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::defaults::Given;
use super::param_schema::Parameter;
use super::recipe::Recipe;
use super::style::{Style, TextStyle};
use crate::engine::{EarlyStopping, GenerationParams};
use cutline_error::{Error, Result};

/// What a caller may ask of a caption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CaptionParams {
    /// Text that the caption continues. This is BLIP's conditional captioning: prompt and caption
    /// together must fit into the model's positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub prompt: Option<String>,
    /// Name of a model or a route of this server; its main model or its usual route if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub model: Option<String>,
    /// A prompt of the library: `name`, `name@label` or `name:3`. It says what the caption continues, in
    /// which style it is written, or what becomes of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub template: Option<String>,
    /// The variables of the template, as a JSON object. In JSON, the object itself may be sent as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub variables: Option<String>,
    /// For whom the text is, in experiments in which each user always gets the same variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user: Option<String>,
    /// Maximum number of tokens in a caption. The end token counts; `/model/info` reports the
    /// model's limit.
    #[schema(value_type = u32, minimum = 1, maximum = 1_048_576)]
    pub max_new_tokens: usize,
    /// Minimum number of tokens in a caption. At most `max_new_tokens`.
    #[schema(value_type = u32, maximum = 1_048_576)]
    pub min_new_tokens: usize,
    /// Number of beams. More than 1 selects beam search.
    #[schema(value_type = u32, minimum = 1, maximum = 10)]
    pub num_beams: usize,
    /// Number of captions to return. At most `num_beams` in beam search; without beam search, more
    /// than 1 needs `do_sample`.
    #[schema(value_type = u32, minimum = 1, maximum = 10)]
    pub num_captions: usize,
    /// Sample each token instead of taking the most likely one.
    pub do_sample: bool,
    /// Softmax temperature of sampling. Below 1 likely tokens become more likely, above 1 less.
    #[schema(exclusive_minimum = 0.0)]
    pub temperature: f32,
    /// Sample among this many of the most likely tokens; 0 for all.
    #[schema(value_type = u32, maximum = 1_048_576)]
    pub top_k: usize,
    /// Sample among the fewest most likely tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: f32,
    /// Seed of sampling: the same seed gives the same captions. Without one they differ each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = "uint64")]
    pub seed: Option<u64>,
    /// Above 1 discourages repetition. Divides the scores of tokens that are already present.
    #[schema(exclusive_minimum = 0.0)]
    pub repetition_penalty: f32,
    /// Above 0 favours long captions in beam search, below 0 short ones. The score of a caption is
    /// divided by its length to this power.
    pub length_penalty: f32,
    /// No sequence of this many tokens occurs twice; 0 for no limit.
    #[schema(value_type = u32, maximum = 1_048_576)]
    pub no_repeat_ngram_size: usize,
    #[schema(inline)]
    #[allow(missing_docs, reason = "the type's documentation is the description of the field")]
    pub style: Style,
    /// Maximum length of the text in characters, for every style but `caption`. If not given, 125 for
    /// `alt_text`, 140 for `engaging`, 60 for `title`, 250 for `keywords`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u32, minimum = 20, maximum = 1000)]
    pub max_chars: Option<usize>,
    /// End the text with emoji. Only valid with `style=engaging`.
    pub emoji: bool,
    /// Include dominant colours and mood.
    pub colors: bool,
    /// Put the captions in the order in which they match the image, as a model of this server says that
    /// scores texts; each then has `match`. The first caption of the answer is the one that matches best.
    pub rerank: bool,
    /// Answer with server-sent events: `token` with the text so far, then `done` with the whole
    /// answer or `error` with a problem. Not available for a batch.
    pub stream: bool,
    #[schema(inline)]
    #[allow(missing_docs, reason = "as above")]
    pub cache: CachePolicy,
    /// How many probable tokens are told for each one of a caption; for contracts that report them.
    #[serde(skip)]
    pub top_logprobs: usize,
    /// The parameters of decoding that were named: the model's own defaults replace only the others.
    #[serde(skip)]
    pub given: Given,
    /// The version of the template, rendered for the photo.
    #[serde(skip)]
    pub recipe: Option<Arc<Recipe>>,
    /// A question to answer, for a model that answers questions.
    #[serde(skip)]
    pub question: Option<String>,
    /// Whether alternative text starts with a capital letter; the command line's alone.
    #[serde(skip)]
    pub capital: bool,
    /// Whether alternative text ends with a full stop; the command line's alone.
    #[serde(skip)]
    pub full_stop: bool,
}

/// How to use the result cache: `use` answers from it, `refresh` computes again and stores the new
/// result, `bypass` computes again and stores nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// Answer from the cache if possible.
    #[default]
    Use,
    /// Compute again and store the new result.
    Refresh,
    /// Compute again and store nothing.
    Bypass,
}

impl Default for CaptionParams {
    fn default() -> Self {
        let generation = GenerationParams::default();
        Self {
            prompt: None,
            model: None,
            template: None,
            variables: None,
            user: None,
            max_new_tokens: generation.max_new_tokens,
            min_new_tokens: generation.min_new_tokens,
            num_beams: generation.num_beams,
            num_captions: generation.num_return_sequences,
            do_sample: generation.do_sample,
            temperature: generation.temperature,
            top_k: generation.top_k,
            top_p: generation.top_p,
            seed: generation.seed,
            repetition_penalty: generation.repetition_penalty,
            length_penalty: generation.length_penalty,
            no_repeat_ngram_size: generation.no_repeat_ngram_size,
            style: Style::default(),
            max_chars: None,
            emoji: false,
            colors: true,
            rerank: false,
            stream: false,
            cache: CachePolicy::default(),
            top_logprobs: generation.alternatives,
            given: Given::default(),
            recipe: None,
            question: None,
            capital: false,
            full_stop: false,
        }
    }
}

impl CaptionParams {
    /// How to decode.
    #[must_use]
    pub fn generation(&self) -> GenerationParams {
        GenerationParams {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            num_beams: self.num_beams,
            num_return_sequences: self.num_captions,
            length_penalty: self.length_penalty,
            early_stopping: EarlyStopping::default(),
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            do_sample: self.do_sample,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            alternatives: self.top_logprobs,
        }
    }

    /// How to write the text.
    #[must_use]
    pub fn text_style(&self) -> TextStyle {
        let &Self { style, max_chars, emoji, capital, full_stop, .. } = self;
        TextStyle { style, max_chars, emoji, capital, full_stop }
    }

    /// Checks ranges, and contradictions that need no model.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn validate(&self) -> Result<()> {
        let fields = serde_json::to_value(self)
            .map_err(|error| Error::internal("parameters do not serialise").with_source(error))?;
        for (name, value) in fields.as_object().into_iter().flatten() {
            Parameter::named(name)?.check(value)?;
        }
        if self.max_chars.is_some() && self.style == Style::Caption {
            return Err(Error::parameter(
                "max_chars",
                "max_chars shortens texts of other styles than caption; set style=alt_text, engaging, \
                 title or keywords as well",
            ));
        }
        if self.emoji && self.style != Style::Engaging {
            return Err(Error::parameter(
                "emoji",
                "only engaging texts have emoji; set style=engaging as well",
            ));
        }
        self.generation().validate()
    }
}

/// Collects parameters as they arrive. Each one is known, has the right type, lies in its range,
/// and occurs once.
#[derive(Debug, Default)]
pub struct ParameterFields(Map<String, Value>);

impl ParameterFields {
    /// Maximum length of a value in bytes, far more than the longest prompt that a model can read.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// Whether there is a parameter of this name.
    #[must_use]
    pub fn is_known(name: &str) -> bool {
        Parameter::named(name).is_ok()
    }

    /// Checks that the parameter `name` exists and is not given yet, before its value is read.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn expect(&self, name: &str) -> Result<()> {
        Parameter::named(name)?;
        if self.0.contains_key(name) { Err(given_twice(name)) } else { Ok(()) }
    }

    /// Adds a parameter as JSON carries it. Types are strict: a number must be a JSON number. Null
    /// means that the parameter is not given, and a whole number may be written as `3.0`.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn add(&mut self, name: &str, value: Value) -> Result<()> {
        self.expect(name)?;
        if value.is_null() {
            // Kept until the end, so that a second value is refused.
            self.0.insert(name.to_owned(), value);
            return Ok(());
        }
        let parameter = Parameter::named(name)?;
        let value = parameter.normalized(value);
        if value.as_str().is_some_and(|text| text.len() > Self::MAX_BYTES) {
            return Err(too_long(name, Self::MAX_BYTES));
        }
        parameter.check(&value)?;
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Adds a parameter as forms, query strings and command lines carry it: as text.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_text(&mut self, name: &str, text: &str) -> Result<()> {
        let value = Parameter::named(name)?.parse(text);
        self.add(name, value)
    }

    /// All parameters, with the defaults of those that were not given.
    ///
    /// # Errors
    /// As [`CaptionParams::validate`].
    pub fn finish(mut self) -> Result<CaptionParams> {
        self.0.retain(|_, value| !value.is_null());
        let given = Given::of(self.0.keys().map(String::as_str));
        let params: CaptionParams = serde_json::from_value(Value::Object(self.0))
            .map_err(|error| Error::internal("checked parameters do not fit").with_source(error))?;
        let params = CaptionParams { given, ..params };
        params.validate()?;
        Ok(params)
    }
}

/// The refusal of a field that is given twice: one of the two values would be ignored.
pub(crate) fn given_twice(name: &str) -> Error {
    Error::parameter(name.to_owned(), format!("{name} is given twice; send it once"))
}

/// The refusal of a value of more than `most` bytes.
pub(crate) fn too_long(name: &str, most: usize) -> Error {
    let name = shortened(name);
    let detail = format!("{name} must not be longer than {most} bytes; shorten it");
    Error::parameter(name, detail)
}

/// Shortens a name from a request for a message: it may have any length and any characters.
pub(crate) fn shortened(name: &str) -> String {
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    name.chars().take(64).map(printable).collect()
}

#[cfg(test)]
mod tests;
