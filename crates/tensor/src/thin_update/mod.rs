//! Low-rank updates for inference, `y ← y + Σ s·(x·Aᵀ)·Bᵀ`: a row's sums have the same order whatever other rows there are
//! and whatever updates they have.

mod vectors;

use std::ops::Range;

use crate::kernels::bf16::LANES;
#[cfg(target_arch = "x86_64")]
use crate::kernels::bf16::{ThinAdder, ThinTiles, Unit};
use crate::kernels::chunks_in_turn;
use crate::shelf::Shelf;
use crate::{Kernels, Matrix, Precision};
use vectors::ThinVectors;

/// A low-rank update.
pub(crate) struct ThinUpdate {
    rank: usize,
    input: usize,
    output: usize,
    values: Values,
}

/// The factors, as the kernels take them.
enum Values {
    Float32(ThinVectors<f32>),
    /// In bf16.
    Pairs(ThinVectors<u32>),
    #[cfg(target_arch = "x86_64")]
    Tiles(ThinTiles),
}

/// Rows of a strip: those of a tile.
const TASK_ROWS: usize = LANES;
/// Multiplications from which spreading over threads pays.
const WORTH_THREADS: usize = 128 * 1024;
/// Pieces that the work of a thread is cut into, so that threads end together.
const PIECES: usize = 2;

/// Some rows of one update, of one strip of [`TASK_ROWS`] rows.
struct Task<'a> {
    update: &'a ThinUpdate,
    rows: Range<usize>,
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
            let mut start = rows.start;
            while start < rows.end {
                let end = rows.end.min((start / TASK_ROWS + 1) * TASK_ROWS);
                let (_, after) = std::mem::take(&mut rest).split_at_mut((start - at) * output);
                let (own, after) = after.split_at_mut((end - start) * output);
                (rest, at) = (after, end);
                tasks.push(Task { update, rows: start..end, y: own });
                start = end;
            }
        }
    }
    // The factors of an adapter for these linears lie one after the other.
    tasks.sort_by_key(|task| task.rows.start);
    if work < WORTH_THREADS {
        run(x, &mut tasks);
    } else {
        let piece = tasks.len().div_ceil(PIECES * rayon::current_num_threads());
        chunks_in_turn(&mut tasks, piece, |_, tasks| run(x, tasks));
    }
}

