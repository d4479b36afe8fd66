//! Frequencies of rotary position embeddings (RoFormer, Su et al. 2021, eq. 34), with the scalings that Llama's
//! descendants use for longer contexts. Computed as transformers does, in float32 after the power.

use std::f32::consts::TAU;
use std::f64;

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
    /// YaRN (Peng et al. 2023, section 3.2): pairs that turn often within the original context kept, those that turn
    /// seldom divided, those between interpolated; cosines and sines multiplied by a factor.
    Yarn {
        /// The divisor of pairs that turn seldom.
        factor: f64,
        /// What cosines and sines are multiplied with.
        attention_factor: f64,
        /// Pairs with at least this many rotations are kept.
        beta_fast: f64,
        /// Pairs with at most this many rotations are divided.
        beta_slow: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
        /// Whether the bounds between pairs are rounded outwards to whole ones.
        truncate: bool,
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
        let kept = self.scaling.kept(self.theta, head_dim);
        let pairs = unscaled.enumerate();
        pairs.map(|(pair, frequency)| self.scaling.apply(frequency, kept.map_or(1.0, |kept| kept.at(pair)))).collect()
    }

    /// What cosines and sines are multiplied with.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }
}

/// How much of its own frequency a pair keeps: all below `low`, nothing above `high`.
#[derive(Clone, Copy, Debug)]
struct Ramp {
    low: f64,
    high: f64,
}

impl Ramp {
    fn at(self, pair: usize) -> f32 {
        1.0 - ((pair as f32 - self.low as f32) / (self.high - self.low) as f32).clamp(0.0, 1.0)
    }
}

impl RopeScaling {
    /// Which pairs keep their frequency, where that follows from their rotations within the original context.
    fn kept(self, theta: f64, head_dim: usize) -> Option<Ramp> {
        let Self::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = self else {
            return None;
        };
        let pair = |rotations: f64| {
            let wavelengths = original_max_position_embeddings as f64 / (rotations * 2.0 * f64::consts::PI);
            head_dim as f64 * wavelengths.ln() / (2.0 * theta.ln())
        };
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        Some(Ramp { low, high: if low == high { high + 0.001 } else { high } })
    }

    /// The frequency of a pair that keeps the share `kept` of its own.
    fn apply(self, frequency: f32, kept: f32) -> f32 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Yarn { factor, .. } => {
                let divided = 1.0 / (factor as f32 * (1.0 / frequency));
                divided * (1.0 - kept) + frequency * kept
            }
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

    /// `ROPE_INIT_FUNCTIONS["yarn"]` of transformers 5.24: frequencies and attention factor.
    #[test]
    fn yarn_is_that_of_transformers() {
        let usual = RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.138629436111989,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 2048,
            truncate: true,
        };
        assert_close(
            Rope { theta: 10_000.0, scaling: usual },
            &[1.0, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05],
        );
        let other = RopeScaling::Yarn {
            factor: 8.0,
            attention_factor: 1.0,
            beta_fast: 16.0,
            beta_slow: 2.0,
            original_max_position_embeddings: 4096,
            truncate: false,
        };
        assert_close(
            Rope { theta: 500_000.0, scaling: other },
            &[
                1.0,
                0.193922758,
                0.0376060307,
                0.00356859225,
                0.000176776681,
                3.42810235e-05,
                6.64786967e-06,
                1.28917316e-06,
            ],
        );
    }
}
