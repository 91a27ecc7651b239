//! Attention of many tokens to each other, as in the vision tower: `softmax(q kᵀ / √d) v` by head.
//!
//! Keys and values of a head become right operands once; then blocks of queries pass by, with their
//! scores in the cache, never as a whole matrix. Sums are exact to the format of the operands, the
//! softmax is in f32.

use crate::kernels::Precision;
use crate::kernels::buffer::{Buffer, Shared};

use crate::kernels::micro::{self, Format, MOST_COLUMNS, MOST_ROWS, Plan, Ready, Tile};
use crate::kernels::operand::LeftLayout;
use crate::kernels::packed::Panels;
use crate::kernels::rows;
use crate::kernels::team::Team;
use crate::kernels::tier::Tier;

/// Shape of a multi-head attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    /// Numbers of a head.
    pub(crate) size: usize,
}

impl Heads {
    /// Numbers of all heads.
    pub(crate) fn width(&self) -> usize {
        self.count * self.size
    }

    /// What scores are multiplied with.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// Self-attention over one image; keeps its memory from one call to the next.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    plan: Plan,
    heads: Heads,
    keys: Buffer<u8>,
    values: Buffer<u8>,
    /// Of every task: queries or probabilities as a left operand.
    left: Buffer<u32>,
    /// Of every task: a block's scores.
    scores: Buffer<f32>,
}

/// Sizes that follow from the number of tokens.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    keys: usize,
    values: usize,
    queries: LeftLayout,
    probabilities: LeftLayout,
    /// Distance of the scores of two queries.
    stride: usize,
}

impl SelfAttention {
    /// In f32, or in bf16 for any other precision where bf16 is an instruction.
    pub(crate) fn new(tier: Tier, precision: Precision, heads: Heads) -> Self {
        let exact = precision == Precision::F32 || !tier.has_bf16();
        let plan = Plan::new(tier, if exact { Precision::F32 } else { Precision::Bf16 });
        let (keys, values) = (Buffer::new(), Buffer::new());
        Self { plan, heads, keys, values, left: Buffer::new(), scores: Buffer::new() }
    }

    /// `qkv` is `[tokens, 3 · width]`, queries before keys before values; `out` `[tokens, width]`.
    pub(crate) fn run(&mut self, team: &Team, qkv: &[f32], tokens: usize, out: &mut [f32]) {
        let sizes = self.sizes(tokens);
        self.pack(team, qkv, &sizes);
        let (plan, heads) = (self.plan, self.heads);
        let blocks = plan.blocks(tokens);
        // Even a single head is worth several threads.
        let groups = (4 * team.threads()).div_ceil(heads.count).min(blocks.count).max(1);
        let tasks = heads.count * groups;
        let words = sizes.queries.words().max(sizes.probabilities.words());
        self.left.resize(tasks * words);
        self.scores.resize(tasks * plan.block_rows() * sizes.stride);
        let left = Shared::new(self.left.as_mut_slice());
        let scores = Shared::new(self.scores.as_mut_slice());
        let keys = Shared::new(self.keys.as_mut_slice());
        let values = Shared::new(self.values.as_mut_slice());
        let out = Shared::new(out);
        team.run(tasks, |task| {
            let (head, group) = (task / groups, task % groups);
            let _ready = Ready::new(&plan);
            let len = plan.block_rows() * sizes.stride;
            // SAFETY: scratch belongs to the task; panels are only read here.
            let (left, scores, keys, values) = unsafe {
                (
                    left.slice(task * words, words),
                    scores.slice(task * len, len),
                    keys.slice(head * sizes.keys, sizes.keys),
                    values.slice(head * sizes.values, sizes.values),
                )
            };
            let keys = Panels::new(plan, heads.size, tokens, keys);
            let values = Panels::new(plan, tokens, heads.size, values);
            for block in blocks.count * group / groups..blocks.count * (group + 1) / groups {
                let (first, count) = blocks.at(block);
                let work = Block { first, count, head, heads, sizes: &sizes, qkv };
                work.scores(&keys, left, scores);
                let sums = work.softmax(left, scores);
                work.mix(&values, left, &sums, out);
            }
        });
    }

