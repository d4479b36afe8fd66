//! What BERT's and RoBERTa's configurations have in common.

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::encoder::config::{EncoderConfig, Names};
use crate::fields::Fields;
use crate::head::HeadPlan;
use crate::task::{HeadInfo, HeadOptions};

/// `classifier_dropout`, or the dropout of the blocks.
pub(crate) fn classifier_dropout(fields: &mut Fields<'_>) -> f32 {
    let dropout = fields.fraction("hidden_dropout_prob", 0.1);
    fields.fraction("classifier_dropout", dropout)
}

/// The keys that BERT and RoBERTa share.
pub(crate) struct Sizes {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    pub(crate) inner_size: usize,
    pub(crate) position_rows: usize,
    pub(crate) token_types: usize,
    activation: Activation,
    norm_epsilon: f32,
    dropout: f32,
    attention_dropout: f32,
    initializer_range: f32,
}

impl Sizes {
    pub(crate) fn read(fields: &mut Fields<'_>, positions: usize, token_types: usize) -> Self {
        let positional = fields.text("position_embedding_type", "absolute");
        if positional != "absolute" {
            fields
                .problems
                .push(format!("position_embedding_type {positional:?} is not supported, only \"absolute\" is"));
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if fields.flag(key, false) {
                fields.problems.push(format!("{key} is true: only encoders of this type are supported"));
            }
        }
        fields.refuse_quantisation();
        let sizes = Self {
            vocab_size: fields.size("vocab_size", 30_522),
            hidden_size: fields.size("hidden_size", 768),
            blocks: fields.size("num_hidden_layers", 12),
            heads: fields.size("num_attention_heads", 12),
            inner_size: fields.size("intermediate_size", 3072),
            position_rows: fields.size("max_position_embeddings", positions),
            token_types: fields.size("type_vocab_size", token_types),
            activation: fields.activation("hidden_act", "gelu"),
            norm_epsilon: fields.positive("layer_norm_eps", 1e-12) as f32,
            dropout: fields.fraction("hidden_dropout_prob", 0.1),
            attention_dropout: fields.fraction("attention_probs_dropout_prob", 0.1),
            initializer_range: fields.positive("initializer_range", 0.02) as f32,
        };
        fields.check_heads(("hidden_size", sizes.hidden_size), ("num_attention_heads", sizes.heads));
        fields.check_blocks("num_hidden_layers", sizes.blocks);
        sizes
    }

    /// A configuration whose positions begin at row 0.
    pub(crate) fn config(
        self,
        model_type: &str,
        names: Names,
        head: Option<HeadPlan>,
        head_info: HeadInfo,
        options: &HeadOptions,
        json: Map<String, Value>,
    ) -> EncoderConfig {
        EncoderConfig {
            model_type: model_type.to_owned(),
            names,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            blocks: self.blocks,
            heads: self.heads,
            inner_size: self.inner_size,
            position_rows: self.position_rows,
            first_position: 0,
            uncounted: None,
            token_types: Some(self.token_types),
            activation: self.activation,
            norm_epsilon: self.norm_epsilon,
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
            initializer_range: self.initializer_range,
            head,
            head_info,
            head_options: options.clone(),
            json,
        }
    }
}
