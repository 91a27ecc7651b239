//! Prompts as the library keeps them: versions that never change, labels that move, and experiments.
//!
//! What a version says is a text here, which the program has checked before.

use cutline_error::{Error, ErrorKind, Result};
use serde::Serialize;
use utoipa::ToSchema;

use crate::types::Author;

/// The longest content, description or message, in bytes.
const MAX_CONTENT: usize = 64 << 10;

/// The label of the newest version of every prompt. It moves by itself.
pub const LATEST: &str = "latest";

/// A prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Prompt {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The number of its newest version.
    pub latest: u32,
    /// Its labels.
    pub labels: Vec<PromptLabel>,
    /// When it was made, in milliseconds since 1970.
    pub created_at: i64,
}

/// A version of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptVersion {
    /// Its number in the library.
    pub id: i64,
    /// The name of the prompt.
    pub name: String,
    /// Its number among the versions of the prompt.
    pub version: u32,
    /// What it says, as JSON.
    pub content: String,
    /// The hash of that.
    pub digest: String,
    /// Why it was made.
    pub message: String,
    /// Who made it.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
}

/// A label of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptLabel {
    /// `production`, `staging`, …
    pub label: String,
    /// The version that has it.
    pub version: u32,
    /// Whether it moves only if this is confirmed.
    pub protected: bool,
}

/// A move of a label.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LabelMove {
    /// The label.
    pub label: String,
    /// The version that got it; none if it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub version: Option<u32>,
    /// Whether it was protected from then on.
    pub protected: bool,
    /// Who moved it.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
}

/// An experiment: versions of a prompt, and how many captions get each.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Experiment {
    /// Its number in the library.
    #[serde(skip)]
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The prompt.
    pub prompt: String,
    /// Its variants.
    pub variants: Vec<Variant>,
    /// What always gets the same variant: `key`, `user` or `photo`.
    pub unit: String,
    /// What mixes units differently than other experiments.
    pub salt: String,
    /// What it is decided by.
    pub metric: String,
    /// How many captions of each variant are planned.
    pub planned: u64,
    /// Who started it.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub started_at: i64,
    /// When it ended; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub stopped_at: Option<i64>,
    /// The version that got the label `production` at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub promoted: Option<u32>,
}

/// A variant of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The version of the prompt.
    #[serde(deserialize_with = "crate::whole::number")]
    pub version: u32,
    /// Its share, in proportion to the others.
    #[serde(deserialize_with = "crate::whole::number")]
    pub weight: u32,
}

/// Which version of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionChoice {
    /// The one with this label.
    Label(String),
    /// The one with this number.
    Number(u32),
}

/// A prompt with its versions and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptHistory {
    /// The prompt.
    pub prompt: Prompt,
    /// Its newest versions, newest first.
    pub versions: Vec<PromptVersion>,
    /// The last moves of its labels, newest first.
    pub moves: Vec<LabelMove>,
}

/// With what a text was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Exposure {
    /// [`PromptVersion::id`].
    pub version: i64,
    /// [`Experiment::id`].
    pub experiment: Option<i64>,
    /// Milliseconds that the caption took.
    pub latency: Option<f64>,
    /// What it cost, where this is known.
    pub cost: Option<f64>,
}

/// A caption of an experiment, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExposureRow {
    /// The version of the prompt.
    pub version: u32,
    /// How sure the model was, 0–1.
    pub confidence: Option<f64>,
    /// Milliseconds.
    pub latency: Option<f64>,
    /// What it cost.
    pub cost: Option<f64>,
    /// The last that somebody said about its text.
    pub feedback: Option<crate::change::FeedbackKind>,
    /// The share of the words that somebody changed, 0–1.
    pub edit: Option<f64>,
}

/// A change of prompts or experiments.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptChange {
    /// Adds a version, and the prompt if there is none of this name.
    Save {
        /// The prompt.
        name: String,
        /// What it is for; what it was if `None`.
        description: Option<String>,
        /// What the version says.
        content: String,
        /// Why it is made.
        message: String,
        /// Who makes it.
        author: Author,
    },
    /// Moves a label.
    Label {
        /// The prompt.
        name: String,
        /// The label.
        label: String,
        /// The version that gets it; `None` removes it.
        version: Option<u32>,
        /// Whether it is protected from now on; as before if `None`.
        protected: Option<bool>,
        /// Whether a protected label may be moved.
        force: bool,
        /// Who moves it.
        author: Author,
    },
    /// Starts an experiment. [`Experiment::id`] and the times do not count.
    Start(Box<Experiment>),
    /// Ends an experiment, and gives a version of it the label `production`.
    Stop {
        /// The experiment.
        name: String,
        /// The version.
        promote: Option<u32>,
        /// Whether a protected label may be moved.
        force: bool,
        /// Who ends it.
        author: Author,
    },
}

impl PromptChange {
    /// # Errors
    /// [`InvalidParameter`](ErrorKind::InvalidParameter): something is too long.
    pub(crate) fn check(&self) -> Result<()> {
        let short = |what: &'static str, text: &str| {
            if text.len() <= MAX_CONTENT {
                return Ok(());
            }
            Err(Error::parameter(what, format!("{what} may have {MAX_CONTENT} bytes; shorten it")))
        };
        match self {
            Self::Save { name, description, content, message, .. } => {
                short("name", name)?;
                short("description", description.as_deref().unwrap_or_default())?;
                short("template", content)?;
                short("message", message)
            }
            Self::Label { label, .. } if label == LATEST => Err(Error::parameter(
                "label",
                "the label latest always belongs to the newest version; move another one",
            )),
            Self::Label { name, label, .. } => {
                short("name", name).and_then(|()| short("label", label))
            }
            Self::Start(experiment) => short("name", &experiment.name),
            Self::Stop { name, .. } => short("name", name),
        }
    }
}

/// The error for a prompt that there is none of.
#[must_use]
pub fn no_prompt(name: &str) -> Error {
    let name: String = name.chars().take(64).collect();
    Error::new(
        ErrorKind::NotFound,
        format!("the library has no prompt {name}; list the prompts, or save it"),
    )
}

/// The error for an experiment that there is none of.
#[must_use]
pub fn no_experiment(name: &str) -> Error {
    let name: String = name.chars().take(64).collect();
    Error::new(
        ErrorKind::NotFound,
        format!("the library has no experiment {name}; list the experiments, or start it"),
    )
}
