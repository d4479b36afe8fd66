//! Attention of a few queries to keys and values that lie in pieces, as in the pages of a cache: what generation does at
//! every step. Everything is float32; a query's result depends on its own sequence alone.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::scores::{exponentials, largest};
use super::{Attention, Bias, KeyValueRows};
use crate::kernels::{LINE, chunks_in_turn, prefetch_for_later};
use crate::{Segments, Workspace};

/// Sequences with fewer queries than this in a batch take the way of this file, whatever else is in the batch.
pub(super) const FEW: usize = 8;

/// Keys and values of one sequence outside the tape, in pieces that follow one another.
#[derive(Clone, Debug, Default)]
pub struct KeyValuePages<'a> {
    /// The pieces, in order; each holds whole rows.
    pub pages: Vec<KeyValueRows<'a>>,
}

impl<'a> From<KeyValueRows<'a>> for KeyValuePages<'a> {
    fn from(rows: KeyValueRows<'a>) -> Self {
        Self { pages: vec![rows] }
    }
}

impl KeyValuePages<'_> {
    /// How many rows.
    pub(super) fn count(&self, options: &Attention) -> usize {
        self.pages.iter().map(|page| page.count(options)).sum()
    }
}

/// All that the queries of one sequence may see.
pub(super) struct PagedSequence<'a> {
    pub(super) prefix: KeyValueRows<'a>,
    pub(super) own: &'a KeyValuePages<'a>,
    pub(super) bias: Option<Bias<'a>>,
}

/// A run of columns of the scores: rows of one piece.
struct Part<'a> {
    rows: KeyValueRows<'a>,
    range: Range<usize>,
    /// How far the first of them lies behind the query.
    distance: isize,
}

/// Writes the outputs of the queries of `sequences` that `chosen` names to `output`, both laid out as `segments` says.
pub(super) fn attend(
    workspace: &Workspace,
    options: &Attention,
    query: &[f32],
    output: &mut [f32],
    segments: &Segments,
    sequences: &[PagedSequence<'_>],
    chosen: &[bool],
) {
    let width = options.heads * options.head_dim;
    let mut tasks = Vec::new();
    let mut rest = output;
    for ((range, sequence), chosen) in segments.ranges().zip(sequences).zip(chosen) {
        let (own, after) = rest.split_at_mut(range.len() * width);
        rest = after;
        if *chosen {
            let query = &query[range.start * width..range.end * width];
            tasks.push(Task { sequence, heads: 0..options.heads, query, output: own });
        }
    }
    let pieces = PIECES * rayon::current_num_threads();
    if tasks.len() < pieces && rayon::current_num_threads() > 1 {
        tasks = tasks.into_iter().flat_map(|task| task.by_heads(options)).collect();
    }
    // Sequences of a task follow one another: while one is worked on, the next one's keys and values are fetched.
    let piece = tasks.len().div_ceil(pieces).max(1);
    chunks_in_turn(&mut tasks, piece, |_, tasks| {
        let order: Vec<(&PagedSequence<'_>, usize)> =
            tasks.iter().map(|task| (task.sequence, task.heads.start)).collect();
        for (number, task) in tasks.iter_mut().enumerate() {
            let next = order.get(number + 1).filter(|(_, first_head)| *first_head == 0);
            task.run(workspace, options, next.map(|(sequence, _)| *sequence));
        }
    });
}

/// Queries of some heads of one sequence, and their outputs.
struct Task<'a> {
    sequence: &'a PagedSequence<'a>,
    heads: Range<usize>,
    query: &'a [f32],
    output: &'a mut [f32],
}

impl<'a> Task<'a> {
    /// A task for each head, where there is a single query; their outputs lie side by side.
    fn by_heads(self, options: &Attention) -> Vec<Self> {
        let Self { sequence, heads, query, output } = self;
        if query.len() > heads.len() * options.head_dim {
            return vec![Self { sequence, heads, query, output }];
        }
        let parts = query.chunks_exact(options.head_dim).zip(output.chunks_exact_mut(options.head_dim));
        parts
            .zip(heads)
            .map(|((query, output), head)| Self { sequence, heads: head..head + 1, query, output })
            .collect()
    }

    /// Computes the outputs, while the keys and values of `next` are fetched.
    fn run(&mut self, workspace: &Workspace, options: &Attention, next: Option<&PagedSequence<'_>>) {
        let Self { sequence, ref heads, query, ref mut output } = *self;
        let (group, size) = (options.group(), options.head_dim);
        let width = heads.len() * size;
        let count = sequence.own.count(options);
        let queries = query.len() / width;
        let columns = sequence.prefix.count(options) + count;
        let mut scores = workspace.take(group.min(heads.len()) * columns);
        let mut next = Fetching::of(next, columns * heads.len() * queries);
        for (number, (query, output)) in query.chunks_exact(width).zip(output.chunks_exact_mut(width)).enumerate() {
            let position = count as isize - queries as isize + number as isize;
            let parts = parts(options, sequence, position, count);
            let members = query.chunks(group * size).zip(output.chunks_mut(group * size));
            for (place, (query, output)) in members.enumerate() {
                let first_head = heads.start + place * group;
                head(options, &parts, sequence.bias, (query, output), first_head, (&mut scores, &mut next));
            }
        }
    }
}

/// Pieces that the sequences of a thread are cut into, so that threads end together.
const PIECES: usize = 2;

/// Keys and values on their way into the second-level cache, a little at a time: memory is busy then while something is
/// computed, and both take as long as the longer of them.
struct Fetching<'a> {
    pages: &'a [KeyValueRows<'a>],
    /// Bytes of the first page's keys, and then of its values, that have been fetched.
    done: usize,
    /// Bytes that are left, at the most.
    left: usize,
    /// Bytes that are fetched at one time.
    step: usize,
}

