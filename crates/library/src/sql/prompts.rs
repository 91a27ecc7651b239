//! Prompts, their versions and labels, and experiments with them.

use cutline_error::{Error, ErrorKind, Result};

use super::read::{self, AUTHOR};
use super::value::values;
use super::{Db, Row, damaged, texts};
use crate::change::{FeedbackKind, Written};
use crate::prompts::{
    Experiment, Exposure, ExposureRow, LATEST, LabelMove, Prompt, PromptChange, PromptHistory,
    PromptLabel, PromptVersion, Variant, VersionChoice, no_experiment, no_prompt,
};
use crate::types::Author;

/// Prompts and experiments that are listed.
const LISTED: usize = 1000;
/// Captions of an experiment that are read.
const EXPOSURES: usize = 200_000;
/// What is served if nothing is asked for.
const PRODUCTION: &str = "production";

const VERSION: &str = "v.id, p.name, v.version, v.content, v.digest, v.message, v.created_at";

fn prompt_id(db: &dyn Db, name: &str) -> Result<Option<i64>> {
    db.first("SELECT id FROM prompts WHERE name = ?", values![name], |row| row.get(0))
}

fn existing(db: &dyn Db, name: &str) -> Result<i64> {
    prompt_id(db, name)?.ok_or_else(|| no_prompt(name))
}

fn latest(db: &dyn Db, prompt: i64) -> Result<u32> {
    let sql = "SELECT coalesce(max(version), 0) FROM prompt_versions WHERE prompt_id = ?";
    db.value(sql, values![prompt])
}

fn version(row: &dyn Row) -> Result<PromptVersion> {
    Ok(PromptVersion {
        id: row.get(0)?,
        name: row.get(1)?,
        version: row.get(2)?,
        content: row.get(3)?,
        digest: row.get(4)?,
        message: row.get(5)?,
        created_at: row.get(6)?,
        author: read::author(row, 7)?,
    })
}

pub(crate) fn prompts(db: &dyn Db) -> Result<Vec<Prompt>> {
    let sql = "SELECT p.id, p.name, p.description, p.created_at, \
         (SELECT coalesce(max(v.version), 0) FROM prompt_versions v WHERE v.prompt_id = p.id) \
         FROM prompts p ORDER BY p.name LIMIT ?";
    let found = db.all(sql, values![LISTED], |row| {
        let prompt = Prompt {
            name: row.get(1)?,
            description: row.get(2)?,
            created_at: row.get(3)?,
            latest: row.get(4)?,
            labels: Vec::new(),
        };
        Ok((row.get::<i64>(0)?, prompt))
    })?;
    let with_labels =
        |(id, prompt): (i64, Prompt)| Ok(Prompt { labels: labels(db, id)?, ..prompt });
    found.into_iter().map(with_labels).collect()
}

fn labels(db: &dyn Db, prompt: i64) -> Result<Vec<PromptLabel>> {
    let sql =
        "SELECT label, version, protected FROM prompt_labels WHERE prompt_id = ? ORDER BY label";
    db.all(sql, values![prompt], |row| {
        Ok(PromptLabel { label: row.get(0)?, version: row.get(1)?, protected: row.get(2)? })
    })
}

pub(crate) fn history(db: &dyn Db, name: &str) -> Result<Option<PromptHistory>> {
    let sql = "SELECT id, description, created_at FROM prompts WHERE name = ?";
    let found = db.first(sql, values![name], |row| {
        Ok((row.get::<i64>(0)?, row.get::<String>(1)?, row.get::<i64>(2)?))
    })?;
    let Some((id, description, created_at)) = found else { return Ok(None) };
    let sql = format!(
        "SELECT {VERSION}, {AUTHOR} FROM prompt_versions v JOIN prompts p ON p.id = v.prompt_id \
         JOIN authors a ON a.id = v.author_id WHERE v.prompt_id = ? ORDER BY v.version DESC LIMIT ?"
    );
    let versions = db.all(&sql, values![id, LISTED], version)?;
    let sql = format!(
        "SELECT h.label, h.version, h.protected, h.created_at, {AUTHOR} FROM label_history h \
         JOIN authors a ON a.id = h.author_id WHERE h.prompt_id = ? ORDER BY h.id DESC LIMIT ?"
    );
    let moves = db.all(&sql, values![id, LISTED], |row| {
        Ok(LabelMove {
            label: row.get(0)?,
            version: row.get(1)?,
            protected: row.get(2)?,
            created_at: row.get(3)?,
            author: read::author(row, 4)?,
        })
    })?;
    let prompt = Prompt {
        name: name.to_owned(),
        description,
        latest: latest(db, id)?,
        labels: labels(db, id)?,
        created_at,
    };
    Ok(Some(PromptHistory { prompt, versions, moves }))
}

