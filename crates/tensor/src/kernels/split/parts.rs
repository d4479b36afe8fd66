//! float32 values as sums of three bf16 numbers.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::View;
use crate::kernels::bf16::{DEPTH, LANES, Order, Tile, Vectors, convert, mask, store, transposed};

/// Values as sums of three tiles: the values rounded to bf16, what that leaves rounded, and what that leaves rounded. Each
/// part has 8 bits and a sign, so together they have the 24 bits of a float32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Parts([Tile; 3]);

impl Parts {
    pub(super) const ZERO: Self = Self([Tile::ZERO; 3]);
}

/// The instructions; exists only where the processor has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splitter(());

impl Splitter {
    pub(super) fn detect() -> Option<Self> {
        let has_instructions = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bf16");
        has_instructions.then_some(Self(()))
    }

    /// Splits `scale ·` rows `lanes` of `matrix` `[lanes, depth]`, at most 16, from place `start` of the inner dimension
    /// on; the tiles lie in `order`, and those beyond the matrix are zero. Returns how many parts, from the first on, are
    /// not all zero.
    ///
    /// # Panics
    /// If neither dimension of the matrix is contiguous.
    pub(super) fn split(
        self,
        matrix: View<'_>,
        lanes: Range<usize>,
        start: usize,
        scale: f32,
        order: Order,
        out: &mut [Parts],
    ) -> usize {
        assert!(matrix.row_stride == 1 || matrix.col_stride == 1, "values to split lie next to each other");
        assert!(lanes.len() <= LANES && lanes.end <= matrix.rows, "lanes are rows of their matrix");
        let mut most = 0;
        for (place, parts) in out.iter_mut().enumerate() {
            let first = start + place * DEPTH;
            let depth = matrix.cols.saturating_sub(first).min(DEPTH);
            if depth == 0 || lanes.is_empty() {
                *parts = Parts::ZERO;
                continue;
            }
            let data = &matrix.data[lanes.start * matrix.row_stride + first * matrix.col_stride..];
            let extent = (lanes.len() - 1) * matrix.row_stride + (depth - 1) * matrix.col_stride;
            assert!(extent < data.len(), "the lanes lie in their matrix");
            #[allow(unsafe_code)]
            // SAFETY: `self` says that the processor has the instructions; the values lie in the data.
            let count = unsafe {
                if matrix.col_stride == 1 {
                    along_depth(data.as_ptr(), matrix.row_stride, lanes.len(), depth, scale, order, parts)
                } else {
                    along_lanes(data.as_ptr(), matrix.col_stride, lanes.len(), depth, scale, order, parts)
                }
            };
            most = most.max(count);
        }
        most
    }
}

/// A matrix whose inner dimension is contiguous: lane by lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn along_depth(
    data: *const f32,
    stride: usize,
    lanes: usize,
    depth: usize,
    scale: f32,
    order: Order,
    out: &mut Parts,
) -> usize {
    let masks = [mask(depth), mask(depth.saturating_sub(LANES))];
    let mut lines = Lines::new(scale);
    for lane in 0..lanes {
        // SAFETY: the masks keep the loads inside the caller's data.
        let values = unsafe {
            let row = data.add(lane * stride);
            [_mm512_maskz_loadu_ps(masks[0], row), _mm512_maskz_loadu_ps(masks[1], row.wrapping_add(LANES))]
        };
        let parts = lines.split(values);
        lines.put(lane, parts);
    }
    lines.store(order != Order::Rows, out)
}

/// A matrix whose lanes are contiguous: two places of the inner dimension at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn along_lanes(
    data: *const f32,
    stride: usize,
    lanes: usize,
    depth: usize,
    scale: f32,
    order: Order,
    out: &mut Parts,
) -> usize {
    let lanes = mask(lanes);
    let places: [u16; 32] = std::array::from_fn(|place| (place / 2 + place % 2 * LANES) as u16);
    // SAFETY: 64 bytes of words.
    let interleave = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    let mut lines = Lines::new(scale);
    for pair in 0..depth.div_ceil(2) {
        let second = if 2 * pair + 1 < depth { lanes } else { 0 };
        // SAFETY: the masks keep the loads inside the caller's data.
        let values = unsafe {
            let row = data.add(2 * pair * stride);
            [_mm512_maskz_loadu_ps(lanes, row), _mm512_maskz_loadu_ps(second, row.wrapping_add(stride))]
        };
        let parts = lines.split(values);
        lines.put(pair, parts.map(|part| _mm512_permutexvar_epi16(interleave, part)));
    }
    lines.store(order != Order::Pairs, out)
}

