//! Training the embeddings of some tokens alone: PEFT's `TRAINABLE_TOKENS`. The tuner is that of LoRA's
//! `trainable_token_indices`.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use tunesmith_tensor::Adapter;

use crate::common::{CommonConfig, Modules, Purpose};
use crate::error::ConfigProblem;
use crate::lora_config::TokenIndices;
use crate::method::{Built, Method, Place};
use crate::{MethodError, token_rows};

/// Configuration of trainable tokens, with PEFT's field names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainableTokensConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Ids of the tokens.
    pub token_indices: Vec<u32>,
    /// The embeddings; `None` is the input embedding.
    pub target_modules: Option<Modules>,
    /// Whether the rows begin as the base's. Only that is offered.
    pub init_weights: bool,
}

impl Default for TrainableTokensConfig {
    fn default() -> Self {
        Self { common: CommonConfig::default(), token_indices: Vec::new(), target_modules: None, init_weights: true }
    }
}

impl Method for TrainableTokensConfig {
    const PEFT_TYPE: &'static str = "TRAINABLE_TOKENS";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut add = |key: &str, reason: &str| {
            problems.push(ConfigProblem::Value { key: key.to_owned(), reason: reason.to_owned() });
        };
        if self.token_indices.is_empty() {
            add("token_indices", "name at least one token by its id");
        }
        if matches!(self.target_modules, Some(Modules::Pattern(_))) {
            add("target_modules", "a list of names of embeddings is needed");
        }
        if !self.init_weights && purpose == Purpose::Training {
            add("init_weights", "rows begin as the base's: it must be true");
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let tokens = match &self.target_modules {
            Some(Modules::Names(names)) => {
                let named = names.iter().map(|name| (name.clone(), self.token_indices.clone()));
                TokenIndices::Named(named.collect::<IndexMap<_, _>>())
            }
            _ => TokenIndices::Input(self.token_indices.clone()),
        };
        let mut adapter = Adapter::new();
        token_rows::add_named(&mut adapter, &tokens, "trainable_tokens_delta", place.model)?;
        Ok(Built { config: self.clone(), adapter, warnings: Vec::new(), routine: None })
    }
}
