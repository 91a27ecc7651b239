//! Reads photos with everything about them.

use std::collections::HashMap;

use cutline_error::Result;

use super::value::values;
use super::{Db, Row, Value, damaged};
use crate::types::{
    Action, Asset, Author, AuthorKind, Color, ContentHash, CurrentText, Field, ModelAuthor, Name,
    NameKind, Revision, SuggestedText, Thumbnail,
};

/// Names of a photo that are shown.
const MAX_NAMES: usize = 100;
/// Photos that are read by one statement.
const TOGETHER: usize = 500;

/// The columns of an author, after those of something else.
pub(crate) const AUTHOR: &str = "a.kind, a.name, a.digest, a.parameters, a.prompt";

/// Reads the columns [`AUTHOR`] from `first` on.
pub(crate) fn author(row: &dyn Row, first: usize) -> Result<Author> {
    let kind = AuthorKind::of_code(row.get(first)?).ok_or_else(|| damaged("an unknown author"))?;
    let name = row.get(first + 1)?;
    Ok(match kind {
        AuthorKind::Model => Author::Model(ModelAuthor {
            name,
            digest: row.get(first + 2)?,
            parameters: row.get(first + 3)?,
            prompt: row.get(first + 4)?,
        }),
        AuthorKind::Person => Author::Person { name },
        AuthorKind::Import => Author::Import { name },
    })
}

/// As [`author`], for a join that may find none.
fn maybe_author(row: &dyn Row, first: usize) -> Result<Option<Author>> {
    match row.get::<Option<i64>>(first)? {
        Some(_) => author(row, first).map(Some),
        None => Ok(None),
    }
}

pub(crate) fn field(code: i64) -> Result<Field> {
    Field::of_code(code).ok_or_else(|| damaged("an unknown field"))
}

pub(crate) fn hash(row: &dyn Row, column: usize) -> Result<ContentHash> {
    row.get(column).map(ContentHash)
}

pub(crate) fn asset_id(db: &dyn Db, hash: &ContentHash) -> Result<Option<i64>> {
    db.first("SELECT id FROM assets WHERE hash = ?", values![&hash.0], |row| row.get(0))
}

pub(crate) fn asset(db: &dyn Db, hash: &ContentHash) -> Result<Option<Asset>> {
    match asset_id(db, hash)? {
        Some(id) => asset_by_id(db, id),
        None => Ok(None),
    }
}

fn asset_by_id(db: &dyn Db, id: i64) -> Result<Option<Asset>> {
    Ok(assets(db, &[id])?.remove(&id))
}

/// Photos by their numbers, with a few statements for all of them.
pub(crate) fn assets(db: &dyn Db, ids: &[i64]) -> Result<HashMap<i64, Asset>> {
    let mut assets = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(TOGETHER) {
        let (places, ids) = places(ids);
        let sql = format!(
            "SELECT id, hash, version, format, width, height, bytes, taken_at, added_at, updated_at, colors, \
             mood, EXISTS(SELECT 1 FROM thumbnails t WHERE t.asset_id = s.id) FROM assets s \
             WHERE id IN ({places})"
        );
        db.each(&sql, &ids, &mut |row| {
            let colors: Option<String> = row.get(10)?;
            let asset = Asset {
                hash: hash(row, 1)?,
                version: row.get(2)?,
                format: row.get(3)?,
                width: row.get(4)?,
                height: row.get(5)?,
                bytes: row.get(6)?,
                taken_at: row.get(7)?,
                added_at: row.get(8)?,
                updated_at: row.get(9)?,
                colors: read_colors(colors.as_deref()),
                mood: row.get(11)?,
                has_thumbnail: row.get(12)?,
                names: Vec::new(),
                texts: Vec::new(),
            };
            assets.insert(row.get(0)?, asset);
            Ok(())
        })?;
        names(db, &places, &ids, &mut assets)?;
        texts(db, &places, &ids, &mut assets)?;
    }
    Ok(assets)
}

