//! What requests with texts or questions may ask for.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{CaptionParams, Parameter, ParameterFields, given_twice, shortened};
use cutline_error::{Error, Result};

/// What is said about texts and a photo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoreMode {
    /// The probability that they match: the model looks at both together.
    #[default]
    Itm,
    /// The cosine of their embeddings, which is faster for many texts.
    Itc,
    /// Both.
    Both,
}

impl ScoreMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Itm, Self::Itc, Self::Both];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Itm => "itm",
            Self::Itc => "itc",
            Self::Both => "both",
        }
    }
}

impl std::str::FromStr for ScoreMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::parameter("mode", format!("mode must be one of {names}"))
        })
    }
}

/// Texts, and what is to be found out about them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TextParams {
    /// The texts.
    pub texts: Vec<String>,
    /// What is said about them and a photo.
    pub mode: ScoreMode,
    /// Longer texts are cut to this many word pieces, with the special ones; `None` for no limit.
    pub max_text_tokens: Option<usize>,
    /// The model that was asked for, if there are several in this process.
    pub model: Option<String>,
}

/// Questions about a photo, and how to answer them.
#[derive(Debug, Clone, PartialEq)]
pub struct QuestionParams {
    /// The questions.
    pub questions: Vec<String>,
    /// How to answer each.
    pub params: CaptionParams,
}

/// What the texts of a request are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextUse {
    /// Compare them with a photo.
    Score,
    /// Embed them.
    Embed,
    /// Answer them.
    Ask,
}

/// The parameters of captions that mean nothing for answers.
const NOT_FOR_ANSWERS: [&str; 4] = ["prompt", "style", "max_chars", "rerank"];

impl TextUse {
    /// The most texts of a request.
    #[must_use]
    pub const fn most(self) -> usize {
        match self {
            Self::Score => 64,
            Self::Embed => 256,
            Self::Ask => 16,
        }
    }

    /// The names of the parameters.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        match self {
            Self::Score => vec!["texts", "mode", "max_text_tokens", "model"],
            Self::Embed => vec!["texts", "max_text_tokens", "model"],
            Self::Ask => {
                let own = ["question", "questions"];
                let others = Parameter::all().iter().map(Parameter::name);
                let others = others.filter(|name| !NOT_FOR_ANSWERS.contains(name));
                own.into_iter().chain(others).collect()
            }
        }
    }

    /// Whether the parameter is a list of texts.
    #[must_use]
    pub fn is_list(self, name: &str) -> bool {
        name == self.list()
    }

    /// The parameter that is a list of texts.
    #[must_use]
    pub const fn list(self) -> &'static str {
        match self {
            Self::Score | Self::Embed => "texts",
            Self::Ask => "questions",
        }
    }
}

/// The range of `max_text_tokens`: the two special tokens, and the most positions of known models.
pub const TEXT_TOKENS: [usize; 2] = [2, 512];

/// Collects the parameters of a request with texts as they arrive. Each one is known and occurs once.
#[derive(Debug)]
pub struct TextFields {
    of: TextUse,
    given: Vec<&'static str>,
    texts: TextParams,
    /// Whether texts were given as `question`.
    one: bool,
    others: ParameterFields,
}

impl TextFields {
    /// The most bytes of all texts.
    pub const MAX_BYTES: usize = 48 * 1024;

    /// The parameters of requests of this kind.
    #[must_use]
    pub fn new(of: TextUse) -> Self {
        let (texts, others) = (TextParams::default(), ParameterFields::default());
        Self { of, given: Vec::new(), texts, one: false, others }
    }

    /// What the texts are for.
    #[must_use]
    pub fn of(&self) -> TextUse {
        self.of
    }

    /// Whether there is a parameter of this name.
    #[must_use]
    pub fn is_known(&self, name: &str) -> bool {
        self.of.names().contains(&name)
    }

