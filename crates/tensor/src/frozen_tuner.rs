//! Tuners of linears for inference: what a trained adapter comes to at a linear once nothing of it changes any more, kept
//! small and computed row by row, so that a row's result never depends on what else is in the batch.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::bf16::{from_bf16, to_bf16};
use crate::kernels::vectorised;
use crate::{
    Affine, Base, FrozenWeight, LowRankUpdate, Matrix, Parameter, Precision, Tape, Trainable, Tuned, Var, WeightTuner,
    Workspace,
};

/// `y = (x·Wᵀ + s·(x·Aᵀ)·Bᵀ) ⊙ scale + bias`, with the frozen `W` or one of its own.
pub struct FrozenTuner {
    /// In place of the frozen weight.
    pub(crate) whole: Option<FrozenWeight>,
    pub(crate) update: Option<ThinUpdate>,
    /// A factor for each output feature.
    pub(crate) scale: Option<Vec<f32>>,
    /// In place of the frozen bias.
    pub(crate) bias: Option<Vec<f32>>,
}

/// A low-rank update, `A` and `B` lying as rows read them.
pub(crate) struct ThinUpdate {
    rank: usize,
    input: usize,
    output: usize,
    /// `[rank, in]`.
    a: Values,
    /// `[rank, out]`: `B` transposed.
    b: Values,
    /// A factor of each of the `rank` products.
    scales: Vec<f32>,
}

/// Values as the precision keeps them.
enum Values {
    Float32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Values {
    fn new(values: Vec<f32>, precision: Precision) -> Self {
        match precision {
            Precision::Float32 => Self::Float32(values),
            Precision::Bf16 => Self::Bf16(values.into_iter().map(to_bf16).collect()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Float32(values) => size_of_val(&values[..]),
            Self::Bf16(values) => size_of_val(&values[..]),
        }
    }

    fn to_matrix(&self, rows: usize, cols: usize) -> Matrix {
        let values = match self {
            Self::Float32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|value| from_bf16(*value)).collect(),
        };
        Matrix::from_vec(rows, cols, values)
    }
}

/// More values of `A` and `B` than this many times the trained ones are not worth keeping: they are made of tensors that
/// many sites or adapters share.
const MOST_VALUES: usize = 4;

impl FrozenTuner {
    /// What `tuner` does to the linear `base`; `None` where it is no such thing, or would take far more memory than the
    /// trained tensors.
    pub(crate) fn of(workspace: &Workspace, tuner: &dyn WeightTuner, base: Base<'_>) -> Option<Self> {
        let precision = workspace.kernels().precision();
        let mut tape = Tape::evaluating(workspace);
        if let Some(LowRankUpdate { a, b, scale }) = tuner.low_rank(&mut tape) {
            let update = ThinUpdate::new(&[(a.value(), b.value(), scale)], precision);
            return Some(Self { whole: None, update: Some(update), scale: None, bias: None });
        }
        let row = |value: &Var| value.value().to_vec();
        let (rows, cols) = base.weight.shape();
        let none = tape.constant(Matrix::zeros(0, cols));
        let affine = tuner.affine(&mut tape, base, &none);
        if !affine.base {
            let Tuned { weight, bias } = tuner.tuned(&mut tape, base);
            let weight = weight.value();
            let copy = Matrix::from_vec(rows, cols, weight.to_vec());
            let whole = Some(FrozenWeight::in_precision(copy, precision));
            return Some(Self { whole, update: None, scale: None, bias: bias.as_ref().map(row) });
        }
        if affine.input.is_some() || affine.plus.is_some() {
            return None;
        }
        let rank: usize = affine.terms.iter().map(|term| term.weight.cols()).sum();
        let trained: usize = tuner.parameters().iter().map(|parameter| parameter.value().data().len()).sum();
        if rank * (rows + cols) > MOST_VALUES * trained {
            return None;
        }
        let update = (rank > 0).then(|| {
            // The inputs of the terms for the unit vectors are the columns of what they multiply by.
            let exact = workspace.clone().computing_with(workspace.kernels().with_precision(Precision::Float32));
            let mut tape = Tape::evaluating(&exact);
            let mut unit = Matrix::zeros(cols, cols);
            (0..cols).for_each(|place| unit.row_mut(place)[place] = 1.0);
            let unit = tape.constant(unit);
            let terms = tuner.affine(&mut tape, base, &unit).terms;
            let factors: Vec<(Matrix, Var, f32)> =
                terms.into_iter().map(|term| (term.input.value().transposed(), term.weight, term.scale)).collect();
            let factors: Vec<(&Matrix, &Matrix, f32)> =
                factors.iter().map(|(a, b, scale)| (a, b.value(), *scale)).collect();
            ThinUpdate::new(&factors, precision)
        });
        Some(Self { whole: None, update, scale: affine.scale.as_ref().map(row), bias: affine.bias.as_ref().map(row) })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let update = self.update.as_ref().map_or(0, |update| update.a.bytes() + update.b.bytes());
        let vectors = [&self.scale, &self.bias].into_iter().flatten().map(|values| size_of_val(&values[..]));
        self.whole.as_ref().map_or(0, FrozenWeight::bytes) + update + vectors.sum::<usize>()
    }
}

impl Trainable for FrozenTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }
}

