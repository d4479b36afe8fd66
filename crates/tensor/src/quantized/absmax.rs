//! The scales of a 4-bit weight, one a block: float32, or 8-bit again (double quantisation, Dettmers et al. 2023,
//! section 3) as bitsandbytes does it: the mean is taken off, what is left is quantised in blocks of 256 with the
//! dynamic 8-bit map (Dettmers 2015).

/// Values an 8-bit block of double quantisation has.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The largest absolute value of each block of a 4-bit weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// One float a block.
    Float(Vec<f32>),
    /// One byte a block.
    Nested(NestedAbsmax),
}

/// `absmax[b] = quant_map[codes[b]] · absmax[b / block_size] + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedAbsmax {
    /// An index into the map for each block of the weight.
    pub codes: Vec<u8>,
    /// The largest absolute value of each `block_size` of them, the offset taken off.
    pub absmax: Vec<f32>,
    /// What the codes stand for, ascending.
    pub quant_map: Box<[f32; 256]>,
    /// The mean of all blocks.
    pub offset: f32,
    /// Codes that share a scale.
    pub block_size: usize,
}

impl Absmax {
    /// Blocks of the weight.
    pub fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of a block.
    #[inline(always)]
    pub fn of_block(&self, block: usize) -> f32 {
        match self {
            Self::Float(values) => values[block],
            Self::Nested(nested) => nested.of_block(block),
        }
    }

    /// Writes the scales of the values number `first`, `first + stride` and so on of a weight in blocks of `block_size`
    /// values, a power of two like that of nested blocks.
    #[inline(always)]
    pub(crate) fn of_values(&self, first: usize, stride: usize, block_size: usize, scales: &mut [f32]) {
        let shift = block_size.trailing_zeros();
        let scales = scales.iter_mut().enumerate().map(|(place, scale)| ((first + place * stride) >> shift, scale));
        match self {
            Self::Float(values) => scales.for_each(|(block, scale)| *scale = values[block]),
            Self::Nested(nested) => {
                let nested_shift = nested.block_size.trailing_zeros();
                scales.for_each(|(block, scale)| *scale = nested.scale(block, block >> nested_shift));
            }
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Float(values) => size_of_val(&values[..]),
            Self::Nested(nested) => nested.codes.len() + 4 * (nested.absmax.len() + nested.quant_map.len()),
        }
    }
}

impl NestedAbsmax {
    /// Quantises scales.
    pub fn quantize(scales: &[f32]) -> Self {
        let offset = torch_sum(scales) / scales.len().max(1) as f32;
        let quant_map = Box::new(dynamic_map());
        let nearest = nearest_by_grid(&quant_map);
        let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK_SIZE));
        for block in centred.chunks(NESTED_BLOCK_SIZE) {
            let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            absmax.push(largest);
            let reciprocal = 1.0 / largest;
            codes.extend(block.iter().map(
                |value| {
                    if largest == 0.0 { 0 } else { nearest[grid_index(value * reciprocal)] }
                },
            ));
        }
        Self { codes, absmax, quant_map, offset, block_size: NESTED_BLOCK_SIZE }
    }

    #[inline(always)]
    fn of_block(&self, block: usize) -> f32 {
        self.scale(block, block / self.block_size)
    }

    /// The scale of `block`, which belongs to the nested block `nested`.
    #[inline(always)]
    fn scale(&self, block: usize, nested: usize) -> f32 {
        self.quant_map[usize::from(self.codes[block])] * self.absmax[nested] + self.offset
    }
}

/// Points of the grid over [-1, 1] that bitsandbytes rounds to on the CPU before it looks up the nearest code.
const GRID: usize = 1 << 16;

fn grid_index(value: f32) -> usize {
    const LAST: f32 = (GRID - 1) as f32;
    (((value + 1.0) * 0.5 * LAST + 0.5) as usize).min(GRID - 1)
}

/// The nearest entry of `map` for each grid point.
fn nearest_by_grid(map: &[f32; 256]) -> Vec<u8> {
    let nearest = |index: usize| {
        let value = index as f32 / (GRID - 1) as f32 * 2.0 - 1.0;
        let above = map.partition_point(|entry| *entry < value).clamp(1, map.len() - 1);
        let below_is_nearer = value - map[above - 1] <= map[above] - value;
        (if below_is_nearer { above - 1 } else { above }) as u8
    };
    (0..GRID).map(nearest).collect()
}

