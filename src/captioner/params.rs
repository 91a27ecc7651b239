//! The parameters of a caption, declared once.
//!
//! [`CaptionParams`] is the declaration. Its schema (names, types, ranges, defaults, documentation)
//! is what `/openapi.json` publishes, what JSON fields, form parts, query strings and command-line
//! options are checked against, and what `cutline caption --help` prints. A new parameter is a new
//! field here, and the code that it controls.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::defaults::Given;
use super::param_schema::Parameter;
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
    /// Maximum length of alternative text in characters; 125 if not given. Only valid with
    /// `style=alt_text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u32, minimum = 20, maximum = 1000)]
    pub max_chars: Option<usize>,
    /// Include dominant colours and mood.
    pub colors: bool,
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
            colors: true,
            stream: false,
            cache: CachePolicy::default(),
            top_logprobs: generation.alternatives,
            given: Given::default(),
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
        let &Self { style, max_chars, capital, full_stop, .. } = self;
        TextStyle { style, max_chars, capital, full_stop }
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
        if self.max_chars.is_some() && self.style != Style::AltText {
            return Err(Error::parameter(
                "max_chars",
                "max_chars shortens alternative text; set style=alt_text as well",
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
mod tests {
    use super::*;
    use serde_json::json;
    use utoipa::openapi::schema::Type;

    fn fields(pairs: &[(&str, &str)]) -> Result<CaptionParams> {
        let mut fields = ParameterFields::default();
        for (name, text) in pairs {
            fields.add_text(name, text)?;
        }
        fields.finish()
    }

    #[test]
    fn the_schema_of_every_field_is_understood() {
        let names: Vec<&str> = Parameter::all().iter().map(Parameter::name).collect();
        let full = CaptionParams {
            prompt: Some("a".to_owned()),
            model: Some("a".to_owned()),
            seed: Some(1),
            max_chars: Some(20),
            ..CaptionParams::default()
        };
        let value = serde_json::to_value(full).unwrap();
        let declared: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, declared);
        for parameter in Parameter::all() {
            let kinds = [Type::String, Type::Boolean, Type::Integer, Type::Number];
            assert!(kinds.iter().any(|kind| parameter.is(kind)), "{parameter:?}");
            assert!(parameter.schema().description.is_some(), "{}", parameter.name());
            assert!(!parameter.help().contains(". "), "{}", parameter.help());
            parameter.check(&value[parameter.name()]).unwrap();
            let error = ParameterFields::default().add(parameter.name(), json!([])).unwrap_err();
            assert_eq!(error.field(), Some(parameter.name()), "{error}");
            assert!(!error.detail().contains("there is no parameter"), "{error}");
        }
        let error = ParameterFields::default().add("num_beam", json!(3)).unwrap_err();
        assert!(error.detail().contains("num_beams"), "the message lists what exists: {error}");
    }

    #[test]
    fn the_published_defaults_are_the_defaults() {
        let mut fields = ParameterFields::default();
        let mut without = Vec::new();
        for parameter in Parameter::all() {
            match parameter.schema().default.clone() {
                Some(default) => fields.add(parameter.name(), default).unwrap(),
                None => without.push(parameter.name()),
            }
        }
        let params = fields.finish().unwrap();
        assert_ne!(params.given, Given::default());
        assert_eq!(CaptionParams { given: Given::default(), ..params }, CaptionParams::default());
        assert_eq!(without, ["prompt", "model", "seed", "max_chars"]);
    }

    #[test]
    fn the_published_ranges_are_those_of_the_decoder() {
        for (name, least, most) in [
            ("num_beams", 1, crate::engine::MAX_BEAMS),
            ("num_captions", 1, crate::engine::MAX_BEAMS),
            ("max_new_tokens", 1, 1 << 20),
            ("max_chars", 20, 1000),
        ] {
            let parameter = Parameter::named(name).unwrap();
            for (value, accepted) in [(least, true), (most, true), (most + 1, false)] {
                assert_eq!(parameter.check(&json!(value)).is_ok(), accepted, "{name}={value}");
            }
            let error = parameter.check(&json!(least - 1)).unwrap_err();
            assert_eq!(error.field(), Some(name));
        }
    }

    #[test]
    fn text_and_json_mean_the_same() {
        let (mut from_text, mut from_json) =
            (ParameterFields::default(), ParameterFields::default());
        for (name, text, json) in [
            ("prompt", "42", json!("42")),
            ("max_new_tokens", "7", json!(7)),
            ("do_sample", "on", json!(true)),
            ("temperature", "0.5", json!(0.5)),
            ("top_k", "0", json!(0)),
            ("seed", "18446744073709551615", json!(u64::MAX)),
            ("style", "alt_text", json!("alt_text")),
            ("max_chars", "80", json!(80)),
            ("colors", "0", json!(false)),
            ("cache", "bypass", json!("bypass")),
        ] {
            from_text.add_text(name, text).unwrap();
            from_json.add(name, json).unwrap();
        }
        let params = from_text.finish().unwrap();
        assert_eq!(params, from_json.finish().unwrap());
        assert_eq!(params.prompt.as_deref(), Some("42"));
        assert_eq!(params.seed, Some(u64::MAX));
        assert!(!params.colors && params.style == Style::AltText);
    }

    #[test]
    fn null_is_not_given_and_whole_numbers_may_have_a_point() {
        let (mut json, mut text) = (ParameterFields::default(), ParameterFields::default());
        for parameter in Parameter::all() {
            json.add(parameter.name(), Value::Null).unwrap();
            json.add(parameter.name(), Value::Null).unwrap_err();
            if !["prompt", "model"].contains(&parameter.name()) {
                text.add_text(parameter.name(), "null").unwrap();
                text.add_text(parameter.name(), "1").unwrap_err();
            }
        }
        assert_eq!(json.finish().unwrap(), CaptionParams::default());
        assert_eq!(text.finish().unwrap(), CaptionParams::default());
        assert_eq!(fields(&[("prompt", "null")]).unwrap().prompt.as_deref(), Some("null"));

        let whole = |value: Value| {
            let mut fields = ParameterFields::default();
            fields.add("seed", value)?;
            fields.finish().map(|params| params.seed)
        };
        for (value, expected) in [
            (json!(3.0), 3),
            (json!(-0.0), 0),
            (json!(1e15), 1_000_000_000_000_000),
            (json!(9_007_199_254_740_992.0), 1 << 53),
        ] {
            assert_eq!(whole(value.clone()).unwrap(), Some(expected), "{value}");
        }
        // Beyond that, the number that was written may be another one.
        for value in [json!(2.5), json!(-1.0), json!(1e19), json!(9_007_199_254_740_994.0)] {
            assert_eq!(whole(value.clone()).unwrap_err().field(), Some("seed"), "{value}");
        }
        assert_eq!(fields(&[("num_beams", "3.0"), ("seed", "-0")]).unwrap().num_beams, 3);
        for (name, text) in [
            ("num_beams", "1e400"),
            ("temperature", "1e400"),
            ("temperature", "NaN"),
            ("temperature", "-inf"),
            ("seed", "18446744073709551616"),
            ("num_beams", "+3"),
            ("num_beams", "0x3"),
        ] {
            assert_eq!(fields(&[(name, text)]).unwrap_err().field(), Some(name), "{text}");
        }
    }

    #[test]
    fn wrong_types_and_values_are_refused() {
        for (name, value) in [
            ("num_beams", json!("3")),
            ("num_beams", json!(2.5)),
            ("num_beams", json!(-1)),
            ("num_beams", json!(11)),
            ("max_new_tokens", json!(1u64 << 40)),
            ("temperature", json!("hot")),
            ("temperature", json!(1e300)),
            ("temperature", json!(0)),
            ("top_p", json!(1.5)),
            ("do_sample", json!(1)),
            ("prompt", json!(["a"])),
            ("cache", json!("never")),
            ("style", json!("poem")),
            ("style", json!(1)),
            ("max_chars", json!("80")),
            ("max_chars", json!(19)),
            ("capital", json!(true)),
        ] {
            let error = ParameterFields::default().add(name, value.clone()).unwrap_err();
            assert_eq!(error.field(), Some(name), "{value}");
        }
        assert!(fields(&[("num_beams", "three")]).is_err());
        assert!(fields(&[("num_beams", "")]).is_err());
        assert!(fields(&[("seed", "1"), ("seed", "1")]).is_err());
        let long = "a".repeat(ParameterFields::MAX_BYTES + 1);
        assert!(fields(&[("prompt", &long)]).is_err());
        assert!(fields(&[("prompt", &long[1..])]).is_ok());
    }

    #[test]
    fn contradictions_are_refused() {
        let field = |pairs: &[(&str, &str)]| fields(pairs).unwrap_err().field().map(str::to_owned);
        assert_eq!(field(&[("num_captions", "2")]).as_deref(), Some("num_captions"));
        assert_eq!(
            field(&[("num_captions", "4"), ("num_beams", "3")]).as_deref(),
            Some("num_captions")
        );
        assert_eq!(
            field(&[("max_new_tokens", "3"), ("min_new_tokens", "4")]).as_deref(),
            Some("min_new_tokens")
        );
        assert_eq!(field(&[("max_chars", "80")]).as_deref(), Some("max_chars"));
    }

    #[test]
    fn a_value_that_was_set_in_code_is_checked_too() {
        for (params, field) in [
            (CaptionParams { num_beams: 0, ..CaptionParams::default() }, "num_beams"),
            (CaptionParams { top_p: f32::NAN, ..CaptionParams::default() }, "top_p"),
        ] {
            assert_eq!(params.validate().unwrap_err().field(), Some(field));
        }
    }
}
