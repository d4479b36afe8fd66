//! LoRA: low-rank adaptation of linear layers (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, equation 3), with the
//! scale of rsLoRA (Kalajdzievski 2023) as an option.
//!
//! ```text
//! y = W₀·x + b + s·B·A·dropout(x),   A [r, in], B [out, r],   s = alpha/r or alpha/√r
//! ```
//!
//! `B` starts at zero, so training starts from the base. Embeddings and convolutions are not tuned, linear layers only.

use tunesmith_tensor::{
    Adapter, Affine, Base, FrozenWeight, LowRankUpdate, Matrix, Parameter, Seed, Site, SiteId, Stream, Tape, Term,
    Trainable, Tuned, WeightTuner,
};

use crate::bias::{self, Biases};
use crate::build::parameter_name;
use crate::common::{Bias, CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::full;
use crate::lora_config::{self, LoraConfig, LoraInit, key_pattern};
use crate::method::{Built, Method, Place};
use crate::target::{self, Targeting};
use crate::{MethodError, ModelDescription, target_defaults};

/// Tunes one linear layer by a product of two thin matrices.
#[derive(Debug)]
pub struct LoraTuner {
    /// `A` `[r, in]`.
    a: Parameter,
    /// `B` `[out, r]`.
    b: Parameter,
    /// `s`.
    scale: f32,
    dropout: f32,
    /// The layer's own bias `[1, out]`, where it is trained too.
    bias: Option<Parameter>,
}

impl LoraTuner {
    /// A tuner for the linear layer `site` from `a` `[r, in]` and `b` `[out, r]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn new(site: &Site, a: Matrix, b: Matrix, scale: f32, dropout: f32) -> Self {
        let shapes = (a.shape(), b.shape());
        assert_eq!(shapes, ((b.cols(), site.cols), (site.rows, a.rows())), "A is [r, in] and B is [out, r]");
        let parameter = |suffix, value| Parameter::new(parameter_name(&site.path, suffix), value);
        Self { a: parameter(A, a), b: parameter(B, b), scale, dropout, bias: None }
    }

    /// The same with the layer's bias `[1, out]` trained from `bias` on.
    pub fn with_bias(self, site: &Site, bias: &FrozenWeight) -> Self {
        let name = parameter_name(&site.path, "base_layer.bias");
        Self { bias: Some(Parameter::vector(name, bias.to_matrix())), ..self }
    }
}

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

impl Trainable for LoraTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.bias.iter().chain([&self.a, &self.b]).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.bias.iter_mut().chain([&mut self.a, &mut self.b]).collect()
    }
}

impl WeightTuner for LoraTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let a_transposed = tape.transpose(&a);
        let frozen = tape.constant(base.weight.to_matrix());
        let weight = tape.add_product(frozen, 0..b.rows(), &b, &a_transposed, self.scale);
        let bias = match &self.bias {
            Some(bias) => Some(tape.parameter(bias)),
            None => base.bias.map(|bias| tape.constant(bias.to_matrix())),
        };
        Tuned { weight, bias }
    }

    fn affine(&self, tape: &mut Tape, _base: Base<'_>, x: &tunesmith_tensor::Var) -> Affine {
        let x = tape.dropout(x, self.dropout);
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let input = tape.matmul_nt(&x, &a);
        let bias = self.bias.as_ref().map(|bias| tape.parameter(bias));
        Affine { base: true, terms: vec![Term { input, weight: b, scale: self.scale }], bias }
    }

    fn low_rank(&self, tape: &mut Tape) -> Option<LowRankUpdate> {
        let plain = self.bias.is_none() && (self.dropout == 0.0 || !tape.is_training());
        plain.then(|| LowRankUpdate { a: tape.parameter(&self.a), b: tape.parameter(&self.b), scale: self.scale })
    }
}

impl Method for LoraConfig {
    const PEFT_TYPE: &'static str = "LORA";

