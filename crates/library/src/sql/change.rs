//! Makes changes inside a transaction.

use std::collections::HashMap;

use cutline_error::{Error, ErrorKind, Result};

use super::derived::Derived;
use super::value::values;
use super::{Db, Reindexed, Value, keys, prompts, texts, vocabularies};
use crate::change::{
    Applied, Change, Feedback, FeedbackKind, NewAsset, NewText, TextChange, Written,
};
use crate::features::Features;
use crate::time::now;
use crate::types::{Author, ContentHash, Name, RevisionId};

/// From so many changes on, photos are looked up and rows are written together.
const MANY: usize = 8;
/// Photos that are looked up by one statement.
const TOGETHER: usize = 500;

/// Makes the changes of one call.
pub(crate) struct Changer<'a> {
    pub(crate) db: &'a dyn Db,
    pub(crate) now: i64,
    /// By how much the uses of labels change.
    pub(crate) uses: HashMap<i64, i64>,
    /// The numbers of labels.
    pub(crate) labels: HashMap<&'static str, HashMap<String, i64>>,
    /// The numbers of authors.
    authors: HashMap<Author, i64>,
    /// The numbers of spaces, and how many numbers their features have.
    spaces: HashMap<String, (i64, usize)>,
    /// Photos with their words before and after.
    pub(crate) words: Vec<Reindexed>,
    /// Labels of photos, to be stored together.
    pub(crate) links: Vec<(i64, i64)>,
    /// The numbers of photos that changes are about, where many are looked up together.
    known: HashMap<ContentHash, Option<i64>>,
    /// Whether difference hashes were added, changed or removed.
    hashes_changed: bool,
}

impl<'a> Changer<'a> {
    pub(crate) fn new(db: &'a dyn Db) -> Self {
        Self {
            db,
            now: now(),
            uses: HashMap::new(),
            labels: HashMap::new(),
            authors: HashMap::new(),
            spaces: HashMap::new(),
            words: Vec::new(),
            links: Vec::new(),
            known: HashMap::new(),
            hashes_changed: false,
        }
    }

    pub(crate) fn all(mut self, changes: Vec<Change>) -> Result<Vec<Applied>> {
        let db = self.db;
        if changes.len() < MANY {
            return self.run(changes);
        }
        self.look_up(&changes)?;
        db.begin_many()?;
        let applied = self.run(changes);
        db.end_many(applied.is_ok())?;
        applied
    }

