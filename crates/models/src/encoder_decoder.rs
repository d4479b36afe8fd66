//! What encoder-decoders have in common as models: the encoder runs once, its keys and values go to the cache where there is
//! one, the decoder runs over the rows that follow, and a head or the output embedding reads what comes out.

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, CrossEntropy, Forward, FrozenWeight, Segments, Site, SiteId, Var};

use crate::cache::Cache;
use crate::head::Head;
use crate::model::{Inputs, Model, ModelInfo};
use crate::shifted::ShiftedIds;
use crate::site_table::SiteTable;

/// The encoder's outputs and where they lie.
pub(crate) struct Memory {
    pub(crate) hidden: Var,
    pub(crate) segments: Segments,
}

impl Memory {
    /// The same rows with the values that a block was given.
    pub(crate) fn with(&self, hidden: &Var) -> Self {
        Self { hidden: hidden.clone(), segments: self.segments.clone() }
    }
}

/// An encoder-decoder: its parts and its two stacks. Being one makes it a [`Model`].
pub(crate) trait EncoderDecoder: Send + Sync {
    /// Sizes.
    fn sizes(&self) -> &ModelInfo;

    /// The sites and their weights.
    fn table(&self) -> &SiteTable;

    /// The configuration as it is saved.
    fn json(&self) -> &Map<String, Value>;

    /// The head, of a task that has one.
    fn head(&self) -> Option<&Head>;

    /// The output embedding, of a language model.
    fn language_head(&self) -> Option<(SiteId, Base<'_>)>;

    /// As [`Model::untied_copies`].
    fn untied_copies(&self) -> Vec<String> {
        Vec::new()
    }

    /// The token that the decoder begins with; `None` where the encoder stands alone.
    fn decoder_start(&self) -> Option<u32>;

    /// The encoder's outputs, virtual tokens included: the decoder sees those too.
    fn encode(&self, forward: &mut Forward<'_>, ids: &[u32]) -> Memory;

    /// Puts the keys and values of the encoder's outputs into the cache, block by block.
    fn remember(&self, forward: &mut Forward<'_>, memory: &Memory, cache: &mut Cache);

    /// The decoder's outputs `[tokens, hidden]`; without `memory` the cache has the encoder's keys and values.
    fn decode(&self, forward: &mut Forward<'_>, ids: &[u32], memory: Option<&Memory>, cache: Option<&mut Cache>)
    -> Var;
}

impl<T: EncoderDecoder> Model for T {
    fn info(&self) -> &ModelInfo {
        self.sizes()
    }

    fn sites(&self) -> &[Site] {
        self.table().sites()
    }

    fn base(&self, site: SiteId) -> Option<Base<'_>> {
        self.table().get(site)
    }

    fn hidden_states(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, mut cache: Option<&mut Cache>) -> Var {
        let Some(decoder_start) = self.decoder_start() else {
            assert!(cache.is_none(), "an encoder sees whole sequences and needs no cache");
            let hidden = self.encode(forward, inputs.ids).hidden;
            return match self.head() {
                Some(head) => head.pool(forward, hidden, inputs.ids),
                None => forward.output(hidden),
            };
        };
        let shifted;
        let decoder = match inputs.decoder {
            Some(decoder) => decoder,
            None => {
                shifted = ShiftedIds::new(inputs.ids, forward.segments(), decoder_start);
                shifted.inputs()
            }
        };
        let memory = match &mut cache {
            Some(_) if inputs.ids.is_empty() => None,
            Some(cache) => {
                let memory = self.encode(forward, inputs.ids);
                self.remember(forward, &memory, cache);
                None
            }
            None => Some(self.encode(forward, inputs.ids)),
        };
        forward.begin(decoder.segments.clone());
        let hidden = self.decode(forward, decoder.ids, memory.as_ref(), cache);
        match self.head() {
            Some(head) => head.pool(forward, hidden, inputs.ids),
            None => hidden,
        }
    }

    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        match (self.head(), self.language_head()) {
            (Some(head), _) => head.logits(self.table(), forward, hidden, rows),
            (None, Some((site, base))) => forward.linear_rows(site, base, hidden, rows),
            (None, None) => hidden.clone(),
        }
    }

    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy {
        if let Some((site, base)) = self.language_head() {
            return forward.cross_entropy(site, base, hidden, targets);
        }
        let rows = Head::rows(self.head(), forward.segments());
        let logits = self.logits(forward, hidden, &rows);
        forward.tape().softmax_cross_entropy(&logits, targets)
    }

    fn config_json(&self) -> &Map<String, Value> {
        self.json()
    }

    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        self.table().tensors()
    }

    fn untied_copies(&self) -> Vec<String> {
        EncoderDecoder::untied_copies(self)
    }
}
