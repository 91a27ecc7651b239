//! `y = f(x Wᵀ + b)`: distributes panels and blocks over threads, and turns sums into results.

use std::ops::Range;

use crate::activations::Activations;
use crate::buffer::DisjointMut;
use crate::isa::for_each_isa;
use crate::math;
use crate::microkernels::{Accumulators, ActivePlan, MAX_COLUMNS, MAX_ROWS};
use crate::packed_weights::{ColumnParams, PackedWeights};
use crate::rows::QuantParams;
use crate::thread_pool::ThreadPool;

/// An activation function of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFn {
    /// `x`.
    Identity,
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// GELU, approximated with the hyperbolic tangent.
    GeluTanh,
    /// `x · σ(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

/// What happens to a product after the bias is added.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue {
    /// Whether the product is added to the output (a residual connection) instead of replacing it;
    /// then without an activation function.
    add: bool,
    function: ActivationFn,
}

impl Epilogue {
    /// The product replaces the output.
    pub const STORE: Self = Self::apply(ActivationFn::Identity);
    /// The product is added to the output.
    pub const ADD: Self = Self { add: true, function: ActivationFn::Identity };

    /// The function of the product replaces the output.
    #[must_use]
    pub const fn apply(function: ActivationFn) -> Self {
        Self { add: false, function }
    }
}

/// Bytes of the panels of a task: they should stay in the second-level cache for all blocks of rows.
const CACHED_BYTES: usize = 384 * 1024;

/// Tasks per thread. More of them balance the load better, fewer keep panels together. With the few
/// rows of a decode step the product only streams the weights, which is fastest in long runs.
const TASKS_PER_THREAD: usize = 8;
const DECODE_TASKS_PER_THREAD: usize = 2;

/// Multiplies `activations`, `[rows, depth]`, with `weights` into `out`, `[rows, width]`.
///
/// # Panics
/// The activations were converted for weights of another depth or precision, or `out` has another
/// size.
pub fn linear(
    pool: &ThreadPool,
    activations: &Activations,
    weights: &PackedWeights,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let Some(layout) = activations.layout() else { return };
    let (plan, rows, width) = (weights.plan(), layout.blocks.rows, weights.width());
    assert_eq!(layout.depth, weights.depth(), "activations and weights differ in depth");
    assert_eq!(layout.plan.format, plan.format, "activations and weights differ in format");
    assert_eq!(layout.plan.rotated, plan.rotated, "only one of activations and weights is rotated");
    assert_eq!(out.len(), rows * width, "{rows} rows of {width} numbers");
    if out.is_empty() {
        return;
    }
    let out = DisjointMut::new(out);
    let split = Split::new(pool.threads(), weights, layout.blocks.count);
    pool.run(split.panel_groups * split.block_groups, |task| {
        let active = ActivePlan::new(layout.plan);
        let mut accumulators = [const { Accumulators([0; MAX_ROWS * MAX_COLUMNS]) }; 2];
        // All blocks of a group of panels before the next group: the panels stay in the cache.
        let (panel_group, block_group) = (task / split.block_groups, task % split.block_groups);
        let panels = part(weights.panels(), split.panel_groups, panel_group);
        for block in part(layout.blocks.count, split.block_groups, block_group) {
            let (first, count) = layout.blocks.at(block);
            let (words, params) = activations.block(&layout, block);
            let finish_panel = |panel: usize, sums: &Accumulators| {
                let column = panel * plan.columns;
                let output = OutputTile {
                    out,
                    start: first * width + column,
                    stride: width,
                    width: plan.columns.min(width - column),
                };
                finish(plan.isa, sums, params, weights, panel, &output, epilogue);
            };
            // One panel behind: the CPU computes the sums of a panel while it finishes the previous.
            let mut previous = None;
            let [even, odd] = &mut accumulators;
            let (mut next, mut last) = (even, odd);
            for panel in panels.clone() {
                active.multiply(words, count, weights.panel(panel), layout.steps, &mut next.0);
                if let Some(panel) = previous.replace(panel) {
                    finish_panel(panel, last);
                }
                std::mem::swap(&mut next, &mut last);
            }
            if let Some(panel) = previous {
                finish_panel(panel, last);
            }
        }
    });
}

/// How a product is divided into tasks.
struct Split {
    panel_groups: usize,
    block_groups: usize,
}

impl Split {
    fn new(threads: usize, weights: &PackedWeights, blocks: usize) -> Self {
        let per_thread = if blocks <= 2 { DECODE_TASKS_PER_THREAD } else { TASKS_PER_THREAD };
        let tasks = if threads == 1 { 1 } else { threads * per_thread };
        let panel_bytes = (4 * weights.panel_words()).max(1);
        let cached = weights.panels().div_ceil((CACHED_BYTES / panel_bytes).max(1)).max(1);
        let block_groups = tasks.div_ceil(cached).min(blocks.div_ceil(4)).max(1);
        let panel_groups = cached.max(tasks.div_ceil(block_groups)).min(weights.panels().max(1));
        Self { panel_groups, block_groups }
    }
}

