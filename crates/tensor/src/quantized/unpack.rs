//! From 4-bit codes to floats, the inner loop of every product with a 4-bit weight.

#[cfg(target_arch = "x86_64")]
use crate::instructions::Instructions;

/// `out[2i] = map[bytes[i] >> 4] · scale`, `out[2i + 1] = map[bytes[i] & 15] · scale`.
#[inline(always)]
pub(crate) fn unpack_block(bytes: &[u8], map: &[f32; 16], scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if Instructions::Avx512.are_allowed()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
    {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions.
        unsafe {
            avx512::unpack(bytes, map, scale, out);
        }
        return;
    }
    plain(bytes, map, scale, out);
}

#[inline(always)]
fn plain(bytes: &[u8], map: &[f32; 16], scale: f32, out: &mut [f32]) {
    for (byte, pair) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = [byte >> 4, byte & 15].map(|code| map[usize::from(code)] * scale);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Sixteen bytes at a time: their halves are interleaved into 32 codes in order, and a permutation looks 16 of them
    /// up at once.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn unpack(bytes: &[u8], map: &[f32; 16], scale: f32, out: &mut [f32]) {
        let (wide, rest) = bytes.as_chunks::<16>();
        let (wide_out, rest_out) = out.split_at_mut(wide.len() * 32);
        // SAFETY: a float for each of the vector's 16 lanes is read.
        let map_lanes = unsafe { _mm512_loadu_ps(map.as_ptr()) };
        let scaled = _mm512_mul_ps(map_lanes, _mm512_set1_ps(scale));
        let low = _mm_set1_epi8(15);
        for (bytes, out) in wide.iter().zip(wide_out.as_chunks_mut::<32>().0) {
            // SAFETY: 16 bytes are read from an array of 16.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low);
            let low = _mm_and_si128(bytes, low);
            let first = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, low));
            let second = _mm512_cvtepu8_epi32(_mm_unpackhi_epi8(high, low));
            let (first, second) = (_mm512_permutexvar_ps(first, scaled), _mm512_permutexvar_ps(second, scaled));
            let out = out.as_mut_ptr();
            // SAFETY: two times 16 floats are written to an array of 32.
            unsafe {
                _mm512_storeu_ps(out, first);
                _mm512_storeu_ps(out.add(16), second);
            }
        }
        super::plain(rest, map, scale, rest_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_equals_the_plain_one() {
        let map: [f32; 16] = std::array::from_fn(|code| (code as f32 - 7.0) * 0.1);
        let bytes: Vec<u8> = (0..=255).chain(7..40).collect();
        for length in [0, 1, 15, 16, 31, 32, 47, 200, bytes.len()] {
            let (mut found, mut expected) = (vec![0.0; 2 * length], vec![0.0; 2 * length]);
            unpack_block(&bytes[..length], &map, 0.7, &mut found);
            plain(&bytes[..length], &map, 0.7, &mut expected);
            assert_eq!(found, expected, "{length}");
        }
    }
}