    fn sizes(&self, tokens: usize) -> Sizes {
        let (plan, size) = (&self.plan, self.heads.size);
        let rows = plan.block_rows().min(tokens);
        Sizes {
            tokens,
            keys: Panels::bytes(plan, size, tokens),
            values: Panels::bytes(plan, tokens, size),
            queries: LeftLayout::new(*plan, rows, size),
            probabilities: LeftLayout::new(*plan, rows, tokens),
            stride: tokens.next_multiple_of(plan.columns),
        }
    }

    /// Makes the right operands of all heads.
    fn pack(&mut self, team: &Team, qkv: &[f32], sizes: &Sizes) {
        let (plan, heads) = (self.plan, self.heads);
        self.keys.resize(heads.count * sizes.keys);
        self.values.resize(heads.count * sizes.values);
        let keys = Shared::new(self.keys.as_mut_slice());
        let values = Shared::new(self.values.as_mut_slice());
        team.run(heads.count, |head| {
            // SAFETY: every head has a place of its own.
            let (keys, values) = unsafe {
                (
                    keys.slice(head * sizes.keys, sizes.keys),
                    values.slice(head * sizes.values, sizes.values),
                )
            };
            let width = heads.width();
            let row = |token: usize, part: usize| {
                &qkv[token * 3 * width + part * width + head * heads.size..][..heads.size]
            };
            pack_keys(&plan, sizes.tokens, heads.size, |token| row(token, 1), keys);
            pack_values(&plan, sizes.tokens, heads.size, |token| row(token, 2), values);
        });
    }
}

/// The numbers of a row as the words that a column's steps hold.
fn words(plan: &Plan, values: &[f32], out: &mut [u32]) -> usize {
    match plan.format {
        Format::Bf16 => rows::pair_bf16(plan.tier.isa(), values, out),
        _ => values.iter().zip(out).for_each(|(value, word)| *word = value.to_bits()),
    }
    values.len().div_ceil(plan.format.group())
}

/// Every row becomes a column.
fn pack_keys<'a>(
    plan: &Plan,
    tokens: usize,
    size: usize,
    row: impl Fn(usize) -> &'a [f32],
    out: &mut [u8],
) {
    out.fill(0);
    let panel = plan.panel_bytes(plan.steps(size));
    let mut converted = [0u32; 512];
    for token in 0..tokens {
        let (panel, column) =
            (&mut out[token / plan.columns * panel..][..panel], token % plan.columns);
        let cells = panel.as_chunks_mut::<4>().0;
        for (index, values) in row(token).chunks(512).enumerate() {
            let count = words(plan, values, &mut converted);
            let first = index * 512 / plan.format.group();
            for (step, word) in converted[..count].iter().enumerate() {
                cells[(first + step) * plan.columns + column] = word.to_le_bytes();
            }
        }
    }
}

/// Every row (or pair of rows) becomes a step.
fn pack_values<'a>(
    plan: &Plan,
    tokens: usize,
    size: usize,
    row: impl Fn(usize) -> &'a [f32],
    out: &mut [u8],
) {
    out.fill(0);
    let (steps, group) = (plan.steps(tokens), plan.format.group());
    let panel = plan.panel_bytes(steps);
    let zeros = [0f32; MOST_COLUMNS];
    let mut woven = [0u32; MOST_COLUMNS];
    for step in 0..tokens.div_ceil(group) {
        let low = row(step * group);
        let high = (group == 2 && step * 2 + 1 < tokens).then(|| row(step * 2 + 1));
        for first in (0..size).step_by(plan.columns) {
            let count = plan.columns.min(size - first);
            let low = &low[first..first + count];
            let high = high.map_or(&zeros[..count], |high| &high[first..first + count]);
            if group == 2 {
                rows::weave_bf16(plan.tier.isa(), low, high, &mut woven[..count]);
            } else {
                low.iter().zip(&mut woven).for_each(|(value, word)| *word = value.to_bits());
            }
            let start = first / plan.columns * panel + step * plan.columns * 4;
            let cells = out[start..][..count * 4].as_chunks_mut::<4>().0;
            cells.iter_mut().zip(&woven).for_each(|(cell, word)| *cell = word.to_le_bytes());
        }
    }
}

