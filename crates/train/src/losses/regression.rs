//! Numbers of a sequence: the squared error of each output.

use tunesmith_models::Model;
use tunesmith_tensor::{Forward, Var};

use super::{Loss, scalar, sequence_logits};

pub(super) fn loss(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var, numbers: &[f32]) -> Loss {
    let outputs = sequence_logits(model, forward, hidden);
    scalar(forward.tape().squared_error(&outputs, numbers))
}
