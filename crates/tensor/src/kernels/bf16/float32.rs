//! Blocks of products in float32, for processors without a bf16 unit.

use super::operand::Lines;
use super::product::{Block, Strips};
use super::tile::{DEPTH, LANES, Tile, from_bf16};
use crate::kernels::vectorised;

/// Plain float32 arithmetic, vectorised for the processor.
pub(super) struct FloatUnit;

impl Block for FloatUnit {
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
        let blocks = strips.iter().enumerate().flat_map(|(number, strips)| {
            let columns = strips.b.into_iter().enumerate();
            columns.map(move |(col, b)| (accumulate || number > 0, strips.a, strips.depth, col, b))
        });
        for (accumulate, a, depth, col, b) in blocks {
            for (strip, a) in a.into_iter().enumerate() {
                // SAFETY: the caller vouches for the strips.
                let (a, b) = unsafe { (std::slice::from_raw_parts(a, depth), std::slice::from_raw_parts(b, depth)) };
                let mut sums = [[0.0f32; LANES]; LANES];
                let row = |row: usize| c.wrapping_add((strip * LANES + row) * stride + col * LANES);
                if accumulate {
                    for (place, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: the caller vouches for the block.
                        unsafe { std::ptr::copy_nonoverlapping(row(place), sums.as_mut_ptr(), LANES) };
                    }
                }
                vectorised(
                    #[inline(always)]
                    || a.iter().zip(b).for_each(|(a, b)| tile(a, b, &mut sums)),
                );
                for (place, sums) in sums.iter().enumerate() {
                    // SAFETY: the caller vouches for the block.
                    unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), row(place), LANES) };
                }
            }
        }
    }
}

#[inline(always)]
fn tile(a: &Tile, b: &Tile, sums: &mut [[f32; LANES]; LANES]) {
    let mut right = [[0.0f32; LANES]; DEPTH];
    for (pair, words) in b.0.chunks_exact(2 * LANES).enumerate() {
        for lane in 0..LANES {
            right[2 * pair][lane] = from_bf16(words[2 * lane]);
            right[2 * pair + 1][lane] = from_bf16(words[2 * lane + 1]);
        }
    }
    for (sums, left) in sums.iter_mut().zip(a.0.chunks_exact(DEPTH)) {
        let mut row = *sums;
        for (left, right) in left.iter().zip(&right) {
            let left = from_bf16(*left);
            for lane in 0..LANES {
                row[lane] += left * right[lane];
            }
        }
        *sums = row;
    }
}
