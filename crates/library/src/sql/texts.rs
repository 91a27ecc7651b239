//! Revisions of texts, and the pointer to the current one.

use cutline_error::{Error, ErrorKind, Result};

use super::value::values;
use super::{Db, Value, damaged};
use crate::change::{FeedbackKind, TextAction, TextChange, Written};
use crate::edit_distance::edit_distance;
use crate::prompts::Exposure;
use crate::rules::{self, Decision, Proposal, Shown};
use crate::store::RunId;
use crate::types::{Action, Author, AuthorKind, Field, ModelAuthor, RevisionId};

/// Where a text is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub(crate) asset: i64,
    pub(crate) field: Field,
    pub(crate) lang: &'a str,
    /// It was never written to, so nothing needs to be read.
    pub(crate) is_new: bool,
}

/// What a slot points to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pointers {
    pub(crate) revision: Option<RevisionId>,
    pub(crate) suggestion: Option<RevisionId>,
}

/// A revision as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) id: RevisionId,
    pub(crate) text: String,
    author_id: i64,
    by_model: bool,
    confidence: Option<f64>,
    reviewed: bool,
}

/// A text that somebody wants to write.
#[derive(Debug)]
pub(crate) struct Proposed<'a> {
    pub(crate) text: &'a str,
    pub(crate) confidence: Option<f32>,
    pub(crate) author: &'a Author,
    pub(crate) author_id: i64,
    pub(crate) run: Option<RunId>,
    pub(crate) exposure: Option<Exposure>,
}

/// What an edit did, and what it tells about the text of a model.
pub(crate) struct Edit {
    pub(crate) written: Written,
    pub(crate) feedback: Option<(RevisionId, FeedbackKind, f64)>,
}

/// A row for `revisions`.
struct NewRevision<'a> {
    action: Action,
    text: &'a str,
    author_id: i64,
    actor_id: Option<i64>,
    confidence: Option<f64>,
    reviewed: bool,
    of: Option<RevisionId>,
    previous: Option<RevisionId>,
    run: Option<RunId>,
    /// With which prompt it was asked for.
    exposure: Option<Exposure>,
    now: i64,
}

/// The number of an author; a new one for a new author.
pub(crate) fn author_id(db: &dyn Db, author: &Author) -> Result<i64> {
    let empty = ModelAuthor::default();
    let model = if let Author::Model(model) = author { model } else { &empty };
    let (kind, name) = (author.kind().code(), author.name());
    let values = values![kind, name, &model.digest, &model.parameters, &model.prompt];
    let find = "SELECT id FROM authors WHERE kind = ? AND name = ? AND digest = ? AND parameters = ? \
         AND prompt = ?";
    if let Some(id) = db.first(find, values, |row| row.get(0))? {
        return Ok(id);
    }
    let insert =
        "INSERT INTO authors(kind, name, digest, parameters, prompt) VALUES(?, ?, ?, ?, ?)";
    db.insert(insert, values)
}

impl<'a> Slot<'a> {
    pub(crate) fn new(asset: i64, field: Field, lang: &'a str) -> Self {
        Self { asset, field, lang, is_new: false }
    }

    pub(crate) fn current(&self, db: &dyn Db) -> Result<Pointers> {
        if self.is_new {
            return Ok(Pointers::default());
        }
        let sql = "SELECT revision_id, suggestion_id FROM current WHERE asset_id = ? AND field = ? \
             AND lang = ?";
        let found = db.first(sql, &self.key(), |row| {
            Ok(Pointers { revision: row.get(0)?, suggestion: row.get(1)? })
        })?;
        Ok(found.unwrap_or_default())
    }

    fn key(&self) -> [Value<'_>; 3] {
        [self.asset.into(), self.field.code().into(), self.lang.into()]
    }

    /// A revision of this slot.
    pub(crate) fn revision(&self, db: &dyn Db, id: RevisionId) -> Result<Option<Stored>> {
        let sql = "SELECT r.id, r.text, r.author_id, a.kind, r.confidence, r.reviewed FROM revisions r \
             JOIN authors a ON a.id = r.author_id \
             WHERE r.id = ?1 AND r.asset_id = ?2 AND r.field = ?3 AND r.lang = ?4";
        let values = values![id, self.asset, self.field.code(), self.lang];
        db.first(sql, values, |row| {
            Ok(Stored {
                id: row.get(0)?,
                text: row.get(1)?,
                author_id: row.get(2)?,
                by_model: row.get::<i64>(3)? == AuthorKind::Model.code(),
                confidence: row.get(4)?,
                reviewed: row.get(5)?,
            })
        })
    }

