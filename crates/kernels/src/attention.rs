//! Attention of many tokens to each other, as in the vision tower: `softmax(q kᵀ / √d) v` by head.
//!
//! All of it is computed on its side: keys are the rows of the left operand and a panel of queries is
//! the right one, so that the scores of a query stand in a column. What the softmax needs, and making
//! a right operand of its results, are then operations on whole vectors of neighbouring queries. The
//! scores of a panel stay in the second-level cache, there is never a whole matrix of them. Sums are
//! exact to the format of the operands; the softmax is in f32.

use crate::Precision;
use crate::activations::LhsLayout;
use crate::buffer::{Buffer, DisjointMut, ScratchSlots};
use crate::isa::Tier;
use crate::microkernels::{self, Format, GemmPlan, Microkernel, TileGuard};
use crate::rows;
use crate::softmax::{self, Sums, softmax_columns};
use crate::thread_pool::ThreadPool;

/// Shape of a multi-head attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub count: usize,
    /// Numbers of a head.
    pub size: usize,
}

impl Heads {
    /// Numbers of all heads.
    pub fn width(&self) -> usize {
        self.count * self.size
    }

    /// What scores are multiplied with.
    pub fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// Self-attention over one image; keeps its memory from one call to the next.
#[derive(Debug)]
pub struct SelfAttention {
    plan: GemmPlan,
    heads: Heads,
    /// Of every head, its tokens by their numbers.
    keys: Buffer<u32>,
    /// Of every head, its numbers by their tokens.
    values: Buffer<u32>,
    /// Of as many tasks as run at a time: a panel of queries, then its probabilities, both as right
    /// operands.
    panels: Buffer<u32>,
    /// Of as many tasks: a panel's scores, then its mixed values.
    numbers: Buffer<f32>,
    slots: ScratchSlots,
}

/// Sizes that follow from the number of tokens.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    keys: LhsLayout,
    values: LhsLayout,
    /// Panels of queries.
    panels: usize,
    /// Words of a panel of queries and of its probabilities.
    queries: usize,
    probabilities: usize,
    /// Scores and mixed values of a panel.
    scores: usize,
    mixed: usize,
}

/// Tasks a thread: more even out what disturbs one of them.
const TASKS: usize = 8;

impl SelfAttention {
    /// In f32, or in bf16 for any other precision where bf16 is an instruction.
    pub fn new(tier: Tier, precision: Precision, heads: Heads) -> Self {
        let exact = precision == Precision::F32 || !tier.has_bf16();
        let plan = GemmPlan::new(tier, if exact { Precision::F32 } else { Precision::Bf16 });
        let (keys, values) = (Buffer::new(), Buffer::new());
        let (panels, numbers) = (Buffer::new(), Buffer::new());
        Self { plan, heads, keys, values, panels, numbers, slots: ScratchSlots::default() }
    }

    /// `qkv` is `[tokens, 3 · width]`, queries before keys before values; `out` `[tokens, width]`.
    pub fn run(&mut self, pool: &ThreadPool, qkv: &[f32], tokens: usize, out: &mut [f32]) {
        let sizes = self.sizes(tokens);
        self.pack(pool, qkv, &sizes);
        let (plan, heads) = (self.plan, self.heads);
        let groups = (TASKS * pool.threads()).div_ceil(heads.count).min(sizes.panels).max(1);
        self.slots.resize(pool.threads());
        let (words, numbers) = (sizes.queries + sizes.probabilities, sizes.scores + sizes.mixed);
        self.panels.resize(pool.threads() * words);
        self.numbers.resize(pool.threads() * numbers);
        let all_panels = DisjointMut::new(self.panels.as_mut_slice());
        let all_numbers = DisjointMut::new(self.numbers.as_mut_slice());
        let (keys, values, slots) = (self.keys.as_slice(), self.values.as_slice(), &self.slots);
        let out = DisjointMut::new(out);
        pool.run(heads.count * groups, |task| {
            let (head, group) = (task / groups, task % groups);
            let _ready = TileGuard::new(&plan);
            let slot = slots.take();
            // SAFETY: the slot is this task's for as long as it lives.
            let (panels, numbers) = unsafe {
                (
                    all_panels.slice(slot.index() * words, words),
                    all_numbers.slice(slot.index() * numbers, numbers),
                )
            };
            let (queries, probabilities) = panels.split_at_mut(sizes.queries);
            let (scores, mixed) = numbers.split_at_mut(sizes.scores);
            let part = |all, layout: &LhsLayout| of_head(all, head, layout.words());
            let (keys, values) = (part(keys, &sizes.keys), part(values, &sizes.values));
            for panel in sizes.panels * group / groups..sizes.panels * (group + 1) / groups {
                let first = panel * plan.columns;
                let count = plan.columns.min(tokens - first);
                let work = Panel { first, count, head, heads, plan };
                work.pack(qkv, queries);
                multiply(&sizes.keys, keys, queries, scores);
                let sums = softmax_columns(&plan, &scores[..tokens * plan.columns], probabilities);
                multiply(&sizes.values, values, probabilities, mixed);
                work.put(mixed, &sums, out);
            }
        });
    }

