//! The row-wise steps between attention's products: from scores to weights, and from the gradients of weights to those
//! of scores, written as the tiles that the next product takes.

use std::ops::Range;

use crate::kernels::bf16::{DEPTH, LANES, Tile, Unit};
use crate::kernels::{exp2_rough, vectorised};
use crate::random::RowMask;

/// bf16 bits of `x` in the upper half of a word, rounded to the nearest, ties away from zero.
#[inline(always)]
fn round(x: f32) -> u32 {
    x.to_bits().wrapping_add(0x8000) & 0xffff_0000
}

/// Scores `[rows, keys]` of a block, rows `stride` apart; each row sees a range of columns.
pub(super) struct Scores<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
    pub(super) visible: &'a [Range<usize>],
    /// Which weights training drops.
    pub(super) dropped: Option<Dropped<'a>>,
}

/// Masks of the rows of a block.
#[derive(Clone, Copy)]
pub(super) struct Dropped<'a> {
    pub(super) rows: &'a [RowMask],
    /// The place of the first column.
    pub(super) first: u32,
    /// What the weights that stay are multiplied by.
    pub(super) scale: f32,
}

impl<'a> Scores<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..(row + 1) * self.stride]
    }
}

/// The running softmax of each row.
pub(super) struct Running<'a> {
    /// The largest score so far; -∞ before the first.
    pub(super) max: &'a mut [f32],
    /// `Σ 2^(score − max)`.
    pub(super) sum: &'a mut [f32],
    /// `Σ 2^(score − max)·value`, rows equally long.
    pub(super) output: &'a mut [f32],
}

/// Adds the scores of a block to the running softmax, but for the values: writes the weights `2^(score − max)` to the
/// row tiles `weights`, `depth` a strip, and scales `output` down where a row's maximum has grown. Dropped weights are
/// written as zeros, and summed; the others are not yet multiplied.
pub(super) fn accumulate(unit: Unit, scores: &Scores<'_>, running: Running<'_>, weights: &mut [Tile], depth: usize) {
    #[cfg(target_arch = "x86_64")]
    if unit.has_avx512() {
        // SAFETY: the unit says that the processor has the instructions.
        #[allow(unsafe_code)]
        return unsafe { super::softmax_avx512::accumulate(scores, running, weights, depth) };
    }
    let head_dim = running.output.len() / running.max.len().max(1);
    vectorised(
        #[inline(always)]
        || {
            let outputs = running.output.chunks_exact_mut(head_dim.max(1));
            let state = running.max.iter_mut().zip(running.sum.iter_mut()).zip(outputs);
            for (row, ((max, sum), output)) in state.enumerate() {
                let (values, visible) = (scores.row(row), &scores.visible[row]);
                let before = *max;
                *max = largest(&values[visible.clone()], before);
                // A row that has seen nothing yet has nothing to scale; -∞ minus -∞ would be no number.
                let shift = if *max == f32::NEG_INFINITY { 0.0 } else { *max };
                let factor = exp2_rough(before - shift);
                let tiles = &mut weights[row / LANES * depth..][..depth];
                let lane = row % LANES;
                let weights = match scores.dropped {
                    None => weigh_row(values, visible, shift, tiles, lane, |_| false),
                    Some(Dropped { rows, first, .. }) => {
                        let mask = rows[row];
                        weigh_row(
                            values,
                            visible,
                            shift,
                            tiles,
                            lane,
                            #[inline(always)]
                            |column| mask.drops(first.wrapping_add(column)),
                        )
                    }
                };
                *sum = *sum * factor + weights;
                if factor != 1.0 && before != f32::NEG_INFINITY {
                    output.iter_mut().for_each(|value| *value *= factor);
                }
            }
        },
    );
}

/// The largest of `scores` and `start`.
#[inline(always)]
fn largest(scores: &[f32], start: f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = scores.chunks_exact(LANES);
    let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
    for (lane, value) in chunks.remainder().iter().enumerate() {
        lanes[lane] = larger(*value, lanes[lane]);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    fold(lanes, larger)
}

/// Half with half, until one value is left: a short chain of vector operations.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Writes a row's weights to lane `lane` of row tiles, zeros where it doesn't see or `drops` says so of a column. Returns the
/// sum of all that it sees.
#[inline(always)]
fn weigh_row(
    scores: &[f32],
    visible: &Range<usize>,
    shift: f32,
    tiles: &mut [Tile],
    lane: usize,
    drops: impl Fn(u32) -> bool,
) -> f32 {
    let (start, end) = (visible.start as i32, visible.end as i32);
    let mut sums = [0.0f32; DEPTH];
    for (place, (tile, scores)) in tiles.iter_mut().zip(scores.chunks_exact(DEPTH)).enumerate() {
        let first = (place * DEPTH) as i32;
        let out = &mut tile.0[lane * DEPTH..(lane + 1) * DEPTH];
        if first >= end || first + DEPTH as i32 <= start {
            out.fill(0);
            continue;
        }
        if first >= start && first + DEPTH as i32 <= end {
            for column in 0..DEPTH {
                let weight = exp2_rough(scores[column] - shift);
                sums[column] += weight;
                let kept = if drops((first as usize + column) as u32) { 0.0 } else { weight };
                out[column] = (round(kept) >> 16) as u16;
            }
        } else {
            for column in 0..DEPTH {
                let at = first + column as i32;
                let weight = exp2_rough(scores[column] - shift);
                let weight = if at >= start && at < end { weight } else { 0.0 };
                sums[column] += weight;
                let kept = if drops(at as u32) { 0.0 } else { weight };
                out[column] = (round(kept) >> 16) as u16;
            }
        }
    }
    let mut lanes = [0.0; LANES];
    for lane in 0..LANES {
        lanes[lane] = sums[lane] + sums[lane + LANES];
    }
    fold(lanes, |a, b| a + b)
}

/// What a row's weights and their gradients depend on beside the scores.
pub(super) struct Rows<'a> {
    /// Each row's log-sum-exp, to base 2.
    pub(super) lse: &'a [f32],
    /// Each row's `Σ dO∘O`.
    pub(super) delta: &'a [f32],
}

