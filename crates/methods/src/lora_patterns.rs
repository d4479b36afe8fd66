//! `rank_pattern` and `alpha_pattern` of LoRA, held against the modules that are tuned.

use tunesmith_tensor::SiteId;

use crate::lora_config::{LoraConfig, key_pattern};
use crate::{MethodError, ModelDescription};

/// Warnings about keys of patterns that match no tuned module.
pub(crate) fn unmatched_keys(
    config: &LoraConfig,
    targeted: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<Vec<String>, MethodError> {
    let mut warnings = Vec::new();
    let ranks = config.rank_pattern.keys().map(|key| ("rank_pattern", key));
    let alphas = config.alpha_pattern.keys().map(|key| ("alpha_pattern", key));
    for (name, key) in ranks.chain(alphas) {
        let pattern = key_pattern(name, key)?;
        let mut matches = false;
        for site in targeted {
            matches = matches || pattern.matches(&model.sites[site.0].path)?;
        }
        if !matches {
            warnings.push(format!("'{key}' in {name} matches no tuned module and has no effect"));
        }
    }
    Ok(warnings)
}

/// Keys of the saved configuration are sorted, and the first that matches counts: where sorting would change a rank or
/// an alpha, names every module in full in place of the patterns.
pub(crate) fn settle_patterns(
    config: &mut LoraConfig,
    targeted: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<Option<String>, MethodError> {
    let mut sorted = config.clone();
    sorted.rank_pattern.sort_keys();
    sorted.alpha_pattern.sort_keys();
    let paths: Vec<&str> = targeted.iter().map(|site| model.sites[site.0].path.as_str()).collect();
    let mut same = true;
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for path in paths {
        let (rank, alpha) = (config.rank(path)?, config.alpha(path)?);
        same = same && (rank, alpha) == (sorted.rank(path)?, sorted.alpha(path)?);
        let key = format!("^{}", path.replace('.', r"\."));
        ranks.extend((rank != config.r).then(|| (key.clone(), rank)));
        alphas.extend((alpha != config.lora_alpha).then_some((key, alpha)));
    }
    if same {
        return Ok(None);
    }
    config.rank_pattern = ranks.into_iter().collect();
    config.alpha_pattern = alphas.into_iter().collect();
    Ok(Some(
        "keys of rank_pattern or alpha_pattern overlap, and adapter_config.json keeps them sorted, which would change \
         what they mean: it names every module in full instead"
            .to_owned(),
    ))
}
