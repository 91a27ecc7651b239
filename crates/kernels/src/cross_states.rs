//! Cross-attention to the states of an image, without keys and values.
//!
//! A score is `q · (W s + b)`, which is `(Wᵀ q) · s` plus a number that all states share and that the
//! softmax therefore removes. The weighted sum of values is `W (Σ p s) + b`, since probabilities add
//! up to one. So a query is multiplied with the key weights of its head, attends to the states
//! themselves, and the result is multiplied with the value weights. An image needs one table for all
//! layers and heads, and nothing is computed for a layer in advance; in return, a token has to do as
//! many multiplications for each state as the states are wide, not as a head is.

mod table;

use std::ops::Range;

pub use self::table::StatesTable;

use crate::Precision;
use crate::activations::LhsLayout;
use crate::attention::Heads;
use crate::buffer::{Buffer, DisjointMut, ScratchPool};
use crate::gemm::{Epilogue, OutputTile, finish, part};
use crate::isa::Isa;
use crate::microkernels::{Accumulators, ActivePlan, GemmPlan, MAX_COLUMNS, MAX_ROWS};
use crate::packed_weights::PackedWeights;
use crate::rotate::rotate;
use crate::rows::{self, QuantParams};
use crate::thread_pool::ThreadPool;

/// The weights of a layer that turn queries into those for states: for each head the transposed key
/// weights, with the factor of the scores.
#[derive(Debug)]
pub struct FoldedKeys {
    heads: Heads,
    by_head: Vec<PackedWeights>,
}

impl FoldedKeys {
    /// Packs the key weights of a layer, `[heads' width, width of a state]`.
    ///
    /// # Panics
    /// The number of weights is no multiple of the heads' width.
    #[must_use]
    pub fn new(isa: Isa, precision: Precision, heads: Heads, weight: &[f32]) -> Self {
        let width = weight.len() / heads.width().max(1);
        assert_eq!(weight.len(), heads.width() * width, "key weights of {} heads", heads.count);
        let (scale, bias) = (heads.scale(), vec![0.0; width]);
        let pack = |weight: &[f32]| {
            let transposed: Vec<f32> = (0..width)
                .flat_map(|column| weight[column..].iter().step_by(width).map(|w| w * scale))
                .collect();
            PackedWeights::new(isa, precision, &transposed, &bias, heads.size)
        };
        let by_head = weight.chunks_exact((heads.size * width).max(1)).map(pack).collect();
        Self { heads, by_head }
    }
}

/// Memory for [`attend`], kept from one call to the next.
#[derive(Debug, Default)]
pub struct StatesScratch {
    places: Vec<Place>,
    /// The rows of all queries, in the order of the items.
    queries: Vec<usize>,
    /// Queries for states, and then the weighted sums of states: `[queries, heads, width]`.
    folded: Buffer<f32>,
    /// Of each item, its queries as a left-hand side and then its probabilities.
    operands: Buffer<u32>,
    /// Of each item and panel of tokens, `[rows, columns]`.
    scores: Buffer<f32>,
    /// The sums of the softmax, `[queries, heads]`.
    sums: Buffer<f32>,
    tasks: ScratchPool<TaskScratch>,
}

/// Memory of a task.
#[derive(Debug, Default)]
struct TaskScratch {
    words: Buffer<u32>,
    params: Vec<QuantParams>,
    row: Buffer<f32>,
}

/// An item of a batch: the table of its image and its queries.
#[derive(Debug, Clone, Copy)]
pub struct StatesItem<'a> {
    /// The image.
    pub table: &'a StatesTable,
    /// The row of the first query.
    pub first: usize,
    /// Queries.
    pub count: usize,
}

/// The weights of a layer, for [`attend`].
#[derive(Debug, Clone, Copy)]
pub struct StatesLayer<'a> {
    /// Of the keys.
    pub keys: &'a FoldedKeys,
    /// Weights whose last columns, as many as the heads are wide, are the values.
    pub values: &'a PackedWeights,
}

/// Where the parts of an item begin in the scratch memory.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Queries and heads.
    rows: usize,
    /// The first of them among those of all items.
    first: usize,
    operand: usize,
    score: usize,
}

