//! GPT-2 (Radford et al. 2019): pre-norm blocks of attention over a fused query-key-value projection and a GELU
//! feed-forward, with learned positions. Its linears are stored as `[in, out]` (Hugging Face's `Conv1D`) and turned at
//! the border.

mod config;
mod forward;
mod layout;

pub use config::Gpt2Config;

use std::sync::Arc;

use tunesmith_tensor::SiteId;

use crate::architectures::{Architecture, Configured};
use crate::decoder_head::{DecoderNames, TASKS, configure};
use crate::error::ModelError;
use crate::model::Model;
use crate::network::Parts;
use crate::weights::WeightSource;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["gpt2"],
    tasks: TASKS,
    configure: |json, path, options| {
        configure(json, path, options, &NAMES, |json, path| Ok(Box::new(Gpt2Config::from_json(json, path)?)))
    },
};

const NAMES: DecoderNames = DecoderNames {
    prefix: "transformer.",
    parts: &["wte.", "wpe.", "h.", "ln_f."],
    token_head: "classifier",
    class: |_| "GPT2",
    question_prefix: |_| "transformer.",
};

impl Configured for Gpt2Config {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        Ok(Arc::new(Gpt2::from_source(*self, source)?))
    }
}

/// A GPT-2. [`Gpt2::from_source`] reads it.
#[derive(Debug)]
pub struct Gpt2 {
    parts: Parts,
    config: Gpt2Config,
    /// The site of the embedded sequence.
    input: SiteId,
    wte: SiteId,
    wpe: SiteId,
    blocks: Vec<Gpt2Block>,
    ln_f: SiteId,
}

/// One block.
#[derive(Debug)]
struct Gpt2Block {
    ln_1: SiteId,
    /// Queries, keys and values, in this order.
    c_attn: SiteId,
    c_proj: SiteId,
    /// The attention site: keys and values.
    attention: SiteId,
    /// The hidden site after attention.
    after_attention: SiteId,
    ln_2: SiteId,
    c_fc: SiteId,
    mlp_c_proj: SiteId,
    /// The hidden site after the feed-forward.
    after_feed_forward: SiteId,
}

impl Gpt2 {
    /// The configuration.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }
}
