//! BART's forward pass, each site announced to whatever adapter the batch uses.

use tunesmith_tensor::{Attention, FeedForwardSites, Forward, PostNorm, SiteId, Var};

use crate::architectures::bart::layout::FIRST_POSITION;
use crate::architectures::bart::{Bart, Layer, Stack};
use crate::attending::{past_lengths, positions, self_attention};
use crate::cache::Cache;
use crate::encoder_decoder::{Attending, EncoderDecoder, Memory};
use crate::model::Inputs;
use crate::network::{Network, Parts};

/// ε of the layer norms: PyTorch's default, which no configuration changes.
const NORM_EPSILON: f32 = 1e-5;

impl Network for Bart {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var {
        self.run_stacks(forward, inputs, cache)
    }

    fn copies_when_untied(&self) -> Vec<String> {
        ["encoder", "decoder"].map(|stack| self.config.path(&format!("{stack}.embed_tokens.weight"))).to_vec()
    }
}

impl EncoderDecoder for Bart {
    fn decoder_start(&self) -> Option<u32> {
        Some(self.config.decoder_start_token_id)
    }

    fn encode(&self, forward: &mut Forward<'_>, ids: &[u32]) -> Memory {
        let fresh: Vec<bool> = forward.segments().ranges().map(|range| !range.is_empty()).collect();
        let words = self.words(forward, &self.encoder, ids);
        let words = forward.input(self.input, words, &fresh);
        let places = forward.segments().ranges().flat_map(|range| 0..range.len()).collect::<Vec<_>>();
        let mut x = self.with_positions(forward, &self.encoder, words, &places);
        let (table, options) = (&self.parts.table, self.attention(&self.encoder, false));
        for layer in &self.encoder.layers {
            x = forward.block(&[&x], |forward, inputs| {
                let x = &inputs[0];
                let attending = &layer.self_attention;
                let [query, keys, values] = attending.projections(table, forward, x);
                let attended = forward.attention(attending.attention, &options, &query, &keys, &values);
                drop((query, keys, values));
                let x = self.after_attention(forward, attending, x, &attended);
                self.feed_forward(forward, layer, &x)
            });
        }
        Memory { hidden: x, segments: forward.segments().clone() }
    }

    fn cross_attentions(&self) -> impl Iterator<Item = &Attending> {
        self.decoder.layers.iter().filter_map(|layer| layer.cross_attention.as_ref())
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
        let words = self.words(forward, &self.decoder, ids);
        let mut x = self.with_positions(forward, &self.decoder, words, &positions(forward, &past));
        let (own, cross) = (self.attention(&self.decoder, true), self.attention(&self.decoder, false));
        for (number, layer) in self.decoder.layers.iter().enumerate() {
            let inputs: Vec<&Var> = std::iter::once(&x).chain(memory.map(|memory| &memory.hidden)).collect();
            x = forward.block(&inputs, |forward, inputs| {
                let x = &inputs[0];
                let memory = memory.map(|memory| memory.with(&inputs[1]));
                let attending = &layer.self_attention;
                let [query, keys, values] = attending.projections(table, forward, x);
                let cache_of_block = cache.as_deref_mut().map(|cache| (cache, number));
                let projected = [&query, &keys, &values];
                let attended = self_attention(forward, attending.attention, &own, None, projected, cache_of_block);
                drop((query, keys, values));
                let mut x = self.after_attention(forward, attending, x, &attended);
                if let Some(attending) = &layer.cross_attention {
                    let cache_of_block = cache.as_deref().map(|cache| (cache, number));
                    let attended = attending.cross(table, forward, &cross, &x, memory.as_ref(), cache_of_block);
                    x = self.after_attention(forward, attending, &x, &attended);
                }
                self.feed_forward(forward, layer, &x)
            });
        }
        x
    }
}

impl Bart {
    fn words(&self, forward: &mut Forward<'_>, stack: &Stack, ids: &[u32]) -> Var {
        let words = self.parts.table.embedding(forward, stack.words, ids);
        if self.config.scale_embedding {
            forward.tape().scale(words, (self.config.d_model as f32).sqrt())
        } else {
            words
        }
    }

    /// Adds the positions of the rows to token embeddings and norms the sum.
    fn with_positions(&self, forward: &mut Forward<'_>, stack: &Stack, words: Var, places: &[usize]) -> Var {
        let places: Vec<u32> = places.iter().map(|place| (place + FIRST_POSITION) as u32).collect();
        let positions = self.parts.table.embedding(forward, stack.embed_positions, &places);
        let x = forward.tape().add(&positions, words);
        let norm = stack.layernorm_embedding;
        let x = forward.layer_norm(norm, self.parts.table.base(norm), &x, NORM_EPSILON);
        forward.tape().dropout(&x, self.config.dropout)
    }

    fn after_attention(&self, forward: &mut Forward<'_>, attending: &Attending, x: &Var, attended: &Var) -> Var {
        let output = self.parts.table.linear(forward, attending.output, attended);
        let output = forward.tape().dropout(&output, self.config.dropout);
        self.add_and_norm(forward, attending.after, x, output, attending.layer_norm)
    }

    fn feed_forward(&self, forward: &mut Forward<'_>, layer: &Layer, x: &Var) -> Var {
        let sites = FeedForwardSites {
            gate: None,
            up: self.parts.table.place(layer.fc1),
            down: self.parts.table.place(layer.fc2),
            activation: self.config.activation,
            dropout: self.config.activation_dropout,
        };
        let output = forward.feed_forward(&sites, x.clone());
        let output = forward.tape().dropout(&output, self.config.dropout);
        self.add_and_norm(forward, layer.after_feed_forward, x, output, layer.final_layer_norm)
    }

    fn add_and_norm(&self, forward: &mut Forward<'_>, site: SiteId, residual: &Var, output: Var, norm: SiteId) -> Var {
        let norm = PostNorm { site: norm, base: self.parts.table.base(norm), epsilon: NORM_EPSILON };
        forward.hidden_post_norm(site, residual, output, norm)
    }

    fn attention(&self, stack: &Stack, causal: bool) -> Attention {
        let (heads, head_dim) = (stack.heads, self.config.d_model / stack.heads);
        let scale = 1.0 / (head_dim as f32).sqrt();
        Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale,
            causal,
            window: None,
            dropout: self.config.attention_dropout,
        }
    }
}
