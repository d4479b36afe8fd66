//! Full copies of modules that are trained as they are: `modules_to_save`.

use std::collections::BTreeSet;

use tunesmith_tensor::{
    Adapter, Base, Matrix, Parameter, Replacement, Site, SiteId, SiteKind, Stored, Tape, Trainable, Tuned, WeightTuner,
};

use crate::build::parameter_name;
use crate::common::Purpose;
use crate::target::check_entries;
use crate::{MethodError, ModelDescription};

/// Trains a copy of a linear layer, an embedding or a norm in the place of the frozen one.
#[derive(Debug)]
pub struct FullTuner {
    /// `[out, in]`; `[in, out]` where files keep it so.
    weight: Parameter,
    /// `[1, out]`.
    bias: Option<Parameter>,
    /// Whether files keep the weight as `[in, out]`.
    is_transposed: bool,
    /// Whether another tuner saves the weight.
    is_tied: bool,
}

impl FullTuner {
    /// A copy of the weight and bias of `site`.
    pub fn new(site: &Site, base: Base<'_>) -> Self {
        Self::within(site, base, "")
    }

    /// The same with tensors under `module` (with a dot at its end) within the site's module.
    pub(crate) fn within(site: &Site, base: Base<'_>, module: &str) -> Self {
        Self::named(parameter_name(&site.path, module).trim_end_matches('.'), site, base)
    }

    /// The same with `prefix` before the names of the tensors.
    pub(crate) fn named(prefix: &str, site: &Site, base: Base<'_>) -> Self {
        let name = |suffix| format!("{prefix}.{suffix}");
        let weight = base.weight.to_matrix();
        let weight = match site.kind {
            SiteKind::Norm => Parameter::vector(name("weight"), weight),
            _ if site.stored_transposed => Parameter::new(name("weight"), transposed(&weight)),
            _ => Parameter::new(name("weight"), weight),
        };
        let bias = base.bias.map(|bias| Parameter::vector(name("bias"), bias.to_matrix()));
        Self { weight, is_transposed: site.stored_transposed, bias, is_tied: false }
    }

    /// The same weight at a site whose frozen one is tied to this one's.
    pub(crate) fn tied(&self, site: &Site, base: Base<'_>) -> Self {
        let name = parameter_name(&site.path, "bias");
        let bias = base.bias.map(|bias| Parameter::vector(name, bias.to_matrix()));
        Self { weight: self.weight.clone(), is_transposed: self.is_transposed, bias, is_tied: true }
    }

    pub(crate) fn is_tied(&self) -> bool {
        self.is_tied
    }
}

impl Trainable for FullTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.bias.iter().chain([&self.weight]).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.bias.iter_mut().chain([&mut self.weight]).collect()
    }

    fn stored(&self) -> Vec<Stored> {
        let weight = (!self.is_tied).then_some(&self.weight);
        self.bias.iter().chain(weight).map(Stored::from).collect()
    }
}

impl WeightTuner for FullTuner {
    fn tuned(&self, tape: &mut Tape, _base: Base<'_>) -> Tuned {
        let mut weight = tape.parameter(&self.weight);
        if self.is_transposed {
            weight = tape.transpose(&weight);
        }
        Tuned { weight, bias: self.bias.as_ref().map(|bias| tape.parameter(bias)) }
    }

    fn replacement(&self, tape: &mut Tape, base: Base<'_>) -> Option<Replacement> {
        let Tuned { weight, bias } = self.tuned(tape, base);
        Some(Replacement { weight: Some(weight), bias })
    }
}

/// Rows become columns.
fn transposed(matrix: &Matrix) -> Matrix {
    let (rows, cols) = matrix.shape();
    let columns = (0..cols).flat_map(|col| (0..rows).map(move |row| matrix.data()[row * cols + col]));
    Matrix::from_vec(cols, rows, columns.collect())
}

/// The weight sites of the modules that `entries` mean: those whose name ends with an entry, dot or not, as in PEFT.
/// None of them may be among `targeted`.
pub(crate) fn sites_to_save(
    entries: &[String],
    targeted: &[SiteId],
    model: &ModelDescription<'_>,
    purpose: Purpose,
) -> Result<Vec<SiteId>, MethodError> {
    if purpose == Purpose::Training {
        check_entries("modules_to_save", entries, model, |entry, module| module.ends_with(entry))?;
    }
    let modules = model.modules();
    let saved: BTreeSet<&str> =
        modules.iter().filter(|module| entries.iter().any(|entry| module.ends_with(entry))).copied().collect();
    let lists: Vec<String> =
        saved.iter().filter(|module| is_list(module, &modules)).map(|module| (*module).to_owned()).collect();
    if !lists.is_empty() {
        return Err(MethodError::SavedList { modules: lists });
    }
    let is_saved = |path: &str| {
        let outer = path.match_indices('.').map(|(dot, _)| &path[..dot]);
        outer.chain([path]).any(|module| saved.contains(module))
    };
    let sites: Vec<SiteId> = model.weight_sites().filter(|(_, site)| is_saved(&site.path)).map(|(id, _)| id).collect();
    let both = sites.iter().filter(|site| targeted.contains(site));
    let both: Vec<String> = both.map(|site| model.sites[site.0].path.clone()).collect();
    if both.is_empty() { Ok(sites) } else { Err(MethodError::TargetedAndSaved { modules: both }) }
}

/// Whether a module is a list: all modules in it have numbers for names.
fn is_list(module: &str, modules: &BTreeSet<&str>) -> bool {
    let prefix = format!("{module}.");
    let mut inner = modules.iter().filter_map(|name| name.strip_prefix(&prefix)).peekable();
    let is_number = |name: &str| name.split('.').next().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
    inner.peek().is_some() && inner.all(is_number)
}

pub(crate) fn add_tuners(
    adapter: &mut Adapter,
    sites: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<(), MethodError> {
    for id in sites {
        adapter.insert_weight(*id, Box::new(FullTuner::new(&model.sites[id.0], model.base(*id)?)));
    }
    Ok(())
}
