//! What the library keeps.

use std::fmt;
use std::str::FromStr;

use cutline_error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// The BLAKE3 hash of a photo's bytes: the name of the photo in the library.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = Error;

    /// Reads 64 hexadecimal digits, also with `blake3:` in front of them, as captions have it.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("blake3:").unwrap_or(text);
        let hash = blake3::Hash::from_hex(digits).map_err(|_| {
            Error::parameter(
                "hash",
                "a photo is named by the 64 hexadecimal digits of its BLAKE3 hash; copy them whole",
            )
        })?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An enum whose variants have names in the database and in the interfaces.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in the interfaces.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The number in the database.
            pub(crate) const fn code(self) -> i64 {
                match self { $(Self::$variant => $number,)+ }
            }

            pub(crate) fn of_code(code: i64) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.code() == code)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let known = Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", ");
                    Error::parameter($what, format!(concat!("there is no ", $what, " of this name; use one of: {}"), known))
                })
            }
        }
    };
}

named! {
    /// Which of a photo's texts.
    Field, "field" {
        /// What the photo shows.
        Caption = 0, "caption";
        /// What is said to those who do not see it.
        AltText = 1, "alt_text";
        /// Tags: one per line, sorted, none twice.
        Tags = 2, "tags";
        /// A headline.
        Title = 3, "title";
        /// A short, warm text for a post.
        Engaging = 4, "engaging";
    }
}

impl Field {
    /// Those that every photo should have, and that are searched.
    pub(crate) const USUAL: [Self; 3] = [Self::Caption, Self::AltText, Self::Tags];
}

named! {
    /// What a name of a photo is.
    NameKind, "kind" {
        /// A path of a file.
        Path = 0, "path";
        /// An address.
        Url = 1, "url";
        /// The name of an uploaded file.
        Upload = 2, "upload";
    }
}

named! {
    /// Who wrote a text.
    AuthorKind, "author" {
        /// A model.
        Model = 0, "model";
        /// A person.
        Person = 1, "person";
        /// Another program, whose texts are taken for those of a person.
        Import = 2, "import";
    }
}

named! {
    /// What a revision did.
    Action, "action" {
        /// The text became the current one.
        Write = 0, "write";
        /// The text was suggested; the current one stayed.
        Suggest = 1, "suggest";
        /// A suggestion became the current text.
        Accept = 2, "accept";
        /// A suggestion was refused, and is not made again.
        Reject = 3, "reject";
        /// The text was deliberately deleted.
        Clear = 4, "clear";
        /// An earlier text became the current one again.
        Revert = 5, "revert";
        /// What a run had changed was taken back.
        Undo = 6, "undo";
    }
}

/// A model, and how it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
pub struct ModelAuthor {
    /// Its name.
    pub name: String,
    /// The digest of its weights.
    #[serde(default)]
    pub digest: String,
    /// A fingerprint of the parameters.
    #[serde(default)]
    pub parameters: String,
    /// The prompt: its text, or its name and version.
    #[serde(default)]
    pub prompt: String,
}

/// Who wrote a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Author {
    /// A model.
    Model(ModelAuthor),
    /// A person.
    Person {
        /// The name that the person or the key has.
        name: String,
    },
    /// Another program.
    Import {
        /// What was imported.
        name: String,
    },
}

impl Author {
    /// A person.
    pub fn person(name: impl Into<String>) -> Self {
        Self::Person { name: name.into() }
    }

    /// Another program.
    pub fn import(name: impl Into<String>) -> Self {
        Self::Import { name: name.into() }
    }

    /// A model of which only the name is known.
    pub fn model(name: impl Into<String>) -> Self {
        Self::Model(ModelAuthor { name: name.into(), ..ModelAuthor::default() })
    }

    /// Which kind of author this is.
    #[must_use]
    pub fn kind(&self) -> AuthorKind {
        match self {
            Self::Model(_) => AuthorKind::Model,
            Self::Person { .. } => AuthorKind::Person,
            Self::Import { .. } => AuthorKind::Import,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Model(model) => &model.name,
            Self::Person { name } | Self::Import { name } => name,
        }
    }
}

/// A name that a photo was seen with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Name {
    /// What it is.
    pub kind: NameKind,
    /// The path, the address or the name.
    pub name: String,
    /// Bytes of the file, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// When the file was modified, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_at: Option<i64>,
    /// When the photo was last seen with this name, in milliseconds since 1970; 0 means now.
    #[serde(default)]
    pub seen_at: i64,
}

impl Name {
    /// A name without facts about a file.
    pub fn new(kind: NameKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), size: None, modified_at: None, seen_at: 0 }
    }
}

/// One of the colours that make up a photo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Color {
    /// `#rrggbb`, sRGB.
    pub hex: String,
    /// The nearest named colour of CSS.
    pub name: String,
    /// Share of the pixels, in per cent.
    pub percent: u8,
}

/// A small version of a photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail {
    /// `image/webp`, …
    pub media_type: String,
    /// The file.
    pub bytes: Vec<u8>,
}

/// The number of a revision.
pub type RevisionId = i64;

/// The text of a field that is shown.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CurrentText {
    /// Which text.
    pub field: Field,
    /// Its language.
    pub lang: String,
    /// The text; empty if it was deliberately deleted.
    pub text: String,
    /// The revision.
    pub revision: i64,
    /// What the revision did.
    pub action: Action,
    /// Who wrote the text.
    pub author: Author,
    /// Who accepted it, took it back or returned to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Author>,
    /// Whether a person wrote, accepted, imported or deleted it, so that no machine replaces it.
    pub reviewed: bool,
    /// How sure the model was, 0–1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// What a later run suggests instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<SuggestedText>,
}

/// A text that waits to be accepted or rejected.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SuggestedText {
    /// The text.
    pub text: String,
    /// The revision.
    pub revision: i64,
    /// Who suggests it.
    pub author: Author,
    /// How sure the model was, 0–1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
}

/// A photo.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Asset {
    /// The hash of its bytes.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// Counts the changes of its texts.
    pub version: u64,
    /// `jpeg`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// When it was taken, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<i64>,
    /// When it was added, in milliseconds since 1970.
    pub added_at: i64,
    /// When a text of it was last changed, in milliseconds since 1970.
    pub updated_at: i64,
    /// Its colours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub colors: Vec<Color>,
    /// How they are perceived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mood: Option<String>,
    /// Its names, those last seen first.
    pub names: Vec<Name>,
    /// Its texts.
    pub texts: Vec<CurrentText>,
    /// Whether a thumbnail is stored.
    pub has_thumbnail: bool,
}

impl Asset {
    /// The text of `field` in `lang`.
    #[must_use]
    pub fn text(&self, field: Field, lang: &str) -> Option<&CurrentText> {
        self.texts.iter().find(|text| text.field == field && text.lang == lang)
    }

    /// The name to show.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.names.first().map_or_else(|| self.hash.to_string(), |name| name.name.clone())
    }
}

/// One step in the history of a text. It never changes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Revision {
    /// Its number.
    pub id: i64,
    /// The photo.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// Which text.
    pub field: Field,
    /// Its language.
    pub lang: String,
    /// What it did.
    pub action: Action,
    /// The text.
    pub text: String,
    /// Who wrote the text.
    pub author: Author,
    /// Who did this, if it was somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Author>,
    /// How sure the model was, 0–1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// The revision that it accepts, rejects, takes back or returns to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<i64>,
    /// The current revision before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<i64>,
    /// The run that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// The version of the prompt that it was asked for with, such as `alt:3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The experiment that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// Whether it is the one that is shown.
    pub current: bool,
}
