//! Attention over segments: `softmax(scale·Q·Kᵀ)·V` for each sequence and head, with grouped-query heads, causal and
//! sliding-window visibility, keys from a cache, and prefix rows (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 for
//! grouped queries).
//!
//! A sequence's queries are its last positions: with `Lq` queries and `Lk` keys, query `i` sits at key position
//! `i + Lk − Lq`, so attention over a cache and over the batch's own keys are one thing. Scores exist for a block of
//! queries at a time and are never kept: backward computes them again from the queries, the keys and each row's
//! log-sum-exp (Dao et al. 2022). Keys that no query of a block sees are skipped, not masked.

mod alone;
mod backward;
mod beside;
mod bias;
#[cfg(test)]
mod definition;
mod dropout;
mod forward;
mod page_head;
mod page_rows;
#[cfg(target_arch = "x86_64")]
mod page_tiles;
mod page_vectors;
mod pages;
mod scores;
mod shifted;
mod tiled;

use std::ops::Range;
use std::sync::Arc;

use backward::{AttentionBackward, KeyValues};
use bias::{Bias, KeptBias};
use dropout::{Dropout, Mask};
use forward::attend;
use pages::PagedSequence;

pub(crate) use alone::Alone;
pub(crate) use beside::Beside;
pub use bias::DistanceBias;
pub use page_rows::{KeyValuePages, KeyValuePairs, PageRows};
pub use shifted::{GroupSize, ShiftedEnds, ShiftedGroups};

use crate::{Matrix, Segments, Tape, Var, Workspace};

/// Queries whose scores are computed together.
const BLOCK: usize = 64;

/// Shape and visibility of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`: query head `h` uses head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Factor of the scores, mostly `1/√head_dim`.
    pub scale: f32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// With `Some(w)` a query sees only keys less than `w` positions away, itself included (Hugging Face's
    /// `sliding_window`).
    pub window: Option<usize>,
    /// Probability with which training zeroes a weight (transformers' attention dropout).
    pub dropout: f32,
}

/// Keys and values of one sequence outside the tape, such as in a cache: row-major `[rows, kv_heads·head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct KeyValueRows<'a> {
    /// The keys.
    pub keys: &'a [f32],
    /// The values.
    pub values: &'a [f32],
}

/// More keys and values, which all queries of a sequence see whatever `causal` and `window` say, and which count for no
/// position (prefix tuning, Li and Liang 2021).
#[derive(Clone, Debug)]
pub struct Prefix {
    /// `[rows, kv_heads·head_dim]`.
    pub keys: Var,
    /// `[rows, kv_heads·head_dim]`.
    pub values: Var,
    /// The rows that each sequence sees; they may be empty and may overlap.
    pub ranges: Vec<Range<usize>>,
}

