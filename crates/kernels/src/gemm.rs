//! `y = f(x Wᵀ + b)`: panels and blocks over the team's threads, and what happens to the sums.

use crate::activations::Activations;
use crate::buffer::DisjointMut;
use crate::isa::for_each_isa;
use crate::math::{self, ActivationFn};
use crate::microkernels::{self, Accumulators, MAX_COLUMNS, MAX_ROWS, TileGuard};
use crate::packed_weights::{ColumnParams, PackedWeights};
use crate::rows::QuantParams;
use crate::thread_pool::ThreadPool;

/// What happens to a product after the bias is added.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue {
    /// Applied to every number.
    pub function: ActivationFn,
    /// Whether it is added to what stands in the output (a residual) rather than put there.
    pub add: bool,
}

impl Epilogue {
    pub const STORE: Self = Self { function: ActivationFn::Identity, add: false };
    pub const ADD: Self = Self { function: ActivationFn::Identity, add: true };

    pub const fn of(function: ActivationFn) -> Self {
        Self { function, add: false }
    }
}

/// Panels of a task should stay in the second-level cache while blocks of rows pass by.
const CACHED: usize = 384 * 1024;

/// Tasks a thread: more even out what disturbs one of them, fewer keep panels together. The few rows
/// of a decoding step only stream the weights, which goes best in long pieces.
const TASKS: usize = 8;
const TASKS_OF_FEW_ROWS: usize = 2;

/// Multiplies the operand's rows with the weights into `out`, `[rows, width]`.
///
/// # Panics
/// The operand was not filled for these weights, or `out` has another size.
pub fn linear(
    pool: &ThreadPool,
    left: &Activations,
    right: &PackedWeights,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let Some(layout) = left.layout() else { return };
    let rows = layout.blocks.rows;
    assert_eq!(layout.depth, right.depth, "activations and weights differ in depth");
    assert_eq!(layout.plan.format, right.plan.format, "activations and weights differ in format");
    assert_eq!(layout.plan.rotated, right.plan.rotated, "activations and weights are turned apart");
    assert_eq!(out.len(), rows * right.width, "{rows} rows of {} numbers", right.width);
    let out = DisjointMut::new(out);
    let split = Split::new(pool.threads(), right, layout.blocks.count);
    pool.run(split.panel_groups * split.block_groups, |task| {
        let _ready = TileGuard::new(&layout.plan);
        let mut tiles = [const { Accumulators([0; MAX_ROWS * MAX_COLUMNS]) }; 2];
        // All blocks of a group of panels before the next group: the panels stay in the cache.
        let (panel_group, block_group) = (task / split.block_groups, task % split.block_groups);
        let panels = part(right.panels, split.panel_groups, panel_group);
        for block in part(layout.blocks.count, split.block_groups, block_group) {
            let (first, count) = layout.blocks.at(block);
            let (words, maps) = left.block(&layout, block);
            let finish_panel = |panel: usize, tile: &Accumulators| {
                let column = panel * right.plan.columns;
                let place = OutputTile {
                    out,
                    start: first * right.width + column,
                    stride: right.width,
                    width: right.plan.columns.min(right.width - column),
                };
                finish(right, panel, tile, maps, &place, epilogue);
            };
            // One panel behind: a CPU works at the sums of the next while it finishes the last.
            let mut behind = None;
            let [even, odd] = &mut tiles;
            let (mut next, mut last) = (even, odd);
            for panel in panels.clone() {
                // SAFETY: `ready` lives, and both operands were made for this plan and these steps.
                unsafe {
                    let (left, weights) = (words.as_ptr(), right.panel(panel).as_ptr());
                    microkernels::multiply(&layout.plan, left, count, weights, layout.steps, next);
                }
                if let Some(panel) = behind.replace(panel) {
                    finish_panel(panel, last);
                }
                std::mem::swap(&mut next, &mut last);
            }
            if let Some(panel) = behind {
                finish_panel(panel, last);
            }
        }
    });
}

/// How a product is cut into tasks.
struct Split {
    panel_groups: usize,
    block_groups: usize,
}

impl Split {
    fn new(threads: usize, right: &PackedWeights, blocks: usize) -> Self {
        let each = if blocks <= 2 { TASKS_OF_FEW_ROWS } else { TASKS };
        let wanted = if threads == 1 { 1 } else { threads * each };
        let panel = right.plan.panel_bytes(right.steps).max(1);
        let cached = right.panels.div_ceil((CACHED / panel).max(1)).max(1);
        let block_groups = wanted.div_ceil(cached).min(blocks.div_ceil(4)).max(1);
        let panel_groups = cached.max(wanted.div_ceil(block_groups)).min(right.panels.max(1));
        Self { panel_groups, block_groups }
    }
}

/// Part `index` of `count` numbers cut into `parts` even ranges.
fn part(count: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

/// Where the numbers of a tile go.
struct OutputTile<'a> {
    out: DisjointMut<'a, f32>,
    start: usize,
    stride: usize,
    width: usize,
}

