//! A block of attention's scores: some queries of one head against the keys that they may see. The one place that
//! computes scores, and that knows which of them count.

use std::ops::Range;

use super::{Attention, Bias, KeyValueRows, Mask, Sequence};
use crate::Kernels;
use crate::kernels::{Parallelism, View, ViewMut, exp, vectorised};

/// Queries that one product handles: consecutive tokens of one head, or a group's heads of one token.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    /// How many.
    pub(super) rows: usize,
    /// Where the first one lies in its data.
    pub(super) offset: usize,
    /// The distance from one to the next.
    pub(super) stride: usize,
    /// The head of keys and values that they attend to.
    pub(super) kv_head: usize,
    /// The head of the first one.
    pub(super) head: usize,
    /// 1 where each belongs to the next head, 0 where all belong to one.
    pub(super) head_step: usize,
    /// The position of the first one among the keys; negative where there are fewer keys than queries.
    pub(super) position: isize,
    /// How much further the next one's position is: 0 for heads of one token.
    pub(super) step: usize,
}

impl Queries {
    /// Tokens `rows` of one head, where the data begins with a sequence's first and its position is `first`.
    pub(super) fn of_head(options: &Attention, head: usize, rows: Range<usize>, first: isize) -> Self {
        Self {
            rows: rows.len(),
            offset: (rows.start * options.heads + head) * options.head_dim,
            stride: options.heads * options.head_dim,
            kv_head: head / options.group(),
            head,
            head_step: 0,
            position: first.saturating_add_unsigned(rows.start),
            step: 1,
        }
    }

    /// They in `data`, or what is laid out as they are.
    pub(super) fn view<'a>(&self, data: &'a [f32], head_dim: usize) -> View<'a> {
        View::rows_of(&data[self.offset..], self.rows, head_dim, self.stride)
    }
}

/// The two matrices that a block's columns stand for.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Keys,
    Values,
}

/// Some rows of one head of keys and values: a run of a block's columns.
struct Part<'a> {
    columns: Range<usize>,
    /// The first of the rows, counted from the sequence's first.
    start: usize,
    keys: View<'a>,
    values: View<'a>,
}

impl<'a> Part<'a> {
    fn new(options: &Attention, rows: KeyValueRows<'a>, range: Range<usize>, head: usize, column: usize) -> Self {
        let width = options.key_width();
        let view = |data: &'a [f32]| {
            let start = (range.start * width + head * options.head_dim).min(data.len());
            View::rows_of(&data[start..], range.len(), options.head_dim, width)
        };
        let columns = column..column + range.len();
        Self { columns, start: range.start, keys: view(rows.keys), values: view(rows.values) }
    }

    fn view(&self, side: Side) -> View<'a> {
        match side {
            Side::Keys => self.keys,
            Side::Values => self.values,
        }
    }
}

/// Sums of gradients of one head of keys or of values, `[rows, head_dim]` each; `None` where nobody wants them.
pub(super) struct Sums<'a> {
    pub(super) prefix: Option<&'a mut [f32]>,
    pub(super) own: Option<&'a mut [f32]>,
}

/// Scores `[queries, columns]`: the columns of the prefix, then those of the sequence's own keys, from the first to the
/// last that any of the queries sees.
pub(super) struct Block<'a> {
    options: &'a Attention,
    kernels: &'a Kernels,
    queries: Queries,
    keys: usize,
    prefix: Part<'a>,
    own: Part<'a>,
    bias: Option<Bias<'a>>,
    dropout: Option<Mask>,
}

impl<'a> Block<'a> {
    pub(super) fn new(options: &'a Attention, kernels: &'a Kernels, sequence: Sequence<'a>, queries: Queries) -> Self {
        let keys = sequence.own.count(options);
        let prefixed = sequence.prefix.count(options);
        let first = options.visible(queries.position, keys);
        let last = options.visible(queries.position.saturating_add_unsigned((queries.rows - 1) * queries.step), keys);
        let range = first.start..last.end;
        Self {
            options,
            kernels,
            queries,
            keys,
            prefix: Part::new(options, sequence.prefix, 0..prefixed, queries.kv_head, 0),
            own: Part::new(options, sequence.own, range, queries.kv_head, prefixed),
            bias: sequence.bias,
            dropout: sequence.dropout,
        }
    }

    /// Columns of the block.
    pub(super) fn cols(&self) -> usize {
        self.own.columns.end
    }

    /// Floats of the block.
    pub(super) fn len(&self) -> usize {
        self.queries.rows * self.cols()
    }