/// Places for values, and the values.
pub(crate) fn places(ids: &[i64]) -> (String, Vec<Value<'static>>) {
    (vec!["?"; ids.len()].join(", "), ids.iter().map(|id| Value::from(*id)).collect())
}

fn names(
    db: &dyn Db,
    places: &str,
    ids: &[Value<'_>],
    assets: &mut HashMap<i64, Asset>,
) -> Result<()> {
    let sql = format!(
        "SELECT asset_id, kind, name, size, modified_at, seen_at FROM names WHERE asset_id IN ({places}) \
         ORDER BY asset_id, seen_at DESC, name"
    );
    db.each(&sql, ids, &mut |row| {
        if let Some(asset) = assets.get_mut(&row.get(0)?)
            && asset.names.len() < MAX_NAMES
        {
            asset.names.push(name(row, 1)?);
        }
        Ok(())
    })
}

fn name(row: &dyn Row, first: usize) -> Result<Name> {
    Ok(Name {
        kind: NameKind::of_code(row.get(first)?).ok_or_else(|| damaged("an unknown name"))?,
        name: row.get(first + 1)?,
        size: row.get(first + 2)?,
        modified_at: row.get(first + 3)?,
        seen_at: row.get(first + 4)?,
    })
}

fn texts(
    db: &dyn Db,
    places: &str,
    ids: &[Value<'_>],
    assets: &mut HashMap<i64, Asset>,
) -> Result<()> {
    let sql = format!(
        "SELECT c.asset_id, c.field, c.lang, r.text, r.id, r.action, r.reviewed, r.confidence, {AUTHOR}, \
         b.kind, b.name, b.digest, b.parameters, b.prompt, c.suggestion_id \
         FROM current c JOIN revisions r ON r.id = c.revision_id JOIN authors a ON a.id = r.author_id \
         LEFT JOIN authors b ON b.id = r.actor_id WHERE c.asset_id IN ({places}) \
         ORDER BY c.asset_id, c.field, c.lang"
    );
    let mut suggested: Vec<(i64, usize, i64)> = Vec::new();
    db.each(&sql, ids, &mut |row| {
        let id: i64 = row.get(0)?;
        let Some(asset) = assets.get_mut(&id) else { return Ok(()) };
        if let Some(suggestion) = row.get(18)? {
            suggested.push((id, asset.texts.len(), suggestion));
        }
        asset.texts.push(CurrentText {
            field: field(row.get(1)?)?,
            lang: row.get(2)?,
            text: row.get(3)?,
            revision: row.get(4)?,
            action: action(row.get(5)?)?,
            reviewed: row.get(6)?,
            confidence: row.get(7)?,
            author: author(row, 8)?,
            by: maybe_author(row, 13)?,
            suggestion: None,
        });
        Ok(())
    })?;
    // Few texts have one.
    for (id, index, suggestion_id) in suggested {
        let suggestion = suggestion(db, suggestion_id)?;
        if let Some(text) = assets.get_mut(&id).and_then(|asset| asset.texts.get_mut(index)) {
            text.suggestion = suggestion;
        }
    }
    Ok(())
}

fn action(code: i64) -> Result<Action> {
    Action::of_code(code).ok_or_else(|| damaged("an unknown action"))
}

fn suggestion(db: &dyn Db, id: i64) -> Result<Option<SuggestedText>> {
    let sql = format!(
        "SELECT r.text, r.id, r.confidence, {AUTHOR} FROM revisions r JOIN authors a ON a.id = r.author_id \
         WHERE r.id = ?"
    );
    db.first(&sql, values![id], |row| {
        Ok(SuggestedText {
            text: row.get(0)?,
            revision: row.get(1)?,
            confidence: row.get(2)?,
            author: author(row, 3)?,
        })
    })
}

pub(crate) fn named(db: &dyn Db, kind: NameKind, wanted: &str) -> Result<Vec<(ContentHash, Name)>> {
    let sql = "SELECT s.hash, n.kind, n.name, n.size, n.modified_at, n.seen_at FROM names n \
         JOIN assets s ON s.id = n.asset_id WHERE n.name = ? AND n.kind = ? ORDER BY n.seen_at DESC, s.id DESC \
         LIMIT 100";
    db.all(sql, values![wanted, kind.code()], |row| Ok((hash(row, 0)?, name(row, 1)?)))
}

/// The columns of a revision. The tables are `r`, `s` (its photo), `a` and `b` (authors).
pub(crate) const REVISION: &str = "r.id, s.hash, r.field, r.lang, r.action, r.text, r.confidence, r.of_id, \
     r.previous_id, r.run_id, r.created_at, EXISTS(SELECT 1 FROM current c WHERE c.revision_id = r.id), \
     a.kind, a.name, a.digest, a.parameters, a.prompt, b.kind, b.name, b.digest, b.parameters, b.prompt, \
     p.name, v.version, x.name FROM revisions r JOIN assets s ON s.id = r.asset_id JOIN authors a ON a.id = r.author_id \
     LEFT JOIN authors b ON b.id = r.actor_id LEFT JOIN prompt_versions v ON v.id = r.prompt_version_id \
     LEFT JOIN prompts p ON p.id = v.prompt_id LEFT JOIN experiments x ON x.id = r.experiment_id";

/// Reads the columns [`REVISION`].
pub(crate) fn revision(row: &dyn Row) -> Result<Revision> {
    let (prompt, version): (Option<String>, Option<u32>) = (row.get(22)?, row.get(23)?);
    Ok(Revision {
        id: row.get(0)?,
        hash: hash(row, 1)?,
        field: field(row.get(2)?)?,
        lang: row.get(3)?,
        action: action(row.get(4)?)?,
        text: row.get(5)?,
        confidence: row.get(6)?,
        of: row.get(7)?,
        previous: row.get(8)?,
        run: row.get(9)?,
        created_at: row.get(10)?,
        current: row.get(11)?,
        author: author(row, 12)?,
        by: maybe_author(row, 17)?,
        template: prompt.zip(version).map(|(name, version)| format!("{name}:{version}")),
        experiment: row.get(24)?,
    })
}

pub(crate) fn history(db: &dyn Db, hash: &ContentHash) -> Result<Option<Vec<Revision>>> {
    let Some(asset) = asset_id(db, hash)? else { return Ok(None) };
    let sql = format!("SELECT {REVISION} WHERE r.asset_id = ? ORDER BY r.id DESC LIMIT 1000");
    db.all(&sql, values![asset], revision).map(Some)
}

pub(crate) fn thumbnail(db: &dyn Db, hash: &ContentHash) -> Result<Option<Thumbnail>> {
    let sql = "SELECT t.media_type, t.bytes FROM thumbnails t JOIN assets s ON s.id = t.asset_id \
         WHERE s.hash = ?";
    db.first(sql, values![&hash.0], |row| {
        Ok(Thumbnail { media_type: row.get(0)?, bytes: row.get(1)? })
    })
}

/// Colours as they are stored: `[["d2b48c","tan",40]]`.
pub(crate) fn write_colors(colors: &[Color]) -> String {
    let short: Vec<(&str, &str, u8)> = colors
        .iter()
        .map(|color| (color.hex.trim_start_matches('#'), color.name.as_str(), color.percent))
        .collect();
    // Texts and numbers always serialise.
    serde_json::to_string(&short).unwrap_or_default()
}

pub(crate) fn read_colors(stored: Option<&str>) -> Vec<Color> {
    let short: Vec<(String, String, u8)> =
        stored.and_then(|stored| serde_json::from_str(stored).ok()).unwrap_or_default();
    short
        .into_iter()
        .map(|(hex, name, percent)| Color { hex: format!("#{hex}"), name, percent })
        .collect()
}
