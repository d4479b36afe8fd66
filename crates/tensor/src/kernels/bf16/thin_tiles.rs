//! Low-rank updates of few rows by AMX, `y ← y + ((x·Aᵀ) ⊙ scales)·Bᵀ`: tiles are as small as the rows and the ranks, so that
//! factors take no more memory than their values.
//!
//! Whoever adds many updates in a row names them all at the beginning, and each is fetched some time before it is used:
//! where every row has an update of its own, all of them come from far away and are used once.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::amx::{ShapedTiles, Square};
use super::avx512_pack::{mask, store};
use super::operand::corner;
use super::pack::{Order, pack, pack_strip};
use super::tile::{DEPTH, LANES, Tile, from_bf16};
use crate::Matrix;
use crate::kernels::{LINE, View, fetch_lines};
use crate::shelf::{Shelf, Shelved};

/// Words of a line: a word is two numbers of bf16.
const WORDS: usize = LINE / size_of::<u32>();

/// A low-rank update. Ranks are cut into parts of one width, at most 16.
pub(crate) struct ThinTiles {
    input: usize,
    output: usize,
    parts: usize,
    /// Ranks of a part.
    width: usize,
    /// The bits of a factor of each rank, in whole lines; then part by part of `A`, for each tile of the inputs 16 pairs of
    /// `width` ranks; and then strip by strip of 16 outputs of `B`, for each part pairs of its ranks for 16 outputs.
    words: Shelved<u32>,
}

impl ThinTiles {
    /// The update of `A` `[r, in]` and `B` `[out, r]`, with a factor of each rank.
    pub(crate) fn new(a: &Matrix, b: &Matrix, scales: &[f32], shelf: &mut Shelf) -> Self {
        let (rank, input, output) = (a.rows(), a.cols(), b.rows());
        let parts = rank.div_ceil(LANES);
        let width = rank.div_ceil(parts.max(1));
        let mut tiles = Self { input, output, parts, width, words: Shelved::default() };
        let mut words = shelf.take(tiles.start_of_b() + tiles.strips() * parts * tiles.words_in_b());
        words.iter_mut().zip(scales).for_each(|(word, scale)| *word = scale.to_bits());
        let (in_a, in_b) = words.split_at_mut(tiles.start_of_b());
        let in_a = &mut in_a[tiles.start_of_a()..];
        let places = |part: usize| (part * width).min(rank)..((part + 1) * width).min(rank);
        let mut tile = Tile::ZERO;
        for (number, words) in in_a.chunks_exact_mut(LANES * width.max(1)).enumerate() {
            let lanes = View::of(a).rows(places(number / tiles.depth()));
            let lines = tile_of(lanes, 0, number % tiles.depth(), &mut tile).chunks_exact(LANES);
            words.chunks_exact_mut(width).zip(lines).for_each(|(words, line)| words.copy_from_slice(&line[..width]));
        }
        for (number, words) in in_b.chunks_exact_mut(tiles.words_in_b().max(1)).enumerate() {
            let lanes = View::of(b).columns(places(number % parts));
            words.copy_from_slice(&tile_of(lanes, number / parts, 0, &mut tile)[..words.len()]);
        }
        tiles.words = words;
        tiles
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.words[..])
    }

    /// `A` `[r, in]` and `B` `[out, r]`, which has the scales; `r` may have grown to whole parts, with zeros.
    pub(crate) fn factors(&self) -> (Matrix, Matrix) {
        let value = |word: usize, half: usize| from_bf16((self.words[word] >> (16 * half)) as u16);
        let rank = self.parts * self.width;
        let (mut a, mut b) = (Matrix::zeros(rank, self.input), Matrix::zeros(self.output, rank));
        for place in 0..rank {
            let (part, lane) = (place / self.width, place % self.width);
            for col in 0..self.input {
                let tile = part * self.depth() + col / DEPTH;
                let word = self.start_of_a() + (tile * LANES + col % DEPTH / 2) * self.width + lane;
                a.row_mut(place)[col] = value(word, col % 2);
            }
            for row in 0..self.output {
                let square = row / LANES * self.parts + part;
                let word = self.start_of_b() + square * self.words_in_b() + lane / 2 * LANES + row % LANES;
                b.row_mut(row)[place] = f32::from_bits(self.words[place]) * value(word, lane % 2);
            }
        }
        (a, b)
    }

    /// Tiles of the inputs.
    fn depth(&self) -> usize {
        self.input.div_ceil(DEPTH)
    }

    /// Strips of the outputs.
    fn strips(&self) -> usize {
        self.output.div_ceil(LANES)
    }

    fn start_of_a(&self) -> usize {
        (self.parts * self.width).next_multiple_of(WORDS)
    }

    fn start_of_b(&self) -> usize {
        self.start_of_a() + self.parts * self.depth() * LANES * self.width
    }

    fn part_of_a(&self, part: usize) -> &[u32] {
        let words = self.depth() * LANES * self.width;
        &self.words[self.start_of_a() + part * words..][..words]
    }

    /// Words of a part of `B` for one strip.
    fn words_in_b(&self) -> usize {
        self.width.div_ceil(2) * LANES
    }
}

