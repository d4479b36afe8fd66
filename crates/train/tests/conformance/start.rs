//! Trainable adapters from the reference's files. What a file does not hold, because PEFT collapses the networks of
//! P-tuning and prefix tuning and AdapterHub saves no classifier, is drawn as the reference drew it: the seed is the one
//! that gives what the file does hold.

use std::collections::BTreeMap;

use tunesmith_methods::{BuiltAdapter, ModelDescription, build};
use tunesmith_tensor::{Adapter, Seed};

use crate::compare::relative_error;
use crate::fixture::Tensor;
use crate::torch_random::TorchRandom;

/// The reference's runs have seeds below this.
const SEEDS: u32 = 4096;

/// The adapter with everything trainable that the reference trains; `None` if no seed gives what the file holds.
pub(crate) fn trainable(
    loaded: BuiltAdapter,
    model: &ModelDescription<'_>,
    expect: &BTreeMap<String, Tensor>,
) -> Option<BuiltAdapter> {
    let names: Vec<String> = expect
        .keys()
        .filter_map(|key| key.strip_prefix("trained."))
        .map(|name| name.replace(".modules_to_save.", "."))
        .collect();
    let has = |adapter: &Adapter, name: &str| adapter.parameters().iter().any(|parameter| parameter.name() == name);
    let is_network = |name: &String| name.starts_with("prompt_encoder.mlp_head") || name.contains(".transform.");
    let lacks_network = names.iter().any(is_network);
    let lacks_head = names.iter().any(|name| name.starts_with("classifier") && !has(&loaded.adapter, name));
    if !lacks_network && !lacks_head {
        return Some(loaded);
    }
    let mut built = build(&loaded.config, model, Seed(0)).unwrap_or_else(|error| panic!("{error}"));
    let held: BTreeMap<String, Vec<f32>> = loaded
        .adapter
        .parameters()
        .iter()
        .map(|parameter| (parameter.name().to_owned(), parameter.value().to_vec()))
        .collect();
    for parameter in built.adapter.parameters_mut() {
        if let Some(values) = held.get(parameter.name()) {
            parameter.value_mut().data_mut().copy_from_slice(values);
        }
    }
    let found = (0..SEEDS).any(|seed| {
        if lacks_network { draw_network(&mut built, &held, seed) } else { draw_head(&mut built, &held, &names, seed) }
    });
    found.then_some(built)
}

/// Draws the network of virtual tokens as PEFT starts it, moved as the reference moves all trainable tensors.
fn draw_network(built: &mut BuiltAdapter, held: &BTreeMap<String, Vec<f32>>, seed: u32) -> bool {
    let mut start = TorchRandom::new(seed + 1);
    let mut moves = TorchRandom::new(seed + 7);
    // The reference moves a head first; its values are in the file.
    let is_network = |name: &str| name.starts_with("prompt_encoder");
    let mut heads: Vec<(String, usize)> = Vec::new();
    for parameter in built.adapter.parameters() {
        if !is_network(parameter.name()) {
            heads.push((parameter.name().to_owned(), parameter.value().data().len()));
        }
    }
    // By module; of each, the weight before the bias.
    heads.sort_by_key(|(name, _)| name.replace(".weight", ".a"));
    for (_, count) in &heads {
        moves.normal(*count);
    }
    let mut bound = 1.0;
    let mut parameters = built.adapter.parameters_mut();
    for parameter in parameters.iter_mut().filter(|parameter| is_network(parameter.name())) {
        let (count, cols) = (parameter.value().data().len(), parameter.value().cols());
        let drawn = if parameter.name().ends_with("embedding.weight") {
            start.normal(count)
        } else {
            if !parameter.is_vector() {
                bound = 1.0 / (cols as f64).sqrt();
            }
            start.uniform(count, bound)
        };
        let values = drawn.iter().zip(moves.normal(count)).map(|(value, shift)| value + shift * 0.05);
        parameter.value_mut().data_mut().iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
    let stored = built.adapter.stored(0);
    let collapsed = stored.iter().find(|tensor| tensor.name == "prompt_embeddings").expect("the file holds the prompt");
    relative_error(collapsed.value.data(), &held["prompt_embeddings"]) < 1e-5
}

/// Draws how the reference moved the classifier, where the same draw gives the adapters' biases.
fn draw_head(built: &mut BuiltAdapter, held: &BTreeMap<String, Vec<f32>>, names: &[String], seed: u32) -> bool {
    let mut moves = TorchRandom::new(seed + 7);
    let base: BTreeMap<String, Vec<f32>> = built
        .adapter
        .parameters()
        .iter()
        .map(|parameter| (parameter.name().to_owned(), parameter.value().to_vec()))
        .collect();
    let mut shifts = BTreeMap::new();
    for name in names {
        let shift: Vec<f32> = moves.normal(base[name].len()).iter().map(|shift| shift * 0.1).collect();
        if let (Some(held), true) = (held.get(name), name.ends_with(".bias"))
            && relative_error(held, &shift) > 1e-5
        {
            return false;
        }
        shifts.insert(name, shift);
    }
    for parameter in built.adapter.parameters_mut() {
        if !held.contains_key(parameter.name()) {
            let shift = &shifts[&parameter.name().to_owned()];
            parameter.value_mut().data_mut().iter_mut().zip(shift).for_each(|(value, shift)| *value += shift);
        }
    }
    true
}