impl WeightTuner for FrozenTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let whole = self.whole.as_ref().unwrap_or(base.weight);
        let mut weight = tape.constant(whole.to_matrix());
        if let Some(ThinUpdate { rank, input, output, a, b, scales }) = &self.update {
            let mut b = b.to_matrix(*rank, *output);
            scales
                .iter()
                .enumerate()
                .for_each(|(row, scale)| b.row_mut(row).iter_mut().for_each(|value| *value *= scale));
            let b = tape.constant(b.transposed());
            let a = tape.constant(a.to_matrix(*rank, *input).transposed());
            weight = tape.add_product(weight, 0..*output, &b, &a, 1.0);
        }
        let vector = |values: &Vec<f32>| Matrix::from_vec(1, values.len(), values.clone());
        if let Some(scale) = &self.scale {
            let scale = tape.constant(vector(scale));
            weight = tape.scale_rows(&weight, &scale);
        }
        let own = self.bias.as_ref().map(vector);
        Tuned { weight, bias: own.or_else(|| base.bias.map(FrozenWeight::to_matrix)).map(|bias| tape.constant(bias)) }
    }

    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let tuned = self.tuned(tape, base);
        Affine::of(x, tuned)
    }

    fn frozen(&self) -> Option<&FrozenTuner> {
        Some(self)
    }
}

/// Rows that one task takes.
const TASK_ROWS: usize = 16;
/// Multiplications from which spreading over threads pays.
const WORTH_THREADS: usize = 128 * 1024;

/// Adds to rows of `y` `[rows, out]` the update of their tuner for the same rows of `x` `[rows, in]`. The ranges of rows
/// follow one another.
pub(crate) fn add_updates(y: &mut Matrix, x: &Matrix, updates: &[(Range<usize>, &ThinUpdate)]) {
    let (input, output) = (x.cols(), y.cols());
    let mut tasks = Vec::new();
    let (mut rest, mut at) = (y.data_mut(), 0);
    for (rows, update) in updates {
        assert!(update.input == input && update.output == output, "an update is as wide as its linear");
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + TASK_ROWS);
            let (_, after) = std::mem::take(&mut rest).split_at_mut((start - at) * output);
            let (own, after) = after.split_at_mut((end - start) * output);
            (rest, at) = (after, end);
            tasks.push((*update, &x.data()[start * input..end * input], own));
            start = end;
        }
    }
    let work: usize = updates.iter().map(|(rows, update)| rows.len() * update.rank * (input + output)).sum();
    let run = |(update, x, y): (&ThinUpdate, &[f32], &mut [f32])| update.add(x, y);
    if work < WORTH_THREADS {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
}

/// Lanes of a sum over the inner dimension.
const LANES: usize = 16;
/// Output features whose sums are in registers together.
const WIDE: usize = 64;
/// Rows that share what is read of `A` and `B`.
const SHARING: usize = 2;

impl ThinUpdate {
    /// `Σ scale·(x·Aᵀ)·Bᵀ` over factors `A` `[r, in]`, `B` `[out, r]`.
    fn new(factors: &[(&Matrix, &Matrix, f32)], precision: Precision) -> Self {
        let (input, output) = factors.first().map_or((0, 0), |(a, b, _)| (a.cols(), b.rows()));
        let a = factors.iter().flat_map(|(a, _, _)| a.data().iter().copied()).collect();
        let b = factors.iter().flat_map(|(_, b, _)| b.transposed().to_vec()).collect();
        let scales: Vec<f32> = factors.iter().flat_map(|(a, _, scale)| std::iter::repeat_n(*scale, a.rows())).collect();
        let (a, b) = (Values::new(a, precision), Values::new(b, precision));
        Self { rank: scales.len(), input, output, a, b, scales }
    }

    fn add(&self, x: &[f32], y: &mut [f32]) {
        match (&self.a, &self.b) {
            (Values::Bf16(a), Values::Bf16(b)) => self.add_of(x, y, a, b, from_bf16),
            (Values::Float32(a), Values::Float32(b)) => self.add_of(x, y, a, b, |value| value),
            _ => unreachable!("both factors are kept in one precision"),
        }
    }

