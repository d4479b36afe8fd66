//! From a configuration and a model to an adapter.

use std::collections::BTreeMap;

use tunesmith_tensor::{Adapter, Matrix, Seed, SiteId, SiteKind, WeightTuner};

use crate::config::{PEFT_VERSION, Purpose};
use crate::{MethodConfig, MethodError, ModelDescription, lora};

/// An adapter with the configuration that it is saved with.
pub struct BuiltAdapter {
    /// The configuration with everything resolved that depends on the model, such as the default targets.
    pub config: MethodConfig,
    /// The tuners.
    pub adapter: Adapter,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Makes a new adapter for a model, at the start of its training. The same seed gives the same adapter.
///
/// # Errors
/// Any [`MethodError`] about the configuration or about what it asks of this model.
pub fn build(config: &MethodConfig, model: &ModelDescription<'_>, seed: Seed) -> Result<BuiltAdapter, MethodError> {
    let mut config = config.clone();
    let common = config.common_mut();
    common.peft_version = PEFT_VERSION.to_owned();
    common.task_type.get_or_insert(model.task_type);
    if common.base_model_name_or_path.is_none() {
        common.base_model_name_or_path = model.name_or_path.map(str::to_owned);
    }
    build_for(&config, model, seed, Purpose::Training)
}

/// Makes the adapter that `config` asks for, to be trained or to be filled from a file.
pub(crate) fn build_for(
    config: &MethodConfig,
    model: &ModelDescription<'_>,
    seed: Seed,
    purpose: Purpose,
) -> Result<BuiltAdapter, MethodError> {
    config.check(purpose)?;
    match config {
        MethodConfig::Lora(config) => lora::build(config, model, seed, purpose),
    }
}

/// Tuners of weights on their way into an adapter.
#[derive(Default)]
pub(crate) struct Tuners(BTreeMap<SiteId, Box<dyn WeightTuner>>);

impl Tuners {
    pub(crate) fn insert(&mut self, site: SiteId, tuner: Box<dyn WeightTuner>) {
        let earlier = self.0.insert(site, tuner);
        debug_assert!(earlier.is_none(), "a site has one tuner");
    }

    pub(crate) fn into_adapter(self) -> Adapter {
        let mut adapter = Adapter::new();
        for (site, tuner) in self.0 {
            adapter.insert_weight(site, tuner);
        }
        adapter
    }
}

/// What PEFT puts before the path of a module in an adapter's file.
const PREFIX: &str = "base_model.model.";

/// The key in an adapter's file of a tensor at a module.
pub(crate) fn parameter_name(path: &str, suffix: &str) -> String {
    format!("{PREFIX}{path}.{suffix}")
}

/// The shape that a trainable tensor has in PyTorch, where biases and the weights of norms are vectors.
pub(crate) fn tensor_shape(name: &str, value: &Matrix, model: &ModelDescription<'_>) -> Vec<usize> {
    if is_vector(name, model) { vec![value.cols()] } else { vec![value.rows(), value.cols()] }
}

/// Whether a trainable tensor is a vector in PyTorch.
pub(crate) fn is_vector(name: &str, model: &ModelDescription<'_>) -> bool {
    let module = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".weight"));
    let is_norm = |path: &str| model.weight_sites().any(|(_, site)| site.kind == SiteKind::Norm && site.path == path);
    name.ends_with(".bias") || module.is_some_and(is_norm)
}

/// The path and the last part of the key of a tensor that stands in the base model too.
pub(crate) fn base_tensor(name: &str) -> Option<(&str, &str)> {
    let (path, part) = name.strip_prefix(PREFIX)?.rsplit_once('.')?;
    Some((path.strip_suffix(".base_layer").unwrap_or(path), part))
}
