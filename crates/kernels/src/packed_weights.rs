//! The right-hand side of a product: the weights of a linear layer, packed once for the microkernels.

use rayon::prelude::*;

use crate::Precision;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::math::{from_bf16, to_bf16};
use crate::microkernels::{Format, GROUP_LIMIT, GemmPlan};
use crate::rotate::{gain, rotate, rotate_back};
use crate::rows;

/// What the epilogue needs to know about columns; padded to whole panels.
#[derive(Debug)]
pub(crate) struct ColumnParams {
    /// The value of one unit of an 8-bit column; 1 in other formats.
    pub(crate) scale: Vec<f32>,
    /// The sum of an 8-bit column: the zero point of a row adds this many times itself to a product.
    pub(crate) sum: Vec<i32>,
    pub(crate) bias: Vec<f32>,
}

/// The weights and bias of `y = x Wᵀ + b`, in panels of some columns (rows of `W`), step-major.
///
/// 8-bit weights are symmetric, with a scale for each column.
#[derive(Debug)]
pub struct PackedWeights {
    plan: GemmPlan,
    depth: usize,
    width: usize,
    steps: usize,
    panels: usize,
    columns: ColumnParams,
    data: Buffer<u32>,
}

impl PackedWeights {
    /// Packs `weight`, `[width, depth]`, and `bias`, `[width]`; in parallel, on rayon's threads.
    ///
    /// # Panics
    /// `weight` does not have `depth` numbers for every bias.
    #[must_use]
    pub fn new(isa: Isa, precision: Precision, weight: &[f32], bias: &[f32], depth: usize) -> Self {
        let width = bias.len();
        assert_eq!(weight.len(), width * depth, "{width} biases for rows of {depth} weights");
        let mut plan = GemmPlan::new(isa, precision);
        plan.rotated = precision == Precision::Int8;
        let (steps, panels) = (plan.steps(depth), width.div_ceil(plan.columns));
        let padded = panels * plan.columns;
        let mut columns =
            ColumnParams { scale: vec![1.0; padded], sum: vec![0; padded], bias: bias.to_vec() };
        columns.bias.resize(padded, 0.0);
        let mut data = Buffer::zeroed(panels * plan.panel_words(steps));
        data.as_mut_slice()
            .par_chunks_mut(plan.panel_words(steps).max(1))
            .zip(columns.scale.par_chunks_mut(plan.columns))
            .zip(columns.sum.par_chunks_mut(plan.columns))
            .zip(weight.par_chunks(depth.max(1) * plan.columns))
            .for_each(|(((panel, scale), sum), rows)| {
                let panel = bytemuck::cast_slice_mut(panel);
                for (column, row) in rows.chunks_exact(depth.max(1)).enumerate() {
                    (scale[column], sum[column]) = write_column(&plan, row, column, panel);
                }
            });
        Self { plan, depth, width, steps, panels, columns, data }
    }

    /// Numbers of an input row, and of a row of `W`.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Numbers of an output row; rows of `W`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes row `index` of `W`, as precisely as the format has kept it, to `out`.
    ///
    /// # Panics
    /// There is no such row, or `out` is shorter than [`depth`](Self::depth).
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let GemmPlan { format, columns, .. } = self.plan;
        let (panel, column) = (self.panel(index / columns), index % columns);
        let panel: &[u8] = bytemuck::cast_slice(panel);
        let (group, bytes) = (format.group(), format.column_bytes());
        let scale = self.columns.scale[index];
        for (step, values) in out[..self.depth].chunks_mut(group).enumerate() {
            let cell = &panel[(step * columns + column) * bytes..][..bytes];
            for (i, value) in values.iter_mut().enumerate() {
                *value = match format {
                    Format::Int8x4 | Format::Int8Sums16 | Format::Int8x2 => {
                        f32::from(cell[i].cast_signed()) * scale
                    }
                    Format::Bf16 => from_bf16(u16::from_le_bytes([cell[2 * i], cell[2 * i + 1]])),
                    Format::RoundedF32 => from_bf16(u16::from_le_bytes([cell[0], cell[1]])),
                    Format::F32 => f32::from_le_bytes([cell[0], cell[1], cell[2], cell[3]]),
                };
            }
        }
        if self.plan.rotated {
            rotate_back(self.plan.isa, &mut out[..self.depth]);
        }
    }

    /// Row `index` of `W` as its 8-bit integers, padding included, and their scale.
    #[cfg(test)]
    pub(crate) fn integers(&self, index: usize) -> (Vec<i8>, f32) {
        let GemmPlan { format, columns, .. } = self.plan;
        let panel: &[u8] = bytemuck::cast_slice(self.panel(index / columns));
        let cells =
            panel.chunks_exact(format.column_bytes()).skip(index % columns).step_by(columns);
        (cells.flatten().map(|byte| byte.cast_signed()).collect(), self.columns.scale[index])
    }

    pub(crate) fn plan(&self) -> GemmPlan {
        self.plan
    }

    pub(crate) fn columns(&self) -> &ColumnParams {
        &self.columns
    }

    /// The number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// Words of a panel.
    pub(crate) fn panel_words(&self) -> usize {
        self.plan.panel_words(self.steps)
    }

    pub(crate) fn panel(&self, index: usize) -> &[u32] {
        let words = self.panel_words();
        &self.data.as_slice()[index * words..][..words]
    }
}

