//! Bottleneck adapters: a narrow network with a residual around it, within each block. What the variants in `houlsby.rs`,
//! `pfeiffer.rs` and `parallel.rs` share, as AdapterHub's `adapters` computes it.
//!
//! ```text
//! h what a sub-layer computed, x the stream before it, LN the block's norm after it (none in pre-norm blocks)
//! sequential:  a = h, or LN(h + x) with original_ln_before;   y = LN(s·U·σ(D·a + d) + h + x)
//! parallel:    y = LN(s·(U·σ(D·x + d) + u) + h + x)
//! ```

use tunesmith_tensor::{
    Activation, FrozenWeight, HiddenTuner, Matrix, Parameter, Seed, SubLayer, Tape, Trainable, Var,
};

use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, Scaling};
use crate::bottleneck_frozen::{FrozenBottleneck, FrozenScale};
use crate::virtual_tokens::filled;

/// A bottleneck adapter at one hidden site.
#[derive(Debug)]
pub struct BottleneckTuner {
    /// `D` `[bottleneck, hidden]` and its bias.
    down: Parameter,
    down_bias: Parameter,
    /// `U` `[hidden, bottleneck]` and its bias.
    up: Parameter,
    up_bias: Parameter,
    scale: Scale,
    activation: Activation,
    dropout: f32,
    placement: Placement,
}

/// `s`.
#[derive(Debug)]
enum Scale {
    Constant(f32),
    /// `[1, 1]`.
    Learned(Parameter),
    /// `[1, hidden]`.
    Channel(Parameter),
}

/// How the adapter sits between sub-layer, residual and norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    parallel: bool,
    original_ln_before: bool,
    residual_before_ln: bool,
}

impl BottleneckTuner {
    /// An adapter of `size` for hidden states `hidden` wide, near the identity; `prefix` precedes the names of its
    /// tensors.
    pub(crate) fn new(config: &BottleneckConfig, prefix: &str, hidden: usize, size: usize, seed: Seed) -> Self {
        let name = |part: &str| format!("{prefix}.{part}");
        let mut stream = seed.stream(prefix, 0);
        let mut weight = |rows: usize, cols: usize| match config.init_weights {
            BottleneckInit::Bert => filled(rows, cols, || 0.02 * stream.normal()),
            BottleneckInit::Houlsby => filled(rows, cols, || {
                loop {
                    let value = stream.normal();
                    if value.abs() <= 2.0 {
                        return 0.01 * value;
                    }
                }
            }),
            BottleneckInit::MamAdapter => {
                let bound = 1.0 / (cols as f32).sqrt();
                filled(rows, cols, || stream.uniform_between(-bound, bound))
            }
        };
        let down = weight(size, hidden);
        let up = match config.init_weights {
            BottleneckInit::MamAdapter => Matrix::zeros(hidden, size),
            _ => weight(hidden, size),
        };
        let ones = |cols: usize| Matrix::from_vec(1, cols, vec![1.0; cols]);
        Self {
            down: Parameter::new(name("adapter_down.0.weight"), down),
            down_bias: Parameter::vector(name("adapter_down.0.bias"), Matrix::zeros(1, size)),
            up: Parameter::new(name("adapter_up.weight"), up),
            up_bias: Parameter::vector(name("adapter_up.bias"), Matrix::zeros(1, hidden)),
            scale: match config.scaling {
                Scaling::Constant(scale) => Scale::Constant(scale as f32),
                Scaling::Learned => Scale::Learned(Parameter::vector(name("scaling"), ones(1))),
                Scaling::Channel => Scale::Channel(Parameter::vector(name("scaling"), ones(hidden))),
            },
            activation: config.non_linearity.activation(),
            dropout: config.dropout as f32,
            placement: Placement {
                parallel: config.is_parallel,
                original_ln_before: config.original_ln_before,
                residual_before_ln: config.residual_before_ln,
            },
        }
    }

