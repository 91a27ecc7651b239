//! Changes of the library, and what became of them.

use cutline_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::features::Features;
use crate::keys::{ApiKey, KeyChange};
use crate::prompts::{Exposure, PromptChange};
use crate::store::RunId;
use crate::types::{Author, Color, ContentHash, Field, Name, NameKind, Thumbnail};
use crate::usage::UsageEntry;
use crate::vocabularies::VocabularyChange;

/// The longest text, in bytes.
const MAX_TEXT: usize = 16 << 10;
/// The longest name, in bytes.
const MAX_NAME: usize = 8 << 10;
/// Tags of a photo at most.
const MAX_TAGS: usize = 500;
/// The longest language tag.
const MAX_LANG: usize = 35;

/// A change. All changes of one call are made, or none.
#[derive(Debug, Clone)]
pub enum Change {
    /// A photo was seen: adds it, or what is new about it.
    Asset(Box<NewAsset>),
    /// A text of a photo is edited, accepted, rejected, deleted or taken back.
    Text(TextChange),
    /// Somebody likes a text or does not.
    Feedback(Feedback),
    /// Removes a photo with everything about it: texts, history, features, thumbnail.
    Purge(ContentHash),
    /// A key of a client is made, edited, rotated or revoked.
    Key(KeyChange),
    /// Clients have used something.
    Usage(Vec<UsageEntry>),
    /// Takes back one revision of a run, if it is still the current one.
    Undo {
        /// The photo.
        hash: ContentHash,
        /// The revision.
        revision: i64,
        /// Who takes it back.
        author: Author,
        /// The run that takes it back.
        run: Option<RunId>,
    },
    /// Prompts and experiments.
    Prompt(PromptChange),
    /// Vocabularies.
    Vocabulary(VocabularyChange),
}

/// A photo that was seen, with what is known about it. What is `None` or empty stays as it is.
#[derive(Debug, Clone)]
pub struct NewAsset {
    /// The hash of its bytes.
    pub hash: ContentHash,
    /// Who writes the texts.
    pub author: Author,
    /// The run that the texts belong to.
    pub run: Option<i64>,
    /// Names that it was seen with.
    pub names: Vec<Name>,
    /// `jpeg`, …
    pub format: Option<String>,
    /// Width in pixels.
    pub width: Option<u32>,
    /// Height in pixels.
    pub height: Option<u32>,
    /// Bytes of the file.
    pub bytes: Option<u64>,
    /// When it was taken, in milliseconds since 1970.
    pub taken_at: Option<i64>,
    /// Its difference hash, for near duplicates.
    pub dhash: Option<u64>,
    /// Its colours.
    pub colors: Vec<Color>,
    /// Their mood.
    pub mood: Option<String>,
    /// Its texts.
    pub texts: Vec<NewText>,
    /// The output of the vision tower.
    pub features: Option<Features>,
    /// A small version of it.
    pub thumbnail: Option<Thumbnail>,
}

/// A text for a photo.
#[derive(Debug, Clone, PartialEq)]
pub struct NewText {
    /// Which text.
    pub field: Field,
    /// Its language.
    pub lang: String,
    /// The text; tags one per line.
    pub text: String,
    /// How sure the model was, 0–1.
    pub confidence: Option<f32>,
    /// With which prompt it was asked for.
    pub exposure: Option<Exposure>,
}

impl NewText {
    /// Whether its confidence is that of the photo.
    pub(crate) fn is_rated(&self) -> bool {
        self.field == Field::Caption && self.lang == "en"
    }
}

impl NewAsset {
    /// A photo of which nothing is known yet.
    #[must_use]
    pub fn new(hash: ContentHash, author: Author) -> Self {
        Self {
            hash,
            author,
            run: None,
            names: Vec::new(),
            format: None,
            width: None,
            height: None,
            bytes: None,
            taken_at: None,
            dhash: None,
            colors: Vec::new(),
            mood: None,
            texts: Vec::new(),
            features: None,
            thumbnail: None,
        }
    }

    /// Adds an English text.
    pub fn text(&mut self, field: Field, text: impl Into<String>, confidence: Option<f32>) {
        let (lang, text) = ("en".into(), text.into());
        self.texts.push(NewText { field, lang, text, confidence, exposure: None });
    }

    /// Adds a name.
    pub fn name(&mut self, kind: NameKind, name: impl Into<String>) {
        self.names.push(Name::new(kind, name));
    }
}

/// An edit of one text.
#[derive(Debug, Clone)]
pub struct TextChange {
    /// The photo.
    pub hash: ContentHash,
    /// Which text.
    pub field: Field,
    /// Its language.
    pub lang: String,
    /// What happens to it.
    pub action: TextAction,
    /// Who does it.
    pub author: Author,
    /// The version that the photo must have.
    pub if_version: Option<u64>,
    /// The run that it belongs to.
    pub run: Option<i64>,
}

/// What happens to a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum TextAction {
    /// It is replaced.
    Write {
        /// The new text.
        text: String,
    },
    /// It is deleted. No machine writes it again.
    Clear,
    /// The suggestion replaces it.
    Accept,
    /// The suggestion is refused.
    Reject,
    /// An earlier text replaces it.
    Revert {
        /// The earlier revision.
        #[serde(deserialize_with = "crate::whole::number")]
        revision: i64,
    },
}

/// What somebody thinks of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    /// The photo.
    pub hash: ContentHash,
    /// The text; `None` for the current one of `field`.
    pub revision: Option<i64>,
    /// Which text.
    pub field: Field,
    /// Its language.
    pub lang: String,
    /// Good or bad.
    pub kind: FeedbackKind,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub author: Author,
}

