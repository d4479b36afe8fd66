//! AdaLoRA's budget of ranks (Zhang et al. 2023, <https://arxiv.org/abs/2303.10512>, section 3.2 and algorithm 1), as PEFT
//! computes it after each update, and its regularisation (equation 4).
//!
//! ```text
//! I = |w·∇w|,  Ī ← β₁·Ī + (1 − β₁)·I,  U ← β₂·U + (1 − β₂)·|I − Ī|,  s(w) = Ī·U
//! score of a rank i of a layer = s(E_i) + mean_j s(A_ij) + mean_j s(B_ji)
//! budget(t) = target + (init − target)·(1 − (t − tinit)/(total − tfinal − tinit))³
//! R = orth_reg_weight · mean of ‖A·Aᵀ − I‖_F and ‖Bᵀ·B − I‖_F over the layers
//! ```
//!
//! Ranks beyond the budget, the least important of all layers, have their `E` set to zero: for now until
//! `total − tfinal` updates, and for good from then on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tunesmith_tensor::{Gradients, Matrix, Parameter, Stored, Tape, Workspace};

use crate::MethodError;
use crate::adalora::AdaLoraConfig;
use crate::method::Routine;

/// The ranks that are kept for good, by the path of the module; empty until that is decided.
pub(crate) type Masks = Arc<Mutex<BTreeMap<String, Vec<bool>>>>;

/// The mask of a module, once there is one.
pub(crate) fn kept(masks: &Masks, path: &str) -> Option<Vec<bool>> {
    masks.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
}

/// The tensors of one tuned layer, with their importance.
pub(crate) struct Layer {
    pub(crate) path: String,
    pub(crate) a: Importance,
    pub(crate) e: Importance,
    pub(crate) b: Importance,
}

/// A trainable tensor with running means of its sensitivity and its uncertainty.
pub(crate) struct Importance {
    parameter: Parameter,
    sensitivity: Matrix,
    uncertainty: Matrix,
}

impl Importance {
    pub(crate) fn new(parameter: &Parameter) -> Self {
        let (rows, cols) = parameter.value().shape();
        let zeros = || Matrix::zeros(rows, cols);
        Self { parameter: parameter.clone(), sensitivity: zeros(), uncertainty: zeros() }
    }

    fn update(&mut self, gradients: &Gradients, gradient_scale: f32, beta1: f32, beta2: f32) {
        let value = self.parameter.value();
        let Some(gradient) = gradients.get(self.parameter.id()) else { return };
        let means = self.sensitivity.data_mut().iter_mut().zip(self.uncertainty.data_mut());
        for ((sensitivity, uncertainty), (w, gradient)) in means.zip(value.data().iter().zip(gradient.data())) {
            let importance = (w * (gradient * gradient_scale)).abs();
            *sensitivity = beta1 * *sensitivity + (1.0 - beta1) * importance;
            *uncertainty = beta2 * *uncertainty + (1.0 - beta2) * (importance - *sensitivity).abs();
        }
    }

    fn score(&self, row: usize, col: usize) -> f32 {
        self.sensitivity.row(row)[col] * self.uncertainty.row(row)[col]
    }
}

impl Layer {
    /// The score of a rank.
    fn score(&self, rank: usize) -> f32 {
        let (rows, cols) = (self.b.sensitivity.rows(), self.a.sensitivity.cols());
        let of_a: f32 = (0..cols).map(|col| self.a.score(rank, col)).sum::<f32>() / cols as f32;
        let of_b: f32 = (0..rows).map(|row| self.b.score(row, rank)).sum::<f32>() / rows as f32;
        self.e.score(rank, 0) + (of_a + of_b)
    }

    fn each(&self) -> [(&'static str, &Importance); 3] {
        [("lora_A", &self.a), ("lora_E", &self.e), ("lora_B", &self.b)]
    }

    fn each_mut(&mut self) -> [&mut Importance; 3] {
        [&mut self.a, &mut self.e, &mut self.b]
    }
}

/// The routine of a run.
pub(crate) struct Budget {
    pub(crate) config: AdaLoraConfig,
    pub(crate) layers: Vec<Layer>,
    pub(crate) masks: Masks,
}

impl Budget {
    /// Updates of the run. PEFT needs to be told; here it is the run's own number where nothing else is said.
    fn total(&self) -> u64 {
        self.config.total_step.unwrap_or(1)
    }

