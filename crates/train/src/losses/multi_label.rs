//! Any number of labels of a sequence: binary cross-entropy of each output.

use tunesmith_models::Model;
use tunesmith_tensor::{Forward, Var};

use super::{Loss, scalar, sequence_logits};

pub(super) fn loss(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var, flags: &[f32]) -> Loss {
    let logits = sequence_logits(model, forward, hidden);
    scalar(forward.tape().binary_cross_entropy(&logits, flags))
}
