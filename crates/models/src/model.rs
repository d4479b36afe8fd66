//! What every architecture offers to training, generation and methods.

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, CrossEntropy, Forward, FrozenWeight, Segments, Site, SiteId, Var};

use crate::cache::Cache;
use crate::task::HeadInfo;

/// Sizes of a model, and what it ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// Which stacks of blocks it has.
    pub kind: ModelKind,
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks; of the decoder, where there are two stacks.
    pub blocks: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// Key and value heads of a block.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context, in tokens; `u32::MAX` where positions have no end.
    pub max_positions: usize,
    /// Whether the output embedding is the token embedding.
    pub tied: bool,
    /// What it ends in.
    pub head: HeadInfo,
}

/// The stacks of blocks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Every token sees those before it.
    Decoder,
    /// Every token sees all of its sequence.
    Encoder,
    /// A decoder whose tokens also see the outputs of an encoder.
    EncoderDecoder {
        /// Blocks of the encoder.
        encoder_blocks: usize,
        /// What the decoder begins with; its inputs in training are the labels moved one place behind it.
        decoder_start_token_id: u32,
    },
}

/// The tokens of a batch. The [`Forward`] that goes with them says where the sequences of [`Inputs::ids`] lie.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Token ids of all sequences, laid end to end; the encoder's, where there are two stacks. With a cache, only the
    /// tokens that it has not seen: none for an encoder that has run.
    pub ids: &'a [u32],
    /// The text of a pair that each token belongs to, 0 or 1 (BERT's `token_type_ids`); empty where all are 0. Models
    /// without such embeddings ignore it.
    pub token_type_ids: &'a [u32],
    /// What goes to the decoder of an encoder-decoder.
    pub decoder: Option<DecoderInputs<'a>>,
}

/// The decoder's tokens, a sequence for each of the encoder's.
#[derive(Clone, Copy, Debug)]
pub struct DecoderInputs<'a> {
    /// Token ids of all sequences, laid end to end.
    pub ids: &'a [u32],
    /// Where each sequence lies.
    pub segments: &'a Segments,
}

impl<'a> Inputs<'a> {
    /// Token ids of sequences that consist of one text.
    pub fn tokens(ids: &'a [u32]) -> Self {
        Self { ids, token_type_ids: &[], decoder: None }
    }
}

/// A network with frozen weights. It runs in a [`Forward`], which knows the sequences and their adapters.
///
/// It runs in two parts: the blocks give hidden states, and the head turns rows of them into logits. Losses lie on top
/// and are not the model's.
pub trait Model: Send + Sync {
    /// Sizes.
    fn info(&self) -> &ModelInfo;

    /// All sites, in the order in which the model passes them; `SiteId(i)` is the one at index `i`.
    fn sites(&self) -> &[Site];

    /// The frozen weight and bias of a weight site; `None` for other sites.
    fn base(&self, site: SiteId) -> Option<Base<'_>>;

    /// The hidden states that the head reads: `[tokens, hidden]`, one a token (of the decoder, where there are two
    /// stacks), or `[sequences, hidden]` where the head judges whole sequences
    /// ([`Task::SeqCls`](crate::Task::SeqCls)). An encoder-decoder leaves its decoder's sequences in `forward`.
    ///
    /// # Panics
    /// If the inputs do not fit the forward's segments, or an encoder-decoder gets no decoder tokens.
    fn hidden_states(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var;

    /// The head's outputs of hidden states `[rows, hidden]`: `[rows, vocabulary]` of a language model, `[rows, labels]`
    /// of a classifier, `[rows, 2]` (begin and end) for question answering; without a head the hidden states. `rows` says
    /// which of them belong to which sequence of the batch.
    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var;

    /// Cross-entropy of the head's outputs of the rows of `hidden` with `targets`, one a row;
    /// [`IGNORED_TARGET`](tunesmith_tensor::IGNORED_TARGET) marks rows without a label. Language models never hold
    /// all logits for it.
    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy;

    /// Hugging Face's `config.json` of this model.
    fn config_json(&self) -> &Map<String, Value>;

    /// All tensors of a checkpoint: Hugging Face name, value, shape as saved. A tied output embedding is left out.
    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)>;

    /// Names under which a checkpoint holds the token embedding once more where the output embedding is no longer tied to
    /// it.
    fn untied_copies(&self) -> Vec<String> {
        Vec::new()
    }
}
