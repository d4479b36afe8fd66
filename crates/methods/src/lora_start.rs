//! How `A` and `B` of LoRA begin: PEFT's `init_lora_weights`.
//!
//! PiSSA (Meng et al. 2024, <https://arxiv.org/abs/2404.02948>) begins with the `r` largest singular values of the weight,
//! OLoRA (Büyükakyüz 2024, <https://arxiv.org/abs/2406.01775>) with the first `r` columns of its QR decomposition. Both take
//! `s·B₀·A₀` out of the base weight, so that training starts from the base; here the base stays as it is, and the tuner
//! subtracts `s·B₀·A₀` instead:
//!
//! ```text
//! y = (W₀ − s·B₀·A₀)·x + s·B·A·x
//! PiSSA: W₀ = U·S·Vᵀ,  A₀ = √(S_r/s)·V_rᵀ,  B₀ = U_r·√(S_r/s)
//! OLoRA: W₀ = Q·R,     A₀ = R_r,            B₀ = Q_r
//! ```

use tunesmith_tensor::{FrozenWeight, Matrix, Seed, Site, Stream};

use crate::build::parameter_name;
use crate::decomposition::{first_of_qr, largest_singular};
use crate::lora_config::{LoraConfig, LoraInit};
use crate::{MethodError, lora_tuner};

/// The beginning of a tuner.
pub(crate) struct Start {
    /// `[r, in]`.
    pub(crate) a: Matrix,
    /// `[out, r]`.
    pub(crate) b: Matrix,
    /// Whether `s·B·A` is taken out of the base weight.
    pub(crate) out_of_base: bool,
}

/// Iterations of PiSSA's decomposition without a number in its name: enough to converge on weights of models.
const CONVERGED: usize = 60;

/// The start at a linear layer with `weight` `[out, in]`.
pub(crate) fn linear(
    config: &LoraConfig,
    site: &Site,
    weight: &FrozenWeight,
    seed: Seed,
) -> Result<Start, MethodError> {
    let r = config.rank(&site.path)?;
    let uniform = |rows: usize, cols: usize, mut stream: Stream| {
        // Kaiming's uniform start with a = √5 comes to this, as PyTorch starts linear layers.
        let bound = 1.0 / (cols as f32).sqrt();
        filled(rows, cols, || stream.uniform_between(-bound, bound))
    };
    // Each tensor draws from a stream of its own name, so that no start depends on which other modules are tuned.
    let (of_a, of_b) = (stream(site, lora_tuner::A, seed), stream(site, lora_tuner::B, seed));
    let (a, b) = match &config.init_lora_weights {
        LoraInit::Uniform | LoraInit::Other(_) => (uniform(r, site.cols, of_a), Matrix::zeros(site.rows, r)),
        LoraInit::Gaussian => {
            let mut of_a = of_a;
            (filled(r, site.cols, || of_a.normal() / r as f32), Matrix::zeros(site.rows, r))
        }
        LoraInit::Random => (uniform(r, site.cols, of_a), uniform(site.rows, r, of_b)),
        LoraInit::Pissa { iterations } => {
            fits(config, r, site)?;
            let scale = config.scaling(&site.path)? as f32;
            let iterations = iterations.unwrap_or(CONVERGED);
            let (u, s, v) = largest_singular(&weight.to_matrix(), r, iterations, of_a);
            let root = |k: usize| (s[k] / scale).sqrt();
            let a = from_fn(r, site.cols, |row, col| root(row) * v.row(row)[col]);
            let b = from_fn(site.rows, r, |row, col| u.row(col)[row] * root(col));
            return Ok(Start { a, b, out_of_base: true });
        }
        LoraInit::Olora => {
            fits(config, r, site)?;
            let (a, b) = first_of_qr(&weight.to_matrix(), r);
            return Ok(Start { a, b, out_of_base: true });
        }
    };
    Ok(Start { a, b, out_of_base: false })
}

/// Room for what a file holds.
pub(crate) fn nothing(r: usize, site: &Site) -> Start {
    Start { a: Matrix::zeros(r, site.cols), b: Matrix::zeros(site.rows, r), out_of_base: false }
}

/// The start at an embedding: `A` `[r, vocabulary]` is zero, `B` `[width, r]` standard normal (PyTorch starts embeddings so).
pub(crate) fn embedding(config: &LoraConfig, site: &Site, seed: Seed) -> Result<Start, MethodError> {
    let r = config.rank(&site.path)?;
    let mut of_a = stream(site, lora_tuner::EMBEDDING_A, seed);
    let mut of_b = stream(site, lora_tuner::EMBEDDING_B, seed);
    let a = match &config.init_lora_weights {
        LoraInit::Random => filled(r, site.rows, || of_a.normal()),
        LoraInit::Pissa { .. } | LoraInit::Olora => {
            return Err(MethodError::Impossible {
                what: format!("init_lora_weights at {}", site.path),
                why: "PiSSA and OLoRA decompose linear layers, and this is an embedding".into(),
                instead: "Leave it out of target_modules, or use init_lora_weights: true".into(),
            });
        }
        _ => Matrix::zeros(r, site.rows),
    };
    Ok(Start { a, b: filled(site.cols, r, || of_b.normal()), out_of_base: false })
}

/// A decomposition gives no more parts than the weight has.
fn fits(config: &LoraConfig, r: usize, site: &Site) -> Result<(), MethodError> {
    let most = site.rows.min(site.cols);
    if r <= most {
        return Ok(());
    }
    Err(MethodError::Impossible {
        what: format!("init_lora_weights: {} with rank {r} at {}", config.init_lora_weights.name(), site.path),
        why: format!("the weight is {} × {} and has no more than {most} parts", site.rows, site.cols),
        instead: format!("Use r: {most} or less, or rank_pattern for this module"),
    })
}

