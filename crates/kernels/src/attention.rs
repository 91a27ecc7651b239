//! Attention of many tokens to each other, as in the vision tower: `softmax(q kᵀ / √d) v` per head.
//!
//! The computation is transposed: keys are the rows of the left-hand side and a panel of queries is
//! the right-hand side, so the scores of a query form a column. The softmax, and packing its results
//! for the next product, then operate on whole vectors of neighbouring queries. Only the scores of
//! one panel exist at a time, in the second-level cache; there is never a full matrix of them. Sums
//! of products are as precise as the operands allow; the softmax is in f32.

use crate::Precision;
use crate::activations::LhsLayout;
use crate::buffer::{Buffer, DisjointMut, ScratchPool};
use crate::isa::Isa;
use crate::microkernels::{ActivePlan, Format, GemmPlan};
use crate::rows;
use crate::softmax::{self, ColumnSums, softmax_columns};
use crate::thread_pool::ThreadPool;

/// The shape of a multi-head attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// The number of heads.
    pub count: usize,
    /// Numbers of a head, at most [`MAX_HEAD_SIZE`].
    pub size: usize,
}

impl Heads {
    /// Numbers of all heads.
    #[must_use]
    pub fn width(&self) -> usize {
        self.count * self.size
    }

    /// The factor of the scores, `1 / √size`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
}

/// The largest size of a head that [`SelfAttention`] supports.
pub const MAX_HEAD_SIZE: usize = 256;

const ZEROS: [f32; MAX_HEAD_SIZE] = [0.0; MAX_HEAD_SIZE];

/// Self-attention over one image; keeps its memory from one call to the next.
#[derive(Debug)]
pub struct SelfAttention {
    plan: GemmPlan,
    heads: Heads,
    /// For each head `[tokens, size]`, as left-hand sides.
    keys: Buffer<u32>,
    /// For each head `[size, tokens]`, as left-hand sides.
    values: Buffer<u32>,
    scratch: ScratchPool<PanelScratch>,
}

/// Memory of a task.
#[derive(Debug, Default)]
struct PanelScratch {
    /// A panel of queries.
    queries: Buffer<u32>,
    /// The probabilities of its scores, as a panel.
    probabilities: Buffer<u32>,
    /// Scores of the panel.
    scores: Buffer<f32>,
    /// Weighted sums of values.
    mixed: Buffer<f32>,
}

/// Layouts that follow from the number of tokens.
#[derive(Clone, Copy)]
struct Layouts {
    tokens: usize,
    keys: LhsLayout,
    values: LhsLayout,
    /// Panels of queries.
    panels: usize,
}

/// Tasks per thread: more of them balance the load better.
const TASKS_PER_THREAD: usize = 8;

impl SelfAttention {
    /// Computes in f32, or in bf16 if `precision` is not f32 and the CPU has bf16 instructions.
    ///
    /// # Panics
    /// A head is larger than [`MAX_HEAD_SIZE`].
    #[must_use]
    pub fn new(isa: Isa, precision: Precision, heads: Heads) -> Self {
        assert!(heads.size <= MAX_HEAD_SIZE, "heads of {} numbers are too large", heads.size);
        let f32 = precision == Precision::F32 || !isa.tier().has_bf16();
        let plan = GemmPlan::new(isa, if f32 { Precision::F32 } else { Precision::Bf16 });
        let (keys, values) = (Buffer::new(), Buffer::new());
        Self { plan, heads, keys, values, scratch: ScratchPool::default() }
    }

    /// `qkv` is `[tokens, 3 · width]`, each row the query, key and value of a token; `out` is
    /// `[tokens, width]`.
    ///
    /// # Panics
    /// A slice is too short.
    pub fn run(&mut self, pool: &ThreadPool, qkv: &[f32], tokens: usize, out: &mut [f32]) {
        let layouts = self.layouts(tokens);
        self.pack_keys_and_values(pool, qkv, &layouts);
        let Layouts { keys: key_layout, values: value_layout, panels, .. } = layouts;
        let (plan, heads) = (self.plan, self.heads);
        let groups = (TASKS_PER_THREAD * pool.threads()).div_ceil(heads.count).min(panels).max(1);
        self.scratch.resize(pool.threads(), |scratch| {
            scratch.queries.resize(plan.panel_words(key_layout.steps));
            scratch.probabilities.resize(plan.panel_words(value_layout.steps));
            scratch.scores.resize(key_layout.padded_rows() * plan.columns);
            scratch.mixed.resize(value_layout.padded_rows() * plan.columns);
        });
        let (keys, values) = (self.keys.as_slice(), self.values.as_slice());
        let (scratch, out) = (&self.scratch, DisjointMut::new(out));
        pool.run(heads.count * groups, |task| {
            let (head, group) = (task / groups, task % groups);
            let active = ActivePlan::new(plan);
            let mut scratch = scratch.take();
            let PanelScratch { queries, probabilities, scores, mixed } = &mut *scratch;
            let (queries, probabilities) = (queries.as_mut_slice(), probabilities.as_mut_slice());
            let (scores, mixed) = (scores.as_mut_slice(), mixed.as_mut_slice());
            let of_head = |all, layout: &LhsLayout| part_of_head(all, head, layout.words());
            let (keys, values) = (of_head(keys, &key_layout), of_head(values, &value_layout));
            for panel in panels * group / groups..panels * (group + 1) / groups {
                let first = panel * plan.columns;
                let count = plan.columns.min(tokens - first);
                let panel = QueryPanel { first, count, head, heads, plan };
                panel.pack(qkv, queries);
                multiply(&active, &key_layout, keys, queries, scores);
                let scores = &scores[..tokens * plan.columns];
                let sums = softmax_columns(&plan, scores, probabilities);
                multiply(&active, &value_layout, values, probabilities, mixed);
                panel.write(mixed, &sums, out);
            }
        });
    }

