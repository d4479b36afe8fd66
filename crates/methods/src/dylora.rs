//! DyLoRA: one training for every rank up to `r` (Valipour et al. 2023, <https://arxiv.org/abs/2210.07558>, algorithm 1).
//!
//! ```text
//! each update draws a rank b, the same in all layers, uniformly from min_r..=r:
//! y = W₀·x + (alpha/b)·B[:, ..b]·A[..b, :]·dropout(x)                (equation 7)
//! frozen: only A[b, :] and B[:, b] are updated                      (equation 10)
//! otherwise: all of the first b rows and columns are
//! ```
//!
//! The rank of update `t` is a function of the seed and `t`. Outside training the rank is `rank`, by default `r`;
//! `auto` is `r` until the end of training, which sets it to the smallest that is as good as the best within a tolerance. What
//! the optimiser's momentum would do to rows that were not drawn is undone, so that exactly those named above change. Not in
//! PEFT: the file has LoRA's tensors, and any rank of it is exported as a plain LoRA file.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Adapter, Affine, Base, Gradients, Matrix, Parameter, Seed, Site, Stored, Tape, Term, Trainable, Tuned, Var,
    WeightTuner,
};

use crate::build::{build_at, parameter_name};
use crate::common::{CommonConfig, Modules, OneOrMany, Purpose};
use crate::error::ConfigProblem;
use crate::lora_config::number;
use crate::lora_start;
use crate::lora_tuner::{A, B};
use crate::method::{Built, Method, Place, Routine};
use crate::placement::{self, Placement, Wanted};
use crate::{BuiltAdapter, LoraConfig, MethodConfig, MethodError, ModelDescription, target_defaults};

/// Configuration of DyLoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DyLoraConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// The largest rank.
    pub r: usize,
    /// The smallest rank that is drawn.
    pub min_r: usize,
    /// Whether an update changes the last row and column of the drawn rank only.
    pub frozen: bool,
    /// The rank outside training; none is `r`.
    pub rank: Option<RankKey>,
    /// With `rank: auto`, how much worse than the best rank's result on the held-out set that of the chosen one may be,
    /// as a fraction of the former.
    pub rank_tolerance: f64,
    /// Numerator of the scale.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// Probability with which training zeroes a value of the input of `A`.
    pub lora_dropout: f64,
    /// The modules to tune; `None` takes LoRA's defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Modules not to tune although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Restricts a list of targets to these layers.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Name of the list of layers, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
}

/// The rank outside training, as configurations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a rank, or auto")]
pub enum RankKey {
    /// This one.
    Rank(usize),
    /// The smallest that is good enough, chosen at the end of training.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// It.
    Auto,
}

impl Default for DyLoraConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            r: 8,
            min_r: 1,
            frozen: false,
            rank: None,
            rank_tolerance: 0.01,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

impl DyLoraConfig {
    /// Whether the end of training chooses the rank.
    pub fn chooses_rank(&self) -> bool {
        matches!(self.rank, Some(RankKey::Auto(_)))
    }

    /// The ranks that were, or are to be, trained.
    pub fn ranks(&self) -> RangeInclusive<usize> {
        self.min_r..=self.r
    }

    /// The rank outside training.
    fn rank_in_use(&self) -> usize {
        match self.rank {
            Some(RankKey::Rank(rank)) => rank,
            Some(RankKey::Auto(_)) | None => self.r,
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_ref(),
            layers_pattern: self.layers_pattern.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Wanted::default()
        }
    }
}

/// The ranks in use: in training, and otherwise. Shared by all layers.
#[derive(Debug)]
struct Ranks {
    drawn: AtomicUsize,
    evaluation: usize,
}

/// Tunes one linear layer by the first rows and columns of two thin matrices.
#[derive(Debug)]
pub struct DyLoraTuner {
    /// `[r, in]`.
    a: Parameter,
    /// `[out, r]`.
    b: Parameter,
    alpha: f32,
    dropout: f32,
    ranks: Arc<Ranks>,
}

