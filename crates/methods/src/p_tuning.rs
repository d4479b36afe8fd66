//! P-tuning (Liu et al. 2021, <https://arxiv.org/abs/2103.10385>, section 3.2): virtual tokens that come out of a small
//! network, which ties them to each other while they are trained.
//!
//! ```text
//! P = MLP(E) = W₄·ReLU(W₂·ReLU(W₀·E)),  or  P = W₂·ReLU(W₀·LSTM(E)) with an LSTM in both directions;   E trained
//! ```
//!
//! PEFT's files hold `P` alone: the network has served its purpose. Checkpoints keep it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Activation, Adapter, InputTuner, Matrix, Parameter, Seed, Stored, Tape, Trainable, Var, Workspace,
};

use crate::MethodError;
use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::prompt_tuning::PromptTuner;
use crate::virtual_tokens::{STORED, VirtualTokens, filled, input_site, linear_start};

/// Configuration of P-tuning, with PEFT's keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PTuningConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// How many virtual tokens.
    #[serde(flatten)]
    pub tokens: VirtualTokens,
    /// The network.
    pub encoder_reparameterization_type: EncoderType,
    /// Width of the network; that of a token where it is not set.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM.
    pub encoder_num_layers: usize,
    /// Dropout between the layers of the LSTM.
    pub encoder_dropout: f64,
}

/// The network that virtual tokens come out of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EncoderType {
    /// Three linear layers with ReLU between them.
    #[default]
    Mlp,
    /// An LSTM in both directions, and two linear layers.
    Lstm,
}

impl Default for PTuningConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            tokens: VirtualTokens::default(),
            encoder_reparameterization_type: EncoderType::default(),
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
        }
    }
}

/// Virtual tokens with the network that they come out of.
#[derive(Debug)]
pub struct EncodedPromptTuner {
    length: usize,
    lstm_layers: usize,
    dropout: f32,
    /// The embedding, then the LSTM's tensors (for each layer and direction: two weights, two biases), then weights and
    /// biases of the linear layers; under PEFT's names.
    parameters: Vec<Parameter>,
}

/// Shape of the network.
#[derive(Clone, Copy, Debug)]
struct Network {
    /// Virtual tokens that are stored.
    rows: usize,
    width: usize,
    hidden: usize,
    lstm_layers: usize,
}

impl EncodedPromptTuner {
    fn new(network: Network, length: usize, dropout: f32, seed: Seed) -> Self {
        let Network { rows, width, hidden, lstm_layers } = network;
        let mut stream = seed.stream("prompt_encoder", 0);
        let mut parameters = Vec::new();
        let mut add = |name: &str, value: Matrix, is_vector: bool| {
            let name = format!("prompt_encoder.{name}");
            parameters.push(if is_vector { Parameter::vector(name, value) } else { Parameter::new(name, value) });
        };
        add("embedding.weight", filled(rows, width, || stream.normal()), false);
        for layer in 0..lstm_layers {
            let input = if layer == 0 { width } else { 2 * hidden };
            let bound = 1.0 / (hidden as f32).sqrt();
            for suffix in ["", "_reverse"] {
                let mut uniform =
                    |rows: usize, cols: usize| filled(rows, cols, || stream.uniform_between(-bound, bound));
                add(&format!("lstm_head.weight_ih_l{layer}{suffix}"), uniform(4 * hidden, input), false);
                add(&format!("lstm_head.weight_hh_l{layer}{suffix}"), uniform(4 * hidden, hidden), false);
                add(&format!("lstm_head.bias_ih_l{layer}{suffix}"), uniform(1, 4 * hidden), true);
                add(&format!("lstm_head.bias_hh_l{layer}{suffix}"), uniform(1, 4 * hidden), true);
            }
        }
        let sizes = match lstm_layers {
            0 => vec![width, hidden, hidden, width],
            _ => vec![2 * hidden, 2 * hidden, width],
        };
        for (layer, pair) in sizes.windows(2).enumerate() {
            let (weight, bias) = linear_start(pair[1], pair[0], &mut stream);
            add(&format!("mlp_head.{}.weight", 2 * layer), weight, false);
            add(&format!("mlp_head.{}.bias", 2 * layer), bias, true);
        }
        Self { length, lstm_layers, dropout, parameters }
    }

