//! Attention of a few queries to a table that stays: a photo's keys and values, or the tokens
//! written so far.
//!
//! Such a table is read from memory for every token, so its size is what costs: with 8-bit weights
//! it is kept in 8 bits, with a scale for every key and every value of a head.

use crate::kernels::Precision;
use crate::kernels::attention::Heads;
use crate::kernels::buffer::{Buffer, Shared};
use crate::kernels::math::to_bf16;
use crate::kernels::rows::{self, BLOCK};
use crate::kernels::team::Team;
use crate::kernels::tier::{Isa, Tier};

/// Numbers of a table, in the format of the model's precision.
#[derive(Debug)]
enum Numbers {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
    Int8(Buffer<i8>),
}

impl Numbers {
    fn zeroed(precision: Precision, len: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(Buffer::zeroed(len)),
            Precision::Bf16 => Self::Bf16(Buffer::zeroed(len)),
            Precision::Int8 => Self::Int8(Buffer::zeroed(len)),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.as_slice().len() * 4,
            Self::Bf16(numbers) => numbers.as_slice().len() * 2,
            Self::Int8(numbers) => numbers.as_slice().len(),
        }
    }

    /// `Σ weights[n] · row n` of the rows of [`BLOCK`] numbers from row `first` on.
    fn weighted(&self, isa: Isa, first: usize, weights: &[f32], out: &mut [f32; BLOCK]) {
        let range = first * BLOCK..(first + weights.len()) * BLOCK;
        match self {
            Self::F32(n) => rows::weighted_f32(isa, weights, &n.as_slice()[range], out),
            Self::Bf16(n) => rows::weighted_bf16(isa, weights, &n.as_slice()[range], out),
            Self::Int8(n) => rows::weighted_i8(isa, weights, &n.as_slice()[range], out),
        }
    }
}

/// Places that several tasks write numbers to.
enum Places<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, u16>),
    Int8(Shared<'a, i8>),
}

impl<'a> Places<'a> {
    fn new(numbers: &'a mut Numbers) -> Self {
        match numbers {
            Numbers::F32(numbers) => Self::F32(Shared::new(numbers.as_mut_slice())),
            Numbers::Bf16(numbers) => Self::Bf16(Shared::new(numbers.as_mut_slice())),
            Numbers::Int8(numbers) => Self::Int8(Shared::new(numbers.as_mut_slice())),
        }
    }

    /// Writes `value / scale` to a place.
    ///
    /// # Safety
    /// Nobody else writes or reads the place now.
    unsafe fn put(&self, place: usize, value: f32, inverse: f32) {
        // SAFETY: the caller's word.
        unsafe {
            match self {
                Self::F32(numbers) => numbers.slice(place, 1)[0] = value,
                Self::Bf16(numbers) => numbers.slice(place, 1)[0] = to_bf16(value) as u16,
                Self::Int8(numbers) => {
                    numbers.slice(place, 1)[0] = (value * inverse).round_ties_even() as i8;
                }
            }
        }
    }
}

/// Keys and values of one image in one layer, for all heads.
///
/// Keys lie transposed in blocks of [`BLOCK`] keys, values row after row of [`BLOCK`] numbers; heads
/// of other sizes are padded with zeros.
#[derive(Debug)]
pub(crate) struct Memory {
    heads: Heads,
    tokens: usize,
    keys: Numbers,
    values: Numbers,
    /// Of every head's keys, then of every head's values; empty unless in 8 bits.
    scales: Vec<f32>,
}

/// The scale of a row of 8-bit numbers, and its inverse.
fn scale_of(row: &[f32]) -> (f32, f32) {
    let most = row.iter().fold(0f32, |most, value| most.max(value.abs()));
    if row.iter().any(|value| !value.is_finite()) {
        return (f32::NAN, 0.0);
    }
    let scale = most / 127.0;
    (scale, if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 })
}

