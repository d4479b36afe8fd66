//! The steps of [`super::softmax`] by AVX-512: sums stay in registers, and pairs of vectors are rounded by one instruction.

use std::arch::x86_64::*;
use std::ops::Range;

use super::softmax::{Dropped, Rows, Running, Scores, Weighted};
use crate::kernels::bf16::{DEPTH, LANES, Tile, convert, interleaving, mask};
use crate::random::RowMask;

/// See [`super::softmax::accumulate`].
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn accumulate(scores: &Scores<'_>, running: Running<'_>, weights: &mut [Tile], depth: usize) {
    let head_dim = running.output.len() / running.max.len().max(1);
    let outputs = running.output.chunks_exact_mut(head_dim.max(1));
    let state = running.max.iter_mut().zip(running.sum.iter_mut()).zip(outputs);
    for (row, ((max, sum), output)) in state.enumerate() {
        let (values, visible) = (scores.row(row), &scores.visible[row]);
        let before = *max;
        *max = largest(values, visible).max(before);
        // A row that has seen nothing yet has nothing to scale; -∞ minus -∞ would be no number.
        let shift = if *max == f32::NEG_INFINITY { 0.0 } else { *max };
        let tiles = &mut weights[row / LANES * depth..][..depth];
        let dropped = Drops::of(scores, row);
        let weights = weigh_row(values, visible, shift, tiles, row % LANES, dropped);
        if *max == before || before == f32::NEG_INFINITY {
            *sum += weights;
            continue;
        }
        let factor = exp2(_mm512_set1_ps(before - shift));
        *sum = _mm512_cvtss_f32(factor).mul_add(*sum, weights);
        for values in output.chunks_mut(LANES) {
            let mask = lanes(&(0..values.len()), 0);
            // SAFETY: the mask keeps loads and stores inside the chunk.
            unsafe {
                let scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, values.as_ptr()), factor);
                _mm512_mask_storeu_ps(values.as_mut_ptr(), mask, scaled);
            }
        }
    }
}

/// The lanes of the 16 places from `first` on that lie in `range`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn lanes(range: &Range<usize>, first: usize) -> u16 {
    mask(range.end.saturating_sub(first)) & !mask(range.start.saturating_sub(first))
}

/// Values 16 by 16 of those in `visible`, others are not loaded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
fn load(values: &[f32], mask: u16, first: usize) -> __m512 {
    // SAFETY: the mask keeps the load inside the values, as callers ask for lanes of ranges inside them.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(first)) }
}

/// The largest of what is visible; -∞ if nothing is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn largest(values: &[f32], visible: &Range<usize>) -> f32 {
    assert!(visible.end <= values.len(), "what is visible exists");
    let mut largest = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    let firsts = (visible.start / LANES * LANES..visible.end).step_by(LANES);
    for (place, first) in firsts.enumerate() {
        let mask = lanes(visible, first);
        let so_far = &mut largest[place % 4];
        *so_far = _mm512_mask_max_ps(*so_far, mask, load(values, mask, first), *so_far);
    }
    let [a, b, c, d] = largest;
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)))
}

/// What of a row dropout takes.
#[derive(Clone, Copy)]
struct Drops {
    mask: RowMask,
    first: u32,
    scale: f32,
}

impl Drops {
    fn of(scores: &Scores<'_>, row: usize) -> Option<Self> {
        let Dropped { rows, first, scale } = scores.dropped?;
        Some(Self { mask: rows[row], first, scale })
    }

    /// Of the 16 columns from `column` on those that are dropped.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn lanes(self, column: usize) -> u16 {
        self.mask.dropped_lanes(self.first.wrapping_add(column as u32))
    }
}

