//! Low-rank updates for inference, `y ← y + Σ s·(x·Aᵀ)·Bᵀ`, a row at a time or two: a row's sums have the same order
//! whatever other rows there are and whatever updates they have.
//!
//! Where each row has an update of its own, its factors come from far away and are used once: they lie in the order in
//! which they are read, and are fetched a little before they are needed.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::stored::{CHUNK, Stored};
use crate::kernels::{chunks_in_turn, prefetch_for_later, vectorised};
use crate::shelf::{Shelf, Shelved};
use crate::{Matrix, Precision};

/// A low-rank update.
pub(crate) struct ThinUpdate {
    rank: usize,
    input: usize,
    output: usize,
    /// `A` and then `B`, where [`ThinUpdate::place_in_a`] and [`ThinUpdate::place_in_b`] tell.
    values: Values,
    /// A factor of each of the `rank` products.
    scales: Vec<f32>,
}

/// Values as the precision keeps them.
enum Values {
    Float32(Shelved<f32>),
    /// In pairs.
    Bf16(Shelved<u32>),
}

/// Rows that one task takes.
const TASK_ROWS: usize = 16;
/// Multiplications from which spreading over threads pays.
const WORTH_THREADS: usize = 128 * 1024;
/// Pieces that the work of a thread is cut into, so that threads end together.
const PIECES: usize = 2;

/// Some rows of one update.
struct Task<'a> {
    update: &'a ThinUpdate,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// What is added to the result of one linear.
pub(crate) struct Updates<'a> {
    /// `[rows, out]`.
    pub(crate) y: &'a mut Matrix,
    /// For rows that follow one another, their update.
    pub(crate) updates: Vec<(Range<usize>, &'a ThinUpdate)>,
}

/// Adds to rows of the results of linears of one input `x` `[rows, in]` the updates of their tuners.
pub(crate) fn add_updates(linears: Vec<Updates<'_>>, x: &Matrix) {
    let input = x.cols();
    let (mut tasks, mut work) = (Vec::new(), 0);
    for Updates { y, updates } in linears {
        let output = y.cols();
        let (mut rest, mut at) = (y.data_mut(), 0);
        for (rows, update) in updates {
            assert!(update.input == input && update.output == output, "an update is as wide as its linear");
            work += rows.len() * update.rank * (input + output);
            for start in rows.clone().step_by(TASK_ROWS) {
                let end = rows.end.min(start + TASK_ROWS);
                let (_, after) = std::mem::take(&mut rest).split_at_mut((start - at) * output);
                let (own, after) = after.split_at_mut((end - start) * output);
                (rest, at) = (after, end);
                let task = Task { update, x: &x.data()[start * input..end * input], y: own };
                tasks.push((start, task));
            }
        }
    }
    // The factors of an adapter for these linears lie one after the other.
    tasks.sort_by_key(|(start, _)| *start);
    let mut tasks: Vec<Task<'_>> = tasks.into_iter().map(|(_, task)| task).collect();
    if work < WORTH_THREADS {
        run(&mut tasks);
    } else {
        let piece = tasks.len().div_ceil(PIECES * rayon::current_num_threads());
        chunks_in_turn(&mut tasks, piece, |_, tasks| run(tasks));
    }
}

