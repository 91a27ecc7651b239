//! What a request for tags may ask for.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::captioner::{given_twice, shortened};
use cutline_error::{Error, Result};
use cutline_tags::{FIELD, MAX_K, Source, Vocabulary, Weights};

/// How tags are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TagStrategy {
    /// The best that there is: `hybrid`.
    #[default]
    Auto,
    /// Everything together.
    Hybrid,
    /// Words of captions.
    Caption,
    /// How probable the model finds each tag.
    Likelihood,
    /// Accepted tags of similar photos in the library.
    Similarity,
}

impl TagStrategy {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Auto, Self::Hybrid, Self::Caption, Self::Likelihood, Self::Similarity];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Hybrid => "hybrid",
            Self::Caption => "caption",
            Self::Likelihood => "likelihood",
            Self::Similarity => "similarity",
        }
    }

    /// The strategy that `auto` stands for, or itself.
    #[must_use]
    pub fn resolved(self) -> Self {
        if self == Self::Auto { Self::Hybrid } else { self }
    }

    pub(super) fn uses_captions(self) -> bool {
        matches!(self.resolved(), Self::Hybrid | Self::Caption)
    }

    pub(super) fn uses_model(self) -> bool {
        matches!(self.resolved(), Self::Hybrid | Self::Likelihood)
    }

    pub(super) fn uses_near(self) -> bool {
        matches!(self.resolved(), Self::Hybrid | Self::Similarity)
    }
}

impl std::str::FromStr for TagStrategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::parameter("strategy", format!("strategy must be one of {names}"))
        })
    }
}

/// What a caller may ask of tags.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TagParams {
    /// How tags are found.
    pub strategy: TagStrategy,
    /// The most tags of a category, instead of its own number.
    pub k: Option<usize>,
    /// The least score of a tag, instead of the categories' own.
    pub min_score: Option<f32>,
    /// Whether the answer says why.
    pub explain: bool,
    /// Whether tags are considered whose words the model never saw.
    pub unsupported: bool,
    /// The weights of the strategy `hybrid`; `None` for those that were shipped. No request says so.
    pub weights: Option<Weights>,
}

impl TagParams {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.k.is_some_and(|k| !(1..=MAX_K).contains(&k)) {
            return Err(Error::parameter(
                "k",
                format!("k must be a whole number from 1 to {MAX_K}"),
            ));
        }
        if self.min_score.is_some_and(|score| !(0.0..=1.0).contains(&score)) {
            return Err(Error::parameter("min_score", "min_score must be a number from 0 to 1"));
        }
        Ok(())
    }
}

/// What a request for tags says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TagRequest {
    /// How the image is to be tagged.
    pub params: TagParams,
    /// The allowed tags, if it says so.
    pub vocabulary: Option<Source>,
    /// The model, if it names one.
    pub model: Option<String>,
}

/// Collects the parameters of a request for tags as they arrive. Each one is known and occurs once.
#[derive(Debug, Default)]
pub struct TagFields {
    given: Vec<&'static str>,
    request: TagRequest,
}

impl TagFields {
    /// The names of the parameters.
    pub const NAMES: [&'static str; 7] =
        [FIELD, "strategy", "k", "min_score", "explain", "unsupported", "model"];

    /// The parameter whose value is JSON with objects and lists.
    pub const NESTED: &'static str = FIELD;

    /// The most bytes of a vocabulary in a request.
    pub const MAX_VOCABULARY: usize = 48 * 1024;

    /// Whether there is a parameter of this name.
    #[must_use]
    pub fn is_known(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }

    /// Checks that the parameter `name` exists and is not given yet.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn expect(&self, name: &str) -> Result<&'static str> {
        let Some(known) = Self::NAMES.into_iter().find(|known| *known == name) else {
            let (shown, names) = (shortened(name), Self::NAMES.join(", "));
            let detail = format!("there is no parameter \"{shown}\"; the parameters are {names}");
            return Err(Error::parameter(shown, detail));
        };
        if self.given.contains(&known) { Err(given_twice(name)) } else { Ok(known) }
    }

    /// Adds a parameter from a form or a query string, where the text null means that it is not given.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn add_text(&mut self, name: &str, text: &str) -> Result<()> {
        let name = self.expect(name)?;
        if name == FIELD {
            return self.add_vocabulary(text);
        }
        let value = match text.trim() {
            "on" | "yes" | "True" | "TRUE" | "1" if is_flag(name) => Value::Bool(true),
            "off" | "no" | "False" | "FALSE" | "0" if is_flag(name) => Value::Bool(false),
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        self.add(name, value)
    }

