//! Cross-entropy of logits that exist as a value, for the few classes of a classifier.

use std::sync::Arc;

use crate::ops::cross_entropy::{CrossEntropy, IGNORED_TARGET};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `Σ −log softmax(logits)[target]` over the rows of `logits` `[rows, classes]`, one target a row; rows with
    /// [`IGNORED_TARGET`] count nothing and have no entry in `per_row`. Backward:
    /// `dlogits = softmax(logits) − onehot(target)`.
    ///
    /// # Panics
    /// If there is not one target a row, or a target is not a class.
    pub fn softmax_cross_entropy(&mut self, logits: &Var, targets: &[u32]) -> CrossEntropy {
        assert_eq!(logits.rows(), targets.len(), "there is a target for each row");
        let mut gradient = logits.value().copy_in(self.workspace());
        let mut per_row = Vec::new();
        for (row, target) in targets.iter().enumerate() {
            let values = gradient.row_mut(row);
            if *target == IGNORED_TARGET {
                values.fill(0.0);
            } else {
                per_row.push(log_softmax_gradient(values, *target as usize));
            }
        }
        let sum: f64 = per_row.iter().map(|value| f64::from(*value)).sum();
        let sum = Matrix::from_vec(1, 1, vec![sum as f32]);
        let node = logits.node();
        CrossEntropy { sum: self.output(sum, &[node], || ScaledGradient { gradient, node }), per_row }
    }
}

/// Turns logits into the gradient of `−log softmax[target]`, and returns that value.
pub(crate) fn log_softmax_gradient(logits: &mut [f32], target: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let loss = total.ln() + f64::from(max) - f64::from(logits[target]);
    logits.iter_mut().for_each(|logit| *logit = (f64::from(*logit - max).exp() / total) as f32);
    logits[target] -= 1.0;
    loss as f32
}

/// The way back from a scalar whose gradient was computed on the way forward.
pub(crate) struct ScaledGradient {
    pub(crate) gradient: Matrix,
    pub(crate) node: Option<NodeId>,
}

impl Backward for ScaledGradient {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let scale = gradient.data()[0];
        let mut scaled = self.gradient;
        scaled.data_mut().iter_mut().for_each(|value| *value *= scale);
        flow.add(self.node, scaled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn equals_its_definition() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let logits = tape.constant(Matrix::from_vec(3, 2, vec![0.0, 0.0, 5.0, 9.0, 2.0, 1.0]));
        let loss = tape.softmax_cross_entropy(&logits, &[1, IGNORED_TARGET, 0]);
        let expected = [2f32.ln(), (1.0 + (-1f32).exp()).ln()];
        assert_eq!(loss.per_row.len(), 2);
        assert!(loss.per_row.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
        assert!((loss.sum.value().data()[0] - expected[0] - expected[1]).abs() < 1e-6);
    }

    #[test]
    fn gradients() {
        let targets = [2, IGNORED_TARGET, 0, 4];
        check(&[random(4, 5, 0)], |tape, inputs| tape.softmax_cross_entropy(&inputs[0], &targets).sum);
    }
}
