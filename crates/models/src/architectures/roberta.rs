//! RoBERTa (Liu et al. 2019): BERT's network with positions that begin after the padding's row, and a head of its own.
//! XLM-RoBERTa is the same with another vocabulary.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::architectures::{Architecture, bert};
use crate::encoder::{EncoderConfig, Names, Sizes, classifier_dropout};
use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, Pooling, plan_head};
use crate::task::{HeadOptions, Task};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["roberta", "xlm-roberta"],
    tasks: &[Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(from_json(&json, path, options)?)),
};

const NAMES: Names = Names { prefix: "roberta.", class: "Roberta", ..bert::NAMES };

/// Reads a configuration; missing keys take transformers' defaults.
fn from_json(json: &Map<String, Value>, path: &Path, options: &HeadOptions) -> Result<EncoderConfig, ModelError> {
    let mut fields = Fields::new(json);
    let model_type = fields.text("model_type", "roberta");
    let names = Names { class: if model_type == "roberta" { "Roberta" } else { "XLMRoberta" }, ..NAMES };
    let sizes = Sizes::read(&mut fields, 512, 2);
    let padding = fields.token_id("pad_token_id", 1);
    let first_position = padding as usize + 1;
    if sizes.position_rows <= first_position {
        fields.problems.push(format!(
            "max_position_embeddings {} leaves no position after that of pad_token_id {padding}",
            sizes.position_rows
        ));
    }
    let (head, head_info, json) =
        plan_head(&mut fields, options, names.class, Task::FeatureExtraction, &|task, fields| head(task, fields));
    let config = sizes.config(&model_type, names, head, head_info, options, json);
    fields.finish(EncoderConfig { first_position, uncounted: Some(padding), ..config }, path)
}

fn head(task: Task, fields: &mut Fields<'_>) -> Option<HeadPlan> {
    let dropout = classifier_dropout(fields);
    match task {
        Task::SeqCls => Some(HeadPlan {
            pooling: Pooling::First,
            dense: Some(("classifier.dense".to_owned(), Activation::Tanh)),
            dropout,
            ..HeadPlan::of_tokens("classifier.out_proj", dropout)
        }),
        Task::TokenCls => Some(HeadPlan::of_tokens("classifier", dropout)),
        Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", 0.0)),
        _ => None,
    }
}
