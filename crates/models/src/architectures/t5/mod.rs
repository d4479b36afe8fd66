//! T5 (Raffel et al. 2020) and T5 v1.1 and Flan-T5 (Chung et al. 2022): pre-norm blocks with biases on attention's scores
//! by distance, in an encoder and a decoder. Tokens are classified, and features taken, by the encoder alone.

mod buckets;
mod config;
mod forward;
mod layout;

use std::sync::Arc;

use tunesmith_tensor::SiteId;

use crate::architectures::t5::config::T5Config;
use crate::architectures::{Architecture, Configured};
use crate::encoder_decoder::Attending;
use crate::error::ModelError;
use crate::model::Model;
use crate::network::Parts;
use crate::task::Task;
use crate::weights::WeightSource;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    model_types: &["t5", "mt5"],
    tasks: &[Task::Seq2SeqLm, Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction],
    configure: |json, path, options| Ok(Box::new(T5Config::from_json(&json, path, options)?)),
};

impl Configured for T5Config {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        Ok(Arc::new(T5::from_source(*self, source)?))
    }
}

/// A T5 with a head.
#[derive(Debug)]
struct T5 {
    parts: Parts,
    config: T5Config,
    /// The site of the encoder's embedded sequence.
    input: SiteId,
    shared: SiteId,
    encoder: Stack,
    /// Classifiers of tokens and features have none.
    decoder: Option<Stack>,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct Stack {
    relative_attention_bias: SiteId,
    blocks: Vec<Block>,
    final_layer_norm: SiteId,
}

/// One block.
#[derive(Debug)]
struct Block {
    self_attention: Attending,
    /// Attention to the encoder's outputs, in the decoder.
    cross_attention: Option<Attending>,
    feed_forward: FeedForward,
}

/// A feed-forward with its norm.
#[derive(Debug)]
struct FeedForward {
    layer_norm: SiteId,
    /// The gate, where there is one.
    gate: Option<SiteId>,
    up: SiteId,
    down: SiteId,
    /// The hidden site after it.
    after: SiteId,
}
