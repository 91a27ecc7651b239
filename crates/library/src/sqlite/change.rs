//! Makes changes inside a transaction.

use std::collections::HashMap;

use cutline_error::{Error, ErrorKind};
use rusqlite::{OptionalExtension, Result, Transaction};

use super::derived::{Derived, Words};
use super::error::carried;
use super::texts;
use crate::change::{Applied, Change, Feedback, FeedbackKind, NewAsset, TextChange, Written};
use crate::features::Features;
use crate::time::now;
use crate::types::{Author, ContentHash, RevisionId};

/// Makes the changes of one call.
pub(super) struct Changer<'a> {
    pub(super) db: &'a Transaction<'a>,
    pub(super) now: i64,
    /// By how much the uses of labels change.
    pub(super) uses: HashMap<i64, i64>,
    /// Photos with their words before and after.
    pub(super) words: Vec<(i64, Option<Words>, Option<Words>)>,
}

impl<'a> Changer<'a> {
    pub(super) fn new(db: &'a Transaction<'a>) -> Self {
        Self { db, now: now(), uses: HashMap::new(), words: Vec::new() }
    }

    pub(super) fn all(mut self, changes: Vec<Change>) -> Result<Vec<Applied>> {
        let applied = changes.into_iter().map(|change| self.one(change)).collect::<Result<_>>()?;
        self.count_labels()?;
        self.index_words()?;
        Ok(applied)
    }

    fn one(&mut self, change: Change) -> Result<Applied> {
        match change {
            Change::Asset(asset) => self.asset(*asset),
            Change::Text(change) => self.text(change),
            Change::Feedback(feedback) => self.feedback(&feedback),
            Change::Purge(hash) => self.purge(&hash),
            Change::Undo { hash, revision, author, run } => {
                let asset = self.existing(&hash)?;
                self.with_derived(asset, |this| {
                    texts::undo(this.db, this.now, asset, revision, &author, run)
                })
            }
        }
    }

    /// The number of a photo.
    fn id(&self, hash: &ContentHash) -> Result<Option<i64>> {
        let mut find = self.db.prepare_cached("SELECT id FROM assets WHERE hash = ?")?;
        find.query_row([hash.0], |row| row.get(0)).optional()
    }

    fn existing(&self, hash: &ContentHash) -> Result<i64> {
        self.id(hash)?.ok_or_else(|| carried(not_found(hash)))
    }

    fn version(&self, asset: i64) -> Result<u64> {
        let mut read = self.db.prepare_cached("SELECT version FROM assets WHERE id = ?")?;
        read.query_row([asset], |row| row.get(0))
    }

    /// Runs `change` and brings what follows from the texts up to date.
    fn with_derived(
        &mut self,
        asset: i64,
        change: impl FnOnce(&mut Self) -> Result<Written>,
    ) -> Result<Applied> {
        let before = Derived::read(self.db, asset)?;
        let written = change(self)?;
        if written != Written::Unchanged {
            self.update(asset, &before)?;
            self.touch(asset)?;
        }
        Ok(Applied::Text { version: self.version(asset)?, written })
    }

    fn touch(&self, asset: i64) -> Result<()> {
        let sql = "UPDATE assets SET version = version + 1, updated_at = ?2 WHERE id = ?1";
        self.db.prepare_cached(sql)?.execute((asset, self.now)).map(drop)
    }

