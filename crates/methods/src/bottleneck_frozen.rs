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