    /// `s·(U·σ(D·x + d) + u)` `[tokens, hidden]`.
    fn update(&self, tape: &mut Tape, x: &Var) -> Var {
        let rows = x.rows();
        let all = [&self.down, &self.down_bias, &self.up, &self.up_bias].map(|parameter| tape.parameter(parameter));
        let [down, down_bias, up, up_bias] = &all;
        let narrow = tape.matmul_nt(x, down);
        let narrow = tape.add_bias(narrow, 0..rows, down_bias);
        let narrow = tape.activation(self.activation, &narrow);
        let update = tape.matmul_nt(&narrow, up);
        let update = tape.add_bias(update, 0..rows, up_bias);
        let scale = match &self.scale {
            Scale::Constant(1.0) => return tape.dropout(&update, self.dropout),
            Scale::Constant(scale) => {
                let update = tape.scale(update, *scale);
                return tape.dropout(&update, self.dropout);
            }
            Scale::Learned(scale) => {
                let scale = tape.parameter(scale);
                tape.concat_columns(&vec![scale; update.cols()])
            }
            Scale::Channel(scale) => tape.parameter(scale),
        };
        let update = tape.scale_columns(update, 0..rows, &scale);
        tape.dropout(&update, self.dropout)
    }
}

impl Trainable for BottleneckTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        let scale = match &self.scale {
            Scale::Constant(_) => None,
            Scale::Learned(scale) | Scale::Channel(scale) => Some(scale),
        };
        [&self.down, &self.down_bias, &self.up, &self.up_bias].into_iter().chain(scale).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let scale = match &mut self.scale {
            Scale::Constant(_) => None,
            Scale::Learned(scale) | Scale::Channel(scale) => Some(scale),
        };
        [&mut self.down, &mut self.down_bias, &mut self.up, &mut self.up_bias].into_iter().chain(scale).collect()
    }
}

impl Placement {
    /// The stream after a sub-layer, given what the narrow network makes of its input, `[tokens, hidden]`.
    pub(crate) fn forward(
        self,
        tape: &mut Tape,
        sub_layer: SubLayer<'_>,
        update: impl Fn(&mut Tape, &Var) -> Var,
    ) -> Var {
        let SubLayer { residual: x, output: h, norm, .. } = sub_layer;
        let normed = |tape: &mut Tape, sum: Var| match norm {
            None => sum,
            Some(norm) => norm(tape, &sum),
        };
        let Self { parallel, original_ln_before, residual_before_ln } = self;
        let sum = if parallel {
            let update = update(tape, &x);
            tape.add(&h, update)
        } else {
            let input = if original_ln_before {
                let sum = tape.add(&x, h.clone());
                normed(tape, sum)
            } else {
                h.clone()
            };
            let kept = if residual_before_ln { h } else { input.clone() };
            let update = update(tape, &input);
            tape.add(&kept, update)
        };
        let sum = tape.add(&x, sum);
        normed(tape, sum)
    }
}

impl HiddenTuner for BottleneckTuner {
    fn forward(&self, tape: &mut Tape, sub_layer: SubLayer<'_>) -> Var {
        self.placement.forward(tape, sub_layer, |tape, x| self.update(tape, x))
    }

    fn freeze(&self, frozen: &mut dyn FnMut(&Matrix) -> FrozenWeight) -> Option<Box<dyn HiddenTuner>> {
        let scale = match &self.scale {
            Scale::Constant(scale) => FrozenScale::All(*scale),
            Scale::Learned(scale) => FrozenScale::All(scale.value().data()[0]),
            Scale::Channel(scale) => FrozenScale::Channel(scale.value()),
        };
        let linears = [(&self.down, &self.down_bias), (&self.up, &self.up_bias)];
        let [down, up] =
            linears.map(|(weight, bias)| (frozen(&weight.value()), FrozenWeight::vector(bias.value().to_vec())));
        Some(Box::new(FrozenBottleneck { down, up, scale, activation: self.activation, placement: self.placement }))
    }
}
