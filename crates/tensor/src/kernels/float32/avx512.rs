//! The micro-kernel, and turning and copying while packing, by AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::instructions::Instructions;
use crate::kernels::View;

/// Rows of a block.
pub(super) const ROWS: usize = 12;
/// Columns of a block: two vectors.
pub(super) const COLS: usize = 32;
/// Values of a vector.
const LANES: usize = 16;

/// The instructions; exists only where the processor has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micro(());

impl Micro {
    pub(super) fn detect() -> Option<Self> {
        let has_instructions = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
        (has_instructions && Instructions::Avx512.are_allowed()).then_some(Self(()))
    }

    /// `C ← C (if accumulate) + A·B` for a block of `height` rows and `width` columns, rows of `c` lying `stride` floats
    /// apart; `a` and `b` are packed, `depth` places.
    ///
    /// # Safety
    /// The packed factors are so deep, and the block of `c` is memory that nobody else uses.
    #[allow(unsafe_code)]
    #[allow(clippy::too_many_arguments, reason = "a block needs both factors and the result")]
    pub(super) unsafe fn block(
        self,
        a: *const f32,
        b: *const f32,
        depth: usize,
        c: *mut f32,
        stride: usize,
        (height, width): (usize, usize),
        accumulate: bool,
    ) {
        let masks = [mask(width), mask(width.saturating_sub(LANES))];
        // SAFETY: `self` says that the processor has the instructions; the caller vouches for the pointers.
        unsafe {
            macro_rules! of_height {
                ($($height:literal)*) => {
                    match height {
                        $($height if width <= LANES => block::<$height, 1>(a, b, depth, c, stride, masks, accumulate),
                        $height => block::<$height, 2>(a, b, depth, c, stride, masks, accumulate),)*
                        _ => unreachable!("a block has 1 to {ROWS} rows"),
                    }
                };
            }
            of_height!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    /// Writes `alpha ·` rows `lanes` of `matrix` `[lanes, depth]`, whose rows are contiguous, at places `depth`: for each
    /// place `WIDTH` floats, a row each.
    pub(super) fn turn<const WIDTH: usize>(
        self,
        matrix: View<'_>,
        alpha: f32,
        lanes: Range<usize>,
        depth: Range<usize>,
        out: &mut [f32],
    ) {
        check(&matrix, &lanes, &depth, out.len(), WIDTH);
        let first = matrix.data[lanes.start * matrix.row_stride + depth.start..].as_ptr();
        // SAFETY: `self` says that the processor has the instructions; rows, places and the room were checked.
        #[allow(unsafe_code)]
        unsafe {
            turn::<WIDTH>(first, matrix.row_stride, alpha, lanes.len(), depth.len(), out);
        }
    }

    /// The same of columns `lanes` of `matrix` `[depth, lanes]`, whose rows are contiguous.
    pub(super) fn copy<const WIDTH: usize>(
        self,
        matrix: View<'_>,
        alpha: f32,
        lanes: Range<usize>,
        depth: Range<usize>,
        out: &mut [f32],
    ) {
        check(&matrix, &depth, &lanes, out.len(), 0);
        assert!(lanes.len() <= WIDTH && depth.len() * WIDTH <= out.len(), "there is room for the packed columns");
        let first = matrix.data[depth.start * matrix.row_stride + lanes.start..].as_ptr();
        // SAFETY: `self` says that the processor has the instructions; rows, columns and the room were checked.
        #[allow(unsafe_code)]
        unsafe {
            copy::<WIDTH>(first, matrix.row_stride, alpha, lanes.len(), depth.len(), out);
        }
    }
}

/// Fetches part `part` of `parts` of the rows `lanes` of `matrix`, which are contiguous, at columns `columns` into the
/// second-level cache.
pub(super) fn prefetch(matrix: View<'_>, lanes: Range<usize>, columns: Range<usize>, (part, parts): (usize, usize)) {
    for lane in lanes.len() * part / parts..lanes.len() * (part + 1) / parts {
        let row = matrix.data.as_ptr().wrapping_add((lanes.start + lane) * matrix.row_stride + columns.start);
        for place in (0..columns.len()).step_by(LANES) {
            #[allow(unsafe_code)]
            // SAFETY: prefetching reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(place).cast());
            }
        }
    }
}

/// Panics unless rows `rows` and columns `cols` of `matrix` exist, and `width` floats for each of the columns have room.
fn check(matrix: &View<'_>, rows: &Range<usize>, cols: &Range<usize>, room: usize, width: usize) {
    assert!(matrix.col_stride == 1 || matrix.cols <= 1, "rows are contiguous");
    assert!(!rows.is_empty() && rows.end <= matrix.rows && !cols.is_empty() && cols.end <= matrix.cols);
    assert!((rows.end - 1) * matrix.row_stride + cols.end <= matrix.data.len(), "a view lies in its data");
    assert!(width == 0 || rows.len() <= width && cols.len() * width <= room, "there is room for the packed rows");
}

#[inline(always)]
pub(super) fn mask(lanes: usize) -> u16 {
    ((1u32 << lanes.min(LANES)) - 1) as u16
}

/// See [`Micro::block`]; `VECTORS` vectors of columns.
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
unsafe fn block<const HEIGHT: usize, const VECTORS: usize>(
    mut a: *const f32,
    mut b: *const f32,
    depth: usize,
    c: *mut f32,
    stride: usize,
    masks: [u16; 2],
    accumulate: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; HEIGHT];
    // SAFETY: the caller vouches for the pointers; the masks keep the result's edges.
    unsafe {
        for row in 0..HEIGHT {
            for col in 0..VECTORS {
                _mm_prefetch::<_MM_HINT_T0>(c.add(row * stride).wrapping_add(col * LANES).cast());
            }
        }
        for _ in 0..depth {
            let columns: [__m512; VECTORS] = std::array::from_fn(|col| _mm512_load_ps(b.add(col * LANES)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*a.add(row));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ps(left, column, *sum);
                }
            }
            a = a.add(ROWS);
            b = b.add(COLS);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (col, sum) in sums.iter().enumerate() {
                let c = c.add(row * stride).wrapping_add(col * LANES);
                let sum = if accumulate { _mm512_add_ps(_mm512_maskz_loadu_ps(masks[col], c), *sum) } else { *sum };
                _mm512_mask_storeu_ps(c, masks[col], sum);
            }
        }
    }
}