pub(crate) fn choose(
    db: &dyn Db,
    name: &str,
    choice: &VersionChoice,
) -> Result<Option<PromptVersion>> {
    let Some(prompt) = prompt_id(db, name)? else { return Ok(None) };
    let number = match choice {
        VersionChoice::Number(number) => Some(*number),
        VersionChoice::Label(label) if label == LATEST => Some(latest(db, prompt)?),
        VersionChoice::Label(label) => labelled(db, prompt, label)?.map(|label| label.version),
    };
    let Some(number) = number else { return Ok(None) };
    let sql = format!(
        "SELECT {VERSION}, {AUTHOR} FROM prompt_versions v JOIN prompts p ON p.id = v.prompt_id \
         JOIN authors a ON a.id = v.author_id WHERE v.prompt_id = ? AND v.version = ?"
    );
    db.first(&sql, values![prompt, number], version)
}

fn labelled(db: &dyn Db, prompt: i64, label: &str) -> Result<Option<PromptLabel>> {
    let sql =
        "SELECT label, version, protected FROM prompt_labels WHERE prompt_id = ? AND label = ?";
    db.first(sql, values![prompt, label], |row| {
        Ok(PromptLabel { label: row.get(0)?, version: row.get(1)?, protected: row.get(2)? })
    })
}

/// All experiments, newest first; only those that run if `running`.
pub(crate) fn experiments(db: &dyn Db, running: bool) -> Result<Vec<Experiment>> {
    let only = if running { "WHERE e.stopped_at IS NULL" } else { "" };
    let sql = format!(
        "SELECT e.id, e.name, p.name, e.variants, e.unit, e.salt, e.metric, e.planned, e.started_at, \
         e.stopped_at, e.promoted, {AUTHOR} FROM experiments e JOIN prompts p ON p.id = e.prompt_id \
         JOIN authors a ON a.id = e.author_id {only} ORDER BY e.id DESC LIMIT ?"
    );
    db.all(&sql, values![LISTED], |row| {
        let variants: Vec<(u32, u32)> = serde_json::from_str(&row.get::<String>(3)?)
            .map_err(|_| damaged("variants that cannot be read"))?;
        let variant = |(version, weight)| Variant { version, weight };
        Ok(Experiment {
            id: row.get(0)?,
            name: row.get(1)?,
            prompt: row.get(2)?,
            variants: variants.into_iter().map(variant).collect(),
            unit: row.get(4)?,
            salt: row.get(5)?,
            metric: row.get(6)?,
            planned: row.get(7)?,
            started_at: row.get(8)?,
            stopped_at: row.get(9)?,
            promoted: row.get(10)?,
            author: read::author(row, 11)?,
        })
    })
}

