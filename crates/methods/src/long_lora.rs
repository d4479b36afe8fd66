//! LongLoRA (Chen et al. 2024, <https://arxiv.org/abs/2309.12307>): LoRA on the attention's projections with the embeddings
//! and norms trained too (section 3.3), and shifted sparse attention in training (section 3.2). What comes out is used with
//! full attention, and its files are LoRA's.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{GroupSize, Role, ShiftedEnds, ShiftedGroups, SiteKind};

use crate::common::{CommonConfig, Modules, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::{LoraConfig, MethodConfig, MethodError, ModelDescription};

/// Configuration of LongLoRA: LoRA's keys, and how attention is grouped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LongLoraConfig {
    /// LoRA's keys. Where nothing is set, attention's projections are targeted, and the embeddings and norms trained.
    #[serde(flatten)]
    pub lora: LoraConfig,
    /// Tokens of a group as a part of the sequence: for sequences that are all as long as the context.
    pub group_size_ratio: f64,
    /// Tokens of a group, in place of a part: for sequences of many lengths, of which short ones then keep full attention.
    pub group_size: Option<usize>,
    /// What becomes of the half groups at the ends, where groups are shifted.
    pub shifted_ends: Ends,
}

/// What becomes of the half groups at the ends of a sequence, where groups are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// Each is a group of its own, so that no token sees a later one.
    #[default]
    Separate,
    /// They are one group, as published: a sequence's first tokens see its last.
    Joined,
}

impl Default for LongLoraConfig {
    fn default() -> Self {
        let lora = LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::default() };
        Self { lora, group_size_ratio: 0.25, group_size: None, shifted_ends: Ends::default() }
    }
}

impl Method for LongLoraConfig {
    const PEFT_TYPE: &'static str = "LONG_LORA";

    fn uninterpreted() -> &'static [Uninterpreted] {
        LoraConfig::uninterpreted()
    }

    fn common(&self) -> &CommonConfig {
        &self.lora.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.lora.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = Method::problems(&self.lora, purpose);
        if !(self.group_size_ratio > 0.0 && self.group_size_ratio <= 1.0) {
            let reason = "it must be more than 0 and at most 1".to_owned();
            problems.push(ConfigProblem::Value { key: "group_size_ratio".into(), reason });
        }
        if self.group_size.is_some_and(|size| size < 2 || !size.is_multiple_of(2)) {
            let reason = "it must be even, so that groups have halves".to_owned();
            problems.push(ConfigProblem::Value { key: "group_size".into(), reason });
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let mut lora = self.lora.clone();
        if lora.target_modules.is_none() {
            lora.target_modules = Some(Modules::Names(projections(place.model)));
        }
        if lora.modules_to_save.is_none() {
            lora.modules_to_save = Some(embeddings_and_norms(place.model));
        }
        let Built { config, adapter, warnings, routine } = Method::build(&lora, place)?;
        let size = match self.group_size {
            Some(size) => GroupSize::Tokens(size),
            None => GroupSize::Ratio(self.group_size_ratio as f32),
        };
        let ends = match self.shifted_ends {
            Ends::Separate => ShiftedEnds::Separate,
            Ends::Joined => ShiftedEnds::Joined,
        };
        let adapter = adapter.with_shifted_groups(ShiftedGroups { size, ends });
        Ok(Built { config: Self { lora: config, ..self.clone() }, adapter, warnings, routine })
    }

    fn written_as(&self) -> Option<MethodConfig> {
        Some(MethodConfig::new(self.lora.clone()))
    }
}

/// Last names of attention's projections.
fn projections(model: &ModelDescription<'_>) -> Vec<String> {
    let is_projection = |role: Role| {
        matches!(role, Role::Query | Role::Key | Role::Value | Role::QueryKeyValue | Role::AttentionOutput)
    };
    let sites = model.sites.iter().filter(|site| is_projection(site.role));
    let mut names: Vec<String> = Vec::new();
    for name in sites.filter_map(|site| site.path.rsplit('.').next()) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Paths of the token embeddings and of all norms; the output embedding stays frozen.
fn embeddings_and_norms(model: &ModelDescription<'_>) -> Vec<String> {
    let sites = model.sites.iter().filter(|site| site.role == Role::TokenEmbedding || site.kind == SiteKind::Norm);
    sites.map(|site| site.path.clone()).collect()
}
