//! Attention in bf16: tiles of packed queries, keys and values, scores of a block of queries and a block of keys at a
//! time, and the softmax's sums carried from block to block (Dao et al. 2022), so that what a block needs stays in the
//! second-level cache whatever the length. Scores are to base 2, `log₂e·scale·Q·Kᵀ`, and so are log-sum-exps. Query heads that share a head of keys stand one under the other in one
//! product, so keys are never repeated. Scores, sums and outputs are float32; weights and their gradients are rounded to
//! bf16 where they enter a product.

mod backward;
mod forward;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod softmax_avx512;

use std::f32::consts::LOG2_E;
use std::ops::Range;

use rayon::prelude::*;

pub(super) use backward::{Inputs, Sums, differentiate};
pub(super) use forward::{attend, attend_alone};

use super::{Attention, Bias, KeyValueRows, Mask, Sequence};
use crate::kernels::View;
use crate::kernels::bf16::{DEPTH, LANES, PackedColumns};
use crate::random::RowMask;
use crate::{Precision, Segments, Workspace};
use softmax::Dropped;

/// Keys whose scores are computed together, a multiple of [`DEPTH`].
const KEYS: usize = 256;
/// Rows (queries times the heads that share their keys) that a block should have at most.
const ROWS: usize = 256;

/// Whether an attention goes through tiles: in bf16, where there are queries to fill them. Masks make short sequences cost more than
/// what tiles save.
pub(super) fn pays(workspace: &Workspace, segments: &Segments, drops: bool) -> bool {
    let fewest = match (drops, workspace.kernels().unit().has_avx512()) {
        (false, _) => 0,
        (true, true) => 24,
        (true, false) => 64,
    };
    segments.total() >= fewest * segments.len() && pays_for(workspace, segments.total(), segments.len())
}

/// The same for so many queries of so many sequences.
pub(super) fn pays_for(workspace: &Workspace, queries: usize, sequences: usize) -> bool {
    workspace.kernels().precision() == Precision::Bf16 && queries >= 8 * sequences.max(1)
}

/// Keys or values of one head of one sequence, prefix and own apart, in one order of tiles.
struct PackedSide {
    parts: [PackedColumns; 2],
}

/// What the columns of a packed side are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Rows of the keys or values: for products that sum over a head's features.
    Row,
    /// Features: for products that sum over rows.
    Feature,
}

impl PackedSide {
    fn pack(workspace: &Workspace, options: &Attention, rows: [&[f32]; 2], kv_head: usize, by: By) -> Self {
        let width = options.key_width();
        let parts = rows.map(|data| {
            let start = (kv_head * options.head_dim).min(data.len());
            let view = View::rows_of(&data[start..], data.len() / width, options.head_dim, width);
            PackedColumns::pack(workspace, if by == By::Row { view.transposed() } else { view })
        });
        Self { parts }
    }

    /// All heads of all sequences, by sequence, then by head.
    fn pack_all<'a>(
        workspace: &Workspace,
        options: &Attention,
        sequences: &[Sequence<'a>],
        side: impl Fn(KeyValueRows<'a>) -> &'a [f32] + Sync,
        by: By,
    ) -> Vec<Self> {
        let tasks = (0..sequences.len() * options.kv_heads).into_par_iter();
        let pack = |task: usize| {
            let Sequence { prefix, own, .. } = sequences[task / options.kv_heads];
            Self::pack(workspace, options, [side(prefix), side(own)], task % options.kv_heads, by)
        };
        tasks.map(pack).collect()
    }
}

/// Some rows of a sequence's prefix (part 0) or of its own keys (part 1).
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyBlock {
    part: usize,
    /// Begins at a multiple of [`DEPTH`].
    keys: Range<usize>,
}

/// Consecutive queries of one sequence.
#[derive(Clone, Copy)]
struct QueryBlock {
    /// The first query's position among the keys.
    position: isize,
    queries: usize,
    /// Rows of the prefix and of the own keys.
    counts: [usize; 2],
}

impl QueryBlock {
    /// How many queries a block should have.
    fn size(options: &Attention) -> usize {
        (ROWS / options.group() / DEPTH * DEPTH).clamp(DEPTH, 2 * DEPTH)
    }