    fn sizes(&self, tokens: usize) -> Sizes {
        let (plan, size) = (self.plan, self.heads.size);
        let keys = LhsLayout::new(plan, tokens, size);
        let values = LhsLayout::new(plan, size, tokens);
        Sizes {
            tokens,
            keys,
            values,
            panels: tokens.div_ceil(plan.columns),
            queries: keys.steps * plan.columns,
            probabilities: values.steps * plan.columns,
            scores: keys.padded_rows() * plan.columns,
            mixed: values.padded_rows() * plan.columns,
        }
    }

    /// Makes the left operands of all heads.
    fn pack(&mut self, pool: &ThreadPool, qkv: &[f32], sizes: &Sizes) {
        let heads = self.heads;
        let (each_keys, each_values) = (sizes.keys.words(), sizes.values.words());
        self.keys.resize(heads.count * each_keys);
        self.values.resize(heads.count * each_values);
        let keys = DisjointMut::new(self.keys.as_mut_slice());
        let values = DisjointMut::new(self.values.as_mut_slice());
        pool.run(2 * heads.count, |task| {
            let (head, part) = (task / 2, 1 + task % 2);
            let row = |token: usize| row(qkv, heads, token, part, head);
            if part == 1 {
                // SAFETY: every head has a place of its own.
                let keys = unsafe { keys.slice(head * each_keys, each_keys) };
                pack_rows(&sizes.keys, row, keys);
            } else {
                // SAFETY: as above.
                let values = unsafe { values.slice(head * each_values, each_values) };
                pack_columns(&sizes.values, sizes.tokens, row, values);
            }
        });
    }
}

/// Queries (`part` 0), keys or values of a token and a head.
fn row(qkv: &[f32], heads: Heads, token: usize, part: usize, head: usize) -> &[f32] {
    &qkv[(3 * token + part) * heads.width() + head * heads.size..][..heads.size]
}

/// A head's part of what all heads have `each` of.
fn of_head(all: &[u32], head: usize, each: usize) -> &[u32] {
    &all[head * each..][..each]
}

/// Every token becomes a row of the left operand.
fn pack_rows<'a>(layout: &LhsLayout, row: impl Fn(usize) -> &'a [f32], out: &mut [u32]) {
    for block in 0..layout.blocks.count {
        let ((first, rows), (start, len)) = (layout.blocks.at(block), layout.place(block));
        for index in 0..rows {
            layout.put(row(first + index), index, rows, &mut out[start..][..len]);
        }
    }
}

