//! GGUF's block formats of 256 values ("k-quants"): a block's scale times small integer scales of 16 or 32 values each.

use super::ggml::half_at;

/// Scales (low halves) and minima (high halves) of 16 values, codes of 2 bits, `d`, `dmin`.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // 128 values share 32 bytes; 32 of them have the same two bits of these.
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let scale = d * f32::from(scales[group] & 15);
        let minimum = dmin * f32::from(scales[group] >> 4);
        let codes = &codes[half * 32 + side * 16..][..16];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from((code >> shift) & 3) - minimum;
        }
    }
}

/// The third bits, codes of 2 bits, scales of 6 bits, `d`.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let top = (packed[8 + group % 4] >> (group / 4 * 2)) & 3;
        let scale = d * (f32::from(low | (top << 4)) - 32.0);
        let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
        let codes = &codes[half * 32 + side * 16..][..16];
        let high = &high[side * 16..][..16];
        let (shift, bit) = (pair * 2, 1u8 << (half * 4 + pair));
        for ((out, code), high) in out.iter_mut().zip(codes).zip(high) {
            let below = if high & bit == 0 { 4 } else { 0 };
            *out = scale * f32::from(((code >> shift) & 3) as i8 - below);
        }
    }
}

/// Scale and minimum of 32 values, 6 bits each.
#[inline(always)]
fn scale_and_minimum(group: usize, packed: &[u8]) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (low, first, second) = (packed[group + 4], packed[group - 4], packed[group]);
        ((low & 15) | ((first >> 6) << 4), (low >> 4) | ((second >> 6) << 4))
    }
}

/// `d`, `dmin`, scales and minima, codes of 4 bits.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(group, packed);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let shift = group % 2 * 4;
        for (out, code) in out.iter_mut().zip(&codes[group / 2 * 32..][..32]) {
            *out = scale * f32::from((code >> shift) & 15) - minimum;
        }
    }
}

/// `d`, `dmin`, scales and minima, the fifth bits, codes of 4 bits.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(group, packed);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let shift = group % 2 * 4;
        for ((out, code), high) in out.iter_mut().zip(&codes[group / 2 * 32..][..32]).zip(high) {
            let fifth = ((high >> group) & 1) << 4;
            *out = scale * f32::from(((code >> shift) & 15) | fifth) - minimum;
        }
    }
}

/// The low 4 bits, the high 2 bits, scales of 8 bits, `d`.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // 128 values share 64 bytes of low and 32 of high bits.
        let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
        let scale = d * f32::from(scales[group] as i8);
        let low = &low[half * 64 + quarter % 2 * 32 + side * 16..][..16];
        let high = &high[half * 32 + side * 16..][..16];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let low = (low >> (quarter / 2 * 4)) & 15;
            let high = (high >> (quarter * 2)) & 3;
            *out = scale * f32::from((low | (high << 4)) as i8 - 32);
        }
    }
}