/// Runs tasks one after the other; what the next one begins with is fetched meanwhile.
fn run(tasks: &mut [Task<'_>]) {
    let updates: Vec<&ThinUpdate> = tasks.iter().map(|task| task.update).collect();
    for (number, Task { update, x, y }) in tasks.iter_mut().enumerate() {
        if let Some(next) = updates.get(number + 1).filter(|next| !std::ptr::eq(**next, *update)) {
            next.prefetch_first();
        }
        update.add(x, y);
    }
}

/// Columns of `Bᵀ` whose sums are in registers together.
const BLOCK: usize = 2 * CHUNK;
/// Rows of `A` whose sums are in registers together.
const TOGETHER: usize = 4;
/// Rows that share what is read of `A` and `B`, at the most.
const SHARING: usize = 4;
/// Bytes of the factors that are fetched before what is being computed.
const AHEAD: usize = 8192;

impl ThinUpdate {
    /// `Σ scale·(x·Aᵀ)·Bᵀ` over factors `A` `[r, in]`, `B` `[out, r]`.
    pub(crate) fn new(factors: &[(&Matrix, &Matrix, f32)], precision: Precision, shelf: &mut Shelf) -> Self {
        let (input, output) = factors.first().map_or((0, 0), |(a, b, _)| (a.cols(), b.rows()));
        let scales: Vec<f32> = factors.iter().flat_map(|(a, _, scale)| std::iter::repeat_n(*scale, a.rows())).collect();
        let mut update =
            Self { rank: scales.len(), input, output, values: Values::Float32(Shelved::default()), scales };
        update.values = match precision {
            Precision::Float32 => Values::Float32(update.arranged(factors, shelf)),
            Precision::Bf16 => Values::Bf16(update.arranged(factors, shelf)),
        };
        update
    }

    /// The values of the factors in the order in which they are read.
    fn arranged<V: Stored>(&self, factors: &[(&Matrix, &Matrix, f32)], shelf: &mut Shelf) -> Shelved<V> {
        let mut shelved = shelf.take(self.rank * (self.chunks() + 2 * self.blocks()) * V::ELEMENTS);
        let values: &mut [V] = &mut shelved;
        vectorised(
            #[inline(always)]
            || {
                let mut put = |place: usize, chunk: &[f32; CHUNK]| {
                    V::store(chunk, &mut values[place / CHUNK * V::ELEMENTS..][..V::ELEMENTS]);
                };
                let mut first = 0;
                for (a, b, _) in factors {
                    for place in 0..a.rows() {
                        for (number, values) in a.row(place).chunks(CHUNK).enumerate() {
                            let mut chunk = [0.0; CHUNK];
                            chunk[..values.len()].copy_from_slice(values);
                            put(self.place_in_a(first + place, number * CHUNK), &chunk);
                        }
                        for start in (0..self.output).step_by(CHUNK) {
                            let mut chunk = [0.0; CHUNK];
                            for (lane, col) in (start..self.output.min(start + CHUNK)).enumerate() {
                                chunk[lane] = b.data()[col * b.cols() + place];
                            }
                            put(self.place_in_b(first + place, start), &chunk);
                        }
                    }
                    first += a.rows();
                }
            },
        );
        shelved
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.values {
            Values::Float32(values) => size_of_val(&values[..]),
            Values::Bf16(values) => size_of_val(&values[..]),
        }
    }

    /// `A` `[r, in]` and `B` `[out, r]`, which has the scales.
    pub(crate) fn factors(&self) -> (Matrix, Matrix) {
        let value = |place: usize| match &self.values {
            Values::Float32(values) => values[place],
            Values::Bf16(values) => {
                let (chunk, place) = (place / CHUNK, place % CHUNK);
                let pair = values[chunk * CHUNK / 2 + place % (CHUNK / 2)];
                f32::from_bits(if place < CHUNK / 2 { pair << 16 } else { pair & 0xffff_0000 })
            }
        };
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

    fn prefetch_first(&self) {
        match &self.values {
            Values::Float32(values) => prefetch_for_later(values, 0..AHEAD.min(size_of_val(&values[..]))),
            Values::Bf16(values) => prefetch_for_later(values, 0..AHEAD.min(size_of_val(&values[..]))),
        }
    }

    fn add(&self, x: &[f32], y: &mut [f32]) {
        match &self.values {
            Values::Bf16(values) => Arch::new().dispatch(Addition { update: self, values, x, y }),
            Values::Float32(values) => Arch::new().dispatch(Addition { update: self, values, x, y }),
        }
    }
}

/// Rows of one update that are added. In vectors by name: loops over lanes are not always compiled into vectors.
struct Addition<'a, V> {
    update: &'a ThinUpdate,
    values: &'a [V],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<V: Stored> WithSimd for Addition<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ThinUpdate { input, output, rank, .. } = *self.update;
        let mut middle = vec![0.0; SHARING * rank];
        let (mut x, mut y) = (self.x, self.y);
        while !x.is_empty() {
            let together = [SHARING, 2].into_iter().find(|rows| x.len() >= rows * input).unwrap_or(1);
            let (those, x_after) = x.split_at(together * input);
            let (target, y_after) = std::mem::take(&mut y).split_at_mut(together * output);
            match together {
                SHARING => self.update.rows::<S, V, SHARING>(simd, self.values, those, target, &mut middle),
                2 => self.update.rows::<S, V, 2>(simd, self.values, those, target, &mut middle),
                _ => self.update.rows::<S, V, 1>(simd, self.values, those, target, &mut middle),
            }
            (x, y) = (x_after, y_after);
        }
    }
}