impl DyLoraTuner {
    fn new(site: &Site, a: Matrix, b: Matrix, config: &DyLoraConfig, ranks: &Arc<Ranks>) -> Self {
        let parameter = |suffix, value| Parameter::new(parameter_name(&site.path, suffix), value);
        let (alpha, dropout) = (config.lora_alpha as f32, config.lora_dropout as f32);
        Self { a: parameter(A, a), b: parameter(B, b), alpha, dropout, ranks: Arc::clone(ranks) }
    }

    /// `A[..b, :]`, `B[:, ..b]` and the scale.
    fn slices(&self, tape: &mut Tape) -> (Var, Var, f32) {
        let rank = if tape.is_training() { self.ranks.drawn.load(Ordering::Relaxed) } else { self.ranks.evaluation };
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let (a, b) = (tape.slice_rows(&a, 0..rank), tape.slice_columns(&b, 0..rank));
        (a, b, self.alpha / rank as f32)
    }
}

impl Trainable for DyLoraTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
    }
}

impl WeightTuner for DyLoraTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let (a, b, scale) = self.slices(tape);
        let a_transposed = tape.transpose(&a);
        let frozen = tape.constant(base.weight.to_matrix());
        let weight = tape.add_product(frozen, 0..b.rows(), &b, &a_transposed, scale);
        Tuned { weight, bias: base.bias.map(|bias| tape.constant(bias.to_matrix())) }
    }

    fn affine(&self, tape: &mut Tape, _base: Base<'_>, x: &Var) -> Affine {
        let x = tape.dropout(x, self.dropout);
        let (a, b, scale) = self.slices(tape);
        let input = tape.matmul_nt(&x, &a);
        Affine { terms: vec![Term { input, weight: b, scale }], ..Affine::frozen() }
    }
}

/// Draws the ranks of a run, and keeps updates to what they may change.
struct Sampling {
    seed: Seed,
    config: DyLoraConfig,
    ranks: Arc<Ranks>,
    /// `A` and `B` of each layer.
    tensors: Vec<[Parameter; 2]>,
    /// Their values before the update.
    before: Vec<[Arc<Matrix>; 2]>,
}

impl Sampling {
    fn rank(&self, step: u64) -> usize {
        let count = (self.config.r - self.config.min_r + 1) as u64;
        self.config.min_r + self.seed.stream("dylora", step).below(count) as usize
    }
}

impl Routine for Sampling {
    fn before_step(&mut self, step: u64) {
        self.ranks.drawn.store(self.rank(step), Ordering::Relaxed);
        self.before = self.tensors.iter().map(|tensors| tensors.each_ref().map(Parameter::value)).collect();
    }

    fn after_step(&mut self, _gradients: &Gradients, _gradient_scale: f32, step: u64) {
        let rank = self.rank(step);
        let first = if self.config.frozen { rank - 1 } else { 0 };
        for ([a, b], [a_before, b_before]) in self.tensors.iter_mut().zip(std::mem::take(&mut self.before)) {
            let (mut a, mut b) = (a.value_mut(), b.value_mut());
            for row in (0..a.rows()).filter(|row| !(first..rank).contains(row)) {
                a.row_mut(row).copy_from_slice(a_before.row(row));
            }
            for row in 0..b.rows() {
                let (new, old) = (b.row_mut(row), b_before.row(row));
                new[..first].copy_from_slice(&old[..first]);
                new[rank..].copy_from_slice(&old[rank..]);
            }
        }
    }
}

