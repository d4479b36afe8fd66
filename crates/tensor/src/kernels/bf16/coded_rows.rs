//! Tiles straight from codes in rows order, a row's 32 codes at a time. Four bits stand for 16 values: those of a block are
//! computed once, and codes looked up among them. That takes fewer steps than tiles in pairs order do ([`super::coded`]),
//! whose vectors go across rows.

use std::arch::x86_64::*;

use super::avx512_pack::convert;
use super::coded::avx512::{self, starts};
use super::coded::{CodeLayout, CodedStrip};
use super::tile::{DEPTH, LANES, Tile};

/// What the codes of a tile are scaled by, and what is added, lane by lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Heads {
    scales: [f32; LANES],
    offsets: [f32; LANES],
}

/// A strip whose tiles are unpacked one after the other.
pub(super) struct CodedRows<'a> {
    strip: CodedStrip<'a>,
    /// Where each lane's row begins; lanes that don't exist have the last row's, and are scaled to zero.
    rows: [usize; LANES],
    /// The same, for a gather.
    places: [i32; LANES],
    /// The next tile.
    place: usize,
    /// Of the next tile, and room for those of the one after it: they are read while a tile is unpacked.
    heads: [Heads; 2],
    block: usize,
    codes: usize,
}

impl<'a> CodedRows<'a> {
    /// A strip.
    ///
    /// # Panics
    /// Where the processor has no fast way from codes to tiles, or the strip's bytes aren't its rows'.
    pub(super) fn new(strip: CodedStrip<'a>) -> Self {
        Self::starting_at(strip, 0)
    }

    /// A strip whose tiles are wanted from number `place` on.
    ///
    /// # Panics
    /// As [`CodedRows::new`] does, and where there is no such tile.
    pub(super) fn starting_at(strip: CodedStrip<'a>, place: usize) -> Self {
        assert!(super::coded::is_supported(), "the processor has a fast way from codes to tiles");
        let (codes, block) = strip.block();
        let row = strip.cols / DEPTH * block;
        assert!((1..=LANES).contains(&strip.rows) && place < strip.cols / DEPTH, "a strip has rows and tiles");
        assert!(
            strip.bytes.len() == strip.rows * row && i32::try_from(LANES * row).is_ok(),
            "a strip's bytes are its rows"
        );
        let (rows, places) = starts(&strip);
        let nothing = Heads { scales: [0.0; LANES], offsets: [0.0; LANES] };
        let mut unpacking = Self { strip, rows, places, place, heads: [nothing; 2], block, codes };
        unpacking.read_heads(place);
        unpacking
    }

    /// The bytes of its rows.
    pub(super) fn bytes(&self) -> &[u8] {
        self.strip.bytes
    }

    fn read_heads(&mut self, place: usize) {
        #[allow(unsafe_code)]
        // SAFETY: `new` checked that the processor has the instructions, and that every row has a block there.
        unsafe {
            read_heads(&self.strip, &self.places, place, &mut self.heads[place % 2]);
        }
    }

    /// Fills `tile` with the next columns of the strip; lanes past its last row are zeros.
    ///
    /// # Panics
    /// If there are none.
    #[inline]
    pub(super) fn next(&mut self, tile: &mut Tile) {
        let (place, tiles) = (self.place, self.strip.cols / DEPTH);
        assert!(place < tiles, "a strip has its tiles");
        self.place += 1;
        if self.place < tiles && self.strip.shares_scales(self.place) {
            self.heads[self.place % 2] = self.heads[place % 2];
        } else if self.place < tiles {
            self.read_heads(self.place);
        }
        let heads = &self.heads[place % 2];
        let start = self.strip.bytes.as_ptr().wrapping_add(place * self.block + self.codes);
        #[allow(unsafe_code)]
        // SAFETY: `new` checked that the processor has the instructions, and that every row has its codes there.
        unsafe {
            match self.strip.layout {
                CodeLayout::Halves => four_bits(self.strip.map, &SPREAD_HALVES, &self.rows, start, heads, tile),
                CodeLayout::Pairs => four_bits(self.strip.map, &SPREAD_PAIRS, &self.rows, start, heads, tile),
                CodeLayout::Bytes => bytes(&self.rows, start, heads, tile),
            }
        }
    }
}

/// # Safety
/// The processor has the instructions; the strip's rows begin at `places` and have a block number `place`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")]
#[allow(unsafe_code)]
unsafe fn read_heads(strip: &CodedStrip<'_>, places: &[i32; LANES], place: usize, heads: &mut Heads) {
    // SAFETY: the caller vouches for the processor and the rows.
    let (scales, offsets) = unsafe { avx512::heads(strip, places, place) };
    // SAFETY: 16 floats each.
    unsafe {
        _mm512_store_ps(heads.scales.as_mut_ptr(), scales);
        _mm512_store_ps(heads.offsets.as_mut_ptr(), offsets);
    }
}

/// How 16 bytes, repeated four times, become 32 words whose lowest four bits are the codes in order: a byte for each word,
/// within its quarter, and how far it is shifted.
#[repr(C, align(64))]
struct Spread {
    bytes: [u8; 64],
    shifts: [u16; DEPTH],
}

const fn spread(halves: bool) -> Spread {
    const NOTHING: u8 = 0x80;
    let (mut bytes, mut shifts) = ([NOTHING; 64], [0; DEPTH]);
    let mut place = 0;
    while place < DEPTH {
        let (byte, is_high) = if halves { (place % LANES, place >= LANES) } else { (place / 2, place % 2 == 0) };
        bytes[2 * place] = byte as u8;
        shifts[place] = if is_high { 4 } else { 0 };
        place += 1;
    }
    Spread { bytes, shifts }
}

