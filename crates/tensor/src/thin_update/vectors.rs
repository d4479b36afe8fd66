//! Low-rank updates by vector instructions, a row at a time or a few that share what is read.
//!
//! Factors lie in the order in which they are read, and are fetched a little before they are needed.

use pulp::{Simd, WithSimd};

use crate::Matrix;
use crate::kernels::stored::{CHUNK, Stored};
use crate::kernels::{dispatch, prefetch_for_later, vectorised};
use crate::shelf::{Shelf, Shelved};

/// A low-rank update with values as `V` keeps them.
pub(super) struct ThinVectors<V> {
    rank: usize,
    input: usize,
    output: usize,
    /// `A` and then `B`, where [`ThinVectors::place_in_a`] and [`ThinVectors::place_in_b`] tell.
    values: Shelved<V>,
    /// A factor of each of the `rank` products.
    scales: Vec<f32>,
}

/// Columns of `Bᵀ` whose sums are in registers together.
const BLOCK: usize = 2 * CHUNK;
/// Rows of `A` whose sums are in registers together.
const TOGETHER: usize = 4;
/// Rows that share what is read of `A` and `B`, at the most.
const SHARING: usize = 4;
/// Bytes of the factors that are fetched before what is being computed.
const AHEAD: usize = 8192;

impl<V: Stored> ThinVectors<V> {
    /// The update of `A` `[r, in]` and `B` `[out, r]`, with a factor of each rank.
    pub(super) fn new(a: &Matrix, b: &Matrix, scales: &[f32], shelf: &mut Shelf) -> Self {
        let (rank, input, output) = (a.rows(), a.cols(), b.rows());
        let mut update = Self { rank, input, output, values: Shelved::default(), scales: scales.to_vec() };
        update.values = update.arranged(a, b, shelf);
        update
    }

