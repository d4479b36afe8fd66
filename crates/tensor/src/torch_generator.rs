//! PyTorch's generator for the processor, bit for bit: what files leave out because PyTorch draws it again can be had here.
//!
//! MT19937 (Matsumoto and Nishimura 1998), seeded by the lower 32 bits, with ATen's way of making float32 values of it.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator(device="cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    words: Vec<u32>,
    /// The next word to give; `WORDS` when they are used up.
    next: usize,
}

impl TorchGenerator {
    /// A generator at its start.
    pub fn new(seed: u64) -> Self {
        let mut words = vec![seed as u32; WORDS];
        for place in 1..WORDS {
            let before = words[place - 1];
            words[place] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(place as u32);
        }
        Self { words, next: WORDS }
    }

    /// Uniform in `[low, high)`, as `tensor.uniform_(low, high)` fills a float32 tensor with one value after another.
    pub fn uniform_between(&mut self, low: f32, high: f32) -> f32 {
        let part = f64::from(self.next_u32() & 0x00ff_ffff) / f64::from(1 << 24);
        (part * f64::from(high - low) + f64::from(low)) as f32
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.refill();
        }
        let mut bits = self.words[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    fn refill(&mut self) {
        for place in 0..WORDS {
            let joined = (self.words[place] & 0x8000_0000) | (self.words[(place + 1) % WORDS] & 0x7fff_ffff);
            let twist = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
            self.words[place] = self.words[(place + SHIFT) % WORDS] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_torch_to_the_bit() {
        let places = [0, 1, 2, 623, 624, 699];
        for (seed, expected) in [
            (5, [1_065_198_121, 3_213_857_483, 1_067_218_918, 3_181_459_344, 1_064_457_289, 3_216_873_038]),
            ((1 << 32) + 7, [1_037_471_848, 3_211_219_380, 1_056_214_166, 3_215_037_119, 3_179_370_456, 1_058_734_819]),
        ] {
            let mut generator = TorchGenerator::new(seed);
            let values: Vec<u32> = (0..700).map(|_| generator.uniform_between(-1.5, 1.5).to_bits()).collect();
            assert_eq!(places.map(|place| values[place]), expected, "seed {seed}");
        }
    }
}
