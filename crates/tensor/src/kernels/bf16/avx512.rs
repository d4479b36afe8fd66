//! Blocks of products by AVX-512's bf16 dot products (`vdpbf16ps`).

use std::arch::x86_64::*;

use super::operand::Lines;
use super::product::{Block, Strips};
use super::tile::{LANES, Tile};
use crate::instructions::Instructions;

/// Whether the processor has AVX-512 with bf16.
#[inline]
pub(super) fn is_supported() -> bool {
    Instructions::Avx512Bf16.are_allowed()
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512f")
}

/// The vector unit; exists only where the processor has it.
pub(super) struct VectorUnit(());

impl VectorUnit {
    pub(super) fn new() -> Self {
        assert!(is_supported(), "the processor has no AVX-512 with bf16");
        Self(())
    }
}

impl Block for VectorUnit {
    #[allow(unsafe_code)]
    unsafe fn block<const ROWS: usize, const COLS: usize>(
        &self,
        strips: &[Strips<ROWS, COLS>],
        c: *mut f32,
        stride: usize,
        accumulate: bool,
        ahead: Lines,
    ) {
        ahead.fetch(0);
        for (number, Strips { a, b, depth }) in strips.iter().copied().enumerate() {
            let accumulate = accumulate || number > 0;
            for (strip, a) in a.into_iter().enumerate() {
                for first in (0..LANES).step_by(GROUP) {
                    let c = c.wrapping_add((strip * LANES + first) * stride);
                    // SAFETY: `self` says that the processor has the instructions; the caller vouches for the pointers.
                    unsafe { rows(a, first, b, depth, c, stride, accumulate) };
                }
            }
        }
    }
}

/// Rows whose sums fit the registers together.
const GROUP: usize = 8;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn rows<const COLS: usize>(
    a: *const Tile,
    first: usize,
    b: [*const Tile; COLS],
    depth: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); COLS]; GROUP];
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        if accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (col, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(row * stride + col * LANES));
                }
            }
        }
        for tile in 0..depth {
            let a = a.add(tile).cast::<i32>().add(first * LANES);
            for pair in 0..LANES {
                let columns: [__m512bh; COLS] = std::array::from_fn(|col| {
                    std::mem::transmute(_mm512_load_si512(b[col].add(tile).cast::<__m512i>().add(pair)))
                });
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(row * LANES + pair)));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, left, column);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (col, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(row * stride + col * LANES), *sum);
            }
        }
    }
}