/// What kind of feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedbackKind {
    /// The text is good.
    Up,
    /// The text is not good.
    Down,
    /// A suggestion was accepted. Stored by itself.
    Accept,
    /// A suggestion was rejected. Stored by itself.
    Reject,
    /// A person replaced the text of a model. Stored by itself.
    Edit,
}

impl FeedbackKind {
    /// All of them, by their number in the database.
    pub(crate) const ALL: [Self; 5] =
        [Self::Up, Self::Down, Self::Accept, Self::Reject, Self::Edit];

    pub(crate) const fn code(self) -> i64 {
        match self {
            Self::Up => 0,
            Self::Down => 1,
            Self::Accept => 2,
            Self::Reject => 3,
            Self::Edit => 4,
        }
    }

    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Edit => "edit",
        }
    }
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "outcome", content = "revision", rename_all = "snake_case")]
pub enum Written {
    /// It is the current one.
    Current(i64),
    /// It is suggested.
    Suggested(i64),
    /// A suggestion was refused.
    Rejected(i64),
    /// Nothing changed: it was so already, or was rejected before.
    Unchanged,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// Of [`Change::Asset`].
    Asset {
        /// The photo.
        hash: ContentHash,
        /// Its version now.
        version: u64,
        /// Whether it is new in the library.
        created: bool,
        /// What became of its texts, in their order.
        texts: Vec<Written>,
    },
    /// Of [`Change::Text`] and [`Change::Undo`].
    Text {
        /// The version of the photo now.
        version: u64,
        /// What became of the text.
        written: Written,
    },
    /// Of [`Change::Feedback`].
    Feedback,
    /// Of [`Change::Key`]: the key now.
    Key(Box<ApiKey>),
    /// Of [`Change::Usage`].
    Usage,
    /// Of [`Change::Purge`]: whether the photo was there.
    Purged(bool),
    /// Of [`Change::Prompt`]: the number of the version, or of the experiment in the library.
    Prompt(i64),
    /// Of [`Change::Vocabulary`]: the version that counts; 0 if there is none any more.
    Vocabulary(u32),
}

impl Change {
    /// Brings texts into their stored form.
    ///
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): something is too long.
    pub(crate) fn normalise(&mut self) -> Result<()> {
        match self {
            Self::Asset(asset) => {
                for text in &mut asset.texts {
                    text.text = normalised(text.field, &text.text)?;
                    check_lang(&text.lang)?;
                    text.confidence = text.confidence.filter(|value| value.is_finite());
                }
                asset.colors.truncate(16);
                asset.names.iter().try_for_each(|name| short("name", &name.name, MAX_NAME))?;
                check_author(&asset.author)
            }
            Self::Text(change) => {
                if let TextAction::Write { text } = &mut change.action {
                    *text = normalised(change.field, text)?;
                    if text.is_empty() {
                        change.action = TextAction::Clear;
                    }
                }
                check_lang(&change.lang)?;
                check_author(&change.author)
            }
            Self::Feedback(feedback) => {
                short("reason", &feedback.reason, MAX_TEXT)?;
                check_author(&feedback.author)
            }
            Self::Key(change) => change.normalise(),
            Self::Purge(_) | Self::Usage(_) => Ok(()),
            Self::Undo { author, .. } => check_author(author),
            Self::Prompt(change) => change.check(),
            Self::Vocabulary(change) => change.check(),
        }
    }
}

fn short(what: &'static str, text: &str, limit: usize) -> Result<()> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(Error::parameter(what, format!("{what} may have {limit} bytes; shorten it")))
}

fn check_lang(lang: &str) -> Result<()> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !lang.is_empty() && lang.len() <= MAX_LANG && lang.chars().all(letters) {
        return Ok(());
    }
    Err(Error::parameter("lang", "lang is a language tag such as en or pt-BR; correct it"))
}

fn check_author(author: &Author) -> Result<()> {
    short("author", author.name(), 1024)?;
    if let Author::Model(model) = author {
        short("digest", &model.digest, 1024)?;
        short("parameters", &model.parameters, MAX_TEXT)?;
        short("prompt", &model.prompt, MAX_TEXT)?;
    }
    Ok(())
}

/// The stored form of a text: without characters that no one sees, and tags sorted, none twice.
fn normalised(field: Field, text: &str) -> Result<String> {
    short("text", text, MAX_TEXT)?;
    let visible = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    let text: String = text.chars().filter(visible).collect();
    if field != Field::Tags {
        return Ok(text.trim().to_owned());
    }
    let mut tags: Vec<&str> = text.lines().map(str::trim).filter(|tag| !tag.is_empty()).collect();
    tags.sort_unstable_by_key(|tag| (tag.to_lowercase(), *tag));
    tags.dedup_by_key(|tag| tag.to_lowercase());
    if tags.len() > MAX_TAGS {
        return Err(Error::new(
            ErrorKind::InvalidParameter,
            format!("a photo may have {MAX_TAGS} tags; leave some out"),
        ));
    }
    Ok(tags.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_a_set() {
        assert_eq!(normalised(Field::Tags, " dog\nCat\n\ncat\nant ").unwrap(), "ant\nCat\ndog");
        assert_eq!(normalised(Field::Caption, " a\u{0}cat\n").unwrap(), "acat");
    }

    #[test]
    fn what_is_too_long_is_refused_with_a_limit() {
        let error = normalised(Field::Caption, &"x".repeat(MAX_TEXT + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidParameter);
        assert!(error.detail().contains("16384"), "{error}");
        assert!(check_lang("pt-BR").is_ok());
        assert!(check_lang("").is_err());
        assert!(check_lang("e n").is_err());
    }
}