/// Attention of each item's queries to its states. `queries` and `out` are `[rows, heads' width]`.
/// All tables have the same width and precision, and no two items have a row in common.
///
/// # Panics
/// A slice is too short.
pub fn attend<'a>(
    pool: &ThreadPool,
    layer: StatesLayer<'_>,
    items: impl Iterator<Item = StatesItem<'a>> + Clone + Sync,
    queries: &[f32],
    scratch: &mut StatesScratch,
    out: &mut [f32],
) {
    let Some(StatesItem { table, .. }) = items.clone().next() else { return };
    let (heads, width) = (layer.keys.heads, table.width);
    let StatesScratch { places, queries: own, .. } = scratch;
    places.clear();
    own.clear();
    let [mut first, mut operand, mut score] = [0; 3];
    for StatesItem { table, first: query, count } in items.clone() {
        let rows = count * heads.count;
        places.push(Place { rows, first, operand, score });
        own.extend(query..query + count);
        first += rows;
        operand += table.operand_words(rows);
        score += table.panel_scores(rows) * table.token_panels();
    }
    scratch.operands.resize(operand);
    scratch.scores.resize(score);
    scratch.folded.resize(first * width);
    scratch.sums.resize(first);
    scratch.tasks.resize(pool.threads(), |_| ());
    let batch = Batch { layer, heads, width, items };
    batch.fold_queries(pool, queries, scratch);
    batch.pack_queries(pool, scratch);
    batch.score(pool, scratch);
    batch.softmax(pool, scratch);
    batch.mix(pool, scratch);
    batch.project(pool, scratch, out);
}

/// Tasks of a product with the weights of a head or the states of an item, for each thread: more of
/// them balance the load better.
const TASKS_PER_THREAD: usize = 2;

struct Batch<'l, I> {
    layer: StatesLayer<'l>,
    heads: Heads,
    /// Numbers of a state.
    width: usize,
    items: I,
}

