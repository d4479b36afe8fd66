//! One head of keys and values in pieces, and the query heads that share it: scores, softmax, and weighted sums, in vectors by
//! name.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::page_rows::PageRows;
use super::pages::{Fetching, Part, SCORES};
use super::scores::{exponentials, largest};
use super::{Attention, Bias};
use crate::kernels::stored::{CHUNK, Stored};

/// Query heads, from `first_head` on, that share one head of keys and values.
pub(super) fn head(
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
        let mut column = 0;
        for part in parts {
            match part.rows {
                PageRows::Float32(rows) => {
                    let members = query.chunks_exact(size).zip(scores.chunks_exact_mut(columns));
                    for (query, scores) in members {
                        let keys = head_rows(options, rows.keys, kv_head, &part.range);
                        // Loops, not closures: what a closure does may be compiled apart, without this processor's vectors.
                        for (number, (score, key)) in scores[column..].iter_mut().zip(keys).enumerate() {
                            if number.is_multiple_of(SCORES) {
                                next.fetch();
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
                            if number.is_multiple_of(SCORES / MEMBERS) {
                                next.fetch();
                            }
                            let place = column + number;
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
            if let Some(bias) = bias {
                for (member, scores) in scores.chunks_exact_mut(columns).enumerate() {
                    let scores = &mut scores[column..column + part.range.len()];
                    let values = bias.row(first_head + member, part.distance, scores.len());
                    scores.iter_mut().zip(values).for_each(|(score, value)| *score += value);
                }
            }
            column += part.range.len();
        }
        let mut factors = [0.0; MEMBERS];
        let in_float32 = parts.iter().all(|part| matches!(part.rows, PageRows::Float32(_)));
        for (scores, output) in scores.chunks_mut(MEMBERS * columns).zip(output.chunks_mut(MEMBERS * size)) {
            for (factor, scores) in factors.iter_mut().zip(scores.chunks_exact_mut(columns)) {
                let max = largest(scores);
                *factor = 1.0 / exponentials(scores, max);
            }
            let members = scores.chunks_exact(columns).zip(output.chunks_exact_mut(size)).zip(factors);
            if in_float32 {
                for ((scores, output), factor) in members {
                    weigh(simd, options, parts, scores, kv_head, factor, output);
                }
                continue;
            }
            let weighted = Weighted { options, parts, weights: scores, kv_head, factors };
            for first in (0..size / CHUNK).step_by(2) {
                let both = first + 1 < size / CHUNK;
                match (output.len() / size, both) {
                    (MEMBERS, true) => weighted.write::<S, MEMBERS, 2>(simd, first, output),
                    (MEMBERS, false) => weighted.write::<S, MEMBERS, 1>(simd, first, output),
                    (3, true) => weighted.write::<S, 3, 2>(simd, first, output),
                    (3, false) => weighted.write::<S, 3, 1>(simd, first, output),
                    (2, true) => weighted.write::<S, 2, 2>(simd, first, output),
                    (2, false) => weighted.write::<S, 2, 1>(simd, first, output),
                    (_, true) => weighted.write::<S, 1, 2>(simd, first, output),
                    (_, false) => weighted.write::<S, 1, 1>(simd, first, output),
                }
            }
        }
    }
}

/// Query heads that share what is read of keys and values in pairs, at the most.
const MEMBERS: usize = 4;

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
                let values = head_rows(options, values_of(part), kv_head, &part.range);
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
                    let values = head_rows(options, values_of(part), kv_head, &part.range);
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

/// The values of a part in float32.
#[inline(always)]
fn values_of<'a>(part: &Part<'a>) -> &'a [f32] {
    match part.rows {
        PageRows::Float32(rows) => rows.values,
        PageRows::Bf16(_) => &[],
    }
}

/// Sums of values over all parts, whatever they lie as.
struct Weighted<'a> {
    options: &'a Attention,
    parts: &'a [Part<'a>],
    /// `[members, columns]`.
    weights: &'a [f32],
    kv_head: usize,
    /// What each member's sums are multiplied by.
    factors: [f32; MEMBERS],
}

impl Weighted<'_> {
    /// `factor · Σ weight · value` of `HEADS` members for `CHUNKS` chunks of features from number `first` on.
    #[inline(always)]
    fn write<S: Simd, const HEADS: usize, const CHUNKS: usize>(&self, simd: S, first: usize, output: &mut [f32]) {
        let Self { options, parts, weights, kv_head, factors } = *self;
        let columns = weights.len() / HEADS;
        for number in 0..CHUNK / 2 / S::F32_LANES {
            let mut sums = [[[simd.splat_f32s(0.0); 2]; CHUNKS]; HEADS];
            let mut column = 0;
            for part in parts {
                match part.rows {
                    PageRows::Float32(rows) => {
                        for value in head_rows(options, rows.values, kv_head, &part.range) {
                            let weights = of_column::<HEADS>(weights, columns, column);
                            add_weighted::<S, f32, HEADS, CHUNKS>(
                                simd,
                                weights,
                                &value[first * CHUNK..],
                                number,
                                &mut sums,
                            );
                            column += 1;
                        }
                    }
                    PageRows::Bf16(rows) => {
                        for value in head_rows(options, rows.values, kv_head, &part.range) {
                            let weights = of_column::<HEADS>(weights, columns, column);
                            let value = &value[first * CHUNK / 2..];
                            add_weighted::<S, u32, HEADS, CHUNKS>(simd, weights, value, number, &mut sums);
                            column += 1;
                        }
                    }
                }
            }
            for (member, sums) in sums.into_iter().enumerate() {
                let factor = simd.splat_f32s(factors[member]);
                for (chunk, sums) in sums.into_iter().enumerate() {
                    for (half, sum) in sums.into_iter().enumerate() {
                        let start = member * options.head_dim + (first + chunk) * CHUNK + half * CHUNK / 2;
                        let out = &mut output[start + number * S::F32_LANES..][..S::F32_LANES];
                        simd.partial_store_f32s(out, simd.mul_f32s(sum, factor));
                    }
                }
            }
        }
    }
}

/// The weights of `HEADS` members for one key.
#[inline(always)]
fn of_column<const HEADS: usize>(weights: &[f32], columns: usize, column: usize) -> [f32; HEADS] {
    let mut own = [0.0; HEADS];
    for (member, weight) in own.iter_mut().enumerate() {
        *weight = weights[member * columns + column];
    }
    own
}

/// Adds vector `number` of each half of the chunks that `value` begins with, weighted for each member.
#[inline(always)]
fn add_weighted<S: Simd, V: Stored, const HEADS: usize, const CHUNKS: usize>(
    simd: S,
    weights: [f32; HEADS],
    value: &[V],
    number: usize,
    sums: &mut [[[S::f32s; 2]; CHUNKS]; HEADS],
) {
    for chunk in 0..CHUNKS {
        let [first, second] = V::vectors(simd, &value[chunk * V::ELEMENTS..][..V::ELEMENTS], number);
        for member in 0..HEADS {
            let (weight, own) = (simd.splat_f32s(weights[member]), &mut sums[member][chunk]);
            *own = [simd.mul_add_f32s(weight, first, own[0]), simd.mul_add_f32s(weight, second, own[1])];
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
