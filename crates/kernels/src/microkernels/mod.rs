//! The innermost products: a block of rows of the left-hand side times a panel of the right-hand side.
//!
//! Both sides are cut into steps along the summed dimension. A step is four bytes of a left-hand row:
//! one f32, two bf16 or 16-bit integers, or four 8-bit integers. A microkernel adds up all steps of
//! its rows and columns in order and writes the sums, f32 or i32. The order of a sum does not depend
//! on the number of rows, so a row has the same bits in every batch.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::marker::PhantomData;

use crate::Precision;
use crate::isa::{Isa, Tier};

/// The most rows of a block.
pub(crate) const MAX_ROWS: usize = 32;
/// The most columns of a panel.
pub(crate) const MAX_COLUMNS: usize = 32;

/// The sums of one block and panel, row after row: the bits of f32, or of i32 for 8-bit operands.
#[repr(C, align(64))]
pub(crate) struct Accumulators(pub(crate) [u32; MAX_ROWS * MAX_COLUMNS]);

/// `(block, panel, steps, sums)`.
type Kernel = unsafe fn(*const u32, *const u32, usize, *mut u32);

/// What multiplies a block, and how the rows of the block lie in memory.
#[derive(Debug, Clone, Copy)]
enum Microkernel {
    /// Vectors: kernel `n` takes blocks of `n + 1` rows, step-major (the first steps of all rows,
    /// then the second ones).
    Vectors(&'static [Kernel]),
    /// Matrix tiles: blocks of up to 32 rows, row-major.
    #[cfg(target_arch = "x86_64")]
    Tiles {
        /// Whether the operands are 8-bit integers rather than bf16.
        bytes: bool,
    },
}

/// The formats of both operands in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// f32 times f32.
    F32,
    /// f32 times f32, both rounded to bf16 before: for CPUs without bf16 instructions. The right-hand
    /// side is in bf16 in memory.
    RoundedF32,
    /// Pairs of bf16.
    Bf16,
    /// u8 times i8, four in a step.
    Int8x4,
    /// u8 times i8, four in a step. Two steps at a time, a column's eight products are summed in two
    /// groups of 16 bits: numbers 0, 1, 4, 5 and numbers 2, 3, 6, 7. The scale of a column keeps the
    /// positive weights of a group, and the negative ones, at no more than [`GROUP_LIMIT`] together.
    /// So no sum overflows, whatever the left-hand side is.
    Int8Sums16,
    /// u8 times i8, two in a step; the left-hand ones are widened to 16 bits.
    Int8x2,
}

/// The most that the weights of one sign may add up to in a group of [`Format::Int8Sums16`]: multiplied
/// by the largest u8 it is below 2¹⁵.
pub(crate) const GROUP_LIMIT: i32 = 128;
const _: () = assert!(GROUP_LIMIT * (u8::MAX as i32) <= i16::MAX as i32);

impl Format {
    /// Numbers of a row in a step.
    pub(crate) const fn group(self) -> usize {
        match self {
            Self::F32 | Self::RoundedF32 => 1,
            Self::Bf16 | Self::Int8x2 => 2,
            Self::Int8x4 | Self::Int8Sums16 => 4,
        }
    }

    /// Bytes of a column in a step of a panel.
    pub(crate) const fn column_bytes(self) -> usize {
        match self {
            Self::RoundedF32 | Self::Int8x2 => 2,
            _ => 4,
        }
    }

    pub(crate) const fn is_integer(self) -> bool {
        matches!(self, Self::Int8x4 | Self::Int8Sums16 | Self::Int8x2)
    }
}

/// A microkernel with the only format that it computes. Each instruction set lists its own.
#[derive(Debug, Clone, Copy)]
struct KernelSet {
    format: Format,
    columns: usize,
    microkernel: Microkernel,
}

impl KernelSet {
    #[cfg(target_arch = "x86_64")]
    fn select(tier: Tier, precision: Precision) -> Self {
        use Precision::{Bf16, F32, Int8};
        match (tier, precision) {
            (Tier::Portable, F32) => portable::F32,
            (Tier::Portable, Bf16) => portable::ROUNDED_F32,
            (Tier::Portable, Int8) => portable::INT8X2,
            (Tier::Avx2 | Tier::Avx2Vnni, F32) => avx2::F32,
            (Tier::Avx2 | Tier::Avx2Vnni, Bf16) => avx2::ROUNDED_F32,
            (Tier::Avx2, Int8) => avx2::INT8_SUMS16,
            (Tier::Avx2Vnni, Int8) => avx2::INT8X4,
            (Tier::Avx512 | Tier::Avx512Int8 | Tier::Avx512Vnni | Tier::Amx, F32) => avx512::F32,
            (Tier::Avx512 | Tier::Avx512Int8, Bf16) => avx512::ROUNDED_F32,
            (Tier::Avx512, Int8) => avx512::INT8_SUMS16,
            (Tier::Avx512Vnni, Bf16) => avx512::BF16,
            (Tier::Avx512Int8 | Tier::Avx512Vnni, Int8) => avx512::INT8X4,
            (Tier::Amx, Bf16) => amx::BF16,
            (Tier::Amx, Int8) => amx::INT8X4,
        }
    }

