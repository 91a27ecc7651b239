//! Finds photos.
//!
//! A text that few photos match is ranked by relevance. If there are many, the newest come first: ranking
//! them would take longer than anybody waits, and captions of equal length rank alike. The index is
//! searched once: the ranks are made of the marked words. `bm25` would search it again for each word, to
//! count the photos that have it.

use std::collections::HashMap;
use std::fmt::Write as _;

use cutline_error::{Error, Result};

use super::derived::{self, label_id};
use super::value::values;
use super::{Db, Value, read};
use crate::query::{Attribute, Expression, Query, Sort};
use crate::store::{Count, Facet, FacetValue, Found, Page};

/// Photos that are ranked by relevance at most.
const RANKED: usize = 200;
/// Photos that are counted at most, where counting takes time in proportion.
const COUNTED: usize = 100_000;
/// Photos that facets look at, unless the query finds all.
const FACET_SAMPLE: usize = 2000;
/// Values of a facet at most.
const FACET_VALUES: usize = 50;
/// A filter that so many photos pass, or fewer, is where a search begins.
const RARE: i64 = 20_000;
/// How much a word counts in captions, alternative texts, tags and names.
const WEIGHTS: [f64; 4] = [4.0, 3.0, 4.0, 1.0];
/// Between these are the words that were searched for.
#[cfg(feature = "postgres")]
pub(crate) const MARKS: [char; 2] = ['\u{e000}', '\u{e001}'];
/// Separates the texts of a photo.
pub(crate) const BETWEEN: char = '\u{1f}';

/// A query, checked.
pub(crate) struct Request {
    expression: Expression,
    sort: Option<Sort>,
    limit: usize,
    /// Identifies the query in its cursors.
    stamp: String,
    cursor: Option<Cursor>,
    count: bool,
}

/// Where a page begins: after the photo `id`, whose sort key was `key`.
#[derive(Debug, Clone, PartialEq)]
struct Cursor {
    sort: Sort,
    key: f64,
    id: i64,
}

impl Request {
    pub(crate) fn new(query: &Query) -> Result<Self> {
        let expression = query.expression()?;
        let stamp = stamp(query);
        let cursor =
            query.cursor.as_deref().map(|cursor| Cursor::read(cursor, &stamp)).transpose()?;
        Ok(Self {
            expression,
            sort: query.sort,
            limit: query.page_size()?,
            stamp,
            cursor,
            count: query.count,
        })
    }
}

/// Short, and different for different queries.
fn stamp(query: &Query) -> String {
    let key = format!("{:?} {:?} {} {:?}", query.text, query.filters, query.unfinished, query.sort);
    blake3::hash(key.as_bytes()).to_hex()[..8].to_owned()
}

impl Cursor {
    fn write(&self, stamp: &str) -> String {
        let Self { sort, key, id } = self;
        format!("{}_{:x}_{id}_{stamp}", sort.as_str(), key.to_bits())
    }

    fn read(text: &str, stamp: &str) -> Result<Self> {
        let read = || {
            let mut parts = text.split('_');
            let sort = match parts.next()? {
                "relevance" => Sort::Relevance,
                "taken" => Sort::Taken,
                "added" => Sort::Added,
                "confidence" => Sort::Confidence,
                _ => return None,
            };
            let key = f64::from_bits(u64::from_str_radix(parts.next()?, 16).ok()?);
            let id = parts.next()?.parse().ok()?;
            (parts.next()? == stamp && parts.next().is_none()).then_some(Self { sort, key, id })
        };
        read().ok_or_else(|| {
            Error::parameter(
                "cursor",
                "the cursor does not belong to this search; use the `next` of its last page, or begin \
                 without a cursor",
            )
        })
    }
}

/// Conditions, as SQL with values.
#[derive(Debug, Default, Clone)]
struct Sql {
    text: String,
    values: Vec<Value<'static>>,
}

impl Sql {
    fn and(&mut self, condition: &str, values: impl IntoIterator<Item = Value<'static>>) {
        self.text += if self.text.is_empty() { "WHERE " } else { " AND " };
        self.text += condition;
        self.values.extend(values);
    }
}