fn stream(site: &Site, suffix: &str, seed: Seed) -> Stream {
    seed.stream(&parameter_name(&site.path, suffix), 0)
}

pub(crate) fn filled(rows: usize, cols: usize, value: impl FnMut() -> f32) -> Matrix {
    Matrix::from_vec(rows, cols, std::iter::repeat_with(value).take(rows * cols).collect())
}

fn from_fn(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f32) -> Matrix {
    let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    Matrix::from_vec(rows, cols, places.map(|(row, col)| value(row, col)).collect())
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::{Role, SiteKind};

    use super::*;

    fn site(rows: usize, cols: usize) -> Site {
        let path = "model.layers.0.mlp.up_proj".to_owned();
        let (kind, role) = (SiteKind::Linear, Role::FeedForwardUp);
        Site { path, kind, role, block: Some(0), rows, cols, has_bias: false, stored_transposed: false }
    }

    fn weight() -> FrozenWeight {
        FrozenWeight::float32(Matrix::zeros(1, 1))
    }

    /// Mean, variance and largest magnitude.
    fn statistics(values: &[f32]) -> (f64, f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        (mean, variance, values.iter().fold(0.0, |largest, value| largest.max(f64::from(value.abs()))))
    }

    fn start(init: LoraInit) -> (Matrix, Matrix) {
        let config = LoraConfig { r: 16, init_lora_weights: init, ..LoraConfig::default() };
        let start = linear(&config, &site(400, 900), &weight(), Seed(7)).unwrap();
        (start.a, start.b)
    }

    #[test]
    fn starts_have_the_reference_distributions() {
        // A uniform value in ±c has variance c²/3.
        let (a, b) = start(LoraInit::Uniform);
        let (mean, variance, largest) = statistics(a.data());
        assert!(mean.abs() < 5e-4 && (variance * 3.0 * 900.0 - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!(largest <= 1.0 / 30.0 && largest > 0.99 / 30.0, "{largest}");
        assert!(b.data().iter().all(|value| *value == 0.0));

        let (a, b) = start(LoraInit::Gaussian);
        let (mean, variance, _) = statistics(a.data());
        assert!(mean.abs() < 2e-3 && (variance * 256.0 - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!(b.data().iter().all(|value| *value == 0.0));

        let (_, b) = start(LoraInit::Random);
        let (mean, variance, largest) = statistics(b.data());
        assert!(mean.abs() < 6e-3 && (variance * 3.0 * 16.0 - 1.0).abs() < 0.05, "{mean} {variance}");
        assert!(largest <= 0.25);
    }

    #[test]
    fn a_start_depends_on_seed_and_name_alone() {
        let tuner = |path: &str, seed| {
            let site = Site { path: path.to_owned(), ..site(4, 6) };
            linear(&LoraConfig::default(), &site, &weight(), Seed(seed)).unwrap().a.to_vec()
        };
        assert_eq!(tuner("x.q_proj", 1), tuner("x.q_proj", 1));
        assert_ne!(tuner("x.q_proj", 1), tuner("x.k_proj", 1));
        assert_ne!(tuner("x.q_proj", 1), tuner("x.q_proj", 2));
    }

    /// `B·A` and the weight that it begins from, whose singular values are 5, 4, 3, 2 and 1 for PiSSA to find.
    fn product(init: LoraInit, r: usize) -> (Matrix, Matrix) {
        let (rows, cols, values) = (7usize, 5usize, [5.0f32, 4.0, 3.0, 2.0, 1.0]);
        // Columns of the discrete cosine transform are orthonormal.
        let cosine = |n: usize, k: usize, place: usize| {
            let norm = if k == 0 { (1.0 / n as f32).sqrt() } else { (2.0 / n as f32).sqrt() };
            norm * (std::f32::consts::PI * (place as f32 + 0.5) * k as f32 / n as f32).cos()
        };
        let part = |count: usize| {
            from_fn(rows, cols, |row, col| {
                (0..count).map(|k| values[k] * cosine(rows, k, row) * cosine(cols, k, col)).sum()
            })
        };
        let config = LoraConfig { r, lora_alpha: 2.0 * r as f64, init_lora_weights: init, ..LoraConfig::default() };
        let start = linear(&config, &site(rows, cols), &FrozenWeight::float32(part(5)), Seed(1)).unwrap();
        assert!(start.out_of_base);
        let sum = |row: usize, col: usize| (0..r).map(|k| start.b.row(row)[k] * start.a.row(k)[col]).sum::<f32>();
        (from_fn(rows, cols, sum), part(r))
    }

    #[test]
    fn pissa_begins_with_the_largest_singular_values() {
        for init in [LoraInit::Pissa { iterations: None }, LoraInit::Pissa { iterations: Some(16) }] {
            let (product, largest) = product(init, 2);
            for (found, expected) in product.data().iter().zip(largest.data()) {
                // The scale is 2.
                assert!((2.0 * found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }

    #[test]
    fn olora_of_full_rank_is_the_weight() {
        let (product, weight) = product(LoraInit::Olora, 5);
        for (found, expected) in product.data().iter().zip(weight.data()) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn a_decomposition_has_no_more_parts_than_the_weight() {
        let config = LoraConfig { r: 6, init_lora_weights: LoraInit::Olora, ..LoraConfig::default() };
        let error = linear(&config, &site(7, 5), &FrozenWeight::float32(Matrix::zeros(7, 5)), Seed(0)).err().unwrap();
        assert!(error.to_string().contains("Use r: 5 or less"), "{error}");
    }
}
