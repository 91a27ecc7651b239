//! `y = f(x Wᵀ + b)`: panels and blocks over the team's threads, and what happens to the sums.

use crate::kernels::buffer::Shared;
use crate::kernels::math::{self, Function};
use crate::kernels::micro::{self, MOST_COLUMNS, MOST_ROWS, Ready, Tile};
use crate::kernels::operand::Operand;
use crate::kernels::packed::{Columns, Packed};
use crate::kernels::rows::Affine;
use crate::kernels::team::Team;
use crate::kernels::tier::for_each_isa;

/// What happens to a product after the bias is added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue {
    /// Applied to every number.
    pub(crate) function: Function,
    /// Whether it is added to what stands in the output (a residual) rather than put there.
    pub(crate) add: bool,
}

impl Epilogue {
    pub(crate) const STORE: Self = Self { function: Function::Identity, add: false };
    pub(crate) const ADD: Self = Self { function: Function::Identity, add: true };

    pub(crate) const fn of(function: Function) -> Self {
        Self { function, add: false }
    }
}

/// Panels of a task should stay in the second-level cache while blocks of rows pass by.
const CACHED: usize = 384 * 1024;

/// Tasks a thread: more even out what disturbs one of them, fewer keep panels together. The few rows
/// of a decoding step only stream the weights, which goes best in long pieces.
const TASKS: usize = 4;
const TASKS_OF_FEW_ROWS: usize = 2;

