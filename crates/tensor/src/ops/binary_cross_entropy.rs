//! Cross-entropy of independent yes-or-no outputs.

use crate::ops::softmax_cross_entropy::ScaledGradient;
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `[1, 1]`: `Σ −t·log σ(x) − (1 − t)·log(1 − σ(x))` over all values of the logits `x`, each with a target `t` in
    /// `[0, 1]`. Backward: `dx = σ(x) − t`.
    ///
    /// # Panics
    /// If there is not a target for each value.
    pub fn binary_cross_entropy(&mut self, x: &Var, targets: &[f32]) -> Var {
        assert_eq!(x.value().data().len(), targets.len(), "there is a target for each value");
        let mut gradient = x.value().copy_in(self.workspace());
        let mut sum = 0.0;
        for (value, target) in gradient.data_mut().iter_mut().zip(targets) {
            let (logit, target) = (f64::from(*value), f64::from(*target));
            // max(x, 0) − x·t + log(1 + e^−|x|) never overflows.
            sum += logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p();
            *value = (1.0 / (1.0 + (-logit).exp()) - target) as f32;
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
        let x = tape.constant(Matrix::from_vec(1, 3, vec![0.0, -200.0, 200.0]));
        let loss = tape.binary_cross_entropy(&x, &[1.0, 1.0, 0.0]);
        assert!((loss.value().data()[0] - (2f32.ln() + 400.0)).abs() < 1e-4);
    }

    #[test]
    fn gradients() {
        check(&[random(2, 3, 0)], |tape, inputs| {
            tape.binary_cross_entropy(&inputs[0], &[1.0, 0.0, 1.0, 0.0, 0.0, 0.5])
        });
    }
}
