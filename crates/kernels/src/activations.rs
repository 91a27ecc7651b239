//! The left operand: rows of activations, in the layout that the kernels read.

use crate::buffer::{Buffer, DisjointMut, ScratchSlots};
use crate::math::to_bf16;
use crate::microkernels::{Blocks, Format, GemmPlan, Microkernel};
use crate::rotate::rotate;
use crate::rows::{self, QuantParams};
use crate::thread_pool::ThreadPool;

/// Rows of a product's left side. It keeps its memory from one product to the next.
#[derive(Debug, Default)]
pub struct Activations {
    layout: Option<LhsLayout>,
    words: Buffer<u32>,
    maps: Vec<QuantParams>,
    staging: Buffer<f32>,
    slots: ScratchSlots,
}

impl Default for Buffer<u32> {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Buffer<f32> {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the rows of a left operand lie.
#[derive(Debug, Clone, Copy)]
pub struct LhsLayout {
    pub plan: GemmPlan,
    pub blocks: Blocks,
    /// Numbers of a row.
    pub depth: usize,
    pub steps: usize,
}

impl LhsLayout {
    pub fn new(plan: GemmPlan, rows: usize, depth: usize) -> Self {
        Self { plan, blocks: plan.blocks(rows), depth, steps: plan.steps(depth) }
    }

    /// Words that all rows take, those that only fill up tiles included.
    pub fn words(&self) -> usize {
        self.padded_rows() * self.steps
    }

    /// Rows, those that only fill up tiles included.
    pub fn padded_rows(&self) -> usize {
        match self.plan.microkernel {
            Microkernel::Blocks(_) => self.blocks.rows,
            Microkernel::Tiles { .. } => self.blocks.rows.next_multiple_of(16),
        }
    }

    /// First word and number of words of a block.
    pub fn place(&self, block: usize) -> (usize, usize) {
        let (first, rows) = self.blocks.at(block);
        let rows = match self.plan.microkernel {
            Microkernel::Blocks(_) => rows,
            Microkernel::Tiles { .. } => rows.next_multiple_of(16),
        };
        (first * self.steps, rows * self.steps)
    }

