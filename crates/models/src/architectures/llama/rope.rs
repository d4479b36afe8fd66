//! Frequencies of rotary position embeddings (RoFormer, Su et al. 2021, eq. 34), with the scalings that Llama's
//! descendants use for longer contexts. Computed as transformers does, in float32 after the power.

use std::f32::consts::TAU;

/// A rotary embedding's base and scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// `θ` of `θ^(-2i/d)`.
    pub theta: f64,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for longer contexts (`rope_type`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by one factor (position interpolation, Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, those between interpolated.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Radians a position, for each of the `head_dim / 2` pairs.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = f64::from(self.theta as f32);
        let unscaled = (0..head_dim).step_by(2).map(|even| {
            let exponent = even as f32 / head_dim as f32;
            1.0 / base.powf(f64::from(exponent)) as f32
        });
        unscaled.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let context = original_max_position_embeddings as f64;
                let wavelength = TAU / frequency;
                if wavelength > (context / low_freq_factor) as f32 {
                    return frequency / factor as f32;
                }
                if wavelength < (context / high_freq_factor) as f32 {
                    return frequency;
                }
                let smooth = (context as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::excessive_precision, reason = "the reference's digits")]
mod tests {
    use super::*;

    fn assert_close(rope: Rope, expected: &[f32]) {
        let frequencies = rope.inverse_frequencies(2 * expected.len());
        assert_eq!(frequencies.len(), expected.len());
        for (index, (found, expected)) in frequencies.iter().zip(expected).enumerate() {
            assert!((found / expected - 1.0).abs() < 2.5e-7, "pair {index}: {found} is not {expected}");
        }
    }

    /// `inv_freq` of transformers 5.23's `LlamaRotaryEmbedding`.
    #[test]
    fn frequencies_are_those_of_transformers() {
        assert_close(
            Rope { theta: 500_000.0, scaling: RopeScaling::Default },
            &[
                1.0,
                0.193922758,
                0.0376060307,
                0.00729266508,
                0.00141421345,
                0.000274248188,
                5.31829573e-05,
                1.03133852e-05,
            ],
        );
        assert_close(
            Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } },
            &[
                0.25,
                0.079056941,
                0.0250000004,
                0.00790569466,
                0.00249999994,
                0.000790569466,
                0.000250000012,
                7.90569466e-05,
            ],
        );
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_close(
            Rope { theta: 500_000.0, scaling },
            &[
                1.0,
                0.663601279,
                0.440366626,
                0.292227834,
                0.193922758,
                0.128687382,
                0.0853971019,
                0.0566696189,
                0.0376060307,
                0.0249554086,
                0.0165604409,
                0.0109895291,
                0.00729266508,
                0.00483942125,
                0.00321144611,
                0.00129054801,
                0.000429556705,
                9.70828623e-05,
                1.94616387e-05,
                1.29147675e-05,
                8.57025589e-06,
                5.68723226e-06,
                3.77405445e-06,
                2.50446715e-06,
                1.66196742e-06,
                1.10288363e-06,
                7.31874934e-07,
                4.85673127e-07,
                3.22293289e-07,
                2.1387423e-07,
                1.41927202e-07,
                9.41830649e-08,
            ],
        );
    }
}
