//! What an evaluation is of.

use tunesmith_models::{Model, TextTokenizer};
use tunesmith_tensor::{Adapter, Workspace};

/// A model with adapters, and what it runs with.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The base.
    pub model: &'a dyn Model,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Adapters that answer together, at least one; `None` is the base alone. The answer is what most of them say, the loss
    /// the mean of theirs.
    pub adapters: &'a [Option<&'a Adapter>],
    /// Buffers and the arithmetic of products.
    pub workspace: &'a Workspace,
}
