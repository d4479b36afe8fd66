//! Counting n-grams.

use std::collections::BTreeMap;

/// How often each run of `order` neighbours occurs.
pub(super) fn count<T: Ord>(tokens: &[T], order: usize) -> BTreeMap<&[T], usize> {
    let mut counts = BTreeMap::new();
    for ngram in tokens.windows(order) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// How often each may occur at most, for several references: as often as in the one that has it most often.
pub(super) fn allowed<T: Ord>(references: &[Vec<T>], order: usize) -> BTreeMap<&[T], usize> {
    let mut allowed: BTreeMap<&[T], usize> = BTreeMap::new();
    for reference in references {
        for (ngram, count) in count(reference, order) {
            let most = allowed.entry(ngram).or_default();
            *most = count.max(*most);
        }
    }
    allowed
}
