//! Attention of a few queries to a table that stays: a photo's keys and values, or the tokens
//! written so far.
//!
//! Such a table is read from memory for every token, so its size is what costs: with 8-bit weights
//! it is kept in 8 bits, with a scale for every key and every value of a head.

use crate::Precision;
use crate::attention::Heads;
use crate::buffer::{Buffer, DisjointMut, Number};
use crate::isa::{Isa, Tier};
use crate::math::{LANES, from_bf16, to_bf16};
use crate::rows::{self, BLOCK};
use crate::thread_pool::ThreadPool;

/// Numbers of a table, in the format of the model's precision.
#[derive(Debug)]
enum KvTable {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8(Buffer<i8>),
}

impl KvTable {
    fn bytes(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.as_slice().len() * 4,
            Self::Bf16(numbers) => numbers.as_slice().len() * 2,
            Self::Int8(numbers) => numbers.as_slice().len(),
        }
    }

    /// `Σ weights[n] · row n` of the rows of as many numbers as `out` has, from number `first` on.
    fn weighted(&self, isa: Isa, first: usize, weights: &[f32], out: &mut [f32]) {
        let range = first..first + weights.len() * out.len();
        match self {
            Self::F32(n) => rows::weighted_sum_f32(isa, weights, &n.as_slice()[range], out),
            Self::Bf16(n) => rows::weighted_sum_bf16(isa, weights, &n.as_slice()[range], out),
            Self::Int8(n) => rows::weighted_sum_i8(isa, weights, &n.as_slice()[range], out),
        }
    }
}

/// A number as a table of one format keeps it.
trait KvElement: Number {
    /// Converts a row, of which one unit is worth `1 / inverse` in 8 bits.
    fn convert(isa: Isa, row: &[f32], inverse: f32, out: &mut [Self]);
}

impl KvElement for f32 {
    fn convert(_: Isa, row: &[f32], _: f32, out: &mut [Self]) {
        out.copy_from_slice(row);
    }
}

impl KvElement for u16 {
    fn convert(_: Isa, row: &[f32], _: f32, out: &mut [Self]) {
        out.iter_mut().zip(row).for_each(|(out, &value)| *out = to_bf16(value) as u16);
    }
}

impl KvElement for i8 {
    fn convert(isa: Isa, row: &[f32], inverse: f32, out: &mut [Self]) {
        rows::quantize_signed(isa, row, inverse, out);
    }
}

/// Keys and values of one image in one layer, for all heads.
///
/// Keys lie transposed in blocks of [`BLOCK`] keys, and what is left of them in blocks of [`LANES`];
/// values lie row after row of [`BLOCK`] numbers. Heads of other sizes are padded.
#[derive(Debug)]
pub struct CrossKv {
    heads: Heads,
    tokens: usize,
    keys: KvTable,
    values: KvTable,
    /// Of every head's keys, then of every head's values, in bf16; empty unless in 8 bits.
    scales: Vec<u16>,
}

/// Keys with those that fill up the last block.
fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// First key and number of keys of the block that a key is in.
fn block_of(tokens: usize, key: usize) -> (usize, usize) {
    let first = key - key % BLOCK;
    if first + BLOCK <= tokens { (first, BLOCK) } else { (key - key % LANES, LANES) }
}

/// Heads and tokens of the tables that are being made.
#[derive(Clone, Copy)]
struct Shape {
    isa: Isa,
    heads: Heads,
    tokens: usize,
}

impl Shape {
    /// Numbers of one head's keys.
    fn keys(&self) -> usize {
        padded(self.tokens) * self.heads.size
    }

    /// Numbers of one head's values.
    fn values(&self) -> usize {
        self.heads.size.div_ceil(BLOCK) * self.tokens * BLOCK
    }

