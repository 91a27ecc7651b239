//! Answers in JSON. BLIP cannot follow a schema, so the program fills it: properties are recognised by
//! their names and types.

use serde_json::{Map, Value, json};

use super::ask::Labels;
use crate::captioner::Tag;
use cutline_error::{Error, ErrorKind, Result};

/// How deep a schema may be nested.
const MAX_DEPTH: usize = 8;

/// The largest schema in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Names of the caption.
const CAPTION: [&str; 8] =
    ["caption", "description", "text", "title", "alt", "alt_text", "summary", "content"];

/// Names of the tags.
const TAGS: [&str; 4] = ["labels", "tags", "keywords", "categories"];

/// Names of one tag in an object.
const NAME: [&str; 4] = ["name", "label", "tag", "keyword"];

/// Names of a number from 0 to 1.
const SCORE: [&str; 5] = ["confidence", "score", "probability", "topicality", "relevance"];

/// The format of an answer.
#[derive(Debug)]
pub(super) enum Format {
    /// Plain text.
    Text,
    /// Any JSON.
    Json,
    /// JSON that follows a schema.
    Schema(Value),
}

/// What is known about an image.
pub(super) struct Facts {
    pub(super) caption: String,
    pub(super) labels: Labels,
    pub(super) confidence: f32,
    /// Whether the tags are the answer if there is no schema.
    pub(super) labels_only: bool,
}

impl Format {
    /// The format of a JSON schema in a request.
    ///
    /// # Errors
    /// [`MalformedRequest`](ErrorKind::MalformedRequest) or
    /// [`Unsupported`](ErrorKind::Unsupported): it is no schema, too large, or asks for something that the
    /// program does not know.
    pub(super) fn schema(text: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            return Err(unsupported(format!("the schema is longer than {MAX_BYTES} bytes")));
        }
        let schema = serde_json::from_str(text).map_err(|error| {
            let detail = "the schema is not valid JSON; send a JSON schema";
            Error::new(ErrorKind::MalformedRequest, detail).with_source(error)
        })?;
        let format = Self::Schema(schema);
        // Refused before any work is done.
        format.fill(&Facts {
            caption: String::new(),
            labels: Labels::default(),
            confidence: 0.0,
            labels_only: false,
        })?;
        Ok(format)
    }

    /// Whether tags are needed to answer.
    pub(super) fn wants_tags(&self) -> bool {
        match self {
            Self::Text | Self::Json => false,
            Self::Schema(schema) => names_tags(schema, MAX_DEPTH),
        }
    }

    /// The answer for one image.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported).
    pub(super) fn fill(&self, facts: &Facts) -> Result<String> {
        let value = match self {
            Self::Text => return Ok(facts.caption.clone()),
            Self::Json if facts.labels_only => json!({"labels": names(&facts.labels.tags)}),
            Self::Json => json!({"caption": facts.caption}),
            Self::Schema(root) => {
                let found = Filler { root, facts }.value("caption", root, MAX_DEPTH);
                found.ok_or_else(|| unsupported("the schema asks for something else".into()))??
            }
        };
        Ok(value.to_string())
    }
}

/// Fills one schema.
struct Filler<'a> {
    root: &'a Value,
    facts: &'a Facts,
}

