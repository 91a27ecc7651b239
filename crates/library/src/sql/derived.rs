//! What follows from the other tables: the words that are searched, and the labels of filters.

use std::collections::{BTreeSet, HashMap};

use cutline_error::Result;

use super::change::Changer;
use super::read::{self, read_colors};
use super::value::values;
use super::{Db, Row, Value};
use crate::change::{NewAsset, NewText, Written};
use crate::types::{AuthorKind, Field};

/// Captions, alternative texts, tags, names.
pub(crate) type Words = [Option<String>; 4];

/// What follows from the rows of one photo.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Derived {
    /// What is searched; `None` if the photo is not in the library.
    words: Option<Words>,
    labels: Labels,
}

impl Derived {
    pub(crate) fn read(db: &dyn Db, asset: i64) -> Result<Self> {
        let sql = "SELECT caption, alt_text, tags, names FROM documents WHERE id = ?";
        let words = db.first(sql, values![asset], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
        })?;
        let labels = labels(db, &[asset])?.remove(&asset).unwrap_or_default();
        Ok(Self { words, labels })
    }

    /// What [`read`](Self::read) would find for a photo that was just added. The check of a library
    /// compares.
    pub(crate) fn of_new(new: &NewAsset, written: &[Written]) -> Self {
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
        let mut missing: BTreeSet<Field> = Field::USUAL.into_iter().collect();
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
}