    /// What all virtual tokens come to, `[stored, width]`.
    fn encoded(&self, tape: &mut Tape) -> Var {
        let mut rest = self.parameters.iter();
        let mut next = |tape: &mut Tape| tape.parameter(rest.next().expect("the network's shape is fixed"));
        let mut x = next(tape);
        let rows = x.rows();
        for layer in 0..self.lstm_layers {
            if layer > 0 {
                x = tape.dropout(&x, self.dropout);
            }
            let directions = [false, true].map(|reverse| {
                let [input, recurrent, input_bias, recurrent_bias] = [(); 4].map(|()| next(tape));
                let gates = tape.matmul_nt(&x, &input);
                let gates = tape.add_bias(gates, 0..rows, &input_bias);
                let gates = tape.add_bias(gates, 0..rows, &recurrent_bias);
                tape.lstm(&gates, &recurrent, reverse)
            });
            x = tape.concat_columns(&directions);
        }
        let linears = if self.lstm_layers == 0 { 3 } else { 2 };
        for layer in 0..linears {
            let (weight, bias) = (next(tape), next(tape));
            let product = tape.matmul_nt(&x, &weight);
            x = tape.add_bias(product, 0..rows, &bias);
            if layer + 1 < linears {
                x = tape.activation(Activation::Relu, &x);
            }
        }
        x
    }
}

impl Trainable for EncodedPromptTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.parameters.iter().collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.parameters.iter_mut().collect()
    }

    fn stored(&self) -> Vec<Stored> {
        let value = self.encoded(&mut Tape::evaluating(&Workspace::new())).value().clone();
        let (rows, cols) = value.shape();
        vec![Stored { name: STORED.to_owned(), shape: vec![rows, cols], value: Arc::new(value) }]
    }
}

impl InputTuner for EncodedPromptTuner {
    fn length(&self) -> usize {
        self.length
    }

    fn embeddings(&self, tape: &mut Tape) -> Var {
        let encoded = self.encoded(tape);
        tape.slice_rows(&encoded, 0..self.length)
    }
}

impl Method for PTuningConfig {
    const PEFT_TYPE: &'static str = "P_TUNING";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = self.tokens.problems();
        let mut wrong = |key: &str, reason: &str| {
            problems.push(ConfigProblem::Value { key: key.into(), reason: reason.to_owned() });
        };
        if self.encoder_hidden_size == Some(0) {
            wrong("encoder_hidden_size", "it must be at least 1");
        }
        if self.encoder_num_layers == 0 {
            wrong("encoder_num_layers", "it must be at least 1");
        }
        if !(0.0..1.0).contains(&self.encoder_dropout) {
            wrong("encoder_dropout", "it must be at least 0 and less than 1");
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let (input, site) = input_site(model)?;
        let mut config = self.clone();
        config.tokens = self.tokens.resolved(site.cols, model.heads, place);
        let hidden = *config.encoder_hidden_size.get_or_insert(site.cols);
        let (rows, width, length) = (config.tokens.stored(), site.cols, config.tokens.length());
        let lstm_layers = match self.encoder_reparameterization_type {
            EncoderType::Mlp => 0,
            EncoderType::Lstm => self.encoder_num_layers,
        };
        let mut adapter = Adapter::new();
        adapter.insert_input(
            input,
            match purpose {
                Purpose::Loading => Box::new(PromptTuner::new(Matrix::zeros(rows, width), length)),
                Purpose::Training => {
                    let network = Network { rows, width, hidden, lstm_layers };
                    Box::new(EncodedPromptTuner::new(network, length, self.encoder_dropout as f32, seed))
                }
            },
        );
        config.tokens.add_saved(&mut adapter, model, purpose)?;
        Ok(Built { config, adapter, warnings: Vec::new(), routine: None })
    }
}