    /// Rows that each head takes: full tiles.
    fn height(&self) -> usize {
        self.queries.next_multiple_of(DEPTH)
    }

    /// The blocks of keys that any of the queries sees.
    fn key_blocks(&self, options: &Attention) -> Vec<KeyBlock> {
        let [prefix, own] = self.counts;
        let first = options.visible(self.position, own);
        let last = options.visible(self.position.saturating_add_unsigned(self.queries.saturating_sub(1)), own);
        let seen = first.start / DEPTH * DEPTH..last.end;
        let blocks = [(0, 0..prefix), (1, seen)].into_iter().flat_map(|(part, range)| {
            let end = range.end;
            range.step_by(KEYS).map(move |start| KeyBlock { part, keys: start..end.min(start + KEYS) })
        });
        blocks.collect()
    }

    /// The columns of `block` that query number `query` sees; none for rows that only fill a tile.
    fn visible(&self, options: &Attention, query: usize, block: &KeyBlock) -> Range<usize> {
        if query >= self.queries {
            return 0..0;
        }
        let keys = &block.keys;
        if block.part == 0 {
            return 0..keys.len();
        }
        let seen = options.visible(self.position.saturating_add_unsigned(query), self.counts[1]);
        let start = seen.start.clamp(keys.start, keys.end) - keys.start;
        start..(seen.end.clamp(keys.start, keys.end) - keys.start).max(start)
    }
}

/// The masks of a block's rows, one for each of its queries and heads; none without dropout.
fn row_masks(options: &Attention, dropout: Option<Mask>, queries: &QueryBlock, kv_head: usize) -> Vec<RowMask> {
    let Some(mask) = dropout else { return Vec::new() };
    let (group, height) = (options.group(), queries.height());
    let row = |row: usize| {
        mask.of_row(queries.position.saturating_add_unsigned(row % height), kv_head * group + row / height)
    };
    (0..group * height).map(row).collect()
}

/// The same for a block of keys.
fn dropped<'a>(
    dropout: Option<Mask>,
    rows: &'a [RowMask],
    queries: &QueryBlock,
    keys: &KeyBlock,
) -> Option<Dropped<'a>> {
    let before = if keys.part == 0 { 0 } else { queries.counts[0] };
    dropout.map(|mask| Dropped { rows, first: (before + keys.keys.start) as u32, scale: mask.scale() })
}

/// Adds the bias to what each row of `scores`, rows `stride` apart, sees of `block`.
fn add_bias(
    options: &Attention,
    bias: Bias<'_>,
    queries: &QueryBlock,
    block: &KeyBlock,
    kv_head: usize,
    visible: &[Range<usize>],
    (scores, stride): (&mut [f32], usize),
) {
    let before = if block.part == 0 { queries.counts[0] } else { 0 };
    let first = block.keys.start as isize - before as isize - queries.position;
    for (row, (visible, scores)) in visible.iter().zip(scores.chunks_exact_mut(stride.max(1))).enumerate() {
        let (member, query) = (row / queries.height(), row % queries.height());
        if !visible.is_empty() {
            let distance = first + visible.start as isize - query as isize;
            let values = bias.row(kv_head * options.group() + member, distance, visible.len());
            scores[visible.clone()].iter_mut().zip(values).for_each(|(score, value)| *score += value * LOG2_E);
        }
    }
}

