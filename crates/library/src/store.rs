//! The interface of a database.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cutline_error::Result;
use serde::Serialize;
use utoipa::ToSchema;

use crate::change::{Applied, Change};
use crate::features::{Neighbour, Similar};
use crate::keys::ApiKey;
use crate::prompts::{
    Experiment, ExposureRow, Prompt, PromptHistory, PromptVersion, VersionChoice,
};
use crate::query::Query;
use crate::types::{Asset, Author, ContentHash, Name, NameKind, Revision, Thumbnail};
use crate::usage::{UsageQuery, UsageRow};
use crate::vocabularies::{StoredVocabulary, VocabularyContent, VocabularyHistory};

/// Groups of photos. Shared, because those who page through them ask again for each page.
pub type Groups = Arc<Vec<Vec<ContentHash>>>;

/// The number of a run.
pub type RunId = i64;

/// A database with a library in it. All operations block; they may be called from any thread, and from
/// several processes at once.
pub trait Store: Send + Sync + fmt::Debug {
    /// Makes all of `changes`, or none. When it returns, they survive a crash of the machine.
    ///
    /// # Errors
    /// [`NotFound`](cutline_error::ErrorKind::NotFound): there is no such photo, revision or suggestion.
    /// [`PreconditionFailed`](cutline_error::ErrorKind::PreconditionFailed): the photo has another
    /// version. [`StorageFull`](cutline_error::ErrorKind::StorageFull): the disk is full.
    fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>>;

    /// A photo, if the library has it.
    ///
    /// # Errors
    /// The database cannot be read.
    fn asset(&self, hash: &ContentHash) -> Result<Option<Asset>>;

    /// The photos that were seen with a name, those last seen with it first.
    ///
    /// # Errors
    /// The database cannot be read.
    fn named(&self, kind: NameKind, name: &str) -> Result<Vec<(ContentHash, Name)>>;

    /// The revisions of a photo's texts, newest first; `None` if the library does not have it.
    ///
    /// # Errors
    /// The database cannot be read.
    fn history(&self, hash: &ContentHash) -> Result<Option<Vec<Revision>>>;

    /// The thumbnail of a photo.
    ///
    /// # Errors
    /// The database cannot be read.
    fn thumbnail(&self, hash: &ContentHash) -> Result<Option<Thumbnail>>;

    /// A page of photos.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): the query or the cursor cannot
    /// be understood, or takes too long.
    fn find(&self, query: &Query) -> Result<Page>;

    /// How the photos that `query` finds are distributed over colours, moods, models and tags.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    fn facets(&self, query: &Query) -> Result<Vec<Facet>>;

    /// The photos that look most like another one, best first.
    ///
    /// # Errors
    /// [`NotFound`](cutline_error::ErrorKind::NotFound): that photo has no features.
    fn similar(&self, similar: &Similar) -> Result<Vec<Neighbour>>;

    /// Groups of photos whose difference hashes differ in at most `max_bits` bits from one to the next.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): more than 7 bits.
    fn near_duplicates(&self, max_bits: u32) -> Result<Groups>;

    /// Begins a run: changes that can be undone together.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn start_run(&self, kind: &str, parameters: &str, author: &Author) -> Result<RunId>;

    /// Ends a run.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn finish_run(&self, run: RunId) -> Result<()>;

    /// The latest runs, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    fn runs(&self, limit: usize) -> Result<Vec<Run>>;

    /// Revisions of a run, newest first, from before the revision `before`.
    ///
    /// # Errors
    /// The database cannot be read.
    fn run_revisions(&self, run: RunId, before: i64, limit: usize) -> Result<Vec<Revision>>;

    /// Feedback by model, prompt and day, newest day first.
    ///
    /// # Errors
    /// The database cannot be read.
    fn feedback_report(&self) -> Result<Vec<FeedbackRow>>;

    /// What models wrote and what people made of it, from the feedback after number `after`.
    ///
    /// # Errors
    /// The database cannot be read.
    fn training_pairs(&self, after: i64, limit: usize) -> Result<Vec<TrainingPair>>;

    /// All keys of clients, in the order in which they were made.
    ///
    /// # Errors
    /// The database cannot be read.
    fn keys(&self) -> Result<Vec<ApiKey>>;

    /// The key with this number, if there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    fn key(&self, id: i64) -> Result<Option<ApiKey>>;

    /// What clients with keys have used.
    ///
    /// # Errors
    /// The database cannot be read.
    fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>>;

    /// The prompts, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    fn prompts(&self) -> Result<Vec<Prompt>>;

    /// A prompt with its versions, if there is one of this name.
    ///
    /// # Errors
    /// The database cannot be read.
    fn prompt(&self, name: &str) -> Result<Option<PromptHistory>>;

    /// A version of a prompt, if there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    fn prompt_version(&self, name: &str, choice: &VersionChoice) -> Result<Option<PromptVersion>>;

    /// All experiments, or only those that run, the newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    fn experiments(&self, running: bool) -> Result<Vec<Experiment>>;

