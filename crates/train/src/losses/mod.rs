//! The losses, one a file: from the hidden states that a model's head reads to a scalar on the tape. A loss is a sum over
//! labelled values (tokens, sequences, outputs, ends of a span), so that however examples are cut into batches each value
//! weighs the same.

mod cross_entropy;
mod multi_label;
mod regression;
mod span;

use tunesmith_models::Model;
use tunesmith_tensor::{Forward, IGNORED_TARGET, Segments, Var};

/// What the outputs of a batch should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// The class, or the next token, of each row that the head reads; [`IGNORED_TARGET`] where there is none.
    Classes(Vec<u32>),
    /// For each sequence and label whether it holds, 0 or 1, laid end to end.
    Flags(Vec<f32>),
    /// The numbers of each sequence, laid end to end.
    Numbers(Vec<f32>),
    /// The first and the last token of each sequence's answer, counted from the sequence's first; `None` where it lies
    /// outside.
    Spans(Vec<[Option<usize>; 2]>),
}

impl Targets {
    /// Labelled values: what the loss is a sum over.
    pub fn labelled(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.iter().filter(|class| **class != IGNORED_TARGET).count(),
            Self::Flags(values) | Self::Numbers(values) => values.len(),
            Self::Spans(spans) => spans.iter().flatten().flatten().count(),
        }
    }

    /// Whether the head reads whole sequences for them.
    pub fn are_of_sequences(&self) -> bool {
        matches!(self, Self::Flags(_) | Self::Numbers(_))
    }
}

/// A loss on the tape.
#[derive(Clone, Debug)]
pub struct Loss {
    /// `[1, 1]`: the sum over labelled values.
    pub sum: Var,
    /// The same sum, added up in float64 where its terms are known.
    pub total: f64,
}

/// The loss of hidden states that `model` computed in `forward`.
pub(crate) fn loss(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var, targets: &Targets) -> Loss {
    match targets {
        Targets::Classes(classes) => cross_entropy::loss(model, forward, hidden, classes),
        Targets::Flags(flags) => multi_label::loss(model, forward, hidden, flags),
        Targets::Numbers(numbers) => regression::loss(model, forward, hidden, numbers),
        Targets::Spans(spans) => span::loss(model, forward, hidden, spans),
    }
}

/// The head's outputs where it reads one row a sequence.
fn sequence_logits(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var) -> Var {
    let rows = Segments::from_lengths((0..forward.segments().len()).map(|_| 1));
    model.logits(forward, hidden, &rows)
}

/// A scalar whose terms nobody knows one by one.
fn scalar(sum: Var) -> Loss {
    Loss { total: f64::from(sum.value().data()[0]), sum }
}
