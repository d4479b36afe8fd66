//! The places where a method may act on a model.

use std::fmt;

/// The number of a site: its place in the list that the model announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub usize);

/// A place where a method may act. The model announces all of its sites and asks at each one as it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Hugging Face module path, such as `model.layers.0.self_attn.q_proj`. It is the key prefix in checkpoints and
    /// what `target_modules` matches.
    pub path: String,
    /// What kind of place it is.
    pub kind: SiteKind,
    /// What the place is for, whatever the architecture calls it.
    pub role: Role,
    /// Index of the block (layer) it belongs to, counted from 0.
    pub block: Option<usize>,
    /// Output features; the number of embeddings of a table; 1 for a norm.
    pub rows: usize,
    /// Input features; the width of an embedding or a norm.
    pub cols: usize,
    /// Whether the base has a bias here.
    pub has_bias: bool,
    /// Whether files keep the weight as `[in, out]` (Hugging Face's `Conv1D`). In memory it is `[out, in]` like any other.
    pub stored_transposed: bool,
}

/// The closed list of kinds of site. The first three are weight sites: they hold a frozen weight and perhaps a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// A linear layer, `y = x·Wᵀ + b`.
    Linear,
    /// A table of embeddings.
    Embedding,
    /// A layer norm or RMS norm.
    Norm,
    /// A block's hidden states, after attention or after feed-forward.
    Hidden,
    /// The keys and values of a block's attention.
    Attention,
    /// The embedded input sequence.
    Input,
}

impl SiteKind {
    /// Whether the site holds a weight.
    pub fn is_weight(self) -> bool {
        matches!(self, Self::Linear | Self::Embedding | Self::Norm)
    }
}

/// What a site is for, independent of an architecture's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// Queries, keys and values in one linear, in this order.
    QueryKeyValue,
    /// Attention's output projection.
    AttentionOutput,
    /// The gate of a gated feed-forward.
    FeedForwardGate,
    /// The first linear of a feed-forward (`up_proj`).
    FeedForwardUp,
    /// The second linear of a feed-forward (`down_proj`).
    FeedForwardDown,
    /// Token embeddings.
    TokenEmbedding,
    /// Learned embeddings of positions.
    PositionEmbedding,
    /// Embeddings of the text of a pair that a token belongs to.
    TokenTypeEmbedding,
    /// The table of biases on attention's scores by distance.
    RelativeBias,
    /// The norm of the embedded sequence.
    EmbeddingNorm,
    /// A norm inside a block.
    BlockNorm,
    /// The norm after the last block.
    FinalNorm,
    /// The output embedding (`lm_head`).
    OutputEmbedding,
    /// A linear over a sequence's first hidden state that belongs to the body, not the head.
    Pooler,
    /// A linear of a classifier's head.
    Head,
    /// A hidden site after a block's attention.
    AfterAttention,
    /// A hidden site after a decoder block's attention to the encoder.
    AfterCrossAttention,
    /// A hidden site after a block's feed-forward.
    AfterFeedForward,
    /// The keys and values of self-attention; of the decoder, where there are two stacks.
    SelfAttention,
    /// The keys and values that a decoder block takes from the encoder.
    CrossAttention,
    /// The keys and values of self-attention in the encoder of an encoder-decoder.
    EncoderAttention,
    /// The embedded input; of the encoder, where there are two stacks.
    Input,
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
