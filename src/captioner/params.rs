//! The parameters of a caption, as every entrance to the program names them: JSON fields, form
//! parts, query strings and command-line options all end in [`CaptionParams::set`].

use serde_json::Value;

use super::style::{Style, TextStyle};
use crate::engine::GenerationParams;
use cutline_error::{Error, Result};

/// What the result cache may do for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CachePolicy {
    /// Answer from the cache if it knows the answer.
    #[default]
    Use,
    /// Compute anew and remember the new answer.
    Refresh,
    /// Compute anew and remember nothing.
    Bypass,
}

/// Everything that a caller may ask of a caption.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionParams {
    /// Text that the caption continues.
    pub prompt: Option<String>,
    /// How to decode.
    pub generation: GenerationParams,
    /// How the text is put.
    pub text: TextStyle,
    /// Whether dominant colours and mood are wanted with the caption.
    pub colors: bool,
    /// Whether the answer is wanted word by word.
    pub stream: bool,
    /// What the cache may do.
    pub cache: CachePolicy,
}

impl Default for CaptionParams {
    fn default() -> Self {
        Self {
            prompt: None,
            generation: GenerationParams::default(),
            text: TextStyle::default(),
            colors: true,
            stream: false,
            cache: CachePolicy::Use,
        }
    }
}

impl CaptionParams {
    /// The names that [`set`](Self::set) knows.
    pub const NAMES: [&'static str; 18] = [
        "prompt",
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "num_captions",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "style",
        "max_chars",
        "colors",
        "stream",
        "cache",
    ];

    /// Sets one parameter from a JSON value, strictly: a number must be a JSON number.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field: an
    /// unknown name or a value of the wrong type.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        let g = &mut self.generation;
        match name {
            "prompt" => self.prompt = Some(text(name, value)?.to_owned()),
            "max_new_tokens" => g.max_new_tokens = count(name, value)?,
            "min_new_tokens" => g.min_new_tokens = count(name, value)?,
            "num_beams" => g.num_beams = count(name, value)?,
            "num_captions" => g.num_return_sequences = count(name, value)?,
            "do_sample" => g.do_sample = flag(name, value)?,
            "temperature" => g.temperature = number(name, value)?,
            "top_k" => g.top_k = count(name, value)?,
            "top_p" => g.top_p = number(name, value)?,
            "seed" => g.seed = Some(integer(name, value)?),
            "repetition_penalty" => g.repetition_penalty = number(name, value)?,
            "length_penalty" => g.length_penalty = number(name, value)?,
            "no_repeat_ngram_size" => g.no_repeat_ngram_size = count(name, value)?,
            "style" => self.text.style = style(name, value)?,
            "max_chars" => self.text.max_chars = Some(count(name, value)?),
            "colors" => self.colors = flag(name, value)?,
            "stream" => self.stream = flag(name, value)?,
            "cache" => self.cache = policy(name, value)?,
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// Sets one parameter from text, as forms, query strings and command lines carry it.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<()> {
        if matches!(name, "prompt" | "style" | "cache") {
            return self.set(name, &Value::from(text));
        }
        let value = match text.trim() {
            "" => return Err(invalid(name, "a value")),
            // The spellings that HTML forms and shells produce.
            "on" | "yes" | "True" | "TRUE" if is_flag(name) => Value::Bool(true),
            "off" | "no" | "False" | "FALSE" if is_flag(name) => Value::Bool(false),
            "1" if is_flag(name) => Value::Bool(true),
            "0" if is_flag(name) => Value::Bool(false),
            trimmed => serde_json::from_str(trimmed).unwrap_or_else(|_| Value::from(trimmed)),
        };
        self.set(name, &value)
    }

    /// Checks ranges and contradictions that need no model.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn validate(&self) -> Result<()> {
        self.generation.validate()?;
        self.text.validate()
    }
}

fn is_flag(name: &str) -> bool {
    matches!(name, "do_sample" | "colors" | "stream")
}

fn unknown(name: &str) -> Error {
    // The name comes from outside and may be anything; a few words of it are enough.
    let shown: String = name.chars().take(64).collect();
    let list = CaptionParams::NAMES.join(", ");
    Error::parameter(
        shown.clone(),
        format!("there is no parameter \"{shown}\"; the parameters are {list}"),
    )
}

fn invalid(name: &str, wanted: &str) -> Error {
    Error::parameter(name.to_owned(), format!("{name} must be {wanted}"))
}

