//! The forward pass of a post-norm encoder, each site announced to whatever adapter the batch uses.

use tunesmith_tensor::{Attention, FeedForwardSites, Forward, PostNorm, SelfAttentionSites, SiteId, Var};

use crate::cache::Cache;
use crate::encoder::{Encoder, EncoderLayer};
use crate::model::Inputs;
use crate::network::{Network, Parts};

impl Network for Encoder {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var {
        assert!(cache.is_none(), "an encoder sees whole sequences and needs no cache");
        let mut x = self.embed(forward, inputs);
        for layer in &self.layers {
            x = forward.block(&[&x], |forward, inputs| self.layer(forward, layer, inputs[0].clone()));
        }
        self.parts.pool(forward, x, inputs.ids)
    }
}

impl Encoder {
    fn embed(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>) -> Var {
        let dropout = self.config.dropout;
        let words = self.parts.table.embedding(forward, self.word_embeddings, inputs.ids);
        let fresh = vec![true; forward.segments().len()];
        let mut x = forward.input(self.input, words, &fresh);
        if let Some(site) = self.token_type_embeddings {
            let types = self.token_types(forward, inputs);
            let types = self.parts.table.embedding(forward, site, &types);
            x = forward.tape().add(&types, x);
        }
        let places = self.places(forward, inputs.ids);
        let positions = self.parts.table.embedding(forward, self.position_embeddings, &places);
        x = forward.tape().add(&positions, x);
        let norm = self.embedding_norm;
        let x = forward.layer_norm(norm, self.parts.table.base(norm), &x, self.config.norm_epsilon);
        forward.tape().dropout(&x, dropout)
    }

    fn layer(&self, forward: &mut Forward<'_>, layer: &EncoderLayer, x: Var) -> Var {
        let (table, dropout) = (&self.parts.table, self.config.dropout);
        let heads = self.config.heads;
        let head_dim = self.config.hidden_size / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let dropout_of_weights = self.config.attention_dropout;
        let options = Attention {
            heads,
            kv_heads: heads,
            head_dim,
            scale,
            causal: false,
            window: None,
            dropout: dropout_of_weights,
        };
        let sites = SelfAttentionSites {
            query: table.place(layer.query),
            keys: table.place(layer.key),
            values: table.place(layer.value),
            attention: layer.attention,
            output: table.place(layer.attention_output),
        };
        let attended = forward.self_attention(&sites, &options, None, &x).unwrap_or_else(|| {
            let [query, keys, values] = table.linears(forward, [layer.query, layer.key, layer.value], &x);
            let attended = forward.attention(layer.attention, &options, &query, &keys, &values);
            drop((query, keys, values));
            table.linear(forward, layer.attention_output, &attended)
        });
        let attended = forward.tape().dropout(&attended, dropout);
        let x = self.add_and_norm(forward, layer.after_attention, &x, attended, layer.attention_norm);
        let sites = FeedForwardSites {
            gate: None,
            up: table.place(layer.up),
            down: table.place(layer.down),
            activation: self.config.activation,
            dropout: 0.0,
        };
        let fed = forward.feed_forward(&sites, x.clone());
        let fed = forward.tape().dropout(&fed, dropout);
        self.add_and_norm(forward, layer.after_feed_forward, &x, fed, layer.output_norm)
    }

    fn add_and_norm(&self, forward: &mut Forward<'_>, site: SiteId, residual: &Var, output: Var, norm: SiteId) -> Var {
        let epsilon = self.config.norm_epsilon;
        let norm = PostNorm { site: norm, base: self.parts.table.base(norm), epsilon };
        forward.hidden_post_norm(site, residual, output, norm)
    }

    /// The type of each of the batch's rows; 0 for virtual tokens, and for all where the table has one row.
    fn token_types(&self, forward: &Forward<'_>, inputs: &Inputs<'_>) -> Vec<u32> {
        let rows = forward.segments().total();
        if inputs.token_type_ids.is_empty() || self.config.token_types == Some(1) {
            return vec![0; rows];
        }
        assert_eq!(inputs.token_type_ids.len(), inputs.ids.len(), "every token has its type");
        forward.spread(inputs.token_type_ids, 0)
    }

    /// The row of the position table for each of the batch's rows, virtual tokens included.
    fn places(&self, forward: &Forward<'_>, ids: &[u32]) -> Vec<u32> {
        let first = self.config.first_position;
        let offsets = forward.position_offsets();
        // transformers skips padding within a text only where it sees the tokens.
        let seen = (forward.segments().total() == ids.len()).then_some(ids);
        let mut places = Vec::with_capacity(forward.segments().total());
        for (range, offset) in forward.segments().ranges().zip(offsets) {
            let mut next = first + offset;
            for row in range {
                let skipped = self.config.uncounted.is_some_and(|padding| seen.is_some_and(|ids| ids[row] == padding));
                places.push(if skipped { first as u32 - 1 } else { next as u32 });
                next += usize::from(!skipped);
            }
        }
        places
    }
}
