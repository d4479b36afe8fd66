//! GPT-2's forward pass, each site announced to whatever adapter the batch uses.

use serde_json::{Map, Value};
use tunesmith_tensor::{
    Attention, Base, CrossEntropy, FeedForwardSites, Forward, FrozenWeight, Segments, Site, SiteId, Var,
};

use crate::architectures::gpt2::{Gpt2, Gpt2Block};
use crate::cache::Cache;
use crate::model::{Inputs, Model, ModelInfo};
use crate::weights::SiteWeight;

impl Model for Gpt2 {
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
        let embedded = forward.embedding(self.wte.site, self.wte.base(), inputs.ids);
        let embedded = forward.input(self.input, embedded, &fresh);
        let places = self.places(forward, &past);
        let positions = forward.embedding(self.wpe.site, self.wpe.base(), &places);
        let x = forward.tape().add(&positions, embedded);
        let mut x = forward.tape().dropout(&x, self.config.embd_pdrop);
        for (number, block) in self.blocks.iter().enumerate() {
            x = forward.block(&[&x], |forward, inputs| {
                let x = &inputs[0];
                let normed = self.norm(forward, &block.ln_1, x);
                let attended = self.attention(forward, number, block, &normed, cache.as_deref_mut());
                let x = forward.hidden(block.after_attention, x, attended);
                let normed = self.norm(forward, &block.ln_2, &x);
                let sites = FeedForwardSites {
                    gate: None,
                    up: block.c_fc.place(),
                    down: block.mlp_c_proj.place(),
                    activation: self.config.activation_function,
                    dropout: 0.0,
                };
                let fed = forward.feed_forward(&sites, normed);
                let fed = forward.tape().dropout(&fed, self.config.resid_pdrop);
                forward.hidden(block.after_feed_forward, &x, fed)
            });
        }
        let hidden = self.norm(forward, &self.ln_f, &x);
        forward.output(hidden)
    }

    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        forward.linear_rows(self.lm_head.site, self.lm_head.base(), hidden, rows)
    }

    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy {
        forward.cross_entropy(self.lm_head.site, self.lm_head.base(), hidden, targets)
    }

    fn config_json(&self) -> &Map<String, Value> {
        &self.config.json
    }

    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        self.named_tensors()
    }
}

impl Gpt2 {
    fn attention(
        &self,
        forward: &mut Forward<'_>,
        number: usize,
        block: &Gpt2Block,
        normed: &Var,
        cache: Option<&mut Cache>,
    ) -> Var {
        let width = self.config.n_embd;
        let fused = linear(forward, &block.c_attn, normed);
        let [query, keys, values] =
            [0, 1, 2].map(|part| forward.tape().slice_columns(&fused, part * width..(part + 1) * width));
        drop(fused);
        let options = self.attention_options(number);
        let attended = match cache {
            None => forward.attention(block.attention, &options, &query, &keys, &values),
            Some(cache) => {
                cache.push(number, forward.segments(), keys.value(), values.value());
                forward.attention_over(block.attention, &options, &query, &cache.rows(number))
            }
        };
        let output = linear(forward, &block.c_proj, &attended);
        forward.tape().dropout(&output, self.config.resid_pdrop)
    }

    fn attention_options(&self, block: usize) -> Attention {
        let (heads, head_dim) = (self.config.n_head, self.config.n_embd / self.config.n_head);
        let by_width = if self.config.scale_attn_weights { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
        let by_depth = if self.config.scale_attn_by_inverse_layer_idx { (block + 1) as f32 } else { 1.0 };
        Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale: by_width / by_depth,
            causal: true,
            window: None,
            dropout: self.config.attn_pdrop,
        }
    }

    /// The position of each of the batch's rows, virtual tokens included.
    fn places(&self, forward: &Forward<'_>, past: &[usize]) -> Vec<u32> {
        let offsets = forward.position_offsets();
        let starts = past.iter().zip(offsets).map(|(past, offset)| past + offset);
        let ranges = forward.segments().ranges().zip(starts);
        ranges.flat_map(|(range, start)| (start..start + range.len()).map(|place| place as u32)).collect()
    }

    fn norm(&self, forward: &mut Forward<'_>, norm: &SiteWeight, x: &Var) -> Var {
        forward.layer_norm(norm.site, norm.base(), x, self.config.layer_norm_epsilon as f32)
    }
}

fn linear(forward: &mut Forward<'_>, linear: &SiteWeight, x: &Var) -> Var {
    forward.linear(linear.site, linear.base(), x)
}
