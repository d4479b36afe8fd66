//! The loss of causal language models: every row predicts the next token of its sequence.

use tunesmith_models::{Inputs, Model};
use tunesmith_tensor::{Adapter, CrossEntropy, Forward, Gradients, IGNORED_TARGET, Seed, Segments, Tape, Workspace};

use crate::Example;

/// Sequences laid end to end, with the target of each row.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids of all sequences.
    pub ids: Vec<u32>,
    /// For each row the label of the next token of its sequence; [`IGNORED_TARGET`] where there is none.
    pub targets: Vec<u32>,
    /// Where each sequence lies.
    pub segments: Segments,
}

impl Batch {
    /// A batch of whole examples.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            ids.extend_from_slice(&example.ids);
            targets.extend(next_labels(&example.labels));
            lengths.push(example.ids.len());
        }
        Self { ids, targets, segments: Segments::from_lengths(lengths) }
    }

    /// Rows that have a target.
    pub fn labelled(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED_TARGET).count()
    }

    /// The summed cross-entropy of the batch on `tape`.
    pub fn cross_entropy(&self, tape: &mut Tape, model: &dyn Model, adapter: Option<&Adapter>) -> CrossEntropy {
        let mut forward = Forward::new(tape, self.segments.clone(), adapter);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&self.ids), None);
        model.cross_entropy(&mut forward, &hidden, &self.targets)
    }
}

/// The mean cross-entropy of all labelled tokens of `batches`, in nats; adds its gradients to `gradients`. However the
/// examples are cut into batches, each labelled token weighs the same. `dropout` seeds the masks; `None` turns them off.
pub fn mean_loss(
    batches: &[Batch],
    model: &dyn Model,
    adapter: &Adapter,
    workspace: &Workspace,
    dropout: Option<Seed>,
    gradients: &mut Gradients,
) -> f64 {
    let labelled: usize = batches.iter().map(Batch::labelled).sum();
    let mut sum = 0.0;
    for (number, batch) in batches.iter().enumerate() {
        sum += workspace.run(|| {
            let mut tape = match dropout {
                Some(seed) => Tape::training(workspace, seed.derive("batch", number as u64)),
                None => Tape::differentiating(workspace),
            };
            let entropy = batch.cross_entropy(&mut tape, model, Some(adapter));
            let sum = f64::from(entropy.sum.value().data()[0]);
            tape.backward_scalar(entropy.sum, 1.0 / labelled as f32, gradients);
            sum
        });
    }
    sum / labelled as f64
}

/// The labels shifted by one: row `t` predicts token `t + 1`, the last row nothing.
fn next_labels(labels: &[u32]) -> impl Iterator<Item = u32> + '_ {
    labels.iter().skip(1).copied().chain((!labels.is_empty()).then_some(IGNORED_TARGET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_predict_the_next_token_of_their_own_sequence() {
        let masked = IGNORED_TARGET;
        let first = Example { ids: vec![5, 6, 7], labels: vec![masked, 6, 7] };
        let second = Example { ids: vec![8, 9], labels: vec![8, 9] };
        let batch = Batch::new([&first, &second]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [6, 7, masked, 9, masked]);
        assert_eq!(batch.segments, Segments::from_lengths([3, 2]));
        assert_eq!(batch.labelled(), 3);
    }
}