    /// `scores ← scale·Q·Kᵀ + bias`, also at keys that a query doesn't see; [`Self::exponentiate`] and [`Self::weights`] drop
    /// those.
    pub(super) fn scores(&self, scores: &mut [f32], queries: View<'_>) {
        self.outer(scores, self.options.scale, queries, Side::Keys);
        let Some(bias) = self.bias else { return };
        for (row, scores) in self.rows(scores) {
            for (part, distance) in self.distances(row) {
                let values = bias.row(self.head(row), distance, part.columns.len());
                scores[part.columns.clone()].iter_mut().zip(values).for_each(|(score, value)| *score += value);
            }
        }
    }

    /// Adds the scores' gradients `gradients` to those of the bias: `sums` has a row of all distances for each head from
    /// `first_head` on.
    pub(super) fn add_bias_gradients(&self, sums: &mut [f32], first_head: usize, gradients: &mut [f32]) {
        let Some(bias) = self.bias else { return };
        for (row, gradients) in self.rows(gradients) {
            for (part, distance) in self.distances(row) {
                let start = (self.head(row) - first_head) * bias.values.cols() + bias.column(distance);
                let gradients = &gradients[part.columns.clone()];
                sums[start..][..gradients.len()].iter_mut().zip(gradients).for_each(|(sum, value)| *sum += value);
            }
        }
    }

    /// Multiplies weights, or what is shaped as they are, by the mask of dropout.
    pub(super) fn drop_weights(&self, weights: &mut [f32]) {
        let Some(mask) = self.dropout else { return };
        for (row, weights) in self.rows(weights) {
            let position = self.queries.position.saturating_add_unsigned(row * self.queries.step);
            for part in self.parts() {
                let first = part.columns.start + part.start;
                mask.apply(position, self.head(row), first, &mut weights[part.columns.clone()]);
            }
        }
    }

    /// The query head of row `row`.
    fn head(&self, row: usize) -> usize {
        self.queries.head + row * self.queries.head_step
    }

    /// The parts of the columns, and how far their first key lies from the query of row `row`.
    fn distances(&self, row: usize) -> impl Iterator<Item = (&Part<'a>, isize)> {
        let position = self.queries.position.saturating_add_unsigned(row * self.queries.step);
        let first = |part: &Part<'a>, place: isize| part.start as isize + place - position;
        let prefixed = self.prefix.columns.len() as isize;
        let parts = [(&self.prefix, first(&self.prefix, -prefixed)), (&self.own, first(&self.own, 0))];
        parts.into_iter().filter(|(part, _)| !part.columns.is_empty())
    }

    /// Turns scores into `exp(s − max)`, `max` being the largest of their row, and into 0 at keys that their query
    /// doesn't see. Calls `done` with each row's number, maximum (-∞ without a key) and sum.
    pub(super) fn exponentiate(&self, scores: &mut [f32], mut done: impl FnMut(usize, f32, f32)) {
        for (row, scores) in self.rows(scores) {
            let visible = self.visible(row);
            let (max, sum) = vectorised(
                #[inline(always)]
                || {
                    let max = max(scores, &visible);
                    (max, exponentiate(scores, &visible, max))
                },
            );
            done(row, max, sum);
        }
    }

    /// Turns scores into weights, `exp(s − lse)`, given each row's log-sum-exp, and into 0 at keys that their query
    /// doesn't see.
    pub(super) fn weights(&self, scores: &mut [f32], lse: impl Fn(usize) -> f32) {
        for (row, scores) in self.rows(scores) {
            let (visible, lse) = (self.visible(row), lse(row));
            vectorised(
                #[inline(always)]
                || exponentiate(scores, &visible, lse),
            );
        }
    }

    /// Turns `dP` into `dS = P∘(dP − Σ P∘dP)`, row by row. The sum equals `Σ dO∘O`, for which the output would have to
    /// be kept.
    pub(super) fn score_gradients(&self, gradients: &mut [f32], weights: &[f32]) {
        for (row, gradients) in self.rows(gradients) {
            let weights = &weights[row * self.cols()..][..self.cols()];
            vectorised(
                #[inline(always)]
                || softmax_gradient(gradients, weights),
            );
        }
    }

    /// `out ← alpha·x·sideᵀ`, shaped as the block; `x` is `[queries, head_dim]`.
    pub(super) fn outer(&self, out: &mut [f32], alpha: f32, x: View<'_>, side: Side) {
        let (rows, cols) = (self.queries.rows, self.cols());
        for part in self.parts() {
            let out = ViewMut::rows_of(&mut out[part.columns.start..], rows, part.columns.len(), cols);
            self.kernels.gemm(out, 0.0, alpha, x, part.view(side).transposed(), Parallelism::Single);
        }
    }