/// Weights that are converted at a time, on the stack; a multiple of every group.
const CHUNK: usize = 256;

/// The largest sum of the weights of one sign in a group of [`Format::Int8Sums16`].
fn largest_group(row: &[f32]) -> f32 {
    let part = |numbers: &[f32], sign: f32| -> f32 {
        numbers.iter().map(|value| (value * sign).max(0.0)).sum()
    };
    let mut largest = 0f32;
    for eight in row.chunks(8) {
        let (first, second) = eight.split_at(eight.len().min(4));
        for half in 0..2 {
            let of =
                |four: &'_ [f32], sign| four.chunks(2).nth(half).map_or(0.0, |two| part(two, sign));
            for sign in [1.0, -1.0] {
                largest = largest.max(of(first, sign) + of(second, sign));
            }
        }
    }
    largest
}

/// Writes a row of `W` as a column of a panel. Returns its scale and the sum of its integers.
fn write_column(plan: &GemmPlan, row: &[f32], column: usize, panel: &mut [u8]) -> (f32, i32) {
    let (group, bytes) = (plan.format.group(), plan.format.column_bytes());
    let mut cells = panel.chunks_exact_mut(bytes).skip(column).step_by(plan.columns);
    let mut rotated = Vec::new();
    let row = if plan.rotated {
        rotated.resize(row.len(), 0.0);
        rotate(plan.isa, row, &mut rotated);
        let factor = 1.0 / gain(row.len());
        rotated.iter_mut().for_each(|value| *value *= factor);
        &rotated
    } else {
        row
    };
    match plan.format {
        Format::Int8x4 | Format::Int8Sums16 | Format::Int8x2 => {
            // NaN for a row with NaN or infinity, and so is every product with it.
            let mut scale = rows::max_abs(plan.isa, row) / 127.0;
            if plan.format == Format::Int8Sums16 {
                // Rounding adds at most a half to each of the four weights of a group.
                let group = largest_group(row) / (GROUP_LIMIT - 2) as f32;
                if group > scale {
                    scale = group;
                }
            }
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let (mut sum, mut numbers) = (0, [0i8; CHUNK]);
            for row in row.chunks(CHUNK) {
                rows::quantize_signed(plan.isa, row, inverse, &mut numbers[..row.len()]);
                for (numbers, cell) in numbers[..row.len()].chunks(group).zip(&mut cells) {
                    for (byte, &number) in cell.iter_mut().zip(numbers) {
                        sum += i32::from(number);
                        *byte = number.cast_unsigned();
                    }
                }
            }
            (scale, sum)
        }
        Format::Bf16 | Format::RoundedF32 => {
            for (cell, numbers) in cells.zip(row.chunks(group)) {
                for (bytes, &value) in cell.chunks_exact_mut(2).zip(numbers) {
                    bytes.copy_from_slice(&(to_bf16(value) as u16).to_le_bytes());
                }
            }
            (1.0, 0)
        }
        Format::F32 => {
            for (cell, value) in cells.zip(row) {
                cell.copy_from_slice(&value.to_le_bytes());
            }
            (1.0, 0)
        }
    }
}
