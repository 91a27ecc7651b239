//! Changes of many photos at once, with a rehearsal, and their undoing. They work with any [`Store`].

use cutline_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::change::{Applied, Change, TextAction, TextChange, Written};
use crate::query::{Attribute, MAX_LIMIT, Query, Sort};
use crate::store::{RunId, Store};
use crate::types::{Asset, Author, ContentHash, CurrentText, Field};

/// Photos that are shown as examples.
const SAMPLES: usize = 20;
/// Changes that share a transaction.
const CHUNK: usize = 500;

/// Which photos.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// These.
    Photos(Vec<ContentHash>),
    /// All that a query finds.
    Query(Box<Query>),
}

/// What happens to each of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum BulkAction {
    /// Suggestions become the current texts; without one, the current text is confirmed.
    Accept {
        /// Which texts.
        field: Field,
    },
    /// Suggestions are refused.
    Reject {
        /// Which texts.
        field: Field,
    },
    /// Texts are deleted. No machine writes them again.
    Clear {
        /// Which texts.
        field: Field,
    },
    /// One text replaces all.
    Write {
        /// Which texts.
        field: Field,
        /// The new text.
        text: String,
    },
    /// Words in texts are replaced.
    Replace {
        /// Which texts.
        field: Field,
        /// What is searched for, as it is written.
        find: String,
        /// What replaces it.
        replace: String,
    },
    /// Tags are added.
    AddTags {
        /// The tags.
        tags: Vec<String>,
    },
    /// Tags are removed.
    RemoveTags {
        /// The tags.
        tags: Vec<String>,
    },
}

/// A change of many photos.
#[derive(Debug, Clone, PartialEq)]
pub struct Bulk {
    /// Which photos.
    pub select: Selection,
    /// The language of the texts.
    pub lang: String,
    /// What happens to each of them.
    pub action: BulkAction,
    /// Who does it.
    pub author: Author,
    /// Only tell what would happen.
    pub dry_run: bool,
}

/// What a change of many photos did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct BulkReport {
    /// The run, to undo it; `None` for a rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// Photos that were selected.
    pub matched: u64,
    /// Photos that changed.
    pub changed: u64,
    /// Photos that somebody else changed meanwhile, and that were left alone.
    pub conflicts: u64,
    /// The first ones that changed.
    pub samples: Vec<Sample>,
}

/// A change, as an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Sample {
    /// The photo.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// The name to show.
    pub name: String,
    /// The text before.
    pub before: String,
    /// The text after.
    pub after: String,
}

impl BulkAction {
    fn field(&self) -> Field {
        match self {
            Self::Accept { field }
            | Self::Reject { field }
            | Self::Clear { field }
            | Self::Write { field, .. }
            | Self::Replace { field, .. } => *field,
            Self::AddTags { .. } | Self::RemoveTags { .. } => Field::Tags,
        }
    }