/// A tile of `lanes` in pairs order, as words.
fn tile_of<'a>(lanes: View<'_>, strip: usize, place: usize, tile: &'a mut Tile) -> &'a [u32] {
    pack(corner(lanes, strip, place, 1.0), Order::Pairs, tile);
    tile.words_mut()
}

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { x: Vec::new(), middle: Vec::new() }) };
}

/// Memory of a thread that stays in its caches.
struct Room {
    /// Packed rows in rows order.
    x: Vec<Tile>,
    /// Packed rows of the middle, a tile for each part.
    middle: Vec<Tile>,
}

/// Adds updates of rows of one matrix, one after the other.
pub(crate) struct ThinAdder<'a> {
    /// `[rows, in]`.
    x: View<'a>,
    ahead: Ahead<'a>,
    unit: Option<Unit>,
    /// The strip of 16 rows that lies packed.
    packed: Option<usize>,
}

impl<'a> ThinAdder<'a> {
    /// For `updates` of rows of `x` `[rows, in]`, which follow in this order.
    pub(crate) fn new(x: &'a Matrix, updates: impl Iterator<Item = &'a ThinTiles>) -> Self {
        let mut ahead = Ahead { parts: updates.map(|update| &update.words[..]).collect(), part: 0, at: 0 };
        ahead.fetch(Ahead::DISTANCE);
        Self { x: View::of(x), ahead, unit: None, packed: None }
    }

