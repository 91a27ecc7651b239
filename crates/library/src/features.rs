//! Which photos look alike: exact search over features.
//!
//! Features are kept in the database in half precision. For searching they are packed in memory, one
//! byte a number with a scale and an error for each photo: 400 bytes for 384 numbers. A pass over these
//! gives each photo a range that its similarity lies in. Only photos whose range reaches into the best
//! ones are compared in half precision, so the result is that of comparing all. The matrix is built from
//! the database when it is first needed, and again when photos were removed by another process.

use std::ops::Range;
use std::thread;

use cutline_error::{Error, Result};
use half::f16;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dot::{Dot, Work};
use crate::types::ContentHash;

/// Numbers in features at most. Sums of this many products fit 32 bits; see [`Query::new`].
pub(crate) const MAX_DIM: usize = 4096;
/// Photos that are worth a thread.
const ROWS_PER_THREAD: usize = 16 << 10;
/// The largest number of a packed query; with 127 for a photo, `MAX_DIM` products fit an `i32`.
pub(crate) const QUERY_STEPS: f32 = 2047.0;

/// The output of a vision tower for a photo.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// What made them: features of different spaces are never compared.
    pub space: String,
    /// The numbers, of any length.
    pub vector: Vec<f32>,
}

/// What to compare with.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A photo of the library.
    Asset(ContentHash),
    /// Features of another photo.
    Features(Features),
}

/// Asks for similar photos.
#[derive(Debug, Clone, PartialEq)]
pub struct Similar {
    /// What to compare with.
    pub probe: Probe,
    /// Photos at most.
    pub limit: usize,
    /// The least cosine, -1 to 1.
    pub min_score: f32,
}

/// A photo that looks like another one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Neighbour {
    /// The photo.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// The cosine of the angle between the features, -1 to 1.
    pub score: f32,
}

impl Features {
    /// How the names of spaces begin in which texts are beside photos. Two photos are compared in another space
    /// if there is one: how they look says more.
    pub const WITH_TEXTS: &str = "texts:";

    /// The vector of length 1, as half-precision bytes.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it has no direction, or too many
    /// numbers.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let normalised = normalised(&self.vector)?;
        Ok(normalised.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect())
    }
}

/// `vector` with length 1.
///
/// # Errors
/// As [`Features::to_bytes`].
pub(crate) fn normalised(vector: &[f32]) -> Result<Vec<f32>> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if vector.is_empty() || vector.len() > MAX_DIM || !length.is_finite() || length < 1e-20 {
        return Err(Error::parameter(
            "features",
            format!("features are 1 to {MAX_DIM} finite numbers, not all 0; correct them"),
        ));
    }
    Ok(vector.iter().map(|x| (f64::from(*x) / length) as f32).collect())
}

/// The numbers of a stored vector.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32())
}

/// The cosine of two stored vectors.
pub(crate) fn cosine(query: &[f32], bytes: &[u8]) -> f32 {
    query.iter().zip(numbers(bytes)).map(|(a, b)| a * b).sum()
}

/// The features of one space, packed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Matrix {
    dim: usize,
    /// The row of the database that each photo's features are in.
    rows: Vec<i64>,
    codes: Vec<i8>,
    /// What a code is worth.
    scales: Vec<f32>,
    /// The length of what the codes leave out.
    errors: Vec<f32>,
}

