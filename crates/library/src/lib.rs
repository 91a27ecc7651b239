//! The library: captions, alternative texts and tags of photos, kept with every revision.
//!
//! - A photo is known by the hash of its content ([`ContentHash`]), under every path, address or upload
//!   name that it was seen with. Its bytes are not kept.
//! - Texts are revisions that never change. A pointer says which one is shown. A machine never replaces
//!   what a person wrote, imported or deliberately deleted: it suggests. `rules` decides this, in one
//!   pure function.
//! - [`Store`] is the interface of a database. There are two: [`sqlite`] and, with the feature `postgres`,
//!   PostgreSQL. They share all statements and rules. What is made of several of its operations, such as
//!   changes of many photos ([`bulk`]), works with any.
//!
//! ```
//! use cutline_library::{Author, Change, ContentHash, Field, NewAsset, Query, Store, open};
//!
//! let folder = tempfile::tempdir()?;
//! let library = open(&format!("sqlite:{}/photos.db", folder.path().display()))?;
//! let photo = ContentHash::of(b"the bytes of a photo");
//! let mut asset = NewAsset::new(photo, Author::import("example"));
//! asset.text(Field::Caption, "a cat on a sofa", None);
//! library.apply(vec![Change::Asset(Box::new(asset))])?;
//!
//! let page = library.find(&Query { text: "cats".into(), ..Query::default() })?;
//! assert_eq!(page.items[0].asset.hash, photo);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod bulk;
mod change;
mod dot;
pub mod duplicates;
mod edit_distance;
mod features;
mod keys;
#[cfg(feature = "postgres")]
pub mod postgres;

pub mod prompts;
mod query;
mod rules;
mod sql;
pub mod sqlite;
mod store;
mod time;
pub mod transfer;
mod types;
mod usage;
pub mod vocabularies;
pub mod whole;

use std::path::Path;
use std::sync::Arc;

use cutline_error::{Error, ErrorKind, Result};

pub use self::change::{
    Applied, Change, Feedback, FeedbackKind, NewAsset, NewText, TextAction, TextChange, Written,
};
pub use self::features::{Features, Neighbour, Probe, Similar};
pub use self::keys::{
    ApiKey, Budget, BudgetPeriod, BudgetUnit, KeyChange, KeyRules, PriorityClass, Scope, Secret,
    SecretHash, period,
};
pub use self::query::{Attribute, Expression, Query, Sort, parse};
pub use self::store::{
    CheckReport, Count, Facet, FacetValue, FeedbackRow, Found, Groups, Page, Run, RunId, Stats,
    Store, TrainingPair,
};
pub use self::time::{format_time, now, parse_time};
pub use self::types::{
    Action, Asset, Author, AuthorKind, Color, ContentHash, CurrentText, Field, ModelAuthor, Name,
    NameKind, Revision, RevisionId, SuggestedText, Thumbnail,
};
pub use self::usage::{UsageEntry, UsageGroup, UsageQuery, UsageRow, Used};

/// Where a library is.
enum Place<'a> {
    /// In a file.
    File(&'a Path),
    /// In a database of PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(&'a str),
}

/// Whether there is a library at `url`, or another file.
///
/// # Errors
/// [`Config`](ErrorKind::Config): the address is not understood. [`Io`](ErrorKind::Io): the server cannot
/// be asked.
pub fn exists(url: &str) -> Result<bool> {
    match place(url)? {
        Place::File(path) => Ok(path.exists()),
        #[cfg(feature = "postgres")]
        Place::Postgres(url) => postgres::PostgresStore::exists(url),
    }
}

/// Opens the library at `url`, and creates it if it does not exist: `sqlite:photos.db`, or a path; with
/// the feature `postgres`, also `postgres://…` of an existing database.
///
/// # Errors
/// [`Config`](ErrorKind::Config): the address is not understood. [`Io`](ErrorKind::Io): the file or the
/// database cannot be opened, is not a library, or was written by a newer program.
pub fn open(url: &str) -> Result<Arc<dyn Store>> {
    match place(url)? {
        Place::File(path) => Ok(Arc::new(sqlite::SqliteStore::open(path)?)),
        #[cfg(feature = "postgres")]
        Place::Postgres(url) => Ok(Arc::new(postgres::PostgresStore::open(url)?)),
    }
}

/// An address to show: without a user, a password and parameters.
#[must_use]
pub fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            format!("{scheme}://{}", rest.split('?').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

fn place(url: &str) -> Result<Place<'_>> {
    let path = match url.split_once(':') {
        Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
        #[cfg(feature = "postgres")]
        Some(("postgres" | "postgresql", _)) => return Ok(Place::Postgres(url)),
        #[cfg(not(feature = "postgres"))]
        Some(("postgres" | "postgresql", _)) => {
            return Err(Error::new(
                ErrorKind::Config,
                "this program is built without libraries in PostgreSQL; build it with --features postgres, \
                 or use sqlite:FILE",
            ));
        }
        // A drive of Windows has one letter.
        Some((scheme, _)) if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_lowercase()) => {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a library cannot be at {scheme}:; use sqlite:FILE or postgres://…"),
            ));
        }
        _ => url,
    };
    if path.trim().is_empty() {
        return Err(Error::new(
            ErrorKind::Config,
            "the address of the library names no file; use sqlite:FILE",
        ));
    }
    Ok(Place::File(Path::new(path)))
}