    /// Adds the next update of `rows` of `x`, which belong to one strip of 16 rows, to `y` `[rows, out]`.
    pub(crate) fn add(&mut self, update: &ThinTiles, rows: Range<usize>, y: &mut [f32]) {
        if rows.is_empty() || update.parts == 0 || update.input == 0 {
            return;
        }
        let (strip, first) = (rows.start / LANES, rows.start % LANES);
        assert!(first + rows.len() <= LANES && y.len() == rows.len() * update.output, "rows belong to one strip");
        assert!(self.x.cols == update.input, "rows are as wide as the update");
        let shape = (rows.len(), update.width);
        if self.unit.as_ref().is_some_and(|unit| unit.shape != shape) {
            self.unit = None;
        }
        let unit = self.unit.get_or_insert_with(|| Unit::configure(rows.len(), update.width));
        ROOM.with_borrow_mut(|Room { x, middle }| {
            if self.packed != Some(strip) {
                x.resize(x.len().max(update.depth()), Tile::ZERO);
                let lanes = strip * LANES..self.x.rows.min((strip + 1) * LANES);
                pack_strip(self.x, lanes, 0, 1.0, Order::Rows, &mut x[..update.depth()]);
                self.packed = Some(strip);
            }
            middle.resize(middle.len().max(update.parts), Tile::ZERO);
            self.ahead.fetch(update.start_of_a() / WORDS);
            for (part, middle) in middle.iter_mut().take(update.parts).enumerate() {
                let scales = &update.words[part * update.width..][..update.width];
                let a = update.part_of_a(part);
                unit.inner(a, &x[..update.depth()], first, scales, middle, &mut self.ahead);
            }
            let strips = update.words[update.start_of_b()..].chunks_exact(update.parts * update.words_in_b());
            for (strip, b) in strips.enumerate() {
                let cols = LANES.min(update.output - strip * LANES);
                let y = &mut y[strip * LANES..];
                if cols == LANES {
                    unit.outer(b, middle, y, update.output, &mut self.ahead);
                    continue;
                }
                let mut square = [0.0; LANES * LANES];
                let rows = || (0..rows.len()).map(|row| (row * LANES..row * LANES + cols, row * update.output..));
                rows().for_each(|(own, from)| square[own].copy_from_slice(&y[from][..cols]));
                unit.outer(b, middle, &mut square, LANES, &mut self.ahead);
                rows().for_each(|(own, to)| y[to][..cols].copy_from_slice(&square[own]));
            }
        });
    }
}

/// What is read one after the other, fetched some time before.
struct Ahead<'a> {
    parts: Vec<&'a [u32]>,
    /// The part and the line of it that is fetched next.
    part: usize,
    at: usize,
}

impl Ahead<'_> {
    /// Lines that are fetched and not yet read.
    const DISTANCE: usize = 256;

    /// Fetches the next `lines`.
    #[inline(always)]
    fn fetch(&mut self, mut lines: usize) {
        while let Some(part) = self.parts.get(self.part) {
            let count = lines.min(part.len() / WORDS - self.at);
            fetch_lines(part.as_ptr().wrapping_add(self.at * WORDS), count);
            (self.at, lines) = (self.at + count, lines - count);
            if lines == 0 {
                return;
            }
            (self.part, self.at) = (self.part + 1, 0);
        }
    }
}

/// The calling thread's tile unit, configured for some rows and ranks while this lives.
///
/// Tiles 0 and 1 are sums of the middle, of every other tile of the inputs; 2 is the rows', 3 and 4 are `A`'s; 5 is a result,
/// 6 the packed middle's and 7 `B`'s.
struct Unit {
    /// Rows, and ranks of a part.
    shape: (usize, usize),
    _tiles: ShapedTiles,
}

impl Unit {
    fn configure(rows: usize, width: usize) -> Self {
        let (middle, a, pairs) = ((rows, 4 * width), (LANES, 4 * width), width.div_ceil(2));
        let shapes = [middle, middle, (rows, LINE), a, a, (rows, LINE), (rows, 4 * pairs), (pairs, LINE)];
        Self { shape: (rows, width), _tiles: ShapedTiles::configure(shapes) }
    }

