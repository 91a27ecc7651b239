//! What a version of a prompt says.

use std::collections::BTreeMap;

use cutline_error::{Error, Result};
use serde::de::{Deserializer, Error as _, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::template;

/// Values of variables.
pub type Variables = Map<String, Value>;

/// The longest value of a variable, in characters; what is longer is cut.
const MAX_VALUE: usize = 500;
/// Variables of a template.
const MAX_VARIABLES: usize = 50;
/// Elements of a list.
const MAX_ELEMENTS: usize = 50;

/// What a version of a prompt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Words that the caption continues.
    Prefix,
    /// A style of the text.
    Style,
    /// What is made of the caption: a template with `caption`, the styles `alt_text`, `engaging`, `title` and
    /// `keywords`, `colors` and `mood`.
    Chain,
    /// The whole instruction for a model that follows instructions. BLIP does not, and gets none.
    Instruction,
}

impl Kind {
    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Style => "style",
            Self::Chain => "chain",
            Self::Instruction => "instruction",
        }
    }

    /// The most characters that its template makes.
    const fn most(self) -> usize {
        match self {
            // The tokens are counted by the captioner, which has the tokenizer.
            Self::Prefix => 500,
            Self::Style => 0,
            Self::Chain => 2000,
            Self::Instruction => 16_000,
        }
    }

    /// Variables that are given without a request.
    const fn given(self) -> &'static [&'static str] {
        match self {
            Self::Prefix | Self::Instruction => &["photo"],
            Self::Style => &[],
            Self::Chain => {
                &["photo", "caption", "alt_text", "engaging", "title", "keywords", "colors", "mood"]
            }
        }
    }
}

/// What a version of a prompt says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// What it is for.
    pub kind: Kind,
    /// The template; empty for a style.
    #[serde(default)]
    pub template: String,
    /// The style of the text: `caption`, `alt_text`, `engaging`, `title` or `keywords`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub style: Option<String>,
    /// The most characters of the text.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schema(nullable = false, minimum = 20, maximum = 1000)]
    pub max_chars: Option<u32>,
    /// Whether an engaging text ends with emoji.
    #[serde(default)]
    pub emoji: bool,
    /// The variables that a request gives. Those of the template that are not listed are added when a version
    /// is saved.
    #[serde(default)]
    pub variables: BTreeMap<String, Variable>,
}

/// A variable of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// What its value is.
    #[serde(default, rename = "type")]
    pub kind: VariableKind,
    /// What it means.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The value if a request gives none; without one, a request must give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub default: Option<Value>,
}

/// What the value of a variable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum VariableKind {
    /// A text.
    #[default]
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// A list of texts.
    List,
}

impl Content {
    /// A template without a style and declared variables.
    #[must_use]
    pub fn new(kind: Kind, template: impl Into<String>) -> Self {
        Self {
            kind,
            template: template.into(),
            style: None,
            max_chars: None,
            emoji: false,
            variables: BTreeMap::new(),
        }
    }

    /// Checks the content, as it is to be saved, and lists its variables.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): the template is wrong, or something
    /// contradicts the kind.
    pub fn checked(mut self) -> Result<Self> {
        self.check_kind()?;
        let used = template::variables_of(&self.template)?;
        let given = self.kind.given();
        for name in self.variables.keys() {
            if !used.contains(name) || given.contains(&name.as_str()) {
                let shown: String = name.chars().take(64).collect();
                return Err(Error::parameter(
                    "variables",
                    format!("the template does not ask for the variable {shown}; leave it out"),
                ));
            }
        }
        for name in used.into_iter().filter(|name| !given.contains(&name.as_str())) {
            self.variables.entry(name).or_default();
        }
        if self.variables.len() > MAX_VARIABLES {
            return Err(Error::parameter(
                "variables",
                format!("a template may have {MAX_VARIABLES} variables; use fewer"),
            ));
        }
        for (name, variable) in &mut self.variables {
            variable.description = variable.description.chars().take(MAX_VALUE).collect();
            if let Some(default) = &mut variable.default {
                *default = variable.kind.checked(name, default)?;
            }
        }
        Ok(self)
    }

