//! The tile unit as products of few rows use it: tiles no larger than the rows, of which there are up to three strips.

use std::arch::asm;

use super::super::amx::ShapedTiles;
use super::{LANES, Tile};
use crate::kernels::LINE;

/// Strips of rows, at the most: each has a tile of its own and one of the result, and there are eight.
pub(super) const MOST_GROUPS: usize = 3;

/// The calling thread's tile unit, configured for some strips of rows while this lives.
///
/// Results are tiles 0 to 2, the rows' tiles 4 to 6, and tile 7 is the weight's.
pub(super) struct Groups {
    rows: usize,
    _tiles: ShapedTiles,
}

impl Groups {
    /// Rows that are left factors: results are rows of 16 columns.
    pub(super) fn left(rows: usize) -> Self {
        Self::configure(rows, |rows| [(rows, LINE), (rows, LINE)])
    }

    /// Rows that are right factors, a column of pairs each: results are 16 rows of so many columns.
    pub(super) fn right(rows: usize) -> Self {
        Self::configure(rows, |rows| [(LANES, 4 * rows); 2])
    }

    /// `shapes` gives the rows and bytes a row of the tile of a result and of one of the rows.
    fn configure(rows: usize, shapes: impl Fn(usize) -> [(usize, usize); 2]) -> Self {
        assert!((1..=MOST_GROUPS * LANES).contains(&rows), "there is a unit for so few rows");
        let mut all = [(0, 0); 8];
        for group in 0..rows.div_ceil(LANES) {
            [all[group], all[4 + group]] = shapes(LANES.min(rows - group * LANES));
        }
        all[7] = (LANES, LINE);
        Self { rows, _tiles: ShapedTiles::configure(all) }
    }

    /// Strips of rows.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Rows of a strip.
    pub(super) fn rows_of(&self, group: usize) -> usize {
        LANES.min(self.rows - group * LANES)
    }

    /// Makes all results zero.
    #[allow(unsafe_code)]
    pub(super) fn clear(&self) {
        // SAFETY: the tiles are configured.
        unsafe {
            match self.count() {
                1 => asm!("tilezero tmm0", options(nostack, nomem)),
                2 => asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem)),
                _ => asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", options(nostack, nomem)),
            }
        }
    }

    /// Adds to each result the product of a strip's rows and a weight's tile in pairs order. The rows' tiles lie `apart`
    /// tiles from each other.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(super) fn add_left(&self, rows: &[Tile], apart: usize, weight: &Tile) {
        let first = self.check(rows, apart);
        // SAFETY: the tiles are configured, and lie where they are read.
        unsafe {
            match self.count() {
                1 => asm!(
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tileloadd tmm4, [{a} + {s}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    w = in(reg) weight, a = in(reg) first, s = in(reg) LINE, options(nostack, readonly),
                ),
                2 => asm!(
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tileloadd tmm4, [{a} + {s}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    "tileloadd tmm5, [{b} + {s}*1]",
                    "tdpbf16ps tmm1, tmm5, tmm7",
                    w = in(reg) weight, a = in(reg) first, b = in(reg) first.wrapping_add(apart), s = in(reg) LINE,
                    options(nostack, readonly),
                ),
                _ => asm!(
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tileloadd tmm4, [{a} + {s}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm7",
                    "tileloadd tmm5, [{b} + {s}*1]",
                    "tdpbf16ps tmm1, tmm5, tmm7",
                    "tileloadd tmm6, [{c} + {s}*1]",
                    "tdpbf16ps tmm2, tmm6, tmm7",
                    w = in(reg) weight, a = in(reg) first, b = in(reg) first.wrapping_add(apart),
                    c = in(reg) first.wrapping_add(2 * apart), s = in(reg) LINE, options(nostack, readonly),
                ),
            }
        }
    }

    /// Adds to each result the product of a weight's tile in rows order and a strip's rows in pairs order. The rows' tiles
    /// lie `apart` tiles from each other.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(super) fn add_right(&self, weight: &Tile, rows: &[Tile], apart: usize) {
        let first = self.check(rows, apart);
        // The pairs of a single row lie next to each other.
        let stride = if self.rows == 1 { 4 } else { LINE };
        // SAFETY: the tiles are configured, and lie where they are read.
        unsafe {
            match self.count() {
                1 => asm!(
                    "tileloadd tmm4, [{a} + {t}*1]",
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tdpbf16ps tmm0, tmm7, tmm4",
                    w = in(reg) weight, a = in(reg) first, s = in(reg) LINE, t = in(reg) stride,
                    options(nostack, readonly),
                ),
                2 => asm!(
                    "tileloadd tmm4, [{a} + {s}*1]",
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tdpbf16ps tmm0, tmm7, tmm4",
                    "tileloadd tmm5, [{b} + {s}*1]",
                    "tdpbf16ps tmm1, tmm7, tmm5",
                    w = in(reg) weight, a = in(reg) first, b = in(reg) first.wrapping_add(apart), s = in(reg) LINE,
                    options(nostack, readonly),
                ),
                _ => asm!(
                    "tileloadd tmm4, [{a} + {s}*1]",
                    "tileloadd tmm7, [{w} + {s}*1]",
                    "tdpbf16ps tmm0, tmm7, tmm4",
                    "tileloadd tmm5, [{b} + {s}*1]",
                    "tdpbf16ps tmm1, tmm7, tmm5",
                    "tileloadd tmm6, [{c} + {s}*1]",
                    "tdpbf16ps tmm2, tmm7, tmm6",
                    w = in(reg) weight, a = in(reg) first, b = in(reg) first.wrapping_add(apart),
                    c = in(reg) first.wrapping_add(2 * apart), s = in(reg) LINE, options(nostack, readonly),
                ),
            }
        }
    }

    /// Where the first strip's tile lies; all of them are among `rows`.
    #[inline(always)]
    fn check(&self, rows: &[Tile], apart: usize) -> *const Tile {
        assert!((self.count() - 1) * apart < rows.len(), "every strip of rows has its tile");
        rows.as_ptr()
    }

    /// Writes a result, whose rows lie `stride` floats apart, to `out`.
    ///
    /// # Safety
    /// The result's values lie in memory that nobody else uses.
    #[allow(unsafe_code)]
    pub(super) unsafe fn store(&self, group: usize, out: *mut f32, stride: usize) {
        let stride = 4 * stride;
        // SAFETY: the tiles are configured; the caller vouches for the memory.
        unsafe {
            match group {
                0 => asm!("tilestored [{c} + {s}*1], tmm0", c = in(reg) out, s = in(reg) stride, options(nostack)),
                1 => asm!("tilestored [{c} + {s}*1], tmm1", c = in(reg) out, s = in(reg) stride, options(nostack)),
                _ => asm!("tilestored [{c} + {s}*1], tmm2", c = in(reg) out, s = in(reg) stride, options(nostack)),
            }
        }
    }
}
