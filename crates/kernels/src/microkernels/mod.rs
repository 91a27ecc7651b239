//! The innermost products: a few rows of the left operand times one panel of the right one.
//!
//! Both operands are cut into steps along the summed dimension; a step is four bytes of the left
//! operand's row: one f32, two bf16 or 16-bit numbers, or four 8-bit ones. A kernel adds up all steps
//! of its rows and columns in order and leaves the sums, f32 or i32, in a tile for the epilogue.
//! A sum's order does not depend on how many rows there are, so a row has the same bits in any
//! company.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Precision;
use crate::isa::Tier;

/// Most rows that a kernel takes.
pub const MAX_ROWS: usize = 32;
/// Most columns of a panel.
pub const MAX_COLUMNS: usize = 32;

/// The sums of one kernel call, rows of `columns` numbers: f32, or i32 for 8-bit operands.
#[repr(C, align(64))]
pub struct Accumulators(pub(crate) [u32; MAX_ROWS * MAX_COLUMNS]);

/// `(left, right, steps, tile)`: left is a block of rows, step after step; right is a panel.
pub type Kernel = unsafe fn(*const u32, *const u8, usize, *mut u32);

/// How rows are cut into blocks, and what multiplies a block.
#[derive(Debug, Clone, Copy)]
pub enum Microkernel {
    /// Blocks of up to `kernels.len()` rows, step-major: all rows' first steps, then all second.
    Blocks(&'static [Kernel]),
    /// Blocks of up to 32 rows, each row's steps in one piece: what matrix tiles read.
    Tiles {
        /// Whether the operands are 8-bit numbers rather than bf16.
        bytes: bool,
    },
}

/// What the numbers of a product are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// f32 times f32.
    F32,
    /// f32 times f32, both rounded to bf16 first, where bf16 is no instruction.
    RoundedF32,
    /// Pairs of bf16.
    Bf16,
    /// u8 times i8, four a step.
    Int8x4,
    /// u8 times i8, two a step: the left ones widened to 16 bits.
    Int8x2,
}

impl Format {
    /// Numbers of a row in a step.
    pub const fn group(self) -> usize {
        match self {
            Self::F32 | Self::RoundedF32 => 1,
            Self::Bf16 | Self::Int8x2 => 2,
            Self::Int8x4 => 4,
        }
    }

    /// Bytes of a column in a step of the right operand.
    pub const fn column_bytes(self) -> usize {
        match self {
            Self::Int8x2 => 2,
            _ => 4,
        }
    }

    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Int8x4 | Self::Int8x2)
    }
}

/// The kernels of a tier for a precision, and the layout that they ask for.
#[derive(Debug, Clone, Copy)]
pub struct GemmPlan {
    pub tier: Tier,
    pub format: Format,
    /// Columns of a panel.
    pub columns: usize,
    pub microkernel: Microkernel,
    /// Whether rows of both operands are [rotated](crate::rotate) before they are rounded.
    pub rotated: bool,
}

impl GemmPlan {
    pub fn new(tier: Tier, precision: Precision) -> Self {
        let format = match precision {
            Precision::F32 => Format::F32,
            Precision::Bf16 if tier.has_bf16() => Format::Bf16,
            Precision::Bf16 => Format::RoundedF32,
            Precision::Int8 if matches!(tier, Tier::Avx2 | Tier::Avx512 | Tier::Portable) => {
                Format::Int8x2
            }
            Precision::Int8 => Format::Int8x4,
        };
        let (columns, microkernel) = Self::kernels(tier, format);
        Self { tier, format, columns, microkernel, rotated: false }
    }

