//! T5's forward pass, each site announced to whatever adapter the batch uses.

use tunesmith_tensor::{Attention, DistanceBias, FeedForwardSites, Forward, SiteId, Var};

use crate::architectures::t5::buckets::bucket;
use crate::architectures::t5::{FeedForward, Stack, T5};
use crate::attending::{past_lengths, self_attention};
use crate::cache::Cache;
use crate::encoder_decoder::{Attending, EncoderDecoder, Memory};
use crate::model::Inputs;
use crate::network::{Network, Parts};

impl Network for T5 {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var {
        self.run_stacks(forward, inputs, cache)
    }
}

impl EncoderDecoder for T5 {
    fn decoder_start(&self) -> Option<u32> {
        self.decoder.as_ref().map(|_| self.config.decoder_start_token_id)
    }

    fn encode(&self, forward: &mut Forward<'_>, ids: &[u32]) -> Memory {
        let fresh: Vec<bool> = forward.segments().ranges().map(|range| !range.is_empty()).collect();
        let embedded = self.parts.table.embedding(forward, self.shared, ids);
        let embedded = forward.input(self.input, embedded, &fresh);
        let mut x = forward.tape().dropout(&embedded, self.config.dropout);
        drop(embedded);
        // Rows of a prefix lie before the first token.
        let offsets = forward.position_offsets();
        let lengths = forward.segments().ranges().zip(offsets).map(|(range, offset)| range.len() + offset);
        let longest = lengths.max().unwrap_or(0);
        let bias = self.bias(forward, &self.encoder, longest, true);
        let (table, options) = (&self.parts.table, self.attention(false));
        for block in &self.encoder.blocks {
            x = forward.block(&[&x, &bias.values], |forward, inputs| {
                let bias = DistanceBias { values: inputs[1].clone(), ..bias.clone() };
                let attending = &block.self_attention;
                let normed = self.norm(forward, attending.layer_norm, &inputs[0]);
                let [query, keys, values] = attending.projections(table, forward, &normed);
                let attended =
                    forward.biased_attention(attending.attention, &options, Some(&bias), &query, &keys, &values);
                let x = self.after_attention(forward, attending, inputs[0].clone(), &attended);
                self.feed_forward(forward, &block.feed_forward, x)
            });
        }
        let hidden = self.norm(forward, self.encoder.final_layer_norm, &x);
        let hidden = forward.tape().dropout(&hidden, self.config.dropout);
        Memory { hidden, segments: forward.segments().clone() }
    }

    fn cross_attentions(&self) -> impl Iterator<Item = &Attending> {
        self.decoder().blocks.iter().filter_map(|block| block.cross_attention.as_ref())
    }

    fn decode(
        &self,
        forward: &mut Forward<'_>,
        ids: &[u32],
        memory: Option<&Memory>,
        mut cache: Option<&mut Cache>,
    ) -> Var {
        let table = &self.parts.table;
        let past = past_lengths(forward, cache.as_deref());
        let offsets = forward.position_offsets();
        let ranges = forward.segments().ranges();
        let lengths = ranges.zip(past.iter().zip(&offsets)).map(|(range, (past, offset))| range.len() + past + offset);
        let longest = lengths.max().unwrap_or(0);
        let bias = self.bias(forward, self.decoder(), longest, false);
        let (own, cross) = (self.attention(true), self.attention(false));
        let embedded = self.parts.table.embedding(forward, self.shared, ids);
        let mut x = forward.tape().dropout(&embedded, self.config.dropout);
        drop(embedded);
        for (number, block) in self.decoder().blocks.iter().enumerate() {
            let inputs = [Some(&x), Some(&bias.values), memory.map(|memory| &memory.hidden)];
            let inputs: Vec<&Var> = inputs.into_iter().flatten().collect();
            x = forward.block(&inputs, |forward, inputs| {
                let bias = DistanceBias { values: inputs[1].clone(), ..bias.clone() };
                let memory = memory.map(|memory| memory.with(&inputs[2]));
                let attending = &block.self_attention;
                let normed = self.norm(forward, attending.layer_norm, &inputs[0]);
                let [query, keys, values] = attending.projections(table, forward, &normed);
                let (site, bias) = (attending.attention, Some(&bias));
                let cache_of_block = cache.as_deref_mut().map(|cache| (cache, number));
                let attended = self_attention(forward, site, &own, bias, [&query, &keys, &values], cache_of_block);
                let mut x = self.after_attention(forward, attending, inputs[0].clone(), &attended);
                if let Some(attending) = &block.cross_attention {
                    let normed = self.norm(forward, attending.layer_norm, &x);
                    let cache_of_block = cache.as_deref().map(|cache| (cache, number));
                    let attended = attending.cross(table, forward, &cross, &normed, memory.as_ref(), cache_of_block);
                    x = self.after_attention(forward, attending, x, &attended);
                }
                self.feed_forward(forward, &block.feed_forward, x)
            });
        }
        let hidden = self.norm(forward, self.decoder().final_layer_norm, &x);
        let hidden = forward.tape().dropout(&hidden, self.config.dropout);
        let is_scaled = self.config.scale_decoder_outputs && self.parts.lm_head.is_some();
        if is_scaled { forward.tape().scale(hidden, (self.config.d_model as f32).sqrt().recip()) } else { hidden }
    }
}

impl T5 {
    fn decoder(&self) -> &Stack {
        self.decoder.as_ref().expect("an encoder that stands alone is never asked to decode")
    }

    fn after_attention(&self, forward: &mut Forward<'_>, attending: &Attending, x: Var, attended: &Var) -> Var {
        let output = self.parts.table.linear(forward, attending.output, attended);
        let output = forward.tape().dropout(&output, self.config.dropout);
        forward.hidden(attending.after, &x, output)
    }

    fn feed_forward(&self, forward: &mut Forward<'_>, sites: &FeedForward, x: Var) -> Var {
        let (activation, dropout) = (self.config.activation, self.config.dropout);
        let normed = self.norm(forward, sites.layer_norm, &x);
        let feed_forward = FeedForwardSites {
            gate: sites.gate.map(|gate| self.parts.table.place(gate)),
            up: self.parts.table.place(sites.up),
            down: self.parts.table.place(sites.down),
            activation,
            dropout,
        };
        let output = forward.feed_forward(&feed_forward, normed);
        let output = forward.tape().dropout(&output, dropout);
        forward.hidden(sites.after, &x, output)
    }

    /// The biases of a stack's scores for sequences of up to `longest` rows, those of a prefix included.
    fn bias(&self, forward: &mut Forward<'_>, stack: &Stack, longest: usize, both_directions: bool) -> DistanceBias {
        let (buckets, most) = (self.config.buckets, self.config.max_distance);
        let reach = longest as isize;
        let buckets: Vec<usize> =
            (-reach..=reach).map(|distance| bucket(distance, buckets, most, both_directions)).collect();
        let site = stack.relative_attention_bias;
        forward.distance_bias(site, self.parts.table.base(site), &buckets, longest)
    }

    fn norm(&self, forward: &mut Forward<'_>, site: SiteId, x: &Var) -> Var {
        forward.rms_norm(site, self.parts.table.base(site), x, self.config.norm_epsilon)
    }

    /// T5 does not scale its scores.
    fn attention(&self, causal: bool) -> Attention {
        let heads = self.config.num_heads;
        Attention {
            heads,
            kv_heads: heads,
            head_dim: self.config.d_kv,
            scale: 1.0,
            causal,
            window: None,
            dropout: self.config.dropout,
        }
    }
}
