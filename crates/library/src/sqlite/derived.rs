//! What follows from the other tables: the words that are searched, and the labels of filters.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Result};

use super::change::Changer;
use super::read::read_colors;
use crate::change::{NewAsset, NewText, Written};
use crate::types::{AuthorKind, Field};

/// Captions, alternative texts, tags, names.
pub(super) type Words = [Option<String>; 4];

/// What follows from the rows of one photo.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Derived {
    /// What is searched; `None` if the photo is not in the library.
    words: Option<Words>,
    labels: BTreeSet<(&'static str, String)>,
}

impl Derived {
    pub(super) fn read(db: &Connection, asset: i64) -> Result<Self> {
        let sql = "SELECT caption, alt_text, tags, names FROM documents WHERE id = ?";
        let words = db
            .prepare_cached(sql)?
            .query_row([asset], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))
            .optional()?;
        Ok(Self { words, labels: labels(db, asset)? })
    }

    /// What [`read`](Self::read) would find for a photo that was just added. The check of a library
    /// compares.
    pub(super) fn of_new(new: &NewAsset, written: &[Written]) -> Self {
        let mut texts: Vec<&NewText> = Vec::new();
        for (text, written) in new.texts.iter().zip(written) {
            if matches!(written, Written::Current(_)) {
                // Of two texts for the same place, the last one is shown.
                texts.retain(|other| (other.field, &other.lang) != (text.field, &text.lang));
                texts.push(text);
            }
        }
        texts.sort_by_key(|text| (text.field, &text.lang));
        let words = |field: Field| -> Option<String> {
            let texts = texts.iter().filter(|text| text.field == field);
            let texts: Vec<&str> = texts.map(|text| text.text.as_str()).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        };
        let mut names: Vec<(i64, &str)> =
            new.names.iter().map(|name| (name.kind.code(), name.name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        let names: Vec<&str> = names.into_iter().map(|(_, name)| name).collect();
        let names = (!names.is_empty()).then(|| names.join("\n"));
        let mut labels = BTreeSet::new();
        labels.extend(new.colors.iter().map(|color| ("color", color.name.to_lowercase())));
        labels.extend(new.mood.iter().map(|mood| ("mood", mood.to_lowercase())));
        let mut missing: BTreeSet<Field> = Field::ALL.iter().copied().collect();
        for text in &texts {
            missing.remove(&text.field);
            if text.field == Field::Tags {
                labels.extend(text.text.lines().map(|tag| ("tag", tag.to_lowercase())));
            }
        }
        if !texts.is_empty() {
            match new.author.kind() {
                AuthorKind::Model => labels.insert(("model", new.author.name().to_lowercase())),
                _ => labels.insert(("is", "reviewed".to_owned())),
            };
        }
        labels.extend(missing.into_iter().map(|field| ("missing", field.as_str().to_owned())));
        let words = [words(Field::Caption), words(Field::AltText), words(Field::Tags), names];
        Self { words: Some(words), labels }
    }

    /// The labels with their values.
    pub(super) fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.labels.iter().map(|(kind, value)| (*kind, value.as_str()))
    }
}

