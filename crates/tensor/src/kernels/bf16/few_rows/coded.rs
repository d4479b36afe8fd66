//! Strips of codes: unpacked tile by tile to a few tiles that stay in the first-level cache, while the tile unit multiplies
//! those before.

use std::arch::x86_64::*;

use super::super::amx::Square;
use super::super::avx512_pack::{mask, transposed};
use super::super::coded::CodedStrip;
use super::super::coded_rows::CodedRows;
use super::super::product::Output;
use super::super::tile::{LANES, Tile};
use super::unit::Groups;
use crate::kernels::prefetch_beyond;

/// Computes the strip number `number` of the result from `rows`, strips of `depth` tiles in pairs order.
pub(super) fn strip(
    groups: &Groups,
    rows: &[Tile],
    codes: CodedStrip<'_>,
    number: usize,
    depth: usize,
    output: &Output,
) {
    /// Tiles in turn, so that none is written before it has been read.
    const TURNS: usize = 4;
    let mut codes = CodedRows::new(codes);
    let mut tiles = [Tile::ZERO; TURNS];
    groups.clear();
    for place in 0..depth {
        fetch_ahead(codes.bytes(), place, depth);
        let tile = &mut tiles[place % TURNS];
        codes.next(tile);
        groups.add_right(tile, &rows[place..], depth);
    }
    let (out, cols) = output.strip(number);
    let mut square = Square::ZERO;
    #[allow(unsafe_code)]
    // SAFETY: the strip's values lie in the output, where no other thread writes; a result fits a square; where there are
    // codes the processor has the instructions.
    unsafe {
        if output.rows == 1 {
            groups.store(0, square.0.as_mut_ptr(), 1);
            std::ptr::copy_nonoverlapping(square.0.as_ptr(), out, cols);
            return;
        }
        for group in 0..groups.count() {
            groups.store(group, square.0.as_mut_ptr(), LANES);
            turn(&square, groups.rows_of(group), cols, out.add(group * LANES * output.stride), output.stride);
        }
    }
}

/// Fetches of the strip after this one, which is as long and need not exist, what lies where tile `place` of `count` lies in
/// this one, and somewhat further.
#[inline(always)]
fn fetch_ahead(bytes: &[u8], place: usize, count: usize) {
    const FURTHER: usize = 1024;
    let part = bytes.len() * place / count..bytes.len() * (place + 1) / count;
    prefetch_beyond(&bytes[part], bytes.len() + FURTHER);
}

/// Writes the first `rows` columns of `square` as rows of `cols` values, `stride` apart, to `out`.
///
/// # Safety
/// The processor has the instructions; the values lie in memory that nobody else uses.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn turn(square: &Square, rows: usize, cols: usize, out: *mut f32, stride: usize) {
    let mut vectors = [_mm512_setzero_si512(); LANES];
    for (row, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: 16 floats of the square.
        *vector = unsafe { _mm512_load_si512(square.0.as_ptr().add(row * LANES).cast()) };
    }
    for (row, vector) in transposed(vectors).into_iter().enumerate().take(rows) {
        // SAFETY: the caller vouches for the memory.
        unsafe { _mm512_mask_storeu_epi32(out.add(row * stride).cast(), mask(cols), vector) };
    }
}
