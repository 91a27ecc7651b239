//! Products on matrix tiles: 32 rows × 32 columns as four tiles of sums, 64 bytes of every row a step.
//!
//! Rust has no stable intrinsics for tiles, so the few instructions are written out. A tile of 16
//! rows × 64 bytes is loaded with the distance of its rows; the right operand's panels, made for
//! 512-bit vectors, are already what a tile wants: step after step, 16 columns in 64 bytes.
//! Source: Intel's Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;

pub const COLUMNS: usize = 32;

/// Whether CPU and operating system let this process use tiles for bf16 and 8-bit numbers.
pub fn permitted() -> bool {
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

/// Linux hands the tiles' registers out only to processes that ask for them.
#[cfg(target_os = "linux")]
fn requested() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but this process's permission.
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

/// Makes the tiles usable on this thread, until [`release`].
pub fn configure() {
    // SAFETY: a plan with tiles exists only where `permitted` said yes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
}

/// Gives the tiles back, so that the kernel need not save them.
pub fn release() {
    // SAFETY: as for `configure`.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// One product of up to 16 or up to 32 rows, with the given dot-product instruction.
///
/// The panels are fetched ahead of their use: sixteen lines at a time are too many for a processor
/// to guess. Fetching behind the last panel's end does no harm, and no fault.
macro_rules! product {
    ($name:ident, $dot:literal) => {
        /// # Safety
        /// The tiles are configured; `left` holds 16 or, if `two`, 32 rows of `steps · 4` bytes,
        /// `right` `steps` rows of 128 bytes, `tile` has room for as many rows of 32 words.
        unsafe fn $name(left: *const u32, two: bool, right: *const u8, steps: usize, tile: *mut u32) {
            let row = steps * 4;
            if two {
                // SAFETY: reads and writes stay inside what the caller vouches for.
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
                // SAFETY: as above.
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
/// The tiles are configured; `left` holds `rows` rows, rounded up to whole tiles, of `steps` words,
/// `right` a panel of `steps` steps, a multiple of 16 and not 0; `tile` has room for 32 × 32 words.
pub(super) unsafe fn multiply(
    bytes: bool,
    left: *const u32,
    rows: usize,
    right: *const u8,
    steps: usize,
    tile: *mut u32,
) {
    // SAFETY: the caller's word.
    unsafe {
        if bytes {
            bytes_product(left, rows > 16, right, steps, tile);
        } else {
            bf16_product(left, rows > 16, right, steps, tile);
        }
    }
}