    /// What happens to a text, with the text after it; `None` if nothing does.
    fn of(&self, current: Option<&CurrentText>) -> Option<(TextAction, String)> {
        let text = current.map_or("", |current| current.text.as_str());
        let write = |new: String| {
            (new != text).then(|| match new.is_empty() {
                true => (TextAction::Clear, new),
                false => (TextAction::Write { text: new.clone() }, new),
            })
        };
        match self {
            Self::Accept { .. } => {
                let current = current?;
                match &current.suggestion {
                    Some(suggestion) => Some((TextAction::Accept, suggestion.text.clone())),
                    None if current.reviewed || text.is_empty() => None,
                    None => Some((TextAction::Accept, text.to_owned())),
                }
            }
            Self::Reject { .. } => {
                current?.suggestion.as_ref().map(|_| (TextAction::Reject, text.to_owned()))
            }
            Self::Clear { .. } => (!text.is_empty()).then(|| (TextAction::Clear, String::new())),
            Self::Write { text: new, .. } => write(new.trim().to_owned()),
            Self::Replace { find, replace, .. } => {
                write(text.replace(find, replace).trim().to_owned())
            }
            Self::AddTags { tags } => {
                let known: Vec<String> = text.lines().map(str::to_lowercase).collect();
                let new = tags.iter().map(|tag| tag.trim());
                let new = new.filter(|tag| !tag.is_empty() && !known.contains(&tag.to_lowercase()));
                let all: Vec<&str> = text.lines().chain(new).collect();
                write(all.join("\n"))
            }
            Self::RemoveTags { tags } => {
                let gone: Vec<String> = tags.iter().map(|tag| tag.trim().to_lowercase()).collect();
                let kept = text.lines().filter(|tag| !gone.contains(&tag.to_lowercase()));
                write(kept.collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

/// Changes many photos, or tells what would change. If it ends early, what it did can be undone.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): the query or the action makes no sense. Those of
/// [`Store::apply`].
pub fn run(store: &dyn Store, bulk: &Bulk) -> Result<BulkReport> {
    if let BulkAction::Replace { find, .. } = &bulk.action
        && find.is_empty()
    {
        return Err(Error::parameter("find", "find is the text to replace; it may not be empty"));
    }
    // All photos first: the changes decide which ones a query finds.
    let photos = select(store, &bulk.select)?;
    let mut report = BulkReport { matched: photos.len() as u64, ..BulkReport::default() };
    for photos in photos.chunks(CHUNK) {
        let mut changes = Vec::with_capacity(photos.len());
        for hash in photos {
            let Some(asset) = store.asset(hash)? else { continue };
            let field = bulk.action.field();
            let current = asset.text(field, &bulk.lang);
            let Some((action, after)) = bulk.action.of(current) else { continue };
            if report.samples.len() < SAMPLES {
                report.samples.push(sample(&asset, current, after));
            }
            changes.push(TextChange {
                hash: *hash,
                field,
                lang: bulk.lang.clone(),
                action,
                author: bulk.author.clone(),
                if_version: Some(asset.version),
                run: None,
            });
        }
        if bulk.dry_run {
            report.changed += changes.len() as u64;
        } else if !changes.is_empty() {
            let run = match report.run {
                Some(run) => run,
                None => start(store, "bulk", &bulk.action, &bulk.author)?,
            };
            report.run = Some(run);
            changes.iter_mut().for_each(|change| change.run = Some(run));
            apply(store, changes, &mut report)?;
        }
    }
    if let Some(run) = report.run {
        store.finish_run(run)?;
    }
    Ok(report)
}

fn start(store: &dyn Store, kind: &str, what: &impl Serialize, author: &Author) -> Result<RunId> {
    // Texts and numbers always serialise.
    store.start_run(kind, &serde_json::to_string(what).unwrap_or_default(), author)
}

fn sample(asset: &Asset, current: Option<&CurrentText>, after: String) -> Sample {
    Sample {
        hash: asset.hash,
        name: asset.display_name(),
        before: current.map(|current| current.text.clone()).unwrap_or_default(),
        after,
    }
}

/// Makes the changes together or, if one of them cannot be made, each by itself.
fn apply(store: &dyn Store, changes: Vec<TextChange>, report: &mut BulkReport) -> Result<()> {
    let together = store.apply(changes.iter().cloned().map(Change::Text).collect());
    if let Ok(applied) = &together {
        report.changed += changed(applied);
        return Ok(());
    }
    for change in changes {
        match store.apply(vec![Change::Text(change)]) {
            Ok(applied) => report.changed += changed(&applied),
            Err(error) if is_conflict(&error) => report.conflicts += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn changed(applied: &[Applied]) -> u64 {
    let changed = |applied: &&Applied| matches!(applied, Applied::Text { written, .. } if *written != Written::Unchanged);
    applied.iter().filter(changed).count() as u64
}

fn is_conflict(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::NotFound)
}

/// The photos that are meant.
///
/// # Errors
/// As [`Store::find`].
pub fn select(store: &dyn Store, selection: &Selection) -> Result<Vec<ContentHash>> {
    let query = match selection {
        Selection::Photos(photos) => return Ok(photos.clone()),
        Selection::Query(query) => query,
    };
    let mut query = Query {
        sort: Some(Sort::Added),
        limit: MAX_LIMIT,
        cursor: None,
        count: false,
        ..(**query).clone()
    };
    // A photo that is added meanwhile comes before the first page, so every photo is seen once.
    let mut photos = Vec::new();
    loop {
        let page = store.find(&query)?;
        photos.extend(page.items.iter().map(|found| found.asset.hash));
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(photos),
        }
    }
}

/// Takes back what a run did, where nothing was done after it.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound): there is no such run, or it changed nothing. Those of
/// [`Store::apply`].
pub fn undo(store: &dyn Store, run: RunId, author: &Author, dry_run: bool) -> Result<BulkReport> {
    let mut report = BulkReport::default();
    let mut before = i64::MAX;
    loop {
        let revisions = store.run_revisions(run, before, CHUNK)?;
        let Some(last) = revisions.last() else { break };
        before = last.id;
        report.matched += revisions.len() as u64;
        for revision in revisions.iter().filter(|revision| revision.current) {
            if report.samples.len() < SAMPLES {
                let name = store.asset(&revision.hash)?.map(|asset| asset.display_name());
                report.samples.push(Sample {
                    hash: revision.hash,
                    name: name.unwrap_or_default(),
                    before: revision.text.clone(),
                    after: previous(store, &revision.hash, revision.previous)?,
                });
            }
        }
        if dry_run {
            report.changed += revisions.iter().filter(|revision| revision.current).count() as u64;
            continue;
        }
        let undoing = match report.run {
            Some(undoing) => undoing,
            None => store.start_run("undo", &format!("{{\"run\":{run}}}"), author)?,
        };
        report.run = Some(undoing);
        let undo = |revision: &crate::types::Revision| Change::Undo {
            hash: revision.hash,
            revision: revision.id,
            author: author.clone(),
            run: Some(undoing),
        };
        let applied = store.apply(revisions.iter().map(undo).collect())?;
        let done = changed(&applied);
        report.changed += done;
        report.conflicts += revisions.len() as u64 - done;
    }
    if report.matched == 0 {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("run {run} changed no texts; list the runs to find the right one"),
        ));
    }
    if let Some(undoing) = report.run {
        store.finish_run(undoing)?;
    }
    Ok(report)
}

fn previous(store: &dyn Store, hash: &ContentHash, revision: Option<i64>) -> Result<String> {
    let Some(revision) = revision else { return Ok(String::new()) };
    let history = store.history(hash)?.unwrap_or_default();
    let found = history.into_iter().find(|one| one.id == revision);
    Ok(found.map(|one| one.text).unwrap_or_default())
}

/// A filter `name:value` for a query, from outside.
///
/// # Errors
/// [`InvalidParameter`](ErrorKind::InvalidParameter): there is no such filter, or it has no such value.
pub fn filter(name: &str, value: &str) -> Result<Attribute> {
    Attribute::new(name, value, false)?.ok_or_else(|| {
        Error::parameter(
            "filter",
            format!("there is no filter {name}; see the language of searches"),
        )
    })
}
