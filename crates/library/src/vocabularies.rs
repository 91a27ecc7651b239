//! Vocabularies as the library keeps them: versions that never change, and one that counts.
//!
//! What a version says is a text here, which the program has checked before.

use cutline_error::{Error, ErrorKind, Result};
use serde::Serialize;
use utoipa::ToSchema;

use crate::types::Author;

/// The longest content, in bytes.
const MAX_CONTENT: usize = 2 << 20;
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 16 << 10;
/// The longest name, in bytes.
const MAX_NAME: usize = 256;

/// A vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoredVocabulary {
    /// Its name.
    pub name: String,
    /// The number of its newest version.
    pub latest: u32,
    /// The number of the version that counts.
    pub current: u32,
    /// When it was made, in milliseconds since 1970.
    pub created_at: i64,
}

/// A version of a vocabulary, without what it says.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct VocabularyVersion {
    /// Its number among the versions of the vocabulary.
    pub version: u32,
    /// The hash of its content.
    pub digest: String,
    /// Why it was made.
    pub message: String,
    /// Who made it.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
}

/// A version of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct VocabularyContent {
    /// Which one it is.
    pub version: VocabularyVersion,
    /// What it says, as JSON.
    pub content: String,
}

/// A vocabulary with its versions.
#[derive(Debug, Clone, PartialEq)]
pub struct VocabularyHistory {
    /// The vocabulary.
    pub vocabulary: StoredVocabulary,
    /// Its newest versions, newest first.
    pub versions: Vec<VocabularyVersion>,
}

/// A change of vocabularies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VocabularyChange {
    /// Adds a version, which counts from now on, and the vocabulary if there is none of this name.
    Save {
        /// The vocabulary.
        name: String,
        /// What the version says.
        content: String,
        /// Why it is made.
        message: String,
        /// Who makes it.
        author: Author,
    },
    /// Another version counts from now on.
    Use {
        /// The vocabulary.
        name: String,
        /// The version.
        version: u32,
    },
    /// Removes a vocabulary with all versions. Their numbers are not used again.
    Delete {
        /// The vocabulary.
        name: String,
    },
}

impl VocabularyChange {
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): something is too long.
    pub(crate) fn check(&self) -> Result<()> {
        let short = |what: &'static str, text: &str, most: usize| {
            if text.len() <= most {
                return Ok(());
            }
            Err(Error::parameter(what, format!("{what} may have {most} bytes; shorten it")))
        };
        match self {
            Self::Save { name, content, message, .. } => {
                short("name", name, MAX_NAME)?;
                short("vocabulary", content, MAX_CONTENT)?;
                short("message", message, MAX_MESSAGE)
            }
            Self::Use { name, .. } | Self::Delete { name } => short("name", name, MAX_NAME),
        }
    }
}

/// The error for a vocabulary that there is none of.
#[must_use]
pub fn no_vocabulary(name: &str) -> Error {
    let name: String = name.chars().take(64).collect();
    Error::new(
        ErrorKind::NotFound,
        format!("the library has no vocabulary {name}; list the vocabularies, or save it"),
    )
}

/// The error for a version that there is none of.
#[must_use]
pub fn no_version(name: &str, version: u32) -> Error {
    let name: String = name.chars().take(64).collect();
    Error::new(
        ErrorKind::NotFound,
        format!(
            "the vocabulary {name} has no version {version}; read the vocabulary for those that it has"
        ),
    )
}
