//! The micro-kernel: 32 × 32 values by AMX's tile unit, in inline assembly because its intrinsics are not stable.

use std::arch::asm;

use super::parts::Parts;
use crate::kernels::bf16::{LANES, Tile, TileUnit};

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 2 * LANES;

const TILE: usize = size_of::<Tile>();

/// The four products of two strips of rows by two of columns, whose tiles lie in tmm4 to tmm7.
macro_rules! multiply {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// Loads part `$part` of both strips of rows.
macro_rules! rows {
    ($part:literal) => {
        concat!("tileloadd tmm4, [{a0} + {s}*1 + ", $part, "*1024]\n tileloadd tmm5, [{a1} + {s}*1 + ", $part, "*1024]")
    };
}

/// Loads part `$part` of both strips of columns.
macro_rules! columns {
    ($part:literal) => {
        concat!("tileloadd tmm6, [{b0} + {s}*1 + ", $part, "*1024]\n tileloadd tmm7, [{b1} + {s}*1 + ", $part, "*1024]")
    };
}

/// `C ← C (if accumulate) + A·B` for two strips of 16 rows and two of 16 columns, `depth` places of the inner dimension, of
/// whose columns the first `parts` parts are not zero. Rows of `c` lie `stride` floats apart.
///
/// # Safety
/// The strips are so deep, and the block of `c` is memory that nobody else uses.
#[allow(unsafe_code)]
#[allow(clippy::too_many_arguments, reason = "a block needs both factors and the result")]
pub(super) unsafe fn block(
    _: &TileUnit,
    a: [*const Parts; 2],
    b: [*const Parts; 2],
    depth: usize,
    parts: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    const { assert!(size_of::<Parts>() == 3 * TILE && TILE == 1024) };
    let stride = stride * size_of::<f32>();
    let beside = c.wrapping_add(LANES);
    let below = c.wrapping_byte_add(LANES * stride);
    let last = below.wrapping_add(LANES);
    macro_rules! pass {
        ($($line:expr),*) => {
            asm!(
                "2:",
                $($line,)*
                "add {a0}, {t}", "add {a1}, {t}", "add {b0}, {t}", "add {b1}, {t}",
                "dec {n}",
                "jnz 2b",
                a0 = inout(reg) a[0] => _, a1 = inout(reg) a[1] => _,
                b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
                n = inout(reg) depth => _,
                s = in(reg) 64usize,
                t = const 3 * TILE,
            )
        };
    }
    /// With what multiplies the columns' third part, where there is one, while the rows' first part is loaded.
    macro_rules! all_but_third {
        ($($third:expr),*) => {
            pass!(
                rows!("2"), columns!("0"), multiply!(),
                rows!("1"), multiply!(),
                columns!("1"), multiply!(),
                rows!("0"), multiply!(),
                $($third,)*
                columns!("0"), multiply!()
            )
        };
    }
    // SAFETY: the caller vouches for the pointers; the unit says that the tiles are configured.
    unsafe {
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c0} + {s}*1]", "tileloadd tmm1, [{c1} + {s}*1]",
                "tileloadd tmm2, [{c2} + {s}*1]", "tileloadd tmm3, [{c3} + {s}*1]",
                c0 = in(reg) c, c1 = in(reg) beside, c2 = in(reg) below, c3 = in(reg) last, s = in(reg) stride,
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
        if depth > 0 {
            match parts {
                0 | 1 => {
                    pass!(rows!("2"), columns!("0"), multiply!(), rows!("1"), multiply!(), rows!("0"), multiply!())
                }
                2 => all_but_third!(),
                _ => all_but_third!(columns!("2"), multiply!()),
            }
        }
        asm!(
            "tilestored [{c0} + {s}*1], tmm0", "tilestored [{c1} + {s}*1], tmm1",
            "tilestored [{c2} + {s}*1], tmm2", "tilestored [{c3} + {s}*1], tmm3",
            c0 = in(reg) c, c1 = in(reg) beside, c2 = in(reg) below, c3 = in(reg) last, s = in(reg) stride,
        );
    }
}
