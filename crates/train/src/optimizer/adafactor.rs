//! Adafactor (Shazeer & Stern 2018), computed as `transformers.Adafactor` computes it for an external learning rate
//! (`relative_step=False`, as its trainer sets it).
//!
//! A vector is a matrix of one row or one column, for which factoring loses nothing: the result is that of the unfactored
//! form, which transformers takes for vectors.

use rayon::prelude::*;

use super::rule::{Update, UpdateRule};
use super::state::StateTensor;

/// Rows of one task; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// The constants of Adafactor.
///
/// One update, of a tensor `w [rows, cols]` with gradient `g` at learning rate `lr`, the `t`-th:
/// ```text
/// β₂ = 1 − t^decay_rate;  r ← β₂r + (1 − β₂)·mean over columns of (g² + ε₁);  c likewise over rows
/// u = g / √(r·c / mean(r));  u ← u / max(1, RMS(u)/clip_threshold)
/// α = lr, times max(ε₂, RMS(w)) with scale_parameter;  u ← α·u, and with β₁: m ← β₁m + (1 − β₁)u, u = m
/// w ← w − α·decay·w − u
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// ε₁, added to squared gradients.
    pub eps1: f64,
    /// ε₂, the least size of a tensor that `scale_parameter` takes.
    pub eps2: f64,
    /// The largest root mean square of an update before the learning rate.
    pub clip_threshold: f64,
    /// Exponent of the decay of squared gradients' means.
    pub decay_rate: f64,
    /// Decay of the update's running mean; none for no such mean.
    pub beta1: Option<f64>,
    /// Whether the learning rate is relative to the tensor's size.
    pub scale_parameter: bool,
}

impl Default for Adafactor {
    fn default() -> Self {
        Self { eps1: 1e-30, eps2: 1e-3, clip_threshold: 1.0, decay_rate: -0.8, beta1: None, scale_parameter: false }
    }
}

impl UpdateRule for Adafactor {
    fn name(&self) -> &'static str {
        "adafactor"
    }

    fn state(&self, rows: usize, cols: usize) -> Vec<StateTensor> {
        let factors = [StateTensor::zeros("exp_avg_sq_row", &[rows]), StateTensor::zeros("exp_avg_sq_col", &[cols])];
        let mean = self.beta1.map(|_| StateTensor::zeros("exp_avg", &[rows, cols]));
        factors.into_iter().chain(mean).collect()
    }

    fn update(&self, update: &Update, values: &mut [f32], gradient: &[f32], state: &mut [StateTensor]) {
        let (rows, cols) = update.shape;
        if rows * cols == 0 {
            return;
        }
        let scale = if self.scale_parameter { self.eps2.max(root_mean_square(values, cols)) } else { 1.0 };
        let rate = scale * update.learning_rate;
        let [row_means, col_means, rest @ ..] = state else { unreachable!("the state of Adafactor has two factors") };
        let (row_means, col_means) = (row_means.numbers(), col_means.numbers());
        self.follow_squares(update, gradient, row_means, col_means);

        let mean = row_means.iter().map(|value| f64::from(*value)).sum::<f64>() / rows as f64;
        let row_factors: Vec<f32> = row_means.iter().map(|value| 1.0 / (value / mean as f32).sqrt()).collect();
        let col_factors: Vec<f32> = col_means.iter().map(|value| 1.0 / value.sqrt()).collect();
        let mut step: Vec<f32> = gradient.iter().map(|g| g * update.gradient_scale).collect();
        step.par_chunks_mut(cols).zip(&row_factors).for_each(|(step, row)| {
            step.iter_mut().zip(&col_factors).for_each(|(value, col)| *value *= row * col);
        });
        let excess = (root_mean_square(&step, cols) / self.clip_threshold).max(1.0);
        let factor = (rate / excess) as f32;
        let keep = (1.0 - rate * update.weight_decay) as f32;
        let chunk = ROWS * cols;
        match (rest, self.beta1) {
            ([mean], Some(beta1)) => {
                let (beta1, joins) = (beta1 as f32, (1.0 - beta1) as f32);
                let chunks = values.par_chunks_mut(chunk).zip(mean.numbers().par_chunks_mut(chunk));
                chunks.zip(step.par_chunks(chunk)).for_each(|((values, mean), step)| {
                    for ((value, mean), step) in values.iter_mut().zip(mean).zip(step) {
                        *mean = beta1 * *mean + joins * (factor * step);
                        *value = *value * keep - *mean;
                    }
                });
            }
            _ => values.par_chunks_mut(chunk).zip(step.par_chunks(chunk)).for_each(|(values, step)| {
                values.iter_mut().zip(step).for_each(|(value, step)| *value = *value * keep - factor * step);
            }),
        }
    }
}

impl Adafactor {
    /// The running means of the squared gradient of every row and of every column.
    fn follow_squares(&self, update: &Update, gradient: &[f32], row_means: &mut [f32], col_means: &mut [f32]) {
        let (rows, cols) = (row_means.len(), col_means.len());
        let beta2 = 1.0 - (update.number as f64).powf(self.decay_rate);
        let square = |g: &f32| f64::from(g * update.gradient_scale).powi(2) + self.eps1;
        let partial: Vec<(Vec<f64>, Vec<f64>)> = gradient
            .par_chunks(ROWS * cols)
            .map(|chunk| {
                let (mut by_row, mut by_col) = (Vec::with_capacity(ROWS), vec![0.0; cols]);
                for row in chunk.chunks(cols) {
                    by_row.push(row.iter().map(square).sum());
                    by_col.iter_mut().zip(row).for_each(|(sum, g)| *sum += square(g));
                }
                (by_row, by_col)
            })
            .collect();
        let follow = |mean: &mut f32, now: f64| *mean = (beta2 * f64::from(*mean) + (1.0 - beta2) * now) as f32;
        let by_row = partial.iter().flat_map(|(by_row, _)| by_row);
        row_means.iter_mut().zip(by_row).for_each(|(mean, sum)| follow(mean, sum / cols as f64));
        for (col, mean) in col_means.iter_mut().enumerate() {
            let sum: f64 = partial.iter().map(|(_, by_col)| by_col[col]).sum();
            follow(mean, sum / rows as f64);
        }
    }
}

fn root_mean_square(values: &[f32], cols: usize) -> f64 {
    let squares = |chunk: &[f32]| chunk.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    let partial: Vec<f64> = values.par_chunks(ROWS * cols).map(squares).collect();
    (partial.iter().sum::<f64>() / values.len() as f64).sqrt()
}
