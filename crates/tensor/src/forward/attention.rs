//! Attention sites: the batch's own keys and values, those of an encoder or a cache, and what adapters put before them.

use super::{Forward, tuned};
use crate::ops::attention::{Attention, DistanceBias, KeyValuePages, KeyValueRows, PageRows, Prefix, ShiftedGroups};
use crate::tuner::{Base, WeightTuner};
use crate::{Adapter, Segments, SiteId, Var};

impl Forward<'_> {
    /// An attention site over the batch's own keys and values.
    pub fn attention(&mut self, site: SiteId, options: &Attention, query: &Var, keys: &Var, values: &Var) -> Var {
        self.biased_attention(site, options, None, query, keys, values)
    }

    /// The same with a bias on the scores.
    pub fn biased_attention(
        &mut self,
        site: SiteId,
        options: &Attention,
        bias: Option<&DistanceBias>,
        query: &Var,
        keys: &Var,
        values: &Var,
    ) -> Var {
        let prefix = self.prefix(site, keys.cols());
        let segments = &self.segments;
        if let (Some(groups), None, None) = (self.shifted_groups(options), &prefix, bias) {
            return self.tape.shifted_attention(options, &groups, query, keys, values, segments);
        }
        if let Some(prefix) = prefix.as_ref().filter(|_| options.window.is_some()) {
            let (keys, values, key_segments) = self.behind_prefix(prefix, keys, values);
            let segments = &self.segments;
            return self.tape.attention(options, query, segments, &keys, &values, &key_segments, None, bias);
        }
        self.tape.attention(options, query, segments, keys, values, segments, prefix.as_ref(), bias)
    }

    /// A table `[buckets, heads]` at an embedding site as a bias on attention's scores: `buckets[zero + d]` is the bucket
    /// of keys `d` places after the query.
    pub fn distance_bias(&mut self, site: SiteId, base: Base<'_>, buckets: &[usize], zero: usize) -> DistanceBias {
        let mut tuners: Vec<Option<&dyn WeightTuner>> = Vec::new();
        let mut tables = vec![0; self.segments.len()];
        for group in &self.groups {
            let tuner = group.adapter.and_then(|adapter| adapter.weight(site));
            let address = |tuner: &Option<&dyn WeightTuner>| tuner.map(|tuner| std::ptr::from_ref(tuner).cast::<()>());
            let known = tuners.iter().position(|other| address(other) == address(&tuner));
            tables[group.sequences.clone()].fill(known.unwrap_or(tuners.len()));
            if known.is_none() {
                tuners.push(tuner);
            }
        }
        let values: Vec<Var> = tuners
            .into_iter()
            .map(|tuner| {
                let table = tuned(self.tape, base, tuner).weight;
                let by_distance = self.tape.gather_rows(&table, buckets.to_vec());
                self.tape.transpose(&by_distance)
            })
            .collect();
        DistanceBias { values: self.tape.concat_rows(&values), tables, zero }
    }

    /// An attention site over other sequences' keys and values, one for each of the batch: `key_segments` says where
    /// they lie.
    pub fn cross_attention(
        &mut self,
        site: SiteId,
        options: &Attention,
        query: &Var,
        keys: &Var,
        values: &Var,
        key_segments: &Segments,
    ) -> Var {
        let prefix = self.prefix(site, keys.cols());
        self.tape.attention(options, query, &self.segments, keys, values, key_segments, prefix.as_ref(), None)
    }

    /// An attention site over keys and values in a cache, one entry a sequence. Outside differentiation only.
    pub fn attention_over(
        &mut self,
        site: SiteId,
        options: &Attention,
        query: &Var,
        rows: &[KeyValuePages<'_>],
    ) -> Var {
        self.biased_attention_over(site, options, None, query, rows)
    }

    /// The same with a bias on the scores.
    pub fn biased_attention_over(
        &mut self,
        site: SiteId,
        options: &Attention,
        bias: Option<&DistanceBias>,
        query: &Var,
        rows: &[KeyValuePages<'_>],
    ) -> Var {
        let prefix = self.prefix(site, options.kv_heads * options.head_dim);
        if let Some(prefix) = prefix.as_ref().filter(|_| options.window.is_some()) {
            // Within a sliding window the rows of a prefix count as positions.
            let width = prefix.keys.cols();
            let joined = rows.iter().zip(&prefix.ranges).map(|(rows, range)| {
                let floats = range.start * width..range.end * width;
                let first = KeyValueRows {
                    keys: &prefix.keys.value().data()[floats.clone()],
                    values: &prefix.values.value().data()[floats],
                };
                KeyValuePages {
                    pages: std::iter::once(PageRows::Float32(first)).chain(rows.pages.iter().copied()).collect(),
                }
            });
            let rows: Vec<KeyValuePages<'_>> = joined.collect();
            return self.tape.attention_over(options, query, &self.segments, &rows, None, bias);
        }
        self.tape.attention_over(options, query, &self.segments, rows, prefix.as_ref(), bias)
    }

    /// How the batch's adapter groups tokens, where this is training and attention is causal over whole sequences.
    fn shifted_groups(&self, options: &Attention) -> Option<ShiftedGroups> {
        let [group] = self.groups.as_slice() else { return None };
        let groups = group.adapter.and_then(Adapter::shifted_groups);
        groups.filter(|_| self.tape.is_training() && options.causal && options.window.is_none())
    }

    /// Keys and values with those of a prefix before each sequence, and where they lie. Within a sliding window the rows
    /// of a prefix count as positions, as in transformers.
    fn behind_prefix(&mut self, prefix: &Prefix, keys: &Var, values: &Var) -> (Var, Var, Segments) {
        let ranges: Vec<_> = self.segments.ranges().zip(prefix.ranges.iter().cloned()).collect();
        let mut join = |prefix: &Var, own: &Var| {
            let parts: Vec<Var> = ranges
                .iter()
                .flat_map(|(rows, range)| [(prefix, range), (own, rows)])
                .filter(|(_, rows)| !rows.is_empty())
                .map(|(side, rows)| self.tape.slice_rows(side, rows.clone()))
                .collect();
            self.tape.concat_rows(&parts)
        };
        let (keys, values) = (join(&prefix.keys, keys), join(&prefix.values, values));
        (keys, values, Segments::from_lengths(ranges.iter().map(|(rows, range)| rows.len() + range.len())))
    }

    /// The keys and values that adapters put before each sequence at an attention site.
    pub(super) fn prefix(&mut self, site: SiteId, cols: usize) -> Option<Prefix> {
        let mut ranges = vec![0..0; self.segments.len()];
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for group in &self.groups {
            let Some(tuner) = group.adapter.and_then(|adapter| adapter.attention(site)) else { continue };
            let (key, value) = tuner.prefix(self.tape);
            assert!(key.cols() == cols && value.cols() == cols, "a prefix is as wide as the keys");
            ranges[group.sequences.clone()].fill(rows..rows + key.rows());
            rows += key.rows();
            keys.push(key);
            values.push(value);
        }
        (rows > 0).then(|| Prefix {
            keys: self.tape.concat_rows(&keys),
            values: self.tape.concat_rows(&values),
            ranges,
        })
    }
}