impl ThinUpdate {
    /// Some rows. Every value is summed in the same order however many they are.
    #[inline(always)]
    fn rows<S: Simd, V: Stored, const ROWS: usize>(
        &self,
        simd: S,
        values: &[V],
        x: &[f32],
        y: &mut [f32],
        middle: &mut [f32],
    ) {
        let a_row = self.chunks() * V::ELEMENTS;
        let mut place = 0;
        while place < self.rank {
            let a = &values[place * a_row..];
            if place + TOGETHER <= self.rank {
                self.inner::<S, V, ROWS, TOGETHER>(simd, a, x, place, middle);
                place += TOGETHER;
            } else {
                self.inner::<S, V, ROWS, 1>(simd, a, x, place, middle);
                place += 1;
            }
        }
        let block_elements = self.rank * 2 * V::ELEMENTS;
        let b = &values[self.rank * a_row..];
        for block in 0..self.blocks() {
            let b = &b[block * block_elements..][..block_elements];
            let first = block * BLOCK;
            if first + BLOCK <= self.output {
                self.outer::<S, V, ROWS>(simd, b, &mut y[first..], self.output, middle);
            } else {
                let mut padded = [0.0; SHARING * BLOCK];
                let left = self.output - first;
                (0..ROWS).for_each(|row| {
                    padded[row * BLOCK..][..left].copy_from_slice(&y[row * self.output + first..][..left]);
                });
                self.outer::<S, V, ROWS>(simd, b, &mut padded, BLOCK, middle);
                (0..ROWS).for_each(|row| {
                    y[row * self.output + first..][..left].copy_from_slice(&padded[row * BLOCK..][..left]);
                });
            }
        }
    }