/// Part `index` of `count` items that are divided into `parts` ranges of similar length.
pub(crate) fn part(count: usize, parts: usize, index: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

/// Where the results of a block and a panel go.
pub(crate) struct OutputTile<'a> {
    pub(crate) out: DisjointMut<'a, f32>,
    /// Index of the first result.
    pub(crate) start: usize,
    /// Distance between rows.
    pub(crate) stride: usize,
    /// Columns.
    pub(crate) width: usize,
}

for_each_isa! {
    /// Turns sums into results: scales, bias, activation function, residual.
    pub(crate) fn finish(
        sums: &Accumulators, params: &[QuantParams], weights: &PackedWeights, panel: usize,
        output: &OutputTile<'_>, epilogue: Epilogue,
    ) = finish_body;
}

/// The widths of panels are constants, so that the compiler can vectorise.
#[inline(always)]
fn finish_body<const FMA: bool>(
    sums: &Accumulators,
    params: &[QuantParams],
    weights: &PackedWeights,
    panel: usize,
    output: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let (plan, columns, rows) = (weights.plan(), weights.columns(), params.len());
    match (plan.format.is_integer(), plan.columns) {
        (true, 32) => finish_integers::<FMA, 32>(sums, params, columns, panel, output, epilogue),
        (true, _) => finish_integers::<FMA, 16>(sums, params, columns, panel, output, epilogue),
        (false, 32) => finish_floats::<FMA, 32>(sums, rows, columns, panel, output, epilogue),
        (false, _) => finish_floats::<FMA, 16>(sums, rows, columns, panel, output, epilogue),
    }
}

#[inline(always)]
fn finish_integers<const FMA: bool, const N: usize>(
    sums: &Accumulators,
    params: &[QuantParams],
    columns: &ColumnParams,
    panel: usize,
    output: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let scale = &columns.scale.as_chunks::<N>().0[panel];
    let column_sum = &columns.sum.as_chunks::<N>().0[panel];
    let bias = &columns.bias.as_chunks::<N>().0[panel];
    let result = |row: usize, i: usize, sum: u32| {
        let params = params[row];
        // Neither overflows: the zero point is at most 255, the column sum at most 127 · depth.
        let exact = sum.cast_signed().wrapping_sub(params.zero_point.wrapping_mul(column_sum[i]));
        math::fma::<FMA>(exact as f32, params.scale * scale[i], bias[i])
    };
    write_tile::<FMA, N>(&sums.0, params.len(), output, epilogue, result);
}

#[inline(always)]
fn finish_floats<const FMA: bool, const N: usize>(
    sums: &Accumulators,
    rows: usize,
    columns: &ColumnParams,
    panel: usize,
    output: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let bias = &columns.bias.as_chunks::<N>().0[panel];
    let result = |_: usize, i: usize, sum: u32| f32::from_bits(sum) + bias[i];
    write_tile::<FMA, N>(&sums.0, rows, output, epilogue, result);
}

/// Writes all rows; `result` is a function of row, column and sum.
#[inline(always)]
fn write_tile<const FMA: bool, const N: usize>(
    sums: &[u32],
    rows: usize,
    output: &OutputTile<'_>,
    epilogue: Epilogue,
    result: impl Fn(usize, usize, u32) -> f32,
) {
    match epilogue.function {
        ActivationFn::Identity if epilogue.add => {
            write::<N>(sums, rows, output, |row, i, sum, old| old + result(row, i, sum));
        }
        ActivationFn::Identity => {
            write::<N>(sums, rows, output, |row, i, sum, _| result(row, i, sum));
        }
        ActivationFn::Gelu => {
            write::<N>(sums, rows, output, |row, i, sum, _| math::gelu::<FMA>(result(row, i, sum)));
        }
        ActivationFn::GeluTanh => {
            write::<N>(sums, rows, output, |row, i, sum, _| {
                math::gelu_tanh::<FMA>(result(row, i, sum))
            });
        }
        ActivationFn::QuickGelu => {
            write::<N>(sums, rows, output, |row, i, sum, _| {
                math::quick_gelu::<FMA>(result(row, i, sum))
            });
        }
        ActivationFn::Relu => {
            write::<N>(sums, rows, output, |row, i, sum, _| math::relu(result(row, i, sum)));
        }
    }
}

#[inline(always)]
fn write<const N: usize>(
    sums: &[u32],
    rows: usize,
    output: &OutputTile<'_>,
    result: impl Fn(usize, usize, u32, f32) -> f32,
) {
    for (row, sums) in sums.as_chunks::<N>().0.iter().take(rows).enumerate() {
        // SAFETY: blocks have different rows and panels different columns, and each pair of them
        // belongs to one task.
        let out = unsafe { output.out.slice(output.start + row * output.stride, output.width) };
        if let Some(out) = out.first_chunk_mut::<N>() {
            for i in 0..N {
                out[i] = result(row, i, sums[i], out[i]);
            }
        } else {
            for (i, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
                *out = result(row, i, sum, *out);
            }
        }
    }
}