impl Method for DyLoraConfig {
    const PEFT_TYPE: &'static str = "DYLORA";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = placement::problems(&self.wanted());
        let mut check = |holds: bool, key: &str, reason: String| {
            if !holds {
                problems.push(ConfigProblem::Value { key: key.to_owned(), reason });
            }
        };
        check(self.r > 0, "r", "a rank must be at least 1".into());
        check((1..=self.r).contains(&self.min_r), "min_r", format!("it must lie between 1 and r, which is {}", self.r));
        let rank = self.rank_in_use();
        check(
            (1..=self.r).contains(&rank),
            "rank",
            format!("it must lie between 1 and r, which is {}, or be auto", self.r),
        );
        let is_fraction = self.rank_tolerance.is_finite() && self.rank_tolerance >= 0.0;
        check(is_fraction, "rank_tolerance", "it must be a number from 0".into());
        let is_probability = (0.0..1.0).contains(&self.lora_dropout);
        check(is_probability, "lora_dropout", "a probability from 0 to below 1 is needed".into());
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let defaults = target_defaults::lora(model.model_type);
        let placement = Placement::find(&Wanted { defaults, ..self.wanted() }, place)?;
        let ranks = Arc::new(Ranks { drawn: AtomicUsize::new(self.r), evaluation: self.rank_in_use() });
        let like_lora = LoraConfig { r: self.r, ..LoraConfig::default() };
        let mut adapter = Adapter::new();
        let mut tensors = Vec::new();
        for id in &placement.targeted {
            let site = &model.sites[id.0];
            let start = lora_start::linear(&like_lora, site, model.base(*id)?.weight, seed)?;
            let tuner = DyLoraTuner::new(site, start.a, start.b, self, &ranks);
            tensors.push([tuner.a.clone(), tuner.b.clone()]);
            adapter.insert_weight(*id, Box::new(tuner));
        }
        placement.add_common(&mut adapter, model)?;
        let Placement { targets, warnings, .. } = placement;
        let config = Self { target_modules: Some(targets), ..self.clone() };
        let sampling = Sampling { seed, config: config.clone(), ranks, tensors, before: Vec::new() };
        let is_training = purpose == Purpose::Training;
        Ok(Built { config, adapter, warnings, routine: is_training.then(|| Box::new(sampling) as _) })
    }
}

/// The plain LoRA adapter of rank `rank` that a DyLoRA adapter holds.
///
/// # Errors
/// [`MethodError::Impossible`] for another method, or a rank that it was not trained for.
pub fn at_rank(built: &BuiltAdapter, rank: usize, model: &ModelDescription<'_>) -> Result<BuiltAdapter, MethodError> {
    let config = trained_for(built, rank)?;
    let lora = LoraConfig {
        common: config.common.clone(),
        r: rank,
        lora_alpha: config.lora_alpha,
        lora_dropout: config.lora_dropout,
        target_modules: config.target_modules.clone(),
        exclude_modules: config.exclude_modules.clone(),
        modules_to_save: config.modules_to_save.clone(),
        layers_to_transform: config.layers_to_transform.clone(),
        layers_pattern: config.layers_pattern.clone(),
        ..LoraConfig::default()
    };
    filled_from(built, &MethodConfig::new(lora), model)
}

/// The same DyLoRA adapter, which from here on is used, merged and saved at rank `rank`. Its training is over.
///
/// # Errors
/// As [`at_rank`].
pub fn with_rank(built: &BuiltAdapter, rank: usize, model: &ModelDescription<'_>) -> Result<BuiltAdapter, MethodError> {
    let config = DyLoraConfig { rank: Some(RankKey::Rank(rank)), ..trained_for(built, rank)?.clone() };
    filled_from(built, &MethodConfig::new(config), model)
}

/// The configuration of a DyLoRA adapter that was trained for `rank`.
fn trained_for(built: &BuiltAdapter, rank: usize) -> Result<&DyLoraConfig, MethodError> {
    let impossible =
        |why: String, instead: String| MethodError::Impossible { what: format!("rank {rank}"), why, instead };
    let Some(config) = built.config.get::<DyLoraConfig>() else {
        let why = format!("only a DyLoRA adapter holds every rank, and this one is {}", built.config.peft_type());
        return Err(impossible(why, "Train with peft_type: DYLORA".into()));
    };
    if !config.ranks().contains(&rank) {
        let why = format!("the adapter was trained for ranks {} to {}", config.min_r, config.r);
        return Err(impossible(why, "Choose one of these".into()));
    }
    Ok(config)
}

