//! The states of an image, packed for attention.

use crate::Precision;
use crate::activations::LhsLayout;
use crate::buffer::{Buffer, DisjointMut};
use crate::isa::Isa;
use crate::math::{from_bf16, to_bf16};
use crate::microkernels::{Format, GemmPlan, MAX_COLUMNS};
use crate::rows;
use crate::thread_pool::ThreadPool;

/// The states of an image as the right-hand sides of both products. In f32, or in bf16 for the other
/// precisions.
#[derive(Debug)]
pub struct StatesTable {
    pub(super) plan: GemmPlan,
    pub(super) tokens: usize,
    pub(super) width: usize,
    /// Panels of tokens, for the scores.
    pub(super) by_token: Buffer<u32>,
    /// Panels of features, for the weighted sums.
    pub(super) by_feature: Buffer<u32>,
}

impl StatesTable {
    /// An empty table, for [`fill`](Self::fill).
    #[must_use]
    pub fn new(isa: Isa, precision: Precision) -> Self {
        let precision = if precision == Precision::F32 { precision } else { Precision::Bf16 };
        let plan = GemmPlan::new(isa, precision);
        Self { plan, tokens: 0, width: 0, by_token: Buffer::new(), by_feature: Buffer::new() }
    }

    /// Replaces the contents with `states`, `[tokens, width]`. Allocates only if there were never as
    /// many.
    pub fn fill(&mut self, pool: &ThreadPool, states: &[f32], width: usize) {
        let tokens = states.len() / width.max(1);
        (self.tokens, self.width) = (tokens, width);
        let (plan, columns) = (self.plan, self.plan.columns);
        let row = |token: usize| &states[token * width..][..width];
        let words = plan.panel_words(plan.steps(width));
        let panels = self.token_panels();
        self.by_token.resize(panels * words);
        let out = DisjointMut::new(self.by_token.as_mut_slice());
        pool.run(panels, |panel| {
            // SAFETY: panels are disjoint, and a panel has one task.
            let out = unsafe { out.slice(panel * words, words) };
            out.fill(0);
            for column in 0..columns.min(tokens - panel * columns) {
                write_column(&plan, row(panel * columns + column), column, out);
            }
        });
        let words = plan.panel_words(plan.steps(tokens));
        let panels = self.feature_panels();
        self.by_feature.resize(panels * words);
        let out = DisjointMut::new(self.by_feature.as_mut_slice());
        pool.run(panels, |panel| {
            // SAFETY: panels are disjoint, and a panel has one task.
            let out = unsafe { out.slice(panel * words, words) };
            out.fill(0);
            let first = panel * columns;
            let used = first..width.min(first + columns);
            let group = plan.format.group();
            let step_words = plan.panel_words(1);
            for (step, out) in out.chunks_exact_mut(step_words).enumerate() {
                let token = step * group;
                if token < tokens {
                    let next = (group == 2 && token + 1 < tokens).then(|| row(token + 1));
                    write_step(
                        &plan,
                        &row(token)[used.clone()],
                        next.map(|row| &row[used.clone()]),
                        out,
                    );
                }
            }
        });
    }

    /// Writes the states, `[tokens, width]`, as precisely as the table has kept them, to `out`.
    ///
    /// # Panics
    /// `out` has another length.
    pub fn read(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.tokens * self.width, "states of {} tokens", self.tokens);
        let GemmPlan { format, columns, .. } = self.plan;
        let (group, bytes) = (format.group(), format.column_bytes());
        let panel_bytes = 4 * self.plan.panel_words(self.plan.steps(self.tokens));
        let table: &[u8] = bytemuck::cast_slice(self.by_feature.as_slice());
        for (token, out) in out.chunks_exact_mut(self.width.max(1)).enumerate() {
            for (feature, out) in out.iter_mut().enumerate() {
                let cell = (token / group * columns + feature % columns) * bytes;
                let cell = &table[feature / columns * panel_bytes + cell..][..bytes];
                let half = 2 * (token % group);
                *out = match format {
                    Format::F32 => f32::from_le_bytes([cell[0], cell[1], cell[2], cell[3]]),
                    _ => from_bf16(u16::from_le_bytes([cell[half], cell[half + 1]])),
                };
            }
        }
    }

    /// Numbers of a state.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// States.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes of the table.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * (self.by_token.as_slice().len() + self.by_feature.as_slice().len())
    }

    pub(super) fn token_panels(&self) -> usize {
        self.tokens.div_ceil(self.plan.columns)
    }

    pub(super) fn feature_panels(&self) -> usize {
        self.width.div_ceil(self.plan.columns)
    }

    /// The left-hand side of the scores of `rows` queries and heads.
    pub(super) fn query_layout(&self, rows: usize) -> LhsLayout {
        LhsLayout::new(self.plan, rows, self.width)
    }

    /// The left-hand side of the weighted sums.
    pub(super) fn weight_layout(&self, rows: usize) -> LhsLayout {
        LhsLayout::new(self.plan, rows, self.tokens)
    }

    /// Words of the left-hand sides of `rows` queries and heads.
    pub(super) fn operand_words(&self, rows: usize) -> usize {
        self.query_layout(rows).words().max(self.weight_layout(rows).words())
    }

    /// Scores of a panel of tokens.
    pub(super) fn panel_scores(&self, rows: usize) -> usize {
        self.plan.padded_rows(rows) * self.plan.columns
    }
}

/// Writes a row as a column of a panel.
fn write_column(plan: &GemmPlan, row: &[f32], column: usize, panel: &mut [u32]) {
    match plan.format {
        Format::F32 => {
            let cells = panel[column..].iter_mut().step_by(plan.columns);
            cells.zip(row).for_each(|(cell, value)| *cell = value.to_bits());
        }
        Format::Bf16 => {
            let mut words = [0u32; CHUNK / 2];
            let mut cells = panel[column..].iter_mut().step_by(plan.columns);
            for row in row.chunks(CHUNK) {
                let words = &mut words[..row.len().div_ceil(2)];
                rows::pair_bf16(plan.isa, row, words);
                words.iter().zip(&mut cells).for_each(|(word, cell)| *cell = *word);
            }
        }
        _ => {
            let panel: &mut [u16] = bytemuck::cast_slice_mut(panel);
            let cells = panel[column..].iter_mut().step_by(plan.columns);
            cells.zip(row).for_each(|(cell, &value)| *cell = to_bf16(value) as u16);
        }
    }
}

/// Writes the numbers of a row, and of the next one if a step has two rows, as a step of a panel.
fn write_step(plan: &GemmPlan, row: &[f32], next: Option<&[f32]>, out: &mut [u32]) {
    const ZEROS: [f32; MAX_COLUMNS] = [0.0; MAX_COLUMNS];
    match plan.format {
        Format::F32 => out.iter_mut().zip(row).for_each(|(out, value)| *out = value.to_bits()),
        Format::Bf16 => {
            rows::interleave_bf16(plan.isa, row, next.unwrap_or(&ZEROS[..row.len()]), out);
        }
        _ => {
            let out: &mut [u16] = bytemuck::cast_slice_mut(out);
            out.iter_mut().zip(row).for_each(|(out, &value)| *out = to_bf16(value) as u16);
        }
    }
}

/// Numbers of a row that are converted at a time, on the stack.
const CHUNK: usize = 256;