    fn check_kind(&self) -> Result<()> {
        let wrong = |field, detail: &'static str| Err(Error::parameter(field, detail));
        let empty = self.template.trim().is_empty();
        match self.kind {
            Kind::Style if self.style.is_none() => {
                wrong("style", "a version of the kind style names its style; add style")
            }
            Kind::Style if !empty => {
                wrong("template", "a version of the kind style has no template; leave it out")
            }
            Kind::Prefix | Kind::Chain | Kind::Instruction if empty => {
                wrong("template", "the template is empty; write one")
            }
            Kind::Chain if self.style.is_some() => wrong(
                "style",
                "a chain has no style of its own; use {{ alt_text }}, {{ title }} and so on in it",
            ),
            _ => Ok(()),
        }
    }

    /// The values of the variables: those of a request, checked, or else the defaults.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `variables`.
    pub fn values(&self, request: &Variables) -> Result<Variables> {
        if let Some(name) = request.keys().find(|name| !self.variables.contains_key(*name)) {
            let shown: String = name.chars().take(64).collect();
            let known: Vec<&str> = self.variables.keys().map(String::as_str).collect();
            let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::parameter(
                "variables",
                format!("the prompt has no variable {shown}; it has {has}"),
            ));
        }
        let mut values = Variables::new();
        for (name, variable) in &self.variables {
            let value = match (request.get(name), &variable.default) {
                (Some(value), _) => variable.kind.checked(name, value)?,
                (None, Some(default)) => default.clone(),
                (None, None) => {
                    return Err(Error::parameter(
                        "variables",
                        format!("the prompt needs the variable {name}; give it in variables"),
                    ));
                }
            };
            values.insert(name.clone(), value);
        }
        Ok(values)
    }

    /// The text of the template with the variables of a request, and with `context`: what is known without
    /// it. Both are cleaned like data from anywhere.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): a variable is missing or wrong, or the
    /// text is too long.
    pub fn render(&self, request: &Variables, context: &Variables) -> Result<String> {
        if self.kind == Kind::Style {
            return Ok(String::new());
        }
        let mut values = self.values(request)?;
        for (name, value) in context {
            values.insert(name.clone(), cleaned(value, 2));
        }
        template::render(&self.template, &values, self.kind.most())
    }
}

impl VariableKind {
    fn checked(self, name: &str, value: &Value) -> Result<Value> {
        let fits = match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            Self::Flag => value.is_boolean(),
            Self::List => value
                .as_array()
                .is_some_and(|all| all.len() <= MAX_ELEMENTS && all.iter().all(Value::is_string)),
        };
        if fits {
            return Ok(cleaned(value, 1));
        }
        let what = match self {
            Self::Text => "a text".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::List => format!("a list of up to {MAX_ELEMENTS} texts"),
        };
        Err(Error::parameter(
            "variables",
            format!("the variable {name} must be {what}; correct it"),
        ))
    }
}

/// The value without what no one sees and without line breaks, which could look like the end of what it is
/// in; cut to a length.
fn cleaned(value: &Value, depth: usize) -> Value {
    match value {
        Value::String(text) => {
            let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
            Value::String(visible.take(MAX_VALUE).collect())
        }
        Value::Array(all) if depth > 0 => {
            all.iter().take(MAX_ELEMENTS).map(|value| cleaned(value, depth - 1)).collect()
        }
        Value::Object(all) if depth > 0 => {
            let clean =
                |(name, value): (&String, &Value)| (name.clone(), cleaned(value, depth - 1));
            Value::Object(all.iter().take(MAX_ELEMENTS).map(clean).collect())
        }
        Value::Array(_) | Value::Object(_) => Value::Null,
        other => other.clone(),
    }
}

