//! Values in float32 or in bf16 that are read chunk by chunk as vectors of float32.

use pulp::Simd;

use super::bf16::{from_bf16, to_bf16};
use crate::shelf::Plain;

/// Values of a row that lie together, which is what a vector of the widest kind and its neighbour hold.
pub(crate) const CHUNK: usize = 32;

/// What values lie as.
pub(crate) trait Stored: Plain {
    /// Elements that hold a chunk.
    const ELEMENTS: usize;

    /// Puts a chunk into as many elements as it takes.
    fn store(chunk: &[f32; CHUNK], elements: &mut [Self]);

    /// Vector `number` of the first and of the second half of a chunk.
    fn vectors<S: Simd>(simd: S, chunk: &[Self], number: usize) -> [S::f32s; 2];

    /// A single value of a chunk.
    fn value(chunk: &[Self], place: usize) -> f32;
}

impl Stored for f32 {
    const ELEMENTS: usize = CHUNK;

    #[inline(always)]
    fn store(chunk: &[f32; CHUNK], elements: &mut [f32]) {
        elements.copy_from_slice(chunk);
    }

    #[inline(always)]
    fn vectors<S: Simd>(_: S, chunk: &[f32], number: usize) -> [S::f32s; 2] {
        let (vectors, _) = S::as_simd_f32s(chunk);
        [vectors[number], vectors[CHUNK / 2 / S::F32_LANES + number]]
    }

    fn value(chunk: &[f32], place: usize) -> f32 {
        chunk[place]
    }
}

/// Two numbers of bf16: one of a chunk's first half in the lower bits, and the one that lies half a chunk after it.
impl Stored for u32 {
    const ELEMENTS: usize = CHUNK / 2;

    #[inline(always)]
    fn store(chunk: &[f32; CHUNK], elements: &mut [u32]) {
        let (first, second) = chunk.split_at(CHUNK / 2);
        for ((element, first), second) in elements.iter_mut().zip(first).zip(second) {
            *element = u32::from(to_bf16(*first)) | u32::from(to_bf16(*second)) << 16;
        }
    }

    #[inline(always)]
    fn vectors<S: Simd>(simd: S, chunk: &[u32], number: usize) -> [S::f32s; 2] {
        let (pairs, _) = S::as_simd_u32s(chunk);
        let pair = pairs[number];
        let first = simd.wrapping_dyn_shl_u32s(pair, simd.splat_u32s(16));
        let second = simd.and_u32s(pair, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
    }

    fn value(chunk: &[u32], place: usize) -> f32 {
        from_bf16((chunk[place % (CHUNK / 2)] >> (place / (CHUNK / 2) * 16)) as u16)
    }
}

/// Puts values, whole chunks, into as many pairs of bf16 as they take.
pub(crate) fn store_pairs(values: &[f32], pairs: &mut [u32]) {
    assert!(values.len().is_multiple_of(CHUNK) && pairs.len() == values.len() / 2, "pairs hold whole chunks");
    super::vectorised(
        #[inline(always)]
        || {
            for (values, pairs) in values.chunks_exact(CHUNK).zip(pairs.chunks_exact_mut(CHUNK / 2)) {
                let chunk: &[f32; CHUNK] = values.try_into().expect("chunks have so many values");
                u32::store(chunk, pairs);
            }
        },
    );
}

/// Writes what pairs of bf16 hold, twice as many values as they are.
pub(crate) fn read_pairs(pairs: &[u32], values: &mut [f32]) {
    assert!(values.len().is_multiple_of(CHUNK) && pairs.len() == values.len() / 2, "pairs hold whole chunks");
    for (pairs, values) in pairs.chunks_exact(CHUNK / 2).zip(values.chunks_exact_mut(CHUNK)) {
        let (first, second) = values.split_at_mut(CHUNK / 2);
        for ((pair, first), second) in pairs.iter().zip(first).zip(second) {
            (*first, *second) = (from_bf16(*pair as u16), from_bf16((*pair >> 16) as u16));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_hold_rounded_values() {
        let values: Vec<f32> = (0..3 * CHUNK).map(|place| (place as f32 - 40.0) * 0.377).collect();
        let mut pairs = vec![0; values.len() / 2];
        store_pairs(&values, &mut pairs);
        let mut found = vec![0.0; values.len()];
        read_pairs(&pairs, &mut found);
        let rounded: Vec<f32> = values.iter().map(|value| from_bf16(to_bf16(*value))).collect();
        assert_eq!(found, rounded);
    }
}
