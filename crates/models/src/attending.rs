//! What decoders do alike: where their rows stand, and how they attend to themselves with and without a cache.

use tunesmith_tensor::{Attention, DistanceBias, Forward, SiteId, Var};

use crate::cache::Cache;

/// How many tokens of each sequence the cache holds.
pub(crate) fn past_lengths(forward: &Forward<'_>, cache: Option<&Cache>) -> Vec<usize> {
    cache.map_or_else(|| vec![0; forward.segments().len()], Cache::lengths)
}

/// The position of each of the batch's rows, virtual tokens included, after those that `past` counts.
pub(crate) fn positions(forward: &Forward<'_>, past: &[usize]) -> Vec<usize> {
    let starts = past.iter().zip(forward.position_offsets()).map(|(past, offset)| past + offset);
    forward.segments().ranges().zip(starts).flat_map(|(range, start)| start..start + range.len()).collect()
}

/// Attention of a block to its own rows, which go to the cache where there is one.
pub(crate) fn self_attention(
    forward: &mut Forward<'_>,
    site: SiteId,
    options: &Attention,
    bias: Option<&DistanceBias>,
    [query, keys, values]: [&Var; 3],
    cache: Option<(&mut Cache, usize)>,
) -> Var {
    match cache {
        None => forward.biased_attention(site, options, bias, query, keys, values),
        Some((cache, block)) => {
            cache.push(block, forward.segments(), keys.value(), values.value());
            forward.biased_attention_over(site, options, bias, query, &cache.rows(block))
        }
    }
}
