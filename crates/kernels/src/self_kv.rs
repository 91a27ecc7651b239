//! Self-attention while decoding: the KV cache of the tokens so far, and the attention to it.

use crate::attention::Heads;
use crate::buffer::{Buffer, DisjointMut};
use crate::isa::Isa;
use crate::rows::{self, BLOCK};
use crate::thread_pool::ThreadPool;

/// The KV cache of one image: keys and values of each row (sequence), layer and head, for up to
/// `capacity` positions, in f32.
#[derive(Debug)]
pub struct SelfKv {
    heads: Heads,
    layers: usize,
    rows: usize,
    capacity: usize,
    keys: Buffer<f32>,
    values: Buffer<f32>,
    /// Where [`reorder`](Self::reorder) copies to before it swaps them with keys and values.
    spare: [Buffer<f32>; 2],
}

impl SelfKv {
    /// A cache without capacity, for [`reset`](Self::reset).
    #[must_use]
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

    /// Discards the contents: one row, with a capacity of `capacity` tokens. Allocates only if the
    /// cache was never as large.
    pub fn reset(&mut self, capacity: usize) {
        (self.rows, self.capacity) = (1, capacity);
        let len = self.row_len();
        self.keys.resize(len);
        self.values.resize(len);
    }

    /// Returns the memory of all rows but one. Otherwise every spare cache would in time be as large as
    /// that of the widest job.
    pub fn shrink(&mut self) {
        if self.keys.allocated().max(self.spare[0].allocated()) > self.row_len() {
            *self = Self::new(self.heads, self.layers);
        }
    }

    /// Rows, each a sequence of tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The most tokens of a row.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Numbers of a head and position; padded to whole blocks.
    fn padded(&self) -> usize {
        self.heads.size.next_multiple_of(BLOCK)
    }

    /// Numbers of a row, in all layers and heads.
    fn row_len(&self) -> usize {
        self.layers * self.heads.count * self.capacity * self.padded()
    }

    /// The first number of the table of a row, layer and head.
    fn table(&self, row: usize, layer: usize, head: usize) -> usize {
        row * self.row_len() + (layer * self.heads.count + head) * self.capacity * self.padded()
    }

    /// Writes the key and value of a token at `position` of its row; `qkv` is `[3 · width]`.
    ///
    /// # Panics
    /// There is no such layer, row or position, or `qkv` is too short.
    pub fn write(&mut self, layer: usize, row: usize, position: usize, qkv: &[f32]) {
        let (width, size, padded) = (self.heads.width(), self.heads.size, self.padded());
        for head in 0..self.heads.count {
            let table = self.table(row, layer, head);
            let (keys, values) =
                (&qkv[width + head * size..][..size], &qkv[2 * width + head * size..][..size]);
            self.keys.as_mut_slice()[table + position * padded..][..size].copy_from_slice(keys);
            // Values are in blocks, each a table of its own.
            for (part, values) in values.chunks(BLOCK).enumerate() {
                let start = table + (part * self.capacity + position) * BLOCK;
                self.values.as_mut_slice()[start..][..values.len()].copy_from_slice(values);
            }
        }
    }

    /// Makes row `n` a copy of the former row `sources[n]`, of which `filled` positions are in use.
    ///
    /// # Panics
    /// A source is not a row.
    pub fn reorder(&mut self, sources: &[usize], filled: usize) {
        let (row_len, padded) = (self.row_len(), self.padded());
        // The keys of a position are contiguous; values are in blocks, each a table of its own.
        let [keys, values] = &mut self.spare;
        let key_parts = (&self.keys, keys, self.capacity * padded, filled * padded);
        let value_parts = (&self.values, values, self.capacity * BLOCK, filled * BLOCK);
        for (old, new, part_len, used) in [key_parts, value_parts] {
            new.resize(sources.len() * row_len);
            let (old, new) = (old.as_slice(), new.as_mut_slice());
            for (row, &source) in sources.iter().enumerate() {
                for part in (0..row_len).step_by(part_len.max(1)) {
                    let (from, to) = (source * row_len + part, row * row_len + part);
                    new[to..to + used].copy_from_slice(&old[from..from + used]);
                }
            }
        }
        let [keys, values] = &mut self.spare;
        std::mem::swap(&mut self.keys, keys);
        std::mem::swap(&mut self.values, values);
        self.rows = sources.len();
    }

