//! Tiles straight from codes of a few bits, without floats in memory in between.

use std::ops::Range;

use super::tile::{DEPTH, LANES, Tile};
use crate::quantized::Absmax;

/// How the 32 codes that a lane has in a tile lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeLayout {
    /// 16 bytes: the low halves are the first 16 codes, the high halves the others (GGUF).
    Halves,
    /// 16 bytes: a byte is two codes that follow each other, the earlier in the high half (bitsandbytes).
    Pairs,
    /// 32 signed bytes, each standing for itself (GGUF).
    Bytes,
}

/// What codes are scaled by.
#[derive(Clone, Copy)]
pub(crate) enum Scales<'a> {
    /// A half-precision number before the codes.
    Head,
    /// The same, and another after it, which is added.
    HeadAndOffset,
    /// One for every `block_size` values of the matrix in row-major order, whose strip begins with value `first`.
    Absmax { absmax: &'a Absmax, block_size: usize, first: usize },
}

/// A strip of up to 16 rows of a weight as codes: a value is `map[code]·scale + offset`, rounded to float32 once.
pub(crate) struct CodedStrip<'a> {
    pub(crate) layout: CodeLayout,
    /// What codes of four bits stand for.
    pub(crate) map: &'a [f32; 16],
    pub(crate) scales: Scales<'a>,
    /// The rows, one after the other.
    pub(crate) bytes: &'a [u8],
    pub(crate) rows: usize,
    /// Values of a row, a multiple of 32.
    pub(crate) cols: usize,
}

/// What codes of four bits stand for that are numbers.
pub(crate) const NUMBERS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

impl CodedStrip<'_> {
    /// Whether all that tile `place` is scaled by is what the tile before it is scaled by.
    pub(super) fn shares_scales(&self, place: usize) -> bool {
        let Scales::Absmax { block_size, first, .. } = self.scales else { return false };
        let begins = |value: usize| value.is_multiple_of(block_size);
        begins(first) && begins(self.cols) && !begins(place * DEPTH)
    }

    /// Bytes before a tile's codes, and with them.
    pub(super) fn block(&self) -> (usize, usize) {
        let head = match self.scales {
            Scales::Head => 2,
            Scales::HeadAndOffset => 4,
            Scales::Absmax { .. } => 0,
        };
        let codes = if self.layout == CodeLayout::Bytes { 32 } else { 16 };
        (head, head + codes)
    }
}

/// Whether [`unpack`] is there: this processor does it faster than by way of floats.
pub(crate) fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::avx512::is_supported();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Fills `tiles`, in pairs order, with the columns `depth · 32` of a strip; lanes past its last row are zeros.
///
/// # Panics
/// Where [`is_supported`] says no, or the strip's bytes aren't its rows'.
pub(crate) fn unpack(strip: &CodedStrip<'_>, depth: Range<usize>, tiles: &mut [Tile]) {
    assert!(is_supported(), "the processor has no fast way from codes to tiles");
    assert!(
        (1..=LANES).contains(&strip.rows) && depth.end * DEPTH <= strip.cols,
        "a strip has rows and so many columns"
    );
    assert!(depth.len() == tiles.len(), "there is a tile for each place");
    let row = strip.cols / DEPTH * strip.block().1;
    assert!(
        strip.bytes.len() == strip.rows * row && i32::try_from(LANES * row).is_ok(),
        "a strip's bytes are its rows"
    );
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: the processor has the instructions; all rows have their bytes.
    unsafe {
        match strip.layout {
            CodeLayout::Halves => avx512::unpack::<avx512::Halves>(strip, depth, tiles),
            CodeLayout::Pairs => avx512::unpack::<avx512::Pairs>(strip, depth, tiles),
            CodeLayout::Bytes => avx512::unpack::<avx512::Bytes>(strip, depth, tiles),
        }
    }
}

