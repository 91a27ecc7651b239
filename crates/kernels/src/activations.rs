//! The left-hand side of a product: rows of activations, in the layout that the microkernels read.

use std::ops::Range;

use crate::buffer::{Buffer, DisjointMut, ScratchPool};
use crate::isa::Isa;
use crate::math::to_bf16;
use crate::microkernels::{Blocks, Format, GemmPlan};
use crate::packed_weights::PackedWeights;
use crate::rotate::rotate;
use crate::rows::{self, QuantParams};
use crate::thread_pool::ThreadPool;

/// The left-hand side of a product, converted for given weights. Keeps its memory from one product to
/// the next.
#[derive(Debug, Default)]
pub struct Activations {
    layout: Option<LhsLayout>,
    words: Buffer<u32>,
    /// Of each row.
    params: Vec<QuantParams>,
    /// Two rows: before and after the rotation.
    scratch: ScratchPool<Buffer<f32>>,
}

/// Where the rows of a left-hand side lie in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LhsLayout {
    pub(crate) plan: GemmPlan,
    pub(crate) blocks: Blocks,
    /// Numbers of a row.
    pub(crate) depth: usize,
    /// Words of a row, padding included.
    pub(crate) steps: usize,
}

impl LhsLayout {
    pub(crate) fn new(plan: GemmPlan, rows: usize, depth: usize) -> Self {
        Self { plan, blocks: plan.blocks(rows), depth, steps: plan.steps(depth) }
    }

    /// Words of all rows, padding included.
    pub(crate) fn words(&self) -> usize {
        self.padded_rows() * self.steps
    }

    /// Rows, including those that only fill up tiles.
    pub(crate) fn padded_rows(&self) -> usize {
        self.plan.padded_rows(self.blocks.rows)
    }

    /// The words of a block.
    pub(crate) fn block_words(&self, block: usize) -> Range<usize> {
        let (first, rows) = self.blocks.at(block);
        first * self.steps..(first + self.plan.padded_rows(rows)) * self.steps
    }

    /// Writes `values` as row `row` of a block of `rows` rows, whose words are `block`.
    pub(crate) fn write_row(
        &self,
        values: &[f32],
        row: usize,
        rows: usize,
        block: &mut [u32],
    ) -> QuantParams {
        let (isa, format) = (self.plan.isa, self.plan.format);
        if !self.plan.is_row_major() {
            return write_interleaved(self.plan, values, row, rows, block);
        }
        let words = &mut block[row * self.steps..][..self.steps];
        let (used, padding) = words.split_at_mut(values.len().div_ceil(format.group()));
        padding.fill(0);
        if format.is_integer() {
            write_bytes(isa, values, used)
        } else {
            rows::pair_bf16(isa, values, used);
            QuantParams::NONE
        }
    }
}

/// Numbers of a row that are converted at a time, on the stack.
const CHUNK: usize = 256;

/// Quantises a row to contiguous bytes.
fn write_bytes(isa: Isa, values: &[f32], words: &mut [u32]) -> QuantParams {
    let params = rows::quant_params(isa, values);
    let mut bytes = [0u8; CHUNK];
    for (values, words) in values.chunks(CHUNK).zip(words.chunks_mut(CHUNK / 4)) {
        let bytes = quantize_chunk(isa, values, params, &mut bytes);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    params
}

/// Quantises up to [`CHUNK`] numbers; the result is padded with zeros to whole words.
fn quantize_chunk<'a>(
    isa: Isa,
    values: &[f32],
    params: QuantParams,
    bytes: &'a mut [u8; CHUNK],
) -> &'a [u8] {
    let padded = values.len().next_multiple_of(4);
    bytes[values.len()..padded].fill(0);
    rows::quantize(isa, values, params, &mut bytes[..values.len()]);
    &bytes[..padded]
}