impl<'a, I: Iterator<Item = StatesItem<'a>> + Clone + Sync> Batch<'_, I> {
    /// Multiplies the queries of each head with its key weights.
    fn fold_queries(&self, pool: &ThreadPool, queries: &[f32], scratch: &mut StatesScratch) {
        let Self { heads, width, .. } = *self;
        let StatesScratch { queries: own, folded, tasks, .. } = scratch;
        let folded = DisjointMut::new(folded.as_mut_slice());
        let groups = (TASKS_PER_THREAD * pool.threads()).div_ceil(heads.count);
        pool.run(heads.count * groups, |task| {
            let (head, group) = (task / groups, task % groups);
            let weights = &self.layer.keys.by_head[head];
            let mut scratch = tasks.take();
            let row =
                |n: usize| &queries[own[n] * heads.width() + head * heads.size..][..heads.size];
            let lhs = scratch.pack(weights, own.len(), row);
            let panels = part(weights.panels(), groups, group);
            lhs.multiply(weights, panels, |query, column, values| {
                // SAFETY: a query, head and panel have one task.
                unsafe {
                    folded.slice((query * heads.count + head) * width + column, values.len())
                }
                .copy_from_slice(values);
            });
        });
    }

    /// Calls `task` for each item and block of its rows, with the words of the item's layout.
    fn for_blocks(
        &self,
        pool: &ThreadPool,
        places: &[Place],
        layout: impl Fn(&StatesTable, usize) -> LhsLayout + Sync,
        operands: &mut Buffer<u32>,
        task: impl Fn(&StatesTable, &Place, LhsLayout, usize, &mut [u32]) + Sync,
    ) {
        let blocks = self.items.clone().zip(places);
        let blocks = blocks.map(|(item, place)| layout(item.table, place.rows).blocks.count);
        let most = blocks.max().unwrap_or(0);
        let operands = DisjointMut::new(operands.as_mut_slice());
        pool.run(places.len() * most, |index| {
            let (place, block) = (&places[index / most], index % most);
            let Some(StatesItem { table, .. }) = self.items.clone().nth(index / most) else {
                return;
            };
            let layout = layout(table, place.rows);
            if block < layout.blocks.count {
                let range = layout.block_words(block);
                // SAFETY: the words of blocks are disjoint, and a block has one task.
                let words = unsafe { operands.slice(place.operand + range.start, range.len()) };
                task(table, place, layout, block, words);
            }
        });
    }

    /// Makes left-hand sides of the folded queries.
    fn pack_queries(&self, pool: &ThreadPool, scratch: &mut StatesScratch) {
        let StatesScratch { places, folded, operands, .. } = scratch;
        let (folded, width) = (folded.as_slice(), self.width);
        let layout = StatesTable::query_layout;
        self.for_blocks(pool, places, layout, operands, |_, place, layout, block, words| {
            let (first, rows) = layout.blocks.at(block);
            for row in 0..rows {
                let values = &folded[(place.first + first + row) * width..][..width];
                layout.write_row(values, row, rows, words);
            }
        });
    }

    /// Calls `task` for each item and part of its panels.
    fn for_panels(
        &self,
        pool: &ThreadPool,
        places: &[Place],
        panels: impl Fn(&StatesTable) -> usize + Sync,
        task: impl Fn(&StatesTable, &Place, &ActivePlan, Range<usize>) + Sync,
    ) {
        let groups = (TASKS_PER_THREAD * pool.threads()).div_ceil(places.len());
        pool.run(places.len() * groups, |index| {
            let place = &places[index / groups];
            let Some(StatesItem { table, .. }) = self.items.clone().nth(index / groups) else {
                return;
            };
            let active = ActivePlan::new(table.plan);
            task(table, place, &active, part(panels(table), groups, index % groups));
        });
    }

    /// Multiplies the queries with the states.
    fn score(&self, pool: &ThreadPool, scratch: &mut StatesScratch) {
        let StatesScratch { places, operands, scores, .. } = scratch;
        let (operands, scores) = (operands.as_slice(), DisjointMut::new(scores.as_mut_slice()));
        let panels = StatesTable::token_panels;
        self.for_panels(pool, places, panels, |table, place, active, panels| {
            let (layout, plan) = (table.query_layout(place.rows), table.plan);
            let words = plan.panel_words(layout.steps);
            let panel_scores = table.panel_scores(place.rows);
            for panel in panels {
                let states = &table.by_token.as_slice()[panel * words..][..words];
                for block in 0..layout.blocks.count {
                    let (first, rows) = layout.blocks.at(block);
                    let start = place.score + panel * panel_scores + first * plan.columns;
                    // SAFETY: blocks and panels have disjoint scores, and each pair has one task.
                    let out = unsafe { scores.slice(start, plan.padded_rows(rows) * plan.columns) };
                    let range = layout.block_words(block);
                    let lhs = &operands[place.operand + range.start..][..range.len()];
                    active.multiply(lhs, rows, states, layout.steps, bytemuck::cast_slice_mut(out));
                }
            }
        });
    }

    /// Makes left-hand sides of the numerators of the softmax, and keeps the denominators.
    fn softmax(&self, pool: &ThreadPool, scratch: &mut StatesScratch) {
        let StatesScratch { places, operands, scores, sums, tasks, .. } = scratch;
        let (scores, sums) = (scores.as_slice(), DisjointMut::new(sums.as_mut_slice()));
        let layout = StatesTable::weight_layout;
        self.for_blocks(pool, places, layout, operands, |table, place, layout, block, words| {
            let (first, rows) = layout.blocks.at(block);
            let GemmPlan { isa, columns, .. } = layout.plan;
            let mut scratch = tasks.take();
            scratch.row.resize(table.token_panels() * columns);
            let values = scratch.row.as_mut_slice();
            let panel_scores = table.panel_scores(place.rows);
            for row in 0..rows {
                let panels = scores[place.score..].chunks_exact(panel_scores);
                for (values, panel) in values.chunks_exact_mut(columns).zip(panels) {
                    values.copy_from_slice(&panel[(first + row) * columns..][..columns]);
                }
                let values = &mut values[..table.tokens];
                let sum = rows::softmax_numerators(isa, values);
                // SAFETY: a row has one task.
                unsafe { sums.slice(place.first + first + row, 1) }.fill(sum);
                layout.write_row(values, row, rows, words);
            }
        });
    }

    /// The weighted sums of states, in place of the folded queries.
    fn mix(&self, pool: &ThreadPool, scratch: &mut StatesScratch) {
        let StatesScratch { places, operands, folded, sums, .. } = scratch;
        let (operands, sums) = (operands.as_slice(), sums.as_slice());
        let mixed = DisjointMut::new(folded.as_mut_slice());
        let panels = StatesTable::feature_panels;
        self.for_panels(pool, places, panels, |table, place, active, panels| {
            let (layout, plan) = (table.weight_layout(place.rows), table.plan);
            let words = plan.panel_words(layout.steps);
            let mut tile = Accumulators([0; MAX_ROWS * MAX_COLUMNS]);
            for panel in panels {
                let states = &table.by_feature.as_slice()[panel * words..][..words];
                let column = panel * plan.columns;
                let used = plan.columns.min(self.width - column);
                for block in 0..layout.blocks.count {
                    let (first, rows) = layout.blocks.at(block);
                    let range = layout.block_words(block);
                    let lhs = &operands[place.operand + range.start..][..range.len()];
                    active.multiply(lhs, rows, states, layout.steps, &mut tile.0);
                    for (row, tile) in tile.0.chunks_exact(plan.columns).take(rows).enumerate() {
                        let row = place.first + first + row;
                        // SAFETY: a row and panel have one task.
                        let out = unsafe { mixed.slice(row * self.width + column, used) };
                        let scale = 1.0 / sums[row];
                        let sums = out.iter_mut().zip(tile);
                        sums.for_each(|(out, &sum)| *out = f32::from_bits(sum) * scale);
                    }
                }
            }
        });
    }

    /// Multiplies the weighted sums of each head with its value weights.
    fn project(&self, pool: &ThreadPool, scratch: &mut StatesScratch, out: &mut [f32]) {
        let Self { heads, width, .. } = *self;
        let weights = self.layer.values;
        let StatesScratch { queries: own, folded, tasks, .. } = scratch;
        let mixed = folded.as_slice();
        let out = DisjointMut::new(out);
        pool.run(heads.count, |head| {
            let mut scratch = tasks.take();
            let row = |n: usize| &mixed[(n * heads.count + head) * width..][..width];
            let lhs = scratch.pack(weights, own.len(), row);
            let columns = weights.plan().columns;
            // The values of a head may share a panel with those of its neighbours.
            let first = weights.width() - heads.width() + head * heads.size;
            let panels = first / columns..(first + heads.size).div_ceil(columns);
            lhs.multiply(weights, panels, |query, column, values| {
                let from = column.max(first);
                let to = (column + values.len()).min(first + heads.size);
                let start = own[query] * heads.width() + head * heads.size + from - first;
                // SAFETY: a query and head have one task.
                unsafe { out.slice(start, to - from) }
                    .copy_from_slice(&values[from - column..to - column]);
            });
        });
    }
}

