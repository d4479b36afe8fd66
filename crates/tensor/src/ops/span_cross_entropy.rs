//! Cross-entropy over the places of a sequence: which token an answer begins or ends with.

use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::softmax_cross_entropy::{ScaledGradient, log_softmax_gradient};
use crate::{Matrix, Segments, Tape, Var};

impl Tape {
    /// `Σ −log softmax(column)[target]` over the columns of `logits` `[tokens, columns]` within each sequence: a softmax
    /// over the sequence's tokens. `targets[sequence · columns + column]` is a place in the sequence; `None` counts
    /// nothing and has no entry in `per_row`. Backward: `dcolumn = softmax(column) − onehot(target)`.
    ///
    /// # Panics
    /// If there is not one target for each sequence and column, or one lies outside its sequence.
    pub fn span_cross_entropy(&mut self, logits: &Var, segments: &Segments, targets: &[Option<usize>]) -> CrossEntropy {
        let columns = logits.cols();
        assert_eq!(segments.total(), logits.rows(), "the segments cover the rows");
        assert_eq!(segments.len() * columns, targets.len(), "there is a target for each sequence and column");
        let mut gradient = Matrix::zeros_in(self.workspace(), logits.rows(), columns);
        let mut per_row = Vec::new();
        for (range, targets) in segments.ranges().zip(targets.chunks_exact(columns)) {
            for (column, target) in targets.iter().enumerate() {
                let Some(target) = target else { continue };
                let mut values: Vec<f32> = range.clone().map(|row| logits.value().row(row)[column]).collect();
                per_row.push(log_softmax_gradient(&mut values, *target));
                for (row, value) in range.clone().zip(values) {
                    gradient.row_mut(row)[column] = value;
                }
            }
        }
        let sum: f64 = per_row.iter().map(|value| f64::from(*value)).sum();
        let sum = Matrix::from_vec(1, 1, vec![sum as f32]);
        let node = logits.node();
        CrossEntropy { sum: self.output(sum, &[node], || ScaledGradient { gradient, node }), per_row }
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
        let logits = tape.constant(Matrix::from_vec(3, 2, vec![0.0, 7.0, 1.0, 7.0, 5.0, 5.0]));
        let segments = Segments::from_lengths([2, 1]);
        let loss = tape.span_cross_entropy(&logits, &segments, &[Some(1), Some(0), None, Some(0)]);
        let expected = [(1.0 + (-1f32).exp()).ln(), 2f32.ln(), 0.0];
        assert!(loss.per_row.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
        assert_eq!(loss.per_row.len(), 3);
    }

    #[test]
    fn gradients() {
        let segments = Segments::from_lengths([4, 2]);
        check(&[random(6, 2, 0)], |tape, inputs| {
            tape.span_cross_entropy(&inputs[0], &segments, &[Some(3), Some(0), None, Some(1)]).sum
        });
    }
}