fn text<'v>(name: &str, value: &'v Value) -> Result<&'v str> {
    value.as_str().ok_or_else(|| invalid(name, "a string"))
}

fn flag(name: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| invalid(name, "true or false"))
}

fn integer(name: &str, value: &Value) -> Result<u64> {
    value.as_u64().ok_or_else(|| invalid(name, "a whole number of 0 or more"))
}

fn count(name: &str, value: &Value) -> Result<usize> {
    let n = integer(name, value)?;
    // Larger counts mean nothing to any model and would only invite overflow.
    usize::try_from(n)
        .ok()
        .filter(|n| *n <= 1 << 20)
        .ok_or_else(|| invalid(name, "at most 1048576"))
}

fn number(name: &str, value: &Value) -> Result<f32> {
    let wide = value.as_f64().ok_or_else(|| invalid(name, "a number"))?;
    #[allow(clippy::cast_possible_truncation)] // Parameters are f32 in the arithmetic.
    let narrow = wide as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(invalid(name, "a finite number")) }
}

fn style(name: &str, value: &Value) -> Result<Style> {
    match text(name, value)? {
        "caption" => Ok(Style::Caption),
        "alt_text" => Ok(Style::AltText),
        _ => Err(invalid(name, "caption or alt_text")),
    }
}

fn policy(name: &str, value: &Value) -> Result<CachePolicy> {
    match text(name, value)? {
        "use" => Ok(CachePolicy::Use),
        "refresh" => Ok(CachePolicy::Refresh),
        "bypass" => Ok(CachePolicy::Bypass),
        _ => Err(invalid(name, "use, refresh or bypass")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_name_is_known_and_no_other() {
        for name in CaptionParams::NAMES {
            let error = CaptionParams::default().set(name, &Value::Null).unwrap_err();
            assert_eq!(error.field(), Some(name), "{error}");
            assert!(!error.detail().contains("there is no parameter"), "{name}: {error}");
        }
        let error = CaptionParams::default().set("num_beam", &json!(3)).unwrap_err();
        assert!(error.detail().contains("num_beams"), "the message lists what exists: {error}");
    }

    #[test]
    fn text_and_json_mean_the_same() {
        let mut from_text = CaptionParams::default();
        let mut from_json = CaptionParams::default();
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
            from_text.set_text(name, text).unwrap();
            from_json.set(name, &json).unwrap();
        }
        assert_eq!(from_text, from_json);
        assert_eq!(from_text.prompt.as_deref(), Some("42"));
        assert_eq!(from_text.generation.seed, Some(u64::MAX));
        assert!(!from_text.colors);
    }

    #[test]
    fn wrong_types_are_refused() {
        for (name, value) in [
            ("num_beams", json!("3")),
            ("num_beams", json!(2.5)),
            ("num_beams", json!(-1)),
            ("max_new_tokens", json!(1u64 << 40)),
            ("temperature", json!("hot")),
            ("temperature", json!(1e300)),
            ("do_sample", json!(1)),
            ("prompt", json!(["a"])),
            ("cache", json!("never")),
            ("style", json!("poem")),
            ("style", json!(1)),
            ("max_chars", json!("80")),
        ] {
            let error = CaptionParams::default().set(name, &value).unwrap_err();
            assert_eq!(error.field(), Some(name), "{value}");
        }
        assert!(CaptionParams::default().set_text("num_beams", "three").is_err());
        assert!(CaptionParams::default().set_text("num_beams", "").is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let field = |pairs: &[(&str, &str)]| {
            let mut params = CaptionParams::default();
            for (name, value) in pairs {
                params.set_text(name, value).unwrap();
            }
            params.validate().unwrap_err().field().map(str::to_owned)
        };
        assert_eq!(field(&[("num_captions", "2")]).as_deref(), Some("num_captions"));
        assert_eq!(
            field(&[("num_captions", "4"), ("num_beams", "3")]).as_deref(),
            Some("num_captions")
        );
        assert_eq!(
            field(&[("max_new_tokens", "3"), ("min_new_tokens", "4")]).as_deref(),
            Some("min_new_tokens")
        );
        assert_eq!(field(&[("num_beams", "11")]).as_deref(), Some("num_beams"));
        assert_eq!(field(&[("temperature", "0")]).as_deref(), Some("temperature"));
        assert_eq!(field(&[("top_p", "1.5")]).as_deref(), Some("top_p"));
        assert_eq!(field(&[("max_chars", "80")]).as_deref(), Some("max_chars"));
    }
}