    /// Other tiers than the portable one are not available on this architecture.
    #[cfg(not(target_arch = "x86_64"))]
    fn select(_: Tier, precision: Precision) -> Self {
        match precision {
            Precision::F32 => portable::F32,
            Precision::Bf16 => portable::ROUNDED_F32,
            Precision::Int8 => portable::INT8X2,
        }
    }
}

/// How a product is computed: the microkernel and the memory layouts that it requires.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GemmPlan {
    pub(crate) isa: Isa,
    pub(crate) format: Format,
    /// Columns of a panel.
    pub(crate) columns: usize,
    /// Whether rows of both operands are [rotated](crate::rotate) before rounding.
    pub(crate) rotated: bool,
    microkernel: Microkernel,
}

impl GemmPlan {
    pub(crate) fn new(isa: Isa, precision: Precision) -> Self {
        let KernelSet { format, columns, microkernel } = KernelSet::select(isa.tier(), precision);
        Self { isa, format, columns, rotated: false, microkernel }
    }

    /// The plan for so few rows as a decode step has. Vectors stream 8-bit weights faster than tiles
    /// do, and integer sums are the same.
    pub(crate) fn for_rows(self, rows: usize) -> Self {
        match self.microkernel {
            #[cfg(target_arch = "x86_64")]
            Microkernel::Tiles { bytes: true } if rows <= avx512::MAX_ROWS => {
                Self { microkernel: avx512::INT8X4.microkernel, ..self }
            }
            _ => {
                let _ = rows;
                self
            }
        }
    }

    /// Whether the rows of a block are contiguous, rather than their steps interleaved.
    pub(crate) fn is_row_major(&self) -> bool {
        match self.microkernel {
            Microkernel::Vectors(_) => false,
            #[cfg(target_arch = "x86_64")]
            Microkernel::Tiles { .. } => true,
        }
    }

    /// `rows`, rounded up to what the microkernel reads and writes.
    pub(crate) fn padded_rows(&self, rows: usize) -> usize {
        if self.is_row_major() { rows.next_multiple_of(16) } else { rows }
    }

    /// Steps of rows of `depth` numbers; tiles read sixteen at a time, and sums of 16 bits take two.
    pub(crate) fn steps(&self, depth: usize) -> usize {
        let steps = depth.div_ceil(self.format.group());
        match self.format {
            _ if self.is_row_major() => steps.next_multiple_of(16),
            Format::Int8Sums16 => steps.next_multiple_of(2),
            _ => steps,
        }
    }

    /// Words of a panel of `steps` steps.
    pub(crate) fn panel_words(&self, steps: usize) -> usize {
        steps * self.columns * self.format.column_bytes() / 4
    }

    /// Cuts `rows` rows into blocks.
    pub(crate) fn blocks(&self, rows: usize) -> Blocks {
        match self.microkernel {
            // Of similar size: 577 rows in blocks of 12 and 11, rather than 48 of 12 and a slow one
            // of a single row.
            Microkernel::Vectors(kernels) => {
                let count = rows.div_ceil(kernels.len());
                let (base, longer) = (rows / count.max(1), rows % count.max(1));
                Blocks { rows, count, base, longer }
            }
            #[cfg(target_arch = "x86_64")]
            Microkernel::Tiles { .. } => {
                Blocks { rows, count: rows.div_ceil(MAX_ROWS), base: MAX_ROWS, longer: 0 }
            }
        }
    }
}

/// Rows cut into blocks: the first `longer` ones have `base + 1` rows, the others `base`, and the
/// last what is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) rows: usize,
    pub(crate) count: usize,
    base: usize,
    longer: usize,
}

impl Blocks {
    /// The first row and the number of rows of a block.
    pub(crate) fn at(&self, block: usize) -> (usize, usize) {
        let first = block * self.base + block.min(self.longer);
        let rows = self.base + usize::from(block < self.longer);
        (first, rows.min(self.rows.saturating_sub(first)))
    }
}

/// A plan that is ready to run on this thread: tiles are configured until it is dropped.
pub(crate) struct ActivePlan {
    plan: GemmPlan,
    /// Tiles are configured for one thread.
    not_send: PhantomData<*const ()>,
}

impl ActivePlan {
    pub(crate) fn new(plan: GemmPlan) -> Self {
        #[cfg(target_arch = "x86_64")]
        if matches!(plan.microkernel, Microkernel::Tiles { .. }) {
            // SAFETY: only plans for AMX have tiles, and their `Isa` proves that they are permitted.
            unsafe { amx::acquire() };
        }
        Self { plan, not_send: PhantomData }
    }

