//! AdamW (Loshchilov & Hutter 2019, algorithm 2), computed as `torch.optim.AdamW` computes it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, View};
use tunesmith_tensor::{Gradients, Matrix, Parameter};

use crate::TrainError;

/// Values updated by one task.
const CHUNK: usize = 1 << 14;

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the denominator, outside the root.
    pub epsilon: f64,
    /// Decoupled weight decay, for the parameters whose group has it.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

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

/// The optimiser's state: two running means for every trainable tensor, and the number of updates.
///
/// One update, of a tensor `w` with gradient `g` at learning rate `lr`, the `t`-th:
/// ```text
/// w ← w·(1 − lr·decay);  m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²
/// w ← w − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
/// ```
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    updates: u64,
    slots: Vec<Slot>,
}

/// The state of one trainable tensor.
#[derive(Debug)]
struct Slot {
    name: String,
    group: ParameterGroup,
    /// `exp_avg` in PyTorch.
    m: Matrix,
    /// `exp_avg_sq` in PyTorch.
    v: Matrix,
}

/// The constants of one update of one tensor.
struct Coefficients {
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_bias2: f32,
    epsilon: f32,
    step_size: f32,
}

impl AdamW {
    /// The state before the first update of `parameters`; `group` is asked once for each.
    pub fn new(options: AdamWOptions, parameters: &[&Parameter], group: impl Fn(&Parameter) -> ParameterGroup) -> Self {
        let slot = |parameter: &&Parameter| {
            let (rows, cols) = parameter.value().shape();
            let (m, v) = (Matrix::zeros(rows, cols), Matrix::zeros(rows, cols));
            Slot { name: parameter.name().to_owned(), group: group(parameter), m, v }
        };
        Self { options, updates: 0, slots: parameters.iter().map(slot).collect() }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates `parameters`, the same and in the same order as given to [`AdamW::new`].
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
        let (options, updates) = (self.options, self.updates);
        parameters.par_iter_mut().zip(&mut self.slots).for_each(|(parameter, slot)| {
            let Some(gradient) = gradients.get(parameter.id()) else { return };
            let coefficients = Coefficients::new(&options, slot.group, learning_rate, updates);
            let mut value = parameter.value_mut();
            let values = value.data_mut().par_chunks_mut(CHUNK);
            let means = slot.m.data_mut().par_chunks_mut(CHUNK).zip(slot.v.data_mut().par_chunks_mut(CHUNK));
            let chunks = values.zip(means).zip(gradient.data().par_chunks(CHUNK));
            chunks.for_each(|((values, (m, v)), gradient)| coefficients.update(values, m, v, gradient));
        });
        Ok(())
    }

    /// Writes the state as safetensors: `NAME.exp_avg` and `NAME.exp_avg_sq` for every tensor, PyTorch's names.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let tensors = self.slots.iter().flat_map(|slot| {
            let named = |kind: &str, state| (format!("{}.{kind}", slot.name), Values::new(state));
            [named("exp_avg", &slot.m), named("exp_avg_sq", &slot.v)]
        });
        let metadata = HashMap::from([("updates".to_owned(), self.updates.to_string())]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(std::io::Error::other);
        bytes.and_then(|bytes| fs::write(path, bytes)).map_err(TrainError::io("write", path))
    }

    /// Takes over the state that [`AdamW::save`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Damaged`]; [`TrainError::OptimizerMismatch`] with every tensor that is missing,
    /// unknown or of another shape. The state is unchanged then.
    pub fn load(&mut self, path: &Path) -> Result<(), TrainError> {
        let damaged = |reason: String| TrainError::Damaged { path: path.to_path_buf(), reason };
        let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let saved = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
        let updates = header.metadata().as_ref().and_then(|metadata| metadata.get("updates")?.parse().ok());
        let updates = updates.ok_or_else(|| damaged("it does not say the number of updates".to_owned()))?;

        let mut problems = Vec::new();
        let mut known = Vec::new();
        let mut loaded = Vec::new();
        for slot in &self.slots {
            for (kind, current) in [("exp_avg", &slot.m), ("exp_avg_sq", &slot.v)] {
                let name = format!("{}.{kind}", slot.name);
                let (rows, cols) = current.shape();
                match saved.tensor(&name) {
                    Err(_) => problems.push(format!("{name} is missing")),
                    Ok(tensor) if tensor.dtype() != Dtype::F32 || tensor.shape() != [rows, cols] => {
                        let (dtype, shape) = (tensor.dtype(), tensor.shape());
                        problems.push(format!("{name} is {dtype:?} {shape:?}, must be F32 [{rows}, {cols}]"));
                    }
                    Ok(tensor) => {
                        let (values, _) = tensor.data().as_chunks();
                        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                        loaded.push(Matrix::from_vec(rows, cols, values));
                    }
                }
                known.push(name);
            }
        }
        known.sort_unstable();
        let mut unknown = saved.names();
        unknown.retain(|name| known.binary_search_by(|known| known.as_str().cmp(name)).is_err());
        unknown.sort_unstable();
        problems.extend(unknown.iter().map(|name| format!("{name} belongs to no trained tensor")));
        if !problems.is_empty() {
            return Err(TrainError::OptimizerMismatch { path: path.to_path_buf(), problems });
        }

        self.updates = updates;
        let mut loaded = loaded.into_iter();
        for slot in &mut self.slots {
            if let (Some(m), Some(v)) = (loaded.next(), loaded.next()) {
                (slot.m, slot.v) = (m, v);
            }
        }
        Ok(())
    }
}

impl Coefficients {
    fn new(options: &AdamWOptions, group: ParameterGroup, learning_rate: f64, updates: u64) -> Self {
        let rate = learning_rate * group.learning_rate_scale;
        let decay = if group.weight_decay { options.weight_decay } else { 0.0 };
        let bias1 = 1.0 - options.beta1.powf(updates as f64);
        let bias2 = 1.0 - options.beta2.powf(updates as f64);
        Self {
            keep: (1.0 - rate * decay) as f32,
            one_minus_beta1: (1.0 - options.beta1) as f32,
            beta2: options.beta2 as f32,
            one_minus_beta2: (1.0 - options.beta2) as f32,
            root_bias2: bias2.sqrt() as f32,
            epsilon: options.epsilon as f32,
            step_size: (rate / bias1) as f32,
        }
    }

    fn update(&self, values: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        for (((value, m), v), g) in values.iter_mut().zip(m).zip(v).zip(gradient) {
            *m += self.one_minus_beta1 * (g - *m);
            *v = self.beta2 * *v + self.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / self.root_bias2 + self.epsilon;
            *value = *value * self.keep - self.step_size * *m / denominator;
        }
    }
}

/// A matrix as safetensors wants it.
struct Values<'a> {
    shape: [usize; 2],
    values: &'a [f32],
}

impl<'a> Values<'a> {
    fn new(matrix: &'a Matrix) -> Self {
        Self { shape: [matrix.rows(), matrix.cols()], values: matrix.data() }
    }
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