    fn asset(&mut self, new: NewAsset) -> Result<Applied> {
        let found = self.id(&new.hash)?;
        let created = found.is_none();
        let (asset, before) = match found {
            Some(asset) => (asset, Derived::read(self.db, asset)?),
            None => (self.insert(&new)?, Derived::default()),
        };
        let facts = !created && self.facts(asset, &new)?;
        for name in &new.names {
            let sql = "INSERT INTO names(asset_id, kind, name, size, modified_at, seen_at) \
                 VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET size = excluded.size, \
                 modified_at = excluded.modified_at, seen_at = excluded.seen_at";
            let seen = if name.seen_at == 0 { self.now } else { name.seen_at };
            let values = (asset, name.kind.code(), &name.name, name.size, name.modified_at, seen);
            self.db.prepare_cached(sql)?.execute(values)?;
        }
        let author = texts::author_id(self.db, &new.author)?;
        let mut written = Vec::with_capacity(new.texts.len());
        for text in &new.texts {
            let slot = texts::Slot { asset, field: text.field, lang: &text.lang };
            let proposed = texts::Proposed {
                text: &text.text,
                confidence: text.confidence,
                author: &new.author,
                author_id: author,
                run: new.run,
            };
            written.push(slot.propose(self.db, self.now, &proposed)?);
        }
        if let Some(features) = &new.features {
            self.features(asset, features)?;
        }
        if let Some(thumbnail) = &new.thumbnail {
            // A photo that is captioned often has the same one each time, which need not be written.
            let sql = "INSERT INTO thumbnails(asset_id, media_type, bytes) VALUES(?, ?, ?) \
                 ON CONFLICT DO UPDATE SET media_type = excluded.media_type, bytes = excluded.bytes \
                 WHERE bytes IS NOT excluded.bytes OR media_type IS NOT excluded.media_type";
            self.db.prepare_cached(sql)?.execute((
                asset,
                &thumbnail.media_type,
                &thumbnail.bytes,
            ))?;
        }
        let changed = if created {
            self.replace(asset, &before, &Derived::of_new(&new, &written))?;
            true
        } else {
            self.update(asset, &before)?
        };
        let rewritten = written.iter().any(|written| *written != Written::Unchanged);
        if !created && (changed || rewritten || facts) {
            self.touch(asset)?;
        }
        Ok(Applied::Asset {
            hash: new.hash,
            version: self.version(asset)?,
            created,
            texts: written,
        })
    }

    fn insert(&self, new: &NewAsset) -> Result<i64> {
        let sql = "INSERT INTO assets(hash, format, width, height, bytes, dhash, taken_at, at, added_at, \
             updated_at, colors, mood) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ifnull(?7, ?8), ?8, ?8, ?9, ?10)";
        let NewAsset { format, width, height, bytes, taken_at, mood, .. } = new;
        let (hash, dhash, colors) = (new.hash.0, dhash(new), colors(new));
        let values = (hash, format, width, height, bytes, dhash, taken_at, self.now, colors, mood);
        self.db.prepare_cached(sql)?.execute(values)?;
        Ok(self.db.last_insert_rowid())
    }

    /// Stores what is known about the photo. Returns whether anything is new.
    fn facts(&self, asset: i64, new: &NewAsset) -> Result<bool> {
        let (dhash, colors) = (dhash(new), colors(new));
        let sql = "UPDATE assets SET format = ifnull(?2, format), width = ifnull(?3, width), \
             height = ifnull(?4, height), bytes = ifnull(?5, bytes), dhash = ifnull(?6, dhash), \
             taken_at = ifnull(?7, taken_at), at = coalesce(?7, taken_at, at), \
             colors = ifnull(?8, colors), mood = ifnull(?9, mood) \
             WHERE id = ?1 AND (ifnull(?2, format) IS NOT format OR ifnull(?3, width) IS NOT width \
             OR ifnull(?4, height) IS NOT height OR ifnull(?5, bytes) IS NOT bytes \
             OR ifnull(?6, dhash) IS NOT dhash OR ifnull(?7, taken_at) IS NOT taken_at \
             OR ifnull(?8, colors) IS NOT colors OR ifnull(?9, mood) IS NOT mood)";
        let NewAsset { format, width, height, bytes, taken_at, mood, .. } = new;
        let values = (asset, format, width, height, bytes, dhash, taken_at, colors, mood);
        Ok(self.db.prepare_cached(sql)?.execute(values)? > 0)
    }