/// The signed dynamic 8-bit map: 2^i midpoints of 2^i + 1 points from 0.1 to 1, times 10^(i-6), for i in 0..7, with
/// both signs, and 0 and 1; ascending.
pub fn dynamic_map() -> [f32; 256] {
    const EXPONENTS: i32 = 7;
    let mut entries = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let scale = 10f64.powi(exponent - (EXPONENTS - 1)) as f32;
        let boundaries = linspace(0.1, 1.0, (1 << exponent) + 1);
        for pair in boundaries.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            entries.extend([scale * mean, -scale * mean]);
        }
    }
    entries.sort_by(f32::total_cmp);
    entries.try_into().expect("2 + 2·(2^7 - 1) entries are 256")
}

/// PyTorch's `linspace`: counts from the nearer end, each product and sum rounded together.
fn linspace(start: f32, end: f32, points: usize) -> Vec<f32> {
    let step = f64::from((end - start) / (points - 1) as f32);
    let at = |index: usize| {
        let from_end = points - 1 - index;
        if index < points / 2 {
            f64::from(start) + step * index as f64
        } else {
            f64::from(end) - step * from_end as f64
        }
    };
    (0..points).map(|index| at(index) as f32).collect()
}

/// The sum in the order of PyTorch's CPU kernel on one thread, so that offsets agree to the bit: eight lanes, four
/// vectors at a time, carried through cascading accumulators; then the rest, then the lanes.
fn torch_sum(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const UNROLLED: usize = 4;
    const WIDTH: usize = LANES * UNROLLED;
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (wide, odd) = vectors.as_chunks::<UNROLLED>();
    let sums = cascade(wide.as_flattened().as_flattened().as_chunks::<WIDTH>().0);
    let mut lanes: [f32; LANES] = std::array::from_fn(|lane| sums[lane]);
    for vector in odd {
        lanes.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
    }
    for part in sums.as_chunks::<LANES>().0.iter().skip(1) {
        lanes.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    rest.iter().chain(&lanes).fold(0.0, |sum, value| sum + value)
}

/// Sums rows elementwise through four levels of accumulators, each taking over the one below when that has summed
/// `2^power` times.
fn cascade<const WIDTH: usize>(rows: &[[f32; WIDTH]]) -> [f32; WIDTH] {
    const LEVELS: usize = 4;
    let log = rows.len().max(1).next_power_of_two().trailing_zeros() as usize;
    let power = (log / LEVELS).max(4);
    let mut levels = [[0.0f32; WIDTH]; LEVELS];
    let add = |sums: &mut [f32; WIDTH], other: &[f32; WIDTH]| {
        sums.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
    };
    for (index, row) in rows.iter().enumerate() {
        add(&mut levels[0], row);
        let mut done = index + 1;
        for level in 1..LEVELS {
            if done % (1 << power) != 0 {
                break;
            }
            done >>= power;
            let below = std::mem::replace(&mut levels[level - 1], [0.0; WIDTH]);
            add(&mut levels[level], &below);
        }
    }
    let [mut sums, above @ ..] = levels;
    above.iter().for_each(|level| add(&mut sums, level));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_symmetric_but_for_its_largest_entry() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        for index in 0..127 {
            assert_eq!(map[index], -map[254 - index]);
        }
    }

    #[test]
    fn sums_agree_with_the_exact_sum() {
        let mut stream = crate::Seed(4).stream("sum", 0);
        for length in [0, 1, 7, 8, 31, 33, 500, 5000, 70_001] {
            let values: Vec<f32> = (0..length).map(|_| stream.uniform()).collect();
            let exact: f64 = values.iter().map(|value| f64::from(*value)).sum();
            assert!((f64::from(torch_sum(&values)) - exact).abs() <= 1e-6 * exact, "{length}");
        }
    }

    #[test]
    fn equal_scales_are_exact() {
        let nested = NestedAbsmax::quantize(&[0.25; 300]);
        assert_eq!((nested.offset, nested.absmax.len()), (0.25, 2));
        assert!((0..300).all(|block| nested.of_block(block) == 0.25));
    }
}
