//! The attention of a block over its own rows: its sites and what lies between them.

use super::Forward;
use crate::ops::self_attention::AttentionLinears;
use crate::tuner::Base;
use crate::{Adapter, Attention, Rotary, SiteId, Var};

/// The sites of a self-attention, and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttentionSites<'a> {
    /// The linear to the queries.
    pub query: (SiteId, Base<'a>),
    /// The linear to the keys.
    pub keys: (SiteId, Base<'a>),
    /// The linear to the values.
    pub values: (SiteId, Base<'a>),
    /// Where adapters put keys and values before the batch's own.
    pub attention: SiteId,
    /// The linear from what attends.
    pub output: (SiteId, Base<'a>),
}

impl Forward<'_> {
    /// The attention of `x` `[tokens, in]`, `[tokens, out]`, in one operation: what its linears make, queries and keys turned
    /// by `rotary`. `None` where that must be done one after the other: linears whose tuners are more than low-rank, a prefix
    /// within a sliding window, groups of tokens, few or long sequences, float32, and outside of training.
    pub fn self_attention(
        &mut self,
        sites: &SelfAttentionSites<'_>,
        options: &Attention,
        rotary: Option<&Rotary>,
        x: &Var,
    ) -> Option<Var> {
        let SelfAttentionSites { query, keys, values, attention, output } = *sites;
        let weights = [query, keys, values, output].map(|(_, base)| base.weight);
        let mut adapters = self.groups.iter().filter_map(|group| group.adapter);
        let reaches_inside = |adapter: &Adapter| {
            let has_prefix = adapter.attention(attention).is_some();
            has_prefix && options.window.is_some() || adapter.shifted_groups().is_some()
        };
        if self.tape.is_inferring()
            || adapters.any(reaches_inside)
            || !self.tape.has_self_attention(options, &self.segments, weights)
        {
            return None;
        }
        let mut updated = |site| self.updated(site).filter(|linear| linear.replacement.is_none());
        let (query, keys, values, output) = (updated(query)?, updated(keys)?, updated(values)?, updated(output)?);
        let linears = AttentionLinears { query, keys, values, output };
        let prefix = self.prefix(attention, options.kv_heads * options.head_dim);
        Some(self.tape.self_attention(options, rotary, prefix.as_ref(), &self.segments, x, linears))
    }
}