/// The three tiles while they are filled line by line.
struct Lines {
    scale: __m512,
    tiles: [Vectors; 3],
    /// The bits that any value has in the second part, and in the third.
    leftover: [__m512i; 2],
}

impl Lines {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn new(scale: f32) -> Self {
        let zero = _mm512_setzero_si512();
        Self { scale: _mm512_set1_ps(scale), tiles: [[zero; LANES]; 3], leftover: [zero; 2] }
    }

    /// The parts of `scale · values`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn split(&mut self, values: [__m512; 2]) -> [__m512i; 3] {
        let parts = three_parts([_mm512_mul_ps(values[0], self.scale), _mm512_mul_ps(values[1], self.scale)]);
        self.leftover = [_mm512_or_si512(self.leftover[0], parts[1]), _mm512_or_si512(self.leftover[1], parts[2])];
        parts
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn put(&mut self, line: usize, parts: [__m512i; 3]) {
        for (tile, part) in self.tiles.iter_mut().zip(parts) {
            tile[line] = part;
        }
    }

    /// Writes the tiles, `turned` into the other order, and returns how many, from the first on, are not all zero; a
    /// negative zero counts.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn store(self, turned: bool, out: &mut Parts) -> usize {
        for (tile, lines) in out.0.iter_mut().zip(self.tiles) {
            store(if turned { transposed(lines) } else { lines }, tile);
        }
        let [second, third] = self.leftover;
        if _mm512_test_epi32_mask(third, third) != 0 {
            3
        } else if _mm512_test_epi32_mask(second, second) != 0 {
            2
        } else {
            1
        }
    }
}

/// The three parts of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn three_parts(values: [__m512; 2]) -> [__m512i; 3] {
    let first = convert(values[0], values[1]);
    let left = left_over(values, first);
    let second = convert(left[0], left[1]);
    let left = left_over(left, second);
    [first, second, convert(left[0], left[1])]
}

/// `values` without what `part` has of them; exact.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn left_over(values: [__m512; 2], part: __m512i) -> [__m512; 2] {
    let halves = [_mm512_castsi512_si256(part), _mm512_extracti64x4_epi64::<1>(part)];
    let wide = halves.map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))));
    [_mm512_sub_ps(values[0], wide[0]), _mm512_sub_ps(values[1], wide[1])]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Matrix;
    use crate::kernels::bf16::{from_bf16, index};
    use crate::ops::finite_differences::random;

    #[test]
    fn parts_sum_to_the_values_however_they_lie() {
        let Some(splitter) = Splitter::detect() else { return };
        let matrix = random(40, 70, 0);
        for turned in [false, true] {
            let view = if turned { View::of(&matrix).transposed() } else { View::of(&matrix) };
            for (order, lanes, start) in [(Order::Rows, 0..16, 0), (Order::Pairs, 3..19, 32), (Order::Rows, 35..40, 0)]
            {
                let mut parts = [Parts::ZERO; 3];
                assert_eq!(splitter.split(view, lanes.clone(), start, 0.5, order, &mut parts), 3);
                for lane in 0..LANES {
                    for place in 0..3 * DEPTH {
                        let tiles = &parts[place / DEPTH].0;
                        let sum: f32 =
                            tiles.iter().rev().map(|tile| from_bf16(tile.0[index(order, lane, place % DEPTH)])).sum();
                        let (row, col) = (lanes.start + lane, start + place);
                        let inside = lane < lanes.len() && col < view.cols;
                        let expected =
                            if inside { 0.5 * view.data[row * view.row_stride + col * view.col_stride] } else { 0.0 };
                        assert_eq!(sum, expected, "row {row}, column {col}, {order:?}, turned {turned}");
                    }
                }
            }
        }
    }

    #[test]
    fn coarse_values_have_fewer_parts() {
        let Some(splitter) = Splitter::detect() else { return };
        let small = [0.5, 1.0 / 1024.0, 1.0 / 1024.0 + 1.0 / 2_097_152.0];
        for (value, expected) in small.map(|small| 1.0 + small).into_iter().zip(1..) {
            let mut values = vec![1.0; 16 * 32];
            values[77] = value;
            let matrix = Matrix::from_vec(16, 32, values);
            let found = splitter.split(View::of(&matrix), 0..16, 0, 1.0, Order::Rows, &mut [Parts::ZERO]);
            assert_eq!(found, expected, "{value}");
        }
    }
}