static SPREAD_HALVES: Spread = spread(true);
static SPREAD_PAIRS: Spread = spread(false);

/// # Safety
/// The processor has the instructions; 16 bytes lie at each of `rows` after `start`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")]
#[allow(unsafe_code)]
unsafe fn four_bits(
    map: &[f32; 16],
    spread: &Spread,
    rows: &[usize; LANES],
    start: *const u8,
    heads: &Heads,
    tile: &mut Tile,
) {
    // SAFETY: all are vectors of 64 bytes.
    let (map, bytes, shifts) = unsafe {
        (
            _mm512_loadu_ps(map.as_ptr()),
            _mm512_load_si512(spread.bytes.as_ptr().cast()),
            _mm512_load_si512(spread.shifts.as_ptr().cast()),
        )
    };
    let table =
        |lane: usize| _mm512_fmadd_ps(map, _mm512_set1_ps(heads.scales[lane]), _mm512_set1_ps(heads.offsets[lane]));
    let out = tile.0.as_mut_ptr();
    for lane in (0..LANES).step_by(2) {
        // Two rows' values are rounded at one time, and each is doubled: a code's fifth bit is not looked at.
        let both = convert(table(lane), table(lane + 1));
        let tables =
            [_mm512_inserti64x4::<1>(both, _mm512_castsi512_si256(both)), _mm512_shuffle_i64x2::<0xee>(both, both)];
        for (lane, table) in [lane, lane + 1].into_iter().zip(tables) {
            // SAFETY: the caller vouches for the bytes; a tile is 16 aligned vectors.
            unsafe {
                let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(start.add(rows[lane]).cast()));
                let codes = _mm512_srlv_epi16(_mm512_shuffle_epi8(codes, bytes), shifts);
                _mm512_store_si512(out.add(lane * DEPTH).cast(), _mm512_permutexvar_epi16(codes, table));
            }
        }
    }
}

/// # Safety
/// The processor has the instructions; 32 bytes lie at each of `rows` after `start`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")]
#[allow(unsafe_code)]
unsafe fn bytes(rows: &[usize; LANES], start: *const u8, heads: &Heads, tile: &mut Tile) {
    let out = tile.0.as_mut_ptr();
    for (lane, row) in rows.iter().enumerate() {
        let (scale, offset) = (_mm512_set1_ps(heads.scales[lane]), _mm512_set1_ps(heads.offsets[lane]));
        // SAFETY: the caller vouches for the bytes; a tile is 16 aligned vectors.
        unsafe {
            let codes = start.add(*row);
            let value = |bytes: *const u8| {
                let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.cast())));
                _mm512_fmadd_ps(values, scale, offset)
            };
            _mm512_store_si512(out.add(lane * DEPTH).cast(), convert(value(codes), value(codes.add(LANES))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::coded::{self, NUMBERS, Scales};
    use crate::kernels::bf16::pack::{Order, index};
    use crate::quantized::Absmax;

    #[test]
    fn has_the_values_of_tiles_in_pairs_order() {
        if !coded::is_supported() {
            return eprintln!("skipped: this processor has no fast way from codes to tiles");
        }
        let mut stream = crate::Seed(3).stream("codes", 0);
        let map: [f32; 16] = std::array::from_fn(|place| place as f32 * 0.3 - 2.0);
        let absmax = Absmax::Float((0..200).map(|block| 0.01 + block as f32 * 0.37).collect());
        for rows in [1, 7, 16] {
            for cols in [32, 96, 576] {
                let absmax = Scales::Absmax { absmax: &absmax, block_size: 64, first: 0 };
                for (layout, scales, block) in [
                    (CodeLayout::Halves, Scales::Head, 18),
                    (CodeLayout::Halves, Scales::HeadAndOffset, 20),
                    (CodeLayout::Bytes, Scales::Head, 34),
                    (CodeLayout::Pairs, absmax, 16),
                ] {
                    let mut bytes: Vec<u8> =
                        (0..rows * cols / DEPTH * block).map(|_| stream.below(256) as u8).collect();
                    for block in bytes.chunks_exact_mut(block) {
                        // Scales are no infinities.
                        (block[1], block[3]) = (block[1] & 0x3f, block[3] & 0x3f);
                    }
                    let strip = || {
                        let map = if matches!(layout, CodeLayout::Pairs) { &map } else { &NUMBERS };
                        CodedStrip { layout, map, scales, bytes: &bytes, rows, cols }
                    };
                    let tiles = cols / DEPTH;
                    let mut expected = vec![Tile::ZERO; tiles];
                    coded::unpack(&strip(), 0..tiles, &mut expected);
                    let mut unpacking = CodedRows::new(strip());
                    for (place, expected) in expected.iter().enumerate() {
                        let mut tile = Tile([7; 512]);
                        unpacking.next(&mut tile);
                        for lane in 0..LANES {
                            for depth in 0..DEPTH {
                                let value = |tile: &Tile, order| tile.0[index(order, lane, depth)];
                                let (found, expected) = (value(&tile, Order::Rows), value(expected, Order::Pairs));
                                assert_eq!(found, expected, "{layout:?} {rows} × {cols}, {place}: {lane}, {depth}");
                            }
                        }
                    }
                }
            }
        }
    }
}
