//! Packing by AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::{Corner, Order};
use super::tile::{DEPTH, LANES, Tile};

/// The 16 vectors of a tile.
pub(crate) type Vectors = [__m512i; 16];

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

/// See [`super::pack::pack_strip`]: `lanes` rows of floats, `stride` apart from `first` on, of which `depth` become tiles
/// in rows order. Row by row, because that is how memory is read ahead. Where they are to be written past the caches, other
/// threads see them after a fence.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn rows<const PAST_CACHES: bool>(
    first: *const f32,
    lanes: usize,
    stride: usize,
    depth: Range<usize>,
    scale: f32,
    tiles: &mut [Tile],
) {
    let scale = _mm512_set1_ps(scale);
    let whole = depth.len() / DEPTH;
    for lane in 0..LANES {
        let line = lane * DEPTH;
        if lane >= lanes {
            for tile in &mut *tiles {
                // SAFETY: a tile is 16 aligned vectors.
                unsafe { _mm512_store_si512(tile.0.as_mut_ptr().add(line).cast(), _mm512_setzero_si512()) };
            }
            continue;
        }
        let row = first.wrapping_add(lane * stride + depth.start);
        for (place, tile) in tiles.iter_mut().enumerate() {
            let row = row.wrapping_add(place * DEPTH);
            let left = depth.len() - place * DEPTH;
            // SAFETY: whole tiles lie within `depth`, and the masks keep the last one's loads inside it.
            unsafe {
                let (low, high) = if place < whole {
                    (_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(LANES)))
                } else {
                    (
                        _mm512_maskz_loadu_ps(mask(left), row),
                        _mm512_maskz_loadu_ps(mask(left.saturating_sub(LANES)), row.wrapping_add(LANES)),
                    )
                };
                let values = convert(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
                let out = tile.0.as_mut_ptr().add(line).cast();
                if PAST_CACHES { _mm512_stream_si512(out, values) } else { _mm512_store_si512(out, values) }
            }
        }
    }
}

/// See [`super::pack::unpack`]; every row of `out` has room.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn unpack(tile: &Tile, out: *mut f32, stride: usize) {
    for lane in 0..LANES {
        // SAFETY: a tile is 16 aligned vectors; the caller vouches for the output.
        unsafe {
            let values = _mm512_load_si512(tile.0.as_ptr().add(lane * DEPTH).cast());
            let halves = [_mm512_castsi512_si256(values), _mm512_extracti64x4_epi64::<1>(values)];
            for (half, values) in halves.into_iter().enumerate() {
                let values = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values));
                _mm512_storeu_ps(out.add(lane * stride + half * LANES), _mm512_castsi512_ps(values));
            }
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
    for (lane, vector) in vectors.iter_mut().enumerate() {
        if lane >= corner.lanes {
            break;
        }
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
    let mut vectors = [_mm512_setzero_si512(); 16];
    for (pair, vector) in vectors.iter_mut().enumerate() {
        if 2 * pair >= corner.depth {
            break;
        }
        let second = if 2 * pair + 1 < corner.depth { lanes } else { 0 };
        // SAFETY: the masks keep the loads inside the corner.
        let (first, second) = unsafe {
            let row = corner.data.as_ptr().add(2 * pair * corner.depth_stride);
            (_mm512_maskz_loadu_ps(lanes, row), _mm512_maskz_loadu_ps(second, row.wrapping_add(corner.depth_stride)))
        };
        let words = convert(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
        *vector = _mm512_permutexvar_epi16(interleaving(), words);
    }
    vectors
}

/// The order that puts the words of a vector's two halves side by side, for a permutation.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) fn interleaving() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut place = 0;
        while place < order.len() {
            order[place] = (place / 2 + place % 2 * LANES) as u16;
            place += 1;
        }
        order
    };
    // SAFETY: 64 bytes of words.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// `first` and then `second` as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) fn convert(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second, first)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) fn mask(lanes: usize) -> u16 {
    ((1u32 << lanes.min(LANES)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) fn store(vectors: Vectors, tile: &mut Tile) {
    for (place, vector) in vectors.into_iter().enumerate() {
        // SAFETY: a tile is 16 aligned vectors.
        unsafe { _mm512_store_si512(tile.0.as_mut_ptr().add(place * 32).cast(), vector) };
    }
}

/// The transpose of 16 × 16 32-bit values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) fn transposed(rows: Vectors) -> Vectors {
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

/// See [`super::pack::turn`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn turn(first: &Tile, second: &Tile, half: usize, order: Order, tile: &mut Tile) {
    let interleaving = interleaving();
    let mut pairs = [_mm512_setzero_si512(); 16];
    for (pair, vector) in pairs.iter_mut().enumerate() {
        let source = if pair < LANES / 2 { first } else { second };
        let place = 2 * pair % LANES;
        // SAFETY: a row of a tile is two halves of 32 bytes.
        let row = |place: usize| unsafe { _mm256_load_si256(source.0.as_ptr().add(place * DEPTH + half).cast()) };
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(row(place)), row(place + 1));
        *vector = _mm512_permutexvar_epi16(interleaving, both);
    }
    store(if order == Order::Pairs { pairs } else { transposed(pairs) }, tile);
}

/// See [`super::pack::transpose`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn transpose(first: &Tile, second: &Tile, out: [&mut Tile; 2]) {
    // Exchanges the middle words of four: two lanes' pairs of the inner dimension become two pairs of lanes.
    let words = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (half, out) in out.into_iter().enumerate() {
        for (quarter, source) in [(0, first), (1, second)] {
            // 8 × 8 of those: lanes' pairs 0–3 and 4–7 by eight pairs of the inner dimension.
            for side in 0..2 {
                // SAFETY: a tile is 16 vectors, each of two halves.
                let load = |low: usize, high: usize| unsafe {
                    let at = |row: usize| source.0.as_ptr().add((half * 8 + row) * 32 + side * 16).cast();
                    let both = _mm512_castsi256_si512(_mm256_load_si256(at(low)));
                    _mm512_shuffle_epi8(_mm512_inserti64x4::<1>(both, _mm256_load_si256(at(high))), words)
                };
                let (a, b, c, d) = (load(0, 2), load(1, 3), load(4, 6), load(5, 7));
                let (low, low_end) = (_mm512_unpacklo_epi64(a, b), _mm512_unpacklo_epi64(c, d));
                let (high, high_end) = (_mm512_unpackhi_epi64(a, b), _mm512_unpackhi_epi64(c, d));
                let rows = [
                    _mm512_shuffle_i64x2::<0x88>(low, low_end),
                    _mm512_shuffle_i64x2::<0x88>(high, high_end),
                    _mm512_shuffle_i64x2::<0xdd>(low, low_end),
                    _mm512_shuffle_i64x2::<0xdd>(high, high_end),
                ];
                for (row, vector) in rows.into_iter().enumerate() {
                    // SAFETY: a tile is 16 aligned vectors.
                    unsafe {
                        let place = out.0.as_mut_ptr().add((quarter * 8 + side * 4 + row) * 32);
                        _mm512_store_si512(place.cast(), vector);
                    }
                }
            }
        }
    }
}
