//! BERT (Devlin et al. 2019), and what was distilled from it under its own name, such as MiniLM's sentence encoders.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::architectures::Architecture;
use crate::encoder::config::{EncoderConfig, Names, check_sizes, finish};
use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, Pooling, plan_head};
use crate::task::{HeadOptions, Task};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["bert"],
    tasks: &[Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(from_json(&json, path, options)?)),
};

const NAMES: Names = Names {
    prefix: "bert.",
    class: "Bert",
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention: "attention.self",
    after_attention: "attention.output",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    after_feed_forward: "output",
    output_norm: "output.LayerNorm",
    pooler: Some("pooler.dense"),
};

/// Reads a configuration; missing keys take transformers' defaults.
fn from_json(json: &Map<String, Value>, path: &Path, options: &HeadOptions) -> Result<EncoderConfig, ModelError> {
    let mut fields = Fields::new(json);
    let sizes = Sizes::read(&mut fields, 512, 2);
    let (head, head_info, json) =
        plan_head(&mut fields, options, NAMES.class, Task::FeatureExtraction, &|task, fields| head(task, fields));
    let problems = fields.problems;
    let config = sizes.config("bert", NAMES, head, head_info, options, json);
    finish(config, problems, path)
}

fn head(task: Task, fields: &mut Fields<'_>) -> Option<HeadPlan> {
    let dropout = classifier_dropout(fields);
    match task {
        Task::SeqCls => Some(HeadPlan {
            pooling: Pooling::First,
            dense: Some(("bert.pooler.dense".to_owned(), Activation::Tanh)),
            first_dropout: 0.0,
            dropout,
            ..HeadPlan::of_tokens("classifier", 0.0)
        }),
        Task::TokenCls => Some(HeadPlan::of_tokens("classifier", dropout)),
        Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", 0.0)),
        _ => None,
    }
}

/// `classifier_dropout`, or the dropout of the blocks.
pub(super) fn classifier_dropout(fields: &mut Fields<'_>) -> f32 {
    let dropout = fields.fraction("hidden_dropout_prob", 0.1);
    fields.fraction("classifier_dropout", dropout)
}

/// The keys that BERT and RoBERTa share.
pub(super) struct Sizes {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) blocks: usize,
    pub(super) heads: usize,
    pub(super) inner_size: usize,
    pub(super) position_rows: usize,
    pub(super) token_types: usize,
    activation: Activation,
    norm_epsilon: f32,
    dropout: f32,
    initializer_range: f32,
}

impl Sizes {
    pub(super) fn read(fields: &mut Fields<'_>, positions: usize, token_types: usize) -> Self {
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
            initializer_range: fields.positive("initializer_range", 0.02) as f32,
        };
        let (hidden, heads) = (("hidden_size", sizes.hidden_size), ("num_attention_heads", sizes.heads));
        check_sizes(fields, hidden, heads, ("num_hidden_layers", sizes.blocks));
        sizes
    }

    /// A configuration whose positions begin at row 0.
    pub(super) fn config(
        self,
        model_type: &str,
        names: Names,
        head: Option<HeadPlan>,
        head_info: crate::task::HeadInfo,
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
            initializer_range: self.initializer_range,
            head,
            head_info,
            head_options: options.clone(),
            json,
        }
    }
}
