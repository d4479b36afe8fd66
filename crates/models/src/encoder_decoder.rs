//! What encoder-decoders have in common as models: the encoder runs once, its keys and values go to the cache where there is
//! one, the decoder runs over the rows that follow, and a head or the output embedding reads what comes out.

use tunesmith_tensor::{Attention, Forward, Segments, SiteId, Var};

use crate::cache::Cache;
use crate::model::Inputs;
use crate::network::Network;
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

/// An attention of either stack, with its norm.
#[derive(Debug)]
pub(crate) struct Attending {
    pub(crate) layer_norm: SiteId,
    pub(crate) query: SiteId,
    pub(crate) key: SiteId,
    pub(crate) value: SiteId,
    pub(crate) output: SiteId,
    /// The attention site: keys and values.
    pub(crate) attention: SiteId,
    /// The hidden site after it.
    pub(crate) after: SiteId,
}

impl Attending {
    /// Queries, keys and values of `x`.
    pub(crate) fn projections(&self, table: &SiteTable, forward: &mut Forward<'_>, x: &Var) -> [Var; 3] {
        table.linears(forward, [self.query, self.key, self.value], x)
    }

    /// Keys and values of the encoder's outputs.
    fn of_memory(&self, table: &SiteTable, forward: &mut Forward<'_>, memory: &Memory) -> [Var; 2] {
        [self.key, self.value].map(|site| table.linear_rows(forward, site, &memory.hidden, &memory.segments))
    }

    /// Attention of the rows of `x` to the encoder's outputs, or without them to their keys and values in the cache of a
    /// block.
    pub(crate) fn cross(
        &self,
        table: &SiteTable,
        forward: &mut Forward<'_>,
        options: &Attention,
        x: &Var,
        memory: Option<&Memory>,
        cache: Option<(&Cache, usize)>,
    ) -> Var {
        let query = table.linear(forward, self.query, x);
        match (memory, cache) {
            (Some(memory), _) => {
                let [keys, values] = self.of_memory(table, forward, memory);
                forward.cross_attention(self.attention, options, &query, &keys, &values, &memory.segments)
            }
            (None, Some((cache, block))) => {
                forward.attention_over(self.attention, options, &query, &cache.cross_rows(block))
            }
            (None, None) => unreachable!("without a cache the encoder has just run"),
        }
    }
}

/// An encoder-decoder: its two stacks.
pub(crate) trait EncoderDecoder: Network {
    /// The token that the decoder begins with; `None` where the encoder stands alone.
    fn decoder_start(&self) -> Option<u32>;

    /// The encoder's outputs, virtual tokens included: the decoder sees those too.
    fn encode(&self, forward: &mut Forward<'_>, ids: &[u32]) -> Memory;

    /// The decoder's attentions to the encoder's outputs, block by block.
    fn cross_attentions(&self) -> impl Iterator<Item = &Attending>;

    /// Puts the keys and values of the encoder's outputs into the cache, block by block.
    fn remember(&self, forward: &mut Forward<'_>, memory: &Memory, cache: &mut Cache) {
        for (number, attending) in self.cross_attentions().enumerate() {
            let [keys, values] = attending.of_memory(&self.parts().table, forward, memory);
            cache.push_cross(number, &memory.segments, keys.value(), values.value());
        }
    }

    /// The decoder's outputs `[tokens, hidden]`; without `memory` the cache has the encoder's keys and values.
    fn decode(&self, forward: &mut Forward<'_>, ids: &[u32], memory: Option<&Memory>, cache: Option<&mut Cache>)
    -> Var;

    /// Runs the stacks one after the other.
    fn run_stacks(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, mut cache: Option<&mut Cache>) -> Var {
        let Some(decoder_start) = self.decoder_start() else {
            assert!(cache.is_none(), "an encoder sees whole sequences and needs no cache");
            let hidden = self.encode(forward, inputs.ids).hidden;
            return self.parts().pool(forward, hidden, inputs.ids);
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
        self.parts().pool(forward, hidden, inputs.ids)
    }
}
