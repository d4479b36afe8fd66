//! The squared error of a regression.

use crate::ops::softmax_cross_entropy::ScaledGradient;
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `[1, 1]`: `Σ (x − target)²` over all values of `x`. Backward: `dx = 2·(x − target)`.
    ///
    /// # Panics
    /// If there is not a target for each value.
    pub fn squared_error(&mut self, x: &Var, targets: &[f32]) -> Var {
        assert_eq!(x.value().data().len(), targets.len(), "there is a target for each value");
        let mut gradient = x.value().copy_in(self.workspace());
        let mut sum = 0.0;
        for (value, target) in gradient.data_mut().iter_mut().zip(targets) {
            let difference = *value - target;
            sum += f64::from(difference) * f64::from(difference);
            *value = 2.0 * difference;
        }
        let node = x.node();
        self.output(Matrix::from_vec(1, 1, vec![sum as f32]), &[node], || ScaledGradient { gradient, node })
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
        let x = tape.constant(Matrix::from_vec(2, 1, vec![1.0, -2.0]));
        assert_eq!(tape.squared_error(&x, &[0.5, 1.0]).value().data(), [9.25]);
    }

    #[test]
    fn gradients() {
        check(&[random(3, 2, 0)], |tape, inputs| tape.squared_error(&inputs[0], &[1.0, 0.0, -1.0, 0.3, 2.0, 0.0]));
    }
}
