//! From a configuration and a model to an adapter.

use std::collections::BTreeSet;

use tunesmith_tensor::{Adapter, Gradients, Seed, Workspace};

use crate::common::{PEFT_VERSION, Purpose, RopeScaling};
use crate::method::{Place, Routine};
use crate::{MethodConfig, MethodError, ModelDescription};

/// An adapter with the configuration that it is saved with.
pub struct BuiltAdapter {
    /// The configuration with everything resolved that depends on the model, such as the default targets.
    pub config: MethodConfig,
    /// The tuners; of several methods, each is a part.
    pub adapter: Adapter,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// One place for each method.
    pub(crate) routines: Vec<Option<Box<dyn Routine>>>,
}

impl BuiltAdapter {
    /// A training run begins, or goes on; it has `max_steps` updates in all.
    ///
    /// # Errors
    /// A configuration that does not fit so many updates.
    pub fn begin(&mut self, max_steps: u64) -> Result<(), MethodError> {
        self.routines.iter_mut().flatten().try_for_each(|routine| routine.begin(max_steps))
    }

    /// Before the forward passes of update number `step`, counted from 0.
    pub fn before_step(&mut self, step: u64) {
        self.routines.iter_mut().flatten().for_each(|routine| routine.before_step(step));
    }

    /// Terms of the loss beside the model's: adds their gradients to `gradients` and returns their sum.
    pub fn regularise(&self, workspace: &Workspace, gradients: &mut Gradients) -> f64 {
        self.routines.iter().flatten().map(|routine| routine.regularise(workspace, gradients)).sum()
    }

    /// After update number `step`, made with `gradients` times `gradient_scale`.
    pub fn after_step(&mut self, gradients: &Gradients, gradient_scale: f32, step: u64) {
        self.routines.iter_mut().flatten().for_each(|routine| routine.after_step(gradients, gradient_scale, step));
    }
}

/// Makes a new adapter for a model, at the start of its training. The same seed gives the same adapter.
///
/// # Errors
/// Any [`MethodError`] about the configuration or about what it asks of this model.
pub fn build(config: &MethodConfig, model: &ModelDescription<'_>, seed: Seed) -> Result<BuiltAdapter, MethodError> {
    let rope_scaling = config.rope_scaling();
    let config = config.with_common(|common| {
        common.rope_scaling = rope_scaling;
        common.peft_version = PEFT_VERSION.to_owned();
        common.task_type.get_or_insert(model.task_type);
        if common.base_model_name_or_path.is_none() {
            common.base_model_name_or_path = model.name_or_path.map(str::to_owned);
        }
    });
    let (mut parts, mut taken) = (Vec::new(), Vec::new());
    for config in config.each() {
        let place = Place { model, seed, purpose: Purpose::Training, file: None, taken: &taken };
        let part = build_at(&config, &place)?;
        taken.extend(part.adapter.weight_sites());
        parts.push(Ok(part));
    }
    join(parts, model)
}

/// Makes the tuners of one method.
pub(crate) fn build_at(config: &MethodConfig, place: &Place<'_, '_>) -> Result<BuiltAdapter, MethodError> {
    let problems = config.method().problems(place.purpose);
    if !problems.is_empty() {
        return Err(MethodError::Config { place: "the configuration".to_owned(), problems });
    }
    check_positions(config, place)?;
    config.method().build(place)
}

/// An adapter sees positions as it was trained to, and its file says how.
fn check_positions(config: &MethodConfig, place: &Place<'_, '_>) -> Result<(), MethodError> {
    let Some(RopeScaling { factor, .. }) = config.common().rope_scaling else { return Ok(()) };
    let impossible = |why: String, instead: String| {
        Err(MethodError::Impossible { what: format!("rope_scaling with factor {factor}"), why, instead })
    };
    let found = place.model.rope_factor;
    if found != factor {
        let why = match found {
            1.0 => "the base was loaded without rope_scaling".to_owned(),
            found => format!("the base was loaded with factor {found}"),
        };
        let instead = format!(
            "Write \"rope_scaling\": {{\"rope_type\": \"linear\", \"factor\": {factor}}} into a copy of the base's \
             config.json and use that; evaluate, generate and merge do it by themselves, for one adapter"
        );
        return impossible(why, instead);
    }
    if config.method().foreign_file().is_some() {
        let instead = "Train LONG_LORA or LORA, whose files can".to_owned();
        return impossible(format!("AdapterHub's files of {} cannot say it", config.peft_type()), instead);
    }
    Ok(())
}

/// Several methods' tuners as one adapter.
pub(crate) fn join(
    all: impl IntoIterator<Item = Result<BuiltAdapter, MethodError>>,
    model: &ModelDescription<'_>,
) -> Result<BuiltAdapter, MethodError> {
    let mut all = all.into_iter();
    let mut joined = all.next().expect("a configuration holds at least one method")?;
    for next in all {
        let mut next = next?;
        check_names(&joined, &next)?;
        joined.adapter.join(next.adapter).map_err(|sites| MethodError::Clash {
            sites: sites.into_iter().map(|site| model.sites[site.0].path.clone()).collect(),
        })?;
        joined.config = MethodConfig::join([joined.config, next.config]);
        joined.warnings.append(&mut next.warnings);
        joined.routines.append(&mut next.routines);
    }
    Ok(joined)
}

/// Refuses methods whose tensors have the same names, by which checkpoints find them.
fn check_names(joined: &BuiltAdapter, next: &BuiltAdapter) -> Result<(), MethodError> {
    let names: BTreeSet<&str> = joined.adapter.parameters().into_iter().map(|parameter| parameter.name()).collect();
    let next_parameters = next.adapter.parameters();
    let Some(same) = next_parameters.iter().map(|parameter| parameter.name()).find(|name| names.contains(name)) else {
        return Ok(());
    };
    Err(MethodError::Impossible {
        what: format!("{} beside {}", next.config.peft_type(), joined.config.peft_type()),
        why: format!("both call a tensor '{same}', as PEFT's files do"),
        instead: "Virtual tokens at the input that go with prefixes are those of PRE_EMBED".to_owned(),
    })
}

/// What PEFT puts before the path of a module in an adapter's file.
const PREFIX: &str = "base_model.model.";

/// The key in an adapter's file of a tensor at a module.
pub(crate) fn parameter_name(path: &str, suffix: &str) -> String {
    format!("{PREFIX}{path}.{suffix}")
}

/// The path and the last part of the key of a tensor that stands in the base model too.
pub(crate) fn base_tensor(name: &str) -> Option<(&str, &str)> {
    let (path, part) = name.strip_prefix(PREFIX)?.rsplit_once('.')?;
    Some((path.strip_suffix(".base_layer").unwrap_or(path), part))
}
