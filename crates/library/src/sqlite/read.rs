//! Reads photos with everything about them.

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::error::damaged;
use crate::types::{
    Action, Asset, Author, AuthorKind, Color, ContentHash, CurrentText, Field, ModelAuthor, Name,
    NameKind, Revision, SuggestedText, Thumbnail,
};

/// Names of a photo that are shown.
const MAX_NAMES: usize = 100;

/// The columns of an author, after those of something else.
pub(super) const AUTHOR: &str = "a.kind, a.name, a.digest, a.parameters, a.prompt";

/// Reads the columns [`AUTHOR`] from `first` on.
pub(super) fn author(row: &Row<'_>, first: usize) -> Result<Author> {
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
fn maybe_author(row: &Row<'_>, first: usize) -> Result<Option<Author>> {
    match row.get::<_, Option<i64>>(first)? {
        Some(_) => author(row, first).map(Some),
        None => Ok(None),
    }
}

pub(super) fn field(code: i64) -> Result<Field> {
    Field::of_code(code).ok_or_else(|| damaged("an unknown field"))
}

pub(super) fn hash(row: &Row<'_>, column: usize) -> Result<ContentHash> {
    row.get(column).map(ContentHash)
}

pub(super) fn asset_id(db: &Connection, hash: &ContentHash) -> Result<Option<i64>> {
    db.prepare_cached("SELECT id FROM assets WHERE hash = ?")?
        .query_row([hash.0], |row| row.get(0))
        .optional()
}

pub(super) fn asset(db: &Connection, hash: &ContentHash) -> Result<Option<Asset>> {
    match asset_id(db, hash)? {
        Some(id) => asset_by_id(db, id),
        None => Ok(None),
    }
}

pub(super) fn asset_by_id(db: &Connection, id: i64) -> Result<Option<Asset>> {
    let sql = "SELECT hash, version, format, width, height, bytes, taken_at, added_at, updated_at, colors, \
         mood, EXISTS(SELECT 1 FROM thumbnails WHERE asset_id = id) FROM assets WHERE id = ?";
    let found = db.prepare_cached(sql)?.query_row([id], |row| {
        let colors: Option<String> = row.get(9)?;
        Ok(Asset {
            hash: hash(row, 0)?,
            version: row.get(1)?,
            format: row.get(2)?,
            width: row.get(3)?,
            height: row.get(4)?,
            bytes: row.get(5)?,
            taken_at: row.get(6)?,
            added_at: row.get(7)?,
            updated_at: row.get(8)?,
            colors: read_colors(colors.as_deref()),
            mood: row.get(10)?,
            has_thumbnail: row.get(11)?,
            names: Vec::new(),
            texts: Vec::new(),
        })
    });
    let Some(mut asset) = found.optional()? else { return Ok(None) };
    asset.names = names(db, id)?;
    asset.texts = texts(db, id)?;
    Ok(Some(asset))
}

fn names(db: &Connection, asset: i64) -> Result<Vec<Name>> {
    let sql = "SELECT kind, name, size, modified_at, seen_at FROM names WHERE asset_id = ? \
         ORDER BY seen_at DESC, name LIMIT ?";
    let mut read = db.prepare_cached(sql)?;
    read.query_map((asset, MAX_NAMES), |row| name(row, 0))?.collect()
}

fn name(row: &Row<'_>, first: usize) -> Result<Name> {
    Ok(Name {
        kind: NameKind::of_code(row.get(first)?).ok_or_else(|| damaged("an unknown name"))?,
        name: row.get(first + 1)?,
        size: row.get(first + 2)?,
        modified_at: row.get(first + 3)?,
        seen_at: row.get(first + 4)?,
    })
}

fn texts(db: &Connection, asset: i64) -> Result<Vec<CurrentText>> {
    let sql = format!(
        "SELECT c.field, c.lang, r.text, r.id, r.action, r.reviewed, r.confidence, c.suggestion_id, \
         {AUTHOR}, b.kind, b.name, b.digest, b.parameters, b.prompt \
         FROM current c JOIN revisions r ON r.id = c.revision_id JOIN authors a ON a.id = r.author_id \
         LEFT JOIN authors b ON b.id = r.actor_id WHERE c.asset_id = ?"
    );
    let mut read = db.prepare_cached(&sql)?;
    let mut rows = read.query([asset])?;
    let mut texts = Vec::new();
    while let Some(row) = rows.next()? {
        let suggestion = match row.get::<_, Option<i64>>(7)? {
            Some(id) => suggestion(db, id)?,
            None => None,
        };
        texts.push(CurrentText {
            field: field(row.get(0)?)?,
            lang: row.get(1)?,
            text: row.get(2)?,
            revision: row.get(3)?,
            action: action(row.get(4)?)?,
            reviewed: row.get(5)?,
            confidence: row.get(6)?,
            author: author(row, 8)?,
            by: maybe_author(row, 13)?,
            suggestion,
        });
    }
    Ok(texts)
}

fn action(code: i64) -> Result<Action> {
    Action::of_code(code).ok_or_else(|| damaged("an unknown action"))
}

fn suggestion(db: &Connection, id: i64) -> Result<Option<SuggestedText>> {
    let sql = format!(
        "SELECT r.text, r.id, r.confidence, {AUTHOR} FROM revisions r JOIN authors a ON a.id = r.author_id \
         WHERE r.id = ?"
    );
    db.prepare_cached(&sql)?
        .query_row([id], |row| {
            Ok(SuggestedText {
                text: row.get(0)?,
                revision: row.get(1)?,
                confidence: row.get(2)?,
                author: author(row, 3)?,
            })
        })
        .optional()
}

pub(super) fn named(
    db: &Connection,
    kind: NameKind,
    wanted: &str,
) -> Result<Vec<(ContentHash, Name)>> {
    let sql = "SELECT s.hash, n.kind, n.name, n.size, n.modified_at, n.seen_at FROM names n \
         JOIN assets s ON s.id = n.asset_id WHERE n.name = ? AND n.kind = ? ORDER BY n.seen_at DESC, s.id DESC \
         LIMIT 100";
    let mut read = db.prepare_cached(sql)?;
    read.query_map((wanted, kind.code()), |row| Ok((hash(row, 0)?, name(row, 1)?)))?.collect()
}

/// The columns of a revision. The tables are `r`, `s` (its photo), `a` and `b` (authors).
pub(super) const REVISION: &str = "r.id, s.hash, r.field, r.lang, r.action, r.text, r.confidence, r.of_id, \
     r.previous_id, r.run_id, r.created_at, EXISTS(SELECT 1 FROM current c WHERE c.revision_id = r.id), \
     a.kind, a.name, a.digest, a.parameters, a.prompt, b.kind, b.name, b.digest, b.parameters, b.prompt \
     FROM revisions r JOIN assets s ON s.id = r.asset_id JOIN authors a ON a.id = r.author_id \
     LEFT JOIN authors b ON b.id = r.actor_id";

/// Reads the columns [`REVISION`].
pub(super) fn revision(row: &Row<'_>) -> Result<Revision> {
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
    })
}

