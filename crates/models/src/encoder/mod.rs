//! Post-norm encoders: BERT and what was made after it. They share one network and differ in names, positions and heads,
//! each of which has a file in `architectures/`.

mod config;
mod forward;
mod layout;
mod sizes;

pub(crate) use config::{EncoderConfig, Names};
pub(crate) use sizes::{Sizes, classifier_dropout};

use std::sync::Arc;

use tunesmith_tensor::SiteId;

use crate::architectures::Configured;
use crate::error::ModelError;
use crate::model::Model;
use crate::network::Parts;
use crate::weights::WeightSource;

impl Configured for EncoderConfig {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        Ok(Arc::new(Encoder::from_source(*self, source)?))
    }
}

/// A post-norm encoder with a head.
#[derive(Debug)]
struct Encoder {
    parts: Parts,
    config: EncoderConfig,
    /// The site of the embedded sequence.
    input: SiteId,
    word_embeddings: SiteId,
    token_type_embeddings: Option<SiteId>,
    position_embeddings: SiteId,
    embedding_norm: SiteId,
    layers: Vec<EncoderLayer>,
}

/// One block.
#[derive(Debug)]
struct EncoderLayer {
    query: SiteId,
    key: SiteId,
    value: SiteId,
    attention_output: SiteId,
    /// The attention site: keys and values.
    attention: SiteId,
    /// The hidden site after attention.
    after_attention: SiteId,
    attention_norm: SiteId,
    up: SiteId,
    down: SiteId,
    /// The hidden site after the feed-forward.
    after_feed_forward: SiteId,
    output_norm: SiteId,
}