/// A block of queries of one head.
struct Block<'a> {
    first: usize,
    count: usize,
    head: usize,
    heads: Heads,
    sizes: &'a Sizes,
    qkv: &'a [f32],
}

impl Block<'_> {
    /// `q kᵀ / √d` of all keys, `stride` apart.
    fn scores(&self, keys: &Panels<'_>, left: &mut [u32], scores: &mut [f32]) {
        let (heads, stride) = (self.heads, self.sizes.stride);
        let layout = LeftLayout::new(keys.plan, self.count, heads.size);
        let mut scaled = [0f32; 256];
        for row in 0..self.count {
            let start = (self.first + row) * 3 * heads.width() + self.head * heads.size;
            let query = &self.qkv[start..][..heads.size];
            let scaled = &mut scaled[..heads.size];
            scaled.iter_mut().zip(query).for_each(|(s, q)| *s = q * heads.scale());
            layout.put(scaled, row, self.count, left);
        }
        let (columns, mut tile) = (keys.plan.columns, Tile([0; MOST_ROWS * MOST_COLUMNS]));
        for panel in 0..keys.count {
            // SAFETY: the caller holds a `Ready`; both operands were just made for this plan.
            unsafe {
                let (left, right) = (left.as_ptr(), keys.panel(panel));
                micro::multiply(&keys.plan, left, self.count, right, keys.steps, &mut tile);
            }
            for (row, sums) in tile.0.chunks_exact(columns).take(self.count).enumerate() {
                let out = &mut scores[row * stride + panel * columns..][..columns];
                out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = f32::from_bits(sum));
            }
        }
    }

    /// Scores become probabilities times their sum, as a left operand; the sums by row.
    fn softmax(&self, left: &mut [u32], scores: &mut [f32]) -> [f32; MOST_ROWS] {
        let layout = LeftLayout {
            blocks: self.sizes.probabilities.plan.blocks(self.count),
            ..self.sizes.probabilities
        };
        let mut sums = [0f32; MOST_ROWS];
        for row in 0..self.count {
            let scores = &mut scores[row * self.sizes.stride..][..self.sizes.tokens];
            sums[row] = rows::exp_row(layout.plan.tier.isa(), scores);
            layout.put(scores, row, self.count, left);
        }
        sums
    }

    /// Probabilities times values, into the head's columns of the queries' rows.
    fn mix(
        &self,
        values: &Panels<'_>,
        left: &[u32],
        sums: &[f32; MOST_ROWS],
        out: Shared<'_, f32>,
    ) {
        let (heads, columns) = (self.heads, values.plan.columns);
        let mut tile = Tile([0; MOST_ROWS * MOST_COLUMNS]);
        for panel in 0..values.count {
            // SAFETY: as in `scores`.
            unsafe {
                let (left, right) = (left.as_ptr(), values.panel(panel));
                micro::multiply(&values.plan, left, self.count, right, values.steps, &mut tile);
            }
            let (column, count) = (panel * columns, columns.min(heads.size - panel * columns));
            for (row, tile) in tile.0.chunks_exact(columns).take(self.count).enumerate() {
                let start = (self.first + row) * heads.width() + self.head * heads.size + column;
                // SAFETY: every query and head is written by one task.
                let out = unsafe { out.slice(start, count) };
                let scale = 1.0 / sums[row];
                out.iter_mut().zip(tile).for_each(|(out, &sum)| *out = f32::from_bits(sum) * scale);
            }
        }
    }
}
