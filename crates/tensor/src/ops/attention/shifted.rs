//! Shifted sparse attention (S²-Attn, LongLoRA, Chen et al. 2024, section 3.2): tokens attend within groups, and in half
//! of the heads the groups are shifted by half a group, so that what one group knows reaches the next.
//!
//! Groups are sequences of their own to the attention operation: this only cuts segments and splits heads. It is for
//! training; a model trained so is used with full attention.

use std::ops::Range;

use super::Attention;
use crate::{Segments, Tape, Var};

/// How shifted sparse attention groups tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShiftedGroups {
    /// Tokens of a group.
    pub size: GroupSize,
    /// What becomes of the half group that the shift pushes over the sequence's end.
    pub ends: ShiftedEnds,
}

/// Tokens of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GroupSize {
    /// The same for all sequences.
    Tokens(usize),
    /// This part of each sequence's length, rounded up to an even number. The paper has 1/4.
    Ratio(f32),
}

/// What becomes of the two half groups at the ends of a sequence, where groups are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShiftedEnds {
    /// Each is a group of its own, so that no token sees a later one.
    #[default]
    Separate,
    /// They are one group, the last half before the first, as published: the tokens are rolled around, and the
    /// sequence's first tokens see its last.
    Joined,
}

impl ShiftedGroups {
    /// Tokens of a group in a sequence of `length`; even, so that it has halves, and at least 2.
    fn group(&self, length: usize) -> usize {
        let size = match self.size {
            GroupSize::Tokens(size) => size,
            GroupSize::Ratio(ratio) => (length as f64 * f64::from(ratio)).ceil() as usize,
        };
        size.max(1).next_multiple_of(2)
    }

    /// Lengths of the groups of all sequences. With `shifted`, the first of a sequence is half a group.
    fn cut(&self, segments: &Segments, shifted: bool) -> Segments {
        let mut lengths = Vec::new();
        for range in segments.ranges() {
            let group = self.group(range.len());
            let mut left = range.len();
            let mut next = if shifted { group / 2 } else { group };
            while left > 0 {
                lengths.push(next.min(left));
                left -= next.min(left);
                next = group;
            }
        }
        Segments::from_lengths(lengths)
    }

    /// The rows of all sequences, each rolled by half a group towards its beginning.
    fn rolled(&self, segments: &Segments) -> Vec<usize> {
        let roll = |range: Range<usize>| {
            let shift = (self.group(range.len()) / 2).min(range.len());
            (range.start + shift..range.end).chain(range.start..range.start + shift)
        };
        segments.ranges().flat_map(roll).collect()
    }
}

impl Tape {
    /// Causal self-attention of `query` `[tokens, heads·head_dim]` to `keys` and `values`
    /// `[tokens, kv_heads·head_dim]` within groups: as they lie in the first `heads / 2` heads, shifted in the others.
    ///
    /// # Panics
    /// If the shapes and segments disagree.
    pub fn shifted_attention(
        &mut self,
        options: &Attention,
        groups: &ShiftedGroups,
        query: &Var,
        keys: &Var,
        values: &Var,
        segments: &Segments,
    ) -> Var {
        let straight = groups.cut(segments, false);
        let joined = groups.ends == ShiftedEnds::Joined;
        let shifted = if joined { straight.clone() } else { groups.cut(segments, true) };
        let rolled = if joined { groups.rolled(segments) } else { Vec::new() };
        let mut parts = Vec::new();
        for heads in head_ranges(options) {
            let shift = heads.start >= options.heads / 2;
            let group = options.group();
            let kv_heads = heads.start / group..(heads.end - 1) / group + 1;
            let columns = |heads: &Range<usize>| heads.start * options.head_dim..heads.end * options.head_dim;
            let mut inputs = [
                self.slice_columns(query, columns(&heads)),
                self.slice_columns(keys, columns(&kv_heads)),
                self.slice_columns(values, columns(&kv_heads)),
            ];
            if shift && joined {
                inputs = inputs.map(|input| self.gather_rows(&input, rolled.clone()));
            }
            let part_options = Attention { heads: heads.len(), kv_heads: kv_heads.len(), ..*options };
            let cut = if shift { &shifted } else { &straight };
            let [query, keys, values] = &inputs;
            let mut part = self.attention(&part_options, query, cut, keys, values, cut, None, None);
            if shift && joined {
                let mut back = vec![0; rolled.len()];
                rolled.iter().enumerate().for_each(|(to, from)| back[*from] = to);
                part = self.gather_rows(&part, back);
            }
            parts.push(part);
        }
        self.concat_columns(&parts)
    }
}