    /// Room for the tables of all heads. What pads them may be of an earlier image: it takes part in
    /// sums that nobody reads, of keys behind the last token and columns behind the head's size.
    fn tables<'t, T: KvElement>(
        &self,
        keys: &'t mut Buffer<T>,
        values: &'t mut Buffer<T>,
    ) -> (&'t mut [T], &'t mut [T]) {
        keys.resize(self.heads.count * self.keys());
        values.resize(self.heads.count * self.values());
        (keys.as_mut_slice(), values.as_mut_slice())
    }

    /// Writes the tables of every head; `scales` as in [`CrossKv`].
    fn fill<T: KvElement + Default>(
        self,
        pool: &ThreadPool,
        key_values: &[f32],
        (keys, values): (&mut [T], &mut [T]),
        scales: &mut [u16],
    ) {
        let Self { heads, tokens, .. } = self;
        let (keys, values, scales) =
            (DisjointMut::new(keys), DisjointMut::new(values), DisjointMut::new(scales));
        pool.run(heads.count, |head| {
            // SAFETY: every head has tables and scales of its own; without scales the slices are
            // empty.
            let (keys, values, key_scales, value_scales) = unsafe {
                let some = if scales.len() > 0 { tokens } else { 0 };
                (
                    keys.slice(head * self.keys(), self.keys()),
                    values.slice(head * self.values(), self.values()),
                    scales.slice(head * some, some),
                    scales.slice((heads.count + head) * some, some),
                )
            };
            self.fill_head(key_values, head, (keys, key_scales), (values, value_scales));
        });
    }

    fn fill_head<T: KvElement + Default>(
        self,
        key_values: &[f32],
        head: usize,
        (keys, key_scales): (&mut [T], &mut [u16]),
        (values, value_scales): (&mut [T], &mut [u16]),
    ) {
        let Self { isa, heads: Heads { size, .. }, tokens, .. } = self;
        let width = self.heads.width();
        let mut converted = [T::default(); BLOCK];
        for token in 0..tokens {
            let row = |part: usize| &key_values[(2 * token + part) * width + head * size..][..size];
            let scale = |scales: &mut [u16], part: usize| match scales.get_mut(token) {
                Some(scale) => {
                    let (own, inverse) = scale_of(isa, row(part));
                    *scale = own;
                    inverse
                }
                None => 1.0,
            };
            let inverse = scale(key_scales, 0);
            let (first, width) = block_of(tokens, token);
            let block = &mut keys[first * size..][..width * size];
            for (part, row) in row(0).chunks(BLOCK).enumerate() {
                T::convert(isa, row, inverse, &mut converted[..row.len()]);
                let lines = block[part * BLOCK * width..].chunks_exact_mut(width);
                lines
                    .zip(&converted[..row.len()])
                    .for_each(|(line, &key)| line[token - first] = key);
            }
            let inverse = scale(value_scales, 1);
            for (part, row) in row(1).chunks(BLOCK).enumerate() {
                let line = &mut values[(part * tokens + token) * BLOCK..][..row.len()];
                T::convert(isa, row, inverse, line);
            }
        }
    }
}

/// The scale of a row of signed 8-bit numbers, in bf16, and its inverse.
fn scale_of(isa: Isa, row: &[f32]) -> (u16, f32) {
    // NaN for a row with what is no number: its attention is then NaN too.
    let scale = rows::max_abs(isa, row) / 127.0;
    // Rounded up, so that no number becomes more than 127.
    let kept = (scale.to_bits().saturating_add(0xffff) >> 16) as u16;
    let scale = from_bf16(kept);
    (kept, if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 })
}

impl CrossKv {
    /// An empty table, to be [`fill`](Self::fill)ed.
    pub fn new(precision: Precision, heads: Heads) -> Self {
        let numbers = || match precision {
            Precision::F32 => KvTable::F32(Buffer::new()),
            Precision::Bf16 => KvTable::Bf16(Buffer::new()),
            Precision::Int8 => KvTable::Int8(Buffer::new()),
        };
        Self { heads, tokens: 0, keys: numbers(), values: numbers(), scales: Vec::new() }
    }