    fn initial_budget(&self) -> usize {
        self.layers.iter().map(|layer| layer.e.sensitivity.rows()).sum()
    }

    /// The ranks to keep after `step` updates, where it is time to prune.
    fn budget(&self, step: u64) -> Option<usize> {
        let AdaLoraConfig { tinit, tfinal, delta_t, target_r, .. } = self.config;
        let last = self.total() - tfinal;
        let (initial, target) = (self.initial_budget(), target_r * self.layers.len());
        if step <= tinit || step > last {
            return None;
        }
        if step == last {
            return Some(target.min(initial));
        }
        let left = 1.0 - (step - tinit) as f64 / (last - tinit) as f64;
        let budget = ((initial as f64 - target as f64) * left.powi(3) + target as f64) as usize;
        step.is_multiple_of(delta_t).then_some(budget)
    }

    /// Zeroes the `E` of the ranks beyond `budget`; returns which ranks are kept.
    fn prune(&mut self, budget: usize) -> BTreeMap<String, Vec<bool>> {
        let scores: Vec<Vec<f32>> = self
            .layers
            .iter()
            .map(|layer| (0..layer.e.sensitivity.rows()).map(|rank| layer.score(rank)).collect())
            .collect();
        let mut sorted = scores.concat();
        sorted.sort_by(f32::total_cmp);
        let pruned = self.initial_budget().saturating_sub(budget);
        // The score of the most important rank that has to go; none has to where the budget is still whole.
        let threshold = pruned.checked_sub(1).map(|place| sorted[place]);
        let mut masks = BTreeMap::new();
        for (layer, scores) in self.layers.iter_mut().zip(scores) {
            let mask: Vec<bool> =
                scores.iter().map(|score| threshold.is_none_or(|threshold| *score > threshold)).collect();
            apply(&mut layer.e.parameter, &mask);
            masks.insert(layer.path.clone(), mask);
        }
        masks
    }
}

fn apply(e: &mut Parameter, mask: &[bool]) {
    let mut value = e.value_mut();
    value.data_mut().iter_mut().zip(mask).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
}

impl Routine for Budget {
    fn begin(&mut self, max_steps: u64) -> Result<(), MethodError> {
        self.config.total_step.get_or_insert(max_steps);
        let total = self.total();
        let AdaLoraConfig { tinit, tfinal, .. } = self.config;
        let impossible = |why: String| MethodError::Impossible {
            what: "AdaLoRA's schedule".into(),
            why,
            instead: "Decrease tinit or tfinal, or train longer".into(),
        };
        if tinit + tfinal >= total {
            return Err(impossible(format!("tinit {tinit} and tfinal {tfinal} leave nothing of {total} updates")));
        }
        if total - tfinal > max_steps {
            let why = format!("pruning ends after {} updates, and the run has {max_steps}", total - tfinal);
            return Err(impossible(why));
        }
        Ok(())
    }

    fn regularise(&self, workspace: &Workspace, gradients: &mut Gradients) -> f64 {
        let weight = self.config.orth_reg_weight / (2.0 * self.layers.len() as f64);
        if weight == 0.0 {
            return 0.0;
        }
        let mut sum = 0.0;
        for layer in &self.layers {
            for (parameter, rows_are_vectors) in [(&layer.a.parameter, true), (&layer.b.parameter, false)] {
                let mut tape = Tape::differentiating(workspace);
                let value = tape.parameter(parameter);
                let vectors = if rows_are_vectors { value } else { tape.transpose(&value) };
                let products = tape.matmul_nt(&vectors, &vectors);
                drop(vectors);
                let mut off = Matrix::clone(products.value());
                (0..off.rows()).for_each(|place| off.row_mut(place)[place] -= 1.0);
                let norm = off.data().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
                sum += weight * norm;
                if norm > 0.0 {
                    // d‖M‖_F = M/‖M‖_F.
                    let scale = (weight / norm) as f32;
                    off.data_mut().iter_mut().for_each(|value| *value *= scale);
                    tape.backward(products, off, gradients);
                }
            }
        }
        sum
    }

