//! Keys and values in bf16 of one head, and the query heads that share it, by AMX: 16 keys are the rows of a left factor as
//! they lie, 32 rows of values those of a right one.

use std::arch::asm;
use std::ops::Range;

use super::page_rows::KeyValuePairs;
use crate::kernels::LINE;
use crate::kernels::bf16::{DEPTH, LANES, ShapedTiles, Square, Tile, to_bf16};
use crate::kernels::stored::{CHUNK, store_pairs};

/// An instruction with tile `$number` of the outputs between `$before` and `$after`.
macro_rules! output {
    ($number:expr, $before:literal, $after:literal, $($operands:tt)*) => {
        match $number {
            0 => asm!(concat!($before, "tmm0", $after), $($operands)*),
            1 => asm!(concat!($before, "tmm1", $after), $($operands)*),
            2 => asm!(concat!($before, "tmm2", $after), $($operands)*),
            _ => asm!(concat!($before, "tmm3", $after), $($operands)*),
        }
    };
}

/// Tiles of outputs.
const OUTPUTS: usize = 4;

/// Keys of a tile of scores.
const KEYS: usize = LANES;

/// The calling thread's tile unit, configured for some query heads while this lives, and memory that it works in.
///
/// Tiles 0 to 3 are outputs `[heads, 16 features]`, 4 are weights `[heads, 32 keys]`, 5 keys or values, 6 queries `[16 pairs,
/// heads]` and 7 scores `[16 keys, heads]`.
pub(super) struct PageTiles {
    members: usize,
    /// A tile for each chunk of features.
    query: Vec<Tile>,
    /// A tile for each 32 keys.
    weights: Vec<Tile>,
    /// Rows that do not fill a tile, followed by zeros.
    padded: Vec<Tile>,
    _tiles: ShapedTiles,
}

/// One head of some rows of a page.
pub(super) struct HeadRows<'a> {
    pub(super) page: KeyValuePairs<'a>,
    /// Features of a head.
    pub(super) size: usize,
    pub(super) head: usize,
    /// The rows.
    pub(super) range: Range<usize>,
}

impl PageTiles {
    pub(super) fn configure(members: usize) -> Self {
        let (output, pairs) = ((members, LINE), (LANES, 4 * members));
        let shapes = [output, output, output, output, output, (LANES, LINE), pairs, pairs];
        let _tiles = ShapedTiles::configure(shapes);
        Self { members, query: Vec::new(), weights: Vec::new(), padded: Vec::new(), _tiles }
    }

    pub(super) fn members(&self) -> usize {
        self.members
    }

    /// Takes queries `[members, size]`, whole chunks of features.
    pub(super) fn take_query(&mut self, query: &[f32]) {
        let size = query.len() / self.members;
        let chunks = size / CHUNK;
        self.query.resize(chunks, Tile::ZERO);
        let mut pairs = [0; CHUNK / 2];
        for (member, query) in query.chunks_exact(size).enumerate() {
            for (query, tile) in query.chunks_exact(CHUNK).zip(&mut self.query) {
                store_pairs(query, &mut pairs);
                let words = tile.words_mut();
                pairs.iter().enumerate().for_each(|(pair, word)| words[pair * LANES + member] = *word);
            }
        }
    }

    /// Writes `scale` times the products of the queries with the keys of `rows` to `scores`, whose rows, one a query head,
    /// lie `stride` apart. Calls `meanwhile` with the number of scores before each tile of them.
    #[allow(unsafe_code)]
    pub(super) fn scores(
        &mut self,
        rows: &HeadRows<'_>,
        scale: f32,
        scores: &mut [f32],
        stride: usize,
        mut meanwhile: impl FnMut(usize),
    ) {
        let HeadRows { page, size, head, ref range } = *rows;
        let (width, start, first, count) = (page.width, head * size, range.start, range.len());
        assert!(self.query.len() * CHUNK == size, "queries are as wide as keys");
        let mut square = Square::ZERO;
        for done in (0..count).step_by(KEYS) {
            meanwhile(KEYS.min(count - done) * self.members);
            let keys = &page.keys[((first + done) * width + start) / 2..];
            let left = KEYS.min(count - done);
            let (mut from, mut row, mut chunk) = (keys.as_ptr(), 2 * width, LINE);
            if left == KEYS {
                assert!(
                    (first + done + KEYS - 1) * width + start + size <= 2 * page.keys.len(),
                    "keys lie in the page"
                );
            } else {
                self.pad(keys, left, width / 2, size / 2);
                (from, row, chunk) = (self.padded.as_ptr().cast(), LINE, size_of::<Tile>());
            }
            // SAFETY: the tiles are configured; keys and queries lie where they are read, scores fit the square.
            unsafe {
                asm!("tilezero tmm7", options(nostack, nomem));
                for (number, query) in self.query.iter().enumerate() {
                    asm!(
                        "tileloadd tmm5, [{k} + {r}*1]",
                        "tileloadd tmm6, [{q} + {s}*1]",
                        "tdpbf16ps tmm7, tmm5, tmm6",
                        k = in(reg) from.byte_add(number * chunk), r = in(reg) row, q = in(reg) query, s = in(reg) LINE,
                        options(nostack, readonly),
                    );
                }
                let out = square.0.as_mut_ptr();
                asm!("tilestored [{c} + {s}*1], tmm7", c = in(reg) out, s = in(reg) LINE, options(nostack));
            }
            for member in 0..self.members {
                let scores = &mut scores[member * stride + done..][..left];
                for (key, score) in scores.iter_mut().enumerate() {
                    *score = scale * square.0[key * LANES + member];
                }
            }
        }
    }

