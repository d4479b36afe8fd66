//! float32 products on a bf16 tile unit: each value is split into three bf16 parts, and a product of two values is the sum
//! of the six products of their parts that matter.
//!
//! With `a = a₀ + a₁ + a₂`, each part 2⁻⁸ of the one before, the products that are left out (`a₁b₂`, `a₂b₁`, `a₂b₂`) are
//! below 2⁻²³ of `ab`: what rounding `ab` to float32 loses. Products of two bf16 numbers are exact in float32 and sums are
//! float32, so the result is as near to the exact one as that of float32 instructions, which the tile unit outruns more than
//! six times. Columns whose values have fewer bits, such as weights that were stored in bf16 or f16, need fewer products.
//! Numbers below 10⁻³³ lose bits, because the unit takes bf16 numbers that are not normal for zero.
//!
//! A task splits its rows for a stretch of the inner dimension into a buffer that stays in the second-level cache, and then
//! its columns, two strips at a time, while the rows pass. Each value is a sum over the inner dimension in one order,
//! however the work is cut.

mod block;
mod parts;

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::cell::Cell;
use std::ops::Range;

use super::bf16::{DEPTH, LANES, Order, TileUnit, Unit};
use super::float32::{Packed, prefetch_columns};
use super::share::{Output, Sharing};
use super::{Factors, Gemm, Parallelism, View, ViewMut};
use block::{BLOCK, block};
use parts::{Parts, Splitter};

/// Tiles of the inner dimension that are split at one time.
const STRETCH: usize = 9;

/// So many rows, split, take less than half of the second-level cache.
const SHARING: Sharing = Sharing { block: (BLOCK, BLOCK), most_rows: 16 * BLOCK, worth_threads: 512 * 1024 };

/// Rows, columns and inner dimension from which the tile unit is faster than vector instructions.
const WORTH_TILES: usize = 32;

/// The products; exist only where the processor has the tile unit.
#[derive(Debug)]
pub(super) struct Split {
    splitter: Splitter,
    /// For what is too small.
    vectors: &'static Packed,
}

impl Split {
    /// `None` where the processor has no tile unit.
    pub(super) fn detect() -> Option<&'static Self> {
        static SPLIT: std::sync::OnceLock<Option<Split>> = std::sync::OnceLock::new();
        let detect = || {
            let (splitter, vectors) = (Splitter::detect()?, Packed::detect()?);
            Unit::Amx.is_supported().then_some(Split { splitter, vectors })
        };
        SPLIT.get_or_init(detect).as_ref()
    }
}

impl Gemm for Split {
    fn leaves_thin_sums(&self) -> bool {
        true
    }

    fn gemm(&self, mut c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism) {
        let depth = sum.iter().map(|factors| factors.a.cols).max().unwrap_or(0);
        let is_contiguous = |view: View<'_>| view.row_stride == 1 || view.col_stride == 1;
        let can_split = sum.iter().all(|factors| is_contiguous(factors.a) && is_contiguous(factors.b));
        if c.rows.min(c.cols).min(depth) < WORTH_TILES || !can_split {
            return self.vectors.gemm(c, beta, sum, parallelism);
        }
        let output = Output::new(&mut c);
        let product = Product { splitter: self.splitter, output: &output, accumulate: beta != 0.0, sum };
        SHARING.run((c.rows, c.cols), depth, parallelism, |rows, cols| product.task(rows, cols));
    }
}

/// Fetches the values of a block that is to be written: columns `col` on of `rows`.
fn prefetch_result(output: &Output, rows: Range<usize>, col: usize) {
    for row in rows {
        let first = output.c.wrapping_add(row * output.stride + col);
        #[allow(unsafe_code)]
        // SAFETY: prefetching reads nothing.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(first.cast());
            _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(LANES).cast());
        }
    }
}

struct Product<'a> {
    splitter: Splitter,
    output: &'a Output,
    accumulate: bool,
    sum: &'a [Factors<'a>],
}