pub(crate) fn exposures(db: &dyn Db, experiment: i64) -> Result<Vec<ExposureRow>> {
    let sql = "SELECT v.version, e.confidence, e.latency, e.cost, \
         (SELECT f.kind FROM feedback f WHERE f.revision_id = e.revision_id ORDER BY f.id DESC LIMIT 1), \
         (SELECT f.edit_distance FROM feedback f WHERE f.revision_id = e.revision_id AND f.kind = 4 \
         ORDER BY f.id DESC LIMIT 1) \
         FROM exposures e JOIN prompt_versions v ON v.id = e.prompt_version_id \
         WHERE e.experiment_id = ? ORDER BY e.id DESC LIMIT ?";
    db.all(sql, values![experiment, EXPOSURES], |row| {
        let kind: Option<i64> = row.get(4)?;
        let named = |code| FeedbackKind::ALL.into_iter().find(|kind| kind.code() == code);
        Ok(ExposureRow {
            version: row.get(0)?,
            confidence: row.get(1)?,
            latency: row.get(2)?,
            cost: row.get(3)?,
            feedback: kind.and_then(named),
            edit: row.get(5)?,
        })
    })
}

/// Logs that a text was asked for with a prompt.
pub(crate) fn expose(
    db: &dyn Db,
    now: i64,
    asset: i64,
    exposure: &Exposure,
    confidence: Option<f32>,
    written: Written,
) -> Result<()> {
    let revision = match written {
        Written::Current(id) | Written::Suggested(id) => Some(id),
        Written::Rejected(_) | Written::Unchanged => None,
    };
    let sql = "INSERT INTO exposures(prompt_version_id, experiment_id, asset_id, revision_id, confidence, \
         latency, cost, created_at) VALUES(?, ?, ?, ?, ?, ?, ?, ?)";
    let Exposure { version, experiment, latency, cost } = *exposure;
    let confidence = confidence.map(f64::from);
    let values = values![version, experiment, asset, revision, confidence, latency, cost, now];
    db.insert(sql, values).map(drop)
}

/// Makes a change. The result is the number of the version, or of the experiment.
pub(crate) fn change(db: &dyn Db, now: i64, change: &PromptChange) -> Result<i64> {
    match change {
        PromptChange::Save { name, description, content, message, author } => {
            let description = description.as_deref();
            let author = texts::author_id(db, author)?;
            let prompt = match prompt_id(db, name)? {
                Some(prompt) => {
                    if let Some(description) = description {
                        let sql = "UPDATE prompts SET description = ? WHERE id = ?";
                        db.execute(sql, values![description, prompt])?;
                    }
                    prompt
                }
                None => {
                    let sql = "INSERT INTO prompts(name, description, created_at) VALUES(?, ?, ?)";
                    db.insert(sql, values![name, description.unwrap_or_default(), now])?
                }
            };
            save(db, now, prompt, content, message, author)
        }
        PromptChange::Label { name, label, version, protected, force, author } => {
            let prompt = existing(db, name)?;
            move_label(db, now, prompt, label, *version, *protected, *force, author)?;
            Ok(version.unwrap_or_default().into())
        }
        PromptChange::Start(experiment) => start(db, now, experiment),
        PromptChange::Stop { name, promote, force, author } => {
            stop(db, now, name, *promote, *force, author)
        }
    }
}

/// Adds a version, unless the newest one says the same.
fn save(
    db: &dyn Db,
    now: i64,
    prompt: i64,
    content: &str,
    message: &str,
    author: i64,
) -> Result<i64> {
    let digest = blake3::hash(content.as_bytes()).to_hex().to_string();
    let newest = latest(db, prompt)?;
    let same = "SELECT EXISTS(SELECT 1 FROM prompt_versions WHERE prompt_id = ? AND version = ? \
         AND digest = ?)";
    if db.value(same, values![prompt, newest, &digest])? {
        return Ok(newest.into());
    }
    let version = newest.saturating_add(1);
    let sql = "INSERT INTO prompt_versions(prompt_id, version, content, digest, message, author_id, \
         created_at) VALUES(?, ?, ?, ?, ?, ?, ?)";
    db.insert(sql, values![prompt, version, content, &digest, message, author, now])?;
    Ok(version.into())
}

