//! A bottleneck adapter whose training has ended: its weights lie packed, as a frozen model's do.

use std::sync::Arc;

use tunesmith_tensor::{Activation, FrozenWeight, HiddenTuner, Matrix, Parameter, SubLayer, Tape, Trainable, Var};

use crate::bottleneck::Placement;

/// What a bottleneck tuner comes to.
pub(crate) struct FrozenBottleneck {
    /// `D` `[bottleneck, hidden]` and its bias.
    pub(crate) down: (FrozenWeight, FrozenWeight),
    /// `U` `[hidden, bottleneck]` and its bias.
    pub(crate) up: (FrozenWeight, FrozenWeight),
    pub(crate) scale: FrozenScale,
    pub(crate) activation: Activation,
    pub(crate) placement: Placement,
}

/// `s`.
pub(crate) enum FrozenScale {
    All(f32),
    /// `[1, hidden]`.
    Channel(Arc<Matrix>),
}

impl FrozenBottleneck {
    /// `s·(U·σ(D·x + d) + u)` `[tokens, hidden]`.
    fn update(&self, tape: &mut Tape, x: &Var) -> Var {
        let narrow = tape.linear(x, &self.down.0, Some(&self.down.1));
        let narrow = tape.activation(self.activation, &narrow);
        let update = tape.linear(&narrow, &self.up.0, Some(&self.up.1));
        match &self.scale {
            FrozenScale::All(1.0) => update,
            FrozenScale::All(scale) => tape.scale(update, *scale),
            FrozenScale::Channel(scale) => {
                let scale = tape.shared_constant(Arc::clone(scale));
                tape.scale_columns(update, 0..x.rows(), &scale)
            }
        }
    }
}

impl Trainable for FrozenBottleneck {
    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }
}

impl HiddenTuner for FrozenBottleneck {
    fn forward(&self, tape: &mut Tape, sub_layer: SubLayer<'_>) -> Var {
        self.placement.forward(tape, sub_layer, |tape, x| self.update(tape, x))
    }

    fn frozen_bytes(&self) -> usize {
        let weights = [&self.down, &self.up].into_iter().flat_map(|(weight, bias)| [weight, bias]);
        weights.map(FrozenWeight::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::{Precision, Seed, Workspace};

    use super::*;
    use crate::bottleneck::BottleneckTuner;
    use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, Scaling};

    fn random(rows: usize, cols: usize, name: &str) -> Matrix {
        let mut stream = Seed(3).stream(name, 0);
        Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| stream.normal()).collect())
    }

    #[test]
    fn computes_what_the_trained_adapter_computes() {
        let (hidden, size, rows) = (40, 6, 5);
        let (x, h) = (random(rows, hidden, "x"), random(rows, hidden, "h"));
        for scaling in [Scaling::Constant(1.0), Scaling::Constant(0.5), Scaling::Learned, Scaling::Channel] {
            for (is_parallel, original_ln_before) in [(false, false), (false, true), (true, false)] {
                let init_weights = BottleneckInit::Houlsby;
                let config =
                    BottleneckConfig { scaling, is_parallel, original_ln_before, init_weights, ..Default::default() };
                let mut tuner = BottleneckTuner::new(&config, "adapter", hidden, size, Seed(1));
                for parameter in tuner.parameters_mut() {
                    let mut stream = Seed(2).stream(parameter.name(), 0);
                    parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 0.3 * stream.normal());
                }
                for precision in [Precision::Float32, Precision::Bf16] {
                    let workspace = Workspace::with_precision(precision);
                    let mut pack = |weight: &Matrix| {
                        let copy = Matrix::from_vec(weight.rows(), weight.cols(), weight.to_vec());
                        FrozenWeight::in_precision(copy, precision)
                    };
                    let frozen = tuner.freeze(&mut pack).unwrap();
                    assert!(frozen.parameters().is_empty() && frozen.frozen_bytes() > 0);
                    let run = |tuner: &dyn HiddenTuner| {
                        let mut tape = Tape::evaluating(&workspace);
                        let (residual, output) = (tape.constant(x.clone()), tape.constant(h.clone()));
                        let sub_layer = SubLayer { residual, output, norm: None, virtual_rows: &[] };
                        tuner.forward(&mut tape, sub_layer).value().to_vec()
                    };
                    let (found, expected) = (run(frozen.as_ref()), run(&tuner));
                    let plain: Vec<f32> = x.data().iter().zip(h.data()).map(|(x, h)| x + h).collect();
                    assert_ne!(expected, plain, "the adapter does something");
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{precision:?} {config:?}");
                    }
                }
            }
        }
    }
}
