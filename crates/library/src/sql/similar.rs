//! Photos that look alike.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cutline_error::{Error, ErrorKind, Result};

use super::value::values;
use super::{Cell, Db, read};
use crate::features::{Matrix, Neighbour, Probe, Similar, cosine, normalised, numbers};
use crate::store::Groups;
use crate::types::ContentHash;

/// Photos at most.
const MAX_NEIGHBOURS: usize = 1000;
/// Bits that difference hashes may differ in.
const MAX_BITS: u32 = 7;

/// The packed features of each space, with what they were made of.
#[derive(Debug, Default)]
pub(crate) struct Matrices(Mutex<HashMap<i64, Arc<Packed>>>);

#[derive(Debug)]
struct Packed {
    matrix: Matrix,
    /// The last row of the database in it.
    last: i64,
    /// The removals that were counted when it was made.
    removed: i64,
}

/// What to compare with, and where.
struct Wanted {
    space: i64,
    vector: Vec<f32>,
    /// The photo that is not its own neighbour.
    except: Option<i64>,
}

impl Matrices {
    /// Removes all features from memory, because photos are gone.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn similar(&self, db: &dyn Db, similar: &Similar) -> Result<Vec<Neighbour>> {
        let limit = similar.limit.clamp(1, MAX_NEIGHBOURS);
        let wanted = wanted(db, &similar.probe)?;
        let search = |fresh: bool| {
            let packed = self.packed(db, wanted.space, wanted.vector.len(), fresh)?;
            search(db, &packed.matrix, &wanted, limit, similar.min_score)
        };
        match search(false)? {
            (found, false) => Ok(found),
            // Rows in memory are gone from the database, and took places of others.
            (_, true) => search(true).map(|(found, _)| found),
        }
    }

    /// The features in memory, with all rows that the database has. Others wait while they are read.
    fn packed(&self, db: &dyn Db, space: i64, dim: usize, fresh: bool) -> Result<Arc<Packed>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = "SELECT value FROM counters WHERE name = 'features_removed'";
        let removed: i64 = db.value(counter, &[])?;
        let old = all.remove(&space).filter(|old| !fresh && old.removed == removed);
        let mut packed = match old.map(Arc::try_unwrap) {
            Some(Ok(packed)) => packed,
            // Somebody searches in it: a complete one may be shared, another is made anew.
            Some(Err(shared)) => {
                let sql = "SELECT EXISTS(SELECT 1 FROM features WHERE id > ? AND space_id = ?)";
                let grown: bool = db.value(sql, values![shared.last, space])?;
                if !grown {
                    all.insert(space, Arc::clone(&shared));
                    return Ok(shared);
                }
                Packed { matrix: shared.matrix.clone(), last: shared.last, removed }
            }
            None => Packed { matrix: Matrix::new(dim), last: 0, removed },
        };
        let sql = "SELECT id, vector FROM features WHERE id > ? AND space_id = ? ORDER BY id";
        let first = packed.last;
        db.each(sql, values![first, space], &mut |row| {
            packed.last = row.get(0)?;
            packed.matrix.push(packed.last, blob(row.cell(1)?));
            Ok(())
        })?;
        let packed = Arc::new(packed);
        all.insert(space, Arc::clone(&packed));
        Ok(packed)
    }
}

fn wanted(db: &dyn Db, probe: &Probe) -> Result<Wanted> {
    match probe {
        Probe::Asset(hash) => {
            let sql = "SELECT f.space_id, f.vector, f.asset_id FROM features f \
                 JOIN assets s ON s.id = f.asset_id JOIN spaces p ON p.id = f.space_id \
                 WHERE s.hash = ? ORDER BY p.name LIKE 'texts:%', f.id DESC LIMIT 1";
            let found = db.first(sql, values![&hash.0], |row| {
                let vector = numbers(blob(row.cell(1)?)).collect();
                Ok(Wanted { space: row.get(0)?, vector, except: Some(row.get(2)?) })
            })?;
            let mut wanted = found.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    "the library has no features of this photo; caption it again with the library on",
                )
            })?;
            wanted.vector = normalised(&wanted.vector)?;
            Ok(wanted)
        }
        Probe::Features(features) => {
            let vector = normalised(&features.vector)?;
            let sql = "SELECT id FROM spaces WHERE name = ? AND dim = ?";
            let values = values![&features.space, vector.len()];
            let space = db.first(sql, values, |row| row.get(0))?;
            let space = space.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    "the library has no photo with features of this model; caption some with it first",
                )
            })?;
            Ok(Wanted { space, vector, except: None })
        }
    }
}

/// The bytes of a vector.
fn blob(cell: Cell<'_>) -> &[u8] {
    if let Cell::Blob(bytes) = cell { bytes } else { &[] }
}

/// The best photos, and whether some in memory are gone.
fn search(
    db: &dyn Db,
    matrix: &Matrix,
    wanted: &Wanted,
    limit: usize,
    min_score: f32,
) -> Result<(Vec<Neighbour>, bool)> {
    let sql = "SELECT s.id, s.hash, f.vector FROM features f JOIN assets s ON s.id = f.asset_id \
         WHERE f.id = ?";
    let mut best: Vec<Neighbour> = Vec::new();
    let mut floor = min_score;
    let mut stale = false;
    // One more, because the photo itself is among them.
    for candidate in matrix.candidates(&wanted.vector, limit + 1) {
        // The others cannot be better.
        if candidate.high < floor {
            break;
        }
        let found = db.first(sql, values![candidate.row], |row| {
            let score = cosine(&wanted.vector, blob(row.cell(2)?));
            Ok((row.get::<i64>(0)?, Neighbour { hash: read::hash(row, 1)?, score }))
        })?;
        let Some((asset, neighbour)) = found else {
            stale = true;
            continue;
        };
        if wanted.except == Some(asset) || neighbour.score < floor {
            continue;
        }
        let at = best.partition_point(|other| other.score >= neighbour.score);
        best.insert(at, neighbour);
        best.truncate(limit);
        if best.len() == limit {
            floor = best.last().map_or(floor, |last| last.score.max(min_score));
        }
    }
    Ok((best, stale))
}

