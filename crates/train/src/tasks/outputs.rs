//! A head's outputs for many examples.

use tunesmith_models::Task;
use tunesmith_tensor::{Forward, Matrix, Seed, Segments, Tape};

use crate::losses::loss;
use crate::tasks::{Target, TaskDataset};
use crate::{BatchLimit, BatchPlan, SamplingStrategy, Subject, TrainError, TrainingSet};

/// What a model makes of a data set.
pub(super) struct Outputs {
    /// For each adapter, and each example, the head's outputs: `[1, outputs]` of its sequence, or `[tokens, outputs]`.
    /// Without a head the mean of its hidden states, `[1, hidden]`.
    pub(super) rows: Vec<Vec<Matrix>>,
    /// The sum of the losses of labelled values, of all adapters.
    pub(super) loss: f64,
    /// Labelled values, counted for each adapter.
    pub(super) labelled: usize,
}

/// Runs `dataset` in batches within `limit`, each example once with every adapter, all in one batch.
///
/// # Errors
/// [`TrainError::ExceedsBudget`] if an example exceeds the limit.
pub(super) fn outputs(dataset: &TaskDataset, subject: &Subject<'_>, limit: BatchLimit) -> Result<Outputs, TrainError> {
    let Subject { model, adapters, workspace, .. } = *subject;
    let limit = match limit {
        BatchLimit::Sequences(count) => BatchLimit::Sequences((count / adapters.len()).max(1)),
        BatchLimit::Tokens(count) => BatchLimit::Tokens(count / adapters.len()),
    };
    let plan = BatchPlan::new(dataset.lengths(), limit, SamplingStrategy::Sequential, Seed(0))?;
    let task = model.info().head.task;
    let mut all = Outputs { rows: vec![Vec::new(); adapters.len()], loss: 0.0, labelled: 0 };
    for indices in plan.epoch(0) {
        let batch = dataset.batch_of(&indices.repeat(adapters.len()));
        let each: Vec<_> = adapters.iter().flat_map(|adapter| vec![*adapter; indices.len()]).collect();
        let is_labelled = indices.iter().all(|index| dataset.examples[*index].target != Target::Unknown);
        let (rows, sum) = workspace.run(|| {
            let mut tape = Tape::evaluating(workspace);
            let mut forward = Forward::mixed(&mut tape, batch.segments.clone(), &each);
            let hidden = model.hidden_states(&mut forward, &batch.inputs(), None);
            let sum = if is_labelled { loss(model, &mut forward, &hidden, &batch.targets).total } else { 0.0 };
            let one_each = Segments::from_lengths(each.iter().map(|_| 1));
            let (found, segments) = match task {
                Task::FeatureExtraction => {
                    let segments = forward.segments().clone();
                    (forward.tape().mean_rows(&hidden, &segments), one_each)
                }
                Task::SeqCls => (model.logits(&mut forward, &hidden, &one_each), one_each),
                _ => {
                    let segments = forward.segments().clone();
                    (model.logits(&mut forward, &hidden, &segments), segments)
                }
            };
            let found = found.value();
            let cols = found.cols();
            let rows = segments.ranges().map(|range| {
                let values = found.data()[range.start * cols..range.end * cols].to_vec();
                Matrix::from_vec(range.len(), cols, values)
            });
            (rows.collect::<Vec<_>>(), sum)
        });
        let mut rows = rows.into_iter();
        for of_adapter in &mut all.rows {
            of_adapter.extend(rows.by_ref().take(indices.len()));
        }
        if is_labelled {
            all.loss += sum;
            all.labelled += batch.labelled();
        }
    }
    Ok(all)
}