impl Filler<'_> {
    /// The value of a property; `None` if nothing is known for it.
    fn value(&self, name: &str, schema: &Value, depth: usize) -> Option<Result<Value>> {
        let Some(depth) = depth.checked_sub(1) else {
            let most = format!("the schema is nested deeper than {MAX_DEPTH}");
            return Some(Err(unsupported(most)));
        };
        if let Some(target) = schema["$ref"].as_str() {
            let target = target.strip_prefix('#').and_then(|path| self.root.pointer(path))?;
            return self.value(name, target, depth);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(options) = schema[key].as_array() {
                let known = |option| self.value(name, option, depth);
                let null = options.iter().any(is_null).then_some(Ok(Value::Null));
                return options.iter().filter(|option| !is_null(option)).find_map(known).or(null);
            }
        }
        if let Some(constant) = schema.get("const") {
            return Some(Ok(constant.clone()));
        }
        if schema.get("enum").is_some() {
            return None;
        }
        let lower = name.to_lowercase();
        let is = |names: &[&str]| names.contains(&lower.as_str());
        match kind(schema) {
            Some("object") | None if schema["properties"].is_object() => {
                Some(self.object(schema, depth).map(Value::Object))
            }
            Some("array") if is(&TAGS) => Some(self.tags(&schema["items"])),
            Some("array") => {
                let item = self.value(name, &schema["items"], depth)?;
                Some(item.map(|item| json!([item])))
            }
            Some("string") if is(&CAPTION) => Some(Ok(json!(self.facts.caption))),
            Some("string") if is(&TAGS) => {
                Some(Ok(json!(names(&self.facts.labels.tags).join(", "))))
            }
            Some("number") if is(&SCORE) => Some(Ok(json!(self.facts.confidence))),
            Some("boolean") if lower == "nsfw" => Some(Ok(json!(false))),
            _ if schema["type"].as_array().is_some_and(|types| types.contains(&json!("null"))) => {
                Some(Ok(Value::Null))
            }
            _ => None,
        }
    }

    fn object(&self, schema: &Value, depth: usize) -> Result<Map<String, Value>> {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            match self.value(name, property, depth) {
                Some(value) => drop(object.insert(name.clone(), value?)),
                None if required.contains(&name.as_str()) => {
                    let name: String = name.chars().take(64).collect();
                    return Err(unsupported(format!("the schema requires {name}")));
                }
                None => {}
            }
        }
        Ok(object)
    }

    /// An array of texts or of objects, as the schema of its elements says.
    fn tags(&self, items: &Value) -> Result<Value> {
        let items = match items["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            Some(path) => self.root.pointer(path).unwrap_or(items),
            None => items,
        };
        if !items["properties"].is_object() {
            return Ok(json!(names(&self.facts.labels.tags)));
        }
        let required = items["required"].as_array();
        let required = |name: &str| required.is_some_and(|names| names.contains(&json!(name)));
        let mut all = Vec::new();
        // An empty list must refuse the same schemas.
        let none = [Tag { name: String::new(), score: 0.0 }];
        let Labels { tags, .. } = &self.facts.labels;
        let some = if tags.is_empty() { &none[..] } else { tags };
        for tag in some {
            let mut object = Map::new();
            for (name, schema) in items["properties"].as_object().into_iter().flatten() {
                let lower = name.to_lowercase();
                let value = match kind(schema) {
                    Some("string") if NAME.contains(&lower.as_str()) => {
                        json!(self.facts.labels.name(tag))
                    }
                    Some("number") if SCORE.contains(&lower.as_str()) => json!(tag.score),
                    Some("number" | "integer") if lower.starts_with("nsfw") => json!(0),
                    Some("boolean") if lower == "nsfw" => json!(false),
                    _ if required(name) => {
                        let name: String = name.chars().take(64).collect();
                        return Err(unsupported(format!("the schema requires {name} of a label")));
                    }
                    _ => continue,
                };
                object.insert(name.clone(), value);
            }
            all.push(Value::Object(object));
        }
        Ok(if self.facts.labels.tags.is_empty() { json!([]) } else { json!(all) })
    }
}

/// The type of a schema that is not null.
fn kind(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::String(kind) => Some(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        _ => None,
    }
}

fn is_null(schema: &Value) -> bool {
    schema["type"] == "null"
}

fn names_tags(schema: &Value, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match schema {
        Value::Object(map) => map.iter().any(|(name, value)| {
            TAGS.contains(&name.to_lowercase().as_str()) || names_tags(value, depth)
        }),
        Value::Array(values) => values.iter().any(|value| names_tags(value, depth)),
        _ => false,
    }
}

fn names(tags: &[Tag]) -> Vec<&str> {
    tags.iter().map(|tag| tag.name.as_str()).collect()
}

/// The singular of a regular English plural.
pub(super) fn singular(word: &str) -> String {
    const KEPT: [&str; 5] = ["ss", "us", "is", "glasses", "scissors"];
    if word.chars().count() < 4 || KEPT.iter().any(|end| word.ends_with(end)) {
        return word.to_owned();
    }
    if let Some(stem) = word.strip_suffix("ies") {
        return format!("{stem}y");
    }
    for end in ["sses", "shes", "ches", "xes"] {
        if word.ends_with(end) {
            return word[..word.len() - 2].to_owned();
        }
    }
    word.strip_suffix('s').unwrap_or(word).to_owned()
}