#[allow(clippy::too_many_arguments, reason = "they are the columns of one row")]
fn move_label(
    db: &dyn Db,
    now: i64,
    prompt: i64,
    label: &str,
    version: Option<u32>,
    protected: Option<bool>,
    force: bool,
    author: &Author,
) -> Result<()> {
    let present = labelled(db, prompt, label)?;
    if let Some(present) = &present
        && present.protected
        && !force
    {
        return Err(Error::new(
            ErrorKind::PreconditionFailed,
            format!("the label {label} is protected; confirm the move with force"),
        ));
    }
    if let Some(version) = version {
        has_version(db, prompt, version)?;
    } else if present.is_none() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the prompt has no label {label}; read the prompt for those that it has"),
        ));
    }
    let protected = protected.unwrap_or(present.is_some_and(|present| present.protected));
    let delete = "DELETE FROM prompt_labels WHERE prompt_id = ? AND label = ?";
    db.execute(delete, values![prompt, label])?;
    if let Some(version) = version {
        let sql =
            "INSERT INTO prompt_labels(prompt_id, label, version, protected) VALUES(?, ?, ?, ?)";
        db.execute(sql, values![prompt, label, version, protected])?;
    }
    let author = texts::author_id(db, author)?;
    let sql = "INSERT INTO label_history(prompt_id, label, version, protected, author_id, created_at) \
         VALUES(?, ?, ?, ?, ?, ?)";
    db.insert(sql, values![prompt, label, version, protected, author, now]).map(drop)
}

fn has_version(db: &dyn Db, prompt: i64, version: u32) -> Result<()> {
    let sql = "SELECT EXISTS(SELECT 1 FROM prompt_versions WHERE prompt_id = ? AND version = ?)";
    if db.value(sql, values![prompt, version])? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("the prompt has no version {version}; read the prompt for those that it has"),
    ))
}

fn start(db: &dyn Db, now: i64, new: &Experiment) -> Result<i64> {
    let prompt = existing(db, &new.prompt)?;
    for variant in &new.variants {
        has_version(db, prompt, variant.version)?;
    }
    let sql = "SELECT name FROM experiments WHERE name = ? OR (prompt_id = ? AND stopped_at IS NULL) LIMIT 1";
    let taken = db.first(sql, values![&new.name, prompt], |row| row.get::<String>(0))?;
    if let Some(taken) = taken {
        let detail = if taken == new.name {
            format!("there is an experiment {taken} already; use another name")
        } else {
            format!("the experiment {taken} with this prompt still runs; stop it first")
        };
        return Err(Error::new(ErrorKind::PreconditionFailed, detail));
    }
    let variants: Vec<(u32, u32)> =
        new.variants.iter().map(|variant| (variant.version, variant.weight)).collect();
    // Numbers always serialise.
    let variants = serde_json::to_string(&variants).unwrap_or_default();
    let author = texts::author_id(db, &new.author)?;
    let sql = "INSERT INTO experiments(name, prompt_id, variants, unit, salt, metric, planned, author_id, \
         started_at) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let values = values![
        &new.name,
        prompt,
        variants,
        &new.unit,
        &new.salt,
        &new.metric,
        new.planned,
        author,
        now,
    ];
    db.insert(sql, values)
}

fn stop(
    db: &dyn Db,
    now: i64,
    name: &str,
    promote: Option<u32>,
    force: bool,
    author: &Author,
) -> Result<i64> {
    let found = experiments(db, false)?.into_iter().find(|experiment| experiment.name == name);
    let experiment = found.ok_or_else(|| no_experiment(name))?;
    if let Some(version) = promote {
        if !experiment.variants.iter().any(|variant| variant.version == version) {
            return Err(Error::parameter(
                "version",
                format!("version {version} is no variant of this experiment; promote one that is"),
            ));
        }
        let prompt = existing(db, &experiment.prompt)?;
        move_label(db, now, prompt, PRODUCTION, Some(version), None, force, author)?;
    }
    let sql = "UPDATE experiments SET stopped_at = coalesce(stopped_at, ?2), \
         promoted = coalesce(?3, promoted) WHERE id = ?1";
    db.execute(sql, values![experiment.id, now, promote])?;
    Ok(experiment.id)
}
