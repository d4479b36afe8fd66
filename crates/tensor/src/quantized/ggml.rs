//! Weights in the block formats of GGUF files, kept as they lie in the file
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>). A block has 32 or 256 values of one row. This is
//! the storage and the formats with 32; `k_quants` has those with 256.

use std::ops::Range;

use half::{bf16, f16};

use crate::frozen::WeightFormat;
use crate::kernels::bf16::coded::{self, CodeLayout, CodedStrip, NUMBERS, Scales};
use crate::kernels::bf16::{DEPTH, LANES};
use crate::quantized::bytes::Bytes;
use crate::quantized::k_quants;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the format")]
#[allow(non_camel_case_types, reason = "the names of the format")]
pub enum GgmlFormat {
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Blocks that don't make a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgmlError {
    /// Rows end within a block.
    #[error("rows of {cols} values cannot be cut into {format:?} blocks of {block}")]
    Columns {
        /// The format.
        format: GgmlFormat,
        /// Values a row.
        cols: usize,
        /// Values a block.
        block: usize,
    },
    /// The size is wrong.
    #[error("{found} bytes of {format:?} blocks, but {rows} × {cols} values need {expected}")]
    Size {
        /// The format.
        format: GgmlFormat,
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// Bytes it needs.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
}

impl GgmlFormat {
    /// Values a block.
    pub fn block_values(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Writes the values of whole blocks.
    ///
    /// # Panics
    /// If `blocks` and `out` don't hold the same number of whole blocks.
    pub fn dequantize(self, blocks: &[u8], out: &mut [f32]) {
        let (bytes, values) = (self.block_bytes(), self.block_values());
        assert!(
            blocks.len().is_multiple_of(bytes) && blocks.len() / bytes * values == out.len(),
            "blocks are dequantised whole"
        );
        crate::kernels::vectorised(
            #[inline(always)]
            || match self {
                Self::F16 => halves(blocks, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
                Self::Bf16 => halves(blocks, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
                Self::Q4_0 => each::<18, 32>(blocks, out, q4_0),
                Self::Q4_1 => each::<20, 32>(blocks, out, q4_1),
                Self::Q5_0 => each::<22, 32>(blocks, out, q5_0),
                Self::Q5_1 => each::<24, 32>(blocks, out, q5_1),
                Self::Q8_0 => each::<34, 32>(blocks, out, q8_0),
                Self::Q2_K => each::<84, 256>(blocks, out, k_quants::q2_k),
                Self::Q3_K => each::<110, 256>(blocks, out, k_quants::q3_k),
                Self::Q4_K => each::<144, 256>(blocks, out, k_quants::q4_k),
                Self::Q5_K => each::<176, 256>(blocks, out, k_quants::q5_k),
                Self::Q6_K => each::<210, 256>(blocks, out, k_quants::q6_k),
            },
        );
    }
}

#[inline(always)]
fn halves(blocks: &[u8], out: &mut [f32], value: impl Fn([u8; 2]) -> f32) {
    for (bytes, out) in blocks.as_chunks::<2>().0.iter().zip(out) {
        *out = value(*bytes);
    }
}

#[inline(always)]
fn each<const BYTES: usize, const VALUES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<VALUES>().0) {
        dequantize(block, out);
    }
}

/// The half-precision number at `place` of a block.
#[inline(always)]
pub(super) fn half_at(block: &[u8], place: usize) -> f32 {
    f16::from_le_bytes([block[place], block[place + 1]]).to_f32()
}

/// `d, codes`: `d·(code − 8)`; the low halves are the first 16 values.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for place in 0..16 {
        let byte = block[2 + place];
        out[place] = f32::from((byte & 15) as i8 - 8) * d;
        out[place + 16] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

/// `d, m, codes`: `d·code + m`.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for place in 0..16 {
        let byte = block[4 + place];
        out[place] = f32::from(byte & 15) * d + m;
        out[place + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The fifth bits of the values at `place` and `place + 16`, as 0 or 16.
#[inline(always)]
fn fifth_bits(bits: [u8; 4], place: usize) -> (u8, u8) {
    let bits = u32::from_le_bytes(bits);
    (((bits >> place) as u8 & 1) << 4, ((bits >> (place + 16)) as u8 & 1) << 4)
}

/// `d, fifth bits, codes`: `d·(code − 16)`.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for place in 0..16 {
        let byte = block[6 + place];
        let (first, second) = fifth_bits([block[2], block[3], block[4], block[5]], place);
        out[place] = f32::from(((byte & 15) | first) as i8 - 16) * d;
        out[place + 16] = f32::from(((byte >> 4) | second) as i8 - 16) * d;
    }
}

/// `d, m, fifth bits, codes`: `d·code + m`.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for place in 0..16 {
        let byte = block[8 + place];
        let (first, second) = fifth_bits([block[4], block[5], block[6], block[7]], place);
        out[place] = f32::from((byte & 15) | first) * d + m;
        out[place + 16] = f32::from((byte >> 4) | second) * d + m;
    }
}

/// `d, codes`: `d·code`, the codes signed bytes.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for place in 0..32 {
        out[place] = f32::from(block[2 + place] as i8) * d;
    }
}

/// A weight `[rows, cols]` in blocks.
#[derive(Debug)]
pub struct GgmlWeight {
    shape: (usize, usize),
    format: GgmlFormat,
    blocks: Bytes,
}