    fn uninterpreted() -> &'static [Uninterpreted] {
        &lora_config::UNINTERPRETED
    }

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        self.problems(purpose)
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        build(self, place)
    }

    fn differs_in_rank_only(&self, name: &str, found: &[usize], expected: &[usize]) -> bool {
        let ([found_rows, found_cols], [rows, cols]) = (found, expected) else { return false };
        (name.ends_with(A) && found_cols == cols) || (name.ends_with(B) && found_rows == rows)
    }

    /// PEFT before 0.21 trained the biases of targeted modules without saving them.
    fn may_be_forgotten(&self, name: &str) -> bool {
        self.bias == Bias::LoraOnly && name.ends_with(".base_layer.bias")
    }
}

fn build(config: &LoraConfig, place: &Place<'_, '_>) -> Result<Built<LoraConfig>, MethodError> {
    let Place { model, seed, purpose, .. } = *place;
    let mut config = config.clone();
    let defaults = target_defaults::lora(model.model_type);
    let targets = target::resolve(config.target_modules.as_ref(), defaults, model, purpose)?;
    let modules_to_save = config.modules_to_save.as_deref().unwrap_or_default();
    let targeting = Targeting {
        target_modules: &targets,
        exclude_modules: config.exclude_modules.as_ref(),
        layers_to_transform: config.layers_to_transform.as_ref(),
        layers_pattern: config.layers_pattern.as_ref(),
        modules_to_save,
    };
    let target::Targets { sites: targeted, mut warnings } = target::select(&targeting, model, purpose)?;
    let saved = full::sites_to_save(modules_to_save, &targeted, model, purpose)?;
    let biases = Biases { bias: config.bias, targeted: &targeted, saved: &saved };
    let bias_sites = bias::sites(&biases, model, purpose)?;

    let mut adapter = Adapter::new();
    for id in &targeted {
        let site = &model.sites[id.0];
        let tuner = initial_tuner(&config, site, seed)?;
        let bias = if config.bias == Bias::None { None } else { model.base(*id)?.bias };
        let tuner = if let Some(bias) = bias { tuner.with_bias(site, bias) } else { tuner };
        adapter.insert_weight(*id, Box::new(tuner));
    }
    full::add_tuners(&mut adapter, &saved, model)?;
    bias::add_tuners(&mut adapter, &bias_sites, model)?;

    config.target_modules = Some(targets);
    warnings.extend(unmatched_keys(&config, &targeted, model)?);
    if purpose == Purpose::Training {
        warnings.extend(settle_patterns(&mut config, &targeted, model)?);
        let transposed = targeted.iter().any(|site| model.sites[site.0].stored_transposed);
        if config.fan_in_fan_out && !transposed {
            warnings
                .push("fan_in_fan_out is set to false: no targeted module of this model is stored transposed".into());
        }
        // Where it is false of such modules, PEFT sets it too.
        config.fan_in_fan_out = transposed;
    }
    Ok(Built { config, adapter, warnings, routine: None })
}

/// A tuner at its start.
fn initial_tuner(config: &LoraConfig, site: &Site, seed: Seed) -> Result<LoraTuner, MethodError> {
    let r = config.rank(&site.path)?;
    // Each tensor draws from a stream of its own name, so that no start depends on which other modules are tuned.
    let stream = |suffix| seed.stream(&parameter_name(&site.path, suffix), 0);
    let uniform = |rows: usize, cols: usize, mut stream: Stream| {
        // Kaiming's uniform start with a = √5 comes to this, as PyTorch starts linear layers.
        let bound = 1.0 / (cols as f32).sqrt();
        filled(rows, cols, || stream.uniform_between(-bound, bound))
    };
    let (a, b) = match &config.init_lora_weights {
        LoraInit::Uniform | LoraInit::Other(_) => (uniform(r, site.cols, stream(A)), Matrix::zeros(site.rows, r)),
        LoraInit::Gaussian => {
            let mut stream = stream(A);
            (filled(r, site.cols, || stream.normal() / r as f32), Matrix::zeros(site.rows, r))
        }
        LoraInit::Random => (uniform(r, site.cols, stream(A)), uniform(site.rows, r, stream(B))),
    };
    Ok(LoraTuner::new(site, a, b, config.scaling(&site.path)? as f32, config.lora_dropout as f32))
}

