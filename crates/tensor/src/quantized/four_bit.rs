//! 4-bit weights as bitsandbytes stores them (Dettmers et al. 2023, "QLoRA", section 3): the values in row-major order,
//! cut into blocks; a block's largest absolute value scales it to [-1, 1], and each value becomes the nearest of 16.
//! Codes, scales and dequantised values equal bitsandbytes' to the bit.

use std::ops::Range;

use rayon::prelude::*;

use crate::frozen::WeightFormat;
use crate::kernels::bf16::coded::{CodeLayout, CodedStrip, Scales};
use crate::kernels::bf16::{DEPTH, LANES};
use crate::quantized::absmax::{Absmax, NestedAbsmax};
use crate::quantized::bytes::Bytes;
use crate::quantized::unpack::unpack_block;

/// Values a block has unless a file says otherwise.
pub const BLOCK_SIZE: usize = 64;

/// The 16 values that codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBitType {
    /// 4-bit NormalFloat: quantiles of the normal distribution.
    Nf4,
    /// 4-bit float with three exponent bits' worth of steps, as bitsandbytes has it.
    Fp4,
}

/// How to quantise (`bnb_4bit_quant_type`, `bnb_4bit_use_double_quant`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourBitOptions {
    /// The 16 values.
    pub quant_type: FourBitType,
    /// Whether the scales are quantised as well.
    pub double_quant: bool,
}

/// A weight that cannot be quantised, or whose parts don't fit each other.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FourBitError {
    /// The size of the codes is wrong.
    #[error("{found} bytes of 4-bit codes, but {rows} × {cols} values need {expected}")]
    Codes {
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// Bytes it needs.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The number of scales is wrong.
    #[error("{found} scales (absmax), but {rows} × {cols} values in blocks of {block_size} need {expected}")]
    Scales {
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// Values a block.
        block_size: usize,
        /// Scales it needs.
        expected: usize,
        /// Scales there are.
        found: usize,
    },
    /// The number of second-level scales is wrong.
    #[error("{found} scales of scales (nested_absmax), but {scales} scales in blocks of {block_size} need {expected}")]
    NestedScales {
        /// First-level scales.
        scales: usize,
        /// First-level scales a block.
        block_size: usize,
        /// Second-level scales they need.
        expected: usize,
        /// Second-level scales there are.
        found: usize,
    },
    /// A block size that is no power of two from 32 to 4096.
    #[error("blocks of {0} values; a power of two from 32 to 4096 is expected")]
    BlockSize(usize),
    /// A value is NaN or infinite.
    #[error("value {value} at row {row}, column {col}: only finite values can be quantised")]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        value: f32,
    },
}

/// A weight `[rows, cols]` in four bits a value.
#[derive(Debug)]
pub struct FourBitWeight {
    shape: (usize, usize),
    codes: Bytes,
    absmax: Absmax,
    block_size: usize,
    quant_map: [f32; 16],
}