/// Scores between two times that something is fetched.
const SCORES: usize = 8;

impl<'a> Fetching<'a> {
    /// All of a sequence's own pages, while `scores` scores are computed.
    fn of(sequence: Option<&PagedSequence<'a>>, scores: usize) -> Self {
        /// Half of a second-level cache.
        const MOST: usize = 1 << 20;
        let pages = sequence.map_or(&[][..], |sequence| &sequence.own.pages);
        let bytes: usize = pages.iter().map(|page| 2 * size_of_val(page.keys)).sum();
        let left = bytes.min(MOST);
        Self { pages, done: 0, left, step: (left / (scores / SCORES).max(1)).next_multiple_of(LINE) }
    }

    /// Fetches the next few lines.
    #[inline(always)]
    fn fetch(&mut self) {
        let Some((page, after)) = self.pages.split_first().filter(|_| self.left > 0) else { return };
        let keys = size_of_val(page.keys);
        let (side, start) = if self.done < keys { (page.keys, self.done) } else { (page.values, self.done - keys) };
        let end = keys.min(start + self.step);
        prefetch_for_later(side, start..end);
        self.done += end - start;
        self.left = self.left.saturating_sub(end - start);
        if self.done == 2 * keys {
            (self.pages, self.done) = (after, 0);
        }
    }
}

/// The keys that the query at `position` sees.
fn parts<'a>(options: &Attention, sequence: &PagedSequence<'a>, position: isize, count: usize) -> Vec<Part<'a>> {
    let visible = options.visible(position, count);
    let prefixed = sequence.prefix.count(options);
    let mut parts = Vec::with_capacity(1 + sequence.own.pages.len());
    if prefixed > 0 {
        let distance = -(prefixed as isize) - position;
        parts.push(Part { rows: sequence.prefix, range: 0..prefixed, distance });
    }
    let mut start = 0;
    for page in &sequence.own.pages {
        let rows = page.count(options);
        let range = visible.start.clamp(start, start + rows) - start..visible.end.clamp(start, start + rows) - start;
        if !range.is_empty() {
            let distance = (start + range.start) as isize - position;
            parts.push(Part { rows: *page, range, distance });
        }
        start += rows;
    }
    parts
}