fn filled(rows: usize, cols: usize, value: impl FnMut() -> f32) -> Matrix {
    Matrix::from_vec(rows, cols, std::iter::repeat_with(value).take(rows * cols).collect())
}

/// Warnings about keys of patterns that match no tuned module.
fn unmatched_keys(
    config: &LoraConfig,
    targeted: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<Vec<String>, MethodError> {
    let mut warnings = Vec::new();
    let ranks = config.rank_pattern.keys().map(|key| ("rank_pattern", key));
    let alphas = config.alpha_pattern.keys().map(|key| ("alpha_pattern", key));
    for (name, key) in ranks.chain(alphas) {
        let pattern = key_pattern(name, key)?;
        let mut matches = false;
        for site in targeted {
            matches = matches || pattern.matches(&model.sites[site.0].path)?;
        }
        if !matches {
            warnings.push(format!("'{key}' in {name} matches no tuned module and has no effect"));
        }
    }
    Ok(warnings)
}

/// Keys of the saved configuration are sorted, and the first that matches counts: where sorting would change a rank or
/// an alpha, names every module in full in place of the patterns.
fn settle_patterns(
    config: &mut LoraConfig,
    targeted: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<Option<String>, MethodError> {
    let mut sorted = config.clone();
    sorted.rank_pattern.sort_keys();
    sorted.alpha_pattern.sort_keys();
    let paths: Vec<&str> = targeted.iter().map(|site| model.sites[site.0].path.as_str()).collect();
    let mut same = true;
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for path in paths {
        let (rank, alpha) = (config.rank(path)?, config.alpha(path)?);
        same = same && (rank, alpha) == (sorted.rank(path)?, sorted.alpha(path)?);
        let key = format!("^{}", path.replace('.', r"\."));
        ranks.extend((rank != config.r).then(|| (key.clone(), rank)));
        alphas.extend((alpha != config.lora_alpha).then_some((key, alpha)));
    }
    if same {
        return Ok(None);
    }
    config.rank_pattern = ranks.into_iter().collect();
    config.alpha_pattern = alphas.into_iter().collect();
    Ok(Some(
        "keys of rank_pattern or alpha_pattern overlap, and adapter_config.json keeps them sorted, which would change \
         what they mean: it names every module in full instead"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::{Gradients, Role, SiteKind, Workspace};

    use super::*;

    fn site(rows: usize, cols: usize) -> Site {
        let path = "model.layers.0.mlp.up_proj".to_owned();
        Site {
            path,
            kind: SiteKind::Linear,
            role: Role::FeedForwardUp,
            block: Some(0),
            rows,
            cols,
            has_bias: true,
            stored_transposed: false,
        }
    }

    fn random(rows: usize, cols: usize, index: u64) -> Matrix {
        let mut stream = Seed(1).stream("test", index);
        filled(rows, cols, || stream.normal())
    }

    /// What `affine` and `tuned` make of the same input, which must agree.
    fn both(tuner: &LoraTuner, base: Base<'_>, x: &Matrix) -> (Vec<f32>, Vec<f32>) {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(x.clone());
        let affine = tuner.affine(&mut tape, base, &x);
        assert!(affine.base && affine.terms.len() == 1);
        let mut fast = tape.linear(&x, base.weight, if affine.bias.is_some() { None } else { base.bias });
        for term in affine.terms {
            fast = tape.add_product(fast, 0..x.rows(), &term.input, &term.weight, term.scale);
        }
        if let Some(bias) = affine.bias {
            fast = tape.add_bias(fast, 0..x.rows(), &bias);
        }
        let tuned = tuner.tuned(&mut tape, base);
        let slow = tape.matmul_nt(&x, &tuned.weight);
        let slow = tape.add_bias(slow, 0..x.rows(), &tuned.bias.unwrap());
        (fast.value().to_vec(), slow.value().to_vec())
    }

    #[test]
    fn the_fast_form_equals_the_meaning_where_alpha_is_not_the_rank() {
        let site = site(7, 5);
        let (weight, bias) = (FrozenWeight::float32(random(7, 5, 0)), FrozenWeight::float32(random(1, 7, 1)));
        let base = Base { weight: &weight, bias: Some(&bias) };
        let mut tuner = LoraTuner::new(&site, random(3, 5, 2), random(7, 3, 3), 2.5, 0.0);
        for _ in 0..2 {
            let (fast, slow) = both(&tuner, base, &random(4, 5, 4));
            for (fast, slow) in fast.iter().zip(&slow) {
                assert!((fast - slow).abs() < 1e-5 * slow.abs().max(1.0), "{fast} and {slow}");
            }
            tuner = tuner.with_bias(&site, &FrozenWeight::float32(random(1, 7, 5)));
        }
    }

    #[test]
    fn the_tuned_weight_is_the_base_and_s_times_b_times_a() {
        let site = site(2, 2);
        let weight = FrozenWeight::float32(Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]));
        let a = Matrix::from_vec(1, 2, vec![1.0, -1.0]);
        let b = Matrix::from_vec(2, 1, vec![10.0, 20.0]);
        let tuner = LoraTuner::new(&site, a, b, 0.5, 0.0);
        let mut tape = Tape::evaluating(&Workspace::new());
        let tuned = tuner.tuned(&mut tape, Base { weight: &weight, bias: None });
        assert_eq!(tuned.weight.value().data(), [6.0, -3.0, 13.0, -6.0]);
        assert!(tuned.bias.is_none());
    }

    #[test]
    fn gradients_reach_both_factors_and_the_bias_through_the_meaning() {
        let site = site(2, 2);
        let weight = FrozenWeight::float32(random(2, 2, 0));
        let a = Matrix::from_vec(1, 2, vec![3.0, 5.0]);
        let b = Matrix::from_vec(2, 1, vec![7.0, 11.0]);
        let tuner = LoraTuner::new(&site, a, b, 0.5, 0.0);
        let workspace = Workspace::new();
        let mut tape = Tape::differentiating(&workspace);
        let tuned = tuner.tuned(&mut tape, Base { weight: &weight, bias: None });
        let mut gradients = Gradients::new(&workspace);
        tape.backward(tuned.weight, Matrix::from_vec(2, 2, vec![1.0, 0.0, 0.0, 1.0]), &mut gradients);
        let parameters = tuner.parameters();
        assert_eq!(gradients.get(parameters[0].id()).unwrap().data(), [3.5, 5.5]);
        assert_eq!(gradients.get(parameters[1].id()).unwrap().data(), [1.5, 2.5]);
    }

    #[test]
    fn dropout_acts_on_the_update_only_and_only_in_training() {
        let site = site(4, 64);
        let weight = FrozenWeight::float32(random(4, 64, 0));
        let tuner = LoraTuner::new(&site, random(2, 64, 1), random(4, 2, 2), 1.0, 0.5);
        let x = random(3, 64, 3);
        let input = |mut tape: Tape| {
            let x = tape.constant(x.clone());
            let affine = tuner.affine(&mut tape, Base { weight: &weight, bias: None }, &x);
            assert!(affine.base);
            affine.terms[0].input.value().to_vec()
        };
        let workspace = Workspace::new();
        let clean = input(Tape::evaluating(&workspace));
        assert_eq!(clean, input(Tape::differentiating(&workspace)));
        assert_ne!(clean, input(Tape::training(&workspace, Seed(1))));
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
        let tuner = initial_tuner(&config, &site(400, 900), Seed(7)).unwrap();
        (Matrix::clone(&tuner.a.value()), Matrix::clone(&tuner.b.value()))
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
            initial_tuner(&LoraConfig::default(), &site, Seed(seed)).unwrap().a.value().to_vec()
        };
        assert_eq!(tuner("x.q_proj", 1), tuner("x.q_proj", 1));
        assert_ne!(tuner("x.q_proj", 1), tuner("x.k_proj", 1));
        assert_ne!(tuner("x.q_proj", 1), tuner("x.q_proj", 2));
    }
}
