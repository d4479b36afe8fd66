//! The Llama family's forward pass: pre-norm blocks of rotary attention and a gated feed-forward, each site announced
//! to whatever adapter the batch uses.

use serde_json::{Map, Value};
use tunesmith_tensor::{
    Attention, Base, CrossEntropy, FeedForwardSites, Forward, FrozenWeight, Rotary, Segments, Site, SiteId, Var,
};

use crate::architectures::llama::{Llama, LlamaLayer, Rope};
use crate::cache::Cache;
use crate::model::{Inputs, Model, ModelInfo};
use crate::weights::SiteWeight;

impl Model for Llama {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn base(&self, site: SiteId) -> Option<Base<'_>> {
        self.site_base(site)
    }

    fn hidden_states(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, mut cache: Option<&mut Cache>) -> Var {
        let past: Vec<usize> = match &cache {
            Some(cache) => cache.lengths(),
            None => vec![0; forward.segments().len()],
        };
        let fresh: Vec<bool> = past.iter().map(|past| *past == 0).collect();
        let mut embedded = forward.embedding(self.embed_tokens.site, self.embed_tokens.base(), inputs.ids);
        if self.config.embedding_scale != 1.0 {
            embedded = forward.tape().scale(embedded, self.config.embedding_scale);
        }
        let mut x = forward.input(self.input, embedded, &fresh);
        let rotary = self.rotary(forward, &past);
        for (block, layer) in self.layers.iter().enumerate() {
            x = forward.block(&[&x], |forward, inputs| {
                let x = &inputs[0];
                let normed = self.norm(forward, &layer.input_layernorm, x);
                let mut attended = self.attention(forward, block, layer, &normed, &rotary, cache.as_deref_mut());
                if let Some(norm) = &layer.attention_output_norm {
                    attended = self.norm(forward, norm, &attended);
                }
                let x = forward.hidden(layer.after_attention, x, attended);
                let normed = self.norm(forward, &layer.feed_forward_norm, &x);
                let sites = FeedForwardSites {
                    gate: Some(layer.gate_proj.place()),
                    up: layer.up_proj.place(),
                    down: layer.down_proj.place(),
                    activation: self.config.activation,
                    dropout: 0.0,
                };
                let mut fed = forward.feed_forward(&sites, normed);
                if let Some(norm) = &layer.feed_forward_output_norm {
                    fed = self.norm(forward, norm, &fed);
                }
                forward.hidden(layer.after_feed_forward, &x, fed)
            });
        }
        let hidden = self.norm(forward, &self.norm, &x);
        forward.output(hidden)
    }

    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        forward.linear_rows(self.lm_head.site, self.lm_head.base(), hidden, rows)
    }

    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy {
        forward.cross_entropy(self.lm_head.site, self.lm_head.base(), hidden, targets)
    }

    fn config_json(&self) -> &Map<String, Value> {
        self.json()
    }

    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        self.named_tensors()
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
        let config = &self.config;
        let options = Attention {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            causal: true,
            window: layer.sliding_window,
            dropout: config.attention_dropout,
        };
        let mut query = linear(forward, &layer.q_proj, normed);
        let mut keys = linear(forward, &layer.k_proj, normed);
        let values = linear(forward, &layer.v_proj, normed);
        if let Some([query_norm, key_norm]) = &layer.query_key_norms {
            query = self.norm(forward, query_norm, &query);
            keys = self.norm(forward, key_norm, &keys);
        }
        let rotary = if layer.sliding_window.is_some() { &rotary.local } else { &rotary.global };
        let query = forward.tape().rotary(query, rotary);
        let keys = forward.tape().rotary(keys, rotary);
        let attended = match cache {
            None => forward.attention(layer.attention, &options, &query, &keys, &values),
            Some(cache) => {
                cache.push(block, forward.segments(), keys.value(), values.value());
                forward.attention_over(layer.attention, &options, &query, &cache.rows(block))
            }
        };
        linear(forward, &layer.o_proj, &attended)
    }

    /// The angles of the batch's rows, virtual tokens included.
    fn rotary(&self, forward: &Forward<'_>, past: &[usize]) -> Angles {
        let offsets = forward.position_offsets();
        let starts = past.iter().zip(offsets).map(|(past, offset)| past + offset);
        let positions: Vec<usize> =
            forward.segments().ranges().zip(starts).flat_map(|(range, start)| start..start + range.len()).collect();
        let head_dim = self.config.head_dim;
        let rotary =
            |rope: &Rope| Rotary::new(&rope.inverse_frequencies(head_dim), &positions, rope.attention_factor());
        let global = rotary(&self.config.rope);
        let local = self.config.local_rope.as_ref().map_or_else(|| global.clone(), rotary);
        Angles { global, local }
    }

    fn norm(&self, forward: &mut Forward<'_>, norm: &SiteWeight, x: &Var) -> Var {
        let epsilon = self.config.rms_norm_eps as f32;
        if self.config.centred_norms {
            forward.centred_rms_norm(norm.site, norm.base(), x, epsilon)
        } else {
            forward.rms_norm(norm.site, norm.base(), x, epsilon)
        }
    }
}

/// The angles in blocks that see everything, and in those with a sliding window.
struct Angles {
    global: Rotary,
    local: Rotary,
}

fn linear(forward: &mut Forward<'_>, linear: &SiteWeight, x: &Var) -> Var {
    forward.linear(linear.site, linear.base(), x)
}
