//! Sums over tokens of thin factors, without packing: the thin factor's values are broadcast, the other's rows are read as
//! they lie.

use std::arch::x86_64::*;

use super::avx512::{Micro, mask};
use crate::kernels::{View, ViewMut};

/// Rows of the thin factor that the micro-kernel sums at one time.
const ROWS: usize = 8;
/// Vectors of columns.
const VECTORS: usize = 2;
/// Values of a vector.
const LANES: usize = 16;
/// Tokens between the one that is summed and the one that is fetched.
const AHEAD: usize = 16;

/// Rows of a thin factor up to which reading the other one again for every [`ROWS`] of them pays.
const THIN: usize = 16;

/// Whether [`thin_sum`] computes `left · right`: `left` `[rows, tokens]` has few rows and lies token by token, `right`
/// `[tokens, cols]` row by row.
pub(crate) fn is_thin(left: View<'_>, right: View<'_>) -> bool {
    left.rows <= THIN && left.row_stride == 1 && right.col_stride == 1 && super::Packed::detect().is_some()
}

/// `sum ← alpha · left · right` `[rows, cols]` for factors that lie as [`is_thin`] wants them, however many rows there
/// are; tokens are summed in order.
///
/// # Panics
/// If the factors don't.
pub(crate) fn thin_sum(alpha: f32, left: View<'_>, right: View<'_>, mut sum: ViewMut<'_>) {
    let (rows, tokens, cols) = (left.rows, left.cols, right.cols);
    assert!(Micro::detect().is_some() && left.row_stride == 1 && right.col_stride == 1, "the factors lie by tokens");
    assert!(right.rows == tokens && (sum.rows, sum.cols) == (rows, cols), "the factors share their tokens");
    if tokens == 0 {
        (0..rows).for_each(|row| sum.row_mut(row).fill(0.0));
        return;
    }
    assert!((tokens - 1) * left.col_stride + rows <= left.data.len(), "the left factor lies in its data");
    assert!((tokens - 1) * right.row_stride + cols <= right.data.len(), "the right factor lies in its data");
    for col in (0..cols).step_by(VECTORS * LANES) {
        for row in (0..rows).step_by(ROWS) {
            let size = (ROWS.min(rows - row), cols - col);
            #[allow(unsafe_code)]
            // SAFETY: the processor has the instructions; both factors and the sum were checked.
            unsafe {
                let (left_rows, right_cols) = (left.data.as_ptr().add(row), right.data.as_ptr().add(col));
                let sums = match size.0 {
                    ROWS => strip::<ROWS>(left_rows, left.col_stride, right_cols, right.row_stride, tokens, size.1),
                    4.. => partial::<4>(left_rows, left.col_stride, right_cols, right.row_stride, tokens, size),
                    _ => partial::<1>(left_rows, left.col_stride, right_cols, right.row_stride, tokens, size),
                };
                for (offset, sums) in sums.iter().enumerate().take(size.0) {
                    store(*sums, alpha, &mut sum.row_mut(row + offset)[col..][..size.1.min(VECTORS * LANES)]);
                }
            }
        }
    }
}

type Sums = [[__m512; VECTORS]; ROWS];

/// Fewer than [`ROWS`] rows: `STEP` at a time.
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
unsafe fn partial<const STEP: usize>(
    left: *const f32,
    left_stride: usize,
    right: *const f32,
    right_stride: usize,
    tokens: usize,
    (rows, cols): (usize, usize),
) -> Sums {
    let mut all = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut row = 0;
    while row < rows {
        // SAFETY: the caller vouches for the factors; `row + STEP` or one row at a time are among them.
        unsafe {
            let left = left.add(row);
            if row + STEP <= rows {
                let sums = strip::<STEP>(left, left_stride, right, right_stride, tokens, cols);
                all[row..row + STEP].copy_from_slice(&sums[..STEP]);
                row += STEP;
            } else {
                all[row] = strip::<1>(left, left_stride, right, right_stride, tokens, cols)[0];
                row += 1;
            }
        }
    }
    all
}

/// The sums of `HEIGHT` rows and two vectors of columns, of which `cols` exist.
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
unsafe fn strip<const HEIGHT: usize>(
    left: *const f32,
    left_stride: usize,
    right: *const f32,
    right_stride: usize,
    tokens: usize,
    cols: usize,
) -> Sums {
    let masks = [mask(cols), mask(cols.saturating_sub(LANES))];
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; HEIGHT];
    for token in 0..tokens {
        // SAFETY: the caller vouches for the factors; the masks keep the loads inside the right one's row, and prefetching
        // reads nothing.
        unsafe {
            let row = right.add(token * right_stride);
            let columns: [__m512; VECTORS] =
                std::array::from_fn(|col| _mm512_maskz_loadu_ps(masks[col], row.wrapping_add(col * LANES)));
            let ahead = row.wrapping_add(AHEAD * right_stride);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(LANES).cast());
            let left = left.add(token * left_stride);
            for (lane, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*left.add(lane));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ps(value, column, *sum);
                }
            }
        }
    }
    let mut all = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    all[..HEIGHT].copy_from_slice(&sums);
    all
}

/// Writes `alpha ·` the sums of one row.
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
fn store(sums: [__m512; VECTORS], alpha: f32, out: &mut [f32]) {
    for (sum, out) in sums.into_iter().zip(out.chunks_mut(LANES)) {
        // SAFETY: the mask keeps the store inside the chunk.
        unsafe {
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), _mm512_mul_ps(sum, _mm512_set1_ps(alpha)));
        }
    }
}