    /// Finds the photos that the library has, with few statements.
    fn look_up(&mut self, changes: &[Change]) -> Result<()> {
        let hash = |change: &Change| match change {
            Change::Asset(asset) => Some(asset.hash),
            _ => None,
        };
        let hashes: Vec<ContentHash> = changes.iter().filter_map(hash).collect();
        for hashes in hashes.chunks(TOGETHER) {
            let places = vec!["?"; hashes.len()].join(", ");
            let sql = format!("SELECT hash, id FROM assets WHERE hash IN ({places})");
            let values: Vec<Value<'_>> = hashes.iter().map(|hash| (&hash.0).into()).collect();
            self.known.extend(hashes.iter().map(|hash| (*hash, None)));
            self.db.each(&sql, &values, &mut |row| {
                self.known.insert(super::read::hash(row, 0)?, Some(row.get(1)?));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn run(&mut self, changes: Vec<Change>) -> Result<Vec<Applied>> {
        let applied = changes.into_iter().map(|change| self.one(change)).collect::<Result<_>>()?;
        self.add_links()?;
        self.count_labels()?;
        if self.hashes_changed {
            self.count_hashes()?;
        }
        self.index_words()?;
        Ok(applied)
    }

    /// Lets others know that hashes have changed; see `similar::Alike`.
    fn count_hashes(&self) -> Result<()> {
        let sql = "UPDATE counters SET value = value + 1 WHERE name = 'hashes_changed'";
        if self.db.execute(sql, &[])? == 0 {
            self.db.execute("INSERT INTO counters VALUES('hashes_changed', 1)", &[])?;
        }
        Ok(())
    }

    fn one(&mut self, change: Change) -> Result<Applied> {
        match change {
            Change::Asset(asset) => self.asset(*asset),
            Change::Text(change) => self.text(change),
            Change::Feedback(feedback) => self.feedback(&feedback),
            Change::Key(change) => {
                let key = keys::change(self.db, self.now, change)?;
                Ok(Applied::Key(Box::new(key)))
            }
            Change::Usage(entries) => {
                keys::add_usage(self.db, &entries)?;
                Ok(Applied::Usage)
            }
            Change::Purge(hash) => self.purge(&hash),
            Change::Prompt(change) => {
                prompts::change(self.db, self.now, &change).map(Applied::Prompt)
            }
            Change::Vocabulary(change) => {
                vocabularies::change(self.db, self.now, &change).map(Applied::Vocabulary)
            }
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
        match self.known.get(hash) {
            Some(id) => Ok(*id),
            None => super::read::asset_id(self.db, hash),
        }
    }

    fn existing(&self, hash: &ContentHash) -> Result<i64> {
        self.id(hash)?.ok_or_else(|| not_found(hash))
    }

    fn version(&self, asset: i64) -> Result<u64> {
        self.db.value("SELECT version FROM assets WHERE id = ?", values![asset])
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
        self.db.execute(sql, values![asset, self.now]).map(drop)
    }

    fn asset(&mut self, new: NewAsset) -> Result<Applied> {
        let found = self.id(&new.hash)?;
        let created = found.is_none();
        let (asset, before) = match found {
            Some(asset) => (asset, Derived::read(self.db, asset)?),
            None => {
                let asset = self.insert(&new)?;
                self.known.insert(new.hash, Some(asset));
                (asset, Derived::default())
            }
        };
        let facts = !created && self.facts(asset, &new)?;
        self.hashes_changed |= new.dhash.is_some() && (created || facts);
        for (index, name) in new.names.iter().enumerate() {
            let same = |other: &Name| (other.kind, &other.name) == (name.kind, &name.name);
            self.name(asset, name, created && !new.names[..index].iter().any(same))?;
        }
        let written = self.texts(asset, &new, created)?;
        if let Some(features) = &new.features {
            self.features(asset, features, created)?;
        }
        if let Some(thumbnail) = &new.thumbnail {
            // A photo that is captioned often has the same one each time, which need not be written.
            let sql = "INSERT INTO thumbnails(asset_id, media_type, bytes) VALUES(?, ?, ?) \
                 ON CONFLICT(asset_id) DO UPDATE SET media_type = excluded.media_type, \
                 bytes = excluded.bytes WHERE thumbnails.bytes IS DISTINCT FROM excluded.bytes \
                 OR thumbnails.media_type IS DISTINCT FROM excluded.media_type";
            let values = values![asset, &thumbnail.media_type, &thumbnail.bytes];
            self.db.add(sql, values)?;
        }
        let hash = new.hash;
        if created {
            self.begin(asset, Derived::of_new(&new, &written))?;
            return Ok(Applied::Asset { hash, version: 1, created, texts: written });
        }
        let changed = self.update(asset, &before)?;
        if changed || facts || written.iter().any(|written| *written != Written::Unchanged) {
            self.touch(asset)?;
        }
        Ok(Applied::Asset { hash, version: self.version(asset)?, created, texts: written })
    }

    /// Writes or suggests the texts of a photo that was seen.
    fn texts(&mut self, asset: i64, new: &NewAsset, created: bool) -> Result<Vec<Written>> {
        let author_id = match self.authors.get(&new.author) {
            Some(author) => *author,
            None => {
                let author = texts::author_id(self.db, &new.author)?;
                self.authors.insert(new.author.clone(), author);
                author
            }
        };
        let propose = |(index, text): (usize, &NewText)| {
            let same = |other: &NewText| (other.field, &other.lang) == (text.field, &text.lang);
            let slot = texts::Slot {
                asset,
                field: text.field,
                lang: &text.lang,
                is_new: created && !new.texts[..index].iter().any(same),
            };
            let proposed = texts::Proposed {
                text: &text.text,
                confidence: text.confidence,
                author: &new.author,
                author_id,
                run: new.run,
                exposure: text.exposure,
            };
            let written = slot.propose(self.db, self.now, &proposed)?;
            if let Some(exposure) = &text.exposure {
                prompts::expose(self.db, self.now, asset, exposure, text.confidence, written)?;
            }
            Ok(written)
        };
        new.texts.iter().enumerate().map(propose).collect()
    }

    /// The photo was seen with a name, which is `new` for it. No upsert: names are too long for an index of
    /// PostgreSQL.
    fn name(&self, asset: i64, name: &Name, new: bool) -> Result<()> {
        let seen = if name.seen_at == 0 { self.now } else { name.seen_at };
        let Name { kind, name, size, modified_at, .. } = name;
        let values = values![asset, kind.code(), name, *size, *modified_at, seen];
        let sql = "UPDATE names SET size = ?4, modified_at = ?5, seen_at = ?6 \
             WHERE asset_id = ?1 AND kind = ?2 AND name = ?3";
        if new || self.db.execute(sql, values)? == 0 {
            let sql = "INSERT INTO names(asset_id, kind, name, size, modified_at, seen_at) \
                 VALUES(?, ?, ?, ?, ?, ?)";
            self.db.add(sql, values)?;
        }
        Ok(())
    }

    fn insert(&self, new: &NewAsset) -> Result<i64> {
        let sql = "INSERT INTO assets(hash, format, width, height, bytes, dhash, taken_at, at, added_at, \
             updated_at, colors, mood, confidence) \
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, coalesce(?7, ?8), ?8, ?8, ?9, ?10, ?11)";
        let NewAsset { format, width, height, bytes, taken_at, mood, .. } = new;
        let (hash, dhash, colors) = (&new.hash.0, dhash(new), colors(new));
        let shown = |text: &&NewText| text.is_rated() && !text.text.is_empty();
        let confidence = new.texts.iter().find(shown).and_then(|text| text.confidence);
        let values = values![
            hash,
            format,
            *width,
            *height,
            *bytes,
            dhash,
            *taken_at,
            self.now,
            &colors,
            mood,
            confidence.map(f64::from)
        ];
        self.db.insert(sql, values)
    }

    /// Stores what is known about the photo. Returns whether anything is new.
    fn facts(&self, asset: i64, new: &NewAsset) -> Result<bool> {
        let (dhash, colors) = (dhash(new), colors(new));
        let sql = "UPDATE assets SET format = coalesce(?2, format), width = coalesce(?3, width), \
             height = coalesce(?4, height), bytes = coalesce(?5, bytes), dhash = coalesce(?6, dhash), \
             taken_at = coalesce(?7, taken_at), at = coalesce(?7, taken_at, at), \
             colors = coalesce(?8, colors), mood = coalesce(?9, mood) \
             WHERE id = ?1 AND (coalesce(?2, format) IS DISTINCT FROM format OR coalesce(?3, width) IS DISTINCT FROM width \
             OR coalesce(?4, height) IS DISTINCT FROM height OR coalesce(?5, bytes) IS DISTINCT FROM bytes \
             OR coalesce(?6, dhash) IS DISTINCT FROM dhash OR coalesce(?7, taken_at) IS DISTINCT FROM taken_at \
             OR coalesce(?8, colors) IS DISTINCT FROM colors OR coalesce(?9, mood) IS DISTINCT FROM mood)";
        let NewAsset { format, width, height, bytes, taken_at, mood, .. } = new;
        let values =
            values![asset, format, *width, *height, *bytes, dhash, *taken_at, &colors, mood];
        Ok(self.db.execute(sql, values)? > 0)
    }

    fn features(&mut self, asset: i64, features: &Features, created: bool) -> Result<()> {
        let bytes = features.to_bytes()?;
        let space = self.space(&features.space, features.vector.len())?;
        let find = "SELECT id, vector FROM features WHERE asset_id = ? AND space_id = ?";
        let stored: Option<(i64, Vec<u8>)> = match created {
            true => None,
            false => {
                self.db.first(find, values![asset, space], |row| Ok((row.get(0)?, row.get(1)?)))?
            }
        };
        match stored {
            Some((_, same)) if same == bytes => return Ok(()),
            Some((row, _)) => {
                self.db.execute("DELETE FROM features WHERE id = ?", values![row])?;
            }
            None => {}
        }
        let sql = "INSERT INTO features(asset_id, space_id, vector) VALUES(?, ?, ?)";
        self.db.add(sql, values![asset, space, &bytes])
    }

    /// The number of the space `name`, whose features have `dim` numbers.
    fn space(&mut self, name: &str, dim: usize) -> Result<i64> {
        let known = match self.spaces.get(name) {
            Some(known) => Some(*known),
            None => {
                let find = "SELECT id, dim FROM spaces WHERE name = ?";
                self.db.first(find, values![name], |row| Ok((row.get(0)?, row.get(1)?)))?
            }
        };
        let (space, of) = match known {
            Some(known) => known,
            None => {
                let sql = "INSERT INTO spaces(name, dim) VALUES(?, ?)";
                (self.db.insert(sql, values![name, dim])?, dim)
            }
        };
        self.spaces.insert(name.to_owned(), (space, of));
        if of == dim {
            return Ok(space);
        }
        Err(Error::parameter(
            "features",
            format!("features of this space have {of} numbers; use another space"),
        ))
    }

    fn text(&mut self, change: TextChange) -> Result<Applied> {
        let asset = self.existing(&change.hash)?;
        crate::rules::check_version(change.if_version, self.version(asset)?)?;
        self.with_derived(asset, |this| {
            let slot = texts::Slot::new(asset, change.field, &change.lang);
            let edit = slot.edit(this.db, this.now, &change)?;
            if let Some((revision, kind, distance)) = edit.feedback {
                this.add_feedback(asset, revision, kind, "", Some(distance), &change.author)?;
            }
            Ok(edit.written)
        })
    }

    fn feedback(&self, feedback: &Feedback) -> Result<Applied> {
        let asset = self.existing(&feedback.hash)?;
        let slot = texts::Slot::new(asset, feedback.field, &feedback.lang);
        let revision = match feedback.revision {
            Some(revision) => slot.revision(self.db, revision)?.map(|found| found.id),
            None => slot.current(self.db)?.revision,
        };
        let revision = revision.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the photo has no such text; read the photo again, and rate a text that it has",
            )
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
        let values = values![asset, revision, kind.code(), reason, distance, author, self.now];
        self.db.execute(sql, values).map(drop)
    }

    /// Removes the photo with everything that follows from it.
    fn purge(&mut self, hash: &ContentHash) -> Result<Applied> {
        let Some(asset) = self.id(hash)? else { return Ok(Applied::Purged(false)) };
        let before = Derived::read(self.db, asset)?;
        self.replace(asset, &before, &Derived::default())?;
        self.hashes_changed = true;
        let sql = "UPDATE counters SET value = value + 1 WHERE name = 'features_removed' \
             AND EXISTS(SELECT 1 FROM features WHERE asset_id = ?)";
        self.db.execute(sql, values![asset])?;
        self.db.execute("DELETE FROM assets WHERE id = ?", values![asset])?;
        self.known.insert(*hash, None);
        Ok(Applied::Purged(true))
    }
}

/// The difference hash as databases store it.
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