/// A thread's buffers, which stay in its second-level cache.
#[derive(Default)]
struct Scratch {
    rows: Vec<Parts>,
    columns: Vec<Parts>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

fn room(buffer: &mut Vec<Parts>, len: usize) -> &mut [Parts] {
    if buffer.len() < len {
        buffer.resize(len, Parts::ZERO);
    }
    &mut buffer[..len]
}

impl Product<'_> {
    fn task(&self, rows: Range<usize>, cols: Range<usize>) {
        let mut scratch = SCRATCH.take();
        let unit = TileUnit::configure();
        let mut accumulate = self.accumulate;
        for factors in self.sum {
            let tiles = factors.a.cols.div_ceil(DEPTH);
            for first in (0..tiles).step_by(STRETCH) {
                let depth = first..tiles.min(first + STRETCH);
                self.stretch(&unit, &mut scratch, factors, &rows, &cols, depth, accumulate);
                accumulate = true;
            }
        }
        SCRATCH.set(scratch);
    }

    /// The tiles `depth` of the inner dimension.
    #[allow(clippy::too_many_arguments, reason = "a block needs both factors and the result")]
    fn stretch(
        &self,
        unit: &TileUnit,
        scratch: &mut Scratch,
        factors: &Factors<'_>,
        rows: &Range<usize>,
        cols: &Range<usize>,
        depth: Range<usize>,
        accumulate: bool,
    ) {
        let Factors { alpha, a, b } = *factors;
        let (tiles, start) = (depth.len(), depth.start * DEPTH);
        let split_rows = room(&mut scratch.rows, rows.len().div_ceil(BLOCK) * 2 * tiles);
        let split_columns = room(&mut scratch.columns, 2 * tiles);
        for (strip, out) in split_rows.chunks_exact_mut(tiles).enumerate() {
            self.splitter.split(a, strip_of(rows, strip), start, alpha, Order::Rows, out);
        }
        for col in cols.clone().step_by(BLOCK) {
            let lanes = col..cols.end.min(col + BLOCK);
            let halves = split_columns.chunks_exact_mut(tiles).enumerate();
            let parts = halves.map(|(strip, out)| {
                self.splitter.split(b.transposed(), strip_of(&lanes, strip), start, 1.0, Order::Pairs, out)
            });
            let parts = parts.max().unwrap_or(0);
            let next = lanes.end..cols.end.min(lanes.end + BLOCK);
            let places = start..b.rows.min(start + tiles * DEPTH);
            let blocks = rows.len().div_ceil(BLOCK);
            let right = [0, 1].map(|strip| split_columns[strip * tiles..][..tiles].as_ptr());
            for (number, row) in rows.clone().step_by(BLOCK).enumerate() {
                let left = [0, 1].map(|strip| split_rows[(2 * number + strip) * tiles..][..tiles].as_ptr());
                let size = (BLOCK.min(rows.end - row), lanes.len());
                // What is split next comes from far away, so it is fetched while this is multiplied.
                prefetch_columns(b, next.clone(), places.clone(), (number, blocks));
                prefetch_result(self.output, row + BLOCK..rows.end.min(row + 2 * BLOCK), col);
                #[allow(unsafe_code)]
                // SAFETY: the block lies in the result, in this task's part of it; all strips have so many tiles.
                unsafe {
                    let c = self.output.c.add(row * self.output.stride + col);
                    self.block(unit, (left, right), (tiles, parts), c, size, accumulate);
                }
            }
        }
    }