    /// The newest captions of an experiment, and what became of them.
    ///
    /// # Errors
    /// The database cannot be read.
    fn exposures(&self, experiment: i64) -> Result<Vec<ExposureRow>>;

    /// The vocabularies, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    fn vocabularies(&self) -> Result<Vec<StoredVocabulary>>;

    /// A vocabulary with its versions, if there is one of this name.
    ///
    /// # Errors
    /// The database cannot be read.
    fn vocabulary(&self, name: &str) -> Result<Option<VocabularyHistory>>;

    /// A version of a vocabulary, or the one that counts, if there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    fn vocabulary_content(
        &self,
        name: &str,
        version: Option<u32>,
    ) -> Result<Option<VocabularyContent>>;

    /// What the library contains.
    ///
    /// # Errors
    /// The database cannot be read.
    fn stats(&self) -> Result<Stats>;

    /// Reads everything and looks for damage.
    ///
    /// # Errors
    /// The database cannot be read.
    fn check(&self) -> Result<CheckReport>;

    /// Writes a copy to `path`, which must not exist, while the library is in use.
    ///
    /// # Errors
    /// [`Io`](cutline_error::ErrorKind::Io): the copy cannot be written.
    fn backup(&self, path: &Path) -> Result<()>;

    /// Rewrites the database without what was deleted. Takes time and disk in proportion to it.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn compact(&self) -> Result<()>;
}

/// A page of photos.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Page {
    /// The photos.
    pub items: Vec<Found>,
    /// Where the next page begins; `None` after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many there are in all, if this was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Count>,
    /// The order of the photos.
    pub sort: crate::query::Sort,
}

/// A number of photos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Count {
    /// The number.
    pub count: u64,
    /// Whether there are no more than that.
    pub exact: bool,
}

/// A photo that a query found.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Found {
    /// The photo.
    #[serde(flatten)]
    pub asset: Asset,
    /// Parts of texts with the words that were searched for, each between U+E000 and U+E001. Whoever
    /// shows them escapes the text first, then replaces these characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub highlights: Vec<String>,
}

/// A property of photos, and how often each of its values occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Facet {
    /// `color`, `mood`, `model`, `tag`, `state`.
    pub attribute: &'static str,
    /// Its values, the most frequent first.
    pub values: Vec<FacetValue>,
    /// Whether all photos were counted, or only the newest of very many.
    pub exact: bool,
}

/// A value, and the photos that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FacetValue {
    /// The value.
    pub value: String,
    /// Number of photos.
    pub count: u64,
}

/// A run: changes that can be undone together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Run {
    /// Its number.
    pub id: i64,
    /// `caption`, `bulk`, `import`, `undo`.
    pub kind: String,
    /// What it did, as JSON or a sentence.
    pub parameters: String,
    /// Who started it.
    pub author: Author,
    /// When, in milliseconds since 1970.
    pub started_at: i64,
    /// When it ended; `None` while it runs, or if the program was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<i64>,
    /// Revisions that belong to it.
    pub revisions: u64,
}

/// Feedback about one model with one prompt on one day.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FeedbackRow {
    /// The day of the feedback, `2026-11-27`, UTC.
    pub day: String,
    /// The model.
    pub model: String,
    /// The digest of its weights.
    pub digest: String,
    /// The prompt.
    pub prompt: String,
    /// Thumbs up.
    pub up: u64,
    /// Thumbs down.
    pub down: u64,
    /// Suggestions accepted.
    pub accepted: u64,
    /// Suggestions rejected.
    pub rejected: u64,
    /// Texts that a person replaced.
    pub edited: u64,
    /// Share of the words that these edits changed, 0–1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_edit: Option<f64>,
}

/// What a model wrote, and what a person made of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TrainingPair {
    /// The number of the feedback.
    pub id: i64,
    /// The photo.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// The name to show.
    pub name: String,
    /// Which text.
    pub field: crate::types::Field,
    /// What the model wrote.
    pub machine: String,
    /// What is shown now.
    pub current: String,
    /// `up`, `down`, `accept`, `reject` or `edit`.
    pub kind: &'static str,
    /// Why.
    pub reason: String,
    /// The model.
    pub model: String,
    /// The prompt.
    pub prompt: String,
}

/// What the library contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stats {
    /// Photos.
    pub assets: u64,
    /// Names.
    pub names: u64,
    /// Revisions of texts.
    pub revisions: u64,
    /// Suggestions that wait.
    pub suggestions: u64,
    /// Photos without a caption.
    pub without_caption: u64,
    /// Photos without an alternative text.
    pub without_alt_text: u64,
    /// Photos with a text that a person decided about.
    pub reviewed: u64,
    /// Photos with features.
    pub features: u64,
    /// Thumbnails.
    pub thumbnails: u64,
    /// Bytes of the database, without what waits in its journal.
    pub bytes: u64,
    /// The version of the schema.
    pub schema: u32,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CheckReport {
    /// Photos that were read.
    pub assets: u64,
    /// What is wrong; empty if nothing is.
    pub problems: Vec<String>,
}
