//! What the library contains, what runs did, and what people thought of it.

use cutline_error::Result;

use super::read::{self, AUTHOR, REVISION};
use super::value::values;
use super::{Db, Row};
use crate::change::FeedbackKind;
use crate::store::{FeedbackRow, Run, RunId, Stats, TrainingPair};
use crate::time::{DAY, format_time};
use crate::types::{AuthorKind, Revision};

pub(crate) fn runs(db: &dyn Db, limit: usize) -> Result<Vec<Run>> {
    let sql = format!(
        "SELECT r.id, r.kind, r.parameters, r.started_at, r.finished_at, \
         (SELECT count(*) FROM revisions v WHERE v.run_id = r.id), {AUTHOR} \
         FROM runs r JOIN authors a ON a.id = r.author_id ORDER BY r.id DESC LIMIT ?"
    );
    let run = |row: &dyn Row| {
        Ok(Run {
            id: row.get(0)?,
            kind: row.get(1)?,
            parameters: row.get(2)?,
            started_at: row.get(3)?,
            finished_at: row.get(4)?,
            revisions: row.get(5)?,
            author: read::author(row, 6)?,
        })
    };
    db.all(&sql, values![limit], run)
}

pub(crate) fn run_revisions(
    db: &dyn Db,
    run: RunId,
    before: i64,
    limit: usize,
) -> Result<Vec<Revision>> {
    let sql =
        format!("SELECT {REVISION} WHERE r.run_id = ? AND r.id < ? ORDER BY r.id DESC LIMIT ?");
    db.all(&sql, values![run, before, limit], read::revision)
}

pub(crate) fn feedback(db: &dyn Db) -> Result<Vec<FeedbackRow>> {
    let sql = "SELECT f.created_at / 86400000, a.name, a.digest, a.prompt, \
         count(*) FILTER (WHERE f.kind = 0), count(*) FILTER (WHERE f.kind = 1), \
         count(*) FILTER (WHERE f.kind = 2), count(*) FILTER (WHERE f.kind = 3), \
         count(*) FILTER (WHERE f.kind = 4), avg(CASE WHEN f.kind = 4 THEN f.edit_distance END) \
         FROM feedback f JOIN revisions r ON r.id = f.revision_id JOIN authors a ON a.id = r.author_id \
         WHERE a.kind = ? GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4 LIMIT 10000";
    let row = |row: &dyn Row| {
        Ok(FeedbackRow {
            day: format_time(row.get::<i64>(0)? * DAY).chars().take(10).collect(),
            model: row.get(1)?,
            digest: row.get(2)?,
            prompt: row.get(3)?,
            up: row.get(4)?,
            down: row.get(5)?,
            accepted: row.get(6)?,
            rejected: row.get(7)?,
            edited: row.get(8)?,
            mean_edit: row.get(9)?,
        })
    };
    db.all(sql, values![AuthorKind::Model.code()], row)
}

pub(crate) fn training_pairs(db: &dyn Db, after: i64, limit: usize) -> Result<Vec<TrainingPair>> {
    let sql = "SELECT f.id, s.hash, coalesce((SELECT n.name FROM names n WHERE n.asset_id = s.id \
         ORDER BY n.seen_at DESC, n.name LIMIT 1), ''), r.field, r.text, \
         coalesce((SELECT t.text FROM current c JOIN revisions t ON t.id = c.revision_id \
         WHERE c.asset_id = s.id AND c.field = r.field AND c.lang = r.lang), ''), \
         f.kind, f.reason, a.name, a.prompt \
         FROM feedback f JOIN revisions r ON r.id = f.revision_id JOIN assets s ON s.id = f.asset_id \
         JOIN authors a ON a.id = r.author_id WHERE a.kind = ? AND f.id > ? ORDER BY f.id LIMIT ?";
    let pair = |row: &dyn Row| {
        let code: i64 = row.get(6)?;
        let kind = FeedbackKind::ALL.iter().find(|kind| kind.code() == code);
        Ok(TrainingPair {
            id: row.get(0)?,
            hash: read::hash(row, 1)?,
            name: row.get(2)?,
            field: read::field(row.get(3)?)?,
            machine: row.get(4)?,
            current: row.get(5)?,
            kind: kind.map_or("", |kind| kind.as_str()),
            reason: row.get(7)?,
            model: row.get(8)?,
            prompt: row.get(9)?,
        })
    };
    db.all(sql, values![AuthorKind::Model.code(), after, limit], pair)
}

/// All but the size of the database, and its version.
pub(crate) fn stats(db: &dyn Db) -> Result<Stats> {
    let count = |sql: &str| db.value::<u64>(sql, &[]);
    let label = |kind: &str, value: &str| {
        let sql = "SELECT uses FROM labels WHERE kind = ? AND value = ?";
        db.first(sql, values![kind, value], |row| row.get::<u64>(0)).map(Option::unwrap_or_default)
    };
    Ok(Stats {
        assets: count("SELECT count(*) FROM assets")?,
        names: count("SELECT count(*) FROM names")?,
        revisions: count("SELECT count(*) FROM revisions")?,
        suggestions: count("SELECT count(*) FROM current WHERE suggestion_id IS NOT NULL")?,
        without_caption: label("missing", "caption")?,
        without_alt_text: label("missing", "alt_text")?,
        reviewed: label("is", "reviewed")?,
        features: count("SELECT count(DISTINCT asset_id) FROM features")?,
        thumbnails: count("SELECT count(*) FROM thumbnails")?,
        bytes: 0,
        schema: 0,
    })
}