    /// Adds the values of `rows`, weighted by `weights`, whose rows lie `stride` apart, to `output` `[members, size]`. Calls
    /// `meanwhile` with the number of weights before each 32 keys of them.
    #[allow(unsafe_code)]
    pub(super) fn add_weighted(
        &mut self,
        rows: &HeadRows<'_>,
        weights: &[f32],
        stride: usize,
        output: &mut [f32],
        mut meanwhile: impl FnMut(usize),
    ) {
        let HeadRows { page, size, head, ref range } = *rows;
        let (width, start, first, count) = (page.width, head * size, range.start, range.len());
        assert!(output.len() == self.members * size, "an output for each query head");
        // Pairs of rows that are read; of the first and of the last pair one row may not be meant.
        let pairs = first / 2..(first + count).div_ceil(2);
        let before = first % 2;
        let tiles = pairs.len().div_ceil(DEPTH / 2);
        self.take_weights(weights, stride, before, count, tiles);
        for (tile, from) in pairs.clone().step_by(DEPTH / 2).enumerate() {
            let left = (DEPTH / 2).min(pairs.end - from);
            meanwhile(2 * left * self.members);
            let values = &page.values[from * width + start..];
            let (mut first, mut row, mut next) = (values.as_ptr(), 4 * width, LINE);
            if left == DEPTH / 2 {
                assert!((from + left - 1) * width + start + size <= page.values.len(), "values lie in the page");
            } else {
                self.pad(values, left, width, size);
                (first, row, next) = (self.padded.as_ptr().cast(), LINE, size_of::<Tile>());
            }
            let weights = &self.weights[tile];
            for features in (0..size / LANES).step_by(OUTPUTS) {
                let count = OUTPUTS.min(size / LANES - features);
                // SAFETY: the tiles are configured; weights and values lie where they are read, and the output, whose rows
                // are as long as a head, where it is read and written.
                unsafe {
                    let (out, stride) = (output.as_mut_ptr().add(features * LANES), 4 * size);
                    asm!("tileloadd tmm4, [{w} + {s}*1]", w = in(reg) weights, s = in(reg) LINE, options(nostack, readonly));
                    for number in 0..count {
                        let values = first.byte_add((features + number) * next);
                        let out = out.add(number * LANES);
                        output!(number, "tileloadd ", ", [{o} + {s}*1]", o = in(reg) out, s = in(reg) stride, options(nostack, readonly));
                        asm!("tileloadd tmm5, [{v} + {r}*1]", v = in(reg) values, r = in(reg) row, options(nostack, readonly));
                        output!(number, "tdpbf16ps ", ", tmm4, tmm5", options(nostack, nomem));
                        output!(number, "tilestored [{o} + {s}*1], ", "", o = in(reg) out, s = in(reg) stride, options(nostack));
                    }
                }
            }
        }
    }

    /// Packs weights, whose rows lie `stride` apart: `before` zeros, `count` weights, and zeros to the end of the tiles.
    fn take_weights(&mut self, weights: &[f32], stride: usize, before: usize, count: usize, tiles: usize) {
        self.weights.resize(self.weights.len().max(tiles), Tile::ZERO);
        for (number, tile) in self.weights.iter_mut().enumerate().take(tiles) {
            let keys = number * DEPTH..(number + 1) * DEPTH;
            let own = keys.start.max(before)..keys.end.min(before + count);
            for member in 0..self.members {
                let line = &mut tile.0[member * DEPTH..][..DEPTH];
                line[..own.start - keys.start].fill(0);
                line[own.end - keys.start..].fill(0);
                let from = &weights[member * stride + own.start - before..][..own.len()];
                let line = &mut line[own.start - keys.start..own.end - keys.start];
                line.iter_mut().zip(from).for_each(|(word, weight)| *word = to_bf16(*weight));
            }
        }
    }

    /// Copies `count` rows of `length` words, `stride` apart, to as many lines of tiles side by side, and zeros after them.
    fn pad(&mut self, rows: &[u32], count: usize, stride: usize, length: usize) {
        self.padded.resize(self.padded.len().max(length / LANES), Tile::ZERO);
        for (number, tile) in self.padded.iter_mut().enumerate().take(length / LANES) {
            let words = tile.words_mut();
            for row in 0..count {
                let from = &rows[row * stride + number * LANES..][..LANES];
                words[row * LANES..][..LANES].copy_from_slice(from);
            }
            words[count * LANES..].fill(0);
        }
    }
}
