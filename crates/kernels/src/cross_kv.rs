//! Cross-attention: the keys and values of an image, and the attention of a few queries to them.
//!
//! Every decode step reads these tables from memory, so their size determines the cost. With 8-bit
//! weights they are in 8 bits too, with a scale for every key and every value of a head.

use crate::Precision;
use crate::attention::Heads;
use crate::buffer::{Buffer, DisjointMut};
use crate::isa::Isa;
use crate::math::{LANES, from_bf16, to_bf16};
use crate::rows::{self, BLOCK};
use crate::thread_pool::ThreadPool;

/// The keys and values of one image in one layer, for all heads.
///
/// Keys are transposed in blocks of 64 keys, and the remaining ones in blocks of 16. Values are rows
/// of 64 numbers. Heads of other sizes are padded.
#[derive(Debug)]
pub struct CrossKv {
    heads: Heads,
    tokens: usize,
    tables: Tables,
}

/// Tables in the format of the model's precision.
#[derive(Debug)]
enum Tables {
    F32(KvTables<f32>),
    /// The bits of bf16.
    Bf16(KvTables<u16>),
    Int8(KvTables<i8>),
}

/// Keys and values in one format.
#[derive(Debug)]
struct KvTables<T: KvElement> {
    keys: Buffer<T>,
    values: Buffer<T>,
    /// Scales in bf16, those of all keys before those of all values; empty unless `T` is scaled.
    scales: Vec<u16>,
}

impl<T: KvElement> KvTables<T> {
    fn new() -> Self {
        Self { keys: Buffer::new(), values: Buffer::new(), scales: Vec::new() }
    }

    fn bytes(&self) -> usize {
        let numbers = self.keys.as_slice().len() + self.values.as_slice().len();
        numbers * size_of::<T>() + self.scales.len() * size_of::<u16>()
    }
}

/// A number of a table.
trait KvElement: Copy + Default + Send + Sync {
    /// Whether rows have scales.
    const SCALED: bool = false;

    /// Converts a row; one unit of a scaled row is worth `1 / inverse`.
    fn convert(isa: Isa, row: &[f32], inverse: f32, out: &mut [Self]);

    /// `Σ weights[n] · table[n]` over rows of as many numbers as `out` has.
    fn weighted_sum(isa: Isa, weights: &[f32], table: &[Self], out: &mut [f32]);
}

impl KvElement for f32 {
    fn convert(_: Isa, row: &[f32], _: f32, out: &mut [Self]) {
        out.copy_from_slice(row);
    }

    fn weighted_sum(isa: Isa, weights: &[f32], table: &[Self], out: &mut [f32]) {
        rows::weighted_sum_f32(isa, weights, table, out);
    }
}

impl KvElement for u16 {
    fn convert(_: Isa, row: &[f32], _: f32, out: &mut [Self]) {
        out.iter_mut().zip(row).for_each(|(out, &value)| *out = to_bf16(value) as u16);
    }

    fn weighted_sum(isa: Isa, weights: &[f32], table: &[Self], out: &mut [f32]) {
        rows::weighted_sum_bf16(isa, weights, table, out);
    }
}

impl KvElement for i8 {
    const SCALED: bool = true;

    fn convert(isa: Isa, row: &[f32], inverse: f32, out: &mut [Self]) {
        rows::quantize_signed(isa, row, inverse, out);
    }

    fn weighted_sum(isa: Isa, weights: &[f32], table: &[Self], out: &mut [f32]) {
        rows::weighted_sum_i8(isa, weights, table, out);
    }
}

/// Keys of a head, including those that pad the last block.
fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// The first key and the number of keys of the block of a key.
fn block_of(tokens: usize, key: usize) -> (usize, usize) {
    let first = key - key % BLOCK;
    if first + BLOCK <= tokens { (first, BLOCK) } else { (key - key % LANES, LANES) }
}

/// The shape of tables.
#[derive(Clone, Copy)]
struct Shape {
    isa: Isa,
    heads: Heads,
    tokens: usize,
}

impl Shape {
    /// Numbers of the keys of a head.
    fn keys(&self) -> usize {
        padded(self.tokens) * self.heads.size
    }

    /// Numbers of the values of a head.
    fn values(&self) -> usize {
        self.heads.size.div_ceil(BLOCK) * self.tokens * BLOCK
    }

