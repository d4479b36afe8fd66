//! The inputs of a fixture as a batch of its model's task, and the outputs to compare.

use serde_json::Value;
use tunesmith_models::{Cache, DecoderInputs, Inputs, Model, ModelKind, Task};
use tunesmith_tensor::{Adapter, Forward, IGNORED_TARGET, Precision, Segments, Tape, Workspace};
use tunesmith_train::{Batch, Example, Targets};

use crate::fixture::{Examples, Tensor};

/// The batch, without padding.
pub(crate) fn batch(model: &dyn Model, examples: &Examples) -> Batch {
    let labels = &examples.labels;
    let label = |value: &f32| if *value < 0.0 { IGNORED_TARGET } else { *value as u32 };
    match model.info().head.task {
        Task::CausalLm => {
            let mut rows = examples.rows.iter();
            let examples: Vec<Example> = examples
                .sequences
                .iter()
                .map(|ids| {
                    let labels = rows.by_ref().take(ids.len()).map(|row| label(&labels.values[*row])).collect();
                    Example { ids: ids.clone(), labels }
                })
                .collect();
            Batch::new(&examples)
        }
        Task::Seq2SeqLm => {
            let ModelKind::EncoderDecoder { decoder_start_token_id, .. } = model.info().kind else {
                panic!("sequences to sequences need two stacks")
            };
            let padding = model.config_json()["pad_token_id"].as_u64().expect("a padding token") as u32;
            let targets: Vec<Vec<u32>> =
                labels.values.chunks_exact(labels.shape[1]).map(|row| row.iter().map(label).collect()).collect();
            let pairs = examples.sequences.iter().zip(&targets).map(|(ids, labels)| (&ids[..], &labels[..]));
            Batch::seq2seq(pairs, decoder_start_token_id, padding)
        }
        Task::SeqCls => Batch {
            ids: examples.sequences.concat(),
            token_type_ids: Vec::new(),
            segments: Segments::from_lengths(examples.sequences.iter().map(Vec::len)),
            decoder: None,
            targets: Targets::Classes(labels.values.iter().map(label).collect()),
        },
        other => panic!("no fixture is of {other:?}"),
    }
}

/// The outputs of all rows that the head reads, in float32.
pub(crate) fn logits(model: &dyn Model, adapter: Option<&Adapter>, examples: &Examples) -> Vec<f32> {
    logits_in(&Workspace::new(), model, adapter, examples)
}

/// The same in the workspace's precision.
pub(crate) fn logits_in(
    workspace: &Workspace,
    model: &dyn Model,
    adapter: Option<&Adapter>,
    examples: &Examples,
) -> Vec<f32> {
    let batch = batch(model, examples);
    let mut tape = Tape::evaluating(workspace);
    let mut forward = Forward::new(&mut tape, batch.segments.clone(), adapter);
    let hidden = model.hidden_states(&mut forward, &batch.inputs(), None);
    let tokens = forward.segments().clone();
    let sequences = Segments::from_lengths((0..tokens.len()).map(|_| 1));
    let rows = if model.info().head.task == Task::SeqCls { sequences } else { tokens };
    model.logits(&mut forward, &hidden, &rows).value().to_vec()
}

/// The same rows of the reference's outputs: those of a decoder are padded where its inputs are.
pub(crate) fn real_rows(model: &dyn Model, logits: &Tensor, examples: &Examples) -> Vec<f32> {
    if model.info().head.task != Task::CausalLm {
        return logits.values.clone();
    }
    let width = logits.shape[2];
    // Virtual tokens have outputs too, before those of the text.
    let (length, given) = (logits.shape[1], examples.length);
    let rows = examples.rows.iter().map(|row| row / given * length + length - given + row % given);
    rows.flat_map(|row| logits.values[row * width..(row + 1) * width].to_vec()).collect()
}

/// Greedy continuation with the cache, one token at a time after the prompt; never one of `banned`.
pub(crate) fn greedy(
    model: &dyn Model,
    adapter: Option<&Adapter>,
    prompt: &[u32],
    tokens: usize,
    banned: &[u32],
) -> Vec<u32> {
    let workspace = Workspace::new();
    let mut cache = Cache::new(1, model.info(), Precision::Float32);
    let (mut source, mut input) = match model.info().kind {
        ModelKind::EncoderDecoder { decoder_start_token_id, .. } => {
            (Some(prompt.to_vec()), vec![decoder_start_token_id])
        }
        _ => (None, prompt.to_vec()),
    };
    let mut new = Vec::new();
    for _ in 0..tokens {
        let own = Segments::from_lengths([input.len()]);
        let (inputs, segments) = match &source {
            Some(source) => {
                let decoder = Some(DecoderInputs { ids: &input, segments: &own });
                (Inputs { ids: source, token_type_ids: &[], decoder }, Segments::from_lengths([source.len()]))
            }
            None => (Inputs::tokens(&input), own.clone()),
        };
        let mut tape = Tape::evaluating(&workspace);
        let mut forward = Forward::new(&mut tape, segments, adapter);
        let hidden = model.hidden_states(&mut forward, &inputs, Some(&mut cache));
        let last = forward.tape().slice_rows(&hidden, input.len() - 1..input.len());
        let logits = model.logits(&mut forward, &last, &Segments::from_lengths([1]));
        let allowed = logits.value().data().iter().enumerate().filter(|(id, _)| !banned.contains(&(*id as u32)));
        let token = allowed.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).expect("a vocabulary").0 as u32;
        new.push(token);
        input = vec![token];
        source = source.map(|_| Vec::new());
    }
    new
}

/// The tokens of `generate.json`: the prompt, and what the reference wrote after it or in answer to it.
pub(crate) fn generated(model: &dyn Model, json: &Value) -> (Vec<u32>, Vec<u32>) {
    let ids = |key: &str| -> Vec<u32> {
        serde_json::from_value(json[key][0].clone()).expect("generate.json holds lists of ids")
    };
    let (prompt, mut output) = (ids("input_ids"), ids("output_ids"));
    let known = if matches!(model.info().kind, ModelKind::EncoderDecoder { .. }) { 1 } else { prompt.len() };
    (prompt, output.split_off(known))
}
