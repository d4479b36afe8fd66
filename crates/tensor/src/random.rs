//! Seeded randomness with named streams: the only source of randomness in the project.
//!
//! A stream is a pure function of the seed, its name and its index (a step, a request, a row), so nothing has to be
//! saved to resume a run, and no result depends on the number of threads or on what else was drawn.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The seed of a run; every stream of randomness is derived from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The stream `name`, number `index`: the same three always give the same values.
    pub fn stream(self, name: &str, index: u64) -> Stream {
        let mut key = [0u8; 32];
        let words = [self.0, hash_name(name), index, 0x7475_6e65_736d_6974];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Stream { generator: ChaCha8Rng::from_seed(key) }
    }

    /// A seed for a part of the run that makes streams of its own.
    pub fn derive(self, name: &str, index: u64) -> Self {
        Self(self.stream(name, index).next_u64())
    }
}

/// FNV-1a: stable across releases, unlike the standard library's hasher.
fn hash_name(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Which places of a row are dropped: a function of a key, the row and the place, so masks are drawn in parallel, drawn again
/// on the way back, and never stored. A row's key comes from SplitMix64 (Steele et al. 2014), a place's bits from the key by
/// MurmurHash3's finaliser (Appleby 2011), which takes 32 bits and so vectorises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowMask {
    low: u32,
    high: u32,
    dropped: u32,
}

impl RowMask {
    const BITS: u32 = 24;

    /// The mask of row `row`, each of whose places is dropped with probability `p`.
    #[inline(always)]
    pub(crate) fn new(key: u64, row: u64, p: f32) -> Self {
        let row_key = split_mix(key, row);
        let dropped = (p * (1 << Self::BITS) as f32).ceil() as u32;
        Self { low: row_key as u32, high: (row_key >> 32) as u32, dropped }
    }

    /// Whether `place` is dropped.
    #[inline(always)]
    pub(crate) fn drops(self, place: u32) -> bool {
        let mut bits = place.wrapping_mul(0x9e37_79b9).wrapping_add(self.low);
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b) ^ self.high;
        bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
        (bits ^ (bits >> 16)) >> (u32::BITS - Self::BITS) < self.dropped
    }

    /// Which of the 16 places from `first` on [`drops`](Self::drops) says so of, the first in the lowest bit.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn dropped_lanes(self, first: u32) -> u16 {
        use std::arch::x86_64::*;
        let all = |bits: u32| _mm512_set1_epi32(bits.cast_signed());
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let place = _mm512_add_epi32(lanes, all(first));
        let bits = _mm512_add_epi32(_mm512_mullo_epi32(place, all(0x9e37_79b9)), all(self.low));
        let bits = _mm512_mullo_epi32(_mm512_xor_si512(bits, _mm512_srli_epi32::<16>(bits)), all(0x85eb_ca6b));
        let bits = _mm512_xor_si512(bits, all(self.high));
        let bits = _mm512_mullo_epi32(_mm512_xor_si512(bits, _mm512_srli_epi32::<13>(bits)), all(0xc2b2_ae35));
        let bits = _mm512_xor_si512(bits, _mm512_srli_epi32::<16>(bits));
        _mm512_cmplt_epu32_mask(_mm512_srli_epi32::<{ u32::BITS - Self::BITS }>(bits), all(self.dropped))
    }
}

/// Zeroes each of `values`, which are places `first` on of row `row`, with probability `p`, and multiplies the others by
/// `1/(1 − p)`.
#[inline(always)]
pub(crate) fn drop_values(key: u64, row: u64, first: u32, p: f32, values: &mut [f32]) {
    let mask = RowMask::new(key, row, p);
    let scale = 1.0 / (1.0 - p);
    let mut place = first;
    for value in values {
        *value = if mask.drops(place) { 0.0 } else { *value * scale };
        place = place.wrapping_add(1);
    }
}

/// Value number `index` of the sequence that `key` names, read at random access.
fn split_mix(key: u64, index: u64) -> u64 {
    let mut bits = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A sequence of random values.
#[derive(Clone, Debug)]
pub struct Stream {
    generator: ChaCha8Rng,
}

impl Stream {
    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// Uniform in `[0, 1)`, with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.generator.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in `[low, high)`.
    pub fn uniform_between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal, by Box and Muller's transform.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * f64::ln(1.0 - f64::from(self.uniform()))).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        (radius * angle.cos()) as f32
    }

    /// Uniform in `0..bound`, without bias.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a range to draw from must not be empty");
        let reject_from = u64::MAX - u64::MAX % bound;
        loop {
            let draw = self.next_u64();
            if draw < reject_from {
                return draw % bound;
            }
        }
    }

    /// Brings `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn lanes_of_a_mask_are_its_places() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        for row in 0..50 {
            let mask = RowMask::new(7, row, 0.3);
            for first in [0, 5, u32::MAX - 3] {
                let places =
                    (0..16).filter(|lane| mask.drops(first.wrapping_add(*lane))).fold(0, |all, lane| all | 1 << lane);
                #[allow(unsafe_code)]
                // SAFETY: the processor has the instructions.
                let lanes = unsafe { mask.dropped_lanes(first) };
                assert_eq!(lanes, places, "row {row} from {first}");
            }
        }
    }

    #[test]
    fn streams_are_functions_of_seed_name_and_index() {
        let draw = |seed, name, index| Seed(seed).stream(name, index).next_u64();
        assert_eq!(draw(1, "init", 0), draw(1, "init", 0));
        let others = [draw(2, "init", 0), draw(1, "data", 0), draw(1, "init", 1)];
        assert!(others.iter().all(|other| *other != draw(1, "init", 0)));
    }

    /// How often two masks agree, and how often each keeps a value.
    #[test]
    fn masks_keep_the_rate_and_are_independent_of_their_neighbours() {
        const COLS: usize = 1000;
        const ROWS: u64 = 1000;
        const P: f32 = 0.3;
        let kept = |key: u64, row: u64| {
            let mut values = [1.0; COLS];
            drop_values(key, row, 0, P, &mut values);
            values.map(|value| value != 0.0)
        };
        let share = |first: &dyn Fn(u64) -> [bool; COLS], second: &dyn Fn(u64) -> [bool; COLS], shift: usize| {
            let both = |row| first(row)[shift..].iter().zip(second(row)).filter(|(a, b)| **a && *b).count();
            (0..ROWS).map(both).sum::<usize>() as f64 / (ROWS * (COLS - shift) as u64) as f64
        };
        let own = |row| kept(7, row);
        let (rate, independent) = (0.7, 0.49);
        // Four standard deviations of a million draws.
        assert!((share(&own, &own, 0) - rate).abs() < 0.002);
        for (other, shift) in [
            (&own as &dyn Fn(u64) -> [bool; COLS], 1),
            (&own, 2),
            (&own, 16),
            (&|row| kept(7, row + 1), 0),
            (&|row| kept(8, row), 0),
        ] {
            assert!((share(&own, other, shift) - independent).abs() < 0.003, "shift {shift}");
        }
    }

    #[test]
    fn a_mask_is_the_same_read_in_parts() {
        let mut whole = [1.0; 70];
        drop_values(1, 2, 5, 0.5, &mut whole);
        let mut parts = [1.0; 70];
        let (first, second) = parts.split_at_mut(33);
        drop_values(1, 2, 5, 0.5, first);
        drop_values(1, 2, 38, 0.5, second);
        assert_eq!(whole, parts);
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut stream = Seed(3).stream("normal", 0);
        let draws: Vec<f64> = (0..100_000).map(|_| f64::from(stream.normal())).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Seed(5).stream("shuffle", 0).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
