//! The results of the tools: as text, and as structures whose schemas are in their definitions.

use rmcp::schemars;
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Done;
use super::definitions::Tool;
use crate::captioner::{Caption, ImageInfo, ProcessedImage, Tag};
use cutline_image::{DominantColor, MoodLabel};

/// A result in both forms.
pub(super) struct Output {
    /// For people and for models.
    pub(super) text: String,
    /// For programs.
    pub(super) structured: Value,
}

/// The result of `caption_image`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Captioned {
    /// One sentence that says what the image shows.
    caption: String,
    /// How sure the model is of the sentence, 0 to 1.
    confidence: f32,
    image: Facts,
}

/// The result of `alt_text`.
#[derive(Serialize, JsonSchema)]
pub(super) struct AltText {
    /// The alternative text.
    alt_text: String,
    /// Why the text does not describe the image; only if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback_reason: Option<String>,
    image: Facts,
}

/// The result of `tag_image`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Tagged {
    /// The tags, the most certain first.
    tags: Vec<Scored>,
    /// One sentence that says what the image shows.
    caption: String,
    image: Facts,
}

/// A tag.
#[derive(Serialize, JsonSchema)]
struct Scored {
    /// A word in English.
    name: String,
    /// The weight of the model's captions that contain the word, 0 to 1.
    score: f32,
}

/// The result of `image_colors`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Colored {
    /// One to five colours, the most frequent first.
    colors: Vec<Color>,
    /// The mood that they suggest: energetic, happy, calm, melancholic, tense or dark.
    mood: String,
    /// Lightness, 0 to 1.
    brightness: f32,
    /// How colourful the image is, 0 to 1.
    saturation: f32,
    /// Cool to warm, 0 to 1; grey is 0.5.
    warmth: f32,
    image: Facts,
}

/// A colour.
#[derive(Serialize, JsonSchema)]
struct Color {
    /// As `#rrggbb`.
    hex: String,
    /// The nearest named colour of CSS.
    name: String,
    /// The share of the image's pixels, 0 to 1.
    fraction: f32,
}

/// What is known about the file.
#[derive(Serialize, JsonSchema)]
struct Facts {
    /// The format, recognised from the bytes.
    format: String,
    /// Width in pixels of the upright image.
    width: usize,
    /// Height in pixels of the upright image.
    height: usize,
}

impl Facts {
    fn of(image: &ImageInfo) -> Self {
        Self { format: image.format.clone(), width: image.width, height: image.height }
    }
}

impl Output {
    /// What `tool` answers.
    pub(super) fn of(tool: Tool, done: &Done) -> Self {
        match done {
            Done::Processed(processed) => colored(processed),
            Done::Captioned(caption) => match tool {
                Tool::AltText => alt_text(caption),
                Tool::CaptionImage | Tool::TagImage | Tool::ImageColors => captioned(caption),
            },
            Done::Tagged(caption, found) => tagged(caption, found),
        }
    }

    fn new(text: String, structured: impl Serialize) -> Self {
        // Texts and numbers always serialise.
        Self { text, structured: serde_json::to_value(structured).unwrap_or_default() }
    }
}

fn captioned(caption: &Caption) -> Output {
    let structured = Captioned {
        caption: caption.caption.clone(),
        confidence: caption.captions.first().map_or(0.0, |best| best.confidence),
        image: Facts::of(&caption.image),
    };
    Output::new(caption.caption.clone(), structured)
}

fn alt_text(caption: &Caption) -> Output {
    let structured = AltText {
        alt_text: caption.caption.clone(),
        fallback_reason: caption.fallback.as_ref().map(|it| it.fallback_reason.clone()),
        image: Facts::of(&caption.image),
    };
    Output::new(caption.caption.clone(), structured)
}

fn tagged(caption: &Caption, found: &[Tag]) -> Output {
    let text = if found.is_empty() {
        "no tags".to_owned()
    } else {
        found.iter().map(|tag| tag.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let scored = found.iter().map(|tag| Scored { name: tag.name.clone(), score: tag.score });
    let structured = Tagged {
        tags: scored.collect(),
        caption: caption.caption.clone(),
        image: Facts::of(&caption.image),
    };
    Output::new(text, structured)
}

fn colored(processed: &ProcessedImage) -> Output {
    let cutline_image::Colors { colors, mood } = &processed.colors;
    let label = label(mood.label);
    let shares = colors.iter().map(|DominantColor { hex, name, fraction, .. }| {
        format!("{name} ({hex}), {:.0} %", fraction * 100.0)
    });
    let text = format!("{}; mood: {label}", shares.collect::<Vec<_>>().join("; "));
    let colors = colors.iter().map(|DominantColor { hex, name, fraction, .. }| Color {
        hex: hex.clone(),
        name: name.clone(),
        fraction: *fraction,
    });
    let structured = Colored {
        colors: colors.collect(),
        mood: label.clone(),
        brightness: mood.brightness,
        saturation: mood.saturation,
        warmth: mood.warmth,
        image: Facts::of(&processed.image.info),
    };
    Output::new(text, structured)
}

/// The label as the HTTP contract writes it.
fn label(label: MoodLabel) -> String {
    match serde_json::to_value(label) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}
