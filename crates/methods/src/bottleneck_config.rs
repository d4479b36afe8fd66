//! Configuration of bottleneck adapters, with the keys of AdapterHub's `BnConfig`, and building them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_tensor::{Activation, Adapter, Role, SiteId, SiteKind};

use crate::bottleneck::BottleneckTuner;
use crate::common::{CommonConfig, Matters, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::full::{self, FullTuner};
use crate::method::Place;
use crate::{MethodError, adapter_hub};

/// Configuration of a bottleneck adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BottleneckConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// The adapter's name, which is part of its tensors' names.
    pub name: String,
    /// How many times narrower than the model the bottleneck is; below 1 it is wider. A mapping has a factor for a layer
    /// and a `default`.
    pub reduction_factor: ReductionFactor,
    /// Width of the bottleneck, in place of a factor.
    pub bottleneck_size: Option<usize>,
    /// `σ`.
    pub non_linearity: NonLinearity,
    /// Whether there is an adapter after attention.
    pub mh_adapter: bool,
    /// Whether there is an adapter after the feed-forward.
    pub output_adapter: bool,
    /// Whether the adapter lies beside the sub-layer in place of after it.
    pub is_parallel: bool,
    /// Whether the block's norm comes before the adapter too.
    pub original_ln_before: bool,
    /// Whether the residual around the adapter leaves out that norm.
    pub residual_before_ln: bool,
    /// `s`.
    pub scaling: Scaling,
    /// Probability with which training zeroes a value that the adapter adds.
    pub dropout: f64,
    /// How the weights begin.
    pub init_weights: BottleneckInit,
    /// Blocks without an adapter.
    pub leave_out: Vec<usize>,
    /// Whether the norms of the model are trained too, as Houlsby et al. do. AdapterHub never does.
    pub train_layer_norms: bool,
    /// Modules of which full copies are trained. A classifier's head is among them where nothing is set.
    pub modules_to_save: Option<Vec<String>>,
    /// What stood beside the configuration in AdapterHub's file.
    pub hub_file: Option<Map<String, Value>>,
    /// AdapterHub's other keys, as they were read.
    #[serde(flatten)]
    pub(crate) uninterpreted: Map<String, Value>,
}

/// How many times narrower than the model a bottleneck is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a mapping from layers to numbers with a default")]
pub enum ReductionFactor {
    /// The same in all layers, as it was written.
    One(serde_json::Number),
    /// By layer; `default` for the others.
    ByLayer(BTreeMap<String, f64>),
}

/// `s`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ScalingValue", into = "ScalingValue")]
pub enum Scaling {
    /// A constant.
    Constant(f64),
    /// A trained number.
    Learned,
    /// A trained number a feature.
    Channel,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, \"learned\" or \"channel\"")]
enum ScalingValue {
    Number(f64),
    Name(ScalingName),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ScalingName {
    Learned,
    Channel,
}

impl From<ScalingValue> for Scaling {
    fn from(value: ScalingValue) -> Self {
        match value {
            ScalingValue::Number(scale) => Self::Constant(scale),
            ScalingValue::Name(ScalingName::Learned) => Self::Learned,
            ScalingValue::Name(ScalingName::Channel) => Self::Channel,
        }
    }
}

impl From<Scaling> for ScalingValue {
    fn from(scaling: Scaling) -> Self {
        match scaling {
            Scaling::Constant(scale) => Self::Number(scale),
            Scaling::Learned => Self::Name(ScalingName::Learned),
            Scaling::Channel => Self::Name(ScalingName::Channel),
        }
    }
}

/// `σ`, under AdapterHub's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonLinearity {
    /// `max(x, 0)`.
    Relu,
    /// `x·σ(x)`.
    Swish,
    /// The same.
    Silu,
    /// `x·Φ(x)`.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluNew,
    /// The hyperbolic tangent.
    Tanh,
}

impl NonLinearity {
    pub(crate) fn activation(self) -> Activation {
        match self {
            Self::Relu => Activation::Relu,
            Self::Swish | Self::Silu => Activation::Silu,
            Self::Gelu => Activation::Gelu,
            Self::GeluNew => Activation::GeluTanh,
            Self::Tanh => Activation::Tanh,
        }
    }
}

/// How the weights begin; biases begin at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BottleneckInit {
    /// Normal with standard deviation 0.02.
    Bert,
    /// Normal with standard deviation 0.01, cut off at twice that (the paper's).
    Houlsby,
    /// `D` as PyTorch starts linear layers, `U` zero.
    MamAdapter,
}

impl Default for BottleneckConfig {
    /// Common ground of the variants: one sequential adapter after the feed-forward.
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            name: "default".to_owned(),
            reduction_factor: ReductionFactor::One(16.into()),
            bottleneck_size: None,
            non_linearity: NonLinearity::Relu,
            mh_adapter: false,
            output_adapter: true,
            is_parallel: false,
            original_ln_before: false,
            residual_before_ln: true,
            scaling: Scaling::Constant(1.0),
            dropout: 0.0,
            init_weights: BottleneckInit::Bert,
            leave_out: Vec::new(),
            train_layer_norms: false,
            modules_to_save: None,
            hub_file: None,
            uninterpreted: UNINTERPRETED.iter().map(|row| (row.key.to_owned(), row.default())).collect(),
        }
    }
}

