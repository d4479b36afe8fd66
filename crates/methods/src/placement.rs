//! Where a method acts: the keys that every method on weights has, resolved against a model.

use tunesmith_tensor::{Adapter, FrozenWeight, SiteId, SiteKind};

use crate::bias::{self, Biases};
use crate::common::{Bias, Modules, OneOrMany};
use crate::full;
use crate::method::Place;
use crate::target::{self, Targeting};
use crate::{MethodError, ModelDescription};

/// The keys that say where.
#[derive(Default)]
pub(crate) struct Wanted<'c> {
    pub(crate) target_modules: Option<&'c Modules>,
    /// The targets of the model type, where the configuration names none.
    pub(crate) defaults: Option<Modules>,
    /// What kinds of site the method can act on; empty means linear layers.
    pub(crate) kinds: &'static [SiteKind],
    pub(crate) exclude_modules: Option<&'c Modules>,
    pub(crate) layers_to_transform: Option<&'c OneOrMany<usize>>,
    pub(crate) layers_pattern: Option<&'c OneOrMany<String>>,
    pub(crate) modules_to_save: Option<&'c [String]>,
    pub(crate) bias: Bias,
}

/// The sites that they mean.
pub(crate) struct Placement {
    /// `target_modules` as the saved configuration names them.
    pub(crate) targets: Modules,
    /// Sites that the method tunes.
    pub(crate) targeted: Vec<SiteId>,
    pub(crate) warnings: Vec<String>,
    /// Sites of which full copies are trained.
    saved: Vec<SiteId>,
    /// Other sites whose bias is trained.
    biases: Vec<SiteId>,
    bias: Bias,
}

impl Placement {
    /// Finds the sites.
    ///
    /// # Errors
    /// Any [`MethodError`] about keys that do not fit the model or each other.
    pub(crate) fn find(wanted: &Wanted<'_>, place: &Place<'_, '_>) -> Result<Self, MethodError> {
        let Place { model, purpose, .. } = *place;
        let targets = target::resolve(wanted.target_modules, wanted.defaults.clone(), model, purpose)?;
        let modules_to_save = wanted.modules_to_save.unwrap_or_default();
        let targeting = Targeting {
            target_modules: &targets,
            kinds: if wanted.kinds.is_empty() { &[SiteKind::Linear] } else { wanted.kinds },
            exclude_modules: wanted.exclude_modules,
            layers_to_transform: wanted.layers_to_transform,
            layers_pattern: wanted.layers_pattern,
            modules_to_save,
        };
        let target::Targets { sites: targeted, warnings } = target::select(&targeting, model, purpose)?;
        let saved = full::sites_to_save(modules_to_save, &targeted, model, purpose)?;
        let asked = Biases { bias: wanted.bias, targeted: &targeted, saved: &saved };
        let biases = bias::sites(&asked, model, purpose)?;
        Ok(Self { targets, targeted, warnings, saved, biases, bias: wanted.bias })
    }

    /// The bias of a targeted site, where it is to be trained too.
    pub(crate) fn trained_bias<'m>(
        &self,
        site: SiteId,
        model: &ModelDescription<'m>,
    ) -> Result<Option<&'m FrozenWeight>, MethodError> {
        Ok(if self.bias == Bias::None { None } else { model.base(site)?.bias })
    }

    /// Adds the tuners of `modules_to_save` and of biases beside the targets.
    pub(crate) fn add_common(&self, adapter: &mut Adapter, model: &ModelDescription<'_>) -> Result<(), MethodError> {
        full::add_tuners(adapter, &self.saved, model)?;
        bias::add_tuners(adapter, &self.biases, model)
    }
}

/// Everything that is wrong with keys that say where, apart from any model.
pub(crate) fn problems(wanted: &Wanted<'_>) -> Vec<crate::error::ConfigProblem> {
    let mut problems = Vec::new();
    let mut add = |key: &str, reason: &str| {
        problems.push(crate::error::ConfigProblem::Value { key: key.to_owned(), reason: reason.to_owned() });
    };
    if matches!(wanted.target_modules, Some(Modules::Pattern(_))) {
        for (key, set) in [
            ("layers_to_transform", wanted.layers_to_transform.is_some()),
            ("layers_pattern", wanted.layers_pattern.is_some()),
        ] {
            if set {
                add(key, "it works with a list of target_modules only, not with a string");
            }
        }
    }
    let has_layers_pattern =
        wanted.layers_pattern.is_some_and(|pattern| pattern.as_slice().iter().any(|name| !name.is_empty()));
    if has_layers_pattern && wanted.layers_to_transform.is_none() {
        add("layers_pattern", "it says where layers_to_transform counts, which is not given");
    }
    if wanted.modules_to_save.unwrap_or_default().iter().any(String::is_empty) {
        add("modules_to_save", "an empty name matches every module");
    }
    problems
}
