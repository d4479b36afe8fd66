//! The losses of several adapters' batches, from one pass through the base.

use std::ops::Range;

use tunesmith_models::{Inputs, Model};
use tunesmith_tensor::{Adapter, Forward, Gradients, Seed, Segments, Tape, Var, Workspace};

use crate::batch::{Batch, DecoderBatch, inputs};
use crate::losses::loss;

/// A batch and the adapter that learns from it.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// The adapter. Each occurs in one part only.
    pub adapter: &'a Adapter,
    /// What the loss is divided by: the labelled values of the whole update.
    pub labelled: usize,
}

/// The summed loss of each part, in order. Adds the gradients of each, divided by its `labelled`, to `gradients`. `dropout`
/// seeds the masks; `None` turns them off.
pub fn joint_loss(
    parts: &[Part<'_>],
    model: &dyn Model,
    workspace: &Workspace,
    dropout: Option<Seed>,
    gradients: &mut Gradients,
) -> Vec<f64> {
    let rows = Rows::of(parts, model);
    workspace.run(|| {
        let mut tape = match dropout {
            Some(seed) => Tape::training(workspace, seed),
            None => Tape::differentiating(workspace),
        };
        if workspace.is_checkpointing() {
            tape = tape.checkpointing();
        }
        let mut forward = rows.forward(&mut tape);
        let hidden = model.hidden_states(&mut forward, &rows.inputs(), None);
        let segments = forward.segments().clone();
        let (mut sums, mut total): (Vec<f64>, Option<Var>) = (Vec::new(), None);
        for (part, sequences) in parts.iter().zip(&rows.sequences) {
            let own = Segments::from_lengths(sequences.clone().map(|sequence| segments.length(sequence)));
            let hidden = tape.slice_rows(&hidden, rows_of(sequences, &segments, hidden.rows()));
            let mut forward = Forward::new(&mut tape, own, Some(part.adapter));
            let loss = loss(model, &mut forward, &hidden, &part.batch.targets).sum;
            sums.push(f64::from(loss.value().data()[0]));
            let mean = tape.scale(loss, 1.0 / part.labelled as f32);
            total = Some(match total {
                None => mean,
                Some(total) => tape.add(&total, mean),
            });
        }
        drop(hidden);
        if let Some(total) = total {
            tape.backward_rerunning(total, 1.0, gradients, &|tape| {
                model.hidden_states(&mut rows.forward(tape), &rows.inputs(), None);
            });
        }
        sums
    })
}

/// The rows of what the head reads that are of some sequences: of every token, or one for each sequence.
fn rows_of(sequences: &Range<usize>, segments: &Segments, rows: usize) -> Range<usize> {
    if rows == segments.total() {
        return segments.rows(sequences);
    }
    assert_eq!(rows, segments.len(), "a head reads every token, or one row of each sequence");
    sequences.clone()
}

/// The parts' sequences, laid end to end.
struct Rows<'a> {
    ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    segments: Segments,
    decoder: Option<DecoderBatch>,
    /// Lengths of prompts, where the sequences have some.
    prompts: Option<Vec<usize>>,
    /// Of each sequence.
    adapters: Vec<Option<&'a Adapter>>,
    /// Which sequences each part has.
    sequences: Vec<Range<usize>>,
}

impl<'a> Rows<'a> {
    fn of(parts: &[Part<'a>], model: &dyn Model) -> Self {
        let batches = || parts.iter().map(|part| part.batch);
        let mut sequences = Vec::new();
        for batch in batches() {
            let first = sequences.last().map_or(0, |last: &Range<usize>| last.end);
            sequences.push(first..first + batch.segments.len());
        }
        let has_types = batches().any(|batch| !batch.token_type_ids.is_empty());
        let types = |batch: &Batch| {
            let missing = batch.ids.len() - batch.token_type_ids.len();
            batch.token_type_ids.iter().copied().chain(std::iter::repeat_n(0, missing)).collect::<Vec<_>>()
        };
        let decoders: Option<Vec<&DecoderBatch>> = batches().map(|batch| batch.decoder.as_ref()).collect();
        let decoder = decoders.map(|decoders| DecoderBatch {
            ids: decoders.iter().flat_map(|decoder| decoder.ids.iter().copied()).collect(),
            segments: Segments::from_lengths(decoders.iter().flat_map(|decoder| decoder.segments.lengths())),
        });
        let prompts: Option<Vec<Vec<usize>>> = batches().map(|batch| batch.prompts(model)).collect();
        Self {
            ids: batches().flat_map(|batch| batch.ids.iter().copied()).collect(),
            token_type_ids: if has_types { batches().flat_map(types).collect() } else { Vec::new() },
            segments: Segments::from_lengths(batches().flat_map(|batch| batch.segments.lengths())),
            decoder,
            prompts: prompts.map(|prompts| prompts.concat()),
            adapters: parts.iter().flat_map(|part| vec![Some(part.adapter); part.batch.segments.len()]).collect(),
            sequences,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        inputs(&self.ids, &self.token_type_ids, self.decoder.as_ref())
    }

    fn forward<'b>(&'b self, tape: &'b mut Tape) -> Forward<'b> {
        let forward = Forward::mixed(tape, self.segments.clone(), &self.adapters);
        match &self.prompts {
            Some(prompts) => forward.with_prompts(prompts.clone()),
            None => forward,
        }
    }
}