    fn pointed(&self, db: &dyn Db, id: Option<RevisionId>) -> Result<Option<Stored>> {
        let Some(id) = id else { return Ok(None) };
        let found = self.revision(db, id)?;
        found.map(Some).ok_or_else(|| damaged("a pointer to a revision that is missing"))
    }

    fn add(&self, db: &dyn Db, new: &NewRevision<'_>) -> Result<RevisionId> {
        let sql = "INSERT INTO revisions(asset_id, field, lang, action, text, author_id, actor_id, \
             confidence, reviewed, of_id, previous_id, run_id, prompt_version_id, experiment_id, \
             created_at) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let actor = new.actor_id.filter(|actor| *actor != new.author_id);
        let values = values![
            self.asset,
            self.field.code(),
            self.lang,
            new.action.code(),
            new.text,
            new.author_id,
            actor,
            new.confidence,
            new.reviewed,
            new.of,
            new.previous,
            new.run,
            new.exposure.map(|exposure| exposure.version),
            new.exposure.and_then(|exposure| exposure.experiment),
            new.now,
        ];
        db.insert(sql, values)
    }

    fn point(&self, db: &dyn Db, pointers: Pointers, confidence: Option<f64>) -> Result<()> {
        if pointers.revision.is_none() && pointers.suggestion.is_none() {
            let sql = "DELETE FROM current WHERE asset_id = ? AND field = ? AND lang = ?";
            db.execute(sql, &self.key())?;
        } else {
            // Not an upsert, which would begin a savepoint of SQLite; see `Changer::index_words`.
            let [asset, field, lang] = self.key();
            let values = [asset, field, lang, pointers.revision.into(), pointers.suggestion.into()];
            let sql = "UPDATE current SET revision_id = ?4, suggestion_id = ?5 \
                 WHERE asset_id = ?1 AND field = ?2 AND lang = ?3";
            if self.is_new || db.execute(sql, &values)? == 0 {
                let sql = "INSERT INTO current(asset_id, field, lang, revision_id, suggestion_id) \
                     VALUES(?, ?, ?, ?, ?)";
                db.add(sql, &values)?;
            }
        }
        // A new photo was added with that of its first text.
        if !self.is_new && self.field == Field::Caption && self.lang == "en" {
            let sql = "UPDATE assets SET confidence = ?2 \
                 WHERE id = ?1 AND confidence IS DISTINCT FROM ?2";
            db.execute(sql, values![self.asset, confidence])?;
        }
        Ok(())
    }

    /// Whether a person has rejected this text.
    fn rejected_before(&self, db: &dyn Db, text: &str) -> Result<bool> {
        let sql = "SELECT EXISTS(SELECT 1 FROM revisions r WHERE r.asset_id = ?1 AND r.field = ?2 \
             AND r.lang = ?3 AND r.action = ?4 AND r.text = ?5 AND NOT EXISTS(SELECT 1 FROM revisions u \
             WHERE u.asset_id = r.asset_id AND u.action = ?6 AND u.of_id = r.id))";
        let [asset, field, lang] = self.key();
        let (reject, undo) = (Action::Reject.code().into(), Action::Undo.code().into());
        db.value(sql, &[asset, field, lang, reject, text.into(), undo])
    }