    /// `out ← alpha·weights·side`, `[queries, head_dim]` with rows `stride` apart; `weights` is shaped as the block.
    pub(super) fn inner(&self, out: &mut [f32], stride: usize, alpha: f32, weights: &[f32], side: Side) {
        let (rows, head_dim) = (self.queries.rows, self.options.head_dim);
        let mut beta = 0.0;
        for part in self.parts() {
            let out = ViewMut::rows_of(out, rows, head_dim, stride);
            self.kernels.gemm(out, beta, alpha, self.columns(weights, part), part.view(side), Parallelism::Single);
            beta = 1.0;
        }
        if beta == 0.0 {
            (0..rows).for_each(|row| out[row * stride..][..head_dim].fill(0.0));
        }
    }

    /// `sums ← sums + alpha·weightsᵀ·x`; `weights` is shaped as the block, `x` is `[queries, head_dim]`.
    pub(super) fn add_transposed(&self, sums: &mut Sums<'_>, alpha: f32, weights: &[f32], x: View<'_>) {
        let head_dim = self.options.head_dim;
        for (part, sums) in [(&self.prefix, &mut sums.prefix), (&self.own, &mut sums.own)] {
            let Some(sums) = sums else { continue };
            let sums = ViewMut::rows_of(&mut sums[part.start * head_dim..], part.columns.len(), head_dim, head_dim);
            let weights = self.columns(weights, part).transposed();
            self.kernels.gemm(sums, 1.0, alpha, weights, x, Parallelism::Single);
        }
    }

    /// The columns that row `row` sees: of the prefix, and of the sequence's own keys.
    fn visible(&self, row: usize) -> [Range<usize>; 2] {
        let position = self.queries.position.saturating_add_unsigned(row * self.queries.step);
        let visible = self.options.visible(position, self.keys);
        let column = |key: usize| key - self.own.start + self.own.columns.start;
        [self.prefix.columns.clone(), column(visible.start)..column(visible.end)]
    }

    /// The rows of a block, numbered.
    fn rows<'s>(&self, scores: &'s mut [f32]) -> impl Iterator<Item = (usize, &'s mut [f32])> {
        // Not `chunks_exact_mut`: a block may have no columns.
        let mut rest = scores;
        let cols = self.cols();
        (0..self.queries.rows).map(move |row| {
            let (scores, after) = std::mem::take(&mut rest).split_at_mut(cols);
            rest = after;
            (row, scores)
        })
    }

    fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        [&self.prefix, &self.own].into_iter().filter(|part| !part.columns.is_empty())
    }

    /// The columns of one part.
    fn columns<'w>(&self, weights: &'w [f32], part: &Part<'_>) -> View<'w> {
        View::rows_of(&weights[part.columns.start..], self.queries.rows, part.columns.len(), self.cols())
    }
}

/// Lanes of a reduction: enough for the widest vectors, and the order of the sum is the same on every processor.
const LANES: usize = 16;

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest of a row's visible scores; -∞ of none.
#[inline(always)]
fn max(scores: &[f32], visible: &[Range<usize>; 2]) -> f32 {
    larger(largest(&scores[visible[0].clone()]), largest(&scores[visible[1].clone()]))
}

/// `exp(s − shift)` of a row's visible scores, 0 of the others. Returns the sum.
#[inline(always)]
fn exponentiate(scores: &mut [f32], visible: &[Range<usize>; 2], shift: f32) -> f32 {
    let [prefix, own] = visible;
    scores[prefix.end..own.start].fill(0.0);
    scores[own.end..].fill(0.0);
    exponentials(&mut scores[prefix.clone()], shift) + exponentials(&mut scores[own.clone()], shift)
}

/// `exp(s − shift)`. Returns the sum.
#[inline(always)]
pub(super) fn exponentials(scores: &mut [f32], shift: f32) -> f32 {
    scores.iter_mut().for_each(|score| *score = exp(*score - shift));
    sum(scores)
}

/// Turns `gradients`, those of the softmax's outputs `weights`, into those of its inputs.
#[inline(always)]
fn softmax_gradient(gradients: &mut [f32], weights: &[f32]) {
    let mean = dot(gradients, weights);
    gradients.iter_mut().zip(weights).for_each(|(gradient, weight)| *gradient = weight * (*gradient - mean));
}

/// The largest value; -∞ of none.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

/// `Σ values`.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// `Σ a·b`.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}
