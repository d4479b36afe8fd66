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

use rayon::prelude::*;

use super::bf16::{DEPTH, LANES, Order, TileUnit, Unit};
use super::float32::{Packed, prefetch_columns};
use super::{Factors, Gemm, Parallelism, View, ViewMut};
use block::{BLOCK, block};
use parts::{Parts, Splitter};

/// Tiles of the inner dimension that are split at one time.
const STRETCH: usize = 9;

/// Rows of a task at the most: split, they take less than half of the second-level cache.
const MOST_ROWS: usize = 16 * BLOCK;

/// Rows, columns and inner dimension from which the tile unit is faster than vector instructions.
const WORTH_TILES: usize = 32;

/// Multiplications from which spreading over threads pays.
const WORTH_THREADS: usize = 512 * 1024;

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

    fn gemm(&self, c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism) {
        let (rows, cols) = (c.rows, c.cols);
        let depth = sum.iter().map(|factors| factors.a.cols).max().unwrap_or(0);
        let is_contiguous = |view: View<'_>| view.row_stride == 1 || view.col_stride == 1;
        let can_split = sum.iter().all(|factors| is_contiguous(factors.a) && is_contiguous(factors.b));
        if rows.min(cols).min(depth) < WORTH_TILES || !can_split {
            return self.vectors.gemm(c, beta, sum, parallelism);
        }
        let output = Output { c: c.data.as_mut_ptr(), stride: c.row_stride };
        let product = Product { splitter: self.splitter, output: &output, accumulate: beta != 0.0, sum };
        let spread = parallelism == Parallelism::Pool && rows * cols * depth >= WORTH_THREADS;
        let threads = if spread { rayon::current_num_threads() } else { 1 };
        let (row_task, col_task) = task_size(rows, cols, threads);
        let (row_tasks, col_tasks) = (rows.div_ceil(row_task), cols.div_ceil(col_task));
        let task = |task: usize| {
            let (row, col) = (task / col_tasks * row_task, task % col_tasks * col_task);
            product.task(row..rows.min(row + row_task), col..cols.min(col + col_task));
        };
        if threads > 1 && row_tasks * col_tasks > 1 {
            (0..row_tasks * col_tasks).into_par_iter().for_each(task);
        } else {
            (0..row_tasks * col_tasks).for_each(task);
        }
    }
}

/// Rows and columns of a task. No value depends on it, so the number of threads may decide. Every task splits its rows and
/// its columns: of the ways to cut the result into as many parts, that which splits least.
fn task_size(rows: usize, cols: usize, threads: usize) -> (usize, usize) {
    let share = |size: usize, parts: usize| size.div_ceil(parts).next_multiple_of(BLOCK);
    let cuts = (1..=threads).map(|row_parts| (row_parts.max(rows.div_ceil(MOST_ROWS)), threads.div_ceil(row_parts)));
    let (row_parts, col_parts) =
        cuts.min_by_key(|(row_parts, col_parts)| row_parts * cols + col_parts * rows).unwrap_or((1, 1));
    (share(rows, row_parts), share(cols, col_parts))
}

/// Where a result goes; tasks write to parts that don't overlap.
struct Output {
    c: *mut f32,
    stride: usize,
}

impl Output {
    /// Fetches the values of a block that is to be written.
    fn prefetch(&self, rows: Range<usize>, col: usize) {
        for row in rows {
            let first = self.c.wrapping_add(row * self.stride + col);
            #[allow(unsafe_code)]
            // SAFETY: prefetching reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(first.cast());
                _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(LANES).cast());
            }
        }
    }
}

#[allow(unsafe_code)]
// SAFETY: tasks write to disjoint parts of memory that is borrowed for as long as they run.
unsafe impl Sync for Output {}

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
                self.output.prefetch(row + BLOCK..rows.end.min(row + 2 * BLOCK), col);
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
    use super::super::{Factors, View, plain::Plain};
    use super::*;
    use crate::Matrix;
    use crate::ops::finite_differences::random;

    fn lying(matrix: &Matrix, turned: bool) -> View<'_> {
        if turned { View::of(matrix).transposed() } else { View::of(matrix) }
    }

    #[test]
    fn is_as_exact_as_float32_on_ragged_shapes_however_factors_lie() {
        let Some(split) = Split::detect() else { return };
        for (rows, depth, cols) in [(32, 32, 32), (33, 40, 65), (130, 300, 47), (40, 577, 100), (600, 64, 33)] {
            for (turned_a, turned_b) in [(false, false), (false, true), (true, false), (true, true)] {
                let shape = |turned: bool, rows, cols| if turned { (cols, rows) } else { (rows, cols) };
                let (a_rows, a_cols) = shape(turned_a, rows, depth);
                let (b_rows, b_cols) = shape(turned_b, depth, cols);
                let (a, b) = (random(a_rows, a_cols, 0), random(b_rows, b_cols, 1));
                let (low_a, low_b) = (random(rows, 3, 2), random(3, cols, 3));
                let sum = [
                    Factors { alpha: 0.5, a: lying(&a, turned_a), b: lying(&b, turned_b) },
                    Factors { alpha: 2.0, a: View::of(&low_a), b: View::of(&low_b) },
                ];
                for beta in [0.0, 1.0] {
                    let start = if beta == 0.0 { f32::NAN } else { 1.0 };
                    let mut all = [random(rows, cols, 4), random(rows, cols, 4), random(rows, cols, 4)];
                    all.iter_mut().for_each(|c| c.data_mut().iter_mut().for_each(|value| *value *= start));
                    let [found, vectors, expected] = &mut all;
                    split.gemm(ViewMut::of(found), beta, &sum, Parallelism::Pool);
                    split.vectors.gemm(ViewMut::of(vectors), beta, &sum, Parallelism::Pool);
                    Plain.gemm(ViewMut::of(expected), beta, &sum, Parallelism::Single);
                    let error = |found: &Matrix| {
                        let pairs = found.data().iter().zip(expected.data());
                        pairs.map(|(found, expected)| f64::from(found - expected).powi(2)).sum::<f64>().sqrt()
                    };
                    let (error, of_vectors) = (error(found), error(vectors));
                    assert!(error <= 2.0 * of_vectors, "{rows} × {depth} × {cols}: {error}, vectors {of_vectors}");
                }
            }
        }
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
