//! Packing by AVX-512.

use std::arch::x86_64::*;

use super::pack::{Corner, Order};
use super::tile::{LANES, Tile};

/// The 16 vectors of a tile.
type Vectors = [__m512i; 16];

/// See [`super::pack::pack`]; one of the strides is 1.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn pack(corner: Corner<'_>, order: Order, tile: &mut Tile) {
    // SAFETY: the caller checked that the corner lies in its data.
    unsafe {
        if corner.depth_stride == 1 {
            let rows = by_rows(corner);
            store(if order == Order::Rows { rows } else { transposed(rows) }, tile);
        } else {
            let pairs = by_pairs(corner);
            store(if order == Order::Pairs { pairs } else { transposed(pairs) }, tile);
        }
    }
}

/// Lane by lane, where the inner dimension is contiguous.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn by_rows(corner: Corner<'_>) -> Vectors {
    let scale = _mm512_set1_ps(corner.scale);
    let low = mask(corner.depth);
    let high = mask(corner.depth.saturating_sub(LANES));
    let mut vectors = [_mm512_setzero_si512(); 16];
    for (lane, vector) in vectors.iter_mut().enumerate().take(corner.lanes) {
        // SAFETY: the masks keep the loads inside the corner.
        let (first, second) = unsafe {
            let row = corner.data.as_ptr().add(lane * corner.lane_stride);
            (_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row.wrapping_add(LANES)))
        };
        *vector = convert(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
    }
    vectors
}

/// Pair by pair of the inner dimension, where lanes are contiguous.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
unsafe fn by_pairs(corner: Corner<'_>) -> Vectors {
    let scale = _mm512_set1_ps(corner.scale);
    let lanes = mask(corner.lanes);
    let mut order = [0u16; 32];
    for (place, word) in order.iter_mut().enumerate() {
        *word = (place / 2 + place % 2 * LANES) as u16;
    }
    // SAFETY: 64 bytes of words.
    let interleave = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mut vectors = [_mm512_setzero_si512(); 16];
    for (pair, vector) in vectors.iter_mut().enumerate().take(corner.depth.div_ceil(2)) {
        let second = if 2 * pair + 1 < corner.depth { lanes } else { 0 };
        // SAFETY: the masks keep the loads inside the corner.
        let (first, second) = unsafe {
            let row = corner.data.as_ptr().add(2 * pair * corner.depth_stride);
            (_mm512_maskz_loadu_ps(lanes, row), _mm512_maskz_loadu_ps(second, row.wrapping_add(corner.depth_stride)))
        };
        let words = convert(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
        *vector = _mm512_permutexvar_epi16(interleave, words);
    }
    vectors
}

/// `first` and then `second` as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
fn convert(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn mask(lanes: usize) -> u16 {
    ((1u32 << lanes.min(LANES)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
fn store(vectors: Vectors, tile: &mut Tile) {
    for (place, vector) in vectors.into_iter().enumerate() {
        // SAFETY: a tile is 16 aligned vectors.
        unsafe { _mm512_store_si512(tile.0.as_mut_ptr().add(place * 32).cast(), vector) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
fn load(tile: &Tile) -> Vectors {
    // SAFETY: a tile is 16 aligned vectors.
    std::array::from_fn(|place| unsafe { _mm512_load_si512(tile.0.as_ptr().add(place * 32).cast()) })
}

/// The transpose of 16 × 16 32-bit values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn transposed(rows: Vectors) -> Vectors {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    let mut out = b;
    for i in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[i], b[4 + i]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[i], b[4 + i]);
        let low_end = _mm512_shuffle_i32x4::<0x88>(b[8 + i], b[12 + i]);
        let high_end = _mm512_shuffle_i32x4::<0xdd>(b[8 + i], b[12 + i]);
        out[i] = _mm512_shuffle_i32x4::<0x88>(low, low_end);
        out[4 + i] = _mm512_shuffle_i32x4::<0x88>(high, high_end);
        out[8 + i] = _mm512_shuffle_i32x4::<0xdd>(low, low_end);
        out[12 + i] = _mm512_shuffle_i32x4::<0xdd>(high, high_end);
    }
    out
}

/// See [`super::pack::transpose`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn transpose(first: &Tile, second: &Tile, out: &mut [Tile; 2]) {
    for (half, source) in [first, second].into_iter().enumerate() {
        // Rows of 16 lanes, 32 places of the inner dimension each; words of two rows at a time become pairs.
        let rows = transposed(load(source));
        for pair in 0..8 {
            let low = _mm512_unpacklo_epi16(rows[2 * pair], rows[2 * pair + 1]);
            let high = _mm512_unpackhi_epi16(rows[2 * pair], rows[2 * pair + 1]);
            let begin = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let end = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            let place = (half * 8 + pair) * 32;
            // SAFETY: a tile is 16 aligned vectors.
            unsafe {
                _mm512_store_si512(
                    out[0].0.as_mut_ptr().add(place).cast(),
                    _mm512_permutex2var_epi64(low, begin, high),
                );
                _mm512_store_si512(out[1].0.as_mut_ptr().add(place).cast(), _mm512_permutex2var_epi64(low, end, high));
            }
        }
    }
}
