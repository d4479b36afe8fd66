//! GPT-2's forward pass, each site announced to whatever adapter the batch uses.

use tunesmith_tensor::{Attention, FeedForwardSites, Forward, SiteId, Var};

use crate::architectures::gpt2::{Gpt2, Gpt2Block};
use crate::attending::{past_lengths, positions, self_attention};
use crate::cache::Cache;
use crate::model::Inputs;
use crate::network::{Network, Parts};

impl Network for Gpt2 {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, mut cache: Option<&mut Cache>) -> Var {
        let table = &self.parts.table;
        let past = past_lengths(forward, cache.as_deref());
        let fresh: Vec<bool> = past.iter().map(|past| *past == 0).collect();
        let embedded = table.embedding(forward, self.wte, inputs.ids);
        let embedded = forward.input(self.input, embedded, &fresh);
        let places: Vec<u32> = positions(forward, &past).into_iter().map(|place| place as u32).collect();
        let positions = table.embedding(forward, self.wpe, &places);
        let x = forward.tape().add(&positions, embedded);
        let mut x = forward.tape().dropout(&x, self.config.embd_pdrop);
        for (number, block) in self.blocks.iter().enumerate() {
            x = forward.block(&[&x], |forward, inputs| {
                let x = &inputs[0];
                let normed = self.norm(forward, block.ln_1, x);
                let attended = self.attention(forward, number, block, &normed, cache.as_deref_mut());
                let x = forward.hidden(block.after_attention, x, attended);
                let normed = self.norm(forward, block.ln_2, &x);
                let sites = FeedForwardSites {
                    gate: None,
                    up: table.place(block.c_fc),
                    down: table.place(block.mlp_c_proj),
                    activation: self.config.activation_function,
                    dropout: 0.0,
                };
                let fed = forward.feed_forward(&sites, normed);
                let fed = forward.tape().dropout(&fed, self.config.resid_pdrop);
                forward.hidden(block.after_feed_forward, &x, fed)
            });
        }
        let hidden = self.norm(forward, self.ln_f, &x);
        self.parts.pool(forward, hidden, inputs.ids)
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
        let fused = self.parts.table.linear(forward, block.c_attn, normed);
        let [query, keys, values] =
            [0, 1, 2].map(|part| forward.tape().slice_columns(&fused, part * width..(part + 1) * width));
        drop(fused);
        let options = self.attention_options(number);
        let (projected, cache) = ([&query, &keys, &values], cache.map(|cache| (cache, number)));
        let attended = self_attention(forward, block.attention, &options, None, projected, cache);
        let output = self.parts.table.linear(forward, block.c_proj, &attended);
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

    fn norm(&self, forward: &mut Forward<'_>, norm: SiteId, x: &Var) -> Var {
        forward.layer_norm(norm, self.parts.table.base(norm), x, self.config.layer_norm_epsilon as f32)
    }
}