/// What a search reads from.
struct Source {
    /// `FROM …`
    from: &'static str,
    /// The number of the photo.
    id: &'static str,
    conditions: Sql,
    /// The texts to mark words in, if words are searched for.
    texts: &'static str,
}

impl Source {
    /// `None`: nothing can be found.
    fn new(db: &dyn Db, expression: &Expression, sort: Sort) -> Result<Option<Self>> {
        let Some(labels) = labels(db, expression)? else { return Ok(None) };
        let matched = db.matching(expression);
        let facts = sort != Sort::Added && sort != Sort::Relevance
            || expression.filters.iter().any(|filter| !matches!(filter, Attribute::Label { .. }));
        // With a text, the index is where the search begins; else the rarest label, if it is rare or its
        // order is the one that is wanted.
        let rarest =
            labels.iter().filter(|label| !label.not).min_by_key(|label| label.uses).copied();
        let driver = rarest
            .filter(|rarest| matched.is_none() && (sort == Sort::Added || rarest.uses <= RARE));
        let (from, id) = match (&matched, driver) {
            (Some(matched), _) if facts => (matched.from_assets, matched.id),
            (Some(matched), _) => (matched.from, matched.id),
            (None, Some(_)) => ("FROM asset_labels d CROSS JOIN assets s", "d.asset_id"),
            (None, None) => ("FROM assets s", "s.id"),
        };
        let mut conditions = Sql::default();
        let texts = matched.as_ref().map_or("NULL", |matched| matched.texts);
        if let Some(matched) = matched {
            conditions.and(matched.condition, [matched.value]);
        } else if let Some((condition, value)) = db.lacking(&expression.none) {
            conditions.and(condition, [value]);
        }
        if driver.is_some() {
            conditions.and("s.id = d.asset_id", []);
        }
        for label in &labels {
            if driver.is_some_and(|driver| driver.id == label.id && !label.not) {
                conditions.and("d.label_id = ?", [Value::from(label.id)]);
                continue;
            }
            let not = if label.not { "NOT " } else { "" };
            let condition = format!(
                "{not}EXISTS(SELECT 1 FROM asset_labels l WHERE l.label_id = ? AND l.asset_id = {id})"
            );
            conditions.and(&condition, [Value::from(label.id)]);
        }
        for filter in &expression.filters {
            match filter {
                Attribute::Label { .. } => {}
                Attribute::After(time) => conditions.and("s.at >= ?", [Value::from(*time)]),
                Attribute::Before(time) => conditions.and("s.at < ?", [Value::from(*time)]),
                Attribute::MinConfidence(least) => {
                    conditions.and("s.confidence >= ?", [Value::from(f64::from(*least))]);
                }
                Attribute::MaxConfidence(most) => {
                    conditions.and("s.confidence <= ?", [Value::from(f64::from(*most))]);
                }
            }
        }
        if sort == Sort::Confidence {
            conditions.and("s.confidence IS NOT NULL", []);
        }
        Ok(Some(Self { from, id, conditions, texts }))
    }

