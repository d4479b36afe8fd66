//! What is asked of the engine, and what it answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tunesmith_models::{PAGE_TOKENS, PageBuffers, Sampling};
use tunesmith_tensor::{Adapter, Seed};

use super::grammar::Grammar;
use super::{EngineOptions, SubmitError};
use crate::adapters::Resident;
use crate::base::BaseModel;

/// A text to be continued.
pub struct Generation {
    /// The adapter; `None` is the base alone.
    pub adapter: Option<Arc<Resident>>,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// New tokens at the most.
    pub max_tokens: usize,
    /// New tokens before which none ends the text.
    pub min_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Taken from the logits of tokens that were generated (OpenAI's `presence_penalty`).
    pub presence_penalty: f32,
    /// Taken from the logits of generated tokens for each time (OpenAI's `frequency_penalty`).
    pub frequency_penalty: f32,
    /// Added to the logits of some tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end it; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end it, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's own end-of-text tokens do not end it.
    pub ignores_eos: bool,
    /// What is drawn from: a seed, and which of the texts for one prompt this is.
    pub seed: (Seed, u64),
    /// How many of the likeliest tokens are told beside each token's log-probability.
    pub logprobs: Option<usize>,
    /// What the text must be.
    pub grammar: Option<Grammar>,
    /// Requests with different values share no keys and values.
    pub cache_salt: String,
    /// When it was asked for.
    pub asked: Instant,
    /// Which of the texts of a request this is; its events say it too.
    pub choice: usize,
    /// Where its events go.
    pub events: UnboundedSender<(usize, Event)>,
}

/// A text to be judged or turned into features.
pub struct Pooled {
    /// The adapter; `None` is the base alone.
    pub adapter: Option<Arc<Resident>>,
    /// Its tokens, special ones included.
    pub tokens: Vec<u32>,
    /// Gets the rows of outputs: one of a classifier, one a token of a tagger; the mean of the hidden states otherwise.
    pub answer: oneshot::Sender<Vec<Vec<f32>>>,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    /// Its id.
    pub id: u32,
    /// Its log-probability under the model, before penalties and filters; 0 where it was not asked for.
    pub logprob: f32,
    /// The likeliest tokens with theirs.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Tokens, and the text that has become certain, which may lag behind them.
    Text {
        /// The piece of text.
        text: String,
        /// The tokens since the last event.
        tokens: Vec<TokenInfo>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Counts.
        usage: Usage,
    },
    /// The engine failed.
    Failed(String),
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// By an end-of-text token, a stop text or token, or because a grammar is complete.
    Stop,
    /// By its length.
    Length,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them whose keys and values were there already.
    pub cached: usize,
    /// New tokens.
    pub completion: usize,
    /// From the request to its first pass.
    pub queue: Duration,
    /// From the request to its first token.
    pub first_token: Duration,
}

/// What the engine's thread receives.
pub(super) enum Submitted {
    Generation(Box<Generation>),
    Pooled(Box<Pooled>),
}

/// Requests with the same key may be in one group of rows and share prefixes.
pub(super) fn key(adapter: Option<&Arc<Resident>>) -> String {
    adapter.map_or_else(String::new, |resident| resident.generation.clone())
}

pub(super) fn tuners(adapter: Option<&Arc<Resident>>) -> Option<&Adapter> {
    adapter.map(|resident| &resident.adapter)
}

impl Generation {
    /// Virtual tokens that its adapter puts into its sequence.
    fn virtual_tokens(&self) -> usize {
        tuners(self.adapter.as_ref()).map_or(0, Adapter::virtual_tokens)
    }

    /// Pages of keys and values that it may need.
    pub(super) fn pages(&self, base: &BaseModel) -> usize {
        let own = if base.encodes() { 1 } else { self.prompt.len() };
        let encoder = if base.encodes() { self.prompt.len() + self.virtual_tokens() } else { 0 };
        let virtual_pages = self.virtual_tokens().div_ceil(PAGE_TOKENS);
        virtual_pages + (own + self.max_tokens).div_ceil(PAGE_TOKENS) + encoder.div_ceil(PAGE_TOKENS)
    }

    /// Whether it can run at all.
    pub(super) fn check(&self, base: &BaseModel, options: &EngineOptions) -> Result<(), SubmitError> {
        if self.prompt.is_empty() {
            return Err(SubmitError::Empty);
        }
        let longest = base.model().info().max_positions;
        let tokens = self.prompt.len() + self.virtual_tokens();
        let together = if base.encodes() { tokens.max(self.max_tokens + 1) } else { tokens + self.max_tokens };
        if together > longest {
            return Err(SubmitError::Long { tokens, new: self.max_tokens, longest });
        }
        if self.pages(base) > page_limit(base, options) {
            return Err(SubmitError::Memory);
        }
        Ok(())
    }
}

impl Pooled {
    pub(super) fn check(&self, base: &BaseModel) -> Result<(), SubmitError> {
        if self.tokens.is_empty() {
            return Err(SubmitError::Empty);
        }
        let longest = base.model().info().max_positions;
        let tokens = self.tokens.len() + tuners(self.adapter.as_ref()).map_or(0, Adapter::virtual_tokens);
        if tokens > longest { Err(SubmitError::Long { tokens, new: 0, longest }) } else { Ok(()) }
    }
}

/// Pages of keys and values that there may be.
pub(super) fn page_limit(base: &BaseModel, options: &EngineOptions) -> usize {
    options.cache_bytes
        / PageBuffers::new(base.model().info(), base.workspace.kernels().precision()).page_bytes().max(1)
}