    /// Adds a parameter other than the vocabulary as JSON carries it.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn add(&mut self, name: &str, value: Value) -> Result<()> {
        let name = self.expect(name)?;
        self.given.push(name);
        if value.is_null() {
            return Ok(());
        }
        let TagRequest { params, model, .. } = &mut self.request;
        let wrong = |what: &str| Error::parameter(name, format!("{name} must be {what}"));
        let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong("true or false"));
        match name {
            "strategy" => params.strategy = value.as_str().unwrap_or_default().parse()?,
            "k" => {
                let whole = value.as_u64().or_else(|| whole(&value));
                let k = whole.and_then(|k| usize::try_from(k).ok()).unwrap_or(0);
                params.k = Some(k);
            }
            "min_score" => {
                let number = value.as_f64().ok_or_else(|| wrong("a number from 0 to 1"))?;
                #[allow(clippy::cast_possible_truncation)] // The range is checked next.
                let number = number as f32;
                params.min_score = Some(number);
            }
            "explain" => params.explain = flag(&value)?,
            "unsupported" => params.unsupported = flag(&value)?,
            "model" => *model = Some(value.as_str().ok_or_else(|| wrong("a name"))?.to_owned()),
            _ => return Err(Error::internal("a parameter of tags is not read")),
        }
        params.validate()
    }

    /// Adds the vocabulary: JSON, the name of one in the library, or in a form also lines of text.
    ///
    /// # Errors
    /// As [`expect`](Self::expect), and those of [`Source::parse`].
    pub fn add_vocabulary(&mut self, text: &str) -> Result<()> {
        self.vocabulary(text, Source::parse)
    }

    /// Adds the vocabulary as an object or a list of JSON.
    ///
    /// # Errors
    /// As [`add_vocabulary`](Self::add_vocabulary).
    pub fn add_json_vocabulary(&mut self, json: &str) -> Result<()> {
        self.vocabulary(json, |json| Vocabulary::from_json(json).map(Source::Own))
    }

    fn vocabulary(&mut self, text: &str, read: impl FnOnce(&str) -> Result<Source>) -> Result<()> {
        self.given.push(self.expect(FIELD)?);
        if text.len() > Self::MAX_VOCABULARY {
            return Err(Error::parameter(
                FIELD,
                format!(
                    "a vocabulary in a request may have {} bytes; name one of the library, or let the \
                     operator of the server set TAG_VOCABULARY",
                    Self::MAX_VOCABULARY
                ),
            ));
        }
        if text.trim() != "null" {
            self.request.vocabulary = Some(read(text)?);
        }
        Ok(())
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> TagRequest {
        self.request
    }
}

fn is_flag(name: &str) -> bool {
    matches!(name, "explain" | "unsupported")
}

/// A whole number that is written as `3.0`.
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked here.
    (0.0..=1e6).contains(&number).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_json_mean_the_same() {
        let (mut text, mut json) = (TagFields::default(), TagFields::default());
        for (name, written, value) in [
            ("strategy", "caption", json!("caption")),
            ("k", "3", json!(3.0)),
            ("min_score", "0.25", json!(0.25)),
            ("explain", "on", json!(true)),
            ("unsupported", "null", json!(null)),
            ("model", "large", json!("large")),
        ] {
            text.add_text(name, written).unwrap();
            json.add(name, value).unwrap();
        }
        text.add_text(FIELD, "dog\ncat").unwrap();
        json.add_json_vocabulary("[\"dog\", \"cat\"]").unwrap();
        assert!(TagFields::default().add_json_vocabulary("7").is_err());
        let request = text.finish();
        let TagRequest { params, vocabulary, model } = &request;
        assert_eq!((params.k, params.min_score), (Some(3), Some(0.25)));
        assert_eq!(params.strategy, TagStrategy::Caption);
        assert!(params.explain && !params.unsupported);
        assert!(vocabulary.is_some() && model.as_deref() == Some("large"));
        assert_eq!(request, json.finish());
        let mut named = TagFields::default();
        named.add_vocabulary("library:shop:2").unwrap();
        let source = named.finish().vocabulary;
        assert!(matches!(source, Some(Source::Library(of)) if of.version == Some(2)));
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_name() {
        for (name, value) in [
            ("strategy", json!("best")),
            ("strategy", json!(7)),
            ("k", json!(0)),
            ("k", json!(51)),
            ("k", json!(1.5)),
            ("k", json!("many")),
            ("min_score", json!(1.5)),
            ("min_score", json!("low")),
            ("explain", json!("maybe")),
            ("model", json!(7)),
            ("tags", json!(1)),
        ] {
            let error = TagFields::default().add(name, value.clone()).unwrap_err();
            assert_eq!(error.field(), Some(name), "{value}: {error}");
        }
        let mut twice = TagFields::default();
        twice.add("k", json!(1)).unwrap();
        assert!(twice.add("k", json!(1)).is_err());
        twice.add_vocabulary("[\"a\"]").unwrap();
        assert_eq!(twice.add_vocabulary("[\"a\"]").unwrap_err().field(), Some(FIELD));
        let named = TagFields::default().add_vocabulary("library:").unwrap_err();
        assert_eq!(named.field(), Some(FIELD));
        let long = format!("[{}\"a\"]", " ".repeat(TagFields::MAX_VOCABULARY));
        assert!(TagFields::default().add_vocabulary(&long).is_err());
        let params = TagParams { min_score: Some(f32::NAN), ..TagParams::default() };
        assert_eq!(params.validate().unwrap_err().field(), Some("min_score"));
    }
}
