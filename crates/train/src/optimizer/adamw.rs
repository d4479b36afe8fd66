//! AdamW (Loshchilov & Hutter 2019, algorithm 2), computed as `torch.optim.AdamW` computes it.

use rayon::prelude::*;
use tunesmith_tensor::vectorised;

use super::rule::{Update, UpdateRule};
use super::state::StateTensor;

/// Values updated by one task.
const CHUNK: usize = 1 << 14;

/// The constants of AdamW.
///
/// One update, of a tensor `w` with gradient `g` at learning rate `lr`, the `t`-th:
/// ```text
/// w ← w·(1 − lr·decay);  m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²
/// w ← w − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the denominator, outside the root.
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl UpdateRule for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn state(&self, rows: usize, cols: usize) -> Vec<StateTensor> {
        ["exp_avg", "exp_avg_sq"].map(|kind| StateTensor::zeros(kind, &[rows, cols])).into()
    }

    fn update(&self, update: &Update, values: &mut [f32], gradient: &[f32], state: &mut [StateTensor]) {
        let coefficients = Coefficients::new(self, update);
        let [m, v] = state else { unreachable!("the state of AdamW is two means") };
        let means = m.numbers().par_chunks_mut(CHUNK).zip(v.numbers().par_chunks_mut(CHUNK));
        let chunks = values.par_chunks_mut(CHUNK).zip(means).zip(gradient.par_chunks(CHUNK));
        chunks.for_each(|((values, (m, v)), gradient)| {
            vectorised(
                #[inline(always)]
                || coefficients.update(values, m, v, gradient),
            );
        });
    }
}

/// The constants of one update of one tensor.
pub(super) struct Coefficients {
    gradient_scale: f32,
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_bias2: f32,
    epsilon: f32,
    step_size: f32,
}

impl Coefficients {
    pub(super) fn new(options: &AdamW, update: &Update) -> Self {
        let bias1 = 1.0 - options.beta1.powf(update.number as f64);
        let bias2 = 1.0 - options.beta2.powf(update.number as f64);
        Self {
            gradient_scale: update.gradient_scale,
            keep: (1.0 - update.learning_rate * update.weight_decay) as f32,
            one_minus_beta1: (1.0 - options.beta1) as f32,
            beta2: options.beta2 as f32,
            one_minus_beta2: (1.0 - options.beta2) as f32,
            root_bias2: bias2.sqrt() as f32,
            epsilon: options.epsilon as f32,
            step_size: (update.learning_rate / bias1) as f32,
        }
    }

    #[inline(always)]
    pub(super) fn update(&self, values: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        for (((value, m), v), g) in values.iter_mut().zip(m).zip(v).zip(gradient) {
            let g = g * self.gradient_scale;
            *m += self.one_minus_beta1 * (g - *m);
            *v = self.beta2 * *v + self.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / self.root_bias2 + self.epsilon;
            *value = *value * self.keep - self.step_size * *m / denominator;
        }
    }
}
