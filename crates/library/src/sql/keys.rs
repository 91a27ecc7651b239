//! Keys of clients, and what they have used.

use cutline_error::{Error, Result};

use super::value::values;
use super::{Db, Row, Value, damaged};
use crate::keys::{ApiKey, KeyChange, KeyRules, SecretHash, no_key};
use crate::time::{DAY, format_time};
use crate::usage::{UsageEntry, UsageGroup, UsageQuery, UsageRow, Used, day};

/// All keys, in the order in which they were made.
pub(crate) fn all(db: &dyn Db) -> Result<Vec<ApiKey>> {
    some(db, "", "", &[])
}

/// The key with this number.
pub(crate) fn find(db: &dyn Db, id: i64) -> Result<Option<ApiKey>> {
    Ok(some(db, "WHERE id = ?", "WHERE key_id = ?", values![id])?.pop())
}

/// Keys in the order in which they were made; two conditions on the same keys and on their secrets.
fn some(db: &dyn Db, which: &str, whose: &str, values: &[Value<'_>]) -> Result<Vec<ApiKey>> {
    let sql = format!(
        "SELECT id, rules, created_at, revoked_at, last_used_at FROM api_keys {which} ORDER BY id"
    );
    let mut keys = db.all(&sql, values, |row| {
        let rules: String = row.get(1)?;
        let rules: KeyRules =
            serde_json::from_str(&rules).map_err(|_| damaged("a key that cannot be read"))?;
        Ok(ApiKey {
            id: row.get(0)?,
            prefix: String::new(),
            rules,
            created_at: row.get(2)?,
            revoked_at: row.get(3)?,
            last_used_at: row.get(4)?,
            previous_valid_until: None,
            hashes: Vec::new(),
        })
    })?;
    let sql = format!(
        "SELECT key_id, hash, prefix, valid_until FROM api_key_secrets {whose} ORDER BY id"
    );
    db.each(&sql, values, &mut |row| {
        let id: i64 = row.get(0)?;
        let Ok(at) = keys.binary_search_by_key(&id, |key| key.id) else { return Ok(()) };
        let key = &mut keys[at];
        let until: Option<i64> = row.get(3)?;
        key.hashes.push((row.get(1)?, until));
        // The newest is the last one.
        key.prefix = row.get(2)?;
        key.previous_valid_until = until.or(key.previous_valid_until);
        Ok(())
    })?;
    Ok(keys)
}

fn one(db: &dyn Db, id: i64) -> Result<ApiKey> {
    find(db, id)?.ok_or_else(|| no_key(id))
}

pub(crate) fn change(db: &dyn Db, now: i64, change: KeyChange) -> Result<ApiKey> {
    let id = match change {
        KeyChange::Create { rules, secret } => {
            check_free(db, &rules.name, None)?;
            let sql = "INSERT INTO api_keys(name, rules, created_at) VALUES(?, ?, ?)";
            let id = db.insert(sql, values![&rules.name, json(&rules)?, now])?;
            add_secret(db, now, id, &secret)?;
            id
        }
        KeyChange::Edit { id, rules } => {
            check_free(db, &rules.name, Some(id))?;
            let sql = "UPDATE api_keys SET name = ?2, rules = ?3 WHERE id = ?1";
            found(db.execute(sql, values![id, &rules.name, json(&rules)?])?, id)?;
            id
        }
        KeyChange::Rotate { id, secret, grace } => {
            let sql = "SELECT count(*) FROM api_keys WHERE id = ? AND revoked_at IS NULL";
            found(db.value(sql, values![id])?, id)?;
            // Those of earlier rotations end when they would have.
            let sql = "UPDATE api_key_secrets SET valid_until = ?2 \
                 WHERE key_id = ?1 AND (valid_until IS NULL OR valid_until > ?2)";
            db.execute(sql, values![id, now.saturating_add(grace.max(0))])?;
            add_secret(db, now, id, &secret)?;
            id
        }
        KeyChange::Revoke { id } => {
            let sql = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1";
            found(db.execute(sql, values![id, now])?, id)?;
            id
        }
    };
    one(db, id)
}

fn found(rows: u64, id: i64) -> Result<()> {
    if rows > 0 { Ok(()) } else { Err(no_key(id)) }
}

fn json(rules: &KeyRules) -> Result<String> {
    serde_json::to_string(rules)
        .map_err(|error| Error::internal("a key cannot be written").with_source(error))
}

fn check_free(db: &dyn Db, name: &str, except: Option<i64>) -> Result<()> {
    let sql = "SELECT count(*) FROM api_keys WHERE name = ?1 AND id IS DISTINCT FROM ?2";
    if db.value::<i64>(sql, values![name, except])? == 0 {
        return Ok(());
    }
    Err(Error::parameter("name", format!("there is a key {name:?} already; choose another name")))
}

fn add_secret(db: &dyn Db, now: i64, id: i64, secret: &SecretHash) -> Result<()> {
    let sql = "INSERT INTO api_key_secrets(key_id, hash, prefix, created_at) VALUES(?, ?, ?, ?)";
    db.insert(sql, values![id, &secret.hash, &secret.prefix, now]).map(drop)
}

pub(crate) fn add_usage(db: &dyn Db, entries: &[UsageEntry]) -> Result<()> {
    let add = "INSERT INTO usage_daily(day, key_id, model, requests, images, cached, errors, \
         prompt_tokens, completion_tokens) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT(day, key_id, model) DO UPDATE SET \
         requests = usage_daily.requests + excluded.requests, \
         images = usage_daily.images + excluded.images, \
         cached = usage_daily.cached + excluded.cached, \
         errors = usage_daily.errors + excluded.errors, \
         prompt_tokens = usage_daily.prompt_tokens + excluded.prompt_tokens, \
         completion_tokens = usage_daily.completion_tokens + excluded.completion_tokens";
    let touch = "UPDATE api_keys SET last_used_at = ?2 \
         WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?3)";
    for UsageEntry { key, model, at, used } in entries {
        if *used != Used::default() {
            let Used { requests, images, cached, errors, prompt_tokens, completion_tokens } = *used;
            let values = values![
                day(*at),
                *key,
                model,
                requests,
                images,
                cached,
                errors,
                prompt_tokens,
                completion_tokens,
            ];
            db.execute(add, values)?;
        }
        // To the minute, so that not every request changes it.
        let minute = *at - at.rem_euclid(60_000);
        db.execute(touch, values![*key, minute, minute])?;
    }
    Ok(())
}

/// What was used in the days of `query`.
pub(crate) fn usage(db: &dyn Db, query: &UsageQuery) -> Result<Vec<UsageRow>> {
    let sum = |name: &str| format!("CAST(sum(u.{name}) AS bigint)");
    let sums = ["requests", "images", "cached", "errors", "prompt_tokens", "completion_tokens"];
    let sums = sums.map(sum).join(", ");
    let groups = match query.group {
        UsageGroup::Key => "u.key_id, k.name, 0",
        UsageGroup::Model => "0, u.model, 0",
        UsageGroup::Day => "0, '', u.day",
    };
    let by = match query.group {
        UsageGroup::Key => "u.key_id, k.name ORDER BY u.key_id",
        UsageGroup::Model => "u.model ORDER BY u.model",
        UsageGroup::Day => "u.day ORDER BY u.day",
    };
    let (from, to) = (day(query.from), day(query.to));
    let only = if query.key.is_some() { " AND u.key_id = ?3" } else { "" };
    let sql = format!(
        "SELECT {groups}, {sums} FROM usage_daily u JOIN api_keys k ON k.id = u.key_id \
         WHERE u.day >= ?1 AND u.day <= ?2{only} GROUP BY {by} LIMIT 100000"
    );
    let mut values = values![from, to].to_vec();
    values.extend(query.key.map(Into::into));
    let row = |row: &dyn Row| {
        let id: i64 = row.get(0)?;
        let name: String = row.get(1)?;
        let day: i64 = row.get(2)?;
        let date = || format_time(day.saturating_mul(DAY)).chars().take(10).collect();
        Ok(UsageRow {
            id: (query.group == UsageGroup::Key).then_some(id),
            name: if query.group == UsageGroup::Day { date() } else { name },
            used: Used {
                requests: row.get(3)?,
                images: row.get(4)?,
                cached: row.get(5)?,
                errors: row.get(6)?,
                prompt_tokens: row.get(7)?,
                completion_tokens: row.get(8)?,
            },
        })
    };
    db.all(&sql, &values, row)
}