/// Every token becomes a column of the left operand, or half a column where two share a word.
fn pack_columns<'a>(
    layout: &LhsLayout,
    tokens: usize,
    row: impl Fn(usize) -> &'a [f32],
    out: &mut [u32],
) {
    let LhsLayout { plan, blocks, steps, .. } = *layout;
    let group = plan.format.group();
    let mut words = [0u32; MAX_HEAD_SIZE];
    let words = &mut words[..blocks.rows];
    for step in 0..steps {
        let first = step * group;
        match (group, first < tokens) {
            (_, false) => words.fill(0),
            (1, true) => words.iter_mut().zip(row(first)).for_each(|(w, x)| *w = x.to_bits()),
            (_, true) => {
                let high = if first + 1 < tokens { row(first + 1) } else { &ZEROS[..blocks.rows] };
                rows::interleave_bf16(plan.tier.isa(), row(first), high, words);
            }
        }
        for block in 0..blocks.count {
            let ((first, rows), (start, _)) = (blocks.at(block), layout.place(block));
            let words = &words[first..first + rows];
            match plan.microkernel {
                Microkernel::Blocks(_) => out[start + step * rows..][..rows].copy_from_slice(words),
                Microkernel::Tiles { .. } => {
                    let cells = out[start + step..].iter_mut().step_by(steps);
                    cells.zip(words).for_each(|(cell, word)| *cell = *word);
                }
            }
        }
    }
}

/// Most numbers of a head; the configuration is checked to keep to it.
pub const MAX_HEAD_SIZE: usize = 256;

const ZEROS: [f32; MAX_HEAD_SIZE] = [0.0; MAX_HEAD_SIZE];

/// All rows of the left operand times one panel, row after row of as many numbers as it has columns.
fn multiply(layout: &LhsLayout, left: &[u32], panel: &[u32], out: &mut [f32]) {
    let (plan, columns) = (&layout.plan, layout.plan.columns);
    assert!(left.len() >= layout.words() && panel.len() >= layout.steps * columns);
    assert!(out.len() >= layout.padded_rows() * columns, "no room for the product");
    for block in 0..layout.blocks.count {
        let ((first, rows), (start, len)) = (layout.blocks.at(block), layout.place(block));
        let (left, out) = (&left[start..][..len], &mut out[first * columns..]);
        // SAFETY: the caller's task holds a `Ready`; all lengths were compared above.
        unsafe {
            let (right, out) = (panel.as_ptr().cast(), out.as_mut_ptr().cast());
            microkernels::multiply_into(plan, left.as_ptr(), rows, right, layout.steps, out);
        }
    }
}

/// A panel of queries of one head.
struct Panel {
    first: usize,
    count: usize,
    head: usize,
    heads: Heads,
    plan: GemmPlan,
}

impl Panel {
    /// The queries, scaled as [`softmax_columns`] expects it, as a right activations.
    fn pack(&self, qkv: &[f32], out: &mut [u32]) {
        let Self { plan, heads, .. } = self;
        let scale = heads.scale() * softmax::unit(plan);
        out.fill(0);
        let (mut scaled, mut words) = ([0f32; MAX_HEAD_SIZE], [0u32; MAX_HEAD_SIZE]);
        let scaled = &mut scaled[..heads.size];
        for column in 0..self.count {
            let query = row(qkv, *heads, self.first + column, 0, self.head);
            scaled.iter_mut().zip(query).for_each(|(scaled, value)| *scaled = value * scale);
            let words = &mut words[..heads.size.div_ceil(plan.format.group())];
            match plan.format {
                Format::Bf16 => rows::pair_bf16(plan.tier.isa(), scaled, words),
                _ => words.iter_mut().zip(&*scaled).for_each(|(word, x)| *word = x.to_bits()),
            }
            let cells = out[column..].iter_mut().step_by(plan.columns);
            cells.zip(words).for_each(|(cell, word)| *cell = *word);
        }
    }

    /// Mixed values, divided by the probabilities' sums, into the head's numbers of the queries' rows.
    fn put(&self, mixed: &[f32], sums: &Sums, out: DisjointMut<'_, f32>) {
        let (size, columns) = (self.heads.size, self.plan.columns);
        for column in 0..self.count {
            let start = (self.first + column) * self.heads.width() + self.head * size;
            // SAFETY: every query and head is written by one task.
            let out = unsafe { out.slice(start, size) };
            let scale = 1.0 / sums[column];
            let values = mixed[column..].iter().step_by(columns);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value * scale);
        }
    }
}