    fn features(&self, asset: i64, features: &Features) -> Result<()> {
        let bytes = features.to_bytes().map_err(carried)?;
        let find = "SELECT id, dim FROM spaces WHERE name = ?";
        let space: Option<(i64, usize)> = self
            .db
            .prepare_cached(find)?
            .query_row([&features.space], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let space = match space {
            Some((space, dim)) if dim == features.vector.len() => space,
            Some((_, dim)) => {
                return Err(carried(Error::parameter(
                    "features",
                    format!("features of this space have {dim} numbers; use another space"),
                )));
            }
            None => {
                let sql = "INSERT INTO spaces(name, dim) VALUES(?, ?)";
                self.db.execute(sql, (&features.space, features.vector.len()))?;
                self.db.last_insert_rowid()
            }
        };
        let mut find = self.db.prepare_cached(
            "SELECT id, vector FROM features WHERE asset_id = ? AND space_id = ?",
        )?;
        let stored: Option<(i64, Vec<u8>)> =
            find.query_row((asset, space), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match stored {
            Some((_, same)) if same == bytes => return Ok(()),
            Some((row, _)) => {
                self.db.execute("DELETE FROM features WHERE id = ?", [row])?;
            }
            None => {}
        }
        let sql = "INSERT INTO features(asset_id, space_id, vector) VALUES(?, ?, ?)";
        self.db.prepare_cached(sql)?.execute((asset, space, bytes)).map(drop)
    }

    fn text(&mut self, change: TextChange) -> Result<Applied> {
        let asset = self.existing(&change.hash)?;
        crate::rules::check_version(change.if_version, self.version(asset)?).map_err(carried)?;
        self.with_derived(asset, |this| {
            let slot = texts::Slot { asset, field: change.field, lang: &change.lang };
            let edit = slot.edit(this.db, this.now, &change)?;
            if let Some((revision, kind, distance)) = edit.feedback {
                this.add_feedback(asset, revision, kind, "", Some(distance), &change.author)?;
            }
            Ok(edit.written)
        })
    }

    fn feedback(&self, feedback: &Feedback) -> Result<Applied> {
        let asset = self.existing(&feedback.hash)?;
        let slot = texts::Slot { asset, field: feedback.field, lang: &feedback.lang };
        let revision = match feedback.revision {
            Some(revision) => slot.revision(self.db, revision)?.map(|found| found.id),
            None => slot.current(self.db)?.revision,
        };
        let revision = revision.ok_or_else(|| {
            carried(Error::new(
                ErrorKind::NotFound,
                "the photo has no such text; read the photo again, and rate a text that it has",
            ))
        })?;
        self.add_feedback(
            asset,
            revision,
            feedback.kind,
            &feedback.reason,
            None,
            &feedback.author,
        )?;
        Ok(Applied::Feedback)
    }

    fn add_feedback(
        &self,
        asset: i64,
        revision: RevisionId,
        kind: FeedbackKind,
        reason: &str,
        distance: Option<f64>,
        author: &Author,
    ) -> Result<()> {
        let author = texts::author_id(self.db, author)?;
        let sql = "INSERT INTO feedback(asset_id, revision_id, kind, reason, edit_distance, author_id, \
             created_at) VALUES(?, ?, ?, ?, ?, ?, ?)";
        let values = (asset, revision, kind.code(), reason, distance, author, self.now);
        self.db.prepare_cached(sql)?.execute(values).map(drop)
    }

    /// Removes the photo with everything that follows from it.
    fn purge(&mut self, hash: &ContentHash) -> Result<Applied> {
        let Some(asset) = self.id(hash)? else { return Ok(Applied::Purged(false)) };
        let before = Derived::read(self.db, asset)?;
        self.replace(asset, &before, &Derived::default())?;
        let sql = "UPDATE counters SET value = value + 1 WHERE name = 'features_removed' \
             AND EXISTS(SELECT 1 FROM features WHERE asset_id = ?)";
        self.db.execute(sql, [asset])?;
        self.db.execute("DELETE FROM assets WHERE id = ?", [asset])?;
        Ok(Applied::Purged(true))
    }
}

/// The difference hash as SQLite stores it.
fn dhash(new: &NewAsset) -> Option<i64> {
    new.dhash.map(|dhash| i64::from_ne_bytes(dhash.to_ne_bytes()))
}

fn colors(new: &NewAsset) -> Option<String> {
    (!new.colors.is_empty()).then(|| super::read::write_colors(&new.colors))
}

fn not_found(hash: &ContentHash) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("the library has no photo {hash}; add it first, or check the hash"),
    )
}
