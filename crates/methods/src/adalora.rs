//! AdaLoRA: ranks allocated to layers by importance while training (Zhang et al. 2023,
//! <https://arxiv.org/abs/2303.10512>), as PEFT has it. The tuner and the budget have files of their own.

use std::sync::LazyLock;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_tensor::{Adapter, Matrix, Seed, Site};

use crate::adalora_budget::{Budget, Importance, Layer, Masks};
use crate::adalora_tuner::AdaLoraTuner;
use crate::build::parameter_name;
use crate::common::{Bias, CommonConfig, Matters, Modules, OneOrMany, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::lora::settle_orientation;
use crate::lora_config::{self, number};
use crate::method::{Built, Method, Place};
use crate::placement::{self, Placement, Wanted};
use crate::{MethodError, target_defaults};

/// Configuration of AdaLoRA, with PEFT's field names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaLoraConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Average rank at the end.
    pub target_r: usize,
    /// Rank of every layer at first.
    pub init_r: usize,
    /// Updates before pruning begins.
    pub tinit: u64,
    /// Updates after pruning has ended.
    pub tfinal: u64,
    /// Updates between two prunings.
    #[serde(rename = "deltaT")]
    pub delta_t: u64,
    /// Decay of the running mean of the sensitivity.
    pub beta1: f64,
    /// Decay of the running mean of the uncertainty.
    pub beta2: f64,
    /// Weight of the regularisation.
    pub orth_reg_weight: f64,
    /// Updates of the run; none means those of the run at hand.
    pub total_step: Option<u64>,
    /// Which ranks were kept, by module. Written at the end of a run.
    pub rank_pattern: Option<IndexMap<String, Vec<bool>>>,
    /// Numerator of the scale.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// The modules to tune; `None` takes the defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Modules not to tune although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Probability with which training zeroes a value of the input of `A`.
    pub lora_dropout: f64,
    /// Whether the base keeps its weights as `[in, out]`. Kept, not used.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Whether `E` begins with zero; otherwise normal, for tests.
    pub init_lora_weights: bool,
    /// Restricts a list of targets to these layers.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Name of the list of layers, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// PEFT's other keys, as they were read.
    #[serde(flatten)]
    pub(crate) uninterpreted: Map<String, Value>,
}

/// LoRA's keys that AdaLoRA inherits without an effect here.
static UNINTERPRETED: LazyLock<Vec<Uninterpreted>> = LazyLock::new(|| {
    let row = |key, default, matters, reason| Uninterpreted { key, default, matters, reason };
    let own = [
        row("r", "8", Matters::ToTraining, "AdaLoRA ignores it; the rank at first is init_r"),
        row("use_rslora", "false", Matters::Always, "AdaLoRA divides by the rank"),
        row("use_dora", "false", Matters::Always, "AdaLoRA has no magnitudes"),
        row("lora_bias", "false", Matters::Always, "AdaLoRA's B has no bias"),
        row("alpha_pattern", "{}", Matters::Always, "AdaLoRA has one alpha"),
        row("trainable_token_indices", "null", Matters::Always, "use TRAINABLE_TOKENS beside AdaLoRA"),
    ];
    let lora = &lora_config::UNINTERPRETED;
    own.into_iter().chain(lora.iter().map(|row| Uninterpreted { ..*row })).collect()
});

impl Default for AdaLoraConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            target_r: 8,
            init_r: 12,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            rank_pattern: None,
            lora_alpha: 8.0,
            target_modules: None,
            exclude_modules: None,
            lora_dropout: 0.0,
            fan_in_fan_out: false,
            bias: Bias::None,
            modules_to_save: None,
            init_lora_weights: true,
            layers_to_transform: None,
            layers_pattern: None,
            uninterpreted: UNINTERPRETED.iter().map(|row| (row.key.to_owned(), row.default())).collect(),
        }
    }
}

