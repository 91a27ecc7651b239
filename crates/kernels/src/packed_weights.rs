//! The right operand: a linear layer's weights, laid out once for the kernels.

use rayon::prelude::*;

use crate::Precision;
use crate::buffer::Buffer;
use crate::isa::Tier;
use crate::math::{from_bf16, to_bf16};
use crate::microkernels::{Format, GemmPlan};
use crate::rotate::{gain, rotate, rotate_back};
use crate::rows;

/// What the epilogue needs of every column; padded to whole panels.
#[derive(Debug, Clone)]
pub struct ColumnParams {
    /// What one unit of an 8-bit column is worth; 1 for the other formats.
    pub scale: Vec<f32>,
    /// Sum of an 8-bit column's numbers: what the left operand's zero point adds to the product.
    pub sum: Vec<i32>,
    pub bias: Vec<f32>,
}

/// The weights and bias of `y = x Wᵀ + b`, in panels of some columns (rows of `W`), step after step.
///
/// 8-bit weights are symmetric, with one scale a column.
#[derive(Debug, Clone)]
pub struct PackedWeights {
    pub plan: GemmPlan,
    /// Numbers of a row of `W`.
    pub depth: usize,
    /// Rows of `W`.
    pub width: usize,
    pub steps: usize,
    pub panels: usize,
    pub columns: ColumnParams,
    data: Buffer<u8>,
}

impl PackedWeights {
    /// From `weight`, `[width, depth]` row after row, and `bias`, `[width]`; in parallel.
    ///
    /// # Panics
    /// The lengths do not fit, or the tier does not run here.
    pub fn new(
        tier: Tier,
        precision: Precision,
        weight: &[f32],
        bias: &[f32],
        depth: usize,
    ) -> Self {
        assert!(tier.is_available(), "the kernels {tier} do not run on this CPU");
        let width = bias.len();
        assert_eq!(weight.len(), width * depth, "{width} biases for rows of {depth} weights");
        let rotated = precision == Precision::Int8;
        let plan = GemmPlan { rotated, ..GemmPlan::new(tier, precision) };
        let (steps, panels) = (plan.steps(depth), width.div_ceil(plan.columns));
        let padded = panels * plan.columns;
        let mut columns =
            ColumnParams { scale: vec![1.0; padded], sum: vec![0; padded], bias: bias.to_vec() };
        columns.bias.resize(padded, 0.0);
        let mut data = Buffer::zeroed(panels * plan.panel_bytes(steps));
        data.as_mut_slice()
            .par_chunks_mut(plan.panel_bytes(steps).max(1))
            .zip(columns.scale.par_chunks_mut(plan.columns))
            .zip(columns.sum.par_chunks_mut(plan.columns))
            .zip(weight.par_chunks(depth.max(1) * plan.columns))
            .for_each(|(((panel, scale), sum), rows)| {
                for (column, row) in rows.chunks_exact(depth.max(1)).enumerate() {
                    (scale[column], sum[column]) = put_column(&plan, row, column, panel);
                }
            });
        Self { plan, depth, width, steps, panels, columns, data }
    }

    pub fn panel(&self, index: usize) -> &[u8] {
        let bytes = self.plan.panel_bytes(self.steps);
        &self.data.as_slice()[index * bytes..][..bytes]
    }

    /// Row `index` of `W`, as near as the format keeps it.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        let GemmPlan { format, columns, .. } = self.plan;
        let (panel, column) = (self.panel(index / columns), index % columns);
        let (group, bytes) = (format.group(), format.column_bytes());
        let scale = self.columns.scale[index];
        for (step, numbers) in out[..self.depth].chunks_mut(group).enumerate() {
            let cell = &panel[(step * columns + column) * bytes..][..bytes];
            for (number, value) in numbers.iter_mut().enumerate() {
                *value = match format {
                    Format::Int8x4 | Format::Int8x2 => {
                        f32::from(cell[number].cast_signed()) * scale
                    }
                    Format::Bf16 => {
                        from_bf16(u16::from_le_bytes([cell[2 * number], cell[2 * number + 1]]))
                    }
                    Format::F32 | Format::RoundedF32 => {
                        f32::from_le_bytes([cell[0], cell[1], cell[2], cell[3]])
                    }
                };
            }
        }
        if self.plan.rotated {
            rotate_back(self.plan.tier.isa(), &mut out[..self.depth]);
        }
    }
}

/// Weights that are converted at a time, on the stack; a multiple of every group.
const CHUNK: usize = 256;

/// Writes one row of `W` as a column of a panel; its scale and the sum of its numbers.
fn put_column(plan: &GemmPlan, row: &[f32], column: usize, panel: &mut [u8]) -> (f32, i32) {
    let (group, bytes) = (plan.format.group(), plan.format.column_bytes());
    let cells = panel.chunks_exact_mut(bytes).skip(column).step_by(plan.columns);
    let mut turned = Vec::new();
    let row = if plan.rotated {
        turned.resize(row.len(), 0.0);
        rotate(plan.tier.isa(), row, &mut turned);
        let share = 1.0 / gain(row.len());
        turned.iter_mut().for_each(|value| *value *= share);
        &turned
    } else {
        row
    };
    match plan.format {
        Format::Int8x4 | Format::Int8x2 => {
            // NaN for a row with what is no number: so is everything that it yields.
            let isa = plan.tier.isa();
            let scale = rows::max_abs(isa, row) / 127.0;
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let (mut cells, mut sum, mut numbers) = (cells, 0, [0i8; CHUNK]);
            for row in row.chunks(CHUNK) {
                rows::quantize_signed(isa, row, inverse, &mut numbers[..row.len()]);
                for (numbers, cell) in numbers[..row.len()].chunks(group).zip(&mut cells) {
                    for (byte, &number) in cell.iter_mut().zip(numbers) {
                        sum += i32::from(number);
                        *byte = number.cast_unsigned();
                    }
                }
            }
            (scale, sum)
        }
        Format::Bf16 => {
            for (cell, numbers) in cells.zip(row.chunks(group)) {
                for (bytes, &value) in cell.chunks_exact_mut(2).zip(numbers) {
                    bytes.copy_from_slice(&(to_bf16(value) as u16).to_le_bytes());
                }
            }
            (1.0, 0)
        }
        Format::F32 | Format::RoundedF32 => {
            let rounded = plan.format == Format::RoundedF32;
            for (cell, &value) in cells.zip(row) {
                let value = if rounded { f32::from_bits(to_bf16(value) << 16) } else { value };
                cell.copy_from_slice(&value.to_le_bytes());
            }
            (1.0, 0)
        }
    }
}