    fn after_step(&mut self, gradients: &Gradients, gradient_scale: f32, step: u64) {
        let step = step + 1;
        let last = self.total() - self.config.tfinal;
        if step > last {
            for layer in &mut self.layers {
                if let Some(mask) = kept(&self.masks, &layer.path) {
                    apply(&mut layer.e.parameter, &mask);
                }
            }
            return;
        }
        if step < last {
            let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
            for layer in &mut self.layers {
                for importance in layer.each_mut() {
                    importance.update(gradients, gradient_scale, beta1, beta2);
                }
            }
        }
        let Some(budget) = self.budget(step) else { return };
        let masks = self.prune(budget);
        if step == last {
            *self.masks.lock().unwrap_or_else(PoisonError::into_inner) = masks;
        }
    }

    fn file_keys(&self) -> Map<String, Value> {
        let masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = Map::new();
        if !masks.is_empty() {
            let pattern: Map<String, Value> =
                masks.iter().map(|(path, mask)| (format!("{path}.lora_E"), json!(mask))).collect();
            keys.insert("rank_pattern".into(), pattern.into());
        }
        keys.extend(self.config.total_step.map(|total| ("total_step".into(), total.into())));
        keys
    }

    fn state(&self) -> Vec<Stored> {
        let named = |name: String, value: &Matrix| Stored {
            name,
            shape: vec![value.rows(), value.cols()],
            value: Arc::new(value.clone()),
        };
        let mut state = Vec::new();
        for layer in &self.layers {
            for (tensor, importance) in layer.each() {
                state.push(named(format!("{}.{tensor}.exp_avg_ipt", layer.path), &importance.sensitivity));
                state.push(named(format!("{}.{tensor}.exp_avg_unc", layer.path), &importance.uncertainty));
            }
            // One a rank that is kept, zero one that is not, minus one where nothing is decided.
            let mask = kept(&self.masks, &layer.path);
            let ranks = layer.e.sensitivity.rows();
            let value = |rank: usize| mask.as_ref().map_or(-1.0, |mask| f32::from(u8::from(mask[rank])));
            state.push(named(
                format!("{}.mask", layer.path),
                &Matrix::from_vec(ranks, 1, (0..ranks).map(value).collect()),
            ));
        }
        state
    }