/// Ranges of query heads that lie in one half, and that are whole groups of heads with common keys or within one.
fn head_ranges(options: &Attention) -> Vec<Range<usize>> {
    let (half, group) = (options.heads / 2, options.group());
    let mut cuts = vec![0, half - half % group, half, half.next_multiple_of(group), options.heads];
    cuts.dedup();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};
    use crate::{Matrix, Workspace};

    const OPTIONS: Attention =
        Attention { heads: 4, kv_heads: 2, head_dim: 3, scale: 0.5, causal: true, window: None, dropout: 0.0 };

    fn groups(size: usize, ends: ShiftedEnds) -> ShiftedGroups {
        ShiftedGroups { size: GroupSize::Tokens(size), ends }
    }

    /// The mask as the paper describes it, written independently of segments: whether the query at `i` sees the key at
    /// `j` in a sequence of `length` tokens.
    fn sees(groups: &ShiftedGroups, shifted: bool, i: usize, j: usize, length: usize) -> bool {
        let group = groups.group(length);
        if !shifted {
            return i / group == j / group && j <= i;
        }
        match groups.ends {
            ShiftedEnds::Separate => (i + group / 2) / group == (j + group / 2) / group && j <= i,
            ShiftedEnds::Joined => {
                let shift = (group / 2).min(length);
                let [i, j] = [i, j].map(|place| (place + length - shift) % length);
                i / group == j / group && j <= i
            }
        }
    }

    /// Attention with a dense mask, one score at a time.
    fn dense(options: &Attention, groups: &ShiftedGroups, inputs: &[Matrix; 3], lengths: &[usize]) -> Vec<f64> {
        let [query, keys, values] = inputs;
        let Attention { heads, kv_heads, head_dim, scale, .. } = *options;
        let mut output = vec![0.0; query.data().len()];
        let mut first = 0;
        for length in lengths.iter().copied() {
            for i in 0..length {
                for head in 0..heads {
                    let column = head / (heads / kv_heads) * head_dim;
                    let seen: Vec<usize> =
                        (0..length).filter(|j| sees(groups, head >= heads / 2, i, *j, length)).collect();
                    let weight = |j: &usize| {
                        let q = &query.row(first + i)[head * head_dim..][..head_dim];
                        let k = &keys.row(first + j)[column..][..head_dim];
                        let score: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        (score * f64::from(scale)).exp()
                    };
                    let total: f64 = seen.iter().map(weight).sum();
                    for j in &seen {
                        for d in 0..head_dim {
                            let place = (first + i) * query.cols() + head * head_dim + d;
                            output[place] += weight(j) / total * f64::from(values.row(first + j)[column + d]);
                        }
                    }
                }
            }
            first += length;
        }
        output
    }

    fn inputs(options: &Attention, tokens: usize) -> [Matrix; 3] {
        let (query, keys) = (options.heads * options.head_dim, options.kv_heads * options.head_dim);
        [random(tokens, query, 0), random(tokens, keys, 1), random(tokens, keys, 2)]
    }

    fn run(options: &Attention, groups: &ShiftedGroups, inputs: &[Matrix; 3], lengths: &[usize]) -> Matrix {
        let mut tape = Tape::evaluating(&Workspace::new());
        let [query, keys, values] = inputs.clone().map(|input| tape.constant(input));
        let segments = Segments::from_lengths(lengths.iter().copied());
        tape.shifted_attention(options, groups, &query, &keys, &values, &segments).value().clone()
    }

    #[test]
    fn equals_a_dense_mask_whatever_the_lengths_and_heads() {
        for ends in [ShiftedEnds::Separate, ShiftedEnds::Joined] {
            for size in [GroupSize::Tokens(2), GroupSize::Tokens(4), GroupSize::Tokens(100), GroupSize::Ratio(0.25)] {
                for lengths in [&[8][..], &[16, 9, 1, 0, 3], &[70]] {
                    for (heads, kv_heads) in [(4, 2), (4, 4), (9, 3), (3, 1), (6, 3), (1, 1)] {
                        let options = Attention { heads, kv_heads, ..OPTIONS };
                        let groups = ShiftedGroups { size, ends };
                        let inputs = inputs(&options, lengths.iter().sum());
                        let found = run(&options, &groups, &inputs, lengths);
                        let expected = dense(&options, &groups, &inputs, lengths);
                        for (found, expected) in found.data().iter().zip(&expected) {
                            let error = (f64::from(*found) - expected).abs();
                            assert!(error < 3e-6, "{found} and {expected}: {groups:?} {lengths:?} {heads}/{kv_heads}");
                        }
                    }
                }
            }
        }
    }

    /// Which outputs, `(row, head)`, change when token `token` of 8 changes.
    fn changed(ends: ShiftedEnds, token: usize) -> Vec<(usize, usize)> {
        let groups = groups(4, ends);
        let before = inputs(&OPTIONS, 8);
        let mut after = before.clone();
        after[1].row_mut(token).fill(0.3);
        after[2].row_mut(token).fill(-0.7);
        let (before, after) = (run(&OPTIONS, &groups, &before, &[8]), run(&OPTIONS, &groups, &after, &[8]));
        let places = (0..8).flat_map(|row| (0..4).map(move |head| (row, head)));
        places.filter(|(row, head)| before.row(*row)[head * 3..][..3] != after.row(*row)[head * 3..][..3]).collect()
    }

    #[test]
    fn no_token_sees_a_later_one_but_in_the_published_variant() {
        for token in 0..8 {
            assert!(changed(ShiftedEnds::Separate, token).iter().all(|(row, _)| *row >= token));
        }
        // Only the first half group, and only in the shifted heads.
        let leaks: Vec<_> = changed(ShiftedEnds::Joined, 7).into_iter().filter(|(row, _)| *row < 7).collect();
        assert_eq!(leaks, [(0, 2), (0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn shifted_heads_carry_one_group_into_the_next() {
        // Token 4 begins the second group; token 3 reaches it in the shifted heads only.
        let reached: Vec<_> = changed(ShiftedEnds::Separate, 3).into_iter().filter(|(row, _)| *row == 4).collect();
        assert_eq!(reached, [(4, 2), (4, 3)]);
    }

    #[test]
    fn one_group_without_a_shift_is_full_attention() {
        let inputs = inputs(&OPTIONS, 7);
        let found = run(&OPTIONS, &groups(8, ShiftedEnds::Separate), &inputs, &[7]);
        let mut tape = Tape::evaluating(&Workspace::new());
        let [query, keys, values] = inputs.map(|input| tape.constant(input));
        let segments = Segments::from_lengths([7]);
        let full = tape.attention(&OPTIONS, &query, &segments, &keys, &values, &segments, None, None);
        for row in 0..7 {
            assert_eq!(found.row(row)[..6], full.value().row(row)[..6]);
        }
    }

    #[test]
    fn gradients() {
        for ends in [ShiftedEnds::Separate, ShiftedEnds::Joined] {
            let options = Attention { heads: 3, kv_heads: 1, ..OPTIONS };
            check(&inputs(&options, 7), |tape, inputs| {
                let segments = Segments::from_lengths([5, 2]);
                let [query, keys, values] = inputs else { unreachable!("there are three inputs") };
                tape.shifted_attention(&options, &groups(2, ends), query, keys, values, &segments)
            });
        }
    }
}
