//! VeRA: vector-based random matrix adaptation (Kopiczko et al. 2024, <https://arxiv.org/abs/2310.11454>, equation 2).
//!
//! ```text
//! y = W₀·x + b + λ_b ⊙ (B·(λ_d ⊙ (A·dropout(x))))
//! ```
//!
//! `A` `[r, in]` and `B` `[out, r]` are random, frozen, and shared by all layers, which use the first rows and columns of
//! one pair as large as the largest layer. Only `λ_d` `[r]` and `λ_b` `[out]` are trained; `λ_b` is zero at first. Both
//! come from PyTorch's generator under `projection_prng_key`, bit for bit as PEFT draws them, so that files may lack them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Adapter, Affine, Base, FrozenWeight, Matrix, Parameter, Seed, Site, Stored, Tape, Term, TorchGenerator, Trainable,
    Tuned, Var, WeightTuner,
};

use crate::build::parameter_name;
use crate::common::{Bias, CommonConfig, Modules, OneOrMany, Purpose};
use crate::error::ConfigProblem;
use crate::files::float32;
use crate::lora::settle_orientation;
use crate::method::{Built, Method, Place};
use crate::placement::{self, Placement, Wanted};
use crate::{MethodError, target_defaults};

/// Configuration of VeRA, with PEFT's field names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VeraConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Rank of the update.
    pub r: usize,
    /// The modules to tune; `None` takes the defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Seed of the projections.
    pub projection_prng_key: u64,
    /// Whether the projections are saved; otherwise they are drawn again from `projection_prng_key`.
    pub save_projection: bool,
    /// Probability with which training zeroes a value of the input of `A`.
    pub vera_dropout: f64,
    /// What `λ_d` begins with.
    pub d_initial: f64,
    /// Whether the base keeps its weights as `[in, out]`. Kept, not used.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: VeraBias,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Whether `λ_b` begins with zero; otherwise with normal values, for tests.
    pub init_weights: bool,
    /// Restricts a list of targets to these layers.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Name of the list of layers, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VeraBias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted modules.
    VeraOnly,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            r: 256,
            target_modules: None,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            fan_in_fan_out: false,
            bias: VeraBias::None,
            modules_to_save: None,
            init_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

impl VeraConfig {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_ref(),
            layers_pattern: self.layers_pattern.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            bias: match self.bias {
                VeraBias::None => Bias::None,
                VeraBias::All => Bias::All,
                VeraBias::VeraOnly => Bias::LoraOnly,
            },
            ..Wanted::default()
        }
    }
}

/// The projections that all layers share.
#[derive(Debug)]
struct Projections {
    /// `[r, largest in]`.
    a: Arc<Matrix>,
    /// `[largest out, r]`.
    b: Arc<Matrix>,
}

const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

impl Projections {
    /// Kaiming's uniform start with PyTorch's gain for ReLU: `U(−√(6/fan in), √(6/fan in))`.
    /// `B` goes on where `A` has ended.
    fn random(r: usize, cols: usize, rows: usize, key: u64) -> Self {
        let mut generator = TorchGenerator::new(key);
        let mut filled = |rows: usize, cols: usize| {
            let bound = (3.0f64.sqrt() * (2.0f64.sqrt() / (cols as f64).sqrt())) as f32;
            let values = std::iter::repeat_with(|| generator.uniform_between(-bound, bound));
            Arc::new(Matrix::from_vec(rows, cols, values.take(rows * cols).collect()))
        };
        Self { a: filled(r, cols), b: filled(rows, r) }
    }

    /// The projections in an adapter's file. One that is missing or has another shape is left for the check of the
    /// file's tensors to report.
    fn stored(file: &safetensors::SafeTensors<'_>, r: usize, cols: usize, rows: usize) -> Self {
        let read = |name: &str, rows: usize, cols: usize| {
            let view = file.tensor(name).ok().filter(|view| view.shape() == [rows, cols]);
            let values = view.and_then(|view| float32(&view)).unwrap_or_else(|| vec![0.0; rows * cols]);
            Arc::new(Matrix::from_vec(rows, cols, values))
        };
        Self { a: read(A, r, cols), b: read(B, rows, r) }
    }
}