    /// A part of the middle, `(x·A) ⊙ scales`, packed, for the rows of `x` from `first` on: `a` are as many tiles of `width`
    /// columns as `x`.
    #[allow(unsafe_code)]
    fn inner(&self, a: &[u32], x: &[Tile], first: usize, scales: &[u32], middle: &mut Tile, ahead: &mut Ahead<'_>) {
        let (rows, width) = self.shape;
        let words = LANES * width;
        assert!(a.len() == x.len() * words && scales.len() == width, "a part of A is as deep as the rows");
        assert!(first + rows <= LANES, "the rows belong to one strip");
        let stride = 4 * width;
        // SAFETY: the tiles are configured, and lie where they are read.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
            for (place, (x, a)) in x.iter().zip(a.chunks_exact(words)).enumerate() {
                ahead.fetch(words / WORDS);
                let x = x.0.as_ptr().add(first * DEPTH);
                if place.is_multiple_of(2) {
                    asm!(
                        "tileloadd tmm2, [{x} + {s}*1]",
                        "tileloadd tmm3, [{a} + {t}*1]",
                        "tdpbf16ps tmm0, tmm2, tmm3",
                        x = in(reg) x, a = in(reg) a.as_ptr(), s = in(reg) LINE, t = in(reg) stride,
                        options(nostack, readonly),
                    );
                } else {
                    asm!(
                        "tileloadd tmm2, [{x} + {s}*1]",
                        "tileloadd tmm4, [{a} + {t}*1]",
                        "tdpbf16ps tmm1, tmm2, tmm4",
                        x = in(reg) x, a = in(reg) a.as_ptr(), s = in(reg) LINE, t = in(reg) stride,
                        options(nostack, readonly),
                    );
                }
            }
        }
        let mut sums = [const { Square::ZERO }; 2];
        let [first, second] = &mut sums;
        // SAFETY: the tiles are configured; rows of a sum lie in a square, a line apart. AMX comes with AVX-512.
        unsafe {
            asm!(
                "tilestored [{first} + {s}*1], tmm0",
                "tilestored [{second} + {s}*1], tmm1",
                first = in(reg) first.0.as_mut_ptr(), second = in(reg) second.0.as_mut_ptr(), s = in(reg) LINE,
                options(nostack),
            );
            pack_middle(&sums, rows, scales, middle);
        }
    }

    /// Adds to a strip of 16 columns of `y`, whose rows lie `stride` apart, the product of all parts of the middle with `b`.
    #[allow(unsafe_code)]
    #[inline(always)]
    fn outer(&self, b: &[u32], middle: &[Tile], y: &mut [f32], stride: usize, ahead: &mut Ahead<'_>) {
        let (rows, width) = self.shape;
        let words = width.div_ceil(2) * LANES;
        assert!((rows - 1) * stride + LANES <= y.len(), "a strip lies in the result");
        assert!(b.len() / words <= middle.len(), "every part has its middle");
        let y = y.as_mut_ptr();
        ahead.fetch(b.len() / WORDS);
        // SAFETY: the tiles are configured, and lie where they are read; the strip lies in the result.
        unsafe {
            asm!("tileloadd tmm5, [{y} + {s}*1]", y = in(reg) y, s = in(reg) 4 * stride, options(nostack, readonly));
            for (b, middle) in b.chunks_exact(words).zip(middle) {
                asm!(
                    "tileloadd tmm6, [{m} + {s}*1]",
                    "tileloadd tmm7, [{b} + {s}*1]",
                    "tdpbf16ps tmm5, tmm6, tmm7",
                    m = in(reg) middle, b = in(reg) b.as_ptr(), s = in(reg) LINE, options(nostack, readonly),
                );
            }
            asm!("tilestored [{y} + {s}*1], tmm5", y = in(reg) y, s = in(reg) 4 * stride, options(nostack));
        }
    }
}

/// Packs the first `rows` rows of the sum of both, times factors, the bits of which are `scales`, at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn pack_middle(sums: &[Square; 2], rows: usize, scales: &[u32], middle: &mut Tile) {
    let lanes = mask(scales.len());
    let mut packed = [_mm512_setzero_si512(); LANES];
    for (row, packed) in packed.iter_mut().enumerate().take(rows) {
        let line = |sum: &Square| sum.0[row * LANES..].as_ptr();
        #[allow(unsafe_code)]
        // SAFETY: a row of a square is a vector; the mask keeps the scales' load inside them.
        let values = unsafe {
            let sum = _mm512_add_ps(_mm512_load_ps(line(&sums[0])), _mm512_load_ps(line(&sums[1])));
            _mm512_mul_ps(sum, _mm512_maskz_loadu_ps(lanes, scales.as_ptr().cast()))
        };
        *packed = super::avx512_pack::convert(values, _mm512_setzero_ps());
    }
    store(packed, middle);
}
