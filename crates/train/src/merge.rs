//! From an adapter's merged weights to the tensors of a checkpoint.

use std::collections::BTreeMap;

use tunesmith_methods::{MethodError, ModelDescription, merged};
use tunesmith_tensor::{Adapter, Matrix};

/// The tensors that change when `adapter` is merged into its base, by Hugging Face name. The base stays as it is.
///
/// # Errors
/// [`MethodError`] if the adapter cannot be merged.
pub fn merged_tensors(
    adapter: &Adapter,
    model: &ModelDescription<'_>,
) -> Result<BTreeMap<String, Matrix>, MethodError> {
    let mut tensors = BTreeMap::new();
    for merged in merged(adapter, model)? {
        let path = &model.sites[merged.site.0].path;
        tensors.insert(format!("{path}.weight"), merged.weight);
        tensors.extend(merged.bias.map(|bias| (format!("{path}.bias"), bias)));
    }
    Ok(tensors)
}
