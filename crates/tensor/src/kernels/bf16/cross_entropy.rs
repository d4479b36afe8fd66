//! Softmax and cross-entropy of a projection onto a vocabulary without the logits: some rows by some columns at a time,
//! in the second-level cache, forward and back in one go over the weight.
//!
//! Per row, with a reference `m` near its largest logit so far, `Σ eˡ⁻ᵐ` and `Σ eˡ⁻ᵐ·W` are summed block by block; where
//! a block has a logit far above `m`, both sums are rescaled to a new reference (the online softmax of Milakov and
//! Gimelshein 2018). At the end `dx = (Σ eˡ⁻ᵐ·W) / (Σ eˡ⁻ᵐ) − W[target]`. The exponentials are rounded to bf16 for the
//! product only, each with a relative error of at most 2⁻⁸, whatever the size of its logit.

use std::f32::consts::LOG2_E;

use rayon::prelude::*;

use super::Unit;
use super::operand::Columns;
use super::pack::{Order, pack_strip};
use super::product::{Block, Output, PackedStrips, Target, Term, panels};
use super::tile::{DEPTH, LANES, Tile};
use crate::kernels::{View, exp2_rough, vectorised};

/// Columns of a block.
const BLOCK: usize = 512;
/// Rows of a task, at the most.
const MOST_ROWS: usize = 256;
/// How far above the reference a logit may be before the sums are rescaled.
const FAR: f32 = 40.0;
/// Partial sums of a row, so that it vectorises.
const PARTS: usize = 16;

/// A projection onto a vocabulary, and the targets of its rows.
pub(crate) struct Vocabulary<'a> {
    /// `[rows, in]`.
    pub(crate) x: View<'a>,
    /// `Wᵀ` `[in, vocabulary]`.
    pub(crate) forward: &'a dyn Columns,
    /// `W` `[vocabulary, in]`.
    pub(crate) gradient: &'a dyn Columns,
    /// Writes a row of `W`.
    pub(crate) read_row: &'a (dyn Fn(usize, &mut [f32]) + Sync),
    /// One a row.
    pub(crate) targets: &'a [u32],
}

/// Where results go, one a row.
pub(crate) struct RowResults<'a> {
    /// `−log softmax(x·Wᵀ)[target]`.
    pub(crate) losses: &'a mut [f32],
    /// `log Σ exp(x·Wᵀ)`.
    pub(crate) log_sums: &'a mut [f32],
    /// `(softmax(x·Wᵀ) − onehot(target))·W` `[rows, in]`, where asked for.
    pub(crate) dx: Option<&'a mut [f32]>,
}

/// Writes what a cross-entropy comes to for each row.
pub(crate) fn cross_entropy(unit: Unit, vocabulary: &Vocabulary<'_>, results: RowResults<'_>) {
    let RowResults { losses, log_sums, dx } = results;
    let (rows, width) = (vocabulary.x.rows, vocabulary.x.cols);
    if rows == 0 {
        return;
    }
    let task_rows = rows.div_ceil(2).next_multiple_of(2 * LANES).min(MOST_ROWS);
    let run = |first: usize, (losses, log_sums): (&mut [f32], &mut [f32]), dx: Option<&mut [f32]>| {
        let task = Task { vocabulary, first, results: RowResults { losses, log_sums, dx } };
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => task.run(&super::amx::TileUnit::configure()),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => task.run(&super::avx512::VectorUnit::new()),
            Unit::Float32 => task.run(&super::float32::FloatUnit),
        }
    };
    let sums = losses.par_chunks_mut(task_rows).zip(log_sums.par_chunks_mut(task_rows)).enumerate();
    match dx {
        Some(dx) => sums
            .zip(dx.par_chunks_mut((task_rows * width).max(1)))
            .for_each(|((task, sums), dx)| run(task * task_rows, sums, Some(dx))),
        None => sums.for_each(|(task, sums)| run(task * task_rows, sums, None)),
    }
}

struct Task<'a, 'b> {
    vocabulary: &'a Vocabulary<'a>,
    /// Its first row.
    first: usize,
    results: RowResults<'b>,
}

/// What is known of a row's softmax.
#[derive(Clone, Copy)]
struct RowSum {
    reference: f32,
    sum: f64,
    target: f32,
}

