//! Texts that are judged or turned into features: one pass without a cache.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tunesmith_models::{Inputs, Task};
use tunesmith_tensor::{Forward, Segments, Tape};

use super::request::{Pooled, key, tuners};
use crate::base::BaseModel;

/// Runs the texts together and answers each. Returns whether that worked.
pub(super) fn run(base: &BaseModel, mut batch: Vec<Pooled>) -> bool {
    batch.retain(|pooled| !pooled.answer.is_closed());
    batch.sort_by_cached_key(|pooled| key(pooled.adapter.as_ref()));
    // Whoever waits for an answer that never comes learns it from the closed channel.
    let Ok(answers) = catch_unwind(AssertUnwindSafe(|| outputs(base, &batch))) else { return false };
    for (pooled, rows) in batch.into_iter().zip(answers) {
        let _ = pooled.answer.send(rows);
    }
    true
}

/// The rows of outputs of each text.
fn outputs(base: &BaseModel, batch: &[Pooled]) -> Vec<Vec<Vec<f32>>> {
    let (model, workspace) = (base.model(), &base.workspace);
    let ids: Vec<u32> = batch.iter().flat_map(|pooled| pooled.tokens.iter().copied()).collect();
    let segments = Segments::from_lengths(batch.iter().map(|pooled| pooled.tokens.len()));
    let adapters: Vec<_> = batch.iter().map(|pooled| tuners(pooled.adapter.as_ref())).collect();
    workspace.run(|| {
        let mut tape = Tape::evaluating(workspace);
        let mut forward = Forward::mixed(&mut tape, segments.clone(), &adapters);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&ids), None);
        let rows = match base.task() {
            Task::SeqCls => Segments::from_lengths((0..batch.len()).map(|_| 1)),
            _ => segments,
        };
        let has_head = matches!(base.task(), Task::SeqCls | Task::TokenCls | Task::QuestionAns);
        let outputs = if has_head { model.logits(&mut forward, &hidden, &rows) } else { hidden };
        let outputs = outputs.value();
        let of = |range: std::ops::Range<usize>| -> Vec<Vec<f32>> {
            let rows = range.map(|row| outputs.row(row).to_vec()).collect::<Vec<_>>();
            if has_head { rows } else { vec![mean(&rows)] }
        };
        rows.ranges().map(of).collect()
    })
}

/// The mean of rows.
fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0f32; rows.first().map_or(0, Vec::len)];
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let count = rows.len().max(1) as f32;
    sum.into_iter().map(|value| value / count).collect()
}