/// See [`Micro::turn`]: 16 × 16 values at a time. Whole vectors are written, the next place's over the last one's rest.
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
unsafe fn turn<const WIDTH: usize>(
    first: *const f32,
    stride: usize,
    alpha: f32,
    lanes: usize,
    depth: usize,
    out: &mut [f32],
) {
    let scale = _mm512_set1_ps(alpha);
    let end = out.len();
    let out = out.as_mut_ptr();
    for place in (0..depth).step_by(LANES) {
        let places = LANES.min(depth - place);
        let inside = mask(places);
        for group in (0..lanes).step_by(LANES) {
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (lane, row) in rows.iter_mut().enumerate().take(lanes - group) {
                // SAFETY: the row exists, and the mask keeps the load inside it.
                let values = unsafe {
                    let row = first.add((group + lane) * stride + place);
                    if WIDTH == ROWS {
                        // The rows below are the next to be packed.
                        _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(ROWS * stride).cast());
                    }
                    _mm512_maskz_loadu_ps(inside, row)
                };
                *row = _mm512_mul_ps(values, scale);
            }
            for (offset, column) in transposed(rows).into_iter().enumerate().take(places) {
                let at = (place + offset) * WIDTH + group;
                // SAFETY: what is within `out` is written.
                unsafe { _mm512_mask_storeu_ps(out.wrapping_add(at), mask(end - at), column) };
            }
        }
    }
}

/// See [`Micro::copy`].
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(unsafe_code)]
unsafe fn copy<const WIDTH: usize>(
    first: *const f32,
    stride: usize,
    alpha: f32,
    lanes: usize,
    depth: usize,
    out: &mut [f32],
) {
    let scale = _mm512_set1_ps(alpha);
    let out = out.as_mut_ptr();
    for place in 0..depth {
        for group in (0..lanes).step_by(LANES) {
            let inside = mask(lanes - group);
            // SAFETY: the mask keeps both inside the columns, for which there is room.
            unsafe {
                let values = _mm512_maskz_loadu_ps(inside, first.add(place * stride + group));
                _mm512_mask_storeu_ps(out.add(place * WIDTH + group), inside, _mm512_mul_ps(values, scale));
            }
        }
    }
}

/// The transpose of 16 × 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|k| _mm512_castps_pd(a[4 * i + k]));
        b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, third));
        b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, third));
        b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(second, fourth));
        b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(second, fourth));
    }
    let mut out = b;
    for i in 0..4 {
        let low = _mm512_shuffle_f32x4::<0x88>(b[i], b[4 + i]);
        let high = _mm512_shuffle_f32x4::<0xdd>(b[i], b[4 + i]);
        let low_end = _mm512_shuffle_f32x4::<0x88>(b[8 + i], b[12 + i]);
        let high_end = _mm512_shuffle_f32x4::<0xdd>(b[8 + i], b[12 + i]);
        out[i] = _mm512_shuffle_f32x4::<0x88>(low, low_end);
        out[4 + i] = _mm512_shuffle_f32x4::<0x88>(high, high_end);
        out[8 + i] = _mm512_shuffle_f32x4::<0xdd>(low, low_end);
        out[12 + i] = _mm512_shuffle_f32x4::<0xdd>(high, high_end);
    }
    out
}