    /// Fills the tables of all heads. Padding may keep numbers of an earlier image: they only enter
    /// sums that are never read, those of keys after the last token and of columns beyond the head.
    fn fill<T: KvElement>(self, pool: &ThreadPool, key_values: &[f32], tables: &mut KvTables<T>) {
        let Self { heads, tokens, .. } = self;
        let scales_of_head = if T::SCALED { tokens } else { 0 };
        tables.keys.resize(heads.count * self.keys());
        tables.values.resize(heads.count * self.values());
        tables.scales.resize(2 * heads.count * scales_of_head, 0);
        let keys = DisjointMut::new(tables.keys.as_mut_slice());
        let values = DisjointMut::new(tables.values.as_mut_slice());
        let scales = DisjointMut::new(&mut tables.scales);
        pool.run(heads.count, |head| {
            // SAFETY: heads have disjoint tables and scales, and a head has one task.
            let (keys, values, key_scales, value_scales) = unsafe {
                (
                    keys.slice(head * self.keys(), self.keys()),
                    values.slice(head * self.values(), self.values()),
                    scales.slice(head * scales_of_head, scales_of_head),
                    scales.slice((heads.count + head) * scales_of_head, scales_of_head),
                )
            };
            self.fill_head(key_values, head, (keys, key_scales), (values, value_scales));
        });
    }

    fn fill_head<T: KvElement>(
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
            let inverse_scale = |scales: &mut [u16], part: usize| match scales.get_mut(token) {
                Some(scale) => {
                    let (bits, inverse) = scale_of(isa, row(part));
                    *scale = bits;
                    inverse
                }
                None => 1.0,
            };
            let inverse = inverse_scale(key_scales, 0);
            let (first, width) = block_of(tokens, token);
            let block = &mut keys[first * size..][..width * size];
            for (part, row) in row(0).chunks(BLOCK).enumerate() {
                T::convert(isa, row, inverse, &mut converted[..row.len()]);
                let lines = block[part * BLOCK * width..].chunks_exact_mut(width);
                lines
                    .zip(&converted[..row.len()])
                    .for_each(|(line, &key)| line[token - first] = key);
            }
            let inverse = inverse_scale(value_scales, 1);
            for (part, row) in row(1).chunks(BLOCK).enumerate() {
                let line = &mut values[(part * tokens + token) * BLOCK..][..row.len()];
                T::convert(isa, row, inverse, line);
            }
        }
    }
}

/// The scale of a row of signed 8-bit integers, as bits of bf16, and its inverse.
fn scale_of(isa: Isa, row: &[f32]) -> (u16, f32) {
    // NaN for a row with NaN or infinity, and so is the attention to it.
    let scale = rows::max_abs(isa, row) / 127.0;
    // Rounded up, so that no integer exceeds 127.
    let bits = (scale.to_bits().saturating_add(0xffff) >> 16) as u16;
    let scale = from_bf16(bits);
    (bits, if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 })
}

impl CrossKv {
    /// An empty table, for [`fill`](Self::fill).
    #[must_use]
    pub fn new(precision: Precision, heads: Heads) -> Self {
        let tables = match precision {
            Precision::F32 => Tables::F32(KvTables::new()),
            Precision::Bf16 => Tables::Bf16(KvTables::new()),
            Precision::Int8 => Tables::Int8(KvTables::new()),
        };
        Self { heads, tokens: 0, tables }
    }

    /// Replaces the contents with `key_values`, `[tokens, 2 · width]`, each row the key and value of
    /// a token. Allocates only if there were never as many tokens.
    pub fn fill(&mut self, pool: &ThreadPool, isa: Isa, key_values: &[f32]) {
        self.tokens = key_values.len() / (2 * self.heads.width());
        let shape = Shape { isa, heads: self.heads, tokens: self.tokens };
        match &mut self.tables {
            Tables::F32(tables) => shape.fill(pool, key_values, tables),
            Tables::Bf16(tables) => shape.fill(pool, key_values, tables),
            Tables::Int8(tables) => shape.fill(pool, key_values, tables),
        }
    }

