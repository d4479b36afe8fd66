//! Batches of any task, and the mean loss of several of them.

use tunesmith_models::{DecoderInputs, Inputs, Model, Task};
use tunesmith_tensor::{Adapter, Forward, Gradients, IGNORED_TARGET, Seed, Segments, Tape, Workspace};

use crate::Example;
use crate::joint::{Part, joint_loss};
use crate::losses::{Loss, Targets, loss};

/// Examples to train on or to compute a loss of.
pub trait TrainingSet: Sync {
    /// Tokens of each example.
    fn lengths(&self) -> Vec<usize>;

    /// Tokens of the longest sequence that a stack of blocks sees at once.
    fn longest_sequence(&self) -> usize {
        self.lengths().into_iter().max().unwrap_or(0)
    }

    /// Labelled values of all examples.
    fn labelled(&self) -> usize;

    /// A batch of the examples with these numbers, in this order.
    fn batch(&self, indices: &[usize]) -> Batch;
}

impl TrainingSet for Vec<Example> {
    fn lengths(&self) -> Vec<usize> {
        self.iter().map(|example| example.ids.len()).collect()
    }

    fn labelled(&self) -> usize {
        self.iter().map(Example::labelled).sum()
    }

    fn batch(&self, indices: &[usize]) -> Batch {
        Batch::new(indices.iter().map(|index| &self[*index]))
    }
}

/// Sequences laid end to end, with what their outputs should be.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids of all sequences; the encoder's, where there are two stacks.
    pub ids: Vec<u32>,
    /// The text of a pair that each token belongs to; empty where all are 0.
    pub token_type_ids: Vec<u32>,
    /// Where each sequence lies.
    pub segments: Segments,
    /// What goes to the decoder of an encoder-decoder.
    pub decoder: Option<DecoderBatch>,
    /// What the outputs should be.
    pub targets: Targets,
}

/// The decoder's side of a batch, a sequence for each of the encoder's.
#[derive(Clone, Debug)]
pub struct DecoderBatch {
    /// Token ids of all sequences.
    pub ids: Vec<u32>,
    /// Where each sequence lies.
    pub segments: Segments,
}

impl Batch {
    /// A batch of whole examples for a causal language model: each row predicts the next token of its sequence.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            ids.extend_from_slice(&example.ids);
            targets.extend(next_labels(&example.labels));
            lengths.push(example.ids.len());
        }
        Self {
            ids,
            token_type_ids: Vec::new(),
            segments: Segments::from_lengths(lengths),
            decoder: None,
            targets: Targets::Classes(targets),
        }
    }

    /// A batch for an encoder-decoder: token ids of each source, and the labels of each target, of which those of
    /// [`IGNORED_TARGET`] are not learned. The decoder reads `start` and then the labels but for the last; where it
    /// reads a label that is not learned, it reads `padding`.
    pub fn seq2seq<'a>(examples: impl IntoIterator<Item = (&'a [u32], &'a [u32])>, start: u32, padding: u32) -> Self {
        let (mut ids, mut lengths) = (Vec::new(), Vec::new());
        let (mut decoder_ids, mut targets, mut decoder_lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (source, labels) in examples {
            ids.extend_from_slice(source);
            lengths.push(source.len());
            let read = labels.iter().map(|label| if *label == IGNORED_TARGET { padding } else { *label });
            decoder_ids.extend(std::iter::once(start).chain(read).take(labels.len()));
            targets.extend_from_slice(labels);
            decoder_lengths.push(labels.len());
        }
        let decoder = DecoderBatch { ids: decoder_ids, segments: Segments::from_lengths(decoder_lengths) };
        Self {
            ids,
            token_type_ids: Vec::new(),
            segments: Segments::from_lengths(lengths),
            decoder: Some(decoder),
            targets: Targets::Classes(targets),
        }
    }

    /// Labelled values: what the loss is a sum over.
    pub fn labelled(&self) -> usize {
        self.targets.labelled()
    }

    /// What the model reads.
    pub fn inputs(&self) -> Inputs<'_> {
        inputs(&self.ids, &self.token_type_ids, self.decoder.as_ref())
    }

    /// The summed loss of the batch on `tape`.
    pub fn loss(&self, tape: &mut Tape, model: &dyn Model, adapter: Option<&Adapter>) -> Loss {
        let mut forward = Forward::new(tape, self.segments.clone(), adapter);
        if let Some(prompts) = self.prompts(model) {
            forward = forward.with_prompts(prompts);
        }
        let hidden = model.hidden_states(&mut forward, &self.inputs(), None);
        loss(model, &mut forward, &hidden, &self.targets)
    }

    /// The length of each sequence's prompt; `None` of a model that continues no texts.
    pub(crate) fn prompts(&self, model: &dyn Model) -> Option<Vec<usize>> {
        match &self.targets {
            Targets::Classes(targets) if model.info().head.task == Task::CausalLm => {
                Some(prompts(&self.segments, targets))
            }
            _ => None,
        }
    }
}

/// What a model reads of rows laid end to end.
pub(crate) fn inputs<'a>(ids: &'a [u32], token_type_ids: &'a [u32], decoder: Option<&'a DecoderBatch>) -> Inputs<'a> {
    let decoder = decoder.map(|DecoderBatch { ids, segments }| DecoderInputs { ids, segments });
    Inputs { ids, token_type_ids, decoder }
}

/// The length of each sequence's prompt: the tokens up to the first that predicts a label.
fn prompts(segments: &Segments, targets: &[u32]) -> Vec<usize> {
    let length = |range: std::ops::Range<usize>| {
        let first = targets[range.clone()].iter().position(|target| *target != IGNORED_TARGET);
        first.map_or(range.len(), |first| first + 1)
    };
    segments.ranges().map(length).collect()
}

/// The mean loss of all labelled values of `batches`; adds its gradients to `gradients`. However the examples are cut
/// into batches, each labelled value weighs the same. `dropout` seeds the masks; `None` turns them off.
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
        let dropout = dropout.map(|seed| seed.derive("batch", number as u64));
        sum += joint_loss(&[Part { batch, adapter, labelled }], model, workspace, dropout, gradients)
            .into_iter()
            .sum::<f64>();
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
        assert_eq!(batch.targets, Targets::Classes(vec![6, 7, masked, 9, masked]));
        assert_eq!(batch.segments, Segments::from_lengths([3, 2]));
        assert_eq!(batch.labelled(), 3);
    }

    #[test]
    fn a_decoder_reads_its_labels_one_place_later() {
        let masked = IGNORED_TARGET;
        let examples: [(&[u32], &[u32]); 2] = [(&[5, 6], &[7, masked, 8]), (&[9], &[4])];
        let batch = Batch::seq2seq(examples, 1, 0);
        let decoder = batch.decoder.as_ref().unwrap();
        assert_eq!((&batch.ids[..], &decoder.ids[..]), (&[5, 6, 9][..], &[1, 7, 0, 1][..]));
        assert_eq!(decoder.segments, Segments::from_lengths([3, 1]));
        assert_eq!(batch.targets, Targets::Classes(vec![7, masked, 8, 4]));
    }
}