/// A whole number, which programs without integers write as `80.0`.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<f64>::deserialize(deserializer)? else { return Ok(None) };
    if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
        // It is whole and within range.
        return Ok(Some(number as u32));
    }
    Err(D::Error::invalid_value(Unexpected::Float(number), &"a whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content(value: Value) -> Result<Content> {
        let content: Content = serde_json::from_value(value).unwrap();
        content.checked()
    }

    #[test]
    fn the_most_characters_are_a_whole_number() {
        let read = |number: &str| {
            let json = format!(r#"{{"kind": "style", "style": "title", "max_chars": {number}}}"#);
            serde_json::from_str::<Content>(&json).ok().map(|content| content.max_chars)
        };
        for (number, most) in
            [("80", Some(80)), ("80.0", Some(80)), ("8e1", Some(80)), ("null", None)]
        {
            assert_eq!(read(number), Some(most), "{number}");
        }
        for wrong in ["80.5", "-80", "4294967296", "\"80\"", "true", "1e300"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    fn map(value: &Value) -> Variables {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn variables_are_listed_with_a_schema() {
        let saved = content(json!({
            "kind": "instruction",
            "template": "Describe {{ photo.name }} in {{ language }} with {{ words }} words.",
            "variables": {"words": {"type": "number", "default": 20}},
        }))
        .unwrap();
        let listed = serde_json::to_value(&saved.variables).unwrap();
        let expected =
            json!({"language": {"type": "text"}, "words": {"type": "number", "default": 20}});
        assert_eq!(listed, expected);
        let photo = map(&json!({"photo": {"name": "a\nb"}}));
        let text = saved.render(&map(&json!({"language": "French"})), &photo).unwrap();
        assert_eq!(text, "Describe a b in French with 20 words.");
        for (variables, message) in [
            (json!({}), "needs the variable language"),
            (json!({"language": 1}), "must be a text"),
            (json!({"language": "x", "words": "many"}), "must be a number"),
            (json!({"language": "x", "other": "y"}), "no variable other"),
            // What a request says about the photo is not what the library says.
            (json!({"language": "x", "photo": "y"}), "no variable photo"),
        ] {
            let error = saved.render(&map(&variables), &photo).unwrap_err();
            assert_eq!(error.field(), Some("variables"), "{variables}");
            assert!(error.detail().contains(message), "{error}");
        }
    }

    #[test]
    fn kinds_have_what_they_need() {
        for (value, field) in [
            (json!({"kind": "prefix"}), "template"),
            (json!({"kind": "style"}), "style"),
            (json!({"kind": "style", "style": "title", "template": "x"}), "template"),
            (json!({"kind": "chain", "style": "title", "template": "{{ caption }}"}), "style"),
            (json!({"kind": "prefix", "template": "{{"}), "template"),
            (json!({"kind": "prefix", "template": "a", "variables": {"b": {}}}), "variables"),
            (
                json!({"kind": "prefix", "template": "{{ a }}", "variables": {"a": {"default": 1}}}),
                "variables",
            ),
        ] {
            let error = content(value.clone()).unwrap_err();
            assert_eq!(error.field(), Some(field), "{value}");
        }
        content(json!({"kind": "style", "style": "title"})).unwrap();
    }

    #[test]
    fn a_chain_is_given_the_caption_and_its_styles() {
        let chain = content(json!({
            "kind": "chain",
            "template": "{{ title }}: {{ alt_text }} {% for word in keywords %}#{{ word }} {% endfor %}",
        }))
        .unwrap();
        assert!(chain.variables.is_empty());
        let context = json!({"title": "Dog", "alt_text": "a dog", "keywords": ["dog"]});
        assert_eq!(chain.render(&Variables::new(), &map(&context)).unwrap(), "Dog: a dog #dog");
    }

    #[test]
    fn values_are_cut_and_texts_bounded() {
        let prefix = content(json!({"kind": "prefix", "template": "{{ a }}"})).unwrap();
        let long = map(&json!({"a": "x".repeat(5000)}));
        assert_eq!(prefix.render(&long, &Variables::new()).unwrap().len(), MAX_VALUE);
        let twice = content(json!({"kind": "prefix", "template": "{{ a }}{{ a }}"})).unwrap();
        assert!(twice.render(&long, &Variables::new()).is_err());
    }
}
