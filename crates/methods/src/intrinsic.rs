//! Intrinsic dimension: training in a random subspace of all weights (Li et al. 2018, <https://arxiv.org/abs/1804.08838>,
//! equation 2), and its structure-aware form SAID (Aghajanyan, Zettlemoyer and Gupta 2021,
//! <https://arxiv.org/abs/2012.13255>, equation 4).
//!
//! ```text
//! intrinsic dimension: θ = θ₀ + P·θ_d                     θ_d: d numbers, zero at first
//! SAID:                θ_i = θ₀_i + λ_i·(P·θ_d)_i         θ_d: d − m numbers; λ: one for each of m layers, one at first
//! ```
//!
//! `P` is random, fixed, and made again from its seed: a file holds the seed and `d` numbers. Every layer's tensors share one
//! `λ`, and all that belongs to no layer (embeddings, the last norm) shares another. Not in PEFT.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Adapter, Base, Matrix, Parameter, Seed, Site, SiteId, SiteKind, Tape, Trainable, Tuned, Var, WeightTuner,
};

use crate::common::{CommonConfig, Modules, Purpose};
use crate::error::ConfigProblem;
use crate::full;
use crate::intrinsic_projection::{Projection, ProjectionKind, ProjectionScope, Target, bytes, draw};
use crate::method::{Built, Method, Place};
use crate::placement::{self, Placement, Wanted};
use crate::{MethodError, ModelDescription};

/// Configuration of intrinsic dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IntrinsicConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// `d`: all trained numbers.
    pub intrinsic_dimension: usize,
    /// The kind of `P`.
    pub projection: ProjectionKind,
    /// Over which values `P` keeps lengths.
    pub projection_scope: ProjectionScope,
    /// What `P` is drawn from; none takes the run's seed.
    pub projection_seed: Option<u64>,
    /// `D`: the values of the base that `P` reaches, by which an adapter's file knows its base; none takes what it is.
    pub projected_values: Option<usize>,
    /// Most memory that `P` may take, in GiB.
    pub projection_memory: f64,
    /// The modules to tune; none means every weight, norm and embedding.
    pub target_modules: Option<Modules>,
    /// Modules not to tune although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Modules of which full copies are trained, outside the subspace.
    pub modules_to_save: Option<Vec<String>>,
}

impl Default for IntrinsicConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            intrinsic_dimension: 1000,
            projection: ProjectionKind::Fastfood,
            projection_scope: ProjectionScope::Global,
            projection_seed: None,
            projected_values: None,
            projection_memory: 4.0,
            target_modules: None,
            exclude_modules: None,
            modules_to_save: None,
        }
    }
}

/// Configuration of SAID: the same keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaidConfig {
    /// The keys of intrinsic dimension.
    #[serde(flatten)]
    pub intrinsic: IntrinsicConfig,
}

impl IntrinsicConfig {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            kinds: &[SiteKind::Linear, SiteKind::Embedding, SiteKind::Norm],
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Wanted::default()
        }
    }

    fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = placement::problems(&self.wanted());
        if self.intrinsic_dimension == 0 {
            let reason = "at least one number must be trained".to_owned();
            problems.push(ConfigProblem::Value { key: "intrinsic_dimension".into(), reason });
        }
        problems
    }
}

/// Keeps the last tuned weight for passes that only evaluate: projecting again for every generated token would take longer
/// than the model.
#[derive(Debug, Default)]
struct Cache(Mutex<Option<Cached>>);

/// A tuned weight, and the values that it was made from.
#[derive(Debug)]
struct Cached {
    made_from: Vec<Arc<Matrix>>,
    weight: Arc<Matrix>,
}

/// Moves the weight and bias of one site within the subspace.
#[derive(Debug)]
pub struct IntrinsicTuner {
    /// `[1, d]`, shared by all sites.
    theta: Parameter,
    /// SAID's `λ` `[1, m]`, shared by all sites, and the place of this site's.
    lambda: Option<(Parameter, usize)>,
    weight: Projection,
    bias: Option<Projection>,
    cache: Cache,
}

impl IntrinsicTuner {
    /// `θ_d`, times `λ_i` with SAID.
    fn coordinates(&self, tape: &mut Tape) -> Var {
        let theta = tape.parameter(&self.theta);
        let Some((lambda, place)) = &self.lambda else { return theta };
        let lambda = tape.parameter(lambda);
        let own = tape.slice_columns(&lambda, *place..*place + 1);
        tape.scale_rows(&theta, &own)
    }

    fn made_from(&self) -> Vec<Arc<Matrix>> {
        self.parameters().into_iter().map(Parameter::value).collect()
    }

    /// The tuned weight as it was made before, if nothing has changed since.
    fn cached(&self) -> Option<Arc<Matrix>> {
        let cache = self.cache.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = cache.as_ref()?;
        let same = cached.made_from.iter().zip(self.made_from()).all(|(old, new)| Arc::ptr_eq(old, &new));
        same.then(|| Arc::clone(&cached.weight))
    }
}