impl Tape {
    /// Attention of `query` `[query tokens, heads·head_dim]` to `keys` and `values` `[key tokens, kv_heads·head_dim]`;
    /// the result is shaped as `query`. Queries of sequence `i` see keys of sequence `i`. For self-attention the two
    /// segments are the same; for cross-attention they differ and `causal` is off. A query that sees no key gets zeros.
    ///
    /// With `P = softmax(scale·Q·Kᵀ)`, `O = P·V`: `dV = Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P∘(dP − Σⱼ P∘dP)`,
    /// `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`; the same for the rows of the prefix, summed over the sequences that see
    /// them. Training may drop weights: then the masked `P` takes its place in `O` and `dV`, and the masked `dP` that of `dP`.
    /// A `bias` is added to the scores; its gradient at a distance is the sum of `dS` at that distance.
    ///
    /// # Panics
    /// If the shapes, segments and ranges disagree.
    #[expect(clippy::too_many_arguments, reason = "queries, keys, values and where their sequences lie")]
    pub fn attention(
        &mut self,
        options: &Attention,
        query: &Var,
        query_segments: &Segments,
        keys: &Var,
        values: &Var,
        key_segments: &Segments,
        prefix: Option<&Prefix>,
        bias: Option<&DistanceBias>,
    ) -> Var {
        assert_eq!(key_segments.total(), keys.rows(), "the key segments cover the keys");
        let own = KeyValues::new(keys, values, key_segments.ranges().collect());
        let prefix = prefix.map(KeyValues::of_prefix);
        let rows = own.rows(options);
        let prefix_rows = prefix.as_ref().map(|prefix| prefix.rows(options));
        let bias = bias.map(KeptBias::new);
        let dropout = Dropout::draw(self, options, query_segments);
        let sequences = Sequence::zip(&rows, prefix_rows.as_deref(), options, bias.as_ref(), dropout.as_ref());
        options.check(query.value(), query_segments, &sequences);
        if self.is_inferring() {
            let output = attend_each(self.workspace(), options, query.value(), query_segments, &sequences, None);
            return self.constant(output);
        }
        let differentiates_bias = bias.as_ref().is_some_and(|bias| bias.node.is_some());
        let tiled = !differentiates_bias && tiled::pays(self.workspace(), query_segments, dropout.is_some());
        let attend = if tiled { tiled::attend } else { attend };
        let (output, lse) = attend(self.workspace(), options, query.value(), query_segments, &sequences);
        let output = Arc::new(output);
        let tiled_output = tiled.then(|| Arc::clone(&output));
        let mut nodes = vec![query.node()];
        nodes.extend(
            [Some(&own), prefix.as_ref()].into_iter().flatten().flat_map(|rows| [rows.key_node, rows.value_node]),
        );
        nodes.extend(bias.as_ref().map(|bias| bias.node));
        self.output(output, &nodes, || AttentionBackward {
            options: *options,
            query: query.shared(),
            query_segments: query_segments.clone(),
            query_node: query.node(),
            own,
            prefix,
            bias,
            dropout,
            tiled_output,
            lse,
        })
    }

