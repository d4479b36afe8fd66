//! Adding a matrix that lies turned on its side.

#[cfg(target_arch = "x86_64")]
use super::bf16::{mask, transposed};

/// A matrix that lies feature by feature: `[width, rows]`, each feature's values `stride` apart from the next one's. There is
/// room for full squares of [`SIDE`].
#[derive(Clone, Copy)]
pub(crate) struct Turned<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// Rows and features that are turned together.
const SIDE: usize = 16;

/// `out[row][feature] += turned[feature][row]`, `out` being `[rows, width]`.
///
/// # Panics
/// If `turned` has no room for full squares.
pub(crate) fn add_turned(out: &mut [f32], width: usize, turned: Turned<'_>) {
    let rows = out.len() / width.max(1);
    if rows == 0 {
        return;
    }
    let Turned { data, stride } = turned;
    let (height, length) = (width.next_multiple_of(SIDE), rows.next_multiple_of(SIDE));
    assert!(length <= stride && (height - 1) * stride + length <= data.len(), "there is room for full squares");
    #[cfg(target_arch = "x86_64")]
    if super::bf16::has_vectors() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; full squares lie in the data.
        unsafe {
            add_squares(out, rows, width, turned);
        }
        return;
    }
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        let values = data[row..].iter().step_by(stride);
        out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn add_squares(out: &mut [f32], rows: usize, width: usize, turned: Turned<'_>) {
    use std::arch::x86_64::*;
    for first in (0..rows).step_by(SIDE) {
        for feature in (0..width).step_by(SIDE) {
            let mut square = [_mm512_setzero_si512(); SIDE];
            for (place, vector) in square.iter_mut().enumerate() {
                // SAFETY: the caller vouches for full squares.
                *vector = unsafe {
                    _mm512_loadu_si512(turned.data.as_ptr().add((feature + place) * turned.stride + first).cast())
                };
            }
            let square = transposed(square);
            let exists = mask(width - feature);
            for (place, vector) in square.into_iter().enumerate().take(rows - first) {
                // SAFETY: the row exists, and the mask keeps to its features.
                unsafe {
                    let target = out.as_mut_ptr().add((first + place) * width + feature);
                    let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(exists, target), _mm512_castsi512_ps(vector));
                    _mm512_mask_storeu_ps(target, exists, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;

    #[test]
    fn adds_what_lies_turned() {
        for (rows, width) in [(16usize, 16usize), (1, 1), (33, 20), (40, 64), (5, 17), (0, 3)] {
            let (height, stride) = (width.next_multiple_of(SIDE), rows.next_multiple_of(32));
            let (turned, before) = (random(height, stride, 0), random(rows, width, 1));
            let mut out = before.data().to_vec();
            add_turned(&mut out, width, Turned { data: turned.data(), stride });
            for (place, value) in out.iter().enumerate() {
                let (row, feature) = (place / width, place % width);
                assert_eq!(
                    *value,
                    before.data()[place] + turned.row(feature)[row],
                    "{rows} × {width}: {row}, {feature}"
                );
            }
        }
    }
}