    /// `middle ← scale·x·Aᵀ` for some rows and the `RANKS` rows of `A` that `a` begins with, from `place` on.
    #[inline(always)]
    fn inner<S: Simd, V: Stored, const ROWS: usize, const RANKS: usize>(
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
    fn outer<S: Simd, V: Stored, const ROWS: usize>(
        &self,
        simd: S,
        b: &[V],
        y: &mut [f32],
        stride: usize,
        middle: &[f32],
    ) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;

    fn update(precision: Precision, factors: [(usize, f32); 2], input: usize, output: usize) -> (ThinUpdate, Matrix) {
        let of = |index: u64, (rank, scale): (usize, f32)| {
            (random(rank, input, index), random(output, rank, index + 10), scale)
        };
        let factors = [of(0, factors[0]), of(1, factors[1])];
        let views: Vec<(&Matrix, &Matrix, f32)> = factors.iter().map(|(a, b, scale)| (a, b, *scale)).collect();
        let mut delta = Matrix::zeros(output, input);
        for (a, b, scale) in &factors {
            for out in 0..output {
                for place in 0..a.rows() {
                    for col in 0..input {
                        delta.row_mut(out)[col] += scale * b.row(out)[place] * a.row(place)[col];
                    }
                }
            }
        }
        (ThinUpdate::new(&views, precision, &mut Shelf::new(1 << 16)), delta)
    }

    #[test]
    fn adds_the_product_with_the_update() {
        for (precision, tolerance) in [(Precision::Float32, 1e-4), (Precision::Bf16, 2e-2)] {
            for (input, output) in [(5, 7), (33, 70), (64, 32)] {
                let (update, delta) = update(precision, [(3, 0.5), (2, -1.0)], input, output);
                let (x, start) = (random(9, input, 3), random(9, output, 4));
                let mut y = Matrix::from_vec(9, output, start.to_vec());
                add_updates(vec![Updates { y: &mut y, updates: vec![(1..8, &update)] }], &x);
                for row in 0..9 {
                    for col in 0..output {
                        let product: f32 = x.row(row).iter().zip(delta.row(col)).map(|(x, w)| x * w).sum();
                        let added = if (1..8).contains(&row) { product } else { 0.0 };
                        let expected = start.row(row)[col] + added;
                        let found = y.row(row)[col];
                        assert!(
                            (found - expected).abs() <= tolerance * 8.0,
                            "{precision:?} {row} {col}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn keeps_its_factors() {
        for (input, output) in [(5, 7), (33, 70), (64, 32)] {
            let (update, delta) = update(Precision::Float32, [(3, 0.5), (2, -1.0)], input, output);
            let (a, b) = update.factors();
            for out in 0..output {
                for col in 0..input {
                    let product: f32 = (0..5).map(|place| b.row(out)[place] * a.row(place)[col]).sum();
                    assert!((product - delta.row(out)[col]).abs() < 1e-5, "{out} {col}");
                }
            }
        }
    }

    #[test]
    fn linears_of_one_input_are_the_same_bits_together_as_alone() {
        for precision in [Precision::Float32, Precision::Bf16] {
            let (wide, _) = update(precision, [(3, 0.5), (5, 2.0)], 77, 700);
            let (narrow, _) = update(precision, [(4, 1.5), (1, 1.0)], 77, 9);
            let x = random(80, 77, 3);
            let ranges = [(0..3, &wide), (10..70, &wide), (70..71, &wide)];
            let others = [(5..30, &narrow), (30..80, &narrow)];
            let (mut first, mut second) = (Matrix::zeros(80, 700), Matrix::zeros(80, 9));
            let both = vec![
                Updates { y: &mut first, updates: ranges.to_vec() },
                Updates { y: &mut second, updates: others.to_vec() },
            ];
            add_updates(both, &x);
            for (together, updates) in [(first, ranges.to_vec()), (second, others.to_vec())] {
                let mut alone = Matrix::zeros(80, together.cols());
                add_updates(vec![Updates { y: &mut alone, updates }], &x);
                assert_eq!(together, alone);
                assert!(together.row(20).iter().any(|value| *value != 0.0));
            }
        }
    }

    #[test]
    fn a_row_is_the_same_bits_among_any_others() {
        let (first, _) = update(Precision::Bf16, [(3, 0.5), (5, 2.0)], 77, 90);
        let (second, _) = update(Precision::Bf16, [(1, 1.5), (9, 1.0)], 77, 90);
        let x = random(40, 77, 3);
        let run = |ranges: &[(Range<usize>, &ThinUpdate)]| {
            let mut y = Matrix::zeros(40, 90);
            add_updates(vec![Updates { y: &mut y, updates: ranges.to_vec() }], &x);
            y
        };
        let together = run(&[(0..23, &first), (23..40, &second)]);
        for row in 0..40 {
            let alone = run(&[(row..row + 1, if row < 23 { &first } else { &second })]);
            assert_eq!(alone.row(row), together.row(row), "row {row}");
        }
    }
}