/// Writes a row's weights to lane `lane` of row tiles, zeros where it doesn't see or they are dropped; gives the sum of all that
/// it sees.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
fn weigh_row(
    values: &[f32],
    visible: &Range<usize>,
    shift: f32,
    tiles: &mut [Tile],
    lane: usize,
    dropped: Option<Drops>,
) -> f32 {
    assert!(visible.end <= values.len(), "what is visible exists");
    let shift = _mm512_set1_ps(shift);
    let mut sums = [_mm512_setzero_ps(); 2];
    for (place, tile) in tiles.iter_mut().enumerate() {
        let first = place * DEPTH;
        let mut halves = [_mm512_setzero_ps(); 2];
        if first < visible.end && first + DEPTH > visible.start {
            for (half, weights) in halves.iter_mut().enumerate() {
                let first = first + half * LANES;
                let mask = lanes(visible, first);
                let all = _mm512_maskz_mov_ps(mask, exp2(_mm512_sub_ps(load(values, mask, first), shift)));
                sums[half] = _mm512_add_ps(sums[half], all);
                *weights = match dropped {
                    Some(dropped) => _mm512_maskz_mov_ps(!dropped.lanes(first), all),
                    None => all,
                };
            }
        }
        let row = &mut tile.0[lane * DEPTH..(lane + 1) * DEPTH];
        // SAFETY: a row of a tile is 64 bytes.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), convert(halves[0], halves[1])) };
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// [`crate::kernels::exp2_rough`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn exp2(x: __m512) -> __m512 {
    // The maximum of no number and another is the second.
    let x = _mm512_max_ps(_mm512_set1_ps(-100.0), x);
    let whole = _mm512_roundscale_ps::<8>(x);
    let f = _mm512_sub_ps(x, whole);
    let mut series = _mm512_set1_ps(9.560_51e-3);
    for coefficient in [5.591_704e-2, 2.402_498e-1, 6.931_22e-1, 0.999_999_2] {
        series = _mm512_fmadd_ps(series, f, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(series, whole)
}

/// See [`super::softmax::differentiate`].
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn differentiate(scores: &Scores<'_>, dp: &[f32], rows: &Rows<'_>, keys: usize, out: Weighted<'_>) {
    let count = rows.lse.len();
    let (strips, depth, key_tiles) = (keys.div_ceil(LANES), count / DEPTH, keys.div_ceil(DEPTH));
    let dp = Scores { data: dp, ..*scores };
    let interleaving = interleaving();
    for pair in 0..count / 2 {
        let both = [2 * pair, 2 * pair + 1];
        let [upper, _] = both;
        let row_tiles = &mut out.gradient_rows[upper / LANES * key_tiles..][..key_tiles];
        let (tile, place) = (upper / DEPTH, upper % DEPTH / 2 * LANES);
        let visible = both.map(|row| &scores.visible[row]);
        let (values, dps) = (both.map(|row| scores.row(row)), both.map(|row| dp.row(row)));
        assert!(visible.iter().all(|visible| visible.end <= values[0].len()), "what is visible exists");
        let dropped = both.map(|row| Drops::of(scores, row));
        let [lse, delta] = [rows.lse, rows.delta].map(|values| both.map(|row| _mm512_set1_ps(values[row])));
        for strip in 0..2 * key_tiles {
            let first = strip * LANES;
            let (mut weights, mut gradients) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
            for side in 0..2 {
                let mask = lanes(visible[side], first);
                if mask != 0 {
                    let exponents = _mm512_sub_ps(load(values[side], mask, first), lse[side]);
                    let all = _mm512_maskz_mov_ps(mask, exp2(exponents));
                    let mut dp = load(dps[side], mask, first);
                    weights[side] = all;
                    if let Some(dropped) = dropped[side] {
                        let (kept, scale) = (!dropped.lanes(first), _mm512_set1_ps(dropped.scale));
                        weights[side] = _mm512_maskz_mul_ps(kept, all, scale);
                        dp = _mm512_maskz_mul_ps(kept, dp, scale);
                    }
                    gradients[side] = _mm512_mul_ps(all, _mm512_sub_ps(dp, delta[side]));
                }
            }
            let gradients = convert(gradients[0], gradients[1]);
            let row_tile = &mut row_tiles[strip / 2].0;
            let halves = [_mm512_castsi512_si256(gradients), _mm512_extracti64x4_epi64::<1>(gradients)];
            for (row, half) in both.into_iter().zip(halves) {
                let start = row % LANES * DEPTH + strip % 2 * LANES;
                let line = &mut row_tile[start..start + LANES];
                // SAFETY: sixteen values are 32 bytes.
                unsafe { _mm256_storeu_si256(line.as_mut_ptr().cast(), half) };
            }
            if strip < strips {
                let words = convert(weights[0], weights[1]);
                for (tiles, words) in [(&mut *out.weights, words), (&mut *out.gradients, gradients)] {
                    let line = &mut tiles[strip * depth + tile].words_mut()[place..place + LANES];
                    // SAFETY: sixteen words are 64 bytes.
                    unsafe {
                        _mm512_storeu_si512(line.as_mut_ptr().cast(), _mm512_permutexvar_epi16(interleaving, words));
                    }
                }
            }
        }
    }
}