    /// Bytes of the tables.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.tables {
            Tables::F32(tables) => tables.bytes(),
            Tables::Bf16(tables) => tables.bytes(),
            Tables::Int8(tables) => tables.bytes(),
        }
    }

    /// Numbers of scratch memory that [`attend`](Self::attend) needs.
    fn scratch_len(&self) -> usize {
        padded(self.tokens)
    }

    /// The attention of a head of a query to all keys.
    fn attend(&self, isa: Isa, head: usize, query: &[f32], scratch: &mut [f32], out: &mut [f32]) {
        match &self.tables {
            Tables::F32(tables) => self.attend_to(tables, isa, head, query, scratch, out),
            Tables::Bf16(tables) => self.attend_to(tables, isa, head, query, scratch, out),
            Tables::Int8(tables) => self.attend_to(tables, isa, head, query, scratch, out),
        }
    }

    fn attend_to<T: KvElement>(
        &self,
        tables: &KvTables<T>,
        isa: Isa,
        head: usize,
        query: &[f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let (size, tokens) = (self.heads.size, self.tokens);
        let (first_key, mut key) = (head * padded(tokens), 0);
        while key < tokens {
            let (first, width) = block_of(tokens, key);
            let block = &tables.keys.as_slice()[(first_key + first) * size..][..size * width];
            T::weighted_sum(isa, query, block, &mut scratch[first..][..width]);
            key = first + width;
        }
        let (scores, scale) = (&mut scratch[..tokens], self.heads.scale());
        let [key_scales, value_scales] = self.scales_of(&tables.scales, head);
        if T::SCALED {
            scores
                .iter_mut()
                .zip(key_scales)
                .for_each(|(score, &key)| *score *= scale * from_bf16(key));
        } else {
            scores.iter_mut().for_each(|score| *score *= scale);
        }
        let sum = rows::softmax_numerators(isa, scores);
        scores.iter_mut().zip(value_scales).for_each(|(score, &value)| *score *= from_bf16(value));
        let parts = size.div_ceil(BLOCK);
        for (part, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut mixed = [0f32; BLOCK];
            let first = (head * parts + part) * tokens * BLOCK;
            let values = &tables.values.as_slice()[first..][..tokens * BLOCK];
            T::weighted_sum(isa, scores, values, &mut mixed);
            out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value / sum);
        }
    }

    /// The scales of a head's keys and values; empty if there are none.
    fn scales_of<'s>(&self, scales: &'s [u16], head: usize) -> [&'s [u16]; 2] {
        if scales.is_empty() {
            return [&[], &[]];
        }
        let (keys, values) = scales.split_at(self.heads.count * self.tokens);
        [keys, values].map(|scales| &scales[head * self.tokens..][..self.tokens])
    }
}

/// The tables of an image, the row of its first query, and the number of its queries.
pub type BatchItem<'a> = (&'a CrossKv, usize, usize);

/// Attention of each item's queries to its tables. `queries` and `out` are `[rows, width]`; all items
/// have the same heads, and no two have a row in common.
///
/// # Panics
/// A slice is too short.
pub fn attend<'a>(
    pool: &ThreadPool,
    isa: Isa,
    items: impl Iterator<Item = BatchItem<'a>> + Clone + Sync,
    queries: &[f32],
    scratch: &mut Buffer<f32>,
    out: &mut [f32],
) {
    let Some(heads) = items.clone().next().map(|(kv, ..)| kv.heads) else { return };
    let scratch_len = items.clone().map(|(kv, ..)| kv.scratch_len()).max().unwrap_or(0);
    let (tasks, width) = (items.clone().count() * heads.count, heads.width());
    scratch.resize(tasks * scratch_len);
    let (scratch, out) = (DisjointMut::new(scratch.as_mut_slice()), DisjointMut::new(out));
    pool.run(tasks, |task| {
        let (index, head) = (task / heads.count, task % heads.count);
        let Some((kv, first, rows)) = items.clone().nth(index) else { return };
        for row in first..first + rows {
            let start = row * width + head * heads.size;
            // SAFETY: each task has its own part of the scratch memory, its own item and its own
            // head, so no other task writes this part of a row.
            let (scratch, out) = unsafe {
                (scratch.slice(task * scratch_len, scratch_len), out.slice(start, heads.size))
            };
            kv.attend(isa, head, &queries[start..][..heads.size], scratch, out);
        }
    });
}
