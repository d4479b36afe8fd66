//! Linear with a frozen weight: `y = x·Wᵀ + b`.

use std::sync::Arc;

use crate::FrozenWeight;
use crate::kernels::{View, ViewMut};
use crate::ops::for_each_row_block;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `y[tokens, out] = x[tokens, in]·Wᵀ + b` with a frozen `weight` `[out, in]` and `bias` `[1, out]`.
    /// Backward: `dx = dy·W`; the weight gets no gradient.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn linear(&mut self, x: &Var, weight: &FrozenWeight, bias: Option<&FrozenWeight>) -> Var {
        assert_eq!(x.cols(), weight.cols(), "a linear's input is as wide as its weight");
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), weight.rows());
        weight.forward(self.workspace(), ViewMut::of(&mut y), 0.0, 1.0, View::of(x.value()));
        if let Some(bias) = bias {
            add_frozen_row(&mut y, bias);
        }
        self.output(y, &[x.node()], || Linear { weight: weight.clone(), x: x.node() })
    }
}

struct Linear {
    weight: FrozenWeight,
    x: Option<NodeId>,
}

impl Backward for Linear {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        flow.accumulate(self.x, (gradient.rows(), self.weight.cols()), |workspace, dx, beta| {
            self.weight.input_gradient(workspace, ViewMut::of(dx), beta, 1.0, View::of(&gradient));
        });
    }
}

/// Adds a frozen `[1, cols]` vector to every row.
pub(crate) fn add_frozen_row(y: &mut Matrix, bias: &FrozenWeight) {
    assert_eq!(bias.shape(), (1, y.cols()), "a bias is as wide as its output");
    let mut values = vec![0.0; y.cols()];
    bias.read_row(0, &mut values);
    let cols = y.cols();
    for_each_row_block(
        y.data_mut(),
        cols,
        #[inline(always)]
        |_, rows| {
            for row in rows.chunks_exact_mut(cols) {
                row.iter_mut().zip(&values).for_each(|(out, bias)| *out += bias);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn equals_its_definition() {
        let x = Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]);
        let weight = FrozenWeight::float32(Matrix::from_vec(3, 2, vec![1.0, 0.0, 0.0, 1.0, 2.0, -1.0]));
        let bias = FrozenWeight::vector(vec![0.5, 0.0, -0.5]);
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let x = tape.constant(x);
        let y = tape.linear(&x, &weight, Some(&bias));
        assert_eq!(y.value().data(), [1.5, 2.0, -0.5, 3.5, 4.0, 1.5]);
    }

    #[test]
    fn gradient_of_the_input() {
        let weight = FrozenWeight::float32(random(5, 7, 1));
        let bias = FrozenWeight::vector(random(1, 5, 2).to_vec());
        check(&[random(4, 7, 0)], |tape, inputs| tape.linear(&inputs[0], &weight, Some(&bias)));
    }

    #[test]
    fn nothing_is_recorded_without_a_trainable_input() {
        let mut tape = Tape::differentiating(&crate::Workspace::new());
        let x = tape.constant(random(2, 3, 0));
        let y = tape.linear(&x, &FrozenWeight::float32(random(4, 3, 1)), None);
        assert!(!y.needs_gradient());
    }
}
