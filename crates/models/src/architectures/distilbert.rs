//! DistilBERT (Sanh et al. 2019): BERT's network at half the depth, without token types, under other names.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::architectures::Architecture;
use crate::encoder::{EncoderConfig, Names};
use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, Pooling, plan_head};
use crate::task::{HeadOptions, Task};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["distilbert"],
    tasks: &[Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(from_json(&json, path, options)?)),
};

const NAMES: Names = Names {
    prefix: "distilbert.",
    class: "DistilBert",
    layer: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention: "attention",
    after_attention: "attention",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    after_feed_forward: "ffn",
    output_norm: "output_layer_norm",
    pooler: None,
};

/// Reads a configuration; missing keys take transformers' defaults.
fn from_json(json: &Map<String, Value>, path: &Path, options: &HeadOptions) -> Result<EncoderConfig, ModelError> {
    let mut fields = Fields::new(json);
    fields.refuse_quantisation();
    let (hidden_size, heads, blocks) =
        (fields.size("dim", 768), fields.size("n_heads", 12), fields.size("n_layers", 6));
    fields.check_heads(("dim", hidden_size), ("n_heads", heads));
    fields.check_blocks("n_layers", blocks);
    let (head, head_info, json) =
        plan_head(&mut fields, options, NAMES.class, Task::FeatureExtraction, &|task, fields| head(task, fields));
    let config = EncoderConfig {
        model_type: "distilbert".to_owned(),
        names: NAMES,
        vocab_size: fields.size("vocab_size", 30_522),
        inner_size: fields.size("hidden_dim", 3072),
        position_rows: fields.size("max_position_embeddings", 512),
        first_position: 0,
        uncounted: None,
        token_types: None,
        activation: fields.activation("activation", "gelu"),
        norm_epsilon: 1e-12,
        dropout: fields.fraction("dropout", 0.1),
        attention_dropout: fields.fraction("attention_dropout", 0.1),
        initializer_range: fields.positive("initializer_range", 0.02) as f32,
        hidden_size,
        blocks,
        heads,
        head,
        head_info,
        head_options: options.clone(),
        json,
    };
    fields.finish(config, path)
}

fn head(task: Task, fields: &mut Fields<'_>) -> Option<HeadPlan> {
    match task {
        Task::SeqCls => Some(HeadPlan {
            pooling: Pooling::First,
            dense: Some(("pre_classifier".to_owned(), Activation::Relu)),
            dropout: fields.fraction("seq_classif_dropout", 0.2),
            ..HeadPlan::of_tokens("classifier", 0.0)
        }),
        Task::TokenCls => Some(HeadPlan::of_tokens("classifier", fields.fraction("dropout", 0.1))),
        Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", fields.fraction("qa_dropout", 0.1))),
        _ => None,
    }
}