impl Memory {
    /// From `[tokens, 2 · width]`, a token's keys before its values.
    pub(crate) fn new(team: &Team, precision: Precision, heads: Heads, key_values: &[f32]) -> Self {
        let width = heads.width();
        let tokens = key_values.len() / (2 * width);
        let (key_blocks, parts) = (tokens.div_ceil(BLOCK), heads.size.div_ceil(BLOCK));
        let mut keys = Numbers::zeroed(precision, heads.count * key_blocks * heads.size * BLOCK);
        let mut values = Numbers::zeroed(precision, heads.count * parts * tokens * BLOCK);
        let count = if precision == Precision::Int8 { 2 * heads.count * tokens } else { 0 };
        let mut scales = vec![0.0; count];
        {
            let (keys, values) = (Places::new(&mut keys), Places::new(&mut values));
            let scales = Shared::new(&mut scales);
            team.run(heads.count, |head| {
                for token in 0..tokens {
                    for (part, places) in [&keys, &values].into_iter().enumerate() {
                        let row = &key_values
                            [token * 2 * width + part * width + head * heads.size..][..heads.size];
                        let (scale, inverse) = if count > 0 { scale_of(row) } else { (1.0, 1.0) };
                        for (i, &value) in row.iter().enumerate() {
                            let place = if part == 0 {
                                let block = head * key_blocks + token / BLOCK;
                                (block * heads.size + i) * BLOCK + token % BLOCK
                            } else {
                                ((head * parts + i / BLOCK) * tokens + token) * BLOCK + i % BLOCK
                            };
                            // SAFETY: every head, token and number has a place of its own.
                            unsafe { places.put(place, value, inverse) };
                        }
                        if count > 0 {
                            let place = (part * heads.count + head) * tokens + token;
                            // SAFETY: as above.
                            unsafe { scales.slice(place, 1)[0] = scale };
                        }
                    }
                }
            });
        }
        Self { heads, tokens, keys, values, scales }
    }

    /// Bytes that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes() + self.scales.len() * 4
    }

    /// Keys, rounded up to what [`attend`](Self::attend) needs as scratch.
    fn places(&self) -> usize {
        self.tokens.next_multiple_of(BLOCK)
    }

    /// One head's part of a query row against all keys, into the same part of `out`.
    fn attend(&self, isa: Isa, head: usize, query: &[f32], scratch: &mut [f32], out: &mut [f32]) {
        let (size, tokens) = (self.heads.size, self.tokens);
        let blocks = tokens.div_ceil(BLOCK);
        for (block, scores) in scratch.as_chunks_mut::<BLOCK>().0[..blocks].iter_mut().enumerate() {
            self.keys.weighted(isa, (head * blocks + block) * size, query, scores);
        }
        let (scores, scale) = (&mut scratch[..tokens], self.heads.scale());
        let [key_scales, value_scales] = self.scales_of(head);
        if key_scales.is_empty() {
            scores.iter_mut().for_each(|score| *score *= scale);
        } else {
            scores.iter_mut().zip(key_scales).for_each(|(score, key)| *score *= scale * key);
        }
        let sum = rows::exp_row(isa, scores);
        scores.iter_mut().zip(value_scales).for_each(|(score, value)| *score *= value);
        let parts = size.div_ceil(BLOCK);
        for (part, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut mixed = [0f32; BLOCK];
            self.values.weighted(isa, (head * parts + part) * tokens, scores, &mut mixed);
            out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value / sum);
        }
    }

    fn scales_of(&self, head: usize) -> [&[f32]; 2] {
        if self.scales.is_empty() {
            return [&[], &[]];
        }
        let (keys, values) = self.scales.split_at(self.heads.count * self.tokens);
        [keys, values].map(|scales| &scales[head * self.tokens..][..self.tokens])
    }
}

/// Queries of one image in a batch: its table, and how many of the rows are its own.
pub(crate) type Asking<'a> = (&'a Memory, usize);

/// Every item's rows of `queries`, `[rows, width]`, against the item's table, into `out`.
pub(crate) fn attend<'a>(
    team: &Team,
    tier: Tier,
    items: impl ExactSizeIterator<Item = Asking<'a>> + Clone + Sync,
    queries: &[f32],
    scratch: &mut Buffer<f32>,
    out: &mut [f32],
) {
    let isa = tier.isa();
    let Some(heads) = items.clone().next().map(|(memory, _)| memory.heads) else { return };
    let places = items.clone().map(|(memory, _)| memory.places()).max().unwrap_or(0);
    let (tasks, width) = (items.len() * heads.count, heads.width());
    scratch.resize(tasks * places);
    let (scratch, out) = (Shared::new(scratch.as_mut_slice()), Shared::new(out));
    team.run(tasks, |task| {
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
