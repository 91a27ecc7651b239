//! The keys and values of the tokens written so far, and a token's attention to them.

use crate::attention::Heads;
use crate::buffer::{Buffer, DisjointMut};
use crate::isa::{Isa, Tier};
use crate::rows::{self, BLOCK};
use crate::thread_pool::ThreadPool;

/// Keys and values of every row, layer and head, `capacity` places each, in f32.
#[derive(Debug)]
pub struct SelfKv {
    heads: Heads,
    layers: usize,
    rows: usize,
    capacity: usize,
    keys: Buffer<f32>,
    values: Buffer<f32>,
    /// What [`reorder`](Self::reorder) copies into before the two change places.
    spare: [Buffer<f32>; 2],
}

impl SelfKv {
    /// Without room, to be [`reset`](Self::reset).
    pub fn new(heads: Heads, layers: usize) -> Self {
        Self {
            heads,
            layers,
            rows: 1,
            capacity: 0,
            keys: Buffer::new(),
            values: Buffer::new(),
            spare: [Buffer::new(), Buffer::new()],
        }
    }

    /// Forgets everything: one row, room for `capacity` tokens. Memory is taken only if there was
    /// never as much.
    pub fn reset(&mut self, capacity: usize) {
        (self.rows, self.capacity) = (1, capacity);
        let len = self.row_len();
        self.keys.resize(len);
        self.values.resize(len);
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Numbers of a head and place; padded so that a table has whole blocks.
    fn padded(&self) -> usize {
        self.heads.size.next_multiple_of(BLOCK)
    }

    fn row_len(&self) -> usize {
        self.layers * self.heads.count * self.capacity * self.padded()
    }

    /// First number of a row's table of a layer and head.
    fn table(&self, row: usize, layer: usize, head: usize) -> usize {
        row * self.row_len() + (layer * self.heads.count + head) * self.capacity * self.padded()
    }

    /// Writes a token's keys and values to a place of its row; `qkv` is `[3 · width]`.
    pub fn write(&mut self, layer: usize, row: usize, place: usize, qkv: &[f32]) {
        let (width, size, padded) = (self.heads.width(), self.heads.size, self.padded());
        for head in 0..self.heads.count {
            let table = self.table(row, layer, head);
            let (keys, values) =
                (&qkv[width + head * size..][..size], &qkv[2 * width + head * size..][..size]);
            self.keys.as_mut_slice()[table + place * padded..][..size].copy_from_slice(keys);
            // Values lie in parts of a block's width: each part is a table of its own.
            for (part, values) in values.chunks(BLOCK).enumerate() {
                let start = table + (part * self.capacity + place) * BLOCK;
                self.values.as_mut_slice()[start..][..values.len()].copy_from_slice(values);
            }
        }
    }

    /// Makes row `n` a copy of the former row `sources[n]`, of which `filled` places are in use.
    pub fn reorder(&mut self, sources: &[usize], filled: usize) {
        let (row_len, padded) = (self.row_len(), self.padded());
        let table_len = self.capacity * padded;
        let [keys, values] = &mut self.spare;
        for (old, new) in [(&self.keys, keys), (&self.values, values)] {
            new.resize(sources.len() * row_len);
            let (old, new) = (old.as_slice(), new.as_mut_slice());
            for (row, &source) in sources.iter().enumerate() {
                for table in (0..row_len).step_by(table_len) {
                    // Parts of a block's width are shorter tables; in keys there is one of all.
                    for part in (0..table_len).step_by(self.capacity * BLOCK) {
                        let len = filled * BLOCK;
                        let (from, to) =
                            (source * row_len + table + part, row * row_len + table + part);
                        new[to..to + len].copy_from_slice(&old[from..from + len]);
                    }
                }
            }
        }
        let [keys, values] = &mut self.spare;
        std::mem::swap(&mut self.keys, keys);
        std::mem::swap(&mut self.values, values);
        self.rows = sources.len();
    }

    /// One head of a token that sees `seen` places of its row.
    fn attend(
        &self,
        isa: Isa,
        (layer, row, head): (usize, usize, usize),
        seen: usize,
        query: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let (size, padded, table) = (self.heads.size, self.padded(), self.table(row, layer, head));
        let (scores, scale) = (&mut scores[..seen], self.heads.scale());
        for (place, score) in scores.iter_mut().enumerate() {
            let key = &self.keys.as_slice()[table + place * padded..][..size];
            *score = rows::dot(isa, query, key) * scale;
        }
        let sum = rows::softmax_numerators(isa, scores);
        for (part, out) in out.chunks_mut(BLOCK).enumerate() {
            let values =
                &self.values.as_slice()[table + part * self.capacity * BLOCK..][..seen * BLOCK];
            let mut mixed = [0f32; BLOCK];
            rows::weighted_sum_f32(isa, scores, values, &mut mixed);
            out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value / sum);
        }
    }
}

/// A cache in a batch, and how many places are filled but for the tokens that attend now.
pub type BatchItem<'a> = (&'a SelfKv, usize);

/// Every item's rows of `qkv`, `[rows · per_row, 3 · width]`, attend to their row's places up to and
/// including their own; all keys and values have been [`put`](SelfKv::write) there. Into `out`,
/// `[rows · per_row, width]`.
pub fn attend<'a>(
    pool: &ThreadPool,
    (tier, layer, per_row): (Tier, usize, usize),
    items: impl ExactSizeIterator<Item = BatchItem<'a>> + Clone + Sync,
    qkv: &[f32],
    scratch: &mut Buffer<f32>,
    out: &mut [f32],
) {
    let Some(heads) = items.clone().next().map(|(cache, _)| cache.heads) else { return };
    let places = items.clone().map(|(cache, _)| cache.capacity).max().unwrap_or(0);
    scratch.resize(items.len() * places);
    let (scratch, out, width) =
        (DisjointMut::new(scratch.as_mut_slice()), DisjointMut::new(out), heads.width());
    pool.run(items.len(), |index| {
        let mut first = 0;
        for (number, (cache, filled)) in items.clone().enumerate() {
            let count = cache.rows * per_row;
            if number != index {
                first += count;
                continue;
            }
            // SAFETY: scratch belongs to the task, and so do the item's rows.
            let (scores, out) = unsafe {
                (scratch.slice(index * places, places), out.slice(first * width, count * width))
            };
            for (token, (qkv, out)) in qkv[first * 3 * width..][..count * 3 * width]
                .chunks_exact(3 * width)
                .zip(out.chunks_exact_mut(width))
                .enumerate()
            {
                let (row, seen) = (token / per_row, filled + token % per_row + 1);
                for head in 0..heads.count {
                    let part = head * heads.size..(head + 1) * heads.size;
                    let query = &qkv[part.clone()];
                    cache.attend(
                        tier.isa(),
                        (layer, row, head),
                        seen,
                        query,
                        scores,
                        &mut out[part],
                    );
                }
            }
            return;
        }
    });
}