/// Writes a row whose steps lie `rows` words apart.
fn write_interleaved(
    plan: GemmPlan,
    values: &[f32],
    row: usize,
    rows: usize,
    block: &mut [u32],
) -> QuantParams {
    let isa = plan.isa;
    let mut cells = block[row..].iter_mut().step_by(rows);
    match plan.format {
        Format::F32 => cells.zip(values).for_each(|(cell, value)| *cell = value.to_bits()),
        Format::RoundedF32 => {
            cells.zip(values).for_each(|(cell, &value)| *cell = to_bf16(value) << 16);
        }
        Format::Bf16 => {
            let mut words = [0u32; CHUNK / 2];
            for values in values.chunks(CHUNK) {
                let words = &mut words[..values.len().div_ceil(2)];
                rows::pair_bf16(isa, values, words);
                words.iter().zip(&mut cells).for_each(|(word, cell)| *cell = *word);
            }
        }
        Format::Int8x4 | Format::Int8Sums16 | Format::Int8x2 => {
            let params = rows::quant_params(isa, values);
            let mut bytes = [0u8; CHUNK];
            for values in values.chunks(CHUNK) {
                let steps = values.len().div_ceil(plan.format.group());
                let bytes = quantize_chunk(isa, values, params, &mut bytes);
                if plan.format.group() == 4 {
                    let words = bytes.as_chunks::<4>().0[..steps].iter();
                    let words = words.map(|bytes| u32::from_le_bytes(*bytes));
                    words.zip(&mut cells).for_each(|(word, cell)| *cell = word);
                } else {
                    let words = bytes.as_chunks::<2>().0[..steps].iter();
                    let words = words.map(|b| u32::from(b[0]) | (u32::from(b[1]) << 16));
                    words.zip(&mut cells).for_each(|(word, cell)| *cell = word);
                }
            }
            return params;
        }
    }
    QuantParams::NONE
}

/// Where rows come from.
trait RowSource: Sync {
    /// Row `row`: either borrowed, or computed in `scratch`.
    fn row<'a>(&'a self, row: usize, scratch: &'a mut [f32]) -> &'a [f32];
}

/// Rows that a function computes.
struct Computed<F>(F);

impl<F: Fn(usize, &mut [f32]) + Sync> RowSource for Computed<F> {
    fn row<'a>(&'a self, row: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        (self.0)(row, scratch);
        scratch
    }
}

/// Rows in memory.
struct Borrowed<'x> {
    x: &'x [f32],
    depth: usize,
}

impl RowSource for Borrowed<'_> {
    fn row<'a>(&'a self, row: usize, _: &'a mut [f32]) -> &'a [f32] {
        &self.x[row * self.depth..][..self.depth]
    }
}

impl Activations {
    /// Converts `rows` rows for a product with `weights`, or with others of the same depth and
    /// precision. `source` writes the row of an index into its second argument, on any thread.
    pub fn fill_with(
        &mut self,
        pool: &ThreadPool,
        weights: &PackedWeights,
        rows: usize,
        source: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.fill(pool, weights, rows, &Computed(source));
    }

    /// Converts the rows of `x`, `[rows, depth]`, for a product with `weights`.
    pub fn copy_from(&mut self, pool: &ThreadPool, weights: &PackedWeights, x: &[f32]) {
        let depth = weights.depth();
        let rows = x.len().checked_div(depth).unwrap_or(0);
        self.fill(pool, weights, rows, &Borrowed { x, depth });
    }

    fn fill(
        &mut self,
        pool: &ThreadPool,
        weights: &PackedWeights,
        rows: usize,
        source: &impl RowSource,
    ) {
        let depth = weights.depth();
        let layout = LhsLayout::new(weights.plan().for_rows(rows), rows, depth);
        self.layout = Some(layout);
        self.words.resize(layout.words());
        self.params.resize(rows, QuantParams::NONE);
        self.scratch.resize(pool.threads(), |scratch| scratch.resize(2 * depth));
        let words = DisjointMut::new(self.words.as_mut_slice());
        let params = DisjointMut::new(&mut self.params);
        let (isa, scratch) = (layout.plan.isa, &self.scratch);
        // The few rows of a decode step are not worth a second thread.
        let per_task = if rows <= 4 { layout.blocks.count.max(1) } else { 1 };
        pool.run(layout.blocks.count.div_ceil(per_task), |task| {
            let mut scratch = scratch.take();
            let (computed, rotated) = scratch.as_mut_slice().split_at_mut(depth);
            for block in task * per_task..((task + 1) * per_task).min(layout.blocks.count) {
                let (first, count) = layout.blocks.at(block);
                let range = layout.block_words(block);
                // SAFETY: the words and rows of blocks are disjoint, and a block has one task.
                let (words, params) =
                    unsafe { (words.slice(range.start, range.len()), params.slice(first, count)) };
                for (row, params) in params.iter_mut().enumerate() {
                    let mut values = source.row(first + row, computed);
                    if layout.plan.rotated {
                        rotate(isa, values, rotated);
                        values = rotated;
                    }
                    *params = layout.write_row(values, row, count, words);
                }
            }
        });
    }

    /// `None` before the first rows.
    pub(crate) fn layout(&self) -> Option<LhsLayout> {
        self.layout
    }

    /// The words of a block, and the parameters of its rows.
    pub(crate) fn block(&self, layout: &LhsLayout, block: usize) -> (&[u32], &[QuantParams]) {
        let (first, rows) = layout.blocks.at(block);
        (&self.words.as_slice()[layout.block_words(block)], &self.params[first..][..rows])
    }
}
