//! Soft prompt tuning (Lester, Al-Rfou and Constant 2021, <https://arxiv.org/abs/2104.08691>, section 2).
//!
//! ```text
//! [P; X] in place of X,   P [virtual tokens, hidden] trained, X the embedded input (the encoder's, where there are two)
//! ```
//!
//! The loss is never taken at virtual tokens. PEFT's files hold `P` as `prompt_embeddings`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunesmith_tensor::{Adapter, InputTuner, Matrix, Parameter, Seed, Tape, Trainable, Var};

use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::virtual_tokens::{STORED, VirtualTokens, filled, input_site, token_embeddings, tokens};
use crate::{MethodError, ModelDescription};

/// Configuration of prompt tuning, with PEFT's keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTuningConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// How many virtual tokens.
    #[serde(flatten)]
    pub tokens: VirtualTokens,
    /// What they begin as.
    pub prompt_tuning_init: PromptInit,
    /// With `TEXT`: the text, repeated or cut to the number of virtual tokens. With `CLASS_LABELS`: the labels, separated
    /// by commas.
    pub prompt_tuning_init_text: Option<String>,
    /// Kept for PEFT, which reads the tokenizer from there.
    pub tokenizer_name_or_path: Option<String>,
    /// Kept for PEFT.
    pub tokenizer_kwargs: Option<Value>,
}

/// What virtual tokens begin as (section 3.2 of the paper).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptInit {
    /// Embeddings of tokens drawn from the 5,000 first of the vocabulary, which are its most common.
    #[default]
    SampleVocab,
    /// Standard normal, as PEFT's.
    Random,
    /// Uniform in ±0.5, as the paper's random start.
    Uniform,
    /// Embeddings of the tokens of a text.
    Text,
    /// Mean embeddings of the tokens of each class label; further virtual tokens as with `SAMPLE_VOCAB`.
    ClassLabels,
}

/// Tokens that virtual tokens begin from are drawn from this many first ones.
const COMMON_TOKENS: usize = 5000;

/// Trained embeddings before the sequence.
#[derive(Debug)]
pub struct PromptTuner {
    /// `[stored, hidden]`.
    embeddings: Parameter,
    length: usize,
}

impl PromptTuner {
    /// Virtual tokens from the first `length` rows of `embeddings` `[stored, hidden]`; PEFT stores more than it uses
    /// where a model has two stacks.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn new(embeddings: Matrix, length: usize) -> Self {
        assert!(length <= embeddings.rows(), "each virtual token has its embedding");
        Self { embeddings: Parameter::new(STORED, embeddings), length }
    }
}

impl Trainable for PromptTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.embeddings]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.embeddings]
    }
}

impl InputTuner for PromptTuner {
    fn length(&self) -> usize {
        self.length
    }

    fn embeddings(&self, tape: &mut Tape) -> Var {
        let embeddings = tape.parameter(&self.embeddings);
        tape.slice_rows(&embeddings, 0..self.length)
    }
}

impl Method for PromptTuningConfig {
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = self.tokens.problems();
        let needs_text = matches!(self.prompt_tuning_init, PromptInit::Text | PromptInit::ClassLabels);
        if purpose == Purpose::Training && needs_text && self.prompt_tuning_init_text.is_none() {
            let reason = "prompt_tuning_init asks for one".to_owned();
            problems.push(ConfigProblem::Value { key: "prompt_tuning_init_text".into(), reason });
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let (input, site) = input_site(model)?;
        let mut config = self.clone();
        config.tokens = self.tokens.resolved(site.cols, model.heads, place);
        let shape = (config.tokens.stored(), site.cols);
        let start = match purpose {
            Purpose::Training => start(&config, shape, model, seed)?,
            Purpose::Loading => Matrix::zeros(shape.0, shape.1),
        };
        let mut adapter = Adapter::new();
        adapter.insert_input(input, Box::new(PromptTuner::new(start, config.tokens.length())));
        config.tokens.add_saved(&mut adapter, model, purpose)?;
        Ok(Built { config, adapter, warnings: Vec::new(), routine: None })
    }
}

/// What the virtual tokens begin as, `[rows, cols]`.
fn start(
    config: &PromptTuningConfig,
    (rows, cols): (usize, usize),
    model: &ModelDescription<'_>,
    seed: Seed,
) -> Result<Matrix, MethodError> {
    let mut stream = seed.stream(STORED, 0);
    let text = config.prompt_tuning_init_text.as_deref().unwrap_or_default();
    let mut matrix = match config.prompt_tuning_init {
        PromptInit::Random => return Ok(filled(rows, cols, || stream.normal())),
        PromptInit::Uniform => return Ok(filled(rows, cols, || stream.uniform_between(-0.5, 0.5))),
        PromptInit::Text => {
            let (table, ids) = (token_embeddings(model)?, tokens(text, model)?);
            let values = ids.iter().cycle().take(rows).flat_map(|id| table.row(*id as usize).to_vec());
            return Ok(Matrix::from_vec(rows, cols, values.collect()));
        }
        PromptInit::SampleVocab | PromptInit::ClassLabels => {
            let table = token_embeddings(model)?;
            // Without replacement, while there are enough.
            let mut ids: Vec<usize> = (0..table.rows().min(COMMON_TOKENS)).collect();
            stream.shuffle(&mut ids);
            let values = ids.iter().cycle().take(rows).flat_map(|id| table.row(*id).to_vec());
            Matrix::from_vec(rows, cols, values.collect())
        }
    };
    if config.prompt_tuning_init == PromptInit::ClassLabels {
        let table = token_embeddings(model)?;
        for (row, label) in text.split(',').map(str::trim).filter(|label| !label.is_empty()).take(rows).enumerate() {
            let ids = tokens(label, model)?;
            let target = matrix.row_mut(row);
            target.fill(0.0);
            for id in &ids {
                target
                    .iter_mut()
                    .zip(table.row(*id as usize))
                    .for_each(|(sum, value)| *sum += value / ids.len() as f32);
            }
        }
    }
    Ok(matrix)
}