impl AdaLoraConfig {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_ref(),
            layers_pattern: self.layers_pattern.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            bias: self.bias,
            ..Wanted::default()
        }
    }

    /// The rank of the module `path` in a file.
    fn rank(&self, path: &str) -> usize {
        let mask = self.rank_pattern.as_ref().and_then(|pattern| pattern.get(&format!("{path}.lora_E")));
        mask.map_or(self.init_r, |mask| mask.iter().filter(|keep| **keep).count())
    }

    /// `A`, `E` and `B` at their start.
    fn initial(&self, site: &Site, seed: Seed) -> [Matrix; 3] {
        let r = self.rank(&site.path);
        let normal = |suffix: &str, rows: usize, cols: usize, deviation: f32| {
            let mut stream = seed.stream(&parameter_name(&site.path, suffix), 0);
            let values = std::iter::repeat_with(|| deviation * stream.normal()).take(rows * cols).collect();
            Matrix::from_vec(rows, cols, values)
        };
        let deviation = if self.init_lora_weights { 0.02 } else { 1.0 };
        let e = if self.init_lora_weights { Matrix::zeros(r, 1) } else { normal("lora_E", r, 1, 1.0) };
        [normal("lora_A", r, site.cols, deviation), e, normal("lora_B", site.rows, r, deviation)]
    }
}

impl Method for AdaLoraConfig {
    const PEFT_TYPE: &'static str = "ADALORA";

    fn uninterpreted() -> &'static [Uninterpreted] {
        &UNINTERPRETED
    }

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = placement::problems(&self.wanted());
        let mut check = |holds: bool, key: &str, reason: &str| {
            if !holds {
                problems.push(ConfigProblem::Value { key: key.to_owned(), reason: reason.to_owned() });
            }
        };
        check(self.init_r > 0, "init_r", "a rank must be at least 1");
        check(self.target_r <= self.init_r, "target_r", "ranks are pruned: it must not be more than init_r");
        check(self.delta_t > 0, "deltaT", "it must be at least 1");
        check((0.0..1.0).contains(&self.beta1) && self.beta1 > 0.0, "beta1", "it must lie between 0 and 1");
        check((0.0..1.0).contains(&self.beta2) && self.beta2 > 0.0, "beta2", "it must lie between 0 and 1");
        check(self.orth_reg_weight >= 0.0, "orth_reg_weight", "it must be at least 0");
        check((0.0..1.0).contains(&self.lora_dropout), "lora_dropout", "a probability from 0 to below 1 is needed");
        let fits = self.total_step.is_none_or(|total| self.tinit + self.tfinal < total);
        check(fits, "total_step", "tinit and tfinal leave no update for pruning");
        let is_new = self.rank_pattern.is_none() || purpose == Purpose::Loading;
        check(is_new, "rank_pattern", "it is what training finds out; leave it out");
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let mut config = self.clone();
        let defaults = target_defaults::adalora(model.model_type);
        let placement = Placement::find(&Wanted { defaults, ..self.wanted() }, place)?;
        // PEFT adds the small number against a rank of zero, which it allows.
        let scale = (self.lora_alpha / (self.init_r as f64 + 1e-5)) as f32;
        let masks = Masks::default();
        let mut adapter = Adapter::new();
        let mut layers = Vec::new();
        for id in &placement.targeted {
            let site = &model.sites[id.0];
            let parts = self.initial(site, seed);
            let mut tuner = AdaLoraTuner::new(site, parts, scale, self.lora_dropout as f32, &masks);
            if let Some(bias) = placement.trained_bias(*id, model)? {
                tuner = tuner.with_bias(site, bias);
            }
            let [a, e, b] = [&tuner.a, &tuner.e, &tuner.b].map(Importance::new);
            layers.push(Layer { path: site.path.clone(), a, e, b });
            adapter.insert_weight(*id, Box::new(tuner));
        }
        placement.add_common(&mut adapter, model)?;
        let Placement { targets, targeted, mut warnings, .. } = placement;
        config.target_modules = Some(targets);
        if purpose == Purpose::Training {
            warnings.extend(settle_orientation(&mut config.fan_in_fan_out, &targeted, model));
        }
        let routine = Budget { config: config.clone(), layers, masks };
        let is_training = purpose == Purpose::Training;
        Ok(Built { config, adapter, warnings, routine: is_training.then(|| Box::new(routine) as _) })
    }
}