fn labels(db: &Connection, asset: i64) -> Result<BTreeSet<(&'static str, String)>> {
    let mut labels = BTreeSet::new();
    let mut read = db.prepare_cached("SELECT colors, mood FROM assets WHERE id = ?")?;
    let colors: Option<(Option<String>, Option<String>)> =
        read.query_row([asset], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((colors, mood)) = colors else { return Ok(labels) };
    labels.extend(
        read_colors(colors.as_deref())
            .into_iter()
            .map(|color| ("color", color.name.to_lowercase())),
    );
    labels.extend(mood.map(|mood| ("mood", mood.to_lowercase())));
    let mut missing = Field::ALL.iter().copied().collect::<BTreeSet<_>>();
    let sql = "SELECT c.field, r.text, r.reviewed, a.kind, a.name, c.suggestion_id IS NOT NULL \
         FROM current c LEFT JOIN revisions r ON r.id = c.revision_id \
         LEFT JOIN authors a ON a.id = r.author_id WHERE c.asset_id = ?";
    let mut read = db.prepare_cached(sql)?;
    let mut rows = read.query([asset])?;
    while let Some(row) = rows.next()? {
        if row.get(5)? {
            labels.insert(("is", "suggested".to_owned()));
        }
        let Some(text) = row.get::<_, Option<String>>(1)? else { continue };
        if row.get(2)? {
            labels.insert(("is", "reviewed".to_owned()));
        }
        if text.is_empty() {
            if row.get(2)? {
                labels.insert(("is", "cleared".to_owned()));
            }
            continue;
        }
        let field = Field::of_code(row.get(0)?);
        if let Some(field) = field {
            missing.remove(&field);
        }
        if row.get::<_, i64>(3)? == AuthorKind::Model.code() {
            labels.insert(("model", row.get::<_, String>(4)?.to_lowercase()));
        }
        if field == Some(Field::Tags) {
            labels.extend(text.lines().map(|tag| ("tag", tag.to_lowercase())));
        }
    }
    labels.extend(missing.into_iter().map(|field| ("missing", field.as_str().to_owned())));
    Ok(labels)
}

impl Changer<'_> {
    /// Brings words and labels of a photo up to date; `before` is what followed before the change.
    pub(super) fn update(&mut self, asset: i64, before: &Derived) -> Result<bool> {
        let after = Derived::read(self.db, asset)?;
        let changed = after != *before;
        if changed {
            self.replace(asset, before, &after)?;
        }
        Ok(changed)
    }

    pub(super) fn replace(&mut self, asset: i64, before: &Derived, after: &Derived) -> Result<()> {
        if before.words != after.words {
            self.words.push((asset, before.words.clone(), after.words.clone()));
        }
        for (kind, value) in before.labels.difference(&after.labels) {
            let Some(label) = label_id(self.db, kind, value)? else { continue };
            let sql = "DELETE FROM asset_labels WHERE label_id = ? AND asset_id = ?";
            if self.db.prepare_cached(sql)?.execute((label, asset))? > 0 {
                *self.uses.entry(label).or_default() -= 1;
            }
        }
        for (kind, value) in after.labels.difference(&before.labels) {
            let label = match label_id(self.db, kind, value)? {
                Some(label) => label,
                None => {
                    self.db
                        .execute("INSERT INTO labels(kind, value) VALUES(?, ?)", (kind, value))?;
                    self.db.last_insert_rowid()
                }
            };
            let sql = "INSERT OR IGNORE INTO asset_labels(label_id, asset_id) VALUES(?, ?)";
            if self.db.prepare_cached(sql)?.execute((label, asset))? > 0 {
                *self.uses.entry(label).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Brings the index up to date. All at the end, because the index writes to the disk whenever a
    /// savepoint begins, and some statements are savepoints.
    pub(super) fn index_words(&mut self) -> Result<()> {
        let delete = "INSERT INTO words(words, rowid, caption, alt_text, tags, names) \
             VALUES('delete', ?, ?, ?, ?, ?)";
        let insert =
            "INSERT INTO words(rowid, caption, alt_text, tags, names) VALUES(?, ?, ?, ?, ?)";
        for (asset, before, after) in self.words.drain(..) {
            if let Some([caption, alt_text, tags, names]) = before {
                let values = (asset, caption, alt_text, tags, names);
                self.db.prepare_cached(delete)?.execute(values)?;
            }
            if let Some([caption, alt_text, tags, names]) = after {
                let values = (asset, caption, alt_text, tags, names);
                self.db.prepare_cached(insert)?.execute(values)?;
            }
        }
        Ok(())
    }

    /// Stores how often labels are used, and removes those that are not.
    pub(super) fn count_labels(&mut self) -> Result<()> {
        for (label, change) in self.uses.drain() {
            let sql = "UPDATE labels SET uses = uses + ?2 WHERE id = ?1";
            self.db.prepare_cached(sql)?.execute((label, change))?;
            if change < 0 {
                self.db
                    .prepare_cached("DELETE FROM labels WHERE id = ? AND uses <= 0")?
                    .execute([label])?;
            }
        }
        Ok(())
    }
}

/// The number of a label, if a photo has it.
pub(super) fn label_id(db: &Connection, kind: &str, value: &str) -> Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM labels WHERE kind = ? AND value = ?")?
        .query_row((kind, value), |row| row.get(0))
        .optional()
}