    /// Writes `values` as row `row` of a block of `rows` rows, the words of which are `block`.
    pub fn put(&self, values: &[f32], row: usize, rows: usize, block: &mut [u32]) -> QuantParams {
        let isa = self.plan.tier.isa();
        match self.plan.microkernel {
            Microkernel::Tiles { bytes } => {
                let words = &mut block[row * self.steps..][..self.steps];
                let (used, padding) =
                    words.split_at_mut(values.len().div_ceil(self.plan.format.group()));
                padding.fill(0);
                if bytes { put_bytes(isa, values, used) } else { put_bf16(isa, values, used) }
            }
            Microkernel::Blocks(_) => scatter(self.plan, values, row, rows, block),
        }
    }
}

const WHOLE: QuantParams = QuantParams { scale: 1.0, zero: 0 };

fn put_bf16(isa: super::isa::Isa, values: &[f32], words: &mut [u32]) -> QuantParams {
    rows::pair_bf16(isa, values, words);
    WHOLE
}

fn put_bytes(isa: super::isa::Isa, values: &[f32], words: &mut [u32]) -> QuantParams {
    let map = rows::quant_params(isa, values);
    let mut bytes = [0u8; CHUNK];
    for (values, words) in values.chunks(CHUNK).zip(words.chunks_mut(CHUNK / 4)) {
        let whole = values.len().next_multiple_of(4);
        bytes[values.len()..whole].fill(0);
        rows::quantize(isa, values, map, &mut bytes[..values.len()]);
        for (word, bytes) in words.iter_mut().zip(bytes[..whole].as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    map
}

/// Numbers of a row that are converted at a time, on the stack.
const CHUNK: usize = 256;

/// A row whose steps are not in one piece, but `rows` words apart.
fn scatter(
    plan: GemmPlan,
    values: &[f32],
    row: usize,
    rows: usize,
    block: &mut [u32],
) -> QuantParams {
    let isa = plan.tier.isa();
    let cells = block[row..].iter_mut().step_by(rows);
    let map = if plan.format.is_integer() { rows::quant_params(isa, values) } else { WHOLE };
    match plan.format {
        Format::F32 => cells.zip(values).for_each(|(cell, value)| *cell = value.to_bits()),
        Format::RoundedF32 => {
            cells.zip(values).for_each(|(cell, &value)| *cell = to_bf16(value) << 16);
        }
        Format::Bf16 => {
            let (mut cells, mut words) = (cells, [0u32; CHUNK / 2]);
            for values in values.chunks(CHUNK) {
                let words = &mut words[..values.len().div_ceil(2)];
                rows::pair_bf16(isa, values, words);
                words.iter().zip(&mut cells).for_each(|(word, cell)| *cell = *word);
            }
        }
        Format::Int8x4 | Format::Int8x2 => {
            let (mut cells, mut bytes) = (cells, [0u8; CHUNK]);
            for values in values.chunks(CHUNK) {
                let whole = values.len().next_multiple_of(4);
                bytes[values.len()..whole].fill(0);
                rows::quantize(isa, values, map, &mut bytes[..values.len()]);
                let used = values.len().div_ceil(plan.format.group());
                if plan.format == Format::Int8x4 {
                    let words =
                        bytes.as_chunks::<4>().0[..used].iter().map(|b| u32::from_le_bytes(*b));
                    words.zip(&mut cells).for_each(|(word, cell)| *cell = word);
                } else {
                    let words = bytes.as_chunks::<2>().0[..used].iter();
                    let words = words.map(|b| u32::from(b[0]) | (u32::from(b[1]) << 16));
                    words.zip(&mut cells).for_each(|(word, cell)| *cell = word);
                }
            }
        }
    }
    map
}

/// Where rows come from.
trait RowSource: Sync {
    /// Row `row` where it is, or made in `spare`.
    fn row<'a>(&'a self, row: usize, spare: &'a mut [f32]) -> &'a [f32];
}

/// Rows that a function writes.
struct Computed<F>(F);

impl<F: Fn(usize, &mut [f32]) + Sync> RowSource for Computed<F> {
    fn row<'a>(&'a self, row: usize, spare: &'a mut [f32]) -> &'a [f32] {
        (self.0)(row, spare);
        spare
    }
}

/// Rows that are there.
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
    /// Takes `rows` rows of `depth` numbers; `source` writes the row of a number into its second
    /// argument, on any thread.
    pub fn fill_with(
        &mut self,
        pool: &ThreadPool,
        plan: GemmPlan,
        rows: usize,
        depth: usize,
        source: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.fill_from(pool, plan, rows, depth, &Computed(source));
    }

    /// Takes the rows of `x`, of `depth` numbers each.
    pub fn copy_from(&mut self, pool: &ThreadPool, plan: GemmPlan, x: &[f32], depth: usize) {
        self.fill_from(pool, plan, x.len() / depth, depth, &Borrowed { x, depth });
    }

    fn fill_from(
        &mut self,
        pool: &ThreadPool,
        plan: GemmPlan,
        rows: usize,
        depth: usize,
        source: &impl RowSource,
    ) {
        let layout = LhsLayout::new(plan.for_rows(rows), rows, depth);
        self.layout = Some(layout);
        self.words.resize(layout.words());
        self.maps.resize(rows, WHOLE);
        self.slots.resize(pool.threads());
        // A row before and after its rotation.
        self.staging.resize(pool.threads() * 2 * depth);
        let words = DisjointMut::new(self.words.as_mut_slice());
        let maps = DisjointMut::new(&mut self.maps);
        let staging = DisjointMut::new(self.staging.as_mut_slice());
        let (isa, slots) = (plan.tier.isa(), &self.slots);
        // A few blocks a task: one row of a token is not worth a thread.
        let each = if rows <= 4 { layout.blocks.count.max(1) } else { 1 };
        pool.run(layout.blocks.count.div_ceil(each), |task| {
            let slot = slots.take();
            // SAFETY: the slot is this task's for as long as it lives.
            let values = unsafe { staging.slice(slot.index() * 2 * depth, 2 * depth) };
            let (spare, turned) = values.split_at_mut(depth);
            for block in task * each..((task + 1) * each).min(layout.blocks.count) {
                let (first, count) = layout.blocks.at(block);
                let (start, len) = layout.place(block);
                // SAFETY: blocks do not overlap, and each belongs to one task.
                let (words, maps) = unsafe { (words.slice(start, len), maps.slice(first, count)) };
                for (row, map) in maps.iter_mut().enumerate() {
                    let mut values = source.row(first + row, spare);
                    if layout.plan.rotated {
                        rotate(isa, values, turned);
                        values = turned;
                    }
                    *map = layout.put(values, row, count, words);
                }
            }
        });
    }

    pub fn layout(&self) -> Option<LhsLayout> {
        self.layout
    }

    /// The words of a block, and how its rows are read.
    pub fn block(&self, layout: &LhsLayout, block: usize) -> (&[u32], &[QuantParams]) {
        let (first, rows) = layout.blocks.at(block);
        let (start, len) = layout.place(block);
        (&self.words.as_slice()[start..][..len], &self.maps[first..][..rows])
    }
}