/// Tunes one linear layer by two vectors.
#[derive(Debug)]
pub struct VeraTuner {
    /// `[1, out]`.
    lambda_b: Parameter,
    /// `[1, r]`.
    lambda_d: Parameter,
    /// The layer's part of `A` `[r, in]`.
    a: FrozenWeight,
    /// The layer's part of `B` `[out, r]`.
    b: Arc<Matrix>,
    projections: Arc<Projections>,
    saves_projections: bool,
    dropout: f32,
    /// The layer's own bias, where it is trained too.
    bias: Option<Parameter>,
}

impl VeraTuner {
    fn new(config: &VeraConfig, site: &Site, projections: &Arc<Projections>, seed: Seed) -> Self {
        let name = |suffix| parameter_name(&site.path, suffix);
        let a: Vec<f32> = (0..config.r).flat_map(|row| projections.a.row(row)[..site.cols].to_vec()).collect();
        let b: Vec<f32> = (0..site.rows).flat_map(|row| projections.b.row(row).to_vec()).collect();
        let mut stream = seed.stream(&name("vera_lambda_b"), 0);
        let value = || if config.init_weights { 0.0 } else { stream.normal() };
        let lambda_b = std::iter::repeat_with(value).take(site.rows).collect();
        let lambda_d = vec![config.d_initial as f32; config.r];
        Self {
            lambda_b: Parameter::vector(name("vera_lambda_b"), Matrix::from_vec(1, site.rows, lambda_b)),
            lambda_d: Parameter::vector(name("vera_lambda_d"), Matrix::from_vec(1, config.r, lambda_d)),
            a: FrozenWeight::float32(Matrix::from_vec(config.r, site.cols, a)),
            b: Arc::new(Matrix::from_vec(site.rows, config.r, b)),
            projections: Arc::clone(projections),
            saves_projections: config.save_projection,
            dropout: config.vera_dropout as f32,
            bias: None,
        }
    }

    fn with_bias(self, site: &Site, bias: &FrozenWeight) -> Self {
        let name = parameter_name(&site.path, "base_layer.bias");
        Self { bias: Some(Parameter::vector(name, bias.to_matrix())), ..self }
    }

    /// `diag(λ_b)·B` `[out, r]`.
    fn scaled_b(&self, tape: &mut Tape) -> Var {
        let lambda_b = tape.parameter(&self.lambda_b);
        let b = tape.shared_constant(Arc::clone(&self.b));
        tape.scale_rows(&b, &lambda_b)
    }
}

impl Trainable for VeraTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.bias.iter().chain([&self.lambda_b, &self.lambda_d]).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.bias.iter_mut().chain([&mut self.lambda_b, &mut self.lambda_d]).collect()
    }

    fn stored(&self) -> Vec<Stored> {
        let projection = |name: &str, value: &Arc<Matrix>| Stored {
            name: name.to_owned(),
            shape: vec![value.rows(), value.cols()],
            value: Arc::clone(value),
        };
        let shared = [projection(A, &self.projections.a), projection(B, &self.projections.b)];
        let shared = shared.into_iter().filter(|_| self.saves_projections);
        shared.chain(self.parameters().into_iter().map(Stored::from)).collect()
    }
}

impl WeightTuner for VeraTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let lambda_d = tape.parameter(&self.lambda_d);
        let a = tape.constant(self.a.to_matrix());
        let a = tape.scale_rows(&a, &lambda_d);
        let a_transposed = tape.transpose(&a);
        let b = self.scaled_b(tape);
        let frozen = tape.constant(base.weight.to_matrix());
        let weight = tape.add_product(frozen, 0..b.rows(), &b, &a_transposed, 1.0);
        let bias = match &self.bias {
            Some(bias) => Some(tape.parameter(bias)),
            None => base.bias.map(|bias| tape.constant(bias.to_matrix())),
        };
        Tuned { weight, bias }
    }

    fn affine(&self, tape: &mut Tape, _base: Base<'_>, x: &Var) -> Affine {
        let x = tape.dropout(x, self.dropout);
        let low = tape.linear(&x, &self.a, None);
        let lambda_d = tape.parameter(&self.lambda_d);
        let rows = low.rows();
        let input = tape.scale_columns(low, 0..rows, &lambda_d);
        let weight = self.scaled_b(tape);
        let bias = self.bias.as_ref().map(|bias| tape.parameter(bias));
        Affine { terms: vec![Term { input, weight, scale: 1.0 }], bias, ..Affine::frozen() }
    }
}