/// Kinds and values.
pub(crate) type Labels = BTreeSet<(&'static str, String)>;

/// What is known of a photo's labels while its rows are read.
struct Labelled {
    labels: Labels,
    missing: BTreeSet<Field>,
}

/// The labels of photos, with two statements for many.
pub(crate) fn labels(db: &dyn Db, assets: &[i64]) -> Result<HashMap<i64, Labels>> {
    let mut all = HashMap::with_capacity(assets.len());
    for assets in assets.chunks(500) {
        let (places, values) = read::places(assets);
        let sql = format!("SELECT id, colors, mood FROM assets WHERE id IN ({places})");
        db.each(&sql, &values, &mut |row| {
            let (colors, mood): (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
            let colors = read_colors(colors.as_deref()).into_iter();
            let mut labels: Labels =
                colors.map(|color| ("color", color.name.to_lowercase())).collect();
            labels.extend(mood.map(|mood| ("mood", mood.to_lowercase())));
            let missing = Field::USUAL.into_iter().collect();
            all.insert(row.get::<i64>(0)?, Labelled { labels, missing });
            Ok(())
        })?;
        let sql = format!(
            "SELECT c.asset_id, c.field, r.text, r.reviewed, a.kind, a.name, c.suggestion_id IS NOT NULL \
             FROM current c LEFT JOIN revisions r ON r.id = c.revision_id \
             LEFT JOIN authors a ON a.id = r.author_id WHERE c.asset_id IN ({places})"
        );
        db.each(&sql, &values, &mut |row| match all.get_mut(&row.get(0)?) {
            Some(labelled) => labelled.add(row),
            None => Ok(()),
        })?;
    }
    Ok(all.into_iter().map(|(asset, labelled)| (asset, labelled.end())).collect())
}

impl Labelled {
    /// Adds those that follow from a current text.
    fn add(&mut self, row: &dyn Row) -> Result<()> {
        let Self { labels, missing } = self;
        if row.get(6)? {
            labels.insert(("is", "suggested".to_owned()));
        }
        let Some(text) = row.get::<Option<String>>(2)? else { return Ok(()) };
        let reviewed = row.get(3)?;
        if reviewed {
            labels.insert(("is", "reviewed".to_owned()));
        }
        if text.is_empty() {
            if reviewed {
                labels.insert(("is", "cleared".to_owned()));
            }
            return Ok(());
        }
        let field = Field::of_code(row.get(1)?);
        if let Some(field) = field {
            missing.remove(&field);
        }
        if row.get::<i64>(4)? == AuthorKind::Model.code() {
            labels.insert(("model", row.get::<String>(5)?.to_lowercase()));
        }
        if field == Some(Field::Tags) {
            labels.extend(text.lines().map(|tag| ("tag", tag.to_lowercase())));
        }
        Ok(())
    }

    fn end(self) -> Labels {
        let Self { mut labels, missing } = self;
        labels.extend(missing.into_iter().map(|field| ("missing", field.as_str().to_owned())));
        labels
    }
}

impl Changer<'_> {
    /// Brings words and labels of a photo up to date; `before` is what followed before the change.
    pub(crate) fn update(&mut self, asset: i64, before: &Derived) -> Result<bool> {
        let after = Derived::read(self.db, asset)?;
        let changed = after != *before;
        if changed {
            self.replace(asset, before, &after)?;
        }
        Ok(changed)
    }

    pub(crate) fn replace(&mut self, asset: i64, before: &Derived, after: &Derived) -> Result<()> {
        self.add_links()?;
        if before.words != after.words {
            self.words.push((asset, before.words.clone(), after.words.clone()));
        }
        for (kind, value) in before.labels.difference(&after.labels) {
            let Some(label) = self.label(kind, value)? else { continue };
            let sql = "DELETE FROM asset_labels WHERE label_id = ? AND asset_id = ?";
            if self.db.execute(sql, values![label, asset])? > 0 {
                *self.uses.entry(label).or_default() -= 1;
            }
        }
        for (kind, value) in after.labels.difference(&before.labels) {
            let label = match self.label(kind, value)? {
                Some(label) => label,
                None => self.add_label(kind, value)?,
            };
            let sql = "INSERT INTO asset_labels(label_id, asset_id) VALUES(?, ?) \
                 ON CONFLICT DO NOTHING";
            if self.db.execute(sql, values![label, asset])? > 0 {
                *self.uses.entry(label).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Words and labels of a photo that was just added.
    pub(crate) fn begin(&mut self, asset: i64, derived: Derived) -> Result<()> {
        for (kind, value) in &derived.labels {
            let label = match self.label(kind, value)? {
                Some(label) => label,
                None => self.add_label(kind, value)?,
            };
            *self.uses.entry(label).or_default() += 1;
            self.links.push((label, asset));
        }
        self.words.push((asset, None, derived.words));
        Ok(())
    }

    /// Stores the labels of new photos. In their order, so that rows that belong together are written
    /// together.
    pub(crate) fn add_links(&mut self) -> Result<()> {
        let mut links = std::mem::take(&mut self.links);
        links.sort_unstable();
        // A statement has at least 999 values.
        for links in links.chunks(400) {
            let values: Vec<Value<'_>> = links
                .iter()
                .flat_map(|(label, asset)| [(*label).into(), (*asset).into()])
                .collect();
            let rows = vec!["(?, ?)"; links.len()].join(", ");
            let sql = format!("INSERT INTO asset_labels(label_id, asset_id) VALUES{rows}");
            self.db.execute(&sql, &values)?;
        }
        Ok(())
    }

    fn label(&mut self, kind: &'static str, value: &str) -> Result<Option<i64>> {
        if let Some(label) = self.labels.get(kind).and_then(|labels| labels.get(value)) {
            return Ok(Some(*label));
        }
        let label = label_id(self.db, kind, value)?;
        if let Some(label) = label {
            self.labels.entry(kind).or_default().insert(value.to_owned(), label);
        }
        Ok(label)
    }

    fn add_label(&mut self, kind: &'static str, value: &str) -> Result<i64> {
        let sql = "INSERT INTO labels(kind, value) VALUES(?, ?)";
        let label = self.db.insert(sql, values![kind, value])?;
        self.labels.entry(kind).or_default().insert(value.to_owned(), label);
        Ok(label)
    }

    /// Brings the index up to date. All at the end, because the index of SQLite writes to the disk
    /// whenever a savepoint begins, and some statements are savepoints.
    pub(crate) fn index_words(&mut self) -> Result<()> {
        self.db.index(&std::mem::take(&mut self.words))
    }

    /// Stores how often labels are used, and removes those that are not.
    pub(crate) fn count_labels(&mut self) -> Result<()> {
        for (label, change) in self.uses.drain() {
            let sql = "UPDATE labels SET uses = uses + ?2 WHERE id = ?1";
            self.db.execute(sql, values![label, change])?;
            if change < 0 {
                let sql = "DELETE FROM labels WHERE id = ? AND uses <= 0";
                self.db.execute(sql, values![label])?;
            }
        }
        Ok(())
    }
}

/// The number of a label, if a photo has it.
pub(crate) fn label_id(db: &dyn Db, kind: &str, value: &str) -> Result<Option<i64>> {
    let sql = "SELECT id FROM labels WHERE kind = ? AND value = ?";
    db.first(sql, values![kind, value], |row| row.get(0))
}
