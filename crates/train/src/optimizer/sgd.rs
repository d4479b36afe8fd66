//! Stochastic gradient descent with momentum, computed as `torch.optim.SGD` computes it: weight decay is a part of the
//! gradient (L2 regularisation), not decoupled.

use rayon::prelude::*;

use super::rule::{Update, UpdateRule};
use super::state::StateTensor;

/// Values updated by one task.
const CHUNK: usize = 1 << 14;

/// The constants of SGD.
///
/// One update, of a tensor `w` with gradient `g` at learning rate `lr`; the first sets `b ← g`:
/// ```text
/// g ← g + decay·w;  b ← momentum·b + (1 − dampening)·g;  w ← w − lr·b      (nesterov: w − lr·(g + momentum·b))
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// Decay of the running sum of gradients; 0 for none.
    pub momentum: f64,
    /// What is held back of a gradient that joins the sum.
    pub dampening: f64,
    /// Whether to step from where the momentum leads.
    pub nesterov: bool,
}

impl UpdateRule for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn state(&self, rows: usize, cols: usize) -> Vec<StateTensor> {
        if self.momentum == 0.0 { Vec::new() } else { vec![StateTensor::zeros("momentum_buffer", &[rows, cols])] }
    }

    fn update(&self, update: &Update, values: &mut [f32], gradient: &[f32], state: &mut [StateTensor]) {
        let (rate, decay) = (update.learning_rate as f32, update.weight_decay as f32);
        let scale = update.gradient_scale;
        let [buffer] = state else {
            let chunks = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
            return chunks.for_each(|(values, gradient)| {
                for (value, g) in values.iter_mut().zip(gradient) {
                    *value -= rate * (scale * g + decay * *value);
                }
            });
        };
        let (momentum, joins) = (self.momentum as f32, (1.0 - self.dampening) as f32);
        let first = update.number == 1;
        let chunks = values.par_chunks_mut(CHUNK).zip(buffer.numbers().par_chunks_mut(CHUNK));
        chunks.zip(gradient.par_chunks(CHUNK)).for_each(|((values, buffer), gradient)| {
            for ((value, b), g) in values.iter_mut().zip(buffer).zip(gradient) {
                let g = scale * g + decay * *value;
                *b = if first { g } else { momentum * *b + joins * g };
                *value -= rate * if self.nesterov { g + momentum * *b } else { *b };
            }
        });
    }
}
