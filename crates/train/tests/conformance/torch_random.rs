//! PyTorch's generator on the CPU: what the reference drew and its files do not hold can be drawn again.

/// The Mersenne Twister (Matsumoto and Nishimura 1998) with PyTorch's distributions.
pub(crate) struct TorchRandom {
    state: Vec<u32>,
    place: usize,
    /// The second of a pair of normal values.
    second: Option<f64>,
}

const SIZE: usize = 624;

impl TorchRandom {
    /// `torch.manual_seed(seed)`.
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = vec![seed];
        for place in 1..SIZE as u32 {
            let last = state[place as usize - 1];
            state.push(1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(place));
        }
        Self { state, place: SIZE, second: None }
    }

    fn next(&mut self) -> u32 {
        if self.place == SIZE {
            for place in 0..SIZE {
                let joined = (self.state[place] & 0x8000_0000) | (self.state[(place + 1) % SIZE] & 0x7fff_ffff);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[place] = self.state[(place + 397) % SIZE] ^ (joined >> 1) ^ odd;
            }
            self.place = 0;
        }
        let mut bits = self.state[self.place];
        self.place += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    fn unit(&mut self) -> f32 {
        (self.next() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    fn wide_unit(&mut self) -> f64 {
        let bits = (u64::from(self.next()) << 32) | u64::from(self.next());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `count` values of `uniform_(-bound, bound)`.
    pub(crate) fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        let (low, high) = (-bound as f32, bound as f32);
        (0..count).map(|_| self.unit() * (high - low) + low).collect()
    }

    /// `count` values of `normal_()`, or of `randn`.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < 16 {
            return (0..count).map(|_| self.single_normal()).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.unit()).collect();
        for block in values.chunks_exact_mut(16) {
            box_muller(block);
        }
        if !count.is_multiple_of(16) {
            let last = &mut values[count - 16..];
            for value in last.iter_mut() {
                *value = self.unit();
            }
            box_muller(last);
        }
        values
    }

    fn single_normal(&mut self) -> f32 {
        if let Some(second) = self.second.take() {
            return second as f32;
        }
        let (first, second) = (self.wide_unit(), self.wide_unit());
        let (radius, angle) = ((-2.0 * (-second).ln_1p()).sqrt(), std::f64::consts::TAU * first);
        self.second = Some(radius * angle.sin());
        (radius * angle.cos()) as f32
    }
}

/// Sixteen uniform values to as many normal ones.
fn box_muller(block: &mut [f32]) {
    for place in 0..8 {
        let (first, second) = (1.0 - block[place], block[place + 8]);
        let (radius, angle) = ((-2.0 * first.ln()).sqrt(), std::f32::consts::TAU * second);
        block[place] = radius * angle.cos();
        block[place + 8] = radius * angle.sin();
    }
}

#[test]
fn draws_what_pytorch_draws() {
    let close = |found: &[f32], expected: &[f32]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{found:?} and {expected:?}");
    };
    // torch.manual_seed(1); torch.nn.Embedding(5, 32); torch.nn.Linear(32, 16)
    let mut random = TorchRandom::new(1);
    let embedding = random.normal(160);
    close(&embedding[..4], &[-1.525_595_9, -0.750_231_8, -0.653_980_9, -1.609_484_8]);
    close(&embedding[156..], &[1.746_019_1, 1.854_969, -0.706_369_1, 2.557_086_2]);
    let bound = 1.0 / 32f64.sqrt();
    close(&random.uniform(512, bound)[..3], &[-0.132_101_9, 0.068_014_815, 0.056_598_518]);
    close(&random.uniform(16, bound)[..3], &[-0.163_769_3, 0.032_777_39, -0.011_268_065]);
    // torch.randn of 15, 16, 20 and 3 values in turn, from seed 7
    let mut random = TorchRandom::new(7);
    close(&random.normal(15)[..3], &[-0.146_795_1, 0.786_141_3, 0.946_821_6]);
    close(&random.normal(16)[..3], &[-0.083_528_23, -0.023_477_932, 0.174_375_36]);
    close(&random.normal(20)[15..], &[0.592_029_75, -0.755_653_56, 0.391_745_48, 0.746_980_85, 1.379_772_3]);
    close(&random.normal(3), &[1.347_022_7, -0.694_847, 0.906_228_2]);
}