    fn restore(&mut self, state: Vec<Stored>) {
        let mut state = state.into_iter().map(|tensor| tensor.value);
        let mut masks = BTreeMap::new();
        for layer in &mut self.layers {
            for importance in layer.each_mut() {
                for mean in [&mut importance.sensitivity, &mut importance.uncertainty] {
                    if let Some(value) = state.next() {
                        *mean = Matrix::clone(&value);
                    }
                }
            }
            let Some(mask) = state.next() else { continue };
            if mask.data().iter().all(|value| *value >= 0.0) {
                masks.insert(layer.path.clone(), mask.data().iter().map(|value| *value > 0.5).collect());
            }
        }
        *self.masks.lock().unwrap_or_else(PoisonError::into_inner) = masks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of three ranks whose importance grows with the rank, the second layer's above the first's.
    fn budget(config: AdaLoraConfig) -> Budget {
        let layer = |number: usize| {
            let importance = |rows: usize, cols: usize, ranks_are_rows: bool| {
                let mut importance =
                    Importance::new(&Parameter::new("w", Matrix::from_vec(rows, cols, vec![1.0; rows * cols])));
                for row in 0..rows {
                    for col in 0..cols {
                        let rank = if ranks_are_rows { row } else { col };
                        importance.sensitivity.row_mut(row)[col] = (1 + rank + 3 * number) as f32;
                        importance.uncertainty.row_mut(row)[col] = 1.0;
                    }
                }
                importance
            };
            let path = format!("layer.{number}");
            Layer { path, a: importance(3, 4, true), e: importance(3, 1, true), b: importance(5, 3, false) }
        };
        Budget { config, layers: vec![layer(0), layer(1)], masks: Masks::default() }
    }

    fn config() -> AdaLoraConfig {
        AdaLoraConfig {
            target_r: 1,
            tinit: 10,
            tfinal: 20,
            total_step: Some(100),
            delta_t: 5,
            ..AdaLoraConfig::default()
        }
    }

    #[test]
    fn the_budget_falls_with_the_cube_of_what_is_left() {
        let budget = budget(config());
        assert_eq!(budget.budget(10), None);
        assert_eq!(budget.budget(12), None);
        // 2 + 4·(1 − 5/70)³ = 5.20, 2 + 4·(1 − 35/70)³ = 2.5.
        assert_eq!(budget.budget(15), Some(5));
        assert_eq!(budget.budget(45), Some(2));
        assert_eq!(budget.budget(80), Some(2));
        assert_eq!(budget.budget(81), None);
    }

    #[test]
    fn the_least_important_ranks_of_all_layers_are_pruned() {
        let mut budget = budget(config());
        let masks = budget.prune(2);
        assert_eq!(masks["layer.0"], [false, false, false]);
        assert_eq!(masks["layer.1"], [false, true, true]);
        assert_eq!(budget.layers[0].e.parameter.value().data(), [0.0; 3]);
        assert_eq!(budget.layers[1].e.parameter.value().data(), [0.0, 1.0, 1.0]);
        assert!(budget.prune(6).values().flatten().all(|keep| *keep));
    }

    #[test]
    fn the_regularisation_is_the_distance_from_orthonormal_and_its_gradient() {
        let workspace = Workspace::new();
        let mut budget = budget(AdaLoraConfig { orth_reg_weight: 0.5, ..config() });
        // A·Aᵀ is all fours, 3 × 3; Bᵀ·B is all fives.
        let of = |diagonal: f64, other: f64| (3.0 * diagonal * diagonal + 6.0 * other * other).sqrt();
        let expected = 0.5 * (of(3.0, 4.0) + of(4.0, 5.0)) / 2.0;
        let mut gradients = Gradients::new(&workspace);
        let sum = budget.regularise(&workspace, &mut gradients);
        assert!((sum - expected).abs() < 1e-5, "{sum} {expected}");
        let gradient = gradients.get(budget.layers[1].b.parameter.id()).unwrap().data()[7];
        let mut moved = |step: f32| {
            budget.layers[1].b.parameter.value_mut().data_mut()[7] += step;
            budget.regularise(&workspace, &mut Gradients::new(&workspace))
        };
        let above = moved(1e-2);
        let below = moved(-2e-2);
        let difference = ((above - below) / 2e-2) as f32;
        assert!((gradient - difference).abs() < 1e-3 * gradient.abs(), "{gradient} {difference}");
    }

    #[test]
    fn what_is_restored_goes_on_as_before() {
        let mut first = budget(config());
        let gradients = Gradients::new(&Workspace::new());
        first.after_step(&gradients, 1.0, 79);
        let mut second = budget(config());
        second.layers[0].e.sensitivity = Matrix::zeros(3, 1);
        second.restore(first.state());
        assert_eq!(second.state(), first.state());
        assert_eq!(second.file_keys()["rank_pattern"]["layer.1.lora_E"], json!([false, true, true]));
    }

    #[test]
    fn a_schedule_that_does_not_fit_the_run_is_refused() {
        let mut short = budget(config());
        assert!(short.begin(100).is_ok());
        assert!(short.begin(70).unwrap_err().to_string().contains("pruning ends after 80 updates"));
        let mut long = budget(AdaLoraConfig { total_step: None, ..config() });
        assert!(long.begin(30).unwrap_err().to_string().contains("leave nothing of 30"));
    }
}