    /// Multiplies a block of `rows` rows with a panel, each of `steps` steps. Writes rows of
    /// [`columns`](GemmPlan::columns) sums, and unspecified ones for rows that pad a tile.
    ///
    /// # Panics
    /// A slice is too short, or there are more rows than a block has.
    pub(crate) fn multiply(
        &self,
        block: &[u32],
        rows: usize,
        panel: &[u32],
        steps: usize,
        sums: &mut [u32],
    ) {
        let Self { plan, .. } = self;
        let padded = plan.padded_rows(rows);
        assert!(block.len() >= padded * steps, "a block of {rows} rows is incomplete");
        assert!(panel.len() >= plan.panel_words(steps), "a panel of {steps} steps is incomplete");
        assert!(sums.len() >= padded * plan.columns, "no memory for the sums of {rows} rows");
        if rows == 0 {
            return;
        }
        let (block, panel, sums) = (block.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
        match plan.microkernel {
            // SAFETY: kernel `rows − 1` is for blocks of `rows` rows; the lengths were compared
            // above, and the plan's `Isa` proves that the CPU has the instructions.
            Microkernel::Vectors(kernels) => unsafe {
                kernels[rows - 1](block, panel, steps, sums)
            },
            #[cfg(target_arch = "x86_64")]
            Microkernel::Tiles { bytes } => {
                assert!(rows <= MAX_ROWS && steps > 0 && steps.is_multiple_of(16));
                // SAFETY: `self` keeps the tiles configured; lengths, rows and steps were checked.
                unsafe { amx::multiply(bytes, block, rows, panel, steps, sums) }
            }
        }
    }
}

impl Drop for ActivePlan {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.plan.microkernel, Microkernel::Tiles { .. }) {
            // SAFETY: `new` acquired them on this thread.
            unsafe { amx::release() };
        }
    }
}

/// A microkernel on vectors, for blocks of `R` rows: two vectors of sums a row, two vectors of the
/// panel, and one step of a row in all lanes.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernel {
    (
        $(#[$doc:meta])* $name:ident, $features:literal, [$sum:ty; $lanes:literal] = $zero:expr,
        broadcast: $broadcast:ident, load: $load:ident of $words:literal words,
        prefetch: $prefetch:ident, add: $add:ident
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU has the features; `block` has `steps · R` words, `panel` the words of `steps`
        /// steps, and `out` room for `R` rows of sums.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(
            block: *const u32,
            panel: *const u32,
            steps: usize,
            out: *mut u32,
        ) {
            let mut sums: [[$sum; 2]; R] = [[$zero; 2]; R];
            for step in 0..steps {
                // SAFETY: `step` is below `steps`, which both sides have.
                let (b, a) = unsafe { ($load(panel.add(step * $words)), block.add(step * R)) };
                $prefetch(panel.wrapping_add(step * $words));
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: a step of the block has `R` words.
                    let a = $broadcast(unsafe { *a.add(row) }.cast_signed());
                    sums[0] = $add(sums[0], a, b[0]);
                    sums[1] = $add(sums[1], a, b[1]);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, sum) in sums.iter().enumerate() {
                    let start = (2 * row + half) * $lanes;
                    // SAFETY: `out` has two vectors for each of the `R` rows.
                    unsafe { out.add(start).cast::<$sum>().write_unaligned(*sum) };
                }
            }
        }
    };
}

/// A microkernel as by [`vector_kernel`], but for [`Format::Int8Sums16`]: two steps at a time.
#[cfg(target_arch = "x86_64")]
macro_rules! sums16_kernel {
    (
        $name:ident, $features:literal, [$sum:ty; $lanes:literal] = $zero:expr,
        broadcast: $broadcast:ident, load: $load:ident of $words:literal words,
        prefetch: $prefetch:ident, add: $add:ident
    ) => {
        /// u8 × i8, four products at a time in 16 bits, then in 32 bits.
        ///
        /// # Safety
        /// The CPU has the features; `steps` is even, `block` has `steps · R` words, `panel` the words of
        /// `steps` steps, and `out` room for `R` rows of sums.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(
            block: *const u32,
            panel: *const u32,
            steps: usize,
            out: *mut u32,
        ) {
            let mut sums: [[$sum; 2]; R] = [[$zero; 2]; R];
            for step in (0..steps).step_by(2) {
                // SAFETY: `step` and the next one are below `steps`, which both sides have.
                let (b, next, a) = unsafe {
                    let panel = panel.add(step * $words);
                    ($load(panel), $load(panel.add($words)), block.add(step * R))
                };
                $prefetch(panel.wrapping_add(step * $words));
                $prefetch(panel.wrapping_add((step + 1) * $words));
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: two steps of the block have `2 · R` words.
                    let a = unsafe { [*a.add(row), *a.add(R + row)] };
                    let a = a.map(|word| $broadcast(word.cast_signed()));
                    sums[0] = $add(sums[0], a, [b[0], next[0]]);
                    sums[1] = $add(sums[1], a, [b[1], next[1]]);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, sum) in sums.iter().enumerate() {
                    let start = (2 * row + half) * $lanes;
                    // SAFETY: `out` has two vectors for each of the `R` rows.
                    unsafe { out.add(start).cast::<$sum>().write_unaligned(*sum) };
                }
            }
        }
    };
}

/// The kernels for blocks of each number of rows.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($name:ident: $($rows:literal)*) => { Microkernel::Vectors(&[$($name::<$rows>),*]) };
}

#[cfg(target_arch = "x86_64")]
use {by_rows, sums16_kernel, vector_kernel};