    /// Writes or suggests a text, or does neither: as the rules say.
    pub(crate) fn propose(&self, db: &dyn Db, now: i64, new: &Proposed<'_>) -> Result<Written> {
        let pointers = self.current(db)?;
        let shown = self.pointed(db, pointers.revision)?;
        let waiting = self.pointed(db, pointers.suggestion)?;
        let fresh = shown.is_none() && waiting.is_none();
        let proposal = Proposal {
            text: new.text,
            kind: new.author.kind(),
            author: new.author_id,
            rejected_before: !fresh && self.rejected_before(db, new.text)?,
            waiting: waiting.as_ref().map(|waiting| waiting.text.as_str()),
        };
        let decision = rules::decide(shown.as_ref().map(Stored::shown).as_ref(), proposal);
        let confidence = new.confidence.map(f64::from);
        let mut revision = NewRevision {
            action: Action::Write,
            text: new.text,
            author_id: new.author_id,
            actor_id: None,
            confidence,
            reviewed: rules::is_reviewed(new.author),
            of: None,
            previous: pointers.revision,
            run: new.run,
            exposure: new.exposure,
            now,
        };
        match decision {
            Decision::Ignore => Ok(Written::Unchanged),
            Decision::Write => {
                let id = self.add(db, &revision)?;
                self.point(db, Pointers { revision: Some(id), ..pointers }, confidence)?;
                Ok(Written::Current(id))
            }
            Decision::Suggest => {
                revision.action = Action::Suggest;
                revision.reviewed = false;
                let id = self.add(db, &revision)?;
                let shown = shown.and_then(|shown| shown.confidence);
                self.point(db, Pointers { suggestion: Some(id), ..pointers }, shown)?;
                Ok(Written::Suggested(id))
            }
        }
    }

    /// Makes an edit.
    pub(crate) fn edit(&self, db: &dyn Db, now: i64, change: &TextChange) -> Result<Edit> {
        let actor = author_id(db, &change.author)?;
        let pointers = self.current(db)?;
        let shown = self.pointed(db, pointers.revision)?;
        let act = |action, source: &Stored, of| NewRevision {
            action,
            text: "",
            author_id: source.author_id,
            actor_id: Some(actor),
            confidence: source.confidence,
            reviewed: rules::is_reviewed(&change.author),
            of,
            previous: pointers.revision,
            run: change.run,
            exposure: None,
            now,
        };
        match &change.action {
            TextAction::Write { text } => {
                let proposed = Proposed {
                    text,
                    confidence: None,
                    author: &change.author,
                    author_id: actor,
                    run: change.run,
                    exposure: None,
                };
                let written = self.propose(db, now, &proposed)?;
                Ok(Edit { written, feedback: edited(shown.as_ref(), text, change, written) })
            }
            TextAction::Clear => {
                if shown.as_ref().is_some_and(|shown| shown.text.is_empty() && shown.reviewed) {
                    return Ok(Edit { written: Written::Unchanged, feedback: None });
                }
                let nothing = Stored::nothing(actor);
                let id = self.add(db, &act(Action::Clear, &nothing, None))?;
                self.point(db, Pointers { revision: Some(id), ..pointers }, None)?;
                let written = Written::Current(id);
                Ok(Edit { written, feedback: edited(shown.as_ref(), "", change, written) })
            }
            TextAction::Accept => {
                let waiting = self.pointed(db, pointers.suggestion)?;
                let confirmed = shown.filter(|shown| !shown.reviewed && !shown.text.is_empty());
                let Some(source) = waiting.or(confirmed) else {
                    return Err(nothing_waits());
                };
                let new = NewRevision {
                    text: &source.text,
                    ..act(Action::Accept, &source, Some(source.id))
                };
                let id = self.add(db, &new)?;
                self.point(
                    db,
                    Pointers { revision: Some(id), suggestion: None },
                    source.confidence,
                )?;
                let feedback = source.by_model.then_some((source.id, FeedbackKind::Accept, 0.0));
                Ok(Edit { written: Written::Current(id), feedback })
            }
            TextAction::Reject => {
                let waiting = self.pointed(db, pointers.suggestion)?;
                let Some(source) = waiting else { return Err(nothing_waits()) };
                let new = NewRevision {
                    text: &source.text,
                    reviewed: false,
                    ..act(Action::Reject, &source, Some(source.id))
                };
                let id = self.add(db, &new)?;
                let confidence = shown.and_then(|shown| shown.confidence);
                self.point(db, Pointers { suggestion: None, ..pointers }, confidence)?;
                let feedback = source.by_model.then_some((source.id, FeedbackKind::Reject, 0.0));
                Ok(Edit { written: Written::Rejected(id), feedback })
            }
            TextAction::Revert { revision } => {
                let Some(source) = self.revision(db, *revision)? else {
                    return Err(no_revision(*revision));
                };
                if shown.as_ref().is_some_and(|shown| shown.id == *revision) {
                    return Ok(Edit { written: Written::Unchanged, feedback: None });
                }
                let new = NewRevision {
                    text: &source.text,
                    ..act(Action::Revert, &source, Some(source.id))
                };
                let id = self.add(db, &new)?;
                self.point(db, Pointers { revision: Some(id), ..pointers }, source.confidence)?;
                Ok(Edit { written: Written::Current(id), feedback: None })
            }
        }
    }
}

