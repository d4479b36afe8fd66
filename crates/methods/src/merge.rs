//! Merging: the weights of a model after tuning. Nothing is changed in place; the same for every method that acts on
//! weights only, because each says what its tuned weight is.

use tunesmith_tensor::{Adapter, Matrix, SiteId, Tape, Workspace};

use crate::{MethodError, ModelDescription};

/// The tuned weight and bias of one site.
#[derive(Clone, Debug)]
pub struct MergedWeight {
    /// The site.
    pub site: SiteId,
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[1, out]`, where the site has a bias.
    pub bias: Option<Matrix>,
}

/// The weights that `adapter` changes, in site order.
///
/// # Errors
/// [`MethodError::NotMergeable`] if it changes more than weights, [`MethodError::NoPlaceForBias`], [`MethodError::NotFinite`] naming every site whose
/// merged weight holds NaN or infinite values.
pub fn merged(adapter: &Adapter, model: &ModelDescription<'_>) -> Result<Vec<MergedWeight>, MethodError> {
    if !adapter.is_mergeable() {
        return Err(MethodError::NotMergeable);
    }
    let workspace = Workspace::new();
    let (mut weights, mut broken, mut homeless) = (Vec::new(), Vec::new(), Vec::new());
    for site in adapter.weight_sites() {
        let Some(tuner) = adapter.weight(site) else { continue };
        let base = model.base(site)?;
        let tuned = tuner.tuned(&mut Tape::evaluating(&workspace), base);
        let weight = tuned.weight.value().clone();
        let bias = tuned.bias.map(|bias| bias.value().clone());
        let is_finite = |matrix: &Matrix| matrix.data().iter().all(|value| value.is_finite());
        if !is_finite(&weight) || !bias.as_ref().is_none_or(is_finite) {
            broken.push(model.sites[site.0].path.clone());
        }
        if bias.is_some() && base.bias.is_none() {
            homeless.push(model.sites[site.0].path.clone());
        }
        weights.push(MergedWeight { site, weight, bias });
    }
    if !homeless.is_empty() {
        return Err(MethodError::NoPlaceForBias { modules: homeless });
    }
    if broken.is_empty() { Ok(weights) } else { Err(MethodError::NotFinite { modules: broken }) }
}
