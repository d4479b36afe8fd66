//! Packing factors for the micro-kernel: for each place of the inner dimension, the block's rows or the strip's columns.

use std::ops::Range;

use super::avx512::{COLS, Micro, ROWS, prefetch};
use crate::kernels::View;

/// Writes `alpha ·` rows `lanes` of `a`, at most [`ROWS`], at places `depth` of the inner dimension to `out`: [`ROWS`]
/// floats a place. Those past the last row are unspecified, and so are [`COLS`] floats after the end.
pub(super) fn pack_rows(
    micro: Micro,
    a: View<'_>,
    alpha: f32,
    lanes: Range<usize>,
    depth: Range<usize>,
    out: &mut [f32],
) {
    if a.col_stride == 1 {
        micro.turn::<ROWS>(a, alpha, lanes, depth, out);
    } else if a.row_stride == 1 {
        micro.copy::<ROWS>(a.transposed(), alpha, lanes, depth, out);
    } else {
        scattered::<ROWS>(a, alpha, lanes, depth, out);
    }
}

/// Writes columns `lanes` of `b`, at most [`COLS`], at places `depth` of the inner dimension to `out`: [`COLS`] floats a
/// place. Those past the last column are unspecified.
pub(super) fn pack_columns(micro: Micro, b: View<'_>, lanes: Range<usize>, depth: Range<usize>, out: &mut [f32]) {
    if b.row_stride == 1 {
        micro.turn::<COLS>(b.transposed(), 1.0, lanes, depth, out);
    } else if b.col_stride == 1 {
        micro.copy::<COLS>(b, 1.0, lanes, depth, out);
    } else {
        scattered::<COLS>(b.transposed(), 1.0, lanes, depth, out);
    }
}

/// Fetches part `part` of `parts` of what [`pack_columns`] will read.
pub(in crate::kernels) fn prefetch_columns(
    b: View<'_>,
    lanes: Range<usize>,
    depth: Range<usize>,
    part: (usize, usize),
) {
    if b.row_stride == 1 {
        prefetch(b.transposed(), lanes, depth, part);
    } else if b.col_stride == 1 {
        prefetch(b, depth, lanes, part);
    }
}

/// Lanes `lanes` of `matrix` `[lanes, depth]` with any strides.
fn scattered<const WIDTH: usize>(
    matrix: View<'_>,
    alpha: f32,
    lanes: Range<usize>,
    depth: Range<usize>,
    out: &mut [f32],
) {
    for (place, out) in depth.zip(out.chunks_exact_mut(WIDTH)) {
        for (lane, out) in lanes.clone().zip(out) {
            *out = alpha * matrix.data[lane * matrix.row_stride + place * matrix.col_stride];
        }
    }
}
