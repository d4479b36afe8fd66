//! Trained special tokens before and after the prompt, the baselines of Hu et al. 2021
//! (<https://arxiv.org/abs/2106.09685>, section 5.1): what PreEmbed (`pre_embed.rs`) and PreLayer (`pre_layer.rs`) share.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Adapter, HiddenTuner, InputTuner, Matrix, Parameter, Seed, SubLayer, Tape, Trainable, Var};

use crate::MethodError;
use crate::error::ConfigProblem;
use crate::method::Place;
use crate::virtual_tokens::{filled, input_site};

/// How many special tokens, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpecialTokens {
    /// `l_p`, before the prompt.
    pub prefix_tokens: usize,
    /// `l_i`, after the prompt.
    pub infix_tokens: usize,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self { prefix_tokens: 16, infix_tokens: 0 }
    }
}

/// The tensor's name: not that of prompt tuning's and of prefixes, beside which they may stand.
const EMBEDDINGS: &str = "special_token_embeddings";

impl SpecialTokens {
    /// `l_p + l_i`.
    pub(crate) fn count(self) -> usize {
        self.prefix_tokens + self.infix_tokens
    }

    /// What the tensor `name` `[l_p + l_i, width]` begins as: uniform in ±0.5, as prompt tuning's random start.
    pub(crate) fn start(self, name: &str, width: usize, seed: Seed) -> Matrix {
        let mut stream = seed.stream(name, 0);
        filled(self.count(), width, || stream.uniform_between(-0.5, 0.5))
    }

    /// An adapter that puts the tokens into a model's input.
    pub(crate) fn at_input(self, place: &Place<'_, '_>) -> Result<Adapter, MethodError> {
        let (input, site) = input_site(place.model)?;
        let embeddings = self.start(EMBEDDINGS, site.cols, place.seed);
        let mut adapter = Adapter::new();
        adapter.insert_input(input, Box::new(SpecialTokensTuner::new(EMBEDDINGS, self, embeddings)));
        Ok(adapter)
    }

    pub(crate) fn problems(self) -> Vec<ConfigProblem> {
        let reason = "it and infix_tokens are both 0: there must be at least one special token".to_owned();
        let problem = ConfigProblem::Value { key: "prefix_tokens".into(), reason };
        if self.count() == 0 { vec![problem] } else { Vec::new() }
    }
}

/// Embeddings of special tokens.
#[derive(Debug)]
pub struct SpecialTokensTuner {
    /// `[prefix + infix, hidden]`.
    embeddings: Parameter,
    tokens: SpecialTokens,
}

impl SpecialTokensTuner {
    /// Special tokens with `embeddings` `[prefix + infix, hidden]`; `name` is the tensor's.
    ///
    /// # Panics
    /// If there is not one row a token.
    pub fn new(name: &str, tokens: SpecialTokens, embeddings: Matrix) -> Self {
        assert_eq!(embeddings.rows(), tokens.count(), "each special token has its embedding");
        Self { embeddings: Parameter::new(name, embeddings), tokens }
    }
}

impl Trainable for SpecialTokensTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.embeddings]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.embeddings]
    }
}

impl InputTuner for SpecialTokensTuner {
    fn length(&self) -> usize {
        self.tokens.prefix_tokens
    }

    fn infix_length(&self) -> usize {
        self.tokens.infix_tokens
    }

    fn embeddings(&self, tape: &mut Tape) -> Var {
        tape.parameter(&self.embeddings)
    }
}

/// Activations of special tokens after a block, in place of what it computes for them.
#[derive(Debug)]
pub struct ActivationsTuner {
    /// `[prefix + infix, hidden]`.
    activations: Parameter,
}

impl ActivationsTuner {
    /// Special tokens with `activations` `[prefix + infix, hidden]`; `name` is the tensor's.
    pub fn new(name: &str, activations: Matrix) -> Self {
        Self { activations: Parameter::new(name, activations) }
    }
}

impl Trainable for ActivationsTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.activations]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.activations]
    }
}

impl HiddenTuner for ActivationsTuner {
    fn forward(&self, tape: &mut Tape, sub_layer: SubLayer<'_>) -> Var {
        let rows = sub_layer.virtual_rows;
        let stream = sub_layer.stream(tape);
        if rows.is_empty() {
            return stream;
        }
        let activations = tape.parameter(&self.activations);
        let mut chosen: Vec<usize> = (0..stream.rows()).collect();
        for (place, row) in rows.iter().enumerate() {
            chosen[*row] = stream.rows() + place % activations.rows();
        }
        let both = tape.concat_rows(&[stream, activations]);
        tape.gather_rows(&both, chosen)
    }
}