    /// One block, by way of a buffer where it reaches over the edge of the result.
    ///
    /// # Safety
    /// As of [`block`].
    #[allow(unsafe_code)]
    unsafe fn block(
        &self,
        unit: &TileUnit,
        (left, right): ([*const Parts; 2], [*const Parts; 2]),
        (tiles, parts): (usize, usize),
        c: *mut f32,
        (height, width): (usize, usize),
        accumulate: bool,
    ) {
        let stride = self.output.stride;
        // SAFETY: the caller vouches for the strips and for so many rows and columns of the result.
        unsafe {
            if (height, width) == (BLOCK, BLOCK) {
                return block(unit, left, right, tiles, parts, c, stride, accumulate);
            }
            let mut edge = Edge([0.0; BLOCK * BLOCK]);
            let values = edge.0.as_mut_ptr();
            if accumulate {
                for row in 0..height {
                    std::ptr::copy_nonoverlapping(c.add(row * stride), values.add(row * BLOCK), width);
                }
            }
            block(unit, left, right, tiles, parts, values, BLOCK, accumulate);
            for row in 0..height {
                std::ptr::copy_nonoverlapping(values.add(row * BLOCK), c.add(row * stride), width);
            }
        }
    }
}

/// The lanes of `range` that strip `strip` holds: 16, or what is left.
fn strip_of(range: &Range<usize>, strip: usize) -> Range<usize> {
    let first = (range.start + strip * LANES).min(range.end);
    first..range.end.min(first + LANES)
}

/// A block that reaches over the edge of the result.
#[repr(align(64))]
struct Edge([f32; BLOCK * BLOCK]);

#[cfg(test)]
mod tests {
    use super::super::plain::{Plain, for_each_layout};
    use super::super::{Factors, View};
    use super::*;
    use crate::Matrix;
    use crate::ops::finite_differences::random;

    #[test]
    fn is_as_exact_as_float32_on_ragged_shapes_however_factors_lie() {
        let Some(split) = Split::detect() else { return };
        let shapes = [(32, 32, 32), (33, 40, 65), (130, 300, 47), (40, 577, 100), (600, 64, 33)];
        for_each_layout(&shapes, |sum, beta, start, expected| {
            let error = |gemm: &dyn Gemm| {
                let mut found = start.clone();
                gemm.gemm(ViewMut::of(&mut found), beta, sum, Parallelism::Pool);
                let pairs = found.data().iter().zip(expected.data());
                pairs.map(|(found, expected)| f64::from(found - expected).powi(2)).sum::<f64>().sqrt()
            };
            let (found, of_vectors, (rows, cols)) = (error(split), error(split.vectors), expected.shape());
            assert!(found <= 2.0 * of_vectors, "{rows} × {cols}: {found}, vectors {of_vectors}");
        });
    }

    #[test]
    fn values_of_few_bits_are_multiplied_exactly() {
        let Some(split) = Split::detect() else { return };
        let values = |rows: usize, cols: usize| {
            Matrix::from_vec(rows, cols, (0..rows * cols).map(|place| (place * 7 % 31) as f32 - 15.0).collect())
        };
        let (a, b) = (values(64, 96), values(96, 64));
        let sum = [Factors { alpha: 1.0, a: View::of(&a), b: View::of(&b) }];
        let (mut found, mut expected) = (Matrix::zeros(64, 64), Matrix::zeros(64, 64));
        split.gemm(ViewMut::of(&mut found), 0.0, &sum, Parallelism::Pool);
        Plain.gemm(ViewMut::of(&mut expected), 0.0, &sum, Parallelism::Single);
        assert_eq!(found, expected);
    }

    #[test]
    fn no_value_depends_on_how_the_work_is_cut() {
        let Some(split) = Split::detect() else { return };
        let (a, b) = (random(640, 400, 0), random(400, 300, 1));
        let product = |parallelism| {
            let mut c = Matrix::zeros(640, 300);
            let sum = [Factors { alpha: 1.0, a: View::of(&a), b: View::of(&b) }];
            split.gemm(ViewMut::of(&mut c), 0.0, &sum, parallelism);
            c
        };
        let alone = product(Parallelism::Single);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| product(Parallelism::Pool)), alone, "{threads} threads");
        }
    }
}