/// Query heads, from `first_head` on, that share one head of keys and values.
fn head(
    options: &Attention,
    parts: &[Part<'_>],
    bias: Option<Bias<'_>>,
    (query, output): (&[f32], &mut [f32]),
    first_head: usize,
    (scores, next): (&mut [f32], &mut Fetching<'_>),
) {
    let columns: usize = parts.iter().map(|part| part.range.len()).sum();
    if columns == 0 {
        output.fill(0.0);
        return;
    }
    let scores = &mut scores[..query.len() / options.head_dim * columns];
    Arch::new().dispatch(Head { options, parts, bias, first_head, columns, query, output, scores, next });
}

/// The work of [`head`]. In vectors by name: loops over lanes were compiled into pairs of floats here.
struct Head<'a, 'n> {
    options: &'a Attention,
    parts: &'a [Part<'a>],
    bias: Option<Bias<'a>>,
    first_head: usize,
    /// Keys that the queries see.
    columns: usize,
    query: &'a [f32],
    output: &'a mut [f32],
    scores: &'a mut [f32],
    next: &'a mut Fetching<'n>,
}

impl WithSimd for Head<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { options, parts, bias, first_head, columns, query, output, scores, next } = self;
        let (kv_head, size) = (first_head / options.group(), options.head_dim);
        for (member, (query, scores)) in query.chunks_exact(size).zip(scores.chunks_exact_mut(columns)).enumerate() {
            let mut column = 0;
            for part in parts {
                let scores = &mut scores[column..column + part.range.len()];
                let keys = part.rows.head_rows(options, part.rows.keys, kv_head, &part.range);
                // Loops, not closures: what a closure does may be compiled apart, without this processor's vectors.
                for (number, (score, key)) in scores.iter_mut().zip(keys).enumerate() {
                    if number.is_multiple_of(SCORES) {
                        next.fetch();
                    }
                    *score = options.scale * dot(simd, query, key);
                }
                if let Some(bias) = bias {
                    let values = bias.row(first_head + member, part.distance, scores.len());
                    scores.iter_mut().zip(values).for_each(|(score, value)| *score += value);
                }
                column += part.range.len();
            }
        }
        for (scores, output) in scores.chunks_exact_mut(columns).zip(output.chunks_exact_mut(size)) {
            let max = largest(scores);
            let sum = exponentials(scores, max);
            weigh(simd, options, parts, scores, kv_head, 1.0 / sum, output);
        }
    }
}

/// Vectors of a head's features whose sums are in registers together.
const TOGETHER: usize = 4;

/// `factor · Σ weight · value`, with the sums in registers.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    options: &Attention,
    parts: &[Part<'_>],
    weights: &[f32],
    kv_head: usize,
    factor: f32,
    output: &mut [f32],
) {
    let wide = TOGETHER * S::F32_LANES;
    let factor = simd.splat_f32s(factor);
    let zero = simd.splat_f32s(0.0);
    for (block, output) in output.chunks_mut(wide).enumerate() {
        let features = block * wide..block * wide + output.len();
        if output.len() == wide {
            let mut sums = [zero; TOGETHER];
            let mut column = 0;
            for part in parts {
                let values = part.rows.head_rows(options, part.rows.values, kv_head, &part.range);
                for (weight, value) in weights[column..].iter().zip(values) {
                    let weight = simd.splat_f32s(*weight);
                    let (value, _) = S::as_simd_f32s(&value[features.clone()][..wide]);
                    for lane in 0..TOGETHER {
                        sums[lane] = simd.mul_add_f32s(weight, value[lane], sums[lane]);
                    }
                }
                column += part.range.len();
            }
            let (output, _) = S::as_mut_simd_f32s(output);
            output.iter_mut().zip(sums).for_each(|(value, sum)| *value = simd.mul_f32s(sum, factor));
        } else {
            for (lanes, output) in output.chunks_mut(S::F32_LANES).enumerate() {
                let first = features.start + lanes * S::F32_LANES;
                let mut sum = zero;
                let mut column = 0;
                for part in parts {
                    let values = part.rows.head_rows(options, part.rows.values, kv_head, &part.range);
                    for (weight, value) in weights[column..].iter().zip(values) {
                        let value = simd.partial_load_f32s(&value[first..first + output.len()]);
                        sum = simd.mul_add_f32s(simd.splat_f32s(*weight), value, sum);
                    }
                    column += part.range.len();
                }
                simd.partial_store_f32s(output, simd.mul_f32s(sum, factor));
            }
        }
    }
}

impl KeyValueRows<'_> {
    /// One head of some rows of `side`, the keys or the values.
    #[inline(always)]
    fn head_rows<'b>(
        &self,
        options: &Attention,
        side: &'b [f32],
        kv_head: usize,
        range: &Range<usize>,
    ) -> impl Iterator<Item = &'b [f32]> + use<'b> {
        let (width, size) = (options.kv_heads * options.head_dim, options.head_dim);
        let rows = side[range.start * width..range.end * width].chunks_exact(width);
        rows.map(
            #[inline(always)]
            move |row| &row[kv_head * size..][..size],
        )
    }
}

/// `Σ a·b`.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sum = simd.splat_f32s(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.mul_add_f32s(*a, *b, sum);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + rest
}