/// What a person's text tells about the one of a model that was there.
fn edited(
    shown: Option<&Stored>,
    text: &str,
    change: &TextChange,
    written: Written,
) -> Option<(RevisionId, FeedbackKind, f64)> {
    let shown = shown.filter(|shown| shown.by_model && !shown.reviewed)?;
    if change.author.kind() != AuthorKind::Person || !matches!(written, Written::Current(_)) {
        return None;
    }
    let distance = edit_distance(&shown.text, text);
    let kind = if shown.text == text { FeedbackKind::Accept } else { FeedbackKind::Edit };
    Some((shown.id, kind, distance))
}

/// Takes back what the revision `id` did, if nothing was done after it.
pub(crate) fn undo(
    db: &dyn Db,
    now: i64,
    asset: i64,
    id: RevisionId,
    author: &Author,
    run: Option<RunId>,
) -> Result<Written> {
    let sql = "SELECT field, lang, action, of_id, previous_id FROM revisions WHERE id = ? AND asset_id = ?";
    let found = db.first(sql, values![id, asset], |row| {
        let of: Option<RevisionId> = row.get(3)?;
        let previous: Option<RevisionId> = row.get(4)?;
        Ok((row.get::<i64>(0)?, row.get::<String>(1)?, row.get::<i64>(2)?, of, previous))
    })?;
    let Some((field, lang, action, of, previous)) = found else {
        return Err(no_revision(id));
    };
    let field = Field::of_code(field).ok_or_else(|| damaged("an unknown field"))?;
    let slot = Slot::new(asset, field, &lang);
    let pointers = slot.current(db)?;
    let actor = author_id(db, author)?;
    // A suggestion that was accepted or rejected waits again, unless another one does.
    let decided = action == Action::Accept.code() || action == Action::Reject.code();
    let was_suggestion = |of: RevisionId| -> Result<bool> {
        let action: i64 = db.value("SELECT action FROM revisions WHERE id = ?", values![of])?;
        Ok(action == Action::Suggest.code())
    };
    let suggestion = match (pointers.suggestion, of) {
        (Some(waiting), _) if waiting == id => None,
        (None, Some(of)) if decided && was_suggestion(of)? => Some(of),
        (waiting, _) => waiting,
    };
    let moved = pointers.revision == Some(id);
    if !moved && suggestion == pointers.suggestion {
        return Ok(Written::Unchanged);
    }
    let revision = if moved { previous } else { pointers.revision };
    let source = slot.pointed(db, revision)?.unwrap_or_else(|| Stored::nothing(actor));
    let new = NewRevision {
        action: Action::Undo,
        text: &source.text,
        author_id: source.author_id,
        actor_id: Some(actor),
        confidence: source.confidence,
        reviewed: source.reviewed,
        of: Some(id),
        previous: pointers.revision,
        run,
        exposure: None,
        now,
    };
    let undone = slot.add(db, &new)?;
    slot.point(db, Pointers { revision, suggestion }, source.confidence)?;
    Ok(Written::Current(undone))
}

impl Stored {
    fn shown(&self) -> Shown {
        Shown {
            revision: self.id,
            text: self.text.clone(),
            reviewed: self.reviewed,
            author: self.author_id,
        }
    }

    fn nothing(author_id: i64) -> Self {
        Self {
            id: 0,
            text: String::new(),
            author_id,
            by_model: false,
            confidence: None,
            reviewed: false,
        }
    }
}

fn nothing_waits() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "no suggestion waits for this text; read the photo again to see its texts",
    )
}

fn no_revision(id: RevisionId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("this text has no revision {id}; read its history for those that it has"),
    )
}
