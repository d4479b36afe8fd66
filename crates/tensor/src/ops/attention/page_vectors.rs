//! Keys and values of one head, and the query heads that share it, in vectors by name: loops over lanes were compiled into
//! pairs of floats here.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::page_rows::{KeyValuePairs, PageRows};
use super::pages::{Fetching, Part};
use super::{Attention, KeyValueRows};
use crate::kernels::dispatch;
use crate::kernels::stored::{CHUNK, Stored};

/// Query heads that share what is read of keys and values in bf16, at the most.
const MEMBERS: usize = 4;

/// Vectors of a head's features whose sums are in registers together.
const TOGETHER: usize = 4;

/// Scores between two times that something is fetched.
const SCORES: usize = 8;

/// Writes the scores of queries `[members, head_dim]` with the keys of `part` to columns from `column` on of `scores`
/// `[members, columns]`.
pub(super) struct Scores<'a> {
    pub(super) options: &'a Attention,
    pub(super) part: &'a Part<'a>,
    pub(super) kv_head: usize,
    pub(super) query: &'a [f32],
    pub(super) scores: &'a mut [f32],
    pub(super) columns: usize,
    pub(super) column: usize,
}

impl Scores<'_> {
    /// Does it, while what comes next is fetched.
    pub(super) fn write(self, next: &mut Fetching<'_>) {
        dispatch(Meanwhile { work: self, next });
    }
}

/// Work, and what is fetched meanwhile.
struct Meanwhile<'a, 'n, W> {
    work: W,
    next: &'a mut Fetching<'n>,
}

impl WithSimd for Meanwhile<'_, '_, Scores<'_>> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work: Scores { options, part, kv_head, query, scores, columns, column }, next } = self;
        let size = options.head_dim;
        match part.rows {
            PageRows::Float32(rows) => {
                let members = query.chunks_exact(size).zip(scores.chunks_exact_mut(columns));
                for (query, scores) in members {
                    let keys = head_rows(options, rows.keys, kv_head, &part.range);
                    // Loops, not closures: what a closure does may be compiled apart, without this processor's vectors.
                    for (number, (score, key)) in scores[column..].iter_mut().zip(keys).enumerate() {
                        if number.is_multiple_of(SCORES) {
                            next.fetch(SCORES);
                        }
                        *score = options.scale * dot(simd, query, key);
                    }
                }
            }
            PageRows::Bf16(rows) => {
                let members = query.chunks(MEMBERS * size).zip(scores.chunks_mut(MEMBERS * columns));
                for (query, scores) in members {
                    let keys = head_rows(options, rows.keys, kv_head, &part.range);
                    for (number, key) in keys.enumerate() {
                        let place = column + number;
                        next.fetch(query.len() / size);
                        match query.len() / size {
                            MEMBERS => dots::<S, MEMBERS>(simd, options, query, key, scores, columns, place),
                            3 => dots::<S, 3>(simd, options, query, key, scores, columns, place),
                            2 => dots::<S, 2>(simd, options, query, key, scores, columns, place),
                            _ => dots::<S, 1>(simd, options, query, key, scores, columns, place),
                        }
                    }
                }
            }
        }
    }
}

/// Adds to `output` `[members, head_dim]` the values of `part`, weighted by the columns from `column` on of `weights`
/// `[members, columns]`.
pub(super) struct Weighted<'a> {
    pub(super) options: &'a Attention,
    pub(super) part: &'a Part<'a>,
    pub(super) kv_head: usize,
    pub(super) weights: &'a [f32],
    pub(super) columns: usize,
    pub(super) column: usize,
    pub(super) output: &'a mut [f32],
}

impl Weighted<'_> {
    /// Does it, while what comes next is fetched.
    pub(super) fn add(self, next: &mut Fetching<'_>) {
        dispatch(Meanwhile { work: self, next });
    }
}

impl WithSimd for Meanwhile<'_, '_, Weighted<'_>> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work: Weighted { options, part, kv_head, weights, columns, column, output }, next } = self;
        next.fetch(part.range.len() * weights.len() / columns);
        let size = options.head_dim;
        match part.rows {
            PageRows::Float32(rows) => {
                for (weights, output) in weights.chunks_exact(columns).zip(output.chunks_exact_mut(size)) {
                    let weights = &weights[column..column + part.range.len()];
                    weigh(simd, options, rows, part, weights, kv_head, output);
                }
            }
            PageRows::Bf16(rows) => {
                let members = weights.chunks(MEMBERS * columns).zip(output.chunks_mut(MEMBERS * size));
                for (weights, output) in members {
                    let pairs = Pairs { rows, range: &part.range, weights: &weights[column..], stride: columns };
                    for first in (0..size).step_by(CHUNK) {
                        let column = kv_head * size + first;
                        match output.len() / size {
                            MEMBERS => pairs.weigh::<S, MEMBERS>(simd, column, &mut output[first..], size),
                            3 => pairs.weigh::<S, 3>(simd, column, &mut output[first..], size),
                            2 => pairs.weigh::<S, 2>(simd, column, &mut output[first..], size),
                            _ => pairs.weigh::<S, 1>(simd, column, &mut output[first..], size),
                        }
                    }
                }
            }
        }
    }
}

