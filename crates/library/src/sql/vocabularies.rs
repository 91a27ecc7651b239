//! Vocabularies and their versions.

use cutline_error::Result;

use super::read::{self, AUTHOR};
use super::value::values;
use super::{Db, Row, texts};
use crate::vocabularies::{
    StoredVocabulary, VocabularyChange, VocabularyContent, VocabularyHistory, VocabularyVersion,
    no_version, no_vocabulary,
};

/// Vocabularies and versions that are listed.
const LISTED: usize = 1000;

const VERSION: &str = "v.version, v.digest, v.message, v.created_at";

/// The number of a vocabulary that is not deleted, and the vocabulary.
fn existing(db: &dyn Db, name: &str) -> Result<Option<(i64, StoredVocabulary)>> {
    let sql = "SELECT id, name, latest, current_version, created_at FROM vocabularies \
         WHERE name = ? AND current_version IS NOT NULL";
    db.first(sql, values![name], |row| Ok((row.get(0)?, vocabulary(row)?)))
}

fn vocabulary(row: &dyn Row) -> Result<StoredVocabulary> {
    Ok(StoredVocabulary {
        name: row.get(1)?,
        latest: row.get(2)?,
        current: row.get(3)?,
        created_at: row.get(4)?,
    })
}

fn version(row: &dyn Row) -> Result<VocabularyVersion> {
    Ok(VocabularyVersion {
        version: row.get(0)?,
        digest: row.get(1)?,
        message: row.get(2)?,
        created_at: row.get(3)?,
        author: read::author(row, 4)?,
    })
}

pub(crate) fn all(db: &dyn Db) -> Result<Vec<StoredVocabulary>> {
    let sql = "SELECT id, name, latest, current_version, created_at FROM vocabularies \
         WHERE current_version IS NOT NULL ORDER BY name LIMIT ?";
    db.all(sql, values![LISTED], vocabulary)
}

pub(crate) fn history(db: &dyn Db, name: &str) -> Result<Option<VocabularyHistory>> {
    let Some((id, vocabulary)) = existing(db, name)? else { return Ok(None) };
    let sql = format!(
        "SELECT {VERSION}, {AUTHOR} FROM vocabulary_versions v JOIN authors a ON a.id = v.author_id \
         WHERE v.vocabulary_id = ? ORDER BY v.version DESC LIMIT ?"
    );
    let versions = db.all(&sql, values![id, LISTED], version)?;
    Ok(Some(VocabularyHistory { vocabulary, versions }))
}

/// The version of this number, or the one that counts.
pub(crate) fn content(
    db: &dyn Db,
    name: &str,
    number: Option<u32>,
) -> Result<Option<VocabularyContent>> {
    let Some((id, vocabulary)) = existing(db, name)? else { return Ok(None) };
    let number = number.unwrap_or(vocabulary.current);
    let sql = format!(
        "SELECT {VERSION}, {AUTHOR}, v.content FROM vocabulary_versions v \
         JOIN authors a ON a.id = v.author_id WHERE v.vocabulary_id = ? AND v.version = ?"
    );
    db.first(&sql, values![id, number], |row| {
        Ok(VocabularyContent { version: version(row)?, content: row.get(9)? })
    })
}

/// Makes a change. The result is the number of the version that counts; 0 if there is none any more.
pub(crate) fn change(db: &dyn Db, now: i64, change: &VocabularyChange) -> Result<u32> {
    match change {
        VocabularyChange::Save { name, content, message, author } => {
            let author = texts::author_id(db, author)?;
            save(db, now, name, content, message, author)
        }
        VocabularyChange::Use { name, version } => {
            let (id, _) = existing(db, name)?.ok_or_else(|| no_vocabulary(name))?;
            let sql = "SELECT EXISTS(SELECT 1 FROM vocabulary_versions \
                 WHERE vocabulary_id = ? AND version = ?)";
            if !db.value::<bool>(sql, values![id, *version])? {
                return Err(no_version(name, *version));
            }
            make_current(db, id, *version)
        }
        VocabularyChange::Delete { name } => {
            let (id, _) = existing(db, name)?.ok_or_else(|| no_vocabulary(name))?;
            let sql = "DELETE FROM vocabulary_versions WHERE vocabulary_id = ?";
            db.execute(sql, values![id])?;
            // The row stays for the number of the last version.
            let sql = "UPDATE vocabularies SET current_version = NULL WHERE id = ?";
            db.execute(sql, values![id])?;
            Ok(0)
        }
    }
}

/// Adds a version, unless the newest one says the same. It counts from now on.
fn save(
    db: &dyn Db,
    now: i64,
    name: &str,
    content: &str,
    message: &str,
    author: i64,
) -> Result<u32> {
    let sql = "SELECT id, latest FROM vocabularies WHERE name = ?";
    let found: Option<(i64, u32)> =
        db.first(sql, values![name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (id, latest) = match found {
        Some(found) => found,
        None => {
            let sql = "INSERT INTO vocabularies(name, latest, created_at) VALUES(?, 0, ?)";
            (db.insert(sql, values![name, now])?, 0)
        }
    };
    let digest = blake3::hash(content.as_bytes()).to_hex().to_string();
    let same = "SELECT EXISTS(SELECT 1 FROM vocabulary_versions WHERE vocabulary_id = ? AND version = ? \
         AND digest = ?)";
    if db.value(same, values![id, latest, &digest])? {
        return make_current(db, id, latest);
    }
    let version = latest.saturating_add(1);
    let sql = "INSERT INTO vocabulary_versions(vocabulary_id, version, content, digest, message, \
         author_id, created_at) VALUES(?, ?, ?, ?, ?, ?, ?)";
    db.add(sql, values![id, version, content, &digest, message, author, now])?;
    db.execute("UPDATE vocabularies SET latest = ? WHERE id = ?", values![version, id])?;
    make_current(db, id, version)
}

fn make_current(db: &dyn Db, id: i64, version: u32) -> Result<u32> {
    let sql = "UPDATE vocabularies SET current_version = ? WHERE id = ?";
    db.execute(sql, values![version, id])?;
    Ok(version)
}
