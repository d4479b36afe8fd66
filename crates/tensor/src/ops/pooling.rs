//! The mean of each sequence's rows.

use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Segments, Tape, Var};

impl Tape {
    /// `y[sequences, features]`: the mean of each sequence's rows of `x` `[tokens, features]`; zeros for a sequence
    /// without rows. Backward: `dx = dy / length`.
    ///
    /// # Panics
    /// If the segments don't cover `x`.
    pub fn mean_rows(&mut self, x: &Var, segments: &Segments) -> Var {
        assert_eq!(segments.total(), x.rows(), "the segments cover the rows");
        let mut y = Matrix::zeros_in(self.workspace(), segments.len(), x.cols());
        for (sequence, range) in segments.ranges().enumerate() {
            let share = 1.0 / range.len().max(1) as f32;
            let mean = y.row_mut(sequence);
            for row in range {
                mean.iter_mut().zip(x.value().row(row)).for_each(|(sum, value)| *sum += value);
            }
            mean.iter_mut().for_each(|sum| *sum *= share);
        }
        self.output(y, &[x.node()], || MeanRows { x: x.node(), segments: segments.clone() })
    }
}

struct MeanRows {
    x: Option<NodeId>,
    segments: Segments,
}

impl Backward for MeanRows {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let shape = (self.segments.total(), gradient.cols());
        flow.accumulate(self.x, shape, |_, dx, beta| {
            if beta == 0.0 {
                dx.data_mut().fill(0.0);
            }
            for (sequence, range) in self.segments.ranges().enumerate() {
                let share = 1.0 / range.len().max(1) as f32;
                for row in range {
                    let mean = gradient.row(sequence);
                    dx.row_mut(row).iter_mut().zip(mean).for_each(|(sum, value)| *sum += share * value);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn the_mean_of_each_sequence() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(3, 2, vec![1.0, 2.0, 3.0, 6.0, 5.0, 5.0]));
        let y = tape.mean_rows(&x, &Segments::from_lengths([2, 0, 1]));
        assert_eq!(y.value().data(), [2.0, 4.0, 0.0, 0.0, 5.0, 5.0]);
    }

    #[test]
    fn gradients() {
        let segments = Segments::from_lengths([3, 1, 0, 2]);
        check(&[random(6, 4, 0)], |tape, inputs| {
            let mean = tape.mean_rows(&inputs[0], &segments);
            let own = tape.slice_rows(&inputs[0], 0..4);
            tape.add(&own, mean)
        });
    }
}
