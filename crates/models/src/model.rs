//! What every architecture offers to training, generation and methods.

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, CrossEntropy, Forward, FrozenWeight, Segments, Site, SiteId, Var};

use crate::cache::Cache;

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// Key and value heads of a block.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context, in tokens.
    pub max_positions: usize,
    /// Whether the output embedding is the token embedding.
    pub tied: bool,
}

/// A decoder with frozen weights. It runs in a [`Forward`], which knows the sequences and their adapters.
pub trait Model: Send + Sync {
    /// Sizes.
    fn info(&self) -> &ModelInfo;

    /// All sites, in the order in which the model passes them; `SiteId(i)` is the one at index `i`.
    fn sites(&self) -> &[Site];

    /// The frozen weight and bias of a weight site; `None` for other sites.
    fn base(&self, site: SiteId) -> Option<Base<'_>>;

    /// Hidden states `[tokens, hidden]` after the last norm, of sequences laid end to end.
    fn hidden_states(&self, forward: &mut Forward<'_>, tokens: &[u32], cache: Option<&mut Cache>) -> Var;

    /// Logits `[rows, vocabulary]` of hidden states `[rows, hidden]`; `rows` says which of them belong to which
    /// sequence of the batch.
    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var;

    /// Cross-entropy of the rows of `hidden` with `targets`, one a row;
    /// [`IGNORED_TARGET`](tunesmith_tensor::IGNORED_TARGET) marks rows without a label.
    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy;

    /// Hugging Face's `config.json` of this model.
    fn config_json(&self) -> &Map<String, Value>;

    /// All tensors of a checkpoint: Hugging Face name, value, shape as saved. A tied output embedding is left out.
    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)>;
}
