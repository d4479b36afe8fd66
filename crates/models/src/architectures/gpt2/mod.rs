//! GPT-2 (Radford et al. 2019): pre-norm blocks of attention over a fused query-key-value projection and a GELU
//! feed-forward, with learned positions. Its linears are stored as `[in, out]` (Hugging Face's `Conv1D`) and turned at
//! the border.

mod config;
mod forward;
mod weights;

pub use config::Gpt2Config;

use std::sync::Arc;

use tunesmith_tensor::{Base, FrozenWeight, Site, SiteId};

use crate::architectures::{Architecture, Configured};
use crate::decoder_head::{DecoderNames, TASKS, configure};
use crate::error::ModelError;
use crate::model::{Model, ModelInfo};
use crate::weights::{SiteWeight, WeightSource};

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
    info: ModelInfo,
    config: Gpt2Config,
    sites: Vec<Site>,
    /// The site of the embedded sequence.
    input: SiteId,
    wte: SiteWeight,
    wpe: SiteWeight,
    blocks: Vec<Gpt2Block>,
    ln_f: SiteWeight,
    lm_head: SiteWeight,
}

/// One block.
#[derive(Debug)]
struct Gpt2Block {
    ln_1: SiteWeight,
    /// Queries, keys and values, in this order.
    c_attn: SiteWeight,
    c_proj: SiteWeight,
    /// The attention site: keys and values.
    attention: SiteId,
    /// The hidden site after attention.
    after_attention: SiteId,
    ln_2: SiteWeight,
    c_fc: SiteWeight,
    mlp_c_proj: SiteWeight,
    /// The hidden site after the feed-forward.
    after_feed_forward: SiteId,
}

impl Gpt2Block {
    /// Its weight sites, in site order.
    fn weights(&self) -> [&SiteWeight; 6] {
        [&self.ln_1, &self.c_attn, &self.c_proj, &self.ln_2, &self.c_fc, &self.mlp_c_proj]
    }
}

impl Gpt2 {
    /// The configuration.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// All weight sites, in site order.
    fn weights(&self) -> impl Iterator<Item = &SiteWeight> {
        let blocks = self.blocks.iter().flat_map(Gpt2Block::weights);
        [&self.wte, &self.wpe].into_iter().chain(blocks).chain([&self.ln_f, &self.lm_head])
    }

    /// The frozen weight and bias of a weight site; `None` for other sites.
    fn site_base(&self, site: SiteId) -> Option<Base<'_>> {
        self.weights().find(|weight| weight.site == site).map(SiteWeight::base)
    }

    /// All tensors of a checkpoint; see [`Model::tensors`].
    fn named_tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        let mut tensors = Vec::new();
        for SiteWeight { site, weight, bias } in self.weights() {
            if *site == self.lm_head.site && self.info.tied {
                continue;
            }
            let place = &self.sites[site.0];
            tensors.push((format!("{}.weight", place.path), weight.clone(), weights::saved_shape(place)));
            tensors.extend(bias.as_ref().map(|bias| (format!("{}.bias", place.path), bias.clone(), vec![bias.cols()])));
        }
        tensors
    }
}
