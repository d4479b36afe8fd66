//! The Llama family's forward pass: pre-norm blocks of rotary attention and a gated feed-forward, each site announced
//! to whatever adapter the batch uses.

use tunesmith_tensor::{Attention, FeedForwardSites, Forward, Rotary, SelfAttentionSites, SiteId, Var};

use crate::architectures::llama::{Llama, LlamaLayer, Rope};
use crate::attending::{past_lengths, positions, self_attention};
use crate::cache::Cache;
use crate::model::Inputs;
use crate::network::{Network, Parts};

impl Network for Llama {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, mut cache: Option<&mut Cache>) -> Var {
        let table = &self.parts.table;
        let past = past_lengths(forward, cache.as_deref());
        let fresh: Vec<bool> = past.iter().map(|past| *past == 0).collect();
        let mut embedded = table.embedding(forward, self.embed_tokens, inputs.ids);
        if self.config.embedding_scale != 1.0 {
            embedded = forward.tape().scale(embedded, self.config.embedding_scale);
        }
        let mut x = forward.input(self.input, embedded, &fresh);
        let rotary = self.rotary(forward, &past);
        for (block, layer) in self.layers.iter().enumerate() {
            x = forward.block(&[&x], |forward, inputs| {
                let x = &inputs[0];
                let normed = self.norm(forward, layer.input_layernorm, x);
                let mut attended = self.attention(forward, block, layer, &normed, &rotary, cache.as_deref_mut());
                if let Some(norm) = layer.attention_output_norm {
                    attended = self.norm(forward, norm, &attended);
                }
                let x = forward.hidden(layer.after_attention, x, attended);
                let normed = self.norm(forward, layer.feed_forward_norm, &x);
                let sites = FeedForwardSites {
                    gate: Some(table.place(layer.gate_proj)),
                    up: table.place(layer.up_proj),
                    down: table.place(layer.down_proj),
                    activation: self.config.activation,
                    dropout: 0.0,
                };
                let mut fed = forward.feed_forward(&sites, normed);
                if let Some(norm) = layer.feed_forward_output_norm {
                    fed = self.norm(forward, norm, &fed);
                }
                forward.hidden(layer.after_feed_forward, &x, fed)
            });
        }
        let hidden = self.norm(forward, self.norm, &x);
        self.parts.pool(forward, hidden, inputs.ids)
    }
}

impl Llama {
    fn attention(
        &self,
        forward: &mut Forward<'_>,
        block: usize,
        layer: &LlamaLayer,
        normed: &Var,
        rotary: &Angles,
        cache: Option<&mut Cache>,
    ) -> Var {
        let (config, table) = (&self.config, &self.parts.table);
        let options = Attention {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            causal: true,
            window: layer.sliding_window,
            dropout: config.attention_dropout,
        };
        let rotary = if layer.sliding_window.is_some() { &rotary.local } else { &rotary.global };
        if cache.is_none() && layer.query_key_norms.is_none() {
            let sites = SelfAttentionSites {
                query: table.place(layer.q_proj),
                keys: table.place(layer.k_proj),
                values: table.place(layer.v_proj),
                attention: layer.attention,
                output: table.place(layer.o_proj),
            };
            if let Some(attended) = forward.self_attention(&sites, &options, Some(rotary), normed) {
                return attended;
            }
        }
        let sites = [layer.q_proj, layer.k_proj, layer.v_proj];
        let [mut query, mut keys, values] = table.linears(forward, sites, normed);
        if let Some([query_norm, key_norm]) = layer.query_key_norms {
            query = self.norm(forward, query_norm, &query);
            keys = self.norm(forward, key_norm, &keys);
        }
        let query = forward.tape().rotary(query, rotary);
        let keys = forward.tape().rotary(keys, rotary);
        let (projected, cache) = ([&query, &keys, &values], cache.map(|cache| (cache, block)));
        let attended = self_attention(forward, layer.attention, &options, None, projected, cache);
        table.linear(forward, layer.o_proj, &attended)
    }

    /// The angles of the batch's rows, virtual tokens included.
    fn rotary(&self, forward: &Forward<'_>, past: &[usize]) -> Angles {
        let positions = positions(forward, past);
        let head_dim = self.config.head_dim;
        let rotary =
            |rope: &Rope| Rotary::new(&rope.inverse_frequencies(head_dim), &positions, rope.attention_factor());
        let global = rotary(&self.config.rope);
        let local = self.config.local_rope.as_ref().map_or_else(|| global.clone(), rotary);
        Angles { global, local }
    }

    fn norm(&self, forward: &mut Forward<'_>, norm: SiteId, x: &Var) -> Var {
        let (base, epsilon) = (self.parts.table.base(norm), self.config.rms_norm_eps as f32);
        if self.config.centred_norms {
            forward.centred_rms_norm(norm, base, x, epsilon)
        } else {
            forward.rms_norm(norm, base, x, epsilon)
        }
    }
}

/// The angles in blocks that see everything, and in those with a sliding window.
struct Angles {
    global: Rotary,
    local: Rotary,
}
