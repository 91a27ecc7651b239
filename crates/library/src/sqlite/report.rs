//! What the library contains, what runs did, and what people thought of it.

use rusqlite::{Connection, Result};

use super::migrate;
use super::read::{self, AUTHOR, REVISION};
use crate::change::FeedbackKind;
use crate::store::{FeedbackRow, Run, RunId, Stats, TrainingPair};
use crate::types::{AuthorKind, Revision};

pub(super) fn runs(db: &Connection, limit: usize) -> Result<Vec<Run>> {
    let sql = format!(
        "SELECT r.id, r.kind, r.parameters, r.started_at, r.finished_at, \
         (SELECT count(*) FROM revisions v WHERE v.run_id = r.id), {AUTHOR} \
         FROM runs r JOIN authors a ON a.id = r.author_id ORDER BY r.id DESC LIMIT ?"
    );
    let mut read = db.prepare_cached(&sql)?;
    let run = |row: &rusqlite::Row<'_>| {
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
    read.query_map([limit], run)?.collect()
}

pub(super) fn run_revisions(
    db: &Connection,
    run: RunId,
    before: i64,
    limit: usize,
) -> Result<Vec<Revision>> {
    let sql =
        format!("SELECT {REVISION} WHERE r.run_id = ? AND r.id < ? ORDER BY r.id DESC LIMIT ?");
    let mut read = db.prepare_cached(&sql)?;
    read.query_map((run, before, limit), read::revision)?.collect()
}

pub(super) fn feedback(db: &Connection) -> Result<Vec<FeedbackRow>> {
    let sql = "SELECT date(f.created_at / 1000, 'unixepoch') AS day, a.name, a.digest, a.prompt, \
         sum(f.kind = 0), sum(f.kind = 1), sum(f.kind = 2), sum(f.kind = 3), sum(f.kind = 4), \
         avg(CASE WHEN f.kind = 4 THEN f.edit_distance END) \
         FROM feedback f JOIN revisions r ON r.id = f.revision_id JOIN authors a ON a.id = r.author_id \
         WHERE a.kind = ? GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4 LIMIT 10000";
    let mut read = db.prepare_cached(sql)?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(FeedbackRow {
            day: row.get(0)?,
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
    read.query_map([AuthorKind::Model.code()], row)?.collect()
}

pub(super) fn training_pairs(
    db: &Connection,
    after: i64,
    limit: usize,
) -> Result<Vec<TrainingPair>> {
    let sql = "SELECT f.id, s.hash, ifnull((SELECT n.name FROM names n WHERE n.asset_id = s.id \
         ORDER BY n.seen_at DESC, n.name LIMIT 1), ''), r.field, r.text, \
         ifnull((SELECT t.text FROM current c JOIN revisions t ON t.id = c.revision_id \
         WHERE c.asset_id = s.id AND c.field = r.field AND c.lang = r.lang), ''), \
         f.kind, f.reason, a.name, a.prompt \
         FROM feedback f JOIN revisions r ON r.id = f.revision_id JOIN assets s ON s.id = f.asset_id \
         JOIN authors a ON a.id = r.author_id WHERE a.kind = ? AND f.id > ? ORDER BY f.id LIMIT ?";
    let mut read = db.prepare_cached(sql)?;
    let pair = |row: &rusqlite::Row<'_>| {
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
    read.query_map((AuthorKind::Model.code(), after, limit), pair)?.collect()
}

pub(super) fn stats(db: &Connection) -> Result<Stats> {
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, u64>(0));
    let label = |kind: &str, value: &str| {
        let sql = "SELECT ifnull(sum(uses), 0) FROM labels WHERE kind = ? AND value = ?";
        db.query_row(sql, (kind, value), |row| row.get::<_, u64>(0))
    };
    let pages = count("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")?;
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
        bytes: pages,
        schema: migrate::newest(),
    })
}