/// Runs tasks one after the other; what the next ones begin with is fetched meanwhile.
fn run(x: &Matrix, tasks: &mut [Task<'_>]) {
    let updates: Vec<&ThinUpdate> = tasks.iter().map(|task| task.update).collect();
    #[cfg(target_arch = "x86_64")]
    let mut adder = ThinAdder::new(x, updates.iter().filter_map(|update| update.tiles()));
    for (number, Task { update, rows, y }) in tasks.iter_mut().enumerate() {
        if let Some(next) = updates.get(number + 1).filter(|next| !std::ptr::eq(**next, *update)) {
            next.prefetch_first();
        }
        let own = || &x.data()[rows.start * x.cols()..rows.end * x.cols()];
        match &update.values {
            Values::Float32(values) => values.add(own(), y),
            Values::Pairs(values) => values.add(own(), y),
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(tiles) => adder.add(tiles, rows.clone(), y),
        }
    }
}

impl ThinUpdate {
    /// `Σ scale·(x·Aᵀ)·Bᵀ` over factors `A` `[r, in]`, `B` `[out, r]`, for products by `kernels`.
    pub(crate) fn new(factors: &[(&Matrix, &Matrix, f32)], kernels: &Kernels, shelf: &mut Shelf) -> Self {
        let scales: Vec<f32> = factors.iter().flat_map(|(a, _, scale)| std::iter::repeat_n(*scale, a.rows())).collect();
        if let [(a, b, _)] = factors {
            return Self::of(a, b, &scales, kernels, shelf);
        }
        let (input, output) = factors.first().map_or((0, 0), |(a, b, _)| (a.cols(), b.rows()));
        let a = factors.iter().flat_map(|(a, ..)| a.data()).copied().collect();
        let b = (0..output).flat_map(|row| factors.iter().flat_map(move |(_, b, _)| b.row(row))).copied().collect();
        let (a, b) = (Matrix::from_vec(scales.len(), input, a), Matrix::from_vec(output, scales.len(), b));
        Self::of(&a, &b, &scales, kernels, shelf)
    }

    fn of(a: &Matrix, b: &Matrix, scales: &[f32], kernels: &Kernels, shelf: &mut Shelf) -> Self {
        let values = match kernels.precision() {
            Precision::Float32 => Values::Float32(ThinVectors::new(a, b, scales, shelf)),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if kernels.unit() == Unit::Amx => Values::Tiles(ThinTiles::new(a, b, scales, shelf)),
            Precision::Bf16 => Values::Pairs(ThinVectors::new(a, b, scales, shelf)),
        };
        Self { rank: scales.len(), input: a.cols(), output: b.rows(), values }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.values {
            Values::Float32(values) => values.bytes(),
            Values::Pairs(values) => values.bytes(),
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(tiles) => tiles.bytes(),
        }
    }

    /// `A` `[r, in]` and `B` `[out, r]`, which has the scales; `r` may have grown, with zeros.
    pub(crate) fn factors(&self) -> (Matrix, Matrix) {
        match &self.values {
            Values::Float32(values) => values.factors(),
            Values::Pairs(values) => values.factors(),
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(tiles) => tiles.factors(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn tiles(&self) -> Option<&ThinTiles> {
        match &self.values {
            Values::Tiles(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// Fetches what the update begins with, where nobody else does.
    fn prefetch_first(&self) {
        match &self.values {
            Values::Float32(values) => values.prefetch_first(),
            Values::Pairs(values) => values.prefetch_first(),
            #[cfg(target_arch = "x86_64")]
            Values::Tiles(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;

    /// An update, the sum of its factors' products, and that of their absolute values.
    fn update(kernels: Kernels, factors: [(usize, f32); 2], input: usize, output: usize) -> (ThinUpdate, [Matrix; 2]) {
        let of = |index: u64, (rank, scale): (usize, f32)| {
            (random(rank, input, index), random(output, rank, index + 10), scale)
        };
        let factors = [of(0, factors[0]), of(1, factors[1])];
        let views: Vec<(&Matrix, &Matrix, f32)> = factors.iter().map(|(a, b, scale)| (a, b, *scale)).collect();
        let (mut delta, mut size) = (Matrix::zeros(output, input), Matrix::zeros(output, input));
        for (a, b, scale) in &factors {
            for out in 0..output {
                for place in 0..a.rows() {
                    for col in 0..input {
                        let product = scale * b.row(out)[place] * a.row(place)[col];
                        delta.row_mut(out)[col] += product;
                        size.row_mut(out)[col] += product.abs();
                    }
                }
            }
        }
        (ThinUpdate::new(&views, &kernels, &mut Shelf::new(1 << 16)), [delta, size])
    }

    /// Every form that factors have, and how exact the sum of products is, relative to the sum of their absolute values: bf16
    /// rounds inputs, the middle and both factors.
    fn forms() -> Vec<(Kernels, f32)> {
        let bf16 = [Some(Kernels::bf16_in_float32()), Kernels::amx()].into_iter().flatten();
        [(Kernels::detect(), 1e-6)].into_iter().chain(bf16.map(|kernels| (kernels, 1.6e-2))).collect()
    }

    #[test]
    fn adds_the_product_with_the_update() {
        for (kernels, tolerance) in forms() {
            for (input, output, ranks) in [(5, 7, [3, 2]), (33, 70, [3, 2]), (64, 32, [8, 8]), (100, 49, [16, 19])] {
                let (update, [delta, size]) = update(kernels, [(ranks[0], 0.5), (ranks[1], -1.0)], input, output);
                let (x, start) = (random(9, input, 3), random(9, output, 4));
                let mut y = Matrix::from_vec(9, output, start.to_vec());
                add_updates(vec![Updates { y: &mut y, updates: vec![(1..8, &update)] }], &x);
                for row in 0..9 {
                    for col in 0..output {
                        let sum = |of: &Matrix, value: fn(f32) -> f32| -> f32 {
                            x.row(row).iter().zip(of.row(col)).map(|(x, w)| value(*x) * w).sum()
                        };
                        let added = if (1..8).contains(&row) { sum(&delta, |x| x) } else { 0.0 };
                        let (found, expected) = (y.row(row)[col], start.row(row)[col] + added);
                        assert!(
                            (found - expected).abs() <= tolerance * (sum(&size, f32::abs) + expected.abs()),
                            "{kernels:?} {row} {col}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn keeps_its_factors() {
        for (kernels, tolerance) in forms() {
            for (input, output, rank) in [(5, 7, 3), (33, 70, 3), (64, 32, 15)] {
                let (update, [delta, size]) = update(kernels, [(rank, 0.5), (2, -1.0)], input, output);
                let (a, b) = update.factors();
                for out in 0..output {
                    for col in 0..input {
                        let product: f32 = (0..a.rows()).map(|place| b.row(out)[place] * a.row(place)[col]).sum();
                        let error = (product - delta.row(out)[col]).abs();
                        assert!(error <= tolerance * size.row(out)[col], "{kernels:?} {out} {col}");
                    }
                }
            }
        }
    }

    #[test]
    fn linears_of_one_input_are_the_same_bits_together_as_alone() {
        for (kernels, _) in forms() {
            let (wide, _) = update(kernels, [(3, 0.5), (5, 2.0)], 77, 700);
            let (narrow, _) = update(kernels, [(4, 1.5), (1, 1.0)], 77, 9);
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
        for (kernels, _) in forms() {
            let (first, _) = update(kernels, [(3, 0.5), (5, 2.0)], 77, 90);
            let (second, _) = update(kernels, [(1, 1.5), (19, 1.0)], 77, 90);
            let x = random(40, 77, 3);
            let run = |ranges: &[(Range<usize>, &ThinUpdate)]| {
                let mut y = Matrix::zeros(40, 90);
                add_updates(vec![Updates { y: &mut y, updates: ranges.to_vec() }], &x);
                y
            };
            let together = run(&[(0..23, &first), (23..40, &second)]);
            for row in 0..40 {
                let alone = run(&[(row..row + 1, if row < 23 { &first } else { &second })]);
                assert_eq!(alone.row(row), together.row(row), "{kernels:?} row {row}");
            }
        }
    }
}
