//! AdamW with its state in 8 bits (Dettmers et al. 2022), as `bitsandbytes.optim.AdamW8bit`: block-wise dynamic
//! quantisation in blocks of 256 values, each with its largest magnitude; tensors of fewer than 4096 values keep their
//! state in 32 bits.
//!
//! The order of operations is that of bitsandbytes on CPUs; a value gets the nearest code, as bitsandbytes finds it by
//! bisection on GPUs (its CPU code looks it up in a table that is coarse near zero).

use std::sync::LazyLock;

use rayon::prelude::*;

use super::adamw::{AdamW, Coefficients};
use super::rule::{Update, UpdateRule};
use super::state::{StateTensor, StateValues};

/// Values that share a scale.
const BLOCK: usize = 256;
/// Blocks updated by one task.
const TASK: usize = 64;

/// The constants of 8-bit AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW8bit {
    /// Those of AdamW.
    pub adamw: AdamW,
    /// Values that a tensor must have for its state to be quantised.
    pub min_8bit_size: usize,
}

impl Default for AdamW8bit {
    fn default() -> Self {
        Self { adamw: AdamW::default(), min_8bit_size: 4096 }
    }
}

impl UpdateRule for AdamW8bit {
    fn name(&self) -> &'static str {
        "adamw_8bit"
    }

    fn state(&self, rows: usize, cols: usize) -> Vec<StateTensor> {
        if rows * cols < self.min_8bit_size {
            return self.adamw.state(rows, cols);
        }
        let scales = [(rows * cols).div_ceil(BLOCK)];
        vec![
            StateTensor::codes("state1", &[rows, cols]),
            StateTensor::codes("state2", &[rows, cols]),
            StateTensor::zeros("absmax1", &scales),
            StateTensor::zeros("absmax2", &scales),
        ]
    }

    fn update(&self, update: &Update, values: &mut [f32], gradient: &[f32], state: &mut [StateTensor]) {
        let [m, v, m_scales, v_scales] = state else { return self.adamw.update(update, values, gradient, state) };
        let (StateValues::U8(m), StateValues::U8(v)) = (&mut m.values, &mut v.values) else {
            unreachable!("a quantised state is codes")
        };
        let coefficients = Coefficients::new(&self.adamw, update);
        let size = TASK * BLOCK;
        let codes = m.par_chunks_mut(size).zip(v.par_chunks_mut(size));
        let scales = m_scales.numbers().par_chunks_mut(TASK).zip(v_scales.numbers().par_chunks_mut(TASK));
        let tasks = values.par_chunks_mut(size).zip(gradient.par_chunks(size)).zip(codes).zip(scales);
        tasks.for_each(|(((values, gradient), (m, v)), (m_scales, v_scales))| {
            let codes = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
            let scales = m_scales.iter_mut().zip(v_scales);
            let blocks = values.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)).zip(codes).zip(scales);
            for (((values, gradient), (m_codes, v_codes)), (m_scale, v_scale)) in blocks {
                let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
                let (m, v) = (&mut m[..values.len()], &mut v[..values.len()]);
                SIGNED.read(m_codes, *m_scale, m);
                UNSIGNED.read(v_codes, *v_scale, v);
                coefficients.update(values, m, v, gradient);
                *m_scale = SIGNED.write(m, m_codes);
                *v_scale = UNSIGNED.write(v, v_codes);
            }
        });
    }
}

static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(Sign::Both));
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(Sign::Positive));

/// Which numbers a map has codes for.
#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Both,
    Positive,
}

/// The numbers from −1 or 0 to 1 that codes stand for, in order: a dynamic data type (Dettmers 2016), whose leading zero
/// bits are a decimal exponent and whose remaining bits divide `[0.1, 1]` evenly.
struct DynamicMap {
    values: [f32; 256],
    /// Halfway between neighbours.
    bounds: [f32; 255],
}

impl DynamicMap {
    fn new(sign: Sign) -> Self {
        const EXPONENTS: i32 = 7;
        let mut values = vec![0.0, 1.0];
        for exponent in 0..EXPONENTS {
            let parts = match sign {
                Sign::Both => 1 << exponent,
                Sign::Positive => 2 << exponent,
            };
            let scale = 10f64.powi(exponent - EXPONENTS + 1) as f32;
            let bounds = evenly_spaced(0.1, 1.0, parts);
            for pair in bounds.windows(2) {
                let value = scale * ((pair[0] + pair[1]) / 2.0);
                values.push(value);
                if sign == Sign::Both {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("254 fractions, zero and one are 256 values");
        let mut bounds = [0.0; 255];
        for (bound, pair) in bounds.iter_mut().zip(values.windows(2)) {
            *bound = (pair[0] + pair[1]) / 2.0;
        }
        Self { values, bounds }
    }

    fn read(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        values.iter_mut().zip(codes).for_each(|(value, code)| *value = self.values[usize::from(*code)] * scale);
    }

    /// Writes the nearest codes, and returns the scale.
    fn write(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let scale = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (code, value) in codes.iter_mut().zip(values) {
            let value = value * inverse;
            *code = self.bounds.partition_point(|bound| *bound < value) as u8;
        }
        scale
    }
}

/// `parts + 1` values from `start` to `end`, as `torch.linspace` computes them in float32: each from its nearer end.
fn evenly_spaced(start: f32, end: f32, parts: usize) -> Vec<f32> {
    let step = (end - start) / parts as f32;
    let value = |place: usize| {
        if place < parts.div_ceil(2) { start + step * place as f32 } else { end - step * (parts - place) as f32 }
    };
    (0..=parts).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_equal_those_of_bitsandbytes() {
        #[derive(serde::Deserialize)]
        struct Table {
            signed: Vec<f32>,
            unsigned: Vec<f32>,
        }
        let table: Table = serde_json::from_str(include_str!("../../tests/data/dynamic_map.json")).unwrap();
        for (map, expected) in [(&*SIGNED, table.signed), (&*UNSIGNED, table.unsigned)] {
            assert_eq!(expected.len(), 256);
            for (value, expected) in map.values.iter().zip(expected) {
                // The last bits depend on whether PyTorch fuses multiplication and addition.
                assert!(
                    (value - expected).abs() <= 2.0 * f32::EPSILON * expected.abs(),
                    "{value}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn every_value_gets_the_nearest_code() {
        let values: Vec<f32> = (0..BLOCK).map(|place| ((place as f32 - 99.5) / 17.0).powi(3)).collect();
        let mut codes = vec![0; BLOCK];
        let scale = SIGNED.write(&values, &mut codes);
        let distance = |value: f32, code: usize| (value / scale - SIGNED.values[code]).abs();
        for (value, code) in values.iter().zip(codes) {
            let nearest = (0..256).map(|code| distance(*value, code)).fold(f32::MAX, f32::min);
            assert!(distance(*value, usize::from(code)) <= nearest + 1e-7, "{value}");
        }
        let mut codes = [7; 3];
        assert_eq!(UNSIGNED.write(&[0.0; 3], &mut codes), 0.0);
        let mut read = [1.0; 3];
        UNSIGNED.read(&codes, 0.0, &mut read);
        assert_eq!(read, [0.0; 3]);
    }
}
