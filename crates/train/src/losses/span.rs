//! The part of a text that answers a question: cross-entropy over the places where it begins, and where it ends.

use tunesmith_models::Model;
use tunesmith_tensor::{Forward, Var};

use super::Loss;

pub(super) fn loss(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var, spans: &[[Option<usize>; 2]]) -> Loss {
    let segments = forward.segments().clone();
    let logits = model.logits(forward, hidden, &segments);
    let entropy = forward.tape().span_cross_entropy(&logits, &segments, spans.as_flattened());
    Loss { total: entropy.per_row.iter().map(|value| f64::from(*value)).sum(), sum: entropy.sum }
}
