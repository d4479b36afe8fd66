//! float32 products on AVX-512: both factors are packed on the way into the order in which the micro-kernel takes them.
//!
//! A task packs its rows for a stretch of the inner dimension into a buffer that stays in the second-level cache, and then,
//! strip of columns by strip, packs the columns into one that stays in the first-level cache while the rows pass. Several
//! products with one result are one whose inner dimension is theirs one after the other. Each value is a sum
//! of stretches of the inner dimension, which depend on its size alone, in order: a row's result depends neither on the other
//! rows, nor on their number, nor on how the work is shared.

mod avx512;
mod pack;
mod thin;

use std::cell::Cell;
use std::ops::Range;

use super::share::{Output, Sharing};
use super::{Factors, Gemm, Parallelism, ViewMut};
use avx512::{COLS, Micro, ROWS};
pub(super) use pack::prefetch_columns;
pub(crate) use thin::{is_thin, thin_sum};

use pack::{pack_columns, pack_rows};

/// Places of the inner dimension that are packed at one time, at the most: a strip of columns so deep, and the rows of one
/// block, stay in the first-level cache together.
const DEEPEST: usize = 256;

/// So many rows, packed, take half of the second-level cache.
const SHARING: Sharing = Sharing { block: (ROWS, COLS), most_rows: 88 * ROWS, worth_threads: 128 * 1024 };

/// The products; exist only where the processor has AVX-512.
#[derive(Debug)]
pub(super) struct Packed(Micro);

impl Packed {
    /// `None` where the processor has no AVX-512.
    pub(super) fn detect() -> Option<&'static Self> {
        static PACKED: std::sync::OnceLock<Option<Packed>> = std::sync::OnceLock::new();
        PACKED.get_or_init(|| Micro::detect().map(Self)).as_ref()
    }
}

impl Gemm for Packed {
    fn has_independent_rows(&self) -> bool {
        true
    }

    fn leaves_thin_sums(&self) -> bool {
        true
    }

    fn gemm(&self, mut c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism) {
        let depth: usize = sum.iter().map(|factors| factors.a.cols).sum();
        let output = Output::new(&mut c);
        let product = Product { micro: self.0, output: &output, accumulate: beta != 0.0, sum, depth };
        SHARING.run((c.rows, c.cols), depth, parallelism, |rows, cols| product.task(rows, cols));
    }
}

struct Product<'a> {
    micro: Micro,
    output: &'a Output,
    accumulate: bool,
    sum: &'a [Factors<'a>],
    depth: usize,
}

#[derive(Default)]
struct Scratch {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The first `len` floats of `buffer`, from a cache line on.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = 16;
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    &mut buffer[start..start + len]
}

impl Product<'_> {
    fn task(&self, rows: Range<usize>, cols: Range<usize>) {
        let mut scratch = SCRATCH.take();
        let pieces = self.depth.div_ceil(DEEPEST).max(1);
        let step = self.depth.div_ceil(pieces);
        for piece in 0..pieces {
            let depth = piece * step..self.depth.min((piece + 1) * step);
            self.stretch(&mut scratch, &rows, &cols, depth, self.accumulate || piece > 0);
        }
        SCRATCH.set(scratch);
    }

    /// One stretch of the inner dimension.
    fn stretch(
        &self,
        scratch: &mut Scratch,
        rows: &Range<usize>,
        cols: &Range<usize>,
        depth: Range<usize>,
        accumulate: bool,
    ) {
        let block = depth.len() * ROWS;
        // Packing writes whole vectors, beyond the last block's end.
        let packed_rows = aligned(&mut scratch.rows, rows.len().div_ceil(ROWS) * block + COLS);
        let packed_columns = aligned(&mut scratch.columns, depth.len() * COLS);
        for (number, first) in rows.clone().step_by(ROWS).enumerate() {
            let lanes = first..rows.end.min(first + ROWS);
            self.pieces(&depth, |factors, own, place| {
                let target = &mut packed_rows[number * block + place * ROWS..];
                pack_rows(self.micro, factors.a, factors.alpha, lanes.clone(), own, target);
            });
        }
        for first in cols.clone().step_by(COLS) {
            let lanes = first..cols.end.min(first + COLS);
            self.pieces(&depth, |factors, own, place| {
                pack_columns(self.micro, factors.b, lanes.clone(), own, &mut packed_columns[place * COLS..]);
            });
            let next = cols.end.min(first + COLS)..cols.end.min(first + 2 * COLS);
            let blocks = rows.len().div_ceil(ROWS);
            for (number, row) in rows.clone().step_by(ROWS).enumerate() {
                let height = ROWS.min(rows.end - row);
                // What is packed next comes from far away, so it is fetched while this is multiplied.
                self.pieces(&depth, |factors, own, _| {
                    prefetch_columns(factors.b, next.clone(), own, (number, blocks));
                });
                #[allow(unsafe_code)]
                // SAFETY: the block lies in the result, in this task's part of it; both packed factors are so deep.
                unsafe {
                    let c = self.output.c.add(row * self.output.stride + first);
                    let (a, b) = (packed_rows[number * block..].as_ptr(), packed_columns.as_ptr());
                    self.micro.block(a, b, depth.len(), c, self.output.stride, (height, lanes.len()), accumulate);
                }
            }
        }
    }

    /// Calls `pack` with the factors that share the stretch `depth`, which of their own inner dimension lies there, and
    /// where in the stretch it begins.
    fn pieces(&self, depth: &Range<usize>, mut pack: impl FnMut(&Factors<'_>, Range<usize>, usize)) {
        let mut start = 0;
        for factors in self.sum {
            let end = start + factors.a.cols;
            let (first, last) = (depth.start.max(start), depth.end.min(end));
            if first < last {
                pack(factors, first - start..last - start, first - depth.start);
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Factors, View, plain::for_each_layout};
    use super::*;
    use crate::Matrix;
    use crate::ops::finite_differences::random;

    #[test]
    fn equals_the_definition_on_ragged_shapes_however_factors_lie() {
        let Some(packed) = Packed::detect() else { return };
        let shapes = [(1, 1, 1), (13, 5, 33), (12, 32, 64), (25, 300, 17), (40, 513, 100), (1, 700, 95)];
        for_each_layout(&shapes, |sum, beta, start, expected| {
            let mut found = start.clone();
            packed.gemm(ViewMut::of(&mut found), beta, sum, Parallelism::Pool);
            for (found, expected) in found.data().iter().zip(expected.data()) {
                // Sums of `depth` products of normal values, each rounded in float32.
                let bound = 1e-6 * (sum[0].a.cols as f32).sqrt() * 4.0;
                assert!((found - expected).abs() <= bound.max(1e-6), "{found}, expected {expected}");
            }
        });
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let Some(packed) = Packed::detect() else { return };
        let (a, b) = (random(200, 600, 0), random(70, 600, 1));
        let product = |a: View<'_>, parallelism| {
            let mut c = Matrix::zeros(a.rows, 70);
            let sum = [Factors { alpha: 1.0, a, b: View::of(&b).transposed() }];
            packed.gemm(ViewMut::of(&mut c), 0.0, &sum, parallelism);
            c
        };
        let all = product(View::of(&a), Parallelism::Pool);
        assert_eq!(product(View::of(&a), Parallelism::Single), all);
        for rows in [0..1, 57..60, 180..200] {
            let some = product(View::of(&a).rows(rows.clone()), Parallelism::Single);
            assert_eq!(some.data(), &all.data()[rows.start * 70..rows.end * 70]);
        }
    }
}
