//! Rows of other files: of an export, of `cutline caption`, or of a table that somebody wrote.

use std::collections::HashMap;

use serde_json::Value;

use super::unguarded;
use crate::change::NewText;
use crate::types::{Author, Color, ContentHash, Field, ModelAuthor, Name, NameKind};

/// What a row says about a photo.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// The hash, if the row has it.
    pub(super) hash: Option<ContentHash>,
    /// The path, if the row has it.
    pub(super) path: Option<String>,
    pub(super) names: Vec<Name>,
    /// Texts with their authors, as far as the row tells; else they are those of the import.
    pub(super) texts: Vec<(Option<Author>, NewText)>,
    pub(super) format: Option<String>,
    pub(super) width: Option<u32>,
    pub(super) height: Option<u32>,
    pub(super) taken_at: Option<i64>,
    pub(super) colors: Vec<Color>,
    pub(super) mood: Option<String>,
}

impl Row {
    /// Reads an object of an export, or a row or a sidecar that `cutline caption` wrote; `None` if it is
    /// neither, or says that there is no caption.
    pub(super) fn of_json(value: &Value, lang: &str) -> Option<Self> {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let number =
            |name: &str| value[name].as_u64().and_then(|number| u32::try_from(number).ok());
        let image = &value["image"];
        let hash = value["hash"].as_str().or_else(|| image["hash"].as_str());
        let mut row = Self {
            hash: hash.and_then(|hash| hash.parse().ok()),
            path: text("path"),
            names: serde_json::from_value(value["names"].clone()).unwrap_or_default(),
            format: text("format").or_else(|| image["format"].as_str().map(str::to_owned)),
            width: number("width").or_else(|| image["width"].as_u64()?.try_into().ok()),
            height: number("height").or_else(|| image["height"].as_u64()?.try_into().ok()),
            taken_at: value["taken_at"].as_i64(),
            colors: colors(&value["colors"]),
            mood: text("mood").or_else(|| value["mood"]["name"].as_str().map(str::to_owned)),
            ..Self::default()
        };
        if let Some(texts) = value["texts"].as_array() {
            row.texts = texts.iter().filter_map(exported).collect();
        } else {
            if value["fallback"].as_bool() == Some(true) {
                return None;
            }
            let author = machine(text("parameters"), text("model"));
            let confidence =
                value["captions"][0]["confidence"].as_f64().map(|number| number as f32);
            for (name, field) in
                [("caption", Field::Caption), ("alt_text", Field::AltText), ("tags", Field::Tags)]
            {
                let content = match &value[name] {
                    Value::String(text) => text.clone(),
                    Value::Array(tags) => {
                        tags.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
                    }
                    _ => continue,
                };
                row.add(author.clone(), field, lang, content, confidence);
            }
        }
        (row.hash.is_some() || row.path.is_some() || !row.texts.is_empty()).then_some(row)
    }

    /// Reads a row of a table by the names of its columns; `None` for a second caption of a photo, or none.
    pub(super) fn of_cells(cells: &HashMap<&str, &str>, lang: &str) -> Option<Self> {
        let cell = |name: &str| {
            cells.get(name).map(|cell| unguarded(cell)).filter(|cell| !cell.is_empty())
        };
        if cell("choice").is_some_and(|choice| choice != "1") || cell("fallback") == Some("true") {
            return None;
        }
        let mut row = Self {
            hash: cell("hash").and_then(|hash| hash.parse().ok()),
            path: cell("path").map(str::to_owned),
            format: cell("format").map(str::to_owned),
            width: cell("width").and_then(|width| width.parse().ok()),
            height: cell("height").and_then(|height| height.parse().ok()),
            taken_at: cell("taken_at").and_then(|time| crate::time::parse_time(time).ok()),
            mood: cell("mood").map(str::to_owned),
            ..Self::default()
        };
        let model = cell("model").map(str::to_owned);
        // In an export, what nobody has decided about is a text of the model.
        let author = match cell("reviewed") {
            Some("false") => {
                model.map(|name| Author::Model(ModelAuthor { name, ..ModelAuthor::default() }))
            }
            _ => machine(cell("parameters").map(str::to_owned), model),
        };
        let confidence = cell("confidence").and_then(|number| number.parse().ok());
        for (name, field) in
            [("caption", Field::Caption), ("alt_text", Field::AltText), ("tags", Field::Tags)]
        {
            if let Some(content) = cell(name) {
                let content = if field == Field::Tags {
                    content.replace(';', "\n")
                } else {
                    content.to_owned()
                };
                row.add(author.clone(), field, lang, content, confidence);
            }
        }
        Some(row)
    }

    pub(super) fn add(
        &mut self,
        author: Option<Author>,
        field: Field,
        lang: &str,
        text: String,
        confidence: Option<f32>,
    ) {
        if !text.trim().is_empty() {
            let confidence = confidence.filter(|_| field == Field::Caption);
            self.texts.push((
                author,
                NewText { field, lang: lang.to_owned(), text, confidence, exposure: None },
            ));
        }
    }

    /// The path as a name.
    pub(super) fn path_name(&self) -> Option<Name> {
        self.path.as_ref().map(|path| Name::new(NameKind::Path, path.clone()))
    }
}

/// The author of a row that `cutline caption` wrote, which has the parameters of the model.
fn machine(parameters: Option<String>, model: Option<String>) -> Option<Author> {
    let name = model.unwrap_or_else(|| "cutline".into());
    Some(Author::Model(ModelAuthor { name, parameters: parameters?, ..ModelAuthor::default() }))
}

/// A text of an export. What a person decided about stays so, whoever wrote it.
fn exported(value: &Value) -> Option<(Option<Author>, NewText)> {
    let author: Author = serde_json::from_value(value["author"].clone()).ok()?;
    let reviewed = value["reviewed"].as_bool().unwrap_or(true);
    let author = if reviewed { Author::import(author.name()) } else { author };
    let text = NewText {
        field: serde_json::from_value(value["field"].clone()).ok()?,
        lang: value["lang"].as_str()?.to_owned(),
        text: value["text"].as_str().filter(|text| !text.is_empty())?.to_owned(),
        confidence: value["confidence"].as_f64().map(|number| number as f32),
        exposure: None,
    };
    Some((Some(author), text))
}

/// Colours of an export, or of a caption.
fn colors(value: &Value) -> Vec<Color> {
    let color = |value: &Value| {
        let percent =
            value["percent"].as_f64().or_else(|| Some(value["fraction"].as_f64()? * 100.0))?;
        Some(Color {
            hex: value["hex"].as_str()?.to_owned(),
            name: value["name"].as_str()?.to_owned(),
            percent: percent.round().clamp(0.0, 100.0) as u8,
        })
    };
    value.as_array().map(|colors| colors.iter().filter_map(color).collect()).unwrap_or_default()
}
