//! (IA)³: learned scales of keys, values and feed-forward activations (Liu et al. 2022, <https://arxiv.org/abs/2205.05638>,
//! section 3.3), as PEFT has it: one vector `l` a layer, all ones at first.
//!
//! ```text
//! feed-forward:  y = W₀·(l ⊙ x) + b
//! others:        y = l ⊙ (W₀·x + b)
//! ```

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Adapter, Affine, Base, Matrix, Parameter, Seed, Site, Tape, Trainable, Tuned, Var, WeightTuner,
};

use crate::build::parameter_name;
use crate::common::{CommonConfig, Modules, Purpose};
use crate::error::ConfigProblem;
use crate::lora::settle_orientation;
use crate::method::{Built, Method, Place};
use crate::pattern::Pattern;
use crate::placement::{self, Placement, Wanted};
use crate::{MethodError, target_defaults};

/// Configuration of IA3, with PEFT's field names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ia3Config {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// The modules to tune; `None` takes the defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Modules not to tune although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Those of the targets whose inputs are scaled; `None` takes the defaults of the model type.
    pub feedforward_modules: Option<Modules>,
    /// Whether the base keeps its weights as `[in, out]`. Kept, not used.
    pub fan_in_fan_out: bool,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Whether the scales begin as ones; otherwise standard normal, for tests.
    pub init_ia3_weights: bool,
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            target_modules: None,
            exclude_modules: None,
            feedforward_modules: None,
            fan_in_fan_out: false,
            modules_to_save: None,
            init_ia3_weights: true,
        }
    }
}

impl Ia3Config {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Wanted::default()
        }
    }
}

/// Scales the input or the output of one linear layer.
#[derive(Debug)]
pub struct Ia3Tuner {
    /// `[1, in]` of a feed-forward, `[out, 1]` of others, as files have it.
    l: Parameter,
    scales_input: bool,
}

impl Ia3Tuner {
    /// A tuner for the linear layer `site`, from `l` `[1, in]` (which scales the input) or `[out, 1]` (the output).
    ///
    /// # Panics
    /// If `l` has neither shape.
    pub fn new(site: &Site, l: Matrix, scales_input: bool) -> Self {
        let expected = if scales_input { (1, site.cols) } else { (site.rows, 1) };
        assert_eq!(l.shape(), expected, "a scale is as long as what it scales");
        Self { l: Parameter::new(parameter_name(&site.path, "ia3_l"), l), scales_input }
    }

    /// `l` as a row.
    fn row(&self, tape: &mut Tape) -> Var {
        let l = tape.parameter(&self.l);
        if self.scales_input { l } else { tape.transpose(&l) }
    }
}

impl Trainable for Ia3Tuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.l]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.l]
    }
}

impl WeightTuner for Ia3Tuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let l = self.row(tape);
        let weight = tape.constant(base.weight.to_matrix());
        let bias = base.bias.map(|bias| tape.constant(bias.to_matrix()));
        if self.scales_input {
            let rows = weight.rows();
            return Tuned { weight: tape.scale_columns(weight, 0..rows, &l), bias };
        }
        let bias = bias.map(|bias| tape.scale_columns(bias, 0..1, &l));
        Tuned { weight: tape.scale_rows(&weight, &l), bias }
    }

    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let l = self.row(tape);
        if self.scales_input {
            return Affine { input: Some(tape.scale_columns(x.clone(), 0..x.rows(), &l)), ..Affine::frozen() };
        }
        let bias = base.bias.map(|bias| {
            let bias = tape.constant(bias.to_matrix());
            tape.scale_columns(bias, 0..1, &l)
        });
        Affine { scale: Some(l), bias, ..Affine::frozen() }
    }
}