    /// Checks that the parameter `name` exists and is not given yet.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming the field.
    pub fn expect(&self, name: &str) -> Result<&'static str> {
        let names = self.of.names();
        let Some(&known) = names.iter().find(|known| **known == name) else {
            let (shown, names) = (shortened(name), names.join(", "));
            let detail = format!("there is no parameter \"{shown}\"; the parameters are {names}");
            return Err(Error::parameter(shown, detail));
        };
        if self.given.contains(&known) { Err(given_twice(name)) } else { Ok(known) }
    }

    /// Adds a parameter from a form or a query string. A list is JSON, or has one text a line.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn add_text(&mut self, name: &str, text: &str) -> Result<()> {
        let known = self.expect(name)?;
        if self.of.is_list(known) {
            if text.trim_start().starts_with('[') || text.trim() == "null" {
                return self.add_json_list(text);
            }
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            return self.add_texts(known, lines.map(str::to_owned).collect());
        }
        match known {
            "question" => self.add(known, Value::from(text)),
            "mode" => self.add(known, Value::from(text.trim())),
            "model" if self.of != TextUse::Ask => self.add(known, named(text)),
            "max_text_tokens" => {
                let text = text.trim();
                let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
                self.add(known, value)
            }
            _ => {
                self.given.push(known);
                self.others.add_text(known, text)
            }
        }
    }

    /// Adds a parameter other than the list as JSON carries it.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn add(&mut self, name: &str, value: Value) -> Result<()> {
        let known = self.expect(name)?;
        match known {
            "question" => match value {
                Value::Null => self.given.push(known),
                Value::String(question) => {
                    self.add_texts(known, vec![question])?;
                    self.one = true;
                }
                _ => return Err(Error::parameter(known, "question must be a text")),
            },
            "mode" => {
                self.given.push(known);
                if !value.is_null() {
                    self.texts.mode = value.as_str().unwrap_or_default().parse()?;
                }
            }
            "model" if self.of != TextUse::Ask => {
                self.given.push(known);
                self.texts.model = match value {
                    Value::Null => None,
                    Value::String(name) if name.len() <= ParameterFields::MAX_BYTES => Some(name),
                    Value::String(_) => {
                        return Err(super::too_long(known, ParameterFields::MAX_BYTES));
                    }
                    _ => return Err(Error::parameter(known, "model must be the name of a model")),
                };
            }
            "max_text_tokens" => {
                self.given.push(known);
                if !value.is_null() {
                    self.texts.max_text_tokens = Some(text_tokens(&value)?);
                }
            }
            _ => {
                self.given.push(known);
                self.others.add(known, value)?;
            }
        }
        Ok(())
    }

    /// Adds the list as JSON: an array of texts, one text, or null.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn add_json_list(&mut self, json: &str) -> Result<()> {
        let name = self.expect(self.of.list())?;
        let wrong = |error: serde_json::Error| {
            Error::parameter(name, format!("{name} must be a list of texts")).with_source(error)
        };
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Texts {
            Many(Vec<String>),
            One(String),
        }
        match serde_json::from_str::<Option<Texts>>(json).map_err(wrong)? {
            Some(Texts::Many(texts)) => self.add_texts(name, texts),
            Some(Texts::One(text)) => self.add_texts(name, vec![text]),
            None => {
                self.given.push(name);
                Ok(())
            }
        }
    }

    fn add_texts(&mut self, name: &'static str, texts: Vec<String>) -> Result<()> {
        self.given.push(name);
        let most = self.of.most();
        if !self.texts.texts.is_empty() {
            return Err(Error::parameter(name, "send either question or questions"));
        }
        if texts.is_empty() || texts.len() > most {
            return Err(Error::parameter(name, format!("{name} must have 1 to {most} texts")));
        }
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err(Error::parameter(name, format!("a text of {name} is empty; leave it out")));
        }
        if texts.iter().map(String::len).sum::<usize>() > Self::MAX_BYTES {
            return Err(super::too_long(name, Self::MAX_BYTES));
        }
        self.texts.texts = texts;
        Ok(())
    }

    /// Texts to compare or embed. Only for embeddings there may be none.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): there are no texts.
    pub fn finish(self) -> Result<TextParams> {
        if self.texts.texts.is_empty() && self.of != TextUse::Embed {
            let name = self.of.list();
            return Err(Error::parameter(
                name,
                format!("{name} must have texts; send at least one"),
            ));
        }
        Ok(self.texts)
    }

    /// Questions, and how to answer them.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): there is no question, or
    /// parameters contradict each other.
    pub fn finish_questions(mut self) -> Result<QuestionParams> {
        let params = std::mem::take(&mut self.others).finish()?;
        let questions = self.finish()?.texts;
        if params.stream && questions.len() > 1 {
            let detail = "only one question can be streamed; send one, or set stream=false";
            return Err(Error::parameter("stream", detail));
        }
        Ok(QuestionParams { questions, params })
    }
}