    #[cfg(target_arch = "x86_64")]
    fn kernels(tier: Tier, format: Format) -> (usize, Microkernel) {
        match tier {
            Tier::Portable => (portable::COLUMNS, Microkernel::Blocks(portable::kernels(format))),
            Tier::Avx2 | Tier::Avx2Vnni => {
                (avx2::COLUMNS, Microkernel::Blocks(avx2::kernels(format)))
            }
            Tier::Amx if matches!(format, Format::Bf16 | Format::Int8x4) => {
                (amx::COLUMNS, Microkernel::Tiles { bytes: format == Format::Int8x4 })
            }
            Tier::Avx512 | Tier::Avx512Vnni | Tier::Amx => {
                (avx512::COLUMNS, Microkernel::Blocks(avx512::kernels(format)))
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn kernels(_: Tier, format: Format) -> (usize, Microkernel) {
        (portable::COLUMNS, Microkernel::Blocks(portable::kernels(format)))
    }

    /// The plan for so few rows as a token has: vectors stream the weights better than tiles, and
    /// sums of integers are the same.
    #[cfg(target_arch = "x86_64")]
    pub fn for_rows(self, rows: usize) -> Self {
        let vectors = avx512::kernels(Format::Int8x4);
        match self.microkernel {
            Microkernel::Tiles { bytes: true } if rows <= vectors.len() => {
                Self { microkernel: Microkernel::Blocks(vectors), ..self }
            }
            _ => self,
        }
    }

    /// The plan for so few rows as a token has.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn for_rows(self, _: usize) -> Self {
        self
    }

    /// Steps of rows of `depth` numbers; tiles read sixteen at a time.
    pub fn steps(&self, depth: usize) -> usize {
        let steps = depth.div_ceil(self.format.group());
        match self.microkernel {
            Microkernel::Blocks(_) => steps,
            Microkernel::Tiles { .. } => steps.next_multiple_of(16),
        }
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self, steps: usize) -> usize {
        steps * self.columns * self.format.column_bytes()
    }

    /// Where rows lie in the left operand.
    pub fn blocks(&self, rows: usize) -> Blocks {
        match self.microkernel {
            // Even blocks: 577 rows in blocks of 12 and 11, not 48 of 12 and a slow single one.
            Microkernel::Blocks(kernels) => {
                let count = rows.div_ceil(kernels.len()).max(1);
                Blocks { rows, count, base: rows / count, longer: rows % count }
            }
            Microkernel::Tiles { .. } => {
                Blocks { rows, count: rows.div_ceil(MAX_ROWS), base: MAX_ROWS, longer: 0 }
            }
        }
    }
}

/// Rows cut into blocks: the first `longer` ones have one row more than `base`, the last what is left.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    pub rows: usize,
    pub count: usize,
    base: usize,
    longer: usize,
}

impl Blocks {
    /// First row and number of rows of a block.
    pub fn at(&self, block: usize) -> (usize, usize) {
        let first = block * self.base + block.min(self.longer);
        let rows = self.base + usize::from(block < self.longer);
        (first, rows.min(self.rows.saturating_sub(first)))
    }
}

/// Puts the CPU into the state that a plan's kernels need for as long as it lives.
pub struct TileGuard {
    #[cfg(target_arch = "x86_64")]
    tiles: bool,
}

impl TileGuard {
    pub fn new(plan: &GemmPlan) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let tiles = matches!(plan.microkernel, Microkernel::Tiles { .. });
            if tiles {
                amx::configure();
            }
            Self { tiles }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = plan;
            Self {}
        }
    }
}

impl Drop for TileGuard {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.tiles {
            amx::release();
        }
    }
}

/// Multiplies a block of `rows` rows, which lies at `left`, with the panel at `right`.
///
/// # Safety
/// A [`TileGuard`] of this plan lives on this thread; `left` holds the block in the plan's layout,
/// `right` a panel of it, each with `steps` steps.
pub unsafe fn multiply(
    plan: &GemmPlan,
    left: *const u32,
    rows: usize,
    right: *const u8,
    steps: usize,
    tile: &mut Accumulators,
) {
    // SAFETY: the caller's word; the tile is large enough for every kernel.
    unsafe { multiply_into(plan, left, rows, right, steps, tile.0.as_mut_ptr()) }
}

/// As [`multiply`], to wherever there is room.
///
/// # Safety
/// As for [`multiply`]; `out` has room for the rows, whole tiles of them where the plan has tiles.
pub unsafe fn multiply_into(
    plan: &GemmPlan,
    left: *const u32,
    rows: usize,
    right: *const u8,
    steps: usize,
    out: *mut u32,
) {
    match plan.microkernel {
        // SAFETY: layout and room are the caller's word.
        Microkernel::Blocks(kernels) => unsafe { kernels[rows - 1](left, right, steps, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; the tiles are configured while the caller's `Ready` lives.
        Microkernel::Tiles { bytes } => unsafe {
            amx::multiply(bytes, left, rows, right, steps, out);
        },
        #[cfg(not(target_arch = "x86_64"))]
        Microkernel::Tiles { .. } => {}
    }
}