    /// At most `limit` photos after the cursor, with their sort keys.
    fn page(
        &self,
        db: &dyn Db,
        sort: Sort,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<Vec<Hit>> {
        let id = self.id;
        let mut conditions = self.conditions.clone();
        let (key, order) = match sort {
            Sort::Added | Sort::Relevance => ("0", format!("{id} DESC")),
            Sort::Taken => ("s.at", format!("s.at DESC, {id} DESC")),
            Sort::Confidence => ("s.confidence", format!("s.confidence, {id}")),
        };
        if let Some(Cursor { key, id: last, .. }) = cursor {
            match sort {
                Sort::Added | Sort::Relevance => {
                    conditions.and(&format!("{id} < ?"), [(*last).into()])
                }
                // Times fit a float for some hundred thousand years.
                Sort::Taken => {
                    let at = *key as i64;
                    conditions.and(&format!("(s.at, {id}) < (?, ?)"), [at.into(), (*last).into()]);
                }
                Sort::Confidence => conditions.and(
                    &format!("(s.confidence, {id}) > (?, ?)"),
                    [(*key).into(), (*last).into()],
                ),
            }
        }
        let mut sql =
            format!("SELECT {id}, {key}, {} {} {}", self.texts, self.from, conditions.text);
        let _ = write!(sql, " ORDER BY {order} LIMIT {limit}");
        db.all(&sql, &conditions.values, |row| {
            Ok(Hit { id: row.get(0)?, key: row.get(1)?, texts: row.get(2)? })
        })
    }

    /// The numbers of at most `limit` photos, the newest first.
    fn ids(&self, db: &dyn Db, limit: usize) -> Result<Vec<i64>> {
        let Self { from, id, conditions, .. } = self;
        let sql =
            format!("SELECT {id} {from} {} ORDER BY {id} DESC LIMIT {limit}", conditions.text);
        db.all(&sql, &conditions.values, |row| row.get(0))
    }

    fn count(&self, db: &dyn Db) -> Result<Count> {
        let Self { from, conditions, .. } = self;
        if conditions.text.is_empty() {
            let count = db.value("SELECT count(*) FROM assets", &[])?;
            return Ok(Count { count, exact: true });
        }
        let limit = COUNTED + 1;
        let sql =
            format!("SELECT count(*) FROM (SELECT 1 {from} {} LIMIT {limit}) f", conditions.text);
        let count: usize = db.value(&sql, &conditions.values)?;
        Ok(Count { count: count.min(COUNTED) as u64, exact: count <= COUNTED })
    }
}

/// A photo that was found.
struct Hit {
    id: i64,
    key: f64,
    /// The texts, one after another, later with marks.
    texts: Option<String>,
}

/// The texts in which something is marked.
fn marked(texts: Option<String>) -> Vec<String> {
    let texts = texts.unwrap_or_default();
    texts.split(BETWEEN).filter(|text| text.contains('\u{e000}')).map(str::to_owned).collect()
}

/// A label that is asked for.
#[derive(Clone, Copy)]
struct Label {
    id: i64,
    uses: i64,
    not: bool,
}

/// The labels that are asked for; `None` if no photo has one of them.
fn labels(db: &dyn Db, expression: &Expression) -> Result<Option<Vec<Label>>> {
    let mut labels = Vec::new();
    for filter in &expression.filters {
        let Attribute::Label { kind, value, not } = filter else { continue };
        match (label_id(db, kind, value)?, not) {
            (Some(id), _) => {
                let uses = db.value("SELECT uses FROM labels WHERE id = ?", values![id])?;
                labels.push(Label { id, uses, not: *not });
            }
            (None, false) => return Ok(None),
            (None, true) => {}
        }
    }
    Ok(Some(labels))
}

pub(crate) fn find(db: &dyn Db, request: &Request) -> Result<Page> {
    let has_words = !request.expression.all.is_empty();
    let wanted = request.cursor.as_ref().map(|cursor| cursor.sort).or(request.sort);
    let mut sort = wanted.unwrap_or(if has_words { Sort::Relevance } else { Sort::Taken });
    if sort == Sort::Relevance && !has_words {
        sort = Sort::Taken;
    }
    let Some(source) = Source::new(db, &request.expression, sort)? else {
        let total = request.count.then_some(Count { count: 0, exact: true });
        return Ok(Page { items: Vec::new(), next: None, total, sort });
    };
    let mut hits;
    if sort == Sort::Relevance {
        (sort, hits) = relevant(db, &source, request)?;
    } else {
        hits = source.page(db, sort, request.cursor.as_ref(), request.limit + 1)?;
    }
    let more = hits.len() > request.limit;
    hits.truncate(request.limit);
    if sort != Sort::Relevance {
        mark(db, &request.expression, &mut hits);
    }
    let next = hits
        .last()
        .filter(|_| more)
        .map(|last| Cursor { sort, key: last.key, id: last.id }.write(&request.stamp));
    let total = if request.count { Some(source.count(db)?) } else { None };
    let ids: Vec<i64> = hits.iter().map(|hit| hit.id).collect();
    let mut assets = read::assets(db, &ids)?;
    let found = hits.into_iter().filter_map(|hit| {
        let asset = assets.remove(&hit.id)?;
        Some(Found { asset, highlights: marked(hit.texts) })
    });
    let items = found.collect();
    Ok(Page { items, next, total, sort })
}

/// The photos of a page by relevance, and one more; if too many match to be ranked, the newest ones.
fn relevant(db: &dyn Db, source: &Source, request: &Request) -> Result<(Sort, Vec<Hit>)> {
    let mut hits = source.page(db, Sort::Added, None, RANKED + 1)?;
    if hits.len() > RANKED {
        if request.cursor.is_some() {
            return Err(Error::parameter(
                "cursor",
                "more photos match since the last page; begin again without a cursor",
            ));
        }
        hits.truncate(request.limit + 1);
        return Ok((Sort::Added, hits));
    }
    mark(db, &request.expression, &mut hits);
    for hit in &mut hits {
        hit.key = -relevance(hit.texts.as_deref().unwrap_or_default());
    }
    hits.sort_by(|a, b| a.key.total_cmp(&b.key).then(b.id.cmp(&a.id)));
    if let Some(cursor) = &request.cursor {
        let seen = hits.iter().position(|hit| hit.id == cursor.id).map_or_else(
            || hits.iter().take_while(|hit| hit.key <= cursor.key).count(),
            |at| at + 1,
        );
        hits.drain(..seen);
    }
    hits.truncate(request.limit + 1);
    Ok((Sort::Relevance, hits))
}

fn mark(db: &dyn Db, expression: &Expression, hits: &mut [Hit]) {
    for hit in hits {
        hit.texts = hit.texts.take().map(|texts| db.mark(expression, texts));
    }
}

/// How well texts with marked words match: each different word counts by the text that it is worth most
/// in, more in short texts; each further occurrence adds little.
fn relevance(marked: &str) -> f64 {
    let mut words: HashMap<String, f64> = HashMap::new();
    let mut repeated = 0.0;
    for (text, weight) in marked.split(BETWEEN).zip(WEIGHTS) {
        let length = text.split_whitespace().count() as f64;
        let worth = weight / (1.0 + length.ln_1p());
        for word in text.split('\u{e000}').skip(1).filter_map(|rest| rest.split('\u{e001}').next())
        {
            // Nearly as the index sees it, which finds "dogs" for "dog".
            let word = word.to_lowercase().trim_end_matches('s').to_owned();
            let best = words.entry(word).or_insert(0.0);
            repeated += 0.05 * worth;
            *best = best.max(worth);
        }
    }
    words.into_values().sum::<f64>() + repeated
}

pub(crate) fn facets(db: &dyn Db, request: &Request) -> Result<Vec<Facet>> {
    let expression = &request.expression;
    let mut counts: HashMap<&'static str, HashMap<String, u64>> = HashMap::new();
    let mut exact = true;
    if *expression == Expression::default() {
        db.each("SELECT kind, value, uses FROM labels", &[], &mut |row| {
            let kind: String = row.get(0)?;
            if let Some(kind) = crate::query::KINDS.iter().find(|known| **known == kind) {
                counts.entry(kind).or_default().insert(row.get(1)?, row.get(2)?);
            }
            Ok(())
        })?;
    } else if let Some(source) = Source::new(db, expression, Sort::Added)? {
        let ids = source.ids(db, FACET_SAMPLE + 1)?;
        exact = ids.len() <= FACET_SAMPLE;
        let ids = &ids[..ids.len().min(FACET_SAMPLE)];
        for (kind, value) in derived::labels(db, ids)?.into_values().flatten() {
            *counts.entry(kind).or_default().entry(value).or_default() += 1;
        }
    }
    let facet = |attribute: &&'static str| {
        let counted = counts.remove(attribute).unwrap_or_default().into_iter();
        let mut values: Vec<FacetValue> =
            counted.map(|(value, count)| FacetValue { value, count }).collect();
        values.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
        values.truncate(FACET_VALUES);
        Facet { attribute, values, exact }
    };
    Ok(crate::query::KINDS.iter().map(facet).collect())
}