impl FourBitType {
    /// bitsandbytes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The type of bitsandbytes' name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Nf4, Self::Fp4].into_iter().find(|kind| kind.name() == name)
    }

    /// What each code stands for.
    pub fn quant_map(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            Self::Fp4 => FP4.map(|value| value / 12.0),
        }
    }

    /// The codes in ascending order of their values.
    fn ascending(self) -> [u8; 16] {
        match self {
            Self::Nf4 => std::array::from_fn(|code| code as u8),
            // The two zeros stand in bitsandbytes' order.
            Self::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// In twelfths.
const FP4: [f32; 16] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

impl FourBitWeight {
    /// Quantises a row-major weight `[rows, cols]`.
    ///
    /// # Errors
    /// [`FourBitError::NotFinite`] naming the first value that is not finite.
    ///
    /// # Panics
    /// If `values` has not `rows · cols` values.
    pub fn quantize(values: &[f32], shape: (usize, usize), options: FourBitOptions) -> Result<Self, FourBitError> {
        assert_eq!(values.len(), shape.0 * shape.1, "a weight has as many values as its shape says");
        let quant_map = options.quant_type.quant_map();
        let order = options.quant_type.ascending();
        let thresholds: [f32; 15] = std::array::from_fn(|index| {
            let [low, high] = [order[index], order[index + 1]].map(|code| quant_map[usize::from(code)]);
            (low + high) / 2.0
        });
        let mut codes = vec![0; values.len().div_ceil(2)];
        let scales: Vec<f32> = values
            .par_chunks(BLOCK_SIZE)
            .zip(codes.par_chunks_mut(BLOCK_SIZE / 2))
            .with_min_len(1024)
            .map(|(block, codes)| quantize_block(block, codes, &thresholds, &order))
            .collect();
        if scales.iter().any(|scale| !scale.is_finite())
            && let Some(index) = values.iter().position(|value| !value.is_finite())
        {
            return Err(FourBitError::NotFinite { row: index / shape.1, col: index % shape.1, value: values[index] });
        }
        let absmax = match options.double_quant {
            true => Absmax::Nested(NestedAbsmax::quantize(&scales)),
            false => Absmax::Float(scales),
        };
        Ok(Self { shape, codes: codes.into(), absmax, block_size: BLOCK_SIZE, quant_map })
    }

    /// A weight `[rows, cols]` from its parts: `codes` hold two values a byte, the earlier in the high half; `block_size`
    /// values share a scale.
    ///
    /// # Errors
    /// [`FourBitError`] where the parts don't fit each other.
    pub fn from_parts(
        shape: (usize, usize),
        codes: Bytes,
        absmax: Absmax,
        block_size: usize,
        quant_map: [f32; 16],
    ) -> Result<Self, FourBitError> {
        let (rows, cols) = shape;
        if !block_size.is_power_of_two() || !(32..=4096).contains(&block_size) {
            return Err(FourBitError::BlockSize(block_size));
        }
        let values = rows * cols;
        let (expected, found) = (values.div_ceil(2), codes.len());
        if expected != found {
            return Err(FourBitError::Codes { rows, cols, expected, found });
        }
        let (expected, found) = (values.div_ceil(block_size), absmax.len());
        if expected != found {
            return Err(FourBitError::Scales { rows, cols, block_size, expected, found });
        }
        if let Absmax::Nested(nested) = &absmax {
            let (scales, block_size, found) = (nested.codes.len(), nested.block_size, nested.absmax.len());
            if !block_size.is_power_of_two() || !(32..=4096).contains(&block_size) {
                return Err(FourBitError::BlockSize(block_size));
            }
            let expected = scales.div_ceil(block_size);
            if expected != found {
                return Err(FourBitError::NestedScales { scales, block_size, expected, found });
            }
        }
        Ok(Self { shape, codes, absmax, block_size, quant_map })
    }

    /// `(rows, cols)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Two codes a byte, the earlier in the high half.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// Values that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// What each code stands for.
    pub fn quant_map(&self) -> &[f32; 16] {
        &self.quant_map
    }

    /// Writes the values from place `start` of the row-major order on to `out`.
    ///
    /// # Panics
    /// If that reaches beyond the last value.
    pub fn dequantize(&self, start: usize, out: &mut [f32]) {
        let (mut start, mut out) = (start, out);
        while !out.is_empty() {
            let block = start / self.block_size;
            let length = (self.block_size - start % self.block_size).min(out.len());
            let (part, rest) = out.split_at_mut(length);
            let scale = self.absmax.of_block(block);
            if start.is_multiple_of(2) && length.is_multiple_of(2) {
                unpack_block(&self.codes[start / 2..(start + length) / 2], &self.quant_map, scale, part);
            } else {
                for (place, value) in (start..).zip(part) {
                    let byte = self.codes[place / 2];
                    let code = if place % 2 == 0 { byte >> 4 } else { byte & 15 };
                    *value = self.quant_map[usize::from(code)] * scale;
                }
            }
            (start, out) = (start + length, rest);
        }
    }
}

impl WeightFormat for FourBitWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len().max(1))) {
            self.dequantize(row * self.shape.1 + cols.start, out);
        }
    }

    fn coded(&self, strip: usize) -> Option<CodedStrip<'_>> {
        let (rows, cols) = self.shape;
        let (first, end) = (strip * LANES, rows.min((strip + 1) * LANES));
        cols.is_multiple_of(DEPTH).then(|| CodedStrip {
            layout: CodeLayout::Pairs,
            map: &self.quant_map,
            scales: Scales::Absmax { absmax: &self.absmax, block_size: self.block_size, first: first * cols },
            bytes: &self.codes[first * cols / 2..end * cols / 2],
            rows: end - first,
            cols,
        })
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.absmax.bytes() + size_of_val(&self.quant_map)
    }

    fn as_four_bit(&self) -> Option<&Self> {
        Some(self)
    }
}