/// Where a block's weights `P` and score gradients `dS = P∘(dP − delta)` go: as right factors that sum over rows (columns
/// are keys), and `dS` as the left factor that sums over keys, too. Where weights are dropped, masked `P` and `dP` take their
/// places, but not that of the outer `P` in `dS`.
pub(super) struct Weighted<'a> {
    pub(super) weights: &'a mut [Tile],
    pub(super) gradients: &'a mut [Tile],
    pub(super) gradient_rows: &'a mut [Tile],
}

/// Fills `out` from the scores and `dP`, shaped as they are. `keys` columns; as many rows as `rows` has, a multiple of
/// [`DEPTH`].
pub(super) fn differentiate(
    unit: Unit,
    scores: &Scores<'_>,
    dp: &[f32],
    rows: &Rows<'_>,
    keys: usize,
    out: Weighted<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if unit.has_avx512() {
        // SAFETY: the unit says that the processor has the instructions.
        #[allow(unsafe_code)]
        return unsafe { super::softmax_avx512::differentiate(scores, dp, rows, keys, out) };
    }
    let count = rows.lse.len();
    let (strips, depth, key_tiles) = (keys.div_ceil(LANES), count / DEPTH, keys.div_ceil(DEPTH));
    let dp = Scores { data: dp, ..*scores };
    vectorised(
        #[inline(always)]
        || {
            for pair in 0..count / 2 {
                let [upper, lower] = [2 * pair, 2 * pair + 1];
                let row_tiles = &mut out.gradient_rows[upper / LANES * key_tiles..][..key_tiles];
                let (tile, place) = (upper / DEPTH, upper % DEPTH / 2 * LANES);
                let seen = [&scores.visible[upper], &scores.visible[lower]];
                let first = seen[0].start.min(seen[1].start) / LANES;
                let last = seen[0].end.max(seen[1].end).div_ceil(LANES);
                for strip in 0..2 * key_tiles {
                    let row_tile = &mut row_tiles[strip / 2].0;
                    let column = strip % 2 * LANES;
                    let (upper_row, lower_row) = (upper % LANES * DEPTH + column, lower % LANES * DEPTH + column);
                    let at = strip * depth + tile;
                    if strip < first || strip >= last {
                        row_tile[upper_row..][..LANES].fill(0);
                        row_tile[lower_row..][..LANES].fill(0);
                        if strip < strips {
                            out.weights[at].words_mut()[place..][..LANES].fill(0);
                            out.gradients[at].words_mut()[place..][..LANES].fill(0);
                        }
                        continue;
                    }
                    let (upper_weights, upper_gradients) = weigh_strip(scores, &dp, rows, upper, strip);
                    let (lower_weights, lower_gradients) = weigh_strip(scores, &dp, rows, lower, strip);
                    interleave(&upper_weights, &lower_weights, &mut out.weights[at].words_mut()[place..]);
                    interleave(&upper_gradients, &lower_gradients, &mut out.gradients[at].words_mut()[place..]);
                    narrow(&upper_gradients, &mut row_tile[upper_row..]);
                    narrow(&lower_gradients, &mut row_tile[lower_row..]);
                }
            }
        },
    );
}

/// The weights and score gradients of one row and sixteen keys, rounded; 0 at keys that it doesn't see.
#[inline(always)]
fn weigh_strip(
    scores: &Scores<'_>,
    dp: &Scores<'_>,
    rows: &Rows<'_>,
    row: usize,
    strip: usize,
) -> ([u32; LANES], [u32; LANES]) {
    let (mut weights, mut gradients) = ([0; LANES], [0; LANES]);
    let first = (strip * LANES) as i32;
    let (start, end) = (scores.visible[row].start as i32 - first, scores.visible[row].end as i32 - first);
    let (lse, delta) = (rows.lse[row], rows.delta[row]);
    // What dropout multiplies each weight by.
    let mut keep = [1.0; LANES];
    if let Some(Dropped { rows, first, scale }) = scores.dropped {
        let (mask, first) = (rows[row], first.wrapping_add((strip * LANES) as u32));
        for (lane, keep) in keep.iter_mut().enumerate() {
            *keep = if mask.drops(first.wrapping_add(lane as u32)) { 0.0 } else { scale };
        }
    }
    let scores = &scores.row(row)[strip * LANES..][..LANES];
    let dp = &dp.row(row)[strip * LANES..][..LANES];
    for lane in 0..LANES {
        let inside = lane as i32 >= start && (lane as i32) < end;
        let weight = exp2_rough(scores[lane] - lse);
        let gradient = weight * (dp[lane] * keep[lane] - delta);
        weights[lane] = if inside { round(weight * keep[lane]) } else { 0 };
        gradients[lane] = if inside { round(gradient) } else { 0 };
    }
    (weights, gradients)
}

/// Writes rounded values one after the other.
#[inline(always)]
fn narrow(values: &[u32; LANES], out: &mut [u16]) {
    let out = &mut out[..LANES];
    for lane in 0..LANES {
        out[lane] = (values[lane] >> 16) as u16;
    }
}

/// Writes rounded values of two rows in pairs.
#[inline(always)]
fn interleave(upper: &[u32; LANES], lower: &[u32; LANES], out: &mut [u32]) {
    let out = &mut out[..LANES];
    for lane in 0..LANES {
        out[lane] = upper[lane] >> 16 | lower[lane];
    }
}
