//! What is written of a photo.

use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::captioner::{Caption, Choice, Fallback};
use cutline_error::{Error, Result};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Format {
    /// Path, tab, caption.
    Text,
    /// An object a line.
    JsonLines,
    /// A table with a head.
    Csv,
    /// One array of objects.
    Json,
}

impl Format {
    pub(in crate::cli) const NAMES: [&'static str; 4] = ["text", "jsonl", "csv", "json"];

    pub(in crate::cli) fn named(name: &str) -> Self {
        match name {
            "jsonl" => Self::JsonLines,
            "csv" => Self::Csv,
            "json" => Self::Json,
            _ => Self::Text,
        }
    }

    /// What the name of a file promises.
    pub(in crate::cli) fn of_path(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.to_ascii_lowercase().as_str() {
            "ndjson" => Self::JsonLines,
            ending => Self::named(ending),
        }
    }

    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::JsonLines => "jsonl",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }
}

/// The head of a table, and what its columns are.
pub(in crate::cli) const COLUMNS: [&str; 12] = [
    "path",
    "choice",
    "caption",
    "confidence",
    "fallback",
    "fallback_reason",
    "format",
    "width",
    "height",
    "size_bytes",
    "modified_ms",
    "parameters",
];

/// Which file it was, and what was asked of it: with another one its caption is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Stamp {
    pub(in crate::cli) size_bytes: u64,
    /// Since 1970; before it 0.
    pub(in crate::cli) modified_ms: u64,
    /// [`Captioner::fingerprint`](crate::captioner::Captioner::fingerprint).
    pub(in crate::cli) parameters: String,
}

impl Stamp {
    /// Of the file as it is now; `None` where there is none.
    pub(in crate::cli) fn of(path: &Path, parameters: &str) -> Option<Self> {
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let age = metadata.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Self {
            size_bytes: metadata.len(),
            modified_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            parameters: parameters.to_owned(),
        })
    }
}

/// What came of a photo.
#[derive(Debug)]
pub(in crate::cli) enum Described {
    Caption(Box<Caption>),
    /// It is no image that can be read; the text says that there is no description.
    Nothing {
        text: String,
        reason: Fallback,
    },
}

impl Described {
    /// The best text.
    pub(in crate::cli) fn text(&self) -> &str {
        match self {
            Self::Caption(caption) => &caption.caption,
            Self::Nothing { text, .. } => text,
        }
    }

    /// Why the text is no description, where it is none.
    pub(in crate::cli) fn fallback(&self) -> Option<&Fallback> {
        match self {
            Self::Caption(caption) => caption.fallback.as_ref(),
            Self::Nothing { reason, .. } => Some(reason),
        }
    }

    fn choices(&self) -> &[Choice] {
        match self {
            Self::Caption(caption) => &caption.captions,
            Self::Nothing { .. } => &[],
        }
    }
}

/// A photo with what came of it.
#[derive(Debug)]
pub(in crate::cli) struct Record<'a> {
    pub(in crate::cli) path: &'a str,
    pub(in crate::cli) described: &'a Described,
    /// Where it is a file.
    pub(in crate::cli) stamp: Option<&'a Stamp>,
}

/// The caption as HTTP has it, with the file around it.
#[derive(Serialize)]
struct Row<'a> {
    path: &'a str,
    #[serde(flatten)]
    body: Body<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Stamp>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Caption(&'a Caption),
    Nothing {
        caption: &'a str,
        captions: [Choice; 0],
        #[serde(flatten)]
        reason: &'a Fallback,
    },
}

impl Record<'_> {
    /// What is written of it, with the end of its last line; of an array's element without.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): strings and numbers can always be written.
    pub(in crate::cli) fn write(&self, format: Format) -> Result<String> {
        match format {
            Format::Text => Ok(self.lines()),
            Format::JsonLines => Ok(self.json()? + "\n"),
            Format::Json => self.json(),
            Format::Csv => self.table(),
        }
    }

    fn lines(&self) -> String {
        let line = |text: &str| format!("{}\t{text}\n", self.path);
        match self.described.choices() {
            [] => line(self.described.text()),
            choices => choices.iter().map(|choice| line(&choice.text)).collect(),
        }
    }

    /// One object.
    pub(in crate::cli) fn json(&self) -> Result<String> {
        let body = match self.described {
            Described::Caption(caption) => Body::Caption(caption),
            Described::Nothing { text, reason } => {
                Body::Nothing { caption: text, captions: [], reason }
            }
        };
        serde_json::to_string(&Row { path: self.path, body, file: self.stamp })
            .map_err(|error| Error::internal("a caption cannot be written").with_source(error))
    }

    fn table(&self) -> Result<String> {
        let image = match self.described {
            Described::Caption(caption) => Some(&caption.image),
            Described::Nothing { .. } => None,
        };
        let fallback = self.described.fallback();
        let text = |value: Option<String>| value.unwrap_or_default();
        let row = |number: usize, caption: &str, confidence: Option<f32>| -> [String; 12] {
            [
                self.path.to_owned(),
                number.to_string(),
                caption.to_owned(),
                text(confidence.map(|confidence| confidence.to_string())),
                fallback.is_some().to_string(),
                text(fallback.map(|fallback| fallback.fallback_reason.clone())),
                text(image.map(|image| image.format.clone())),
                text(image.map(|image| image.width.to_string())),
                text(image.map(|image| image.height.to_string())),
                text(self.stamp.map(|stamp| stamp.size_bytes.to_string())),
                text(self.stamp.map(|stamp| stamp.modified_ms.to_string())),
                text(self.stamp.map(|stamp| stamp.parameters.clone())),
            ]
        };
        let mut rows = Vec::new();
        for (place, choice) in self.described.choices().iter().enumerate() {
            rows.push(row(place + 1, &choice.text, Some(choice.confidence)));
        }
        if rows.is_empty() {
            rows.push(row(1, self.described.text(), None));
        }
        table(rows.iter().map(<[String; 12]>::as_slice))
    }
}

/// The head of a table.
///
/// # Errors
/// As [`Record::write`].
pub(in crate::cli) fn head() -> Result<String> {
    table([COLUMNS.map(str::to_owned).as_slice()])
}

fn table<'r>(rows: impl IntoIterator<Item = &'r [String]>) -> Result<String> {
    let unwritable = || Error::internal("a row of a table cannot be written");
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).map_err(|error| unwritable().with_source(error))?;
    }
    let bytes = writer.into_inner().map_err(|_| unwritable())?;
    String::from_utf8(bytes).map_err(|error| unwritable().with_source(error))
}