impl Trainable for IntrinsicTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        [&self.theta].into_iter().chain(self.lambda.iter().map(|(lambda, _)| lambda)).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        [&mut self.theta].into_iter().chain(self.lambda.iter_mut().map(|(lambda, _)| lambda)).collect()
    }
}

impl WeightTuner for IntrinsicTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let theta = self.coordinates(tape);
        let bias = base.bias.map(|frozen| {
            let frozen = tape.constant(frozen.to_matrix());
            match &self.bias {
                None => frozen,
                Some(projection) => {
                    let change = projection.apply(tape, &theta, (1, frozen.cols()));
                    tape.add(&change, frozen)
                }
            }
        });
        if let Some(weight) = (!tape.is_recording()).then(|| self.cached()).flatten() {
            return Tuned { weight: tape.shared_constant(weight), bias };
        }
        let change = self.weight.apply(tape, &theta, base.weight.shape());
        let frozen = tape.constant(base.weight.to_matrix());
        let weight = tape.add(&change, frozen);
        if !tape.is_recording() {
            let cached = Cached { made_from: self.made_from(), weight: weight.shared() };
            *self.cache.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cached);
        }
        Tuned { weight, bias }
    }
}

impl Method for IntrinsicConfig {
    const PEFT_TYPE: &'static str = "INTRINSIC";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        self.problems()
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let mut config = self.clone();
        let (adapter, warnings) = build(&mut config, place, |_| None)?;
        Ok(Built { config, adapter, warnings, routine: None })
    }
}

impl Method for SaidConfig {
    const PEFT_TYPE: &'static str = "SAID";

    fn common(&self) -> &CommonConfig {
        &self.intrinsic.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.intrinsic.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        self.intrinsic.problems()
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let mut config = self.clone();
        let (adapter, warnings) = build(&mut config.intrinsic, place, |sites| Some(layers(sites)))?;
        Ok(Built { config, adapter, warnings, routine: None })
    }
}

/// The number of the layer of each site: those of a block are one, those outside of blocks another.
fn layers(sites: &[&Site]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let key = |site: &Site| {
        let block = site.block?;
        site.path.find(&format!(".{block}.")).map(|end| (site.path[..end].to_owned(), block))
    };
    let number = |site: &&Site| {
        let next = numbers.len();
        *numbers.entry(key(site)).or_insert(next)
    };
    sites.iter().map(number).collect()
}

fn build(
    config: &mut IntrinsicConfig,
    place: &Place<'_, '_>,
    layers: impl Fn(&[&Site]) -> Option<Vec<usize>>,
) -> Result<(Adapter, Vec<String>), MethodError> {
    let Place { model, seed, purpose, .. } = *place;
    let seed = Seed(*config.projection_seed.get_or_insert(seed.0));
    let (sites, saved, warnings) = match &config.target_modules {
        Some(_) => {
            let placement = Placement::find(&config.wanted(), place)?;
            config.target_modules = Some(placement.targets.clone());
            (placement.targeted.clone(), Some(placement), Vec::new())
        }
        None => {
            let modules = config.modules_to_save.as_deref().unwrap_or_default();
            let saved = full::sites_to_save(modules, &[], model, purpose)?;
            let all = model.weight_sites().map(|(id, _)| id).filter(|id| !saved.contains(id)).collect();
            (all, None, Vec::new())
        }
    };
    let described: Vec<&Site> = sites.iter().map(|id| &model.sites[id.0]).collect();
    let layers = layers(&described);
    let lambdas = layers.as_ref().map_or(0, |layers| layers.iter().max().map_or(0, |last| last + 1));
    if config.intrinsic_dimension <= lambdas {
        return Err(MethodError::Impossible {
            what: format!("intrinsic_dimension: {}", config.intrinsic_dimension),
            why: format!("SAID trains a number for each of the {lambdas} layers and needs more than these"),
            instead: format!("Use {} or more, or INTRINSIC, which has none", lambdas + 1),
        });
    }
    let dimension = config.intrinsic_dimension - lambdas;
    let projections = projections(config, &sites, dimension, seed, model)?;
    let theta = Parameter::vector("theta_d", Matrix::zeros(1, dimension));
    let lambda = layers.map(|layers| {
        let ones = Matrix::from_vec(1, lambdas, vec![1.0; lambdas]);
        (Parameter::vector("lambda", ones), layers)
    });
    let mut adapter = Adapter::new();
    for (number, (id, (weight, bias))) in sites.iter().zip(projections).enumerate() {
        let lambda = lambda.as_ref().map(|(lambda, layers)| (lambda.clone(), layers[number]));
        let tuner = IntrinsicTuner { theta: theta.clone(), lambda, weight, bias, cache: Cache::default() };
        adapter.insert_weight(*id, Box::new(tuner));
    }
    match saved {
        Some(placement) => placement.add_common(&mut adapter, model)?,
        None => {
            let modules = config.modules_to_save.as_deref().unwrap_or_default();
            full::add_tuners(&mut adapter, &full::sites_to_save(modules, &[], model, purpose)?, model)?;
        }
    }
    Ok((adapter, warnings))
}