    fn layouts(&self, tokens: usize) -> Layouts {
        let (plan, size) = (self.plan, self.heads.size);
        Layouts {
            tokens,
            keys: LhsLayout::new(plan, tokens, size),
            values: LhsLayout::new(plan, size, tokens),
            panels: tokens.div_ceil(plan.columns),
        }
    }

    /// Makes left-hand sides of the keys and values of all heads.
    fn pack_keys_and_values(&mut self, pool: &ThreadPool, qkv: &[f32], layouts: &Layouts) {
        let heads = self.heads;
        let (key_words, value_words) = (layouts.keys.words(), layouts.values.words());
        self.keys.resize(heads.count * key_words);
        self.values.resize(heads.count * value_words);
        let keys = DisjointMut::new(self.keys.as_mut_slice());
        let values = DisjointMut::new(self.values.as_mut_slice());
        pool.run(2 * heads.count, |task| {
            let (head, part) = (task / 2, 1 + task % 2);
            let row = |token: usize| row(qkv, heads, token, part, head);
            if part == 1 {
                // SAFETY: heads have disjoint parts, and the keys of a head have one task.
                let keys = unsafe { keys.slice(head * key_words, key_words) };
                pack_rows(&layouts.keys, row, keys);
            } else {
                // SAFETY: heads have disjoint parts, and the values of a head have one task.
                let values = unsafe { values.slice(head * value_words, value_words) };
                pack_columns(&layouts.values, layouts.tokens, row, values);
            }
        });
    }
}

/// The query (`part` 0), key (1) or value (2) of a token and head.
fn row(qkv: &[f32], heads: Heads, token: usize, part: usize, head: usize) -> &[f32] {
    &qkv[(3 * token + part) * heads.width() + head * heads.size..][..heads.size]
}

/// The part of a head, where every head has `words` words.
fn part_of_head(all: &[u32], head: usize, words: usize) -> &[u32] {
    &all[head * words..][..words]
}

/// Packs tokens as the rows of a left-hand side.
fn pack_rows<'a>(layout: &LhsLayout, row: impl Fn(usize) -> &'a [f32], out: &mut [u32]) {
    for block in 0..layout.blocks.count {
        let (first, rows) = layout.blocks.at(block);
        let out = &mut out[layout.block_words(block)];
        for index in 0..rows {
            layout.write_row(row(first + index), index, rows, out);
        }
    }
}

/// Packs tokens as the columns of a left-hand side; in bf16 two tokens share a word.
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
                rows::interleave_bf16(plan.isa, row(first), high, words);
            }
        }
        for block in 0..blocks.count {
            let ((first, rows), range) = (blocks.at(block), layout.block_words(block));
            let (words, out) = (&words[first..first + rows], &mut out[range]);
            if plan.is_row_major() {
                let cells = out[step..].iter_mut().step_by(steps);
                cells.zip(words).for_each(|(cell, word)| *cell = *word);
            } else {
                out[step * rows..][..rows].copy_from_slice(words);
            }
        }
    }
}

/// Multiplies all rows of a left-hand side with one panel into `out`, `[padded rows, columns]`.
fn multiply(active: &ActivePlan, layout: &LhsLayout, lhs: &[u32], panel: &[u32], out: &mut [f32]) {
    for block in 0..layout.blocks.count {
        let (first, rows) = layout.blocks.at(block);
        let out = bytemuck::cast_slice_mut(&mut out[first * layout.plan.columns..]);
        active.multiply(&lhs[layout.block_words(block)], rows, panel, layout.steps, out);
    }
}

/// Neighbouring queries of a head, as many as a panel has columns.
struct QueryPanel {
    /// The token of the first query.
    first: usize,
    /// Queries; fewer than columns at the end.
    count: usize,
    head: usize,
    heads: Heads,
    plan: GemmPlan,
}

impl QueryPanel {
    /// Packs the queries as a panel, scaled as [`softmax_columns`] expects it.
    fn pack(&self, qkv: &[f32], out: &mut [u32]) {
        let Self { plan, heads, .. } = self;
        let scale = heads.scale() * softmax::score_scale(plan);
        out.fill(0);
        let (mut scaled, mut words) = ([0f32; MAX_HEAD_SIZE], [0u32; MAX_HEAD_SIZE]);
        let scaled = &mut scaled[..heads.size];
        for column in 0..self.count {
            let query = row(qkv, *heads, self.first + column, 0, self.head);
            scaled.iter_mut().zip(query).for_each(|(scaled, value)| *scaled = value * scale);
            let words = &mut words[..heads.size.div_ceil(plan.format.group())];
            match plan.format {
                Format::Bf16 => rows::pair_bf16(plan.isa, scaled, words),
                _ => words.iter_mut().zip(&*scaled).for_each(|(word, x)| *word = x.to_bits()),
            }
            let cells = out[column..].iter_mut().step_by(plan.columns);
            cells.zip(words).for_each(|(cell, word)| *cell = *word);
        }
    }

    /// Writes the weighted sums of values, divided by the sums of their weights, to the rows of the
    /// queries.
    fn write(&self, mixed: &[f32], sums: &ColumnSums, out: DisjointMut<'_, f32>) {
        let (size, columns) = (self.heads.size, self.plan.columns);
        for column in 0..self.count {
            let start = (self.first + column) * self.heads.width() + self.head * size;
            // SAFETY: each query and head belongs to one panel, and a panel to one task.
            let out = unsafe { out.slice(start, size) };
            let scale = 1.0 / sums[column];
            let values = mixed[column..].iter().step_by(columns);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value * scale);
        }
    }
}