/// Multiplies the operand's rows with the weights into `out`, `[rows, width]`.
///
/// # Panics
/// The operand was not filled for these weights, or `out` has another size.
pub(crate) fn linear(
    team: &Team,
    left: &Operand,
    right: &Packed,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let Some(layout) = left.layout() else { return };
    let rows = layout.blocks.rows;
    assert_eq!(layout.depth, right.depth, "operand and weights differ in depth");
    assert_eq!(layout.plan.format, right.plan.format, "operand and weights differ in format");
    assert_eq!(layout.plan.rotated, right.plan.rotated, "operand and weights are turned apart");
    assert_eq!(out.len(), rows * right.width, "{rows} rows of {} numbers", right.width);
    let out = Shared::new(out);
    let split = Split::new(team.threads(), right, layout.blocks.count);
    team.run(split.panel_groups * split.block_groups, |task| {
        let _ready = Ready::new(&layout.plan);
        let mut tiles = [const { Tile([0; MOST_ROWS * MOST_COLUMNS]) }; 2];
        let panels = part(right.panels, split.panel_groups, task % split.panel_groups);
        for block in part(layout.blocks.count, split.block_groups, task / split.panel_groups) {
            let (first, count) = layout.blocks.at(block);
            let (words, maps) = left.block(&layout, block);
            let finish_panel = |panel: usize, tile: &Tile| {
                let column = panel * right.plan.columns;
                let place = Place {
                    out,
                    start: first * right.width + column,
                    stride: right.width,
                    width: right.plan.columns.min(right.width - column),
                };
                finish(right, column, tile, maps, &place, epilogue);
            };
            // One panel behind: a CPU works at the sums of the next while it finishes the last.
            let mut behind = None;
            let [even, odd] = &mut tiles;
            let (mut next, mut last) = (even, odd);
            for panel in panels.clone() {
                // SAFETY: `ready` lives, and both operands were made for this plan and these steps.
                unsafe {
                    let (left, weights) = (words.as_ptr(), right.panel(panel).as_ptr());
                    micro::multiply(&layout.plan, left, count, weights, layout.steps, next);
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
    fn new(threads: usize, right: &Packed, blocks: usize) -> Self {
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
struct Place<'a> {
    out: Shared<'a, f32>,
    start: usize,
    stride: usize,
    width: usize,
}

/// Turns sums into numbers: scales, bias, function, residual.
fn finish(
    right: &Packed,
    column: usize,
    tile: &Tile,
    maps: &[Affine],
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    let columns = View::of(&right.columns, column, right.plan.columns);
    let isa = right.plan.tier.isa();
    if right.plan.format.is_integer() {
        finish_integers(isa, &tile.0, maps, &columns, place, epilogue);
    } else {
        finish_floats(isa, &tile.0, &columns, maps.len(), place, epilogue);
    }
}

/// The columns of one panel, copied into arrays of a known size.
struct View {
    count: usize,
    scale: [f32; MOST_COLUMNS],
    sum: [i32; MOST_COLUMNS],
    bias: [f32; MOST_COLUMNS],
}

impl View {
    fn of(columns: &Columns, first: usize, count: usize) -> Self {
        fn part<T: Copy + Default>(all: &[T], first: usize, count: usize) -> [T; MOST_COLUMNS] {
            let all = &all[first..][..count];
            if let Ok(whole) = <[T; MOST_COLUMNS]>::try_from(all) {
                return whole;
            }
            let mut part = [T::default(); MOST_COLUMNS];
            part[..count].copy_from_slice(all);
            part
        }
        Self {
            count,
            scale: part(&columns.scale, first, count),
            sum: part(&columns.sum, first, count),
            bias: part(&columns.bias, first, count),
        }
    }
}

for_each_isa! {
    fn finish_integers(
        tile: &[u32], maps: &[Affine], columns: &View, place: &Place<'_>, epilogue: Epilogue,
    ) = finish_integers_body;
}

#[inline(always)]
fn finish_integers_body<const FMA: bool>(
    tile: &[u32],
    maps: &[Affine],
    columns: &View,
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    let number = |row: usize, i: usize, sum: u32| {
        let map = maps[row];
        // The zero point may be any of 256 numbers, the sum any of 255 · depth: both fit.
        let exact = sum.cast_signed().wrapping_sub(map.zero.wrapping_mul(columns.sum[i]));
        math::fma::<FMA>(exact as f32, map.scale * columns.scale[i], columns.bias[i])
    };
    put_all::<FMA>(tile, (maps.len(), columns.count), place, epilogue, number);
}

for_each_isa! {
    fn finish_floats(
        tile: &[u32], columns: &View, rows: usize, place: &Place<'_>, epilogue: Epilogue,
    ) = finish_floats_body;
}

#[inline(always)]
fn finish_floats_body<const FMA: bool>(
    tile: &[u32],
    columns: &View,
    rows: usize,
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    let number = |_: usize, i: usize, sum: u32| f32::from_bits(sum) + columns.bias[i];
    put_all::<FMA>(tile, (rows, columns.count), place, epilogue, number);
}

/// Writes all rows of a tile; `number` makes a number of a row, a column and a sum.
#[inline(always)]
fn put_all<const FMA: bool>(
    tile: &[u32],
    shape: (usize, usize),
    place: &Place<'_>,
    epilogue: Epilogue,
    number: impl Fn(usize, usize, u32) -> f32,
) {
    match epilogue.function {
        Function::Identity if epilogue.add => {
            put(tile, shape, place, |row, i, sum, old| old + number(row, i, sum));
        }
        Function::Identity => put(tile, shape, place, |row, i, sum, _| number(row, i, sum)),
        Function::Gelu => {
            put(tile, shape, place, |row, i, sum, _| math::gelu::<FMA>(number(row, i, sum)));
        }
        Function::GeluTanh => {
            put(tile, shape, place, |row, i, sum, _| math::gelu_tanh::<FMA>(number(row, i, sum)));
        }
        Function::QuickGelu => {
            put(tile, shape, place, |row, i, sum, _| math::quick_gelu::<FMA>(number(row, i, sum)));
        }
        Function::Relu => put(tile, shape, place, |row, i, sum, _| math::relu(number(row, i, sum))),
    }
}

#[inline(always)]
fn put(
    tile: &[u32],
    (rows, columns): (usize, usize),
    place: &Place<'_>,
    number: impl Fn(usize, usize, u32, f32) -> f32,
) {
    for (row, sums) in tile.chunks_exact(columns).take(rows).enumerate() {
        // SAFETY: rows and panels do not overlap, and each tile belongs to one task.
        let out = unsafe { place.out.slice(place.start + row * place.stride, place.width) };
        // The usual widths are constants, so that the compiler can make vectors of them.
        if out.len() == 32 {
            put_row::<32>(sums, out, |i, sum, old| number(row, i, sum, old));
        } else if out.len() == 16 {
            put_row::<16>(sums, out, |i, sum, old| number(row, i, sum, old));
        } else {
            for (i, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
                *out = number(row, i, sum, *out);
            }
        }
    }
}

#[inline(always)]
fn put_row<const N: usize>(sums: &[u32], out: &mut [f32], number: impl Fn(usize, u32, f32) -> f32) {
    if let (Some(sums), Some(out)) = (sums.first_chunk::<N>(), out.first_chunk_mut::<N>()) {
        for i in 0..N {
            out[i] = number(i, sums[i], out[i]);
        }
    }
}
