//! The Llama architecture: pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward.
//! Llama, Mistral (sliding window), Qwen2 (query, key and value biases), Qwen3 (normed queries and keys), Gemma 3 (those,
//! norms around each sub-layer, two kinds of blocks) and SmolLM2 differ by configuration only.

mod config;
mod forward;
mod layout;
mod rope;
mod rope_config;

pub use config::{LlamaConfig, MODEL_TYPES, rope_factor};
pub use rope::{Rope, RopeScaling};

use std::sync::Arc;

use tunesmith_tensor::SiteId;

use crate::architectures::{Architecture, Configured};
use crate::decoder_head::{DecoderNames, TASKS, configure};
use crate::error::ModelError;
use crate::model::Model;
use crate::network::Parts;
use crate::weights::WeightSource;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &MODEL_TYPES,
    tasks: TASKS,
    configure: |json, path, options| {
        configure(json, path, options, &NAMES, |json, path| Ok(Box::new(LlamaConfig::from_json(json, path)?)))
    },
};

const NAMES: DecoderNames = DecoderNames {
    prefix: "model.",
    parts: &["embed_tokens.", "layers.", "norm."],
    token_head: "score",
    class: |model_type| match model_type {
        "mistral" => "Mistral",
        "qwen2" => "Qwen2",
        "qwen3" => "Qwen3",
        "gemma3_text" => "Gemma3Text",
        _ => "Llama",
    },
    question_prefix: |model_type| if model_type == "mistral" { "model." } else { "transformer." },
};

impl Configured for LlamaConfig {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        Ok(Arc::new(Llama::from_source(*self, source)?))
    }
}

/// A model of the Llama family. [`Llama::from_source`] reads it.
#[derive(Debug)]
pub struct Llama {
    parts: Parts,
    config: LlamaConfig,
    /// The site of the embedded sequence.
    input: SiteId,
    embed_tokens: SiteId,
    layers: Vec<LlamaLayer>,
    norm: SiteId,
}

/// One block.
#[derive(Debug)]
struct LlamaLayer {
    input_layernorm: SiteId,
    q_proj: SiteId,
    k_proj: SiteId,
    v_proj: SiteId,
    /// Norms of each head of queries and keys.
    query_key_norms: Option<[SiteId; 2]>,
    /// The attention site: keys and values.
    attention: SiteId,
    o_proj: SiteId,
    /// The norm of what attention computes, before it is added (Gemma's `post_attention_layernorm`).
    attention_output_norm: Option<SiteId>,
    /// The hidden site after attention.
    after_attention: SiteId,
    /// The norm before the feed-forward: `post_attention_layernorm`, Gemma's `pre_feedforward_layernorm`.
    feed_forward_norm: SiteId,
    gate_proj: SiteId,
    up_proj: SiteId,
    down_proj: SiteId,
    /// The norm of what the feed-forward computes, before it is added (Gemma's `post_feedforward_layernorm`).
    feed_forward_output_norm: Option<SiteId>,
    /// The hidden site after the feed-forward.
    after_feed_forward: SiteId,
    /// A query sees at most this many keys, itself included.
    sliding_window: Option<usize>,
}

impl Llama {
    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }
}
