//! The configuration of a post-norm encoder: what BERT, RoBERTa and DistilBERT say in words of their own.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::error::ModelError;
use crate::fields::{Fields, MOST_BLOCKS};
use crate::head::HeadPlan;
use crate::task::{HeadInfo, HeadOptions};

/// A post-norm encoder.
#[derive(Clone, Debug)]
pub(super) struct EncoderConfig {
    pub(super) model_type: String,
    pub(super) names: Names,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) blocks: usize,
    pub(super) heads: usize,
    pub(super) inner_size: usize,
    /// Rows of the table of positions.
    pub(super) position_rows: usize,
    /// The row of a sequence's first token.
    pub(super) first_position: usize,
    /// The token that has the row before the first and is not counted (RoBERTa's padding).
    pub(super) uncounted: Option<u32>,
    /// Rows of the table of token types, where there is one.
    pub(super) token_types: Option<usize>,
    pub(super) activation: Activation,
    pub(super) norm_epsilon: f32,
    pub(super) dropout: f32,
    pub(super) initializer_range: f32,
    pub(super) head: Option<HeadPlan>,
    pub(super) head_info: HeadInfo,
    pub(super) head_options: HeadOptions,
    /// The whole `config.json`, for saving.
    pub(super) json: Map<String, Value>,
}

/// Hugging Face's names of the parts, relative to the bare model; those of a block to the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// What stands before all of them where there is a head.
    pub(super) prefix: &'static str,
    /// How transformers' classes begin.
    pub(super) class: &'static str,
    pub(super) layer: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) attention_output: &'static str,
    pub(super) attention: &'static str,
    pub(super) after_attention: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) after_feed_forward: &'static str,
    pub(super) output_norm: &'static str,
    /// A linear over the first token that the bare model has beside its blocks.
    pub(super) pooler: Option<&'static str>,
}

impl EncoderConfig {
    /// The path of a part of the bare model.
    pub(super) fn path(&self, part: &str) -> String {
        let prefix = if self.head.is_some() { self.names.prefix } else { "" };
        format!("{prefix}{part}")
    }
}

/// Notes sizes that no model has.
pub(super) fn check_sizes(fields: &mut Fields<'_>, hidden: (&str, usize), heads: (&str, usize), blocks: (&str, usize)) {
    if !hidden.1.is_multiple_of(heads.1) {
        fields.problems.push(format!("{} {} is not a multiple of {} {}", hidden.0, hidden.1, heads.0, heads.1));
    }
    if blocks.1 > MOST_BLOCKS {
        fields.problems.push(format!("{} {} is more than {MOST_BLOCKS}", blocks.0, blocks.1));
    }
}

/// The configuration, if nothing is wrong with it.
pub(super) fn finish(config: EncoderConfig, problems: Vec<String>, path: &Path) -> Result<EncoderConfig, ModelError> {
    if problems.is_empty() { Ok(config) } else { Err(ModelError::Config { path: path.to_path_buf(), problems }) }
}