/// A name in a form or a query string, where no name is written as null.
fn named(text: &str) -> Value {
    if text == "null" { Value::Null } else { Value::from(text) }
}

fn text_tokens(value: &Value) -> Result<usize> {
    let [least, most] = TEXT_TOKENS;
    let whole = value.as_f64().filter(|number| number.fract() == 0.0);
    let fits = |number: &f64| (least as f64..=most as f64).contains(number);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked here.
    let number = whole.filter(fits).map(|number| number as usize);
    number.ok_or_else(|| {
        let detail = format!("max_text_tokens must be a whole number from {least} to {most}");
        Error::parameter("max_text_tokens", detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_json_mean_the_same() {
        let new = || TextFields::new(TextUse::Score);
        let (mut text, mut json) = (new(), new());
        text.add_text("texts", "a cat\n\na dog\n").unwrap();
        json.add_json_list(r#"["a cat", "a dog"]"#).unwrap();
        text.add_text("mode", "both").unwrap();
        json.add("mode", json!("both")).unwrap();
        text.add_text("max_text_tokens", "35").unwrap();
        json.add("max_text_tokens", json!(35.0)).unwrap();
        let (text, json) = (text.finish().unwrap(), json.finish().unwrap());
        assert_eq!(text, json);
        assert_eq!((text.texts.len(), text.max_text_tokens), (2, Some(35)));
        let mut listed = new();
        listed.add_text("texts", r#"["one\ntext"]"#).unwrap();
        assert_eq!(listed.finish().unwrap().texts, ["one\ntext"]);
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_name() {
        let field = |of, name: &str, value: Value| {
            let mut fields = TextFields::new(of);
            fields.add(name, value).unwrap_err().field().map(str::to_owned)
        };
        for (of, name, value) in [
            (TextUse::Score, "mode", json!("all")),
            (TextUse::Score, "max_text_tokens", json!(1)),
            (TextUse::Score, "max_text_tokens", json!(513)),
            (TextUse::Score, "max_text_tokens", json!(2.5)),
            (TextUse::Embed, "mode", json!("itm")),
            (TextUse::Embed, "model", json!(7)),
            (TextUse::Score, "model", json!("m".repeat(20_000))),
            (TextUse::Ask, "question", json!(7)),
            (TextUse::Ask, "question", json!(" ")),
            (TextUse::Ask, "prompt", json!("a")),
            (TextUse::Ask, "num_beams", json!(0)),
        ] {
            assert_eq!(field(of, name, value.clone()).as_deref(), Some(name), "{value}");
        }
        for json in ["7", "[7]", "[]", "[\"\"]", "{}", &format!("[{}\"a\"]", "\"a\",".repeat(64))] {
            let error = TextFields::new(TextUse::Score).add_json_list(json).unwrap_err();
            assert_eq!(error.field(), Some("texts"), "{json}");
        }
        assert!(TextFields::new(TextUse::Score).finish().is_err());
        assert!(TextFields::new(TextUse::Embed).finish().is_ok());
    }

    #[test]
    fn questions_come_alone_or_as_a_list_and_only_one_is_streamed() {
        let mut one = TextFields::new(TextUse::Ask);
        one.add("question", json!("what?")).unwrap();
        assert!(one.add_json_list(r#"["where?"]"#).is_err());
        let mut streamed = TextFields::new(TextUse::Ask);
        streamed.add_json_list(r#"["what?", "where?"]"#).unwrap();
        streamed.add_text("stream", "true").unwrap();
        assert_eq!(streamed.finish_questions().unwrap_err().field(), Some("stream"));
        let mut asked = TextFields::new(TextUse::Ask);
        asked.add_text("question", "what?").unwrap();
        asked.add("num_beams", json!(3)).unwrap();
        let QuestionParams { questions, params } = asked.finish_questions().unwrap();
        assert_eq!((questions, params.num_beams), (vec!["what?".to_owned()], 3));
    }
}
