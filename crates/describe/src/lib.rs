//! A model as methods see it: the one place where the two meet.

use tunesmith_methods::{ModelDescription, TaskType};
use tunesmith_models::{Cache, Inputs, Model, ModelKind, Task, TextTokenizer, rope_factor};
use tunesmith_tensor::{Forward, Matrix, Precision, Segments, Tape, Workspace};

/// Calls `work` with what methods may know of `model`, which came from `name`.
pub fn describe<R>(
    model: &dyn Model,
    name: Option<&str>,
    tokenizer: Option<&TextTokenizer>,
    work: impl FnOnce(&ModelDescription<'_>) -> R,
) -> R {
    let encode = tokenizer.map(|tokenizer| move |text: &str| tokenizer.encode(text, false).unwrap_or_default());
    work(&ModelDescription {
        model_type: &model.info().model_type,
        name_or_path: name,
        task_type: task_type(model.info().head.task),
        heads: model.info().heads,
        key_value_heads: model.info().kv_heads,
        tokenize: encode.as_ref().map(|encode| encode as &dyn Fn(&str) -> Vec<u32>),
        keys_and_values: Some(&|ids| keys_and_values(model, ids)),
        rope_factor: rope_factor(model.config_json()),
        sites: model.sites(),
        base: &|site| model.base(site),
    })
}

/// PEFT's task of a model's head.
fn task_type(task: Task) -> TaskType {
    match task {
        Task::CausalLm => TaskType::CausalLm,
        Task::SeqCls => TaskType::SeqCls,
        Task::TokenCls => TaskType::TokenCls,
        Task::QuestionAns => TaskType::QuestionAns,
        Task::Seq2SeqLm => TaskType::Seq2SeqLm,
        Task::FeatureExtraction => TaskType::FeatureExtraction,
    }
}

/// Keys and values of each block of a decoder for `ids`, which begin a text.
fn keys_and_values(model: &dyn Model, ids: &[u32]) -> Option<Vec<(Matrix, Matrix)>> {
    if model.info().kind != ModelKind::Decoder {
        return None;
    }
    let mut cache = Cache::new(1, model.info(), Precision::Float32);
    let workspace = Workspace::new();
    workspace.run(|| {
        let mut tape = Tape::evaluating(&workspace);
        let mut forward = Forward::new(&mut tape, Segments::from_lengths([ids.len()]), None);
        model.hidden_states(&mut forward, &Inputs::tokens(ids), Some(&mut cache));
    });
    Some((0..model.info().blocks).map(|block| cache.keys_and_values(0, block)).collect())
}