    /// The same over keys and values outside the tape, an entry of `rows` a sequence. Nothing is differentiated. What a
    /// sequence gets depends on its own queries and keys alone, and not on what else is in the batch.
    ///
    /// # Panics
    /// If the shapes, segments and ranges disagree, or if an input needs a gradient.
    pub fn attention_over(
        &self,
        options: &Attention,
        query: &Var,
        query_segments: &Segments,
        rows: &[KeyValuePages<'_>],
        prefix: Option<&Prefix>,
        bias: Option<&DistanceBias>,
    ) -> Var {
        let prefixed = [prefix.map(|prefix| &prefix.keys), prefix.map(|prefix| &prefix.values)];
        let inputs = [Some(query), prefixed[0], prefixed[1], bias.map(|bias| &bias.values)];
        let differentiated = inputs.into_iter().flatten().any(Var::needs_gradient);
        assert!(!differentiated, "attention over a cache has no gradient: run it on an evaluating tape");
        let workspace = self.workspace();
        let prefix = prefix.map(KeyValues::of_prefix);
        let prefix_rows = prefix.as_ref().map(|prefix| prefix.rows(options));
        let bias = bias.map(KeptBias::new);
        let few: Vec<bool> = query_segments.ranges().map(|range| range.len() < pages::FEW).collect();
        // Sequences with many queries see their keys and values in one piece.
        let joined: Vec<Option<[Matrix; 2]>> = rows
            .iter()
            .zip(&few)
            .map(|(rows, few)| (!few && !rows.is_one_piece()).then(|| join(workspace, rows, options)))
            .collect();
        let own: Vec<KeyValueRows<'_>> = rows
            .iter()
            .zip(&joined)
            .map(|(rows, joined)| match joined {
                Some([keys, values]) => KeyValueRows { keys: keys.data(), values: values.data() },
                None => match rows.pages.first() {
                    Some(PageRows::Float32(rows)) => *rows,
                    // Where there are few queries, they take the pages as they are.
                    _ => KeyValueRows::NONE,
                },
            })
            .collect();
        let sequences = Sequence::zip(&own, prefix_rows.as_deref(), options, bias.as_ref(), None);
        let paged: Vec<PagedSequence<'_>> = sequences
            .iter()
            .zip(rows)
            .map(|(sequence, own)| PagedSequence { prefix: sequence.prefix, own, bias: sequence.bias })
            .collect();
        check_paged(options, query.value(), query_segments, &paged);
        self.constant(attend_each(workspace, options, query.value(), query_segments, &sequences, Some((&paged, &few))))
    }
}

/// The keys and the values of pages in one piece each.
fn join(workspace: &Workspace, rows: &KeyValuePages<'_>, options: &Attention) -> [Matrix; 2] {
    [true, false].map(|keys| {
        let mut matrix = Matrix::uninitialised(workspace, rows.count(options), options.key_width());
        let mut rest = matrix.data_mut();
        for page in &rows.pages {
            let (piece, after) = rest.split_at_mut(page.count(options) * options.key_width());
            page.read(keys, piece);
            rest = after;
        }
        matrix
    })
}

/// Whether attention of sequences to their own rows goes through tiles as part of a larger operation.
pub(crate) fn goes_through_tiles(workspace: &Workspace, segments: &Segments) -> bool {
    tiled::pays(workspace, segments, false)
}

/// A way to attend: the output and what its backward pass needs of the scores.
type Attend = fn(&Workspace, &Attention, &Matrix, &Segments, &[Sequence<'_>]) -> (Matrix, Matrix);

/// The output for every sequence by the way that its number of queries asks for, whatever the others' numbers: those that
/// are `few` by pages, many in bf16 through tiles, the rest plainly.
fn attend_each(
    workspace: &Workspace,
    options: &Attention,
    query: &Matrix,
    segments: &Segments,
    sequences: &[Sequence<'_>],
    paged: Option<(&[PagedSequence<'_>], &[bool])>,
) -> Matrix {
    let tiles: Vec<bool> = segments.ranges().map(|range| tiled::pays_for(workspace, range.len(), 1)).collect();
    let is_few = |number: usize| paged.is_some_and(|(_, few)| few[number]);
    let ways = [
        (0..segments.len()).map(|number| !is_few(number) && tiles[number]).collect::<Vec<bool>>(),
        (0..segments.len()).map(|number| !is_few(number) && !tiles[number]).collect(),
    ];
    let attends: [Attend; 2] = [tiled::attend, attend];
    let mut output = None;
    for (chosen, attend) in ways.iter().zip(attends) {
        if !chosen.contains(&true) {
            continue;
        }
        if !chosen.contains(&false) {
            return attend(workspace, options, query, segments, sequences).0;
        }
        let numbers: Vec<usize> = (0..chosen.len()).filter(|number| chosen[*number]).collect();
        let part = Segments::from_lengths(numbers.iter().map(|number| segments.length(*number)));
        let cols = query.cols();
        let floats = |number: &usize| segments.range(*number).start * cols..segments.range(*number).end * cols;
        let mut queries = Matrix::uninitialised(workspace, part.total(), cols);
        for (number, range) in numbers.iter().zip(part.ranges()) {
            let target = &mut queries.data_mut()[range.start * cols..range.end * cols];
            target.copy_from_slice(&query.data()[floats(number)]);
        }
        let those: Vec<Sequence<'_>> = numbers.iter().map(|number| sequences[*number]).collect();
        let (found, _) = attend(workspace, options, &queries, &part, &those);
        let whole = output.get_or_insert_with(|| Matrix::uninitialised(workspace, query.rows(), cols));
        for (number, range) in numbers.iter().zip(part.ranges()) {
            whole.data_mut()[floats(number)].copy_from_slice(&found.data()[range.start * cols..range.end * cols]);
        }
    }
    let mut output = output.unwrap_or_else(|| Matrix::uninitialised(workspace, query.rows(), query.cols()));
    if let Some((paged, few)) = paged {
        pages::attend(workspace, options, query.data(), output.data_mut(), segments, paged, few);
    }
    output
}

impl Attention {
    /// Width of keys and values.
    fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a head of keys and values.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The keys, of `keys`, that a query at key position `position` sees. Neither end falls as the position grows.
    fn visible(&self, position: isize, keys: usize) -> Range<usize> {
        let clamp = |key: isize| usize::try_from(key).unwrap_or(0).min(keys);
        let after = position.saturating_add(1);
        let start = self.window.map_or(0, |window| clamp(after.saturating_sub_unsigned(window)));
        let end = match self.window {
            _ if self.causal => clamp(after),
            Some(window) => clamp(position.saturating_add_unsigned(window)),
            None => keys,
        };
        start..end.max(start)
    }

    /// Panics unless queries, segments and rows fit.
    fn check(&self, query: &Matrix, query_segments: &Segments, sequences: &[Sequence<'_>]) {
        let seen = sequences.iter().map(|sequence| {
            let rows = [sequence.own, sequence.prefix].map(PageRows::Float32).to_vec();
            Seen { rows, own: sequence.own.count(self), prefix: sequence.prefix.count(self), bias: sequence.bias }
        });
        self.check_seen(query, query_segments, &seen.collect::<Vec<_>>());
    }

    fn check_seen(&self, query: &Matrix, query_segments: &Segments, sequences: &[Seen<'_>]) {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        assert!(kv_heads > 0 && head_dim > 0, "attention has heads and features");
        assert!(heads.is_multiple_of(kv_heads), "{heads} query heads cannot share {kv_heads} heads");
        assert_eq!(query.cols(), heads * head_dim, "queries are heads·head_dim wide");
        assert_eq!(query_segments.total(), query.rows(), "the query segments cover the queries");
        assert_eq!(query_segments.len(), sequences.len(), "every sequence has queries and keys");
        for (sequence, range) in sequences.iter().zip(query_segments.ranges()) {
            let Some(bias) = sequence.bias.filter(|_| !range.is_empty() && sequence.own + sequence.prefix > 0) else {
                continue;
            };
            let first = sequence.own as isize - range.len() as isize;
            let nearest = -(sequence.prefix as isize) - (first + range.len() as isize - 1);
            let furthest = sequence.own as isize - 1 - first;
            bias.column(nearest);
            let reaches = bias.column(furthest) < bias.values.cols() && bias.first + heads <= bias.values.rows();
            assert!(reaches, "the bias reaches as far as the keys lie from the queries, for every head");
        }
        for rows in sequences.iter().flat_map(|sequence| &sequence.rows) {
            let fits = rows.fits(self.key_width());
            assert!(fits, "keys are kv_heads·head_dim wide, and each row of them has its row of values");
            let suits = matches!(rows, PageRows::Float32(_)) || KeyValuePairs::suit(head_dim);
            assert!(suits, "keys in pairs are whole chunks of features");
        }
    }
}

/// What is checked of a sequence.
struct Seen<'a> {
    rows: Vec<PageRows<'a>>,
    own: usize,
    prefix: usize,
    bias: Option<Bias<'a>>,
}

/// Panics unless queries, segments and pages fit.
fn check_paged(options: &Attention, query: &Matrix, segments: &Segments, sequences: &[PagedSequence<'_>]) {
    let seen = sequences.iter().map(|sequence| {
        let rows = sequence.own.pages.iter().copied().chain([PageRows::Float32(sequence.prefix)]).collect();
        let (own, prefix) = (sequence.own.count(options), sequence.prefix.count(options));
        Seen { rows, own, prefix, bias: sequence.bias }
    });
    options.check_seen(query, segments, &seen.collect::<Vec<_>>());
}

impl KeyValueRows<'_> {
    /// None.
    const NONE: Self = Self { keys: &[], values: &[] };

    /// How many rows.
    fn count(&self, options: &Attention) -> usize {
        self.keys.len() / options.key_width()
    }
}

/// All that the queries of one sequence may see.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    prefix: KeyValueRows<'a>,
    own: KeyValueRows<'a>,
    /// What is added to the scores.
    bias: Option<Bias<'a>>,
    /// What training drops.
    dropout: Option<Mask>,
}

impl<'a> Sequence<'a> {
    fn zip(
        own: &[KeyValueRows<'a>],
        prefix: Option<&[KeyValueRows<'a>]>,
        options: &Attention,
        bias: Option<&'a KeptBias>,
        dropout: Option<&Dropout>,
    ) -> Vec<Self> {
        assert!(prefix.is_none_or(|prefix| prefix.len() == own.len()), "every sequence has its range of the prefix");
        let sequences = own.iter().enumerate();
        let sequences = sequences.map(|(number, own)| Self {
            prefix: prefix.map_or(KeyValueRows::NONE, |rows| rows[number]),
            own: *own,
            bias: bias.map(|bias| bias.of(number, options.heads)),
            dropout: dropout.map(|dropout| dropout.of(number, own.count(options), options)),
        });
        sequences.collect()
    }

    /// How many rows, with those of the prefix.
    fn rows(&self, options: &Attention) -> usize {
        self.prefix.count(options) + self.own.count(options)
    }

    /// The position among its own keys of the first of `queries` queries.
    fn first_position(&self, options: &Attention, queries: usize) -> isize {
        self.own.count(options) as isize - queries as isize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::definition::{Case, dirty_workspace, widen};
    use super::*;
    use crate::Workspace;

    /// Largest difference from the definition: scores and outputs are of the order of 1.
    const TOLERANCE: f64 = 3e-6;

    #[track_caller]
    fn check(case: &Case) {
        let inputs = case.inputs();
        let output = case.output(&dirty_workspace(), &inputs);
        let expected = case.definition(&widen(&inputs));
        for (place, (value, expected)) in output.data().iter().zip(&expected).enumerate() {
            let error = (f64::from(*value) - expected).abs();
            assert!(error <= TOLERANCE, "value {place} is {value}, by the definition {expected}: {case:?}");
        }
    }

    #[test]
    fn causal_sequences() {
        check(&Case::causal(&[5, 1, 9]));
    }

    #[test]
    fn lengths_around_the_block() {
        for length in [63, 64, 65, 127, 128, 129, 130, 193] {
            check(&Case::causal(&[length]));
            check(&Case::bidirectional(&[length], &[length]));
            check(&Case::causal(&[length]).window(70));
        }
    }

    #[test]
    fn every_key_of_the_sequence_without_causality() {
        check(&Case::bidirectional(&[4, 7], &[4, 7]));
    }

    #[test]
    fn cross_attention_to_sequences_of_other_lengths() {
        check(&Case::bidirectional(&[3, 70, 1], &[11, 2, 80]));
    }

    #[test]
    fn one_head_of_keys_for_each_or_for_all_heads() {
        check(&Case::causal(&[6, 66]).heads(6, 6));
        check(&Case::causal(&[6, 66]).heads(6, 3));
        check(&Case::causal(&[6, 65]).heads(6, 1));
        check(&Case::bidirectional(&[1], &[7]).heads(80, 1));
    }

    #[test]
    fn windows() {
        for window in [1, 3, 64, 65, 1000, usize::MAX] {
            check(&Case::causal(&[5, 140]).window(window));
            check(&Case::bidirectional(&[5, 140], &[5, 140]).window(window));
        }
    }

    #[test]
    fn prefixes() {
        check(&Case::causal(&[5, 3]).prefix(&[0..4, 0..4]));
        check(&Case::causal(&[5, 3, 66, 2]).prefix(&[0..4, 4..4, 2..9, 9..10]));
        check(&Case::causal(&[100, 2]).window(3).prefix(&[1..3, 0..2]));
        check(&Case::bidirectional(&[5, 1], &[2, 9]).prefix(&[0..4, 3..6]));
    }

    #[test]
    fn sequences_without_rows() {
        check(&Case::causal(&[0, 3, 0, 2, 0]));
        check(&Case::causal(&[]));
        check(&Case::causal(&[0]));
        check(&Case::bidirectional(&[0, 3], &[4, 2]));
    }

    #[test]
    fn a_query_that_sees_no_key_gets_zeros() {
        let mut none = Case::bidirectional(&[2, 1, 3], &[0, 0, 4]);
        check(&none);
        let output = none.output(&dirty_workspace(), &none.inputs());
        assert!(output.data()[..3 * output.cols()].iter().all(|value| *value == 0.0));
        check(&none.clone().prefix(&[0..2, 0..0, 0..0]));
        none.options.causal = true;
        none.queries = vec![70, 9, 1];
        none.keys = vec![3, 0, 0];
        check(&none);
        check(&none.window(2));
        check(&Case::causal(&[3]).window(0));
        check(&Case::bidirectional(&[3], &[90]).window(2));
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let mut case = Case::causal(&[70]);
        case.options.scale = 60.0;
        let output = case.output(&Workspace::new(), &case.inputs());
        assert!(output.data().iter().all(|value| value.is_finite()));
    }

    #[test]
    fn not_a_number_shows() {
        let case = Case::causal(&[20]);
        let mut inputs = case.inputs();
        inputs[1].row_mut(7)[0] = f32::NAN;
        let output = case.output(&Workspace::new(), &inputs);
        assert!(output.row(6).iter().all(|value| value.is_finite()));
        assert!((7..20).all(|row| output.row(row)[0].is_nan()));
    }

    /// The last rows over a cache that holds all keys equal those rows of the whole.
    #[test]
    fn attention_over_a_cache_is_the_tail_of_the_whole() {
        let ranges = [0..3, 1..4];
        let cases = [
            Case::causal(&[9, 140]),
            Case::causal(&[9, 140]).window(4),
            Case::causal(&[9, 140]).heads(4, 4).prefix(&ranges),
            Case::causal(&[9, 140]).prefix(&ranges).window(4),
        ];
        for case in &cases {
            let inputs = case.inputs();
            let workspace = dirty_workspace();
            let whole = case.output(&workspace, &inputs);
            for queries in [[1, 1], [4, 1], [0, 70]] {
                let kept: Vec<usize> = (9 - queries[0]..9).chain(149 - queries[1]..149).collect();
                let tail: Vec<f32> = kept.iter().flat_map(|row| inputs[0].row(*row)).copied().collect();
                let [_, keys, values, prefix_keys, prefix_values] = &inputs;
                let rows = [0..9, 9..149].map(|range: Range<usize>| {
                    let floats = range.start * keys.cols()..range.end * keys.cols();
                    KeyValuePages::from(KeyValueRows {
                        keys: &keys.data()[floats.clone()],
                        values: &values.data()[floats],
                    })
                });
                let tape = Tape::evaluating(&workspace);
                let prefix = Prefix {
                    keys: tape.constant(prefix_keys.clone()),
                    values: tape.constant(prefix_values.clone()),
                    ranges: case.prefix.clone(),
                };
                let prefix = if case.prefix.is_empty() { None } else { Some(&prefix) };
                let query = tape.constant(Matrix::from_vec(kept.len(), inputs[0].cols(), tail));
                let output =
                    tape.attention_over(&case.options, &query, &Segments::from_lengths(queries), &rows, prefix, None);
                for (row, whole_row) in kept.iter().enumerate() {
                    for (value, expected) in output.value().row(row).iter().zip(whole.row(*whole_row)) {
                        assert!(
                            (value - expected).abs() <= 1e-6,
                            "query {whole_row}: {value} and {expected}: {case:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "run it on an evaluating tape")]
    fn attention_over_a_cache_refuses_what_needs_a_gradient() {
        let case = Case::causal(&[1]);
        let [query, keys, values, ..] = case.inputs();
        let mut tape = Tape::differentiating(&Workspace::new());
        let query = tape.parameter(&crate::Parameter::new("query", query));
        let rows = [KeyValueRows { keys: keys.data(), values: values.data() }.into()];
        tape.attention_over(&case.options, &query, &Segments::from_lengths([1]), &rows, None, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_definition(
            lengths in prop::collection::vec((0usize..6, 0usize..6, 0usize..4, 0usize..4), 0..4),
            (group, kv_heads, head_dim) in (1usize..4, 1usize..4, 1usize..20),
            causal: bool,
            window in prop::option::of(0usize..7),
            prefixed: bool,
        ) {
            let options =
                Attention { heads: group * kv_heads, kv_heads, head_dim, scale: 0.3, causal, window, dropout: 0.0 };
            let prefix = lengths.iter().map(|(_, _, start, rows)| *start..start + rows);
            let prefix = prefix.filter(|_| prefixed).collect();
            let queries = lengths.iter().map(|(queries, ..)| *queries).collect();
            let keys = lengths.iter().map(|(_, keys, ..)| *keys).collect();
            check(&Case { options, queries, keys, prefix });
        }
    }
}