/// The same in rows order.
///
/// # Panics
/// As [`unpack`] does.
pub(crate) fn unpack_rows(strip: CodedStrip<'_>, depth: Range<usize>, tiles: &mut [Tile]) {
    assert!(depth.len() == tiles.len(), "there is a tile for each place");
    #[cfg(target_arch = "x86_64")]
    {
        let mut rows = super::coded_rows::CodedRows::starting_at(strip, depth.start);
        tiles.iter_mut().for_each(|tile| rows.next(tile));
    }
    #[cfg(not(target_arch = "x86_64"))]
    panic!("the processor has no fast way from codes to tiles: {} rows", strip.rows);
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::avx512_pack::{convert, interleaving, mask, store};
    use super::{CodedStrip, Scales};
    use crate::kernels::bf16::tile::{DEPTH, LANES, Tile};
    use crate::kernels::prefetch_beyond;

    /// Where the codes of a tile lie: four bytes of each of 16 lanes are a *word*.
    pub(super) trait Layout {
        const WORDS: usize;
        /// Of a pair of the inner dimension the word and how far it is shifted for each of the two codes.
        fn places(pair: usize) -> (usize, [u32; 2]);
        /// Whether codes are signed bytes in place of four bits.
        const SIGNED: bool = false;
    }

    /// Where each lane's row begins in the strip's bytes, as numbers for pointers and for gathers; lanes that don't exist have
    /// the last row's.
    pub(in super::super) fn starts(strip: &CodedStrip<'_>) -> ([usize; LANES], [i32; LANES]) {
        let row = strip.cols / DEPTH * strip.block().1;
        let rows = std::array::from_fn(|lane| lane.min(strip.rows - 1) * row);
        (rows, rows.map(|start| start as i32))
    }

    /// What the codes of tile `place` are scaled by, and what is added, lane by lane: zeros at lanes that don't exist.
    ///
    /// # Safety
    /// The processor has the instructions; rows begin at `places` and have a block number `place`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")]
    #[allow(unsafe_code)]
    pub(in super::super) unsafe fn heads(
        strip: &CodedStrip<'_>,
        places: &[i32; LANES],
        place: usize,
    ) -> (__m512, __m512) {
        let exists = mask(strip.rows);
        let nothing = _mm512_maskz_mov_ps(exists, _mm512_set1_ps(-0.0));
        match strip.scales {
            Scales::Absmax { absmax, block_size, first } => {
                let mut scales = [0.0; LANES];
                absmax.of_values(first + place * DEPTH, strip.cols, block_size, &mut scales[..strip.rows]);
                // SAFETY: 16 floats.
                (unsafe { _mm512_loadu_ps(scales.as_ptr()) }, nothing)
            }
            Scales::Head | Scales::HeadAndOffset => {
                let start = strip.bytes.as_ptr().wrapping_add(place * strip.block().1);
                // SAFETY: 16 numbers; every row has a block there, of more than four bytes.
                let heads = unsafe {
                    let places = _mm512_loadu_si512(places.as_ptr().cast());
                    _mm512_i32gather_epi32::<1>(places, start.cast())
                };
                let scales = _mm512_maskz_cvtph_ps(exists, _mm512_cvtepi32_epi16(heads));
                let offsets = _mm512_maskz_cvtph_ps(exists, _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(heads)));
                (scales, if matches!(strip.scales, Scales::HeadAndOffset) { offsets } else { nothing })
            }
        }
    }

    pub(super) struct Halves;
    impl Layout for Halves {
        const WORDS: usize = 4;
        #[inline(always)]
        fn places(pair: usize) -> (usize, [u32; 2]) {
            let shift = (16 * (pair % 2) + 4 * (pair / 8)) as u32;
            (pair % 8 / 2, [shift, shift + 8])
        }
    }

    pub(super) struct Pairs;
    impl Layout for Pairs {
        const WORDS: usize = 4;
        #[inline(always)]
        fn places(pair: usize) -> (usize, [u32; 2]) {
            let shift = (8 * (pair % 4)) as u32;
            (pair / 4, [shift + 4, shift])
        }
    }

    pub(super) struct Bytes;
    impl Layout for Bytes {
        const WORDS: usize = 8;
        const SIGNED: bool = true;
        #[inline(always)]
        fn places(pair: usize) -> (usize, [u32; 2]) {
            let shift = (16 * (pair % 2)) as u32;
            (pair / 2, [shift, shift + 8])
        }
    }

    /// Closures that are handed to functions without these instructions would not be inlined, so there are none.
    ///
    /// # Safety
    /// The processor has the instructions; the strip has rows, and their bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn unpack<L: Layout>(strip: &CodedStrip<'_>, depth: Range<usize>, tiles: &mut [Tile]) {
        let (head, block) = strip.block();
        let (rows, places) = starts(strip);
        // SAFETY: 16 numbers.
        let map = unsafe { _mm512_loadu_ps(strip.map.as_ptr()) };
        let interleaving = interleaving();
        // SAFETY: the caller vouches for the processor and the rows.
        let scales_of = |place: usize| unsafe { heads(strip, &places, place) };
        let (mut scales, mut offsets) = scales_of(depth.start);
        for (place, tile) in depth.clone().zip(tiles) {
            fetch_ahead(strip.bytes, place, strip.cols / DEPTH);
            let start = strip.bytes.as_ptr().wrapping_add(place * block);
            if place > depth.start && !strip.shares_scales(place) {
                (scales, offsets) = scales_of(place);
            }
            // SAFETY: every row has its codes there.
            let low = unsafe { turned(&rows, start.wrapping_add(head)) };
            let mut words = [low, low];
            if L::WORDS > 4 {
                // SAFETY: the same.
                words[1] = unsafe { turned(&rows, start.wrapping_add(head + 16)) };
            }
            let words: &[__m512i] = words.as_flattened();
            let value = |word: __m512i, shift: u32| {
                let values = if L::SIGNED {
                    let top = _mm512_sllv_epi32(word, _mm512_set1_epi32(24 - shift as i32));
                    _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
                } else {
                    // Only the lowest four bits of each are looked at.
                    _mm512_permutexvar_ps(_mm512_srlv_epi32(word, _mm512_set1_epi32(shift as i32)), map)
                };
                _mm512_fmadd_ps(values, scales, offsets)
            };
            macro_rules! pairs {
                ($($pair:literal)*) => {[$({
                    let (word, [first, second]) = L::places($pair);
                    let both = convert(value(words[word], first), value(words[word], second));
                    _mm512_permutexvar_epi16(interleaving, both)
                }),*]};
            }
            store(pairs!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15), tile);
        }
    }

    /// Fetches of the strip that comes after the next, as which it is as long, what lies where tile `place` of `count` lies
    /// in this one. It need not exist.
    #[inline(always)]
    fn fetch_ahead(bytes: &[u8], place: usize, count: usize) {
        let part = bytes.len() * place / count..bytes.len() * (place + 1) / count;
        prefetch_beyond(&bytes[part], 2 * bytes.len());
    }

    /// Of 16 bytes of every row, `rows` after `from`, each four as a vector of lanes.
    ///
    /// # Safety
    /// Every row has these bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn turned(rows: &[usize; LANES], from: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller vouches for the bytes.
        let load = |lane: usize| unsafe { _mm_loadu_si128(from.add(rows[lane]).cast()) };
        // Lanes 0, 4, 8, 12; 1, 5, …: turned within each quarter they are in order.
        let quarters = |lane: usize| {
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(lane)), load(4 + lane));
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(8 + lane)), load(12 + lane));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        };
        let (a, b, c, d) = (quarters(0), quarters(1), quarters(2), quarters(3));
        let (low, low_end) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (high, high_end) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(low, low_end),
            _mm512_unpackhi_epi64(low, low_end),
            _mm512_unpacklo_epi64(high, high_end),
            _mm512_unpackhi_epi64(high, high_end),
        ]
    }
}