    /// The values of the factors in the order in which they are read.
    fn arranged(&self, a: &Matrix, b: &Matrix, shelf: &mut Shelf) -> Shelved<V> {
        let mut shelved = shelf.take(self.rank * (self.chunks() + 2 * self.blocks()) * V::ELEMENTS);
        let values: &mut [V] = &mut shelved;
        vectorised(
            #[inline(always)]
            || {
                let mut put = |place: usize, chunk: &[f32; CHUNK]| {
                    V::store(chunk, &mut values[place / CHUNK * V::ELEMENTS..][..V::ELEMENTS]);
                };
                for place in 0..a.rows() {
                    for (number, values) in a.row(place).chunks(CHUNK).enumerate() {
                        let mut chunk = [0.0; CHUNK];
                        chunk[..values.len()].copy_from_slice(values);
                        put(self.place_in_a(place, number * CHUNK), &chunk);
                    }
                    for start in (0..self.output).step_by(CHUNK) {
                        let mut chunk = [0.0; CHUNK];
                        for (lane, col) in (start..self.output.min(start + CHUNK)).enumerate() {
                            chunk[lane] = b.data()[col * b.cols() + place];
                        }
                        put(self.place_in_b(place, start), &chunk);
                    }
                }
            },
        );
        shelved
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    /// `A` `[r, in]` and `B` `[out, r]`, which has the scales.
    pub(super) fn factors(&self) -> (Matrix, Matrix) {
        let value = |place: usize| V::value(&self.values[place / CHUNK * V::ELEMENTS..], place % CHUNK);
        let (mut a, mut b) = (Matrix::zeros(self.rank, self.input), Matrix::zeros(self.output, self.rank));
        for place in 0..self.rank {
            (0..self.input).for_each(|col| a.row_mut(place)[col] = value(self.place_in_a(place, col)));
            let scale = self.scales[place];
            (0..self.output).for_each(|col| b.row_mut(col)[place] = scale * value(self.place_in_b(place, col)));
        }
        (a, b)
    }

    /// Chunks of a row of `A`, the last one filled with zeros.
    fn chunks(&self) -> usize {
        self.input.div_ceil(CHUNK)
    }

    /// Blocks of columns of `Bᵀ`, the last one filled with zeros.
    fn blocks(&self) -> usize {
        self.output.div_ceil(BLOCK)
    }

    /// Where the value of `A` in row `place` and column `col` lies: rows four by four, chunk by chunk.
    fn place_in_a(&self, place: usize, col: usize) -> usize {
        let (first, rows) =
            if place < self.rank / TOGETHER * TOGETHER { (place / TOGETHER * TOGETHER, TOGETHER) } else { (place, 1) };
        first * self.chunks() * CHUNK + (col / CHUNK * rows + place - first) * CHUNK + col % CHUNK
    }

    /// Where the value of `Bᵀ` in row `place` and column `col` lies: block by block of the columns.
    fn place_in_b(&self, place: usize, col: usize) -> usize {
        self.rank * self.chunks() * CHUNK + (col / BLOCK * self.rank + place) * BLOCK + col % BLOCK
    }

    /// Fetches what the update begins with.
    pub(super) fn prefetch_first(&self) {
        prefetch_for_later(&self.values, 0..AHEAD.min(size_of_val(&self.values[..])));
    }

    /// Adds the update of rows `x` `[rows, in]` to `y` `[rows, out]`.
    pub(super) fn add(&self, x: &[f32], y: &mut [f32]) {
        dispatch(Addition { update: self, x, y });
    }
}

/// Rows of one update that are added. In vectors by name: loops over lanes are not always compiled into vectors.
struct Addition<'a, V: Stored> {
    update: &'a ThinVectors<V>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<V: Stored> WithSimd for Addition<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ThinVectors { input, output, rank, .. } = *self.update;
        let mut middle = vec![0.0; SHARING * rank];
        let (mut x, mut y) = (self.x, self.y);
        while !x.is_empty() {
            let together = [SHARING, 2].into_iter().find(|rows| x.len() >= rows * input).unwrap_or(1);
            let (those, x_after) = x.split_at(together * input);
            let (target, y_after) = std::mem::take(&mut y).split_at_mut(together * output);
            match together {
                SHARING => self.update.rows::<S, SHARING>(simd, those, target, &mut middle),
                2 => self.update.rows::<S, 2>(simd, those, target, &mut middle),
                _ => self.update.rows::<S, 1>(simd, those, target, &mut middle),
            }
            (x, y) = (x_after, y_after);
        }
    }
}

