//! An optimiser at work: an update rule with the state of every trainable tensor.

use std::path::Path;

use rayon::prelude::*;
use tunesmith_tensor::{Gradients, Parameter};

use super::rule::{Update, UpdateRule};
use super::state::{self, StateTensor};
use crate::TrainError;

/// What sets some parameters apart from others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterGroup {
    /// A factor on the run's learning rate.
    pub learning_rate_scale: f64,
    /// Whether weight decay applies.
    pub weight_decay: bool,
}

impl Default for ParameterGroup {
    fn default() -> Self {
        Self { learning_rate_scale: 1.0, weight_decay: true }
    }
}

/// An update rule, the state of every trainable tensor, and the number of updates.
#[derive(Debug)]
pub struct Optimizer {
    rule: Box<dyn UpdateRule>,
    weight_decay: f64,
    updates: u64,
    slots: Vec<Slot>,
}

/// The state of one trainable tensor.
#[derive(Debug)]
struct Slot {
    name: String,
    group: ParameterGroup,
    state: Vec<StateTensor>,
}

impl Optimizer {
    /// The state before the first update of `parameters`; `group` is asked once for each. `weight_decay` is for those
    /// whose group has it.
    pub fn new(
        rule: impl Into<Box<dyn UpdateRule>>,
        weight_decay: f64,
        parameters: &[&Parameter],
        group: impl Fn(&Parameter) -> ParameterGroup,
    ) -> Self {
        let rule = rule.into();
        let slot = |parameter: &&Parameter| {
            let (rows, cols) = parameter.value().shape();
            Slot { name: parameter.name().to_owned(), group: group(parameter), state: rule.state(rows, cols) }
        };
        let slots = parameters.iter().map(slot).collect();
        Self { rule, weight_decay, updates: 0, slots }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Bytes of state.
    pub fn state_bytes(&self) -> usize {
        self.slots.iter().flat_map(|slot| &slot.state).map(|part| safetensors::View::data_len(&part)).sum()
    }

    /// Updates `parameters`, the same and in the same order as given to [`Optimizer::new`], by `gradients` times
    /// `gradient_scale`.
    ///
    /// # Errors
    /// [`TrainError::MissingGradients`], before anything is changed, if a parameter has no gradient.
    ///
    /// # Panics
    /// If these are other parameters.
    pub fn step(
        &mut self,
        parameters: &mut [&mut Parameter],
        gradients: &Gradients,
        gradient_scale: f32,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        let same = parameters.len() == self.slots.len()
            && parameters.iter().zip(&self.slots).all(|(parameter, slot)| parameter.name() == slot.name);
        assert!(same, "an optimiser updates the parameters it was made for");

        let missing = parameters.iter().filter(|parameter| gradients.get(parameter.id()).is_none());
        let names: Vec<String> = missing.map(|parameter| parameter.name().to_owned()).collect();
        if !names.is_empty() {
            return Err(TrainError::MissingGradients { names });
        }

        self.updates += 1;
        let Self { rule, weight_decay, updates, slots } = self;
        parameters.par_iter_mut().zip(slots).for_each(|(parameter, slot)| {
            let Some(gradient) = gradients.get(parameter.id()) else { return };
            let update = Update {
                number: *updates,
                gradient_scale,
                learning_rate: learning_rate * slot.group.learning_rate_scale,
                weight_decay: if slot.group.weight_decay { *weight_decay } else { 0.0 },
                shape: parameter.value().shape(),
            };
            rule.update(&update, parameter.value_mut().data_mut(), gradient.data(), &mut slot.state);
        });
        Ok(())
    }

    /// Writes the state as safetensors, `NAME.KIND` for every tensor and kind of state.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let tensors = self.slots.iter().map(|slot| (slot.name.as_str(), slot.state.as_slice()));
        state::write(path, self.rule.name(), self.updates, tensors)
    }

    /// Takes over the state that [`Optimizer::save`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Damaged`]; [`TrainError::OtherOptimizer`]; [`TrainError::OptimizerMismatch`]
    /// with every tensor that is missing, unknown or of another shape. The state is unchanged then.
    pub fn load(&mut self, path: &Path) -> Result<(), TrainError> {
        let tensors = self.slots.iter_mut().map(|slot| (slot.name.as_str(), &mut slot.state));
        self.updates = state::read(path, self.rule.name(), tensors)?;
        Ok(())
    }
}

impl<R: UpdateRule + 'static> From<R> for Box<dyn UpdateRule> {
    fn from(rule: R) -> Self {
        Box::new(rule)
    }
}
