//! The configuration of a post-norm encoder: what BERT, RoBERTa and DistilBERT say in words of their own.

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::head::HeadPlan;
use crate::task::{HeadInfo, HeadOptions};

/// A post-norm encoder.
#[derive(Clone, Debug)]
pub(crate) struct EncoderConfig {
    pub(crate) model_type: String,
    pub(crate) names: Names,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    pub(crate) inner_size: usize,
    /// Rows of the table of positions.
    pub(crate) position_rows: usize,
    /// The row of a sequence's first token.
    pub(crate) first_position: usize,
    /// The token that has the row before the first and is not counted (RoBERTa's padding).
    pub(crate) uncounted: Option<u32>,
    /// Rows of the table of token types, where there is one.
    pub(crate) token_types: Option<usize>,
    pub(crate) activation: Activation,
    pub(crate) norm_epsilon: f32,
    pub(crate) dropout: f32,
    /// Dropout of attention's weights.
    pub(crate) attention_dropout: f32,
    pub(crate) initializer_range: f32,
    pub(crate) head: Option<HeadPlan>,
    pub(crate) head_info: HeadInfo,
    pub(crate) head_options: HeadOptions,
    /// The whole `config.json`, for saving.
    pub(crate) json: Map<String, Value>,
}

/// Hugging Face's names of the parts, relative to the bare model; those of a block to the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// What stands before all of them where there is a head.
    pub(crate) prefix: &'static str,
    /// How transformers' classes begin.
    pub(crate) class: &'static str,
    pub(crate) layer: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention: &'static str,
    pub(crate) after_attention: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) after_feed_forward: &'static str,
    pub(crate) output_norm: &'static str,
    /// A linear over the first token that the bare model has beside its blocks.
    pub(crate) pooler: Option<&'static str>,
}

impl EncoderConfig {
    /// The path of a part of the bare model.
    pub(crate) fn path(&self, part: &str) -> String {
        let prefix = if self.head.is_some() { self.names.prefix } else { "" };
        format!("{prefix}{part}")
    }
}
