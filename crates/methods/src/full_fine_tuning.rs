//! Full fine-tuning: every weight, norm and embedding is trained from the base's values, or those of the last blocks only
//! (FT-top-k; Li and Liang 2021, section 5.2). Not in PEFT: the adapter's file holds the trained tensors under their modules'
//! names, and merging makes a Hugging Face folder of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Adapter, Role, Site, SiteId, SiteKind};

use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::full::{self, FullTuner};
use crate::method::{Built, Method, Place};
use crate::placement::{self, Wanted};
use crate::{MethodError, ModelDescription};

/// Configuration of full fine-tuning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FullConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Trains only so many of the last blocks (of each stack), with the norm after them; none means the whole model.
    pub top_layers: Option<usize>,
    /// Modules of which full copies are trained beside the last blocks, such as a head.
    pub modules_to_save: Option<Vec<String>>,
}

impl Method for FullConfig {
    const PEFT_TYPE: &'static str = "FULL";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems =
            placement::problems(&Wanted { modules_to_save: self.modules_to_save.as_deref(), ..Wanted::default() });
        if self.top_layers == Some(0) {
            let reason = "it must be at least 1, or left out to train the whole model".to_owned();
            problems.push(ConfigProblem::Value { key: "top_layers".into(), reason });
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, purpose, .. } = *place;
        let saved = full::sites_to_save(self.modules_to_save.as_deref().unwrap_or_default(), &[], model, purpose)?;
        let wanted = match self.top_layers {
            None => model.weight_sites().map(|(id, _)| id).collect(),
            Some(count) => last_blocks(count, model)?,
        };
        let mut adapter = Adapter::new();
        let mut made: Vec<(SiteId, FullTuner)> = Vec::new();
        for id in wanted.into_iter().filter(|id| !saved.contains(id)) {
            let (site, base) = (&model.sites[id.0], model.base(id)?);
            let twin = made.iter().find(|(other, tuner)| {
                let same = model.base(*other).is_ok_and(|other| other.weight.is_same(base.weight));
                same && site.kind != SiteKind::Norm && !tuner.is_tied()
            });
            let tuner = match twin {
                Some((_, tuner)) => tuner.tied(site, base),
                None => FullTuner::new(site, base),
            };
            made.push((id, tuner));
        }
        for (id, tuner) in made {
            adapter.insert_weight(id, Box::new(tuner));
        }
        full::add_tuners(&mut adapter, &saved, model)?;
        Ok(Built { config: self.clone(), adapter, warnings: Vec::new(), routine: None })
    }
}

/// The weight sites of the last `count` blocks of each stack, heads, and the norms after the last block.
fn last_blocks(count: usize, model: &ModelDescription<'_>) -> Result<Vec<SiteId>, MethodError> {
    let mut blocks: BTreeMap<&str, usize> = BTreeMap::new();
    for site in model.sites {
        if let (Some(block), Some(stack)) = (site.block, stack(site)) {
            let last = blocks.entry(stack).or_default();
            *last = (*last).max(block + 1);
        }
    }
    let fewest = blocks.values().copied().min().unwrap_or(0);
    if count > fewest {
        return Err(MethodError::Impossible {
            what: format!("top_layers: {count}"),
            why: format!("this {} model has {fewest} blocks in a stack", model.model_type),
            instead: "Name fewer, or leave top_layers out to train the whole model".into(),
        });
    }
    let is_wanted = |site: &Site| match (site.block, stack(site)) {
        (Some(block), Some(stack)) => block + count >= blocks[stack],
        _ => matches!(site.role, Role::FinalNorm | Role::Head),
    };
    Ok(model.weight_sites().filter(|(_, site)| is_wanted(site)).map(|(id, _)| id).collect())
}

/// The part of a site's path before its block's number, which names the stack.
fn stack(site: &Site) -> Option<&str> {
    site.path.split_once(&format!(".{}.", site.block?)).map(|(before, _)| before)
}
