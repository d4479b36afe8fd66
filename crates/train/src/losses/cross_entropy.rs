//! Classes of tokens or sequences, and next tokens: `−log softmax(logits)[class]`.

use tunesmith_models::Model;
use tunesmith_tensor::{Forward, Var};

use super::Loss;

pub(super) fn loss(model: &dyn Model, forward: &mut Forward<'_>, hidden: &Var, classes: &[u32]) -> Loss {
    let entropy = model.cross_entropy(forward, hidden, classes);
    Loss { total: entropy.per_row.iter().map(|value| f64::from(*value)).sum(), sum: entropy.sum }
}