impl Task<'_, '_> {
    fn run(mut self, unit: &impl Block) {
        let Vocabulary { x, forward, gradient, targets, .. } = *self.vocabulary;
        let rows = self.results.losses.len();
        let strips = rows.div_ceil(LANES);
        let depth = x.cols.div_ceil(DEPTH);
        let mut packed = vec![Tile::ZERO; strips * depth];
        for (strip, tiles) in packed.chunks_exact_mut(depth.max(1)).enumerate() {
            let lanes = self.first + strip * LANES..(self.first + rows).min(self.first + (strip + 1) * LANES);
            pack_strip(x, lanes, 0, 1.0, Order::Rows, tiles);
        }
        let a = PackedStrips { tiles: &packed, depth, strips };
        let size = forward.cols();
        let mut logits = vec![0.0f32; strips * LANES * BLOCK];
        let mut exponentials = vec![Tile::ZERO; strips * (BLOCK / DEPTH)];
        let (forward_panel, gradient_panel) = (forward.strips_at_once(), gradient.strips_at_once());
        let mut scratch = vec![Tile::ZERO; (forward_panel * depth).max(gradient_panel * (BLOCK / DEPTH))];
        let mut sums = vec![RowSum { reference: f32::NEG_INFINITY, sum: 0.0, target: 0.0 }; rows];
        for start in (0..size).step_by(BLOCK) {
            let width = BLOCK.min(size - start);
            let first_strip = start / LANES;
            let output = Output { c: logits.as_mut_ptr(), stride: BLOCK, rows: strips * LANES, cols: BLOCK };
            let target = Target { output: &output, first_row: 0, first_strip };
            let columns = first_strip..first_strip + width.div_ceil(LANES);
            panels(unit, &target, &[Term::new(a, forward, 0, None)], columns, false, &mut scratch);
            for (row, sum) in sums.iter_mut().enumerate() {
                let logits = &mut logits[row * BLOCK..row * BLOCK + width];
                let own = targets[self.first + row] as usize;
                if (start..start + width).contains(&own) {
                    sum.target = logits[own - start];
                }
                let rescale = vectorised(
                    #[inline(always)]
                    || add_block(logits, sum),
                );
                if let (Some(factor), Some(dx)) = (rescale, &mut self.results.dx) {
                    dx[row * x.cols..(row + 1) * x.cols].iter_mut().for_each(|value| *value *= factor);
                }
            }
            if let Some(dx) = &mut self.results.dx {
                let tiles = width.div_ceil(DEPTH);
                let view = View::rows_of(&logits, rows, width, BLOCK);
                for (strip, tiles) in exponentials.chunks_exact_mut(tiles).enumerate().take(strips) {
                    pack_strip(view, strip * LANES..rows.min((strip + 1) * LANES), 0, 1.0, Order::Rows, tiles);
                }
                let a = PackedStrips { tiles: &exponentials, depth: tiles, strips };
                let output = Output { c: dx.as_mut_ptr(), stride: x.cols, rows, cols: x.cols };
                let target = Target { output: &output, first_row: 0, first_strip: 0 };
                let (term, columns) = (Term::new(a, gradient, start / DEPTH, None), 0..x.cols.div_ceil(LANES));
                panels(unit, &target, &[term], columns, start > 0, &mut scratch);
            }
        }
        self.finish(&sums);
    }

    /// Losses, and the gradients from the sums.
    fn finish(self, sums: &[RowSum]) {
        let Vocabulary { x, read_row, targets, .. } = *self.vocabulary;
        let RowResults { losses, log_sums, dx } = self.results;
        for ((loss, log_sum), sum) in losses.iter_mut().zip(log_sums).zip(sums) {
            *loss = (sum.sum.ln() - f64::from(sum.target - sum.reference)) as f32;
            *log_sum = (sum.sum.ln() + f64::from(sum.reference)) as f32;
        }
        let Some(dx) = dx else { return };
        let mut own = vec![0.0; x.cols];
        for ((row, dx), sum) in dx.chunks_exact_mut(x.cols.max(1)).enumerate().zip(sums) {
            read_row(targets[self.first + row] as usize, &mut own);
            let scale = (1.0 / sum.sum) as f32;
            dx.iter_mut().zip(&own).for_each(|(dx, own)| *dx = *dx * scale - own);
        }
    }
}

