//! Dropout: zeroes values at random in training, and scales the others up (Srivastava et al. 2014).

use std::sync::Arc;

use crate::ops::for_each_row_block;
use crate::random::drop_values;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// In training, zeroes each value with probability `p` and multiplies the others by `1/(1 − p)`; otherwise `x`.
    ///
    /// # Panics
    /// If `p` is not in `[0, 1)`.
    pub fn dropout(&mut self, x: &Var, p: f32) -> Var {
        assert!((0.0..1.0).contains(&p), "a dropout probability lies in [0, 1)");
        if p == 0.0 {
            return x.clone();
        }
        let Some(key) = self.next_dropout() else { return x.clone() };
        let mut y = x.value().copy_in(self.workspace());
        apply(key, p, &mut y);
        self.output(y, &[x.node()], || Dropout { key, p, x: x.node() })
    }
}

/// Multiplies by the mask, which is a function of the key and the place, and so never stored.
fn apply(key: u64, p: f32, values: &mut Matrix) {
    let cols = values.cols();
    for_each_row_block(
        values.data_mut(),
        cols,
        #[inline(always)]
        |first, rows| {
            for (row, values) in rows.chunks_exact_mut(cols).enumerate() {
                drop_values(key, (first + row) as u64, 0, p, values);
            }
        },
    );
}

struct Dropout {
    key: u64,
    p: f32,
    x: Option<NodeId>,
}

impl Backward for Dropout {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut gradient = flow.owned(gradient);
        apply(self.key, self.p, &mut gradient);
        flow.add(self.x, gradient);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;
    use crate::{Gradients, Parameter, Seed, Workspace};

    #[test]
    fn keeps_the_mean_and_the_rate() {
        let mut tape = Tape::training(&Workspace::new(), Seed(1));
        let x = tape.constant(Matrix::from_vec(1, 100_000, vec![1.0; 100_000]));
        let y = tape.dropout(&x, 0.25);
        let zeros = y.value().data().iter().filter(|value| **value == 0.0).count() as f32 / 100_000.0;
        let mean = y.value().data().iter().sum::<f32>() / 100_000.0;
        assert!((zeros - 0.25).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "zeros {zeros}, mean {mean}");
        let again = tape.dropout(&x, 0.25);
        assert_ne!(y.value(), again.value(), "each use draws a mask of its own");
    }

    #[test]
    fn the_gradient_passes_the_same_mask() {
        let workspace = Workspace::new();
        let parameter = Parameter::new("x", random(4, 8, 0));
        let mut tape = Tape::training(&workspace, Seed(2));
        let x = tape.parameter(&parameter);
        let y = tape.dropout(&x, 0.5);
        let expected: Vec<f32> = y.value().data().iter().map(|value| if *value == 0.0 { 0.0 } else { 2.0 }).collect();
        let mut gradients = Gradients::new(&workspace);
        tape.backward(y, Matrix::from_vec(4, 8, vec![1.0; 32]), &mut gradients);
        assert_eq!(gradients.get(parameter.id()).expect("reached").data(), expected);
    }

    #[test]
    fn does_nothing_outside_training() {
        let mut tape = Tape::differentiating(&Workspace::new());
        let x = tape.constant(random(2, 2, 0));
        assert_eq!(tape.dropout(&x, 0.9).value(), x.value());
    }
}