/// Turns sums into numbers: scales, bias, function, residual.
fn finish(
    right: &PackedWeights,
    panel: usize,
    tile: &Accumulators,
    maps: &[QuantParams],
    place: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let isa = right.plan.tier.isa();
    if right.plan.format.is_integer() {
        finish_integers(isa, &tile.0, maps, right, panel, place, epilogue);
    } else {
        finish_floats(isa, &tile.0, maps.len(), right, panel, place, epilogue);
    }
}

for_each_isa! {
    fn finish_integers(
        tile: &[u32], maps: &[QuantParams], right: &PackedWeights, panel: usize, place: &OutputTile<'_>,
        epilogue: Epilogue,
    ) = finish_integers_body;
}

/// Widths of panels are constants, so that the compiler can make vectors of them.
#[inline(always)]
fn finish_integers_body<const FMA: bool>(
    tile: &[u32],
    maps: &[QuantParams],
    right: &PackedWeights,
    panel: usize,
    place: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    if right.plan.columns == 32 {
        finish_panel_of_integers::<FMA, 32>(tile, maps, &right.columns, panel, place, epilogue);
    } else {
        finish_panel_of_integers::<FMA, 16>(tile, maps, &right.columns, panel, place, epilogue);
    }
}

#[inline(always)]
fn finish_panel_of_integers<const FMA: bool, const N: usize>(
    tile: &[u32],
    maps: &[QuantParams],
    columns: &ColumnParams,
    panel: usize,
    place: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let scale = &columns.scale.as_chunks::<N>().0[panel];
    let column_sum = &columns.sum.as_chunks::<N>().0[panel];
    let bias = &columns.bias.as_chunks::<N>().0[panel];
    let number = |row: usize, i: usize, sum: u32| {
        let map = maps[row];
        // The zero point may be any of 256 numbers, the sum any of 255 · depth: both fit.
        let exact = sum.cast_signed().wrapping_sub(map.zero.wrapping_mul(column_sum[i]));
        math::fma::<FMA>(exact as f32, map.scale * scale[i], bias[i])
    };
    put_all::<FMA, N>(tile, maps.len(), place, epilogue, number);
}

for_each_isa! {
    fn finish_floats(
        tile: &[u32], rows: usize, right: &PackedWeights, panel: usize, place: &OutputTile<'_>,
        epilogue: Epilogue,
    ) = finish_floats_body;
}

#[inline(always)]
fn finish_floats_body<const FMA: bool>(
    tile: &[u32],
    rows: usize,
    right: &PackedWeights,
    panel: usize,
    place: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    if right.plan.columns == 32 {
        finish_panel_of_floats::<FMA, 32>(tile, rows, &right.columns, panel, place, epilogue);
    } else {
        finish_panel_of_floats::<FMA, 16>(tile, rows, &right.columns, panel, place, epilogue);
    }
}

#[inline(always)]
fn finish_panel_of_floats<const FMA: bool, const N: usize>(
    tile: &[u32],
    rows: usize,
    columns: &ColumnParams,
    panel: usize,
    place: &OutputTile<'_>,
    epilogue: Epilogue,
) {
    let bias = &columns.bias.as_chunks::<N>().0[panel];
    let number = |_: usize, i: usize, sum: u32| f32::from_bits(sum) + bias[i];
    put_all::<FMA, N>(tile, rows, place, epilogue, number);
}

/// Writes all rows of a tile; `number` makes a number of a row, a column and a sum.
#[inline(always)]
fn put_all<const FMA: bool, const N: usize>(
    tile: &[u32],
    rows: usize,
    place: &OutputTile<'_>,
    epilogue: Epilogue,
    number: impl Fn(usize, usize, u32) -> f32,
) {
    match epilogue.function {
        ActivationFn::Identity if epilogue.add => {
            put::<N>(tile, rows, place, |row, i, sum, old| old + number(row, i, sum));
        }
        ActivationFn::Identity => put::<N>(tile, rows, place, |row, i, sum, _| number(row, i, sum)),
        ActivationFn::Gelu => {
            put::<N>(tile, rows, place, |row, i, sum, _| math::gelu::<FMA>(number(row, i, sum)));
        }
        ActivationFn::GeluTanh => {
            put::<N>(tile, rows, place, |row, i, sum, _| {
                math::gelu_tanh::<FMA>(number(row, i, sum))
            });
        }
        ActivationFn::QuickGelu => {
            put::<N>(tile, rows, place, |row, i, sum, _| {
                math::quick_gelu::<FMA>(number(row, i, sum))
            });
        }
        ActivationFn::Relu => {
            put::<N>(tile, rows, place, |row, i, sum, _| math::relu(number(row, i, sum)));
        }
    }
}

#[inline(always)]
fn put<const N: usize>(
    tile: &[u32],
    rows: usize,
    place: &OutputTile<'_>,
    number: impl Fn(usize, usize, u32, f32) -> f32,
) {
    for (row, sums) in tile.as_chunks::<N>().0.iter().take(rows).enumerate() {
        // SAFETY: rows and panels do not overlap, and each tile belongs to one task.
        let out = unsafe { place.out.slice(place.start + row * place.stride, place.width) };
        if let Some(out) = out.first_chunk_mut::<N>() {
            for i in 0..N {
                out[i] = number(row, i, sums[i], out[i]);
            }
        } else {
            for (i, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
                *out = number(row, i, sum, *out);
            }
        }
    }
}