    /// The attention of a head of a token to the first `visible` positions of its row.
    fn attend(
        &self,
        isa: Isa,
        (layer, row, head): (usize, usize, usize),
        visible: usize,
        query: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let (size, padded, table) = (self.heads.size, self.padded(), self.table(row, layer, head));
        let (scores, scale) = (&mut scores[..visible], self.heads.scale());
        for (position, score) in scores.iter_mut().enumerate() {
            let key = &self.keys.as_slice()[table + position * padded..][..size];
            *score = rows::dot(isa, query, key) * scale;
        }
        let sum = rows::softmax_numerators(isa, scores);
        for (part, out) in out.chunks_mut(BLOCK).enumerate() {
            let values =
                &self.values.as_slice()[table + part * self.capacity * BLOCK..][..visible * BLOCK];
            let mut mixed = [0f32; BLOCK];
            rows::weighted_sum_f32(isa, scores, values, &mut mixed);
            out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value / sum);
        }
    }
}

/// The cache of an image, and the number of positions that were filled before this step.
pub type BatchItem<'a> = (&'a SelfKv, usize);

/// Attention of each item's new tokens, `per_row` of every row, to the positions of their row up to
/// and including their own. The new keys and values have already been [written](SelfKv::write).
/// `qkv` is `[rows · per_row, 3 · width]` and `out` `[rows · per_row, width]`, in the order of the
/// items and their rows; all items have the same heads.
///
/// # Panics
/// A slice is too short, or a cache has no such layer or position.
pub fn attend<'a>(
    pool: &ThreadPool,
    (isa, layer, per_row): (Isa, usize, usize),
    items: impl ExactSizeIterator<Item = BatchItem<'a>> + Clone + Sync,
    qkv: &[f32],
    scratch: &mut Buffer<f32>,
    out: &mut [f32],
) {
    let Some(heads) = items.clone().next().map(|(kv, _)| kv.heads) else { return };
    let capacity = items.clone().map(|(kv, _)| kv.capacity).max().unwrap_or(0);
    scratch.resize(items.len() * capacity);
    let scratch = DisjointMut::new(scratch.as_mut_slice());
    let (out, width) = (DisjointMut::new(out), heads.width());
    pool.run(items.len(), |index| {
        let before = items.clone().take(index);
        let first: usize = before.map(|(kv, _)| kv.rows * per_row).sum();
        let Some((kv, filled)) = items.clone().nth(index) else { return };
        let count = kv.rows * per_row;
        // SAFETY: each task has its own part of the scratch memory, and the rows of its own item.
        let (scores, out) = unsafe {
            (scratch.slice(index * capacity, capacity), out.slice(first * width, count * width))
        };
        for (token, (qkv, out)) in qkv[first * 3 * width..][..count * 3 * width]
            .chunks_exact(3 * width)
            .zip(out.chunks_exact_mut(width))
            .enumerate()
        {
            let (row, visible) = (token / per_row, filled + token % per_row + 1);
            for head in 0..heads.count {
                let part = head * heads.size..(head + 1) * heads.size;
                let (query, table) = (&qkv[part.clone()], (layer, row, head));
                kv.attend(isa, table, visible, query, scores, &mut out[part]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_cache_returns_its_memory_and_a_narrow_one_keeps_it() {
        let heads = Heads { count: 2, size: 16 };
        let mut kv = SelfKv::new(heads, 1);
        kv.reset(4);
        let row = kv.keys.allocated();
        kv.shrink();
        assert!(row > 0 && kv.keys.allocated() == row);
        kv.reorder(&[0, 0, 0], 0);
        assert_eq!(kv.keys.allocated(), 3 * row);
        kv.shrink();
        assert_eq!((kv.keys.allocated(), kv.spare[0].allocated(), kv.rows()), (0, 0, 1));
        kv.reset(4);
        assert_eq!(kv.keys.allocated(), row);
    }
}