impl Method for VeraConfig {
    const PEFT_TYPE: &'static str = "VERA";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = placement::problems(&self.wanted());
        let mut add = |key: &str, reason: String| problems.push(ConfigProblem::Value { key: key.to_owned(), reason });
        if self.r == 0 {
            add("r", "a rank must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.vera_dropout) {
            add("vera_dropout", format!("a probability from 0 to below 1 is needed, not {}", self.vera_dropout));
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, file, .. } = *place;
        let mut config = self.clone();
        let defaults = target_defaults::vera(model.model_type);
        let placement = Placement::find(&Wanted { defaults, ..self.wanted() }, place)?;
        let sites = || placement.targeted.iter().map(|id| &model.sites[id.0]);
        let cols = sites().map(|site| site.cols).max().unwrap_or(0);
        let rows = sites().map(|site| site.rows).max().unwrap_or(0);
        let projections = match file {
            Some(file) if self.save_projection => Projections::stored(file, self.r, cols, rows),
            _ => Projections::random(self.r, cols, rows, self.projection_prng_key),
        };
        let projections = Arc::new(projections);
        let mut adapter = Adapter::new();
        for id in &placement.targeted {
            let site = &model.sites[id.0];
            let tuner = VeraTuner::new(self, site, &projections, seed);
            let tuner = match placement.trained_bias(*id, model)? {
                Some(bias) => tuner.with_bias(site, bias),
                None => tuner,
            };
            adapter.insert_weight(*id, Box::new(tuner));
        }
        placement.add_common(&mut adapter, model)?;
        let Placement { targets, targeted, mut warnings, .. } = placement;
        config.target_modules = Some(targets);
        if purpose == Purpose::Training {
            warnings.extend(settle_orientation(&mut config.fan_in_fan_out, &targeted, model));
        }
        Ok(Built { config, adapter, warnings, routine: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Layer, check_linear};

    #[test]
    fn both_forms_agree_and_so_do_their_gradients() {
        let layer = Layer::new(5, 4, true);
        let config = VeraConfig { r: 3, init_weights: false, ..VeraConfig::default() };
        let make = || {
            let projections = Arc::new(Projections::random(3, 7, 6, 2));
            VeraTuner::new(&config, &layer.site, &projections, Seed(1))
        };
        check_linear(&layer, make);
        let bias = layer.bias.as_ref().unwrap();
        check_linear(&layer, || make().with_bias(&layer.site, bias));
    }

    #[test]
    fn projections_have_the_reference_distribution() {
        let Projections { a, b } = Projections::random(64, 600, 500, 0);
        for (matrix, fan_in) in [(a, 600.0f32), (b, 64.0)] {
            let bound = (6.0 / fan_in).sqrt();
            let largest = matrix.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert!(largest <= bound && largest > 0.99 * bound);
            let variance = matrix.data().iter().map(|value| value * value).sum::<f32>() / matrix.data().len() as f32;
            assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.02);
        }
    }

    #[test]
    fn projections_are_those_that_peft_draws() {
        let Projections { a, b } = Projections::random(3, 4, 5, 5);
        let expected_a = [
            0.8089485764503479,
            -0.9158375263214111,
            0.9980928897857666,
            0.7836580276489258,
            1.0290390253067017,
            -0.9390236139297485,
            -0.8220695853233337,
            0.5827811360359192,
            -1.143263578414917,
            1.2105004787445068,
            0.2606956958770752,
            0.15816664695739746,
        ];
        let expected_b = [
            -1.2094008922576904,
            0.45067861676216125,
            0.6081280708312988,
            0.2243722826242447,
            1.3602668046951294,
            0.42471277713775635,
            -1.2540286779403687,
            1.1882553100585938,
            0.480167418718338,
            -0.6746559143066406,
            -1.2990535497665405,
            0.8062029480934143,
            1.343959093093872,
            -1.1586813926696777,
            0.0772877112030983,
        ];
        assert_eq!(a.data(), expected_a.map(|value: f64| value as f32));
        assert_eq!(b.data(), expected_b.map(|value: f64| value as f32));
    }
}