impl Method for Ia3Config {
    const PEFT_TYPE: &'static str = "IA3";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = placement::problems(&self.wanted());
        if let (Some(Modules::Names(targets)), Some(Modules::Names(inner))) =
            (&self.target_modules, &self.feedforward_modules)
        {
            let strangers: Vec<&str> =
                inner.iter().filter(|name| !targets.contains(name)).map(String::as_str).collect();
            if !strangers.is_empty() {
                let reason = format!("these are not among target_modules: {}", strangers.join(", "));
                problems.push(ConfigProblem::Value { key: "feedforward_modules".into(), reason });
            }
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let mut config = self.clone();
        let defaults = target_defaults::ia3(model.model_type);
        let placement = Placement::find(&Wanted { defaults, ..self.wanted() }, place)?;
        let feedforward = match &self.feedforward_modules {
            Some(modules) => modules.clone(),
            None => defaults_within(&placement.targets, target_defaults::ia3_feedforward(model.model_type)),
        };
        let mut adapter = Adapter::new();
        for id in &placement.targeted {
            let site = &model.sites[id.0];
            let scales_input = names_end(&feedforward, &site.path)?;
            let l = initial(site, scales_input, self.init_ia3_weights, seed);
            adapter.insert_weight(*id, Box::new(Ia3Tuner::new(site, l, scales_input)));
        }
        placement.add_common(&mut adapter, model)?;
        let Placement { targets, targeted, mut warnings, .. } = placement;
        config.target_modules = Some(targets);
        config.feedforward_modules = Some(feedforward);
        if purpose == Purpose::Training {
            warnings.extend(settle_orientation(&mut config.fan_in_fan_out, &targeted, model));
        }
        Ok(Built { config, adapter, warnings, routine: None })
    }
}

/// The model type's feed-forwards, where they are among the targets: files may name no others.
fn defaults_within(targets: &Modules, defaults: Modules) -> Modules {
    match (targets, defaults) {
        (Modules::Names(targets), Modules::Names(names)) => {
            Modules::Names(names.into_iter().filter(|name| targets.contains(name)).collect())
        }
        (_, defaults) => defaults,
    }
}

/// Whether `feedforward_modules` mean a module: by the end of its name, dot or not, as in PEFT.
fn names_end(modules: &Modules, path: &str) -> Result<bool, MethodError> {
    match modules {
        Modules::Names(names) => Ok(names.iter().any(|name| path.ends_with(name.as_str()))),
        Modules::Pattern(pattern) => Pattern::full("feedforward_modules", pattern)?.matches(path),
    }
}

fn initial(site: &Site, scales_input: bool, ones: bool, seed: Seed) -> Matrix {
    let (rows, cols) = if scales_input { (1, site.cols) } else { (site.rows, 1) };
    let mut stream = seed.stream(&parameter_name(&site.path, "ia3_l"), 0);
    let value = || if ones { 1.0 } else { stream.normal() };
    Matrix::from_vec(rows, cols, std::iter::repeat_with(value).take(rows * cols).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Layer, check_linear};

    #[test]
    fn both_forms_agree_and_so_do_their_gradients() {
        for bias in [true, false] {
            let layer = Layer::new(5, 4, bias);
            let l = |rows, cols| layer.random(rows, cols, 9);
            check_linear(&layer, || Ia3Tuner::new(&layer.site, l(1, 4), true));
            check_linear(&layer, || Ia3Tuner::new(&layer.site, l(5, 1), false));
        }
    }

    #[test]
    fn scales_inputs_or_outputs_with_the_bias() {
        let layer = Layer::new(2, 2, true);
        let (w, b) = (layer.weight.to_matrix(), layer.bias.as_ref().unwrap().to_matrix());
        let mut tape = Tape::evaluating(&tunesmith_tensor::Workspace::new());
        let l = vec![2.0, -3.0];
        let input = Ia3Tuner::new(&layer.site, Matrix::from_vec(1, 2, l.clone()), true).tuned(&mut tape, layer.base());
        assert_eq!(input.weight.value().row(1), [2.0 * w.row(1)[0], -3.0 * w.row(1)[1]]);
        assert_eq!(input.bias.unwrap().value(), &b);
        let output = Ia3Tuner::new(&layer.site, Matrix::from_vec(2, 1, l), false).tuned(&mut tape, layer.base());
        assert_eq!(output.weight.value().row(1), [-3.0 * w.row(1)[0], -3.0 * w.row(1)[1]]);
        assert_eq!(output.bias.unwrap().value().data(), [2.0 * b.data()[0], -3.0 * b.data()[1]]);
    }
}
