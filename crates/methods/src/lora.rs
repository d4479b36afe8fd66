//! LoRA: low-rank adaptation of linear layers (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, equation 3), with the
//! scale of rsLoRA (Kalajdzievski 2023), DoRA, and starts such as PiSSA as options.
//!
//! ```text
//! y = W₀·x + b + s·B·A·dropout(x),   A [r, in], B [out, r],   s = alpha/r or alpha/√r
//! ```
//!
//! `B` starts at zero, so training starts from the base. Linear layers and embeddings are tuned.

use serde_json::{Map, Value, json};
use tunesmith_tensor::{Adapter, SiteId, SiteKind};

use crate::common::{Bias, CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::lora_config::{self, LoraConfig};
use crate::lora_embedding::LoraEmbeddingTuner;
use crate::lora_patterns::{settle_patterns, unmatched_keys};
use crate::lora_tuner::{self, LoraTuner};
use crate::method::{Built, Method, Place, Routine};
use crate::placement::{Placement, Wanted};
use crate::{MethodError, lora_start, target_defaults, token_rows};

impl Method for LoraConfig {
    const PEFT_TYPE: &'static str = "LORA";

    fn uninterpreted() -> &'static [Uninterpreted] {
        &lora_config::UNINTERPRETED
    }

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        self.problems(purpose)
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        build(self, place)
    }

    fn differs_in_rank_only(&self, name: &str, found: &[usize], expected: &[usize]) -> bool {
        let ([found_rows, found_cols], [rows, cols]) = (found, expected) else { return false };
        (name.ends_with(lora_tuner::A) && found_cols == cols) || (name.ends_with(lora_tuner::B) && found_rows == rows)
    }

    /// PEFT before 0.21 trained the biases of targeted modules without saving them.
    fn may_be_forgotten(&self, name: &str) -> bool {
        self.bias == Bias::LoraOnly && name.ends_with(".base_layer.bias")
    }
}

fn build(config: &LoraConfig, place: &Place<'_, '_>) -> Result<Built<LoraConfig>, MethodError> {
    let Place { model, seed, purpose, .. } = *place;
    let mut config = config.clone();
    let defaults = target_defaults::lora(model.model_type);
    let placement = Placement::find(&Wanted { defaults, ..config.wanted() }, place)?;
    let mut adapter = Adapter::new();
    for id in &placement.targeted {
        let site = &model.sites[id.0];
        let (scale, dropout) = (config.scaling(&site.path)? as f32, config.lora_dropout as f32);
        if site.kind == SiteKind::Embedding {
            let start = lora_start::embedding(&config, site, seed)?;
            let tuner = LoraEmbeddingTuner::new(site, start.a, start.b, scale);
            let tuner = if config.use_dora { tuner.with_magnitude(site, model.base(*id)?.weight) } else { tuner };
            adapter.insert_weight(*id, Box::new(tuner));
            continue;
        }
        let base = model.base(*id)?;
        let start = match purpose {
            Purpose::Training => lora_start::linear(&config, site, base.weight, seed)?,
            // All of it is read, and drawing it would take longer than that.
            Purpose::Loading => lora_start::nothing(config.rank(&site.path)?, site),
        };
        let mut tuner = LoraTuner::new(site, start.a, start.b, scale, dropout);
        if let Some(bias) = placement.trained_bias(*id, model)? {
            tuner = tuner.with_bias(site, bias);
        }
        if config.lora_bias {
            tuner = tuner.with_bias_of_b(site);
        }
        if config.use_dora {
            tuner = tuner.with_magnitude(site, base.weight);
        }
        if start.out_of_base {
            tuner = tuner.taking_out_its_start();
        }
        adapter.insert_weight(*id, Box::new(tuner));
    }
    placement.add_common(&mut adapter, model)?;
    if let Some(tokens) = &config.trainable_token_indices {
        token_rows::add_tuners(&mut adapter, tokens, model)?;
    }

    let Placement { targets, targeted, mut warnings, .. } = placement;
    config.target_modules = Some(targets);
    warnings.extend(unmatched_keys(&config, &targeted, model)?);
    if purpose == Purpose::Training {
        warnings.extend(settle_patterns(&mut config, &targeted, model)?);
        warnings.extend(settle_orientation(&mut config.fan_in_fan_out, &targeted, model));
    }
    let routine =
        config.init_lora_weights.changes_base().then(|| Box::new(Conversion(converted(&config))) as Box<dyn Routine>);
    Ok(Built { config, adapter, warnings, routine })
}

/// Sets `fan_in_fan_out` as PEFT corrects it: whether files keep targeted weights as `[in, out]`.
pub(crate) fn settle_orientation(
    fan_in_fan_out: &mut bool,
    targeted: &[SiteId],
    model: &crate::ModelDescription<'_>,
) -> Option<String> {
    let transposed = targeted.iter().any(|site| model.sites[site.0].stored_transposed);
    let was = std::mem::replace(fan_in_fan_out, transposed);
    // Where it is false of modules that are stored so, PEFT sets it without a word.
    (was && !transposed)
        .then(|| "fan_in_fan_out is set to false: no targeted module of this model is stored transposed".to_owned())
}

/// Keys of the file of an adapter whose start is taken out of the base: a plain LoRA of twice the rank and the same scale.
fn converted(config: &LoraConfig) -> Map<String, Value> {
    let alpha_factor = if config.use_rslora { f64::sqrt(2.0) } else { 2.0 };
    let ranks: Map<String, Value> =
        config.rank_pattern.iter().map(|(key, rank)| (key.clone(), (2 * rank).into())).collect();
    let alphas: Map<String, Value> = config
        .alpha_pattern
        .iter()
        .map(|(key, alpha)| (key.clone(), lora_config::as_number(alpha * alpha_factor)))
        .collect();
    let Value::Object(keys) = json!({
        "init_lora_weights": true,
        "r": 2 * config.r,
        "lora_alpha": lora_config::as_number(config.lora_alpha * alpha_factor),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }) else {
        return Map::new();
    };
    keys
}

/// An adapter that is saved with other keys than it is trained with.
struct Conversion(Map<String, Value>);

impl Routine for Conversion {
    fn file_keys(&self) -> Map<String, Value> {
        self.0.clone()
    }
}