/// An adapter of `config` with the first rows and columns of the tensors that `built` has under the same names.
fn filled_from(
    built: &BuiltAdapter,
    config: &MethodConfig,
    model: &ModelDescription<'_>,
) -> Result<BuiltAdapter, MethodError> {
    let place = Place { model, seed: Seed(0), purpose: Purpose::Loading, file: None, taken: &[] };
    let mut filled = build_at(config, &place)?;
    let trained: BTreeMap<String, Stored> =
        built.adapter.stored(0).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    for parameter in filled.adapter.parameters_mut() {
        let Some(tensor) = trained.get(parameter.name()) else { continue };
        let mut value = parameter.value_mut();
        let (rows, cols) = value.shape();
        for row in 0..rows {
            value.row_mut(row).copy_from_slice(&tensor.value.row(row)[..cols]);
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Workspace;

    use super::*;
    use crate::checks::{Layer, check_linear, close};

    fn config() -> DyLoraConfig {
        DyLoraConfig { r: 4, lora_alpha: 6.0, ..DyLoraConfig::default() }
    }

    fn tuner(layer: &Layer, evaluation: usize) -> DyLoraTuner {
        let ranks = Arc::new(Ranks { drawn: AtomicUsize::new(4), evaluation });
        DyLoraTuner::new(&layer.site, layer.random(4, 4, 5), layer.random(5, 4, 6), &config(), &ranks)
    }

    fn sampling(tuner: &DyLoraTuner, frozen: bool) -> Sampling {
        Sampling {
            seed: Seed(3),
            config: DyLoraConfig { frozen, ..config() },
            ranks: Arc::clone(&tuner.ranks),
            tensors: vec![[tuner.a.clone(), tuner.b.clone()]],
            before: Vec::new(),
        }
    }

    #[test]
    fn both_forms_agree_at_every_rank_and_so_do_their_gradients() {
        let layer = Layer::new(5, 4, true);
        (1..=4).for_each(|rank| check_linear(&layer, || tuner(&layer, rank)));
    }

    #[test]
    fn a_rank_is_lora_of_the_first_rows_and_columns() {
        let layer = Layer::new(5, 4, false);
        let (a, b) = (layer.random(4, 4, 5), layer.random(5, 4, 6));
        let mut tape = Tape::evaluating(&Workspace::new());
        let tuned = tuner(&layer, 2).tuned(&mut tape, layer.base()).weight;
        let mut expected = layer.weight.to_matrix();
        for row in 0..5 {
            for col in 0..4 {
                let product: f32 = (0..2).map(|rank| b.row(row)[rank] * a.row(rank)[col]).sum();
                expected.row_mut(row)[col] += 3.0 * product;
            }
        }
        close(tuned.value().data(), expected.data(), 1e-5);
    }

    #[test]
    fn an_update_changes_only_what_the_drawn_rank_may() {
        let layer = Layer::new(5, 4, false);
        for frozen in [false, true] {
            let mut tuner = tuner(&layer, 4);
            let mut sampling = sampling(&tuner, frozen);
            let mut seen = [0; 5];
            for step in 0..40 {
                sampling.before_step(step);
                let rank = tuner.ranks.drawn.load(Ordering::Relaxed);
                seen[rank] += 1;
                let (a, b) = (tuner.a.value(), tuner.b.value());
                // Whatever an optimiser does.
                for parameter in tuner.parameters_mut() {
                    parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 1.0);
                }
                sampling.after_step(&Gradients::new(&Workspace::new()), 1.0, step);
                let may = |place: usize| place < rank && (!frozen || place == rank - 1);
                for place in 0..4 {
                    assert_eq!(tuner.a.value().row(place) != a.row(place), may(place), "A[{place}] at rank {rank}");
                    assert_eq!(tuner.b.value().row(2)[place] != b.row(2)[place], may(place), "B at rank {rank}");
                }
            }
            assert!(seen[1..].iter().all(|count| *count > 3), "{seen:?}");
        }
    }

    #[test]
    fn the_drawn_ranks_are_a_function_of_seed_and_step() {
        let layer = Layer::new(5, 4, false);
        let (one, two) = (tuner(&layer, 4), tuner(&layer, 4));
        let ranks = |tuner: &DyLoraTuner| (0..20).map(|step| sampling(tuner, false).rank(step)).collect::<Vec<_>>();
        assert_eq!(ranks(&one), ranks(&two));
    }
}