    #[inline(always)]
    fn add_of<V: Copy>(&self, x: &[f32], y: &mut [f32], a: &[V], b: &[V], float: impl Fn(V) -> f32 + Copy) {
        let mut middle = vec![0.0; SHARING * self.rank];
        vectorised(
            #[inline(always)]
            || {
                let (mut x, mut y) = (x, y);
                while !x.is_empty() {
                    let together = if x.len() >= SHARING * self.input { SHARING } else { 1 };
                    let (those, x_after) = x.split_at(together * self.input);
                    let (target, y_after) = std::mem::take(&mut y).split_at_mut(together * self.output);
                    if together == SHARING {
                        self.rows::<SHARING, V>(those, target, a, b, &mut middle, float);
                    } else {
                        self.rows::<1, V>(those, target, a, b, &mut middle, float);
                    }
                    (x, y) = (x_after, y_after);
                }
            },
        );
    }

    /// Some rows. Every value is summed in the same order however many they are.
    #[inline(always)]
    fn rows<const ROWS: usize, V: Copy>(
        &self,
        x: &[f32],
        y: &mut [f32],
        a: &[V],
        b: &[V],
        middle: &mut [f32],
        float: impl Fn(V) -> f32 + Copy,
    ) {
        const TOGETHER: usize = 4;
        let mut place = 0;
        while place < self.rank {
            if place + TOGETHER <= self.rank {
                self.inner::<ROWS, TOGETHER, V>(x, a, place, middle, float);
                place += TOGETHER;
            } else {
                self.inner::<ROWS, 1, V>(x, a, place, middle, float);
                place += 1;
            }
        }
        let output = self.output;
        let whole = output / WIDE * WIDE;
        for start in (0..whole).step_by(WIDE) {
            let mut sums = [[0.0f32; WIDE]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(&y[row * output + start..][..WIDE]);
            }
            for place in 0..self.rank {
                let b = &b[place * output + start..][..WIDE];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let middle = middle[row * self.rank + place];
                    for lane in 0..WIDE {
                        sums[lane] = middle.mul_add(float(b[lane]), sums[lane]);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                y[row * output + start..][..WIDE].copy_from_slice(sums);
            }
        }
        for row in 0..ROWS {
            for col in whole..output {
                let value = &mut y[row * output + col];
                for place in 0..self.rank {
                    *value = middle[row * self.rank + place].mul_add(float(b[place * output + col]), *value);
                }
            }
        }
    }

    /// `middle ← scale·x·Aᵀ` for some rows and `RANKS` of the products from `place` on.
    #[inline(always)]
    fn inner<const ROWS: usize, const RANKS: usize, V: Copy>(
        &self,
        x: &[f32],
        a: &[V],
        place: usize,
        middle: &mut [f32],
        float: impl Fn(V) -> f32 + Copy,
    ) {
        let input = self.input;
        let whole = input / LANES * LANES;
        let mut sums = [[[0.0f32; LANES]; RANKS]; ROWS];
        for start in (0..whole).step_by(LANES) {
            for rank in 0..RANKS {
                let a = &a[(place + rank) * input + start..][..LANES];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = &x[row * input + start..][..LANES];
                    for lane in 0..LANES {
                        sums[rank][lane] = x[lane].mul_add(float(a[lane]), sums[rank][lane]);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (rank, sums) in sums.iter().enumerate() {
                let (x, a) = (&x[row * input..][..input], &a[(place + rank) * input..][..input]);
                let mut sum = halved(sums);
                for col in whole..input {
                    sum = x[col].mul_add(float(a[col]), sum);
                }
                middle[row * self.rank + place + rank] = self.scales[place + rank] * sum;
            }
        }
    }
}

/// The sum of all lanes, halves added to halves.
#[inline(always)]
pub(crate) fn halved(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
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
        (ThinUpdate::new(&views, precision), delta)
    }

    #[test]
    fn adds_the_product_with_the_update() {
        for (precision, tolerance) in [(Precision::Float32, 1e-4), (Precision::Bf16, 2e-2)] {
            for (input, output) in [(5, 7), (33, 70), (64, 32)] {
                let (update, delta) = update(precision, [(3, 0.5), (2, -1.0)], input, output);
                let (x, start) = (random(9, input, 3), random(9, output, 4));
                let mut y = Matrix::from_vec(9, output, start.to_vec());
                add_updates(&mut y, &x, &[(1..8, &update)]);
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
    fn a_row_is_the_same_bits_among_any_others() {
        let (first, _) = update(Precision::Bf16, [(3, 0.5), (5, 2.0)], 77, 90);
        let (second, _) = update(Precision::Bf16, [(1, 1.5), (9, 1.0)], 77, 90);
        let x = random(40, 77, 3);
        let run = |ranges: &[(Range<usize>, &ThinUpdate)]| {
            let mut y = Matrix::zeros(40, 90);
            add_updates(&mut y, &x, ranges);
            y
        };
        let together = run(&[(0..23, &first), (23..40, &second)]);
        for row in 0..40 {
            let alone = run(&[(row..row + 1, if row < 23 { &first } else { &second })]);
            assert_eq!(alone.row(row), together.row(row), "row {row}");
        }
    }
}