impl<V: Stored> ThinVectors<V> {
    /// Some rows. Every value is summed in the same order however many they are.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&self, simd: S, x: &[f32], y: &mut [f32], middle: &mut [f32]) {
        let (values, a_row) = (&self.values[..], self.chunks() * V::ELEMENTS);
        let mut place = 0;
        while place < self.rank {
            let a = &values[place * a_row..];
            if place + TOGETHER <= self.rank {
                self.inner::<S, ROWS, TOGETHER>(simd, a, x, place, middle);
                place += TOGETHER;
            } else {
                self.inner::<S, ROWS, 1>(simd, a, x, place, middle);
                place += 1;
            }
        }
        let block_elements = self.rank * 2 * V::ELEMENTS;
        let b = &values[self.rank * a_row..];
        for block in 0..self.blocks() {
            let b = &b[block * block_elements..][..block_elements];
            let first = block * BLOCK;
            if first + BLOCK <= self.output {
                self.outer::<S, ROWS>(simd, b, &mut y[first..], self.output, middle);
            } else {
                let mut padded = [0.0; SHARING * BLOCK];
                let left = self.output - first;
                (0..ROWS).for_each(|row| {
                    padded[row * BLOCK..][..left].copy_from_slice(&y[row * self.output + first..][..left]);
                });
                self.outer::<S, ROWS>(simd, b, &mut padded, BLOCK, middle);
                (0..ROWS).for_each(|row| {
                    y[row * self.output + first..][..left].copy_from_slice(&padded[row * BLOCK..][..left]);
                });
            }
        }
    }

    /// `middle ← scale·x·Aᵀ` for some rows and the `RANKS` rows of `A` that `a` begins with, from `place` on.
    #[inline(always)]
    fn inner<S: Simd, const ROWS: usize, const RANKS: usize>(
        &self,
        simd: S,
        a: &[V],
        x: &[f32],
        place: usize,
        middle: &mut [f32],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); RANKS]; ROWS];
        let whole = self.input / CHUNK;
        let block_elements = RANKS * V::ELEMENTS;
        for chunk in 0..self.chunks() {
            let a = &a[chunk * block_elements..][..block_elements];
            prefetch_for_later(a, AHEAD..AHEAD + size_of_val(a));
            let mut padded = [[0.0; CHUNK]; ROWS];
            if chunk == whole {
                let left = self.input - chunk * CHUNK;
                for row in 0..ROWS {
                    padded[row][..left].copy_from_slice(&x[row * self.input + chunk * CHUNK..][..left]);
                }
            }
            for number in 0..CHUNK / 2 / S::F32_LANES {
                let mut vectors = [[simd.splat_f32s(0.0); 2]; ROWS];
                for row in 0..ROWS {
                    let own =
                        if chunk == whole { &padded[row][..] } else { &x[row * self.input + chunk * CHUNK..][..CHUNK] };
                    vectors[row] = f32::vectors(simd, own, number);
                }
                for rank in 0..RANKS {
                    let a = V::vectors(simd, &a[rank * V::ELEMENTS..][..V::ELEMENTS], number);
                    for row in 0..ROWS {
                        let sum = simd.mul_add_f32s(vectors[row][0], a[0], sums[row][rank]);
                        sums[row][rank] = simd.mul_add_f32s(vectors[row][1], a[1], sum);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for rank in 0..RANKS {
                let sum = simd.reduce_sum_f32s(sums[row][rank]);
                middle[row * self.rank + place + rank] = self.scales[place + rank] * sum;
            }
        }
    }

    /// Adds the products of the middle with a block of `Bᵀ` to the block of `y`, of which rows lie `stride` apart.
    #[inline(always)]
    fn outer<S: Simd, const ROWS: usize>(&self, simd: S, b: &[V], y: &mut [f32], stride: usize, middle: &[f32]) {
        let vectors = CHUNK / 2 / S::F32_LANES;
        for number in 0..vectors {
            // Of each row the vectors of both halves of both chunks.
            let mut sums = [[simd.splat_f32s(0.0); 4]; ROWS];
            for row in 0..ROWS {
                let (y, _) = S::as_simd_f32s(&y[row * stride..][..BLOCK]);
                for part in 0..4 {
                    sums[row][part] = y[part * vectors + number];
                }
            }
            for place in 0..self.rank {
                let b = &b[place * 2 * V::ELEMENTS..][..2 * V::ELEMENTS];
                prefetch_for_later(b, AHEAD..AHEAD + size_of_val(b));
                let [first, second] = V::vectors(simd, &b[..V::ELEMENTS], number);
                let [third, fourth] = V::vectors(simd, &b[V::ELEMENTS..], number);
                for row in 0..ROWS {
                    let factor = simd.splat_f32s(middle[row * self.rank + place]);
                    sums[row] = [
                        simd.mul_add_f32s(factor, first, sums[row][0]),
                        simd.mul_add_f32s(factor, second, sums[row][1]),
                        simd.mul_add_f32s(factor, third, sums[row][2]),
                        simd.mul_add_f32s(factor, fourth, sums[row][3]),
                    ];
                }
            }
            for row in 0..ROWS {
                let (y, _) = S::as_mut_simd_f32s(&mut y[row * stride..][..BLOCK]);
                for part in 0..4 {
                    y[part * vectors + number] = sums[row][part];
                }
            }
        }
    }
}