impl GgmlWeight {
    /// A weight from its blocks, row by row.
    ///
    /// # Errors
    /// [`GgmlError`] if the blocks aren't those of a `[rows, cols]` matrix.
    pub fn new(shape: (usize, usize), format: GgmlFormat, blocks: Bytes) -> Result<Self, GgmlError> {
        let ((rows, cols), block) = (shape, format.block_values());
        if !cols.is_multiple_of(block) {
            return Err(GgmlError::Columns { format, cols, block });
        }
        let (expected, found) = (rows * (cols / block) * format.block_bytes(), blocks.len());
        if expected != found {
            return Err(GgmlError::Size { format, rows, cols, expected, found });
        }
        let mut weight = Self { shape, format, blocks };
        if rows > 0 && coded::is_supported() && weight.coded(0).is_some() {
            weight.blocks = weight.blocks.on_large_pages();
        }
        Ok(weight)
    }

    /// Its format.
    pub fn format(&self) -> GgmlFormat {
        self.format
    }
}

impl WeightFormat for GgmlWeight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        let bytes = |values: usize| values / self.format.block_values() * self.format.block_bytes();
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len().max(1))) {
            let start = bytes(row * self.shape.1 + cols.start);
            self.format.dequantize(&self.blocks[start..start + bytes(cols.len())], out);
        }
    }

    fn coded(&self, strip: usize) -> Option<CodedStrip<'_>> {
        let (layout, map, scales) = match self.format {
            GgmlFormat::Q4_0 => (CodeLayout::Halves, &SIGNED, Scales::Head),
            GgmlFormat::Q4_1 => (CodeLayout::Halves, &NUMBERS, Scales::HeadAndOffset),
            GgmlFormat::Q8_0 => (CodeLayout::Bytes, &NUMBERS, Scales::Head),
            _ => return None,
        };
        let (rows, cols) = self.shape;
        let row = cols / DEPTH * self.format.block_bytes();
        let (first, end) = (strip * LANES, rows.min((strip + 1) * LANES));
        Some(CodedStrip { layout, map, scales, bytes: &self.blocks[first * row..end * row], rows: end - first, cols })
    }

    fn bytes(&self) -> usize {
        self.blocks.len()
    }
}

/// What the codes of [`GgmlFormat::Q4_0`] stand for.
const SIGNED: [f32; 16] = [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;
    use crate::{FrozenWeight, Kernels, Matrix, Precision, Workspace};

    const FORMATS: [GgmlFormat; 12] = [
        GgmlFormat::F16,
        GgmlFormat::Bf16,
        GgmlFormat::Q4_0,
        GgmlFormat::Q4_1,
        GgmlFormat::Q5_0,
        GgmlFormat::Q5_1,
        GgmlFormat::Q8_0,
        GgmlFormat::Q2_K,
        GgmlFormat::Q3_K,
        GgmlFormat::Q4_K,
        GgmlFormat::Q5_K,
        GgmlFormat::Q6_K,
    ];

    /// Random blocks whose scales are small numbers.
    fn blocks(format: GgmlFormat, count: usize) -> Vec<u8> {
        let mut stream = crate::Seed(11).stream("blocks", 0);
        let mut bytes: Vec<u8> = (0..count * format.block_bytes()).map(|_| stream.below(256) as u8).collect();
        let scales: &[usize] = match format {
            GgmlFormat::F16 | GgmlFormat::Bf16 | GgmlFormat::Q4_0 | GgmlFormat::Q5_0 | GgmlFormat::Q8_0 => &[0],
            GgmlFormat::Q4_1 | GgmlFormat::Q5_1 | GgmlFormat::Q4_K | GgmlFormat::Q5_K => &[0, 2],
            GgmlFormat::Q2_K => &[80, 82],
            GgmlFormat::Q3_K => &[108],
            GgmlFormat::Q6_K => &[208],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for place in scales {
                block[*place..place + 2].copy_from_slice(&f16::from_f32(stream.normal() * 0.1).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn products_are_those_of_the_dequantised_weight() {
        for format in FORMATS {
            for (rows, cols, tokens) in [(5, 256, 3), (70, 768, 1), (33, 1280, 20)] {
                let blocks = blocks(format, rows * cols / format.block_values());
                let mut values = vec![0.0; rows * cols];
                format.dequantize(&blocks, &mut values);
                let stored = FrozenWeight::stored(GgmlWeight::new((rows, cols), format, blocks.into()).unwrap());
                let float = Matrix::from_vec(rows, cols, values);
                assert_eq!(stored.to_matrix(), float);
                let case = format!("{format:?} {rows} {cols} {tokens}");
                let (x, dy) = (random(tokens, cols, 2), random(tokens, rows, 3));
                let workspace = Workspace::with_kernels(Kernels::detect().with_precision(Precision::Bf16));
                let bf16 = FrozenWeight::bf16(&float);
                assert_eq!(stored.product(&workspace, &x), bf16.product(&workspace, &x), "{case}");
                let gradient = |weight: &FrozenWeight| weight.product_gradient(&workspace, &dy);
                assert_eq!(gradient(&stored), gradient(&bf16), "{case}");
                let workspace = Workspace::with_kernels(Kernels::detect().with_precision(Precision::Float32));
                let float = FrozenWeight::float32(float);
                let (found, expected) = (stored.product(&workspace, &x), float.product(&workspace, &x));
                let largest = expected.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let close = |(left, right): (&f32, &f32)| (left - right).abs() <= 1e-5 * largest;
                assert!(found.data().iter().zip(expected.data()).all(close), "{case}");
            }
        }
    }

    #[test]
    fn blocks_that_make_no_matrix_are_refused() {
        let build = |cols, bytes: usize| {
            GgmlWeight::new((2, cols), GgmlFormat::Q4_0, vec![0; bytes].into()).map(|_| ()).unwrap_err()
        };
        assert!(matches!(build(48, 54), GgmlError::Columns { cols: 48, block: 32, .. }));
        assert!(matches!(build(64, 71), GgmlError::Size { expected: 72, found: 71, .. }));
    }
}
