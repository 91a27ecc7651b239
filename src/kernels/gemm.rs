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

/// Tasks a thread: more even out what disturbs one of them, fewer keep panels together.
const TASKS: usize = 4;

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
    assert_eq!(layout.steps, right.steps, "operand and weights differ in depth");
    assert_eq!(out.len(), rows * right.width, "{rows} rows of {} numbers", right.width);
    let out = Shared::new(out);
    let split = Split::new(team.threads(), right, layout.blocks.count);
    team.run(split.panel_groups * split.block_groups, |task| {
        let _ready = Ready::new(&right.plan);
        let mut tile = Tile([0; MOST_ROWS * MOST_COLUMNS]);
        let panels = part(right.panels, split.panel_groups, task % split.panel_groups);
        for block in part(layout.blocks.count, split.block_groups, task / split.panel_groups) {
            let (first, count) = layout.blocks.at(block);
            let (words, maps) = left.block(&layout, block);
            for panel in panels.clone() {
                let column = panel * right.plan.columns;
                let steps = right.steps;
                // SAFETY: `ready` lives, and both operands were made for this plan and these steps.
                unsafe {
                    micro::multiply(
                        &right.plan,
                        words.as_ptr(),
                        count,
                        right.panel(panel).as_ptr(),
                        steps,
                        &mut tile,
                    );
                }
                let place = Place {
                    out,
                    start: first * right.width + column,
                    stride: right.width,
                    width: right.plan.columns.min(right.width - column),
                };
                finish(right, column, &tile, maps, &place, epilogue);
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
        let wanted = if threads == 1 { 1 } else { threads * TASKS };
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

/// The columns of one panel.
struct View<'a> {
    scale: &'a [f32],
    sum: &'a [i32],
    bias: &'a [f32],
}

impl<'a> View<'a> {
    fn of(columns: &'a Columns, first: usize, count: usize) -> Self {
        Self {
            scale: &columns.scale[first..][..count],
            sum: &columns.sum[first..][..count],
            bias: &columns.bias[first..][..count],
        }
    }
}

for_each_isa! {
    fn finish_integers(
        tile: &[u32], maps: &[Affine], columns: &View<'_>, place: &Place<'_>, epilogue: Epilogue,
    ) = finish_integers_body;
}

#[inline(always)]
fn finish_integers_body<const FMA: bool>(
    tile: &[u32],
    maps: &[Affine],
    columns: &View<'_>,
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    let count = columns.bias.len();
    for (row, (sums, map)) in tile.chunks_exact(count).zip(maps).enumerate() {
        let mut values = [0f32; MOST_COLUMNS];
        for i in 0..count {
            // The zero point may be any of 256 numbers, the sum any of 255 · depth: both fit.
            let exact = sums[i].cast_signed().wrapping_sub(map.zero.wrapping_mul(columns.sum[i]));
            values[i] =
                math::fma::<FMA>(exact as f32, map.scale * columns.scale[i], columns.bias[i]);
        }
        put::<FMA>(&values, row, place, epilogue);
    }
}

for_each_isa! {
    fn finish_floats(
        tile: &[u32], columns: &View<'_>, rows: usize, place: &Place<'_>, epilogue: Epilogue,
    ) = finish_floats_body;
}

#[inline(always)]
fn finish_floats_body<const FMA: bool>(
    tile: &[u32],
    columns: &View<'_>,
    rows: usize,
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    let count = columns.bias.len();
    for (row, sums) in tile.chunks_exact(count).take(rows).enumerate() {
        let mut values = [0f32; MOST_COLUMNS];
        for i in 0..count {
            values[i] = f32::from_bits(sums[i]) + columns.bias[i];
        }
        put::<FMA>(&values, row, place, epilogue);
    }
}

#[inline(always)]
fn put<const FMA: bool>(
    values: &[f32; MOST_COLUMNS],
    row: usize,
    place: &Place<'_>,
    epilogue: Epilogue,
) {
    // SAFETY: rows and panels do not overlap, and each tile belongs to one task.
    let out = unsafe { place.out.slice(place.start + row * place.stride, place.width) };
    match epilogue.function {
        Function::Identity if epilogue.add => write(values, out, |value, old| old + value),
        Function::Identity => write(values, out, |value, _| value),
        Function::Gelu => write(values, out, |value, _| math::gelu::<FMA>(value)),
        Function::GeluTanh => write(values, out, |value, _| math::gelu_tanh::<FMA>(value)),
        Function::QuickGelu => write(values, out, |value, _| math::quick_gelu::<FMA>(value)),
        Function::Relu => write(values, out, |value, _| math::relu(value)),
    }
}

#[inline(always)]
fn write(values: &[f32; MOST_COLUMNS], out: &mut [f32], combine: impl Fn(f32, f32) -> f32) {
    // The usual width is a constant, so that the compiler unrolls it.
    if let Some(out) = out.as_chunks_mut::<MOST_COLUMNS>().0.first_mut() {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = combine(value, *out);
        }
    } else {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = combine(value, *out);
        }
    }
}