/// Refuses more bits than [`near_duplicates`] can find.
fn check_bits(bits: u32) -> Result<()> {
    if bits <= MAX_BITS {
        return Ok(());
    }
    Err(Error::parameter(
        "bits",
        format!("near duplicates differ in 0 to {MAX_BITS} bits; lower bits"),
    ))
}

/// The groups that were found last, because those who page through them ask again for each page.
#[derive(Debug, Default)]
pub(crate) struct Alike(Mutex<Option<Found>>);

#[derive(Debug)]
struct Found {
    max_bits: u32,
    /// The changes of hashes that were counted before.
    changes: i64,
    groups: Groups,
}

impl Alike {
    /// The groups of [`near_duplicates`]. Others wait while they are found.
    pub(crate) fn groups(&self, db: &dyn Db, max_bits: u32) -> Result<Groups> {
        check_bits(max_bits)?;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sql = "SELECT value FROM counters WHERE name = 'hashes_changed'";
        let changes = db.first(sql, &[], |row| row.get(0))?.unwrap_or(0);
        if let Some(found) = &*last
            && (found.max_bits, found.changes) == (max_bits, changes)
        {
            return Ok(Arc::clone(&found.groups));
        }
        let groups = Arc::new(near_duplicates(db, max_bits)?);
        *last = Some(Found { max_bits, changes, groups: Arc::clone(&groups) });
        Ok(groups)
    }
}

/// Groups of photos whose hashes differ in few bits.
///
/// Of four parts of 16 bits, one differs in at most one bit if all differ in at most seven. So photos
/// with a part in common, or nearly so, are all that must be compared.
fn near_duplicates(db: &dyn Db, max_bits: u32) -> Result<Vec<Vec<ContentHash>>> {
    let sql = "SELECT hash, dhash FROM assets WHERE dhash IS NOT NULL ORDER BY id";
    let photos: Vec<(ContentHash, u64)> = db.all(sql, &[], |row| {
        let dhash: i64 = row.get(1)?;
        Ok((read::hash(row, 0)?, u64::from_ne_bytes(dhash.to_ne_bytes())))
    })?;
    let hashes: Vec<u64> = photos.iter().map(|(_, dhash)| *dhash).collect();
    let mut groups: HashMap<usize, Vec<ContentHash>> = HashMap::new();
    for (index, root) in grouped(&hashes, max_bits).into_iter().enumerate() {
        groups.entry(root).or_default().push(photos[index].0);
    }
    let mut groups: Vec<(usize, Vec<ContentHash>)> =
        groups.into_iter().filter(|(_, group)| group.len() > 1).collect();
    groups.sort_unstable_by_key(|(root, _)| *root);
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// For each hash, the first one of its group.
fn grouped(hashes: &[u64], max_bits: u32) -> Vec<usize> {
    let mut parents: Vec<usize> = (0..hashes.len()).collect();
    // Equal hashes are one: there may be very many of a plain colour.
    let mut first: HashMap<u64, usize> = HashMap::new();
    for (index, hash) in hashes.iter().enumerate() {
        let representative = *first.entry(*hash).or_insert(index);
        parents[index] = representative;
    }
    let mut distinct: Vec<(u64, usize)> = first.into_iter().collect();
    distinct.sort_unstable_by_key(|(_, index)| *index);
    for part in 0..4 {
        let key = |hash: u64| (hash >> (16 * part)) as u16;
        let mut buckets: HashMap<u16, Vec<(u64, usize)>> = HashMap::new();
        for &(hash, index) in &distinct {
            buckets.entry(key(hash)).or_default().push((hash, index));
        }
        for &(hash, index) in &distinct {
            let near = (0..16).map(|bit| key(hash) ^ (1 << bit)).chain([key(hash)]);
            for &(other, of) in near.filter_map(|key| buckets.get(&key)).flatten() {
                if of < index && (hash ^ other).count_ones() <= max_bits {
                    let (a, b) = (root(&mut parents, index), root(&mut parents, of));
                    parents[a.max(b)] = a.min(b);
                }
            }
        }
    }
    (0..hashes.len()).map(|index| root(&mut parents, index)).collect()
}

fn root(parents: &mut [usize], mut index: usize) -> usize {
    while parents[index] != index {
        parents[index] = parents[parents[index]];
        index = parents[index];
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_comparing_all() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state ^ (state >> 29)
        };
        let mut hashes: Vec<u64> = (0..150).map(|_| random()).collect();
        for index in 0..150 {
            let changed =
                (0..index % 11).fold(hashes[index], |hash, _| hash ^ (1 << (random() % 64)));
            hashes.push(changed);
        }
        for max_bits in [0, 3, 7] {
            let mut expected: Vec<usize> = (0..hashes.len()).collect();
            for a in 0..hashes.len() {
                for b in 0..a {
                    if (hashes[a] ^ hashes[b]).count_ones() <= max_bits {
                        let (x, y) = (root(&mut expected, a), root(&mut expected, b));
                        expected[x.max(y)] = x.min(y);
                    }
                }
            }
            let expected: Vec<usize> = (0..hashes.len()).map(|i| root(&mut expected, i)).collect();
            assert_eq!(grouped(&hashes, max_bits), expected, "{max_bits}");
        }
    }
}