/// A left-hand side in the memory of a task.
struct PackedRows<'a> {
    layout: LhsLayout,
    words: &'a [u32],
    params: &'a [QuantParams],
}

impl TaskScratch {
    /// Packs `count` rows for a product with `weights`.
    fn pack<'a>(
        &mut self,
        weights: &PackedWeights,
        count: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) -> PackedRows<'_> {
        let depth = weights.depth();
        let layout = LhsLayout::new(weights.plan().for_rows(count), count, depth);
        self.words.resize(layout.words());
        self.params.clear();
        self.row.resize(depth);
        let rotated = self.row.as_mut_slice();
        for block in 0..layout.blocks.count {
            let (first, rows) = layout.blocks.at(block);
            let words = &mut self.words.as_mut_slice()[layout.block_words(block)];
            for index in 0..rows {
                let mut values = row(first + index);
                if layout.plan.rotated {
                    rotate(layout.plan.isa, values, rotated);
                    values = rotated;
                }
                self.params.push(layout.write_row(values, index, rows, words));
            }
        }
        PackedRows { layout, words: self.words.as_slice(), params: &self.params }
    }
}

impl PackedRows<'_> {
    /// Multiplies with some panels of `weights`; `write` gets a row, a column and the results from
    /// there on.
    fn multiply(
        &self,
        weights: &PackedWeights,
        panels: Range<usize>,
        write: impl Fn(usize, usize, &[f32]),
    ) {
        let (layout, plan) = (&self.layout, weights.plan());
        let active = ActivePlan::new(layout.plan);
        let mut sums = Accumulators([0; MAX_ROWS * MAX_COLUMNS]);
        let mut tile = [0f32; MAX_ROWS * MAX_COLUMNS];
        for panel in panels {
            let column = panel * plan.columns;
            let width = plan.columns.min(weights.width() - column);
            for block in 0..layout.blocks.count {
                let (first, rows) = layout.blocks.at(block);
                let words = &self.words[layout.block_words(block)];
                active.multiply(words, rows, weights.panel(panel), layout.steps, &mut sums.0);
                let out = DisjointMut::new(&mut tile);
                let output = OutputTile { out, start: 0, stride: plan.columns, width };
                let params = &self.params[first..][..rows];
                finish(plan.isa, &sums, params, weights, panel, &output, Epilogue::STORE);
                for (row, tile) in tile.chunks_exact(plan.columns).take(rows).enumerate() {
                    write(first + row, column, &tile[..width]);
                }
            }
        }
    }
}