/// Adds `Σ weight · value` for one head of rows in float32.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    options: &Attention,
    rows: KeyValueRows<'_>,
    part: &Part<'_>,
    weights: &[f32],
    kv_head: usize,
    output: &mut [f32],
) {
    let wide = TOGETHER * S::F32_LANES;
    for (block, output) in output.chunks_mut(wide).enumerate() {
        let features = block * wide..block * wide + output.len();
        if output.len() == wide {
            let (output, _) = S::as_mut_simd_f32s(output);
            let mut sums = [simd.splat_f32s(0.0); TOGETHER];
            sums.copy_from_slice(&output[..TOGETHER]);
            let values = head_rows(options, rows.values, kv_head, &part.range);
            for (weight, value) in weights.iter().zip(values) {
                let weight = simd.splat_f32s(*weight);
                let (value, _) = S::as_simd_f32s(&value[features.clone()][..wide]);
                for lane in 0..TOGETHER {
                    sums[lane] = simd.mul_add_f32s(weight, value[lane], sums[lane]);
                }
            }
            output[..TOGETHER].copy_from_slice(&sums);
        } else {
            for (lanes, output) in output.chunks_mut(S::F32_LANES).enumerate() {
                let first = features.start + lanes * S::F32_LANES;
                let mut sum = simd.partial_load_f32s(output);
                let values = head_rows(options, rows.values, kv_head, &part.range);
                for (weight, value) in weights.iter().zip(values) {
                    let value = simd.partial_load_f32s(&value[first..first + output.len()]);
                    sum = simd.mul_add_f32s(simd.splat_f32s(*weight), value, sum);
                }
                simd.partial_store_f32s(output, sum);
            }
        }
    }
}

/// Rows of values in pairs, and their weights.
struct Pairs<'a> {
    rows: KeyValuePairs<'a>,
    range: &'a Range<usize>,
    /// For each query head the rows' weights, `stride` after those of the head before.
    weights: &'a [f32],
    stride: usize,
}

impl Pairs<'_> {
    /// Adds `Σ weight · value` of the [`CHUNK`] features from number `column` on to the outputs of `HEADS` query heads, which
    /// lie `apart`.
    #[inline(always)]
    fn weigh<S: Simd, const HEADS: usize>(&self, simd: S, column: usize, output: &mut [f32], apart: usize) {
        let Self { rows, range: &Range { start, end }, weights, stride } = *self;
        for number in 0..CHUNK / S::F32_LANES {
            let mut sums = [[simd.splat_f32s(0.0); 2]; HEADS];
            for pair in start / 2..end.div_ceil(2) {
                let words = &rows.values[pair * rows.width + column..][..CHUNK];
                let [even, odd] = u32::vectors(simd, words, number);
                for (head, sums) in sums.iter_mut().enumerate() {
                    let weights = &weights[head * stride..];
                    if 2 * pair >= start {
                        sums[0] = simd.mul_add_f32s(simd.splat_f32s(weights[2 * pair - start]), even, sums[0]);
                    }
                    if 2 * pair + 1 < end {
                        sums[1] = simd.mul_add_f32s(simd.splat_f32s(weights[2 * pair + 1 - start]), odd, sums[1]);
                    }
                }
            }
            for (head, sums) in sums.into_iter().enumerate() {
                let (output, _) = S::as_mut_simd_f32s(&mut output[head * apart..][..CHUNK]);
                output[number] = simd.add_f32s(output[number], simd.add_f32s(sums[0], sums[1]));
            }
        }
    }
}

/// One head of some rows of keys or of values, whatever they lie as.
#[inline(always)]
fn head_rows<'b, V: Stored>(
    options: &Attention,
    side: &'b [V],
    kv_head: usize,
    range: &Range<usize>,
) -> impl Iterator<Item = &'b [V]> + use<'b, V> {
    let size = options.head_dim * V::ELEMENTS / CHUNK;
    let width = options.kv_heads * size;
    let rows = side[range.start * width..range.end * width].chunks_exact(width);
    rows.map(
        #[inline(always)]
        move |row| &row[kv_head * size..][..size],
    )
}

/// Writes the scores of `HEADS` members for one key in pairs, whole chunks, to column `place`.
#[inline(always)]
fn dots<S: Simd, const HEADS: usize>(
    simd: S,
    options: &Attention,
    query: &[f32],
    key: &[u32],
    scores: &mut [f32],
    columns: usize,
    place: usize,
) {
    let size = options.head_dim;
    let mut sums = [[simd.splat_f32s(0.0); 2]; HEADS];
    for (chunk, key) in key.chunks_exact(CHUNK / 2).enumerate() {
        for number in 0..CHUNK / 2 / S::F32_LANES {
            let [first, second] = u32::vectors(simd, key, number);
            for member in 0..HEADS {
                let query = &query[member * size + chunk * CHUNK..][..CHUNK];
                let (query, own) = (f32::vectors(simd, query, number), &mut sums[member]);
                *own = [simd.mul_add_f32s(query[0], first, own[0]), simd.mul_add_f32s(query[1], second, own[1])];
            }
        }
    }
    for (member, sums) in sums.into_iter().enumerate() {
        let sum = simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]));
        scores[member * columns + place] = options.scale * sum;
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
