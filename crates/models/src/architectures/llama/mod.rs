//! The Llama architecture: pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward.
//! Llama, Mistral (sliding window), Qwen2 (query, key and value biases), Qwen3 (normed queries and keys), Gemma 3 (those,
//! norms around each sub-layer, two kinds of blocks) and SmolLM2 differ by configuration only.

mod config;
mod forward;
mod rope;
mod rope_config;
mod weights;

pub use config::{LlamaConfig, MODEL_TYPES};
pub use rope::{Rope, RopeScaling};

use std::sync::Arc;

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, FrozenWeight, Site, SiteId};

use crate::architectures::{Architecture, Configured};
use crate::decoder_head::{DecoderNames, TASKS, configure};
use crate::error::ModelError;
use crate::model::{Model, ModelInfo};
use crate::weights::{SiteWeight, WeightSource};

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
    pub(crate) info: ModelInfo,
    pub(crate) config: LlamaConfig,
    pub(crate) sites: Vec<Site>,
    /// The site of the embedded sequence.
    pub(crate) input: SiteId,
    pub(crate) embed_tokens: SiteWeight,
    pub(crate) layers: Vec<LlamaLayer>,
    pub(crate) norm: SiteWeight,
    pub(crate) lm_head: SiteWeight,
}

/// One block.
#[derive(Debug)]
pub(crate) struct LlamaLayer {
    pub(crate) input_layernorm: SiteWeight,
    pub(crate) q_proj: SiteWeight,
    pub(crate) k_proj: SiteWeight,
    pub(crate) v_proj: SiteWeight,
    /// Norms of each head of queries and keys.
    pub(crate) query_key_norms: Option<[SiteWeight; 2]>,
    pub(crate) o_proj: SiteWeight,
    /// The attention site: keys and values.
    pub(crate) attention: SiteId,
    /// The norm of what attention computes, before it is added (Gemma's `post_attention_layernorm`).
    pub(crate) attention_output_norm: Option<SiteWeight>,
    /// The hidden site after attention.
    pub(crate) after_attention: SiteId,
    /// The norm before the feed-forward: `post_attention_layernorm`, Gemma's `pre_feedforward_layernorm`.
    pub(crate) feed_forward_norm: SiteWeight,
    pub(crate) gate_proj: SiteWeight,
    pub(crate) up_proj: SiteWeight,
    pub(crate) down_proj: SiteWeight,
    /// The norm of what the feed-forward computes, before it is added (Gemma's `post_feedforward_layernorm`).
    pub(crate) feed_forward_output_norm: Option<SiteWeight>,
    /// The hidden site after the feed-forward.
    pub(crate) after_feed_forward: SiteId,
    /// A query sees at most this many keys, itself included.
    pub(crate) sliding_window: Option<usize>,
}

impl LlamaLayer {
    /// Its weight sites, in site order.
    fn weights(&self) -> impl Iterator<Item = &SiteWeight> {
        [&self.input_layernorm, &self.q_proj, &self.k_proj, &self.v_proj]
            .into_iter()
            .chain(self.query_key_norms.iter().flatten())
            .chain([&self.o_proj])
            .chain(&self.attention_output_norm)
            .chain([&self.feed_forward_norm, &self.gate_proj, &self.up_proj, &self.down_proj])
            .chain(&self.feed_forward_output_norm)
    }
}

impl Llama {
    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// All weight sites, in site order.
    fn weights(&self) -> impl Iterator<Item = &SiteWeight> {
        let layers = self.layers.iter().flat_map(LlamaLayer::weights);
        std::iter::once(&self.embed_tokens).chain(layers).chain([&self.norm, &self.lm_head])
    }

    /// The frozen weight and bias of a weight site; `None` for other sites.
    pub(crate) fn site_base(&self, site: SiteId) -> Option<Base<'_>> {
        self.weights().find(|weight| weight.site == site).map(SiteWeight::base)
    }

    /// Hugging Face's `config.json`.
    pub(crate) fn json(&self) -> &Map<String, Value> {
        &self.config.json
    }

    /// All tensors of a checkpoint; see [`Model::tensors`](crate::Model::tensors).
    pub(crate) fn named_tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        let mut tensors = Vec::new();
        for SiteWeight { site, weight, bias } in self.weights() {
            if *site == self.lm_head.site && self.info.tied {
                continue;
            }
            let path = &self.sites[site.0].path;
            let shape = weights::saved_shape(&self.sites[site.0]);
            tensors.push((format!("{path}.weight"), weight.clone(), shape));
            tensors.extend(bias.as_ref().map(|bias| (format!("{path}.bias"), bias.clone(), vec![bias.cols()])));
        }
        tensors
    }
}