/// A photo whose similarity is between `low` and `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) row: i64,
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl Matrix {
    pub(crate) fn new(dim: usize) -> Self {
        Self { dim, ..Self::default() }
    }

    /// Adds the stored vector of the database's row `row`. Vectors of another length are left out.
    pub(crate) fn push(&mut self, row: i64, bytes: &[u8]) {
        if bytes.len() != 2 * self.dim {
            return;
        }
        let largest = numbers(bytes).fold(0_f32, |largest, x| largest.max(x.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        let mut error = 0_f32;
        for x in numbers(bytes) {
            let code = (x / scale).round().clamp(-127.0, 127.0);
            self.codes.push(code as i8);
            error += (x - code * scale).powi(2);
        }
        self.rows.push(row);
        self.scales.push(scale);
        self.errors.push(error.sqrt());
    }

    /// All photos that may be among the `count` most similar ones to `query`, which has length 1. The
    /// most promising come first.
    pub(crate) fn candidates(&self, query: &[f32], count: usize) -> Vec<Candidate> {
        if query.len() != self.dim || count == 0 {
            return Vec::new();
        }
        let query = Query::new(query);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (self.rows.len() / ROWS_PER_THREAD).clamp(1, cores);
        let part = self.rows.len().div_ceil(threads).max(1);
        let scan = |part_index: usize| {
            let end = ((part_index + 1) * part).min(self.rows.len());
            self.scan(&query, (part_index * part).min(end)..end, count)
        };
        let mut all = thread::scope(|scope| {
            let others: Vec<_> =
                (1..threads).map(|index| scope.spawn(move || scan(index))).collect();
            let mut all = scan(0);
            for other in others {
                all.extend(other.join().unwrap_or_default());
            }
            all
        });
        prune(&mut all, count);
        all.sort_unstable_by(|a, b| b.high.total_cmp(&a.high).then(a.row.cmp(&b.row)));
        all
    }

    fn scan(&self, query: &Query, range: Range<usize>, count: usize) -> Vec<Candidate> {
        Dot::new().over(Scan { matrix: self, query, range, count })
    }
}

/// A pass over some of the photos.
struct Scan<'s> {
    matrix: &'s Matrix,
    query: &'s Query,
    range: Range<usize>,
    count: usize,
}

impl Work for Scan<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn run(self, dot: impl Fn(&[i8], &[i16]) -> i32) -> Vec<Candidate> {
        let Self { matrix, query, range, count } = self;
        let mut found: Vec<Candidate> = Vec::with_capacity(4 * count);
        let mut floor = f32::NEG_INFINITY;
        let codes = &matrix.codes[range.start * matrix.dim..range.end * matrix.dim];
        for (index, codes) in range.zip(codes.chunks_exact(matrix.dim)) {
            let scale = matrix.scales[index];
            let score = dot(codes, &query.codes) as f32 * scale * query.scale;
            // Cauchy-Schwarz, for both roundings, and for those of this arithmetic.
            let error = matrix.errors[index] + query.error * (1.0 + matrix.errors[index]) + 1e-5;
            if score + error < floor {
                continue;
            }
            found.push(Candidate {
                row: matrix.rows[index],
                low: score - error,
                high: score + error,
            });
            if found.len() == found.capacity() {
                floor = prune(&mut found, count);
                if found.len() * 2 > found.capacity() {
                    found.reserve(found.capacity());
                }
            }
        }
        found
    }
}

/// Removes those that `count` others are better than. Returns what is needed to be among the best.
fn prune(found: &mut Vec<Candidate>, count: usize) -> f32 {
    if found.len() <= count {
        return f32::NEG_INFINITY;
    }
    found.select_nth_unstable_by(count - 1, |a, b| b.low.total_cmp(&a.low));
    let floor = found[count - 1].low;
    found.retain(|candidate| candidate.high >= floor);
    floor
}

/// A packed query.
struct Query {
    codes: Vec<i16>,
    scale: f32,
    error: f32,
}

impl Query {
    fn new(query: &[f32]) -> Self {
        let largest = query.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
        let scale = largest / QUERY_STEPS;
        let codes: Vec<i16> = query.iter().map(|x| (x / scale).round() as i16).collect();
        let rest = query.iter().zip(&codes).map(|(x, code)| (x - f32::from(*code) * scale).powi(2));
        Self { error: rest.sum::<f32>().sqrt(), codes, scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, the same each time.
    fn noise(seed: u64) -> impl Iterator<Item = f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        })
    }

    #[test]
    fn candidates_contain_the_best_by_comparing_all() {
        let dim = 48;
        let stored: Vec<Vec<u8>> = (1..3000)
            .map(|seed| {
                let vector = noise(seed).take(dim).collect();
                Features { space: String::new(), vector }.to_bytes().unwrap()
            })
            .collect();
        let mut matrix = Matrix::new(dim);
        for (row, bytes) in stored.iter().enumerate() {
            matrix.push(row as i64 + 1, bytes);
        }
        for seed in 5000..5020 {
            let query = normalised(&noise(seed).take(dim).collect::<Vec<_>>()).unwrap();
            let mut exact: Vec<(f32, i64)> = stored
                .iter()
                .enumerate()
                .map(|(row, bytes)| (cosine(&query, bytes), row as i64 + 1))
                .collect();
            exact.sort_by(|a, b| b.0.total_cmp(&a.0));
            let candidates = matrix.candidates(&query, 10);
            assert!(candidates.len() < 600, "{} candidates of 3000", candidates.len());
            for (score, row) in &exact[..10] {
                let candidate = candidates.iter().find(|candidate| candidate.row == *row).unwrap();
                assert!(
                    candidate.low <= *score && *score <= candidate.high,
                    "{candidate:?} {score}"
                );
            }
        }
    }

    #[test]
    fn features_without_a_direction_are_refused() {
        for vector in [vec![], vec![0.0; 3], vec![f32::NAN], vec![1.0; MAX_DIM + 1]] {
            assert!(normalised(&vector).is_err());
        }
    }
}