/// The projections of the weight and bias of each site. A tied weight moves with its twin.
fn projections(
    config: &mut IntrinsicConfig,
    sites: &[SiteId],
    dimension: usize,
    seed: Seed,
    model: &ModelDescription<'_>,
) -> Result<Vec<(Projection, Option<Projection>)>, MethodError> {
    let mut targets: Vec<Target> = Vec::new();
    // Where the weight's and the bias's projections stand among the targets.
    let mut places: Vec<(SiteId, usize, Option<usize>)> = Vec::new();
    for id in sites {
        let (site, base) = (&model.sites[id.0], model.base(*id)?);
        let is_twin = |other: &&(SiteId, usize, Option<usize>)| {
            site.kind != SiteKind::Norm && model.base(other.0).is_ok_and(|other| other.weight.is_same(base.weight))
        };
        let weight = match places.iter().find(is_twin) {
            Some((_, twin, _)) => *twin,
            None => {
                let values = base.weight.rows() * base.weight.cols();
                targets.push(Target { name: format!("{}.weight", site.path), values });
                targets.len() - 1
            }
        };
        let bias = base.bias.map(|bias| {
            targets.push(Target { name: format!("{}.bias", site.path), values: bias.cols() });
            targets.len() - 1
        });
        places.push((*id, weight, bias));
    }
    let total: usize = targets.iter().map(|target| target.values).sum();
    let expected = *config.projected_values.get_or_insert(total);
    if expected != total {
        return Err(MethodError::Impossible {
            what: format!("projected_values: {expected}"),
            why: format!(
                "this {} model has {total} where the projection goes, so it is not the base",
                model.model_type
            ),
            instead: "Use the base that the adapter was trained on; for a new run leave projected_values out".into(),
        });
    }
    let needed = bytes(config.projection, total, dimension);
    const GIB: f64 = (1u64 << 30) as f64;
    if needed > config.projection_memory * GIB {
        return Err(MethodError::Impossible {
            what: "projection".into(),
            why: format!(
                "the projection of {dimension} numbers to {total} would take {:.1} GiB, and projection_memory is {} GiB",
                needed / GIB,
                config.projection_memory
            ),
            instead: "Use projection: fastfood, which takes none".into(),
        });
    }
    let all = draw(config.projection, config.projection_scope, &targets, dimension, seed);
    Ok(places
        .into_iter()
        .map(|(_, weight, bias)| (all[weight].clone(), bias.map(|place| all[place].clone())))
        .collect())
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Workspace;

    use super::*;
    use crate::checks::{Layer, check_linear, close};

    fn tuner(layer: &Layer, kind: ProjectionKind, said: bool) -> IntrinsicTuner {
        let target = |name: &str, values| Target { name: name.to_owned(), values };
        let targets = [target("w", layer.site.rows * layer.site.cols), target("b", layer.site.rows)];
        let mut drawn = draw(kind, ProjectionScope::Global, &targets, 6, Seed(1)).into_iter();
        let (weight, bias) = (drawn.next().unwrap(), drawn.next());
        let lambda = said.then(|| (Parameter::vector("lambda", layer.random(1, 3, 8)), 1));
        let theta = Parameter::vector("theta_d", layer.random(1, 6, 7));
        IntrinsicTuner { theta, lambda, weight, bias, cache: Cache::default() }
    }

    #[test]
    fn every_projection_has_the_gradients_of_differences() {
        let layer = Layer::new(5, 4, true);
        for kind in [ProjectionKind::Dense, ProjectionKind::Sparse, ProjectionKind::Fastfood] {
            for said in [false, true] {
                check_linear(&layer, || tuner(&layer, kind, said));
            }
        }
    }

    #[test]
    fn zero_coordinates_are_the_base_and_lambda_scales_the_change() {
        let layer = Layer::new(5, 4, true);
        let weight = |tuner: &IntrinsicTuner| {
            tuner.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight.value().to_vec()
        };
        let base = layer.weight.to_matrix().to_vec();
        let mut moved = tuner(&layer, ProjectionKind::Fastfood, true);
        let before = weight(&moved);
        moved.lambda.as_mut().unwrap().0.value_mut().data_mut()[1] *= 3.0;
        let change = |weight: Vec<f32>| weight.iter().zip(&base).map(|(new, old)| new - old).collect::<Vec<f32>>();
        let expected: Vec<f32> = change(before).into_iter().map(|value| 3.0 * value).collect();
        close(&change(weight(&moved)), &expected, 1e-4);
        moved.theta.value_mut().data_mut().fill(0.0);
        assert_eq!(weight(&moved), base);
    }
}