pub(super) fn history(db: &Connection, hash: &ContentHash) -> Result<Option<Vec<Revision>>> {
    let Some(asset) = asset_id(db, hash)? else { return Ok(None) };
    let sql = format!("SELECT {REVISION} WHERE r.asset_id = ? ORDER BY r.id DESC LIMIT 1000");
    let mut read = db.prepare_cached(&sql)?;
    read.query_map([asset], revision)?.collect::<Result<_>>().map(Some)
}

pub(super) fn thumbnail(db: &Connection, hash: &ContentHash) -> Result<Option<Thumbnail>> {
    let sql = "SELECT t.media_type, t.bytes FROM thumbnails t JOIN assets s ON s.id = t.asset_id \
         WHERE s.hash = ?";
    let read = |row: &Row<'_>| Ok(Thumbnail { media_type: row.get(0)?, bytes: row.get(1)? });
    db.prepare_cached(sql)?.query_row([hash.0], read).optional()
}

/// Colours as they are stored: `[["d2b48c","tan",40]]`.
pub(super) fn write_colors(colors: &[Color]) -> String {
    let short: Vec<(&str, &str, u8)> = colors
        .iter()
        .map(|color| (color.hex.trim_start_matches('#'), color.name.as_str(), color.percent))
        .collect();
    // Texts and numbers always serialise.
    serde_json::to_string(&short).unwrap_or_default()
}

pub(super) fn read_colors(stored: Option<&str>) -> Vec<Color> {
    let short: Vec<(String, String, u8)> =
        stored.and_then(|stored| serde_json::from_str(stored).ok()).unwrap_or_default();
    short
        .into_iter()
        .map(|(hex, name, percent)| Color { hex: format!("#{hex}"), name, percent })
        .collect()
}