fn unsupported(what: String) -> Error {
    let detail = format!(
        "{what}, which this model cannot answer; ask for a caption (a string named caption or \
         description) or for tags (an array named labels or tags)"
    );
    Error::new(ErrorKind::Unsupported, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let tag = |name: &str, score| Tag { name: name.into(), score };
        Facts {
            caption: "a cat on a sofa".into(),
            labels: Labels { tags: vec![tag("cats", 0.75), tag("sofa", 0.5)], allowed: false },
            confidence: 0.25,
            labels_only: false,
        }
    }

    fn filled(schema: &Value) -> Result<Value> {
        let text = Format::schema(&schema.to_string())?.fill(&facts())?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn the_labels_of_photoprism_are_filled() {
        let schema = json!({
            "type": "object",
            "properties": {"labels": {"type": "array", "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "confidence": {"type": "number"},
                    "topicality": {"type": "number"},
                    "nsfw": {"type": "boolean"},
                },
                "required": ["name", "confidence", "topicality"],
                "additionalProperties": false,
            }}},
            "required": ["labels"],
        });
        let expected = json!({"labels": [
            {"name": "cat", "confidence": 0.75, "topicality": 0.75, "nsfw": false},
            {"name": "sofa", "confidence": 0.5, "topicality": 0.5, "nsfw": false},
        ]});
        assert_eq!(filled(&schema).unwrap(), expected);
        assert!(Format::schema(&schema.to_string()).unwrap().wants_tags());
    }

    #[test]
    fn the_schemas_of_pydantic_are_filled() {
        let schema = json!({
            "$defs": {"Inner": {
                "type": "object",
                "properties": {"Description": {"type": "string"}, "score": {"type": "number"}},
                "required": ["Description"],
            }},
            "type": "object",
            "properties": {
                "inner": {"$ref": "#/$defs/Inner"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "alt": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "place": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "year": {"type": ["integer", "null"]},
                "unknown": {"type": "integer"},
            },
            "required": ["inner", "tags", "alt", "place", "year"],
        });
        let expected = json!({
            "inner": {"Description": "a cat on a sofa", "score": 0.25},
            "tags": ["cats", "sofa"],
            "alt": "a cat on a sofa",
            "place": null,
            "year": null,
        });
        assert_eq!(filled(&schema).unwrap(), expected);
    }

    #[test]
    fn what_nobody_knows_is_refused_at_once() {
        let year = json!({
            "type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"],
        });
        let error = Format::schema(&year.to_string()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.detail().contains("requires year"), "{error}");
        let kind = |text: &str| Format::schema(text).map(|_| ()).unwrap_err().kind();
        assert_eq!(kind("{"), ErrorKind::MalformedRequest);
        assert_eq!(kind(&format!("\"{}\"", "a".repeat(MAX_BYTES))), ErrorKind::Unsupported);
        let endless = json!({"type": "object", "properties": {"a": {"$ref": "#"}}});
        assert_eq!(kind(&endless.to_string()), ErrorKind::Unsupported);
    }

    #[test]
    fn json_without_a_schema_is_an_object() {
        assert_eq!(Format::Json.fill(&facts()).unwrap(), r#"{"caption":"a cat on a sofa"}"#);
        let facts = Facts { labels_only: true, ..facts() };
        assert_eq!(Format::Json.fill(&facts).unwrap(), r#"{"labels":["cats","sofa"]}"#);
    }

    #[test]
    fn regular_plurals_become_singular() {
        for (word, expected) in [
            ("cats", "cat"),
            ("benches", "bench"),
            ("boxes", "box"),
            ("puppies", "puppy"),
            ("bus", "bus"),
            ("grass", "grass"),
            ("tennis", "tennis"),
            ("glasses", "glasses"),
            ("sofa", "sofa"),
            ("gas", "gas"),
        ] {
            assert_eq!(singular(word), expected);
        }
    }
}