/// The width of a row of a head's features that has room for full tiles.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// The heads of one group in `data` `[queries, heads · head_dim]`, which begins with the block's first query.
fn head_views<'a>(options: &Attention, kv_head: usize, queries: usize, data: &'a [f32]) -> Vec<View<'a>> {
    let Attention { heads, head_dim, .. } = *options;
    let group = options.group();
    let view = |head: usize| View::rows_of(&data[head * head_dim..], queries, head_dim, heads * head_dim);
    (kv_head * group..(kv_head + 1) * group).map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Case, dirty_workspace};
    use crate::ops::finite_differences::random;
    use crate::{Kernels, Matrix, Workspace};

    /// The same buffers, full of stale values, computing with `kernels`.
    fn dirty(kernels: Kernels) -> Workspace {
        dirty_workspace().computing_with(kernels)
    }

    /// Largest difference, relative to the largest value or to 1.
    fn difference(a: &Matrix, b: &Matrix) -> f32 {
        let largest = b.data().iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
        let pairs = a.data().iter().zip(b.data());
        let worst = pairs
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, |worst, error| if error.is_nan() { f32::INFINITY } else { worst.max(error) });
        worst / largest
    }

    /// Checks output and gradients of the tiles against those of float32: bf16 keeps 8 bits, so an operand is off by up
    /// to 0.4 %, and errors of some hundred terms mostly cancel.
    #[track_caller]
    fn check(case: &Case) {
        check_within(case, 0.03);
    }

    #[track_caller]
    fn check_within(case: &Case, tolerance: f32) {
        let inputs = case.inputs();
        let (float32, weighting) = (Workspace::new(), random(inputs[0].rows(), inputs[0].cols(), 99));
        let output = case.output(&float32, &inputs);
        let gradients = case.gradients(&float32, &inputs, [true; 5], &weighting);
        let units = [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())];
        for kernels in units.into_iter().flatten() {
            let workspace = dirty(kernels);
            assert!(difference(&case.output(&workspace, &inputs), &output) < 0.02, "{kernels:?}: {case:?}");
            let found = case.gradients(&workspace, &inputs, [true; 5], &weighting);
            for (input, (found, expected)) in found.iter().zip(&gradients).enumerate() {
                let (Some(found), Some(expected)) = (found, expected) else {
                    assert_eq!(found, expected);
                    continue;
                };
                let difference = difference(found, expected);
                assert!(difference < tolerance, "{kernels:?}: input {input} is off by {difference}: {case:?}");
            }
        }
    }

    #[test]
    fn equals_float32_on_sequences_around_the_tiles() {
        for length in [8, 31, 32, 33, 64, 65, 130] {
            check(&Case::causal(&[length, 9]));
        }
        check(&Case::causal(&[700]));
        check(&Case::bidirectional(&[40, 70], &[300, 17]));
        check(&Case::bidirectional(&[65], &[130]));
    }

    #[test]
    fn equals_float32_with_any_grouping_of_heads() {
        check(&Case::causal(&[50, 70]).heads(3, 3));
        check(&Case::causal(&[50, 70]).heads(9, 3));
        check(&Case::causal(&[40]).heads(12, 1));
    }

    #[test]
    fn equals_float32_within_windows() {
        for window in [1, 3, 40, 300] {
            check(&Case::causal(&[90, 310]).window(window));
            check(&Case::bidirectional(&[90], &[90]).window(window));
        }
    }

    #[test]
    fn equals_float32_with_prefixes_and_where_nothing_is_seen() {
        check(&Case::causal(&[40, 33]).prefix(&[0..5, 3..40]));
        check(&Case::causal(&[40, 33]).window(4).prefix(&[0..5, 5..5]));
        // A query that sees one row has no gradient at all: what is left is rounding.
        check_within(&Case::bidirectional(&[40, 20], &[0, 20]).prefix(&[0..1, 0..0]), 0.06);
        check(&Case::bidirectional(&[40, 20], &[0, 20]));
    }

    #[test]
    fn each_input_gets_its_gradient_with_or_without_the_others() {
        let case = Case::causal(&[40, 66]).prefix(&[0..2, 1..3]);
        let inputs = case.inputs();
        let weighting = random(inputs[0].rows(), inputs[0].cols(), 99);
        let workspace = dirty(Kernels::bf16_in_float32());
        let all = case.gradients(&workspace, &inputs, [true; 5], &weighting);
        for wanted in 0..5 {
            let only = std::array::from_fn(|input| input == wanted);
            let one = case.gradients(&workspace, &inputs, only, &weighting);
            for input in 0..5 {
                assert_eq!(one[input], if input == wanted { all[input].clone() } else { None }, "input {input}");
            }
        }
    }
}
