//! What prompt tuning, P-tuning and prefix tuning share: PEFT's keys for virtual tokens, and modules that are trained
//! whole beside them.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Adapter, Matrix, Role, Site, SiteId, Stream};

use crate::common::Purpose;
use crate::error::ConfigProblem;
use crate::full::{self, FullTuner};
use crate::method::Place;
use crate::{MethodError, ModelDescription};

/// The key in PEFT's files of what the virtual tokens come to.
pub(crate) const STORED: &str = "prompt_embeddings";

/// PEFT's keys for virtual tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtualTokens {
    /// How many there are.
    pub num_virtual_tokens: Option<usize>,
    /// Width of one; the model's where it is not set.
    pub token_dim: Option<usize>,
    /// Blocks of the model; the model's where it is not set.
    pub num_layers: Option<usize>,
    /// Heads of the model; the model's where it is not set.
    pub num_attention_heads: Option<usize>,
    /// How many times the virtual tokens are stored. PEFT stores them twice for encoder-decoders, and uses the first.
    pub num_transformer_submodules: Option<usize>,
    /// Modules of which full copies are trained. A classifier's head is among them where nothing is set.
    pub modules_to_save: Option<Vec<String>>,
}

impl VirtualTokens {
    /// How many virtual tokens each sequence gets; checked by [`VirtualTokens::problems`].
    pub(crate) fn length(&self) -> usize {
        self.num_virtual_tokens.unwrap_or(0)
    }

    /// How many are stored.
    pub(crate) fn stored(&self) -> usize {
        self.length() * self.num_transformer_submodules.unwrap_or(1)
    }

    pub(crate) fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if self.length() == 0 {
            let reason = "it must be at least 1, such as 20".to_owned();
            problems.push(ConfigProblem::Value { key: "num_virtual_tokens".into(), reason });
        }
        if self.num_transformer_submodules == Some(0) {
            let reason = "it must be 1, or 2 for encoder-decoders".to_owned();
            problems.push(ConfigProblem::Value { key: "num_transformer_submodules".into(), reason });
        }
        problems
    }

    /// The same with what the model says where nothing is set.
    pub(crate) fn resolved(&self, width: usize, heads: usize, place: &Place<'_, '_>) -> Self {
        let mut resolved = self.clone();
        resolved.token_dim.get_or_insert(width);
        resolved.num_layers.get_or_insert(blocks(place.model));
        resolved.num_attention_heads.get_or_insert(heads);
        resolved.num_transformer_submodules.get_or_insert(1);
        if resolved.modules_to_save.is_none() {
            resolved.modules_to_save = place.heads();
        }
        resolved
    }

    /// Adds the modules that are trained whole. Their keys lack a part that other methods' have.
    pub(crate) fn add_saved(
        &self,
        adapter: &mut Adapter,
        model: &ModelDescription<'_>,
        purpose: Purpose,
    ) -> Result<(), MethodError> {
        let mut entries = self.modules_to_save.clone().unwrap_or_default();
        // PEFT adds both names of classifiers, whichever the model has.
        let modules = model.modules();
        entries.retain(|entry| {
            let is_classifier = ["classifier", "score"].contains(&entry.as_str());
            !is_classifier || modules.iter().any(|module| module.ends_with(entry.as_str()))
        });
        for id in full::sites_to_save(&entries, &[], model, purpose)? {
            let site = &model.sites[id.0];
            let prefix = format!("base_model.{}", site.path);
            adapter.insert_weight(id, Box::new(FullTuner::named(&prefix, site, model.base(id)?)));
        }
        Ok(())
    }
}

/// Blocks of the model; of the encoder, where there are two stacks.
pub(crate) fn blocks(model: &ModelDescription<'_>) -> usize {
    let has_encoder = model.sites.iter().any(|site| site.role == Role::EncoderAttention);
    let role = if has_encoder { Role::EncoderAttention } else { Role::SelfAttention };
    attention_sites(model, role).len()
}

/// The attention sites of a role, by block.
pub(crate) fn attention_sites(model: &ModelDescription<'_>, role: Role) -> Vec<SiteId> {
    let sites = model.sites.iter().enumerate().filter(|(_, site)| site.role == role);
    sites.map(|(index, _)| SiteId(index)).collect()
}

/// Where virtual tokens go in.
pub(crate) fn input_site<'a>(model: &ModelDescription<'a>) -> Result<(SiteId, &'a Site), MethodError> {
    let site = model.sites.iter().enumerate().find(|(_, site)| site.role == Role::Input);
    site.map(|(index, site)| (SiteId(index), site)).ok_or_else(|| MethodError::NoSite {
        model_type: model.model_type.to_owned(),
        what: "input for virtual tokens",
    })
}

/// The token embeddings.
pub(crate) fn token_embeddings(model: &ModelDescription<'_>) -> Result<Matrix, MethodError> {
    let site = model.sites.iter().position(|site| site.role == Role::TokenEmbedding);
    let site = site.ok_or_else(|| MethodError::NoSite {
        model_type: model.model_type.to_owned(),
        what: "token embeddings to begin from",
    })?;
    Ok(model.base(SiteId(site))?.weight.to_matrix())
}

/// The tokens of a text, at least one.
pub(crate) fn tokens(text: &str, model: &ModelDescription<'_>) -> Result<Vec<u32>, MethodError> {
    let ids = model.tokenize.map(|tokenize| tokenize(text)).unwrap_or_default();
    if ids.is_empty() { Err(MethodError::NoTokens { text: text.to_owned() }) } else { Ok(ids) }
}

/// A matrix of values that `value` gives.
pub(crate) fn filled(rows: usize, cols: usize, value: impl FnMut() -> f32) -> Matrix {
    Matrix::from_vec(rows, cols, std::iter::repeat_with(value).take(rows * cols).collect())
}

/// The weight `[out, in]` and bias `[1, out]` of a linear as PyTorch starts them: uniform in `±1/√in`.
pub(crate) fn linear_start(out: usize, input: usize, stream: &mut Stream) -> (Matrix, Matrix) {
    let bound = 1.0 / (input as f32).sqrt();
    let weight = filled(out, input, || stream.uniform_between(-bound, bound));
    (weight, filled(1, out, || stream.uniform_between(-bound, bound)))
}