    /// Takes `[tokens, 2 · width]`, a token's keys before its values, in place of what was there;
    /// memory is taken only if there was never as much.
    pub fn fill(&mut self, pool: &ThreadPool, tier: Tier, key_values: &[f32]) {
        self.tokens = key_values.len() / (2 * self.heads.width());
        let shape = Shape { isa: tier.isa(), heads: self.heads, tokens: self.tokens };
        match (&mut self.keys, &mut self.values) {
            (KvTable::F32(keys), KvTable::F32(values)) => {
                let tables = shape.tables(keys, values);
                shape.fill(pool, key_values, tables, &mut []);
            }
            (KvTable::Bf16(keys), KvTable::Bf16(values)) => {
                let tables = shape.tables(keys, values);
                shape.fill(pool, key_values, tables, &mut []);
            }
            (KvTable::Int8(keys), KvTable::Int8(values)) => {
                self.scales.resize(2 * self.heads.count * self.tokens, 0);
                let tables = shape.tables(keys, values);
                shape.fill(pool, key_values, tables, &mut self.scales);
            }
            // `new` makes both of one format.
            _ => {}
        }
    }

    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes() + self.scales.len() * 2
    }

    /// Keys, rounded up to what [`attend`](Self::attend) needs as scratch.
    fn places(&self) -> usize {
        padded(self.tokens)
    }

    /// One head's part of a query row against all keys, into the same part of `out`.
    fn attend(&self, isa: Isa, head: usize, query: &[f32], scratch: &mut [f32], out: &mut [f32]) {
        let (size, tokens) = (self.heads.size, self.tokens);
        let (own, mut key) = (head * padded(tokens), 0);
        while key < tokens {
            let (first, width) = block_of(tokens, key);
            self.keys.weighted(isa, (own + first) * size, query, &mut scratch[first..][..width]);
            key = first + width;
        }
        let (scores, scale) = (&mut scratch[..tokens], self.heads.scale());
        let [key_scales, value_scales] = self.scales_of(head);
        if key_scales.is_empty() {
            scores.iter_mut().for_each(|score| *score *= scale);
        } else {
            scores
                .iter_mut()
                .zip(key_scales)
                .for_each(|(score, &key)| *score *= scale * from_bf16(key));
        }
        let sum = rows::softmax_numerators(isa, scores);
        scores.iter_mut().zip(value_scales).for_each(|(score, &value)| *score *= from_bf16(value));
        let parts = size.div_ceil(BLOCK);
        for (part, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut mixed = [0f32; BLOCK];
            let first = (head * parts + part) * tokens * BLOCK;
            self.values.weighted(isa, first, scores, &mut mixed);
            out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value / sum);
        }
    }

    fn scales_of(&self, head: usize) -> [&[u16]; 2] {
        if self.scales.is_empty() {
            return [&[], &[]];
        }
        let (keys, values) = self.scales.split_at(self.heads.count * self.tokens);
        [keys, values].map(|scales| &scales[head * self.tokens..][..self.tokens])
    }
}

/// Queries of one image in a batch: its table, and how many of the rows are its own.
pub type BatchItem<'a> = (&'a CrossKv, usize);

/// Every item's rows of `queries`, `[rows, width]`, against the item's table, into `out`.
pub fn attend<'a>(
    pool: &ThreadPool,
    tier: Tier,
    items: impl ExactSizeIterator<Item = BatchItem<'a>> + Clone + Sync,
    queries: &[f32],
    scratch: &mut Buffer<f32>,
    out: &mut [f32],
) {
    let isa = tier.isa();
    let Some(heads) = items.clone().next().map(|(memory, _)| memory.heads) else { return };
    let places = items.clone().map(|(memory, _)| memory.places()).max().unwrap_or(0);
    let (tasks, width) = (items.len() * heads.count, heads.width());
    scratch.resize(tasks * places);
    let (scratch, out) = (DisjointMut::new(scratch.as_mut_slice()), DisjointMut::new(out));
    pool.run(tasks, |task| {
        let (index, head) = (task / heads.count, task % heads.count);
        let mut first = 0;
        for (number, (memory, rows)) in items.clone().enumerate() {
            if number == index {
                for row in first..first + rows {
                    let start = row * width + head * heads.size;
                    // SAFETY: scratch belongs to the task, a row's head to one task.
                    let (scratch, out) = unsafe {
                        (scratch.slice(task * places, places), out.slice(start, heads.size))
                    };
                    memory.attend(isa, head, &queries[start..][..heads.size], scratch, out);
                }
                return;
            }
            first += rows;
        }
    });
}
