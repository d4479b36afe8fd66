//! BERT (Devlin et al. 2019), and what was distilled from it under its own name, such as MiniLM's sentence encoders.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::architectures::Architecture;
use crate::encoder::{EncoderConfig, Names, Sizes, classifier_dropout};
use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, Pooling, plan_head};
use crate::task::{HeadOptions, Task};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["bert"],
    tasks: &[Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(from_json(&json, path, options)?)),
};

pub(super) const NAMES: Names = Names {
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
    fields.finish(sizes.config("bert", NAMES, head, head_info, options, json), path)
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
