//! The tools as clients see them. Their descriptions are read by language models.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool as Definition, ToolAnnotations};
use serde_json::{Value, json};

use super::Backend;
use super::output::{AltText, Captioned, Colored, Tagged};

/// The argument that is the path of a file.
pub(super) const PATH: &str = "path";
/// The argument that is an address.
pub(super) const URL: &str = "url";
/// The argument that is the image itself.
pub(super) const IMAGE: &str = "image";
/// The argument of [`Tool::AltText`] that limits its length.
pub(super) const MAX_CHARS: &str = "max_chars";

/// What a client can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    CaptionImage,
    AltText,
    TagImage,
    ImageColors,
}

impl Tool {
    pub(super) const ALL: [Self; 4] =
        [Self::CaptionImage, Self::AltText, Self::TagImage, Self::ImageColors];

    /// The tool with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::CaptionImage => "caption_image",
            Self::AltText => "alt_text",
            Self::TagImage => "tag_image",
            Self::ImageColors => "image_colors",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::CaptionImage => "Caption an image",
            Self::AltText => "Write alternative text",
            Self::TagImage => "Tag an image",
            Self::ImageColors => "Find the colours of an image",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::CaptionImage => {
                "Says in one sentence what an image shows. The sentence comes from a small local model \
                 that cannot answer questions or read text in images."
            }
            Self::AltText => {
                "Writes the alternative text of an image for a web page: one short sentence for people \
                 who cannot see it."
            }
            Self::TagImage => {
                "Lists up to ten words for what an image shows, the most certain first, for search and \
                 albums."
            }
            Self::ImageColors => {
                "Finds the dominant colours of an image with their names and shares, and the mood that \
                 they suggest. Uses no model and is exact."
            }
        }
    }

    /// What `tools/list` says about it.
    pub(super) fn definition(self, backend: &impl Backend) -> Definition {
        let definition = Definition::new(self.name(), self.description(), self.input(backend));
        let definition = match self {
            Self::CaptionImage => definition.with_output_schema::<Captioned>(),
            Self::AltText => definition.with_output_schema::<AltText>(),
            Self::TagImage => definition.with_output_schema::<Tagged>(),
            Self::ImageColors => definition.with_output_schema::<Colored>(),
        };
        let annotations = ToolAnnotations::with_title(self.title())
            .read_only(true)
            .destructive(false)
            .idempotent(true)
            .open_world(backend.fetches());
        definition.with_title(self.title()).with_annotations(annotations)
    }

    /// The schema of the arguments. That exactly one image is needed is said in words: some clients refuse
    /// schemas with `oneOf` at the top.
    fn input(self, backend: &impl Backend) -> Arc<JsonObject> {
        let mut properties = JsonObject::new();
        let mut add = |name: &str, description: String| {
            properties.insert(name.into(), json!({"type": "string", "description": description}));
        };
        if let Some(folders) = backend.folders() {
            add(PATH, format!("Path of an image file. {}", folders.description()));
        }
        let fetched =
            if backend.fetches() { "" } else { " This server fetches no addresses at present." };
        add(URL, format!("Address of an image, http or https.{fetched}"));
        add(IMAGE, "The image itself, as base64 or as a data: URI.".to_owned());
        if self == Self::AltText {
            let description = "Shorten the text to this many characters.";
            let schema = json!({
                "type": "integer", "minimum": 20, "maximum": 1000, "description": description,
            });
            properties.insert(MAX_CHARS.into(), schema);
        }
        let mut schema = JsonObject::new();
        schema.insert("type".into(), Value::from("object"));
        let ways: Vec<&str> =
            properties.keys().map(String::as_str).filter(|name| *name != MAX_CHARS).collect();
        let rule = format!("Give the image as exactly one of: {}.", ways.join(", "));
        schema.insert("description".into(), Value::from(rule));
        schema.insert("properties".into(), Value::Object(properties));
        schema.insert("additionalProperties".into(), Value::from(false));
        Arc::new(schema)
    }
}

/// All tools.
pub(super) fn all(backend: &impl Backend) -> Vec<Definition> {
    Tool::ALL.iter().map(|tool| tool.definition(backend)).collect()
}

/// What a client should know before it calls a tool.
pub(super) fn instructions(backend: &impl Backend) -> String {
    let mut text = String::from(
        "Describes images on the user's own machine: captions, alternative text, tags and colours. Give each \
         tool one image.",
    );
    if let Some(folders) = backend.folders() {
        text.push(' ');
        text.push_str(&folders.description());
    }
    if backend.fetches() {
        text.push_str(" Images are also fetched by their address.");
    }
    text.push_str(
        " Captions are short and in English. Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF.",
    );
    text
}
