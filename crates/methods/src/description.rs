//! What a method may know of a model.

use std::collections::BTreeSet;

use tunesmith_tensor::{Base, Matrix, Site, SiteId};

use crate::MethodError;
use crate::common::TaskType;

/// Turns a text into tokens, without special ones.
pub type Tokenize<'a> = &'a dyn Fn(&str) -> Vec<u32>;

/// Runs the model over tokens and gives the keys and values of each block's self-attention, both
/// `[tokens, key-value heads · head width]`, in order of the blocks; `None` where the model is no decoder.
pub type KeysAndValues<'a> = &'a dyn Fn(&[u32]) -> Option<Vec<(Matrix, Matrix)>>;

/// A model as methods see it: its sites and frozen weights, and what names it in an adapter's files.
#[derive(Clone, Copy)]
pub struct ModelDescription<'a> {
    /// `model_type` of the model's Hugging Face configuration.
    pub model_type: &'a str,
    /// Where the model came from: a hub name or a folder. Written as `base_model_name_or_path` where the
    /// configuration names none.
    pub name_or_path: Option<&'a str>,
    /// What the model is for. Written as `task_type` where the configuration names none.
    pub task_type: TaskType,
    /// Query heads of a block.
    pub heads: usize,
    /// Heads of keys and values of a block.
    pub key_value_heads: usize,
    /// The tokens of a text, without special ones; `None` where there is no tokenizer.
    pub tokenize: Option<Tokenize<'a>>,
    /// What the model computes for tokens; `None` where it cannot be run.
    pub keys_and_values: Option<KeysAndValues<'a>>,
    /// What the positions of rotary embeddings are divided by (`rope_scaling`); 1 where they are not, or there are none.
    pub rope_factor: f64,
    /// All sites; the id of a site is its place in the list.
    pub sites: &'a [Site],
    /// The frozen weight and bias of a weight site.
    pub base: &'a dyn Fn(SiteId) -> Option<Base<'a>>,
}

impl<'a> ModelDescription<'a> {
    /// The sites that hold a weight, with their ids.
    pub(crate) fn weight_sites(&self) -> impl Iterator<Item = (SiteId, &'a Site)> + use<'a> {
        let sites = self.sites.iter().enumerate().map(|(index, site)| (SiteId(index), site));
        sites.filter(|(_, site)| site.kind.is_weight())
    }

    /// The frozen weight and bias of a weight site.
    pub(crate) fn base(&self, site: SiteId) -> Result<Base<'a>, MethodError> {
        (self.base)(site).ok_or_else(|| MethodError::NoWeight { path: self.sites[site.0].path.clone() })
    }

    /// Names of all modules that hold a weight, directly or in a module of theirs; `named_modules()` in PyTorch but
    /// for modules without weights.
    pub(crate) fn modules(&self) -> BTreeSet<&'a str> {
        let paths = self.weight_sites().map(|(_, site)| site.path.as_str());
        paths.flat_map(|path| path.match_indices('.').map(|(dot, _)| &path[..dot]).chain([path])).collect()
    }
}