/// Turns a block of a row's logits into exponentials above the row's reference, and adds them to its sum. Where the
/// reference has to move, gives the factor that earlier sums are to be multiplied by.
#[inline(always)]
fn add_block(logits: &mut [f32], row: &mut RowSum) -> Option<f32> {
    let mut largest = [f32::NEG_INFINITY; PARTS];
    let mut chunks = logits.chunks_exact(PARTS);
    for chunk in &mut chunks {
        for (lane, value) in largest.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let rest = chunks.remainder().iter().copied();
    let max = largest.iter().copied().chain(rest).fold(f32::NEG_INFINITY, f32::max);
    let mut factor = None;
    if row.reference == f32::NEG_INFINITY || max > row.reference + FAR {
        if row.sum > 0.0 {
            let rescale = (row.reference - max).exp();
            row.sum *= f64::from(rescale);
            factor = Some(rescale);
        }
        row.reference = max;
    }
    let reference = row.reference;
    let mut lanes = [0.0f32; PARTS];
    let mut chunks = logits.chunks_exact_mut(PARTS);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp2_rough((*value - reference) * LOG2_E);
            *lane += *value;
        }
    }
    let mut total: f64 = lanes.iter().map(|lane| f64::from(*lane)).sum();
    for value in chunks.into_remainder() {
        *value = exp2_rough((*value - reference) * LOG2_E);
        total += f64::from(*value);
    }
    row.sum += total;
    factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::tile::{from_bf16, to_bf16};
    use crate::ops::finite_differences::random;
    use crate::{Base, FrozenWeight, Gradients, Kernels, Matrix, Parameter, Projection, Tape, Workspace};

    /// Losses by row and the gradient of their sum.
    fn run(kernels: Kernels, x: &Matrix, weight: &FrozenWeight, targets: &[u32]) -> (Vec<f32>, Matrix) {
        let workspace = Workspace::with_kernels(kernels);
        let parameter = Parameter::new("x", x.clone());
        let mut tape = Tape::differentiating(&workspace);
        let x = tape.parameter(&parameter);
        let entropy = tape.cross_entropy(&Projection::frozen(&x, Base { weight, bias: None }), targets);
        let mut gradients = Gradients::new(&workspace);
        tape.backward_scalar(entropy.sum, 1.0, &mut gradients);
        (entropy.per_row, gradients.get(parameter.id()).unwrap().clone())
    }

    fn rounded(matrix: &Matrix) -> Matrix {
        let values = matrix.data().iter().map(|value| from_bf16(to_bf16(*value))).collect();
        Matrix::from_vec(matrix.rows(), matrix.cols(), values)
    }

    #[test]
    fn equals_its_definition() {
        for (rows, size, width) in [(1, 5, 3), (33, 256, 40), (40, 700, 64), (70, 1000, 33), (600, 300, 96)] {
            // Logits that reach from far below to far above those of the first block.
            let mut w = rounded(&random(size, width, 0));
            w.row_mut(size - 1).iter_mut().for_each(|value| *value *= 32.0);
            let x = rounded(&random(rows, width, 1));
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % size) as u32).collect();
            let weight = FrozenWeight::bf16(&w);
            for kernels in Unit::ALL.iter().filter_map(|unit| Kernels::of(*unit)) {
                let (losses, dx) = run(kernels, &x, &weight, &targets);
                for row in 0..rows {
                    let dot = |w: &[f32]| -> f64 {
                        x.row(row).iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
                    };
                    let logits: Vec<f64> = (0..size).map(|col| dot(w.row(col))).collect();
                    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
                    let loss = total.ln() - (logits[targets[row] as usize] - max);
                    let error = (f64::from(losses[row]) - loss).abs();
                    assert!(error < 1e-5 * loss.abs().max(1.0), "{rows} × {size} × {width}, {kernels:?}: {error}");
                    for place in 0..width {
                        let terms = (0..size).map(|col| {
                            let probability = (logits[col] - max).exp() / total;
                            let hot = if col == targets[row] as usize { 1.0 } else { 0.0 };
                            let w = f64::from(w.row(col)[place]);
                            ((probability - hot) * w, probability * w.abs())
                        });
                        let (expected, size) = terms.fold((0.0, 0.0), |sum, term| (sum.0 + term.0, sum.1 + term.1));
                        // Exponentials are rounded once, by at most 2⁻⁸ of each.
                        let bound = size / 256.0 + 1e-4 * (1.0 + f64::from(w.row(targets[row] as usize)[place].abs()));
                        let found = f64::from(dx.row(row)[place]);
                        assert!(
                            (found - expected).abs() <= bound,
                            "{found}, expected {expected} ± {bound}, {kernels:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_alone_gives_the_bits_that_it_gives_among_others() {
        let weight = FrozenWeight::bf16(&random(520, 80, 0));
        let x = random(90, 80, 1);
        let targets: Vec<u32> = (0..90).collect();
        for kernels in Unit::ALL.iter().filter_map(|unit| Kernels::of(*unit)) {
            let (losses, dx) = run(kernels, &x, &weight, &targets);
            for row in [0, 41, 89] {
                let alone = Matrix::from_vec(1, 80, x.row(row).to_vec());
                let (loss, gradient) = run(kernels, &alone, &weight, &targets[row..=row]);
                assert_eq!((loss[0], gradient.row(0)), (losses[row], dx.row(row)), "{kernels:?}");
            }
        }
    }
}
