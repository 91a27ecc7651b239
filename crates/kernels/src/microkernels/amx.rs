//! Products on matrix tiles: 32 rows × 32 columns as four tiles of sums, 64 bytes of every row at a
//! time.
//!
//! Rust has no stable intrinsics for tiles, so the few instructions are inline assembly. A tile of 16
//! rows × 64 bytes is loaded with the stride of its rows. The panels for 512-bit vectors already have
//! the layout that a tile needs: step after step, 16 columns in 64 bytes.
//! Source: Intel's Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;
use std::cell::Cell;

use super::{Format, KernelSet, Microkernel};

const COLUMNS: usize = 32;

pub(super) const BF16: KernelSet = KernelSet {
    format: Format::Bf16,
    columns: COLUMNS,
    microkernel: Microkernel::Tiles { bytes: false },
};

pub(super) const INT8X4: KernelSet = KernelSet {
    format: Format::Int8x4,
    columns: COLUMNS,
    microkernel: Microkernel::Tiles { bytes: true },
};

/// Whether the CPU and the operating system let this process use tiles of bf16 and 8-bit integers.
pub(crate) fn permitted() -> bool {
    reported() && requested()
}

fn reported() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if __cpuid(0).eax < 7 {
        return false;
    }
    __cpuid_count(7, 0).edx & (BF16 | TILE | INT8) == BF16 | TILE | INT8
}

/// Linux enables the tile registers only for processes that request them.
#[cfg(target_os = "linux")]
fn requested() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and changes only the permissions of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn requested() -> bool {
    false
}

/// The operand of `ldtilecfg`: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = 16;
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

thread_local! {
    /// How many [`acquire`]s of this thread have not been released.
    static USERS: Cell<usize> = const { Cell::new(0) };
}

/// Configures the tiles on this thread, until the matching [`release`].
///
/// # Safety
/// The process is [`permitted`] to use tiles.
pub(super) unsafe fn acquire() {
    if USERS.replace(USERS.get() + 1) == 0 {
        // SAFETY: the CPU has tiles, as the caller guarantees, and the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
    }
}

/// Frees the tiles at the last release, so that the kernel need not save them.
///
/// # Safety
/// It follows an [`acquire`] on the same thread.
pub(super) unsafe fn release() {
    if USERS.replace(USERS.get() - 1) == 1 {
        // SAFETY: the CPU has tiles, since they were acquired.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A product of up to 16 or up to 32 rows, with the given dot-product instruction.
///
/// The panel is prefetched: sixteen lines a tile are too many for the hardware to predict. The
/// prefetch beyond the end of the panel is harmless, and does not fault.
macro_rules! product {
    ($name:ident, $dot:literal) => {
        /// # Safety
        /// The tiles are configured; `left` has 16 or, if `two`, 32 rows of `steps · 4` bytes,
        /// `right` has `steps` rows of 128 bytes, and `tile` room for 16 or 32 rows of 32 words;
        /// `steps` is a multiple of 16 and not 0.
        unsafe fn $name(left: *const u32, two: bool, right: *const u32, steps: usize, tile: *mut u32) {
            let row = steps * 4;
            if two {
                // SAFETY: the loop reads `steps / 16` tiles of each 16 rows and of the panel, and the
                // end writes 32 rows: all of it is memory that the caller guarantees.
                unsafe {
                    asm!(
                        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                        "2:",
                        "tileloadd tmm6, [{b} + {pitch}*1]",
                        "tileloadd tmm4, [{a} + {row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        ".set ahead, 4096", ".rept 32", "prefetcht0 [{b} + ahead]",
                        ".set ahead, ahead + 64", ".endr",
                        "tileloadd tmm7, [{b} + {pitch}*1 + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{c} + {row}*1]",
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "add {a}, 64", "add {c}, 64", "add {b}, 2048",
                        "dec {n}", "jnz 2b",
                        "tilestored [{t} + {pitch}*1], tmm0",
                        "tilestored [{t} + {pitch}*1 + 64], tmm1",
                        "tilestored [{t} + {pitch}*1 + 2048], tmm2",
                        "tilestored [{t} + {pitch}*1 + 2112], tmm3",
                        a = inout(reg) left => _, c = inout(reg) left.byte_add(16 * row) => _,
                        b = inout(reg) right => _, n = inout(reg) steps / 16 => _,
                        row = in(reg) row, pitch = in(reg) 128_usize, t = in(reg) tile,
                        options(nostack),
                    );
                }
            } else {
                // SAFETY: as for two tiles, with 16 rows.
                unsafe {
                    asm!(
                        "tilezero tmm0", "tilezero tmm1",
                        "2:",
                        ".set ahead, 8192", ".rept 32", "prefetcht0 [{b} + ahead]",
                        ".set ahead, ahead + 64", ".endr",
                        "tileloadd tmm4, [{a} + {row}*1]",
                        "tileloadd tmm6, [{b} + {pitch}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {pitch}*1 + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "add {a}, 64", "add {b}, 2048",
                        "dec {n}", "jnz 2b",
                        "tilestored [{t} + {pitch}*1], tmm0",
                        "tilestored [{t} + {pitch}*1 + 64], tmm1",
                        a = inout(reg) left => _,
                        b = inout(reg) right => _, n = inout(reg) steps / 16 => _,
                        row = in(reg) row, pitch = in(reg) 128_usize, t = in(reg) tile,
                        options(nostack),
                    );
                }
            }
        }
    };
}

product!(bytes_product, "tdpbusd");
product!(bf16_product, "tdpbf16ps");

/// Multiplies a block of up to 32 rows with a panel.
///
/// # Safety
/// The tiles are configured; `left` has `rows` rows of `steps` words, rounded up to whole tiles of 16
/// rows, `right` is a panel of `steps` steps, a multiple of 16 and not 0, and `tile` has room for as
/// many rows of 32 words.
pub(super) unsafe fn multiply(
    bytes: bool,
    left: *const u32,
    rows: usize,
    right: *const u32,
    steps: usize,
    tile: *mut u32,
) {
    // SAFETY: both have the same requirements as this function.
    unsafe {
        if bytes {
            bytes_product(left, rows > 16, right, steps, tile);
        } else {
            bf16_product(left, rows > 16, right, steps, tile);
        }
    }
}
