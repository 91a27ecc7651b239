//! What is written about a photo, and in which format.

use std::borrow::Cow;
use std::path::Path;
use std::time::UNIX_EPOCH;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::name;
use super::spreadsheet::guarded;
use crate::captioner::{Caption, Choice, Fallback};
use cutline_error::{Error, Result};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum OutputFormat {
    /// Path, tab, caption.
    Text,
    /// The same for spreadsheets.
    Tsv,
    /// One object per line.
    #[value(name = "jsonl")]
    JsonLines,
    /// A table with a header.
    Csv,
    /// One array of objects.
    Json,
}

impl OutputFormat {
    /// The format that the extension of a file stands for; text for any other.
    pub(in crate::cli) fn of_path(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.unwrap_or_default() {
            extension if extension.eq_ignore_ascii_case("ndjson") => Self::JsonLines,
            extension => Self::from_str(extension, true).unwrap_or(Self::Text),
        }
    }

    /// Whether a row has only a path and a caption, so that it does not tell who wrote it.
    pub(in crate::cli) fn is_plain(self) -> bool {
        matches!(self, Self::Text | Self::Tsv)
    }

    pub(in crate::cli) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The columns of a table.
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

/// The version of a file and the parameters of its caption. If either changes, so does the caption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct FileStamp {
    pub(in crate::cli) size_bytes: u64,
    /// Since 1970; 0 for earlier times.
    pub(in crate::cli) modified_ms: u64,
    /// [`Captioner::fingerprint`](crate::captioner::Captioner::fingerprint).
    pub(in crate::cli) parameters: String,
}

impl FileStamp {
    /// Of the file as it is now; `None` if there is no such file.
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

/// What is known about a photo.
#[derive(Debug)]
pub(in crate::cli) enum Description {
    Caption(Box<Caption>),
    /// The file is not a readable image; the text says that there is no description.
    Nothing {
        text: String,
        reason: Fallback,
    },
}

impl Description {
    /// The best text.
    pub(in crate::cli) fn text(&self) -> &str {
        match self {
            Self::Caption(caption) => &caption.caption,
            Self::Nothing { text, .. } => text,
        }
    }

    /// Why there is no description, if the text is only a fallback.
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

/// A photo and its description, ready to be written.
#[derive(Debug)]
pub(in crate::cli) struct Record<'a> {
    pub(in crate::cli) path: &'a Path,
    pub(in crate::cli) description: &'a Description,
    /// `None` if the photo came on standard input.
    pub(in crate::cli) stamp: Option<&'a FileStamp>,
}

/// The caption in the form of the HTTP API, together with its file.
#[derive(Serialize)]
struct JsonRow<'a> {
    path: String,
    #[serde(flatten)]
    body: JsonBody<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a FileStamp>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonBody<'a> {
    Caption(&'a Caption),
    Nothing {
        caption: &'a str,
        captions: [Choice; 0],
        #[serde(flatten)]
        reason: &'a Fallback,
    },
}

impl Record<'_> {
    /// The text to write, with the line break at its end; for the element of an array, without.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): strings and numbers can always be written.
    pub(in crate::cli) fn write(&self, format: OutputFormat) -> Result<String> {
        match format {
            OutputFormat::Text => Ok(self.lines(|text| text.into())),
            OutputFormat::Tsv => Ok(self.lines(guarded)),
            OutputFormat::JsonLines => Ok(self.json()? + "\n"),
            OutputFormat::Json => self.json(),
            OutputFormat::Csv => self.table(),
        }
    }

    fn lines(&self, cell: fn(&str) -> Cow<'_, str>) -> String {
        let path = name::line(self.path);
        let path = cell(&path);
        let line = |text: &str| {
            // The fallback text is a setting and may hold anything.
            let text = text.replace(name::breaks_lines, " ");
            format!("{path}\t{}\n", cell(&text))
        };
        match self.description.choices() {
            [] => line(self.description.text()),
            choices => choices.iter().map(|choice| line(&choice.text)).collect(),
        }
    }

    /// One JSON object.
    pub(in crate::cli) fn json(&self) -> Result<String> {
        let body = match self.description {
            Description::Caption(caption) => JsonBody::Caption(caption),
            Description::Nothing { text, reason } => {
                JsonBody::Nothing { caption: text, captions: [], reason }
            }
        };
        serde_json::to_string(&JsonRow { path: name::text(self.path), body, file: self.stamp })
            .map_err(|error| Error::internal("a caption cannot be written").with_source(error))
    }

    fn table(&self) -> Result<String> {
        let image = match self.description {
            Description::Caption(caption) => Some(&caption.image),
            Description::Nothing { .. } => None,
        };
        let fallback = self.description.fallback();
        let text = |value: Option<String>| value.unwrap_or_default();
        let words = |value: &str| guarded(value).into_owned();
        let row = |number: usize, caption: &str, confidence: Option<f32>| -> [String; 12] {
            [
                words(&name::text(self.path)),
                number.to_string(),
                words(caption),
                text(confidence.map(|confidence| confidence.to_string())),
                fallback.is_some().to_string(),
                text(fallback.map(|fallback| words(&fallback.fallback_reason))),
                text(image.map(|image| words(&image.format))),
                text(image.map(|image| image.width.to_string())),
                text(image.map(|image| image.height.to_string())),
                text(self.stamp.map(|stamp| stamp.size_bytes.to_string())),
                text(self.stamp.map(|stamp| stamp.modified_ms.to_string())),
                text(self.stamp.map(|stamp| stamp.parameters.clone())),
            ]
        };
        let mut rows = Vec::new();
        for (index, choice) in self.description.choices().iter().enumerate() {
            rows.push(row(index + 1, &choice.text, Some(choice.confidence)));
        }
        if rows.is_empty() {
            rows.push(row(1, self.description.text(), None));
        }
        table(rows.iter().map(<[String; 12]>::as_slice))
    }
}

/// The header of a table.
///
/// # Errors
/// As [`Record::write`].
pub(in crate::cli) fn header() -> Result<String> {
    table([COLUMNS.map(str::to_owned).as_slice()])
}

/// The path of a photo as it begins a row of text or a table.
///
/// # Errors
/// As [`Record::write`].
pub(super) fn path_cell(path: &Path, format: OutputFormat) -> Result<String> {
    match format {
        OutputFormat::Csv => {
            let row = table([[guarded(&name::text(path)).into_owned()].as_slice()])?;
            Ok(row.trim_end_matches('\n').to_owned())
        }
        OutputFormat::Tsv => Ok(guarded(&name::line(path)).into_owned()),
        _ => Ok(name::line(path)),
    }
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
