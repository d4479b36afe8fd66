//! BART (Lewis et al. 2020): post-norm blocks with learned positions, in an encoder and a decoder.

mod config;
mod forward;
mod layout;

use std::sync::Arc;

use tunesmith_tensor::SiteId;

use crate::architectures::bart::config::BartConfig;
use crate::architectures::{Architecture, Configured};
use crate::encoder_decoder::Attending;
use crate::error::ModelError;
use crate::model::Model;
use crate::network::Parts;
use crate::task::Task;
use crate::weights::WeightSource;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["bart"],
    tasks: &[Task::Seq2SeqLm, Task::SeqCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(BartConfig::from_json(&json, path, options)?)),
};

impl Configured for BartConfig {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        Ok(Arc::new(Bart::from_source(*self, source)?))
    }
}

/// A BART with a head.
#[derive(Debug)]
struct Bart {
    parts: Parts,
    config: BartConfig,
    /// The site of the encoder's embedded sequence.
    input: SiteId,
    encoder: Stack,
    decoder: Stack,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct Stack {
    heads: usize,
    /// The table of token embeddings.
    words: SiteId,
    embed_positions: SiteId,
    layernorm_embedding: SiteId,
    layers: Vec<Layer>,
}

/// One block.
#[derive(Debug)]
struct Layer {
    self_attention: Attending,
    /// Attention to the encoder's outputs, in the decoder.
    cross_attention: Option<Attending>,
    fc1: SiteId,
    fc2: SiteId,
    /// The hidden site after the feed-forward.
    after_feed_forward: SiteId,
    final_layer_norm: SiteId,
}