/// Writes a block's codes and returns its scale.
fn quantize_block(block: &[f32], codes: &mut [u8], thresholds: &[f32; 15], order: &[u8; 16]) -> f32 {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if block.iter().any(|value| value.is_nan()) {
        return f32::NAN;
    }
    // bitsandbytes multiplies whole blocks with the reciprocal and divides the last, shorter one.
    let scale = |value: f32| {
        let scaled =
            if block.len() == BLOCK_SIZE { value * (1.0 / largest.max(1e-38)) } else { value / largest.max(1e-38) };
        scaled.clamp(-1.0, 1.0)
    };
    let code = |value: f32| {
        let scaled = scale(value);
        // A value on a threshold goes to the lower code.
        let rank: u8 = thresholds.iter().map(|threshold| u8::from(scaled > *threshold)).sum();
        order[usize::from(rank)]
    };
    let zero = code(0.0);
    for (pair, byte) in block.chunks(2).zip(codes) {
        let low = pair.get(1).map_or(zero, |value| code(*value));
        *byte = (code(pair[0]) << 4) | low;
    }
    if block.len() == BLOCK_SIZE { largest } else { largest.max(1e-38) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::finite_differences::random;
    use crate::{FrozenWeight, Kernels, Matrix, Precision, Tape, Workspace};

    fn options(quant_type: FourBitType, double_quant: bool) -> FourBitOptions {
        FourBitOptions { quant_type, double_quant }
    }

    fn dequantized(weight: &FourBitWeight) -> Vec<f32> {
        let mut out = vec![0.0; weight.shape.0 * weight.shape.1];
        weight.dequantize(0, &mut out);
        out
    }

    #[test]
    fn the_earlier_value_stands_in_the_high_half() {
        let values: Vec<f32> = NF4.iter().copied().chain([1.0; 48]).collect();
        let weight = FourBitWeight::quantize(&values, (1, 64), options(FourBitType::Nf4, false)).unwrap();
        assert_eq!(weight.codes()[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        assert!(weight.codes()[8..].iter().all(|byte| *byte == 0xff));
        assert_eq!(dequantized(&weight), values);
    }

    #[test]
    fn a_value_on_a_threshold_goes_to_the_lower_code() {
        let threshold = (NF4[8] + NF4[9]) / 2.0;
        let above = threshold.next_up();
        let values: Vec<f32> = [1.0, threshold, above].into_iter().chain([0.0; 61]).collect();
        let weight = FourBitWeight::quantize(&values, (1, 64), options(FourBitType::Nf4, false)).unwrap();
        assert_eq!(dequantized(&weight)[1..3], [NF4[8], NF4[9]]);
    }

    #[test]
    fn blocks_of_zeros_stay_zero() {
        for quant_type in [FourBitType::Nf4, FourBitType::Fp4] {
            for values in [128, 100] {
                let weight =
                    FourBitWeight::quantize(&vec![0.0; values], (1, values), options(quant_type, true)).unwrap();
                assert!(dequantized(&weight).iter().all(|value| *value == 0.0), "{quant_type:?} {values}");
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut values = vec![0.5; 256];
            values[200] = value;
            let error = FourBitWeight::quantize(&values, (2, 128), options(FourBitType::Nf4, true)).unwrap_err();
            assert!(matches!(error, FourBitError::NotFinite { row: 1, col: 72, .. }), "{error}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let build = |codes: usize, scales: usize, block_size| {
            let absmax = Absmax::Float(vec![1.0; scales]);
            FourBitWeight::from_parts((4, 64), vec![0; codes].into(), absmax, block_size, NF4).map(|_| ())
        };
        assert_eq!(build(128, 4, 64), Ok(()));
        assert_eq!(build(128, 4, 48), Err(FourBitError::BlockSize(48)));
        assert!(matches!(build(127, 4, 64), Err(FourBitError::Codes { expected: 128, found: 127, .. })));
        assert!(matches!(build(128, 3, 64), Err(FourBitError::Scales { expected: 4, found: 3, .. })));
    }

    #[test]
    fn four_bits_and_an_eighth_a_value() {
        let weight = random(256, 1024, 0);
        let bytes = |double| {
            FourBitWeight::quantize(weight.data(), weight.shape(), options(FourBitType::Nf4, double)).unwrap().bytes()
        };
        let bits = |bytes: usize| bytes as f64 * 8.0 / f64::from(256 * 1024);
        assert!((bits(bytes(false)) - 4.5).abs() < 0.01 && (bits(bytes(true)) - 4.127).abs() < 0.05);
    }

    proptest! {
        #[test]
        fn quantising_again_changes_nothing(
            values in proptest::collection::vec(-1e3f32..1e3, 1..400),
            fp4 in any::<bool>(),
        ) {
            let quant_type = if fp4 { FourBitType::Fp4 } else { FourBitType::Nf4 };
            let shape = (1, values.len());
            let first = FourBitWeight::quantize(&values, shape, options(quant_type, false)).unwrap();
            let decoded = dequantized(&first);
            let second = FourBitWeight::quantize(&decoded, shape, options(quant_type, false)).unwrap();
            prop_assert_eq!(&decoded, &dequantized(&second));
            prop_assert_eq!(first.absmax(), second.absmax());
        }

        #[test]
        fn errors_are_at_most_half_the_widest_gap(values in proptest::collection::vec(-8f32..8.0, 1..400)) {
            let weight = FourBitWeight::quantize(&values, (1, values.len()), options(FourBitType::Nf4, false)).unwrap();
            for (index, (value, decoded)) in values.iter().zip(dequantized(&weight)).enumerate() {
                let bound = weight.absmax().of_block(index / BLOCK_SIZE) * 0.15191;
                prop_assert!((value - decoded).abs() <= bound, "{value} became {decoded}");
            }
        }

        #[test]
        fn double_quantisation_moves_scales_by_little(values in proptest::collection::vec(-8f32..8.0, 64..4000)) {
            let shape = (1, values.len());
            let [plain, double] = [false, true]
                .map(|double| FourBitWeight::quantize(&values, shape, options(FourBitType::Nf4, double)).unwrap());
            prop_assert_eq!(plain.codes(), double.codes());
            let scales = || (0..plain.absmax().len()).map(|block| plain.absmax().of_block(block));
            let mean = scales().sum::<f32>() / plain.absmax().len() as f32;
            let spread = scales().fold(0.0f32, |spread, scale| spread.max((scale - mean).abs()));
            for (block, scale) in scales().enumerate() {
                // The widest gap of the dynamic map is 0.0141, next to the end it lacks 0.007.
                prop_assert!((scale - double.absmax().of_block(block)).abs() <= 0.0072 * spread + 1e-5);
            }
        }

        #[test]
        fn any_part_can_be_read(length in 1usize..500, start in 0usize..500, count in 0usize..300, block in 5u32..9) {
            let start = start % length;
            let count = count.min(length - start);
            let mut stream = crate::Seed(7).stream("codes", length as u64);
            let codes: Vec<u8> = (0..length.div_ceil(2)).map(|_| stream.below(256) as u8).collect();
            let block_size = 1 << block;
            let scales: Vec<f32> = (0..length.div_ceil(block_size)).map(|_| stream.uniform()).collect();
            let absmax = Absmax::Float(scales.clone());
            let weight =
                FourBitWeight::from_parts((1, length), codes.clone().into(), absmax, block_size, NF4).unwrap();
            let mut found = vec![f32::NAN; count];
            weight.dequantize(start, &mut found);
            for (place, found) in (start..).zip(found) {
                let code = (codes[place / 2] >> if place % 2 == 0 { 4 } else { 0 }) & 15;
                prop_assert_eq!(found, NF4[usize::from(code)] * scales[place / block_size]);
            }
        }
    }

    #[test]
    fn products_are_those_of_the_dequantised_weight() {
        for (rows, cols, tokens) in [(5, 7, 3), (300, 192, 9), (2000, 320, 1), (64, 5000, 33)] {
            let weight = random(rows, cols, 1);
            let four_bit =
                FourBitWeight::quantize(weight.data(), (rows, cols), options(FourBitType::Nf4, true)).unwrap();
            let float = FrozenWeight::float32(Matrix::from_vec(rows, cols, dequantized(&four_bit)));
            let four_bit = FrozenWeight::stored(four_bit);
            assert_eq!(four_bit.to_matrix(), float.to_matrix());
            let workspace = Workspace::with_kernels(Kernels::detect().with_precision(Precision::Bf16));
            let products = |weight: &FrozenWeight| {
                let (x, dy) = (random(tokens, cols, 2), random(tokens, rows, 3));
                (weight.product(&workspace, &x), weight.product_gradient(&workspace, &dy))
            };
            let bf16 = FrozenWeight::bf16(&float.to_matrix());
            assert!(products(&four_bit) == products(&bf16), "{rows} {cols} {tokens}: bf16");
            let pass = |weight: &FrozenWeight| {
                let workspace = Workspace::with_kernels(Kernels::detect());
                let mut gradients = crate::Gradients::new(&workspace);
                let parameter = crate::Parameter::new("x", random(tokens, cols, 2));
                let mut tape = Tape::differentiating(&workspace);
                let x = tape.parameter(&parameter);
                let y = tape.linear(&x, weight, None);
                let values = y.value().to_vec();
                tape.backward(y, random(tokens, rows, 3), &mut gradients);
                (values, gradients.get(parameter.id()).unwrap().to_vec())
            };
            let (found, expected) = (pass(&four_bit), pass(&float));
            for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let close = |(left, right): (&f32, &f32)| (left - right).abs() <= 1e-5 * largest;
                assert!(found.iter().zip(&expected).all(close), "{rows} {cols} {tokens}");
            }
        }
    }
}