/// AdapterHub's keys whose effect this version does not have.
pub(crate) static UNINTERPRETED: [Uninterpreted; 22] = {
    const fn row(key: &'static str, default: &'static str, matters: Matters, reason: &'static str) -> Uninterpreted {
        Uninterpreted { key, default, matters, reason }
    }
    use Matters::{Always, Never, ToTraining};
    [
        row("original_ln_after", "true", Always, "the stream would lose its residual"),
        row("adapter_residual_before_ln", "false", Always, "there is no norm inside the adapter"),
        row("ln_before", "false", Always, "there is no norm inside the adapter"),
        row("ln_after", "false", Always, "there is no norm inside the adapter"),
        row("cross_adapter", "false", Always, "there are no adapters after attention to an encoder"),
        row("inv_adapter", "null", Always, "there are no invertible adapters"),
        row("inv_adapter_reduction_factor", "null", Never, ""),
        row("use_gating", "false", Always, "adapters are not gated"),
        row("stochastic_depth", "0.0", ToTraining, "adapters are never dropped whole"),
        row("init_weights_seed", "null", Never, ""),
        row("phm_layer", "false", Always, "Compacter's layers are not among the methods"),
        row("phm_bias", "true", Never, ""),
        row("phm_c_init", "\"normal\"", Never, ""),
        row("phm_dim", "4", Never, ""),
        row("phm_init_range", "0.0001", Never, ""),
        row("phm_rank", "1", Never, ""),
        row("learn_phm", "true", Never, ""),
        row("hypercomplex_nonlinearity", "\"glorot-uniform\"", Never, ""),
        row("factorized_phm_W", "true", Never, ""),
        row("factorized_phm_rule", "false", Never, ""),
        row("shared_W_phm", "false", Never, ""),
        row("shared_phm_rule", "true", Never, ""),
    ]
};

impl BottleneckConfig {
    pub(crate) fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, reason: &str| {
            problems.push(ConfigProblem::Value { key: key.into(), reason: reason.to_owned() });
        };
        let factors: Vec<f64> = match &self.reduction_factor {
            ReductionFactor::One(factor) => factor.as_f64().into_iter().collect(),
            ReductionFactor::ByLayer(factors) => factors.values().copied().collect(),
        };
        if factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            wrong("reduction_factor", "it must be more than 0");
        }
        if matches!(&self.reduction_factor, ReductionFactor::ByLayer(factors) if !factors.contains_key("default")) {
            wrong("reduction_factor", "a mapping needs a factor for 'default'");
        }
        if self.bottleneck_size == Some(0) {
            wrong("bottleneck_size", "it must be at least 1");
        }
        if !self.mh_adapter && !self.output_adapter {
            wrong("output_adapter", "there is no adapter at all unless it or mh_adapter is true");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            wrong("dropout", "it must be at least 0 and less than 1");
        }
        if self.name.is_empty() || self.name.contains(['.', '/']) {
            wrong("name", "it must be a word without dots and slashes");
        }
        if self.uninterpreted.get("original_ln_after") == Some(&Value::Bool(false)) {
            wrong("original_ln_after", "false is not supported: the stream would lose its residual");
        }
        problems
    }

    /// Width of the bottleneck in a block.
    fn size(&self, block: usize, hidden: usize) -> usize {
        let factor = match &self.reduction_factor {
            _ if self.bottleneck_size.is_some() => return self.bottleneck_size.unwrap_or(1),
            ReductionFactor::One(factor) => factor.as_f64(),
            ReductionFactor::ByLayer(factors) => {
                factors.get(&block.to_string()).or_else(|| factors.get("default")).copied()
            }
        };
        ((hidden as f64 / factor.unwrap_or(1.0)).floor() as usize).max(1)
    }

    /// The tuners that the configuration asks for, and the configuration with the model's part filled in.
    pub(crate) fn tuners(&self, place: &Place<'_, '_>) -> Result<(Self, Adapter), MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let mut config = self.clone();
        if purpose == Purpose::Training {
            let input = model.sites.iter().find(|site| site.role == Role::Input);
            let file = config.hub_file.get_or_insert_default();
            file.insert("model_type".into(), model.model_type.into());
            file.insert("hidden_size".into(), input.map(|site| site.cols).into());
        }
        let mut adapter = Adapter::new();
        for (index, site) in model.sites.iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Hidden) {
            let wanted = match site.role {
                Role::AfterAttention => self.mh_adapter,
                Role::AfterFeedForward => self.output_adapter,
                _ => false,
            };
            let block = site.block.unwrap_or(0);
            if !wanted || self.leave_out.contains(&block) {
                continue;
            }
            let prefix = adapter_hub::module(site, model.model_type, &self.name);
            let tuner = BottleneckTuner::new(self, &prefix, site.cols, self.size(block, site.cols), seed);
            adapter.insert_hidden(SiteId(index), Box::new(tuner));
        }
        let mut whole: Vec<SiteId> = Vec::new();
        if purpose == Purpose::Training && config.modules_to_save.is_none() {
            config.modules_to_save = place.heads();
        }
        whole.extend(full::sites_to_save(config.modules_to_save.as_deref().unwrap_or_default(), &[], model, purpose)?);
        if self.train_layer_norms {
            let norms = model.weight_sites().filter(|(_, site)| site.kind == SiteKind::Norm).map(|(id, _)| id);
            whole.extend(norms.filter(|id| !whole.contains(id)).collect::<Vec<_>>());
        }
        for id in whole {
            let site = &model.sites[id.0];
            adapter.insert_weight(id, Box::new(FullTuner::named(&site.path, site, model.base(id)?)));
        }
        Ok((config, adapter))
    }
}
