//! Trained biases beside a method's own tensors: the `bias` key.

use tunesmith_tensor::{
    Adapter, Affine, Base, FrozenWeight, Matrix, Parameter, Replacement, Site, SiteId, Tape, Trainable, Tuned, Var,
    WeightTuner,
};

use crate::build::parameter_name;
use crate::common::{Bias, Purpose};
use crate::{MethodError, ModelDescription};

/// Trains the bias of one weight site and leaves its weight alone.
#[derive(Debug)]
pub struct BiasTuner {
    /// `[1, out]`, or its first values alone.
    bias: Parameter,
}

impl BiasTuner {
    /// A tuner that starts from `bias` `[1, out]`, the site's own.
    pub fn new(site: &Site, bias: &FrozenWeight) -> Self {
        Self { bias: Parameter::vector(parameter_name(&site.path, "bias"), bias.to_matrix()) }
    }

    /// A tuner of the first `count` values of `bias`, such as the queries' in a fused projection.
    pub(crate) fn of_first(site: &Site, bias: &FrozenWeight, count: usize) -> Self {
        let values = bias.to_matrix().data()[..count].to_vec();
        let name = parameter_name(&site.path, "query.bias");
        Self { bias: Parameter::vector(name, Matrix::from_vec(1, count, values)) }
    }

    /// The whole bias.
    fn whole(&self, tape: &mut Tape, base: Base<'_>) -> Var {
        let own = tape.parameter(&self.bias);
        let frozen = base.bias.map(FrozenWeight::to_matrix).filter(|frozen| frozen.cols() > own.cols());
        let Some(frozen) = frozen else { return own };
        let rest = frozen.data()[own.cols()..].to_vec();
        let rest = tape.constant(Matrix::from_vec(rest.len(), 1, rest));
        let column = tape.transpose(&own);
        let joined = tape.concat_rows(&[column, rest]);
        tape.transpose(&joined)
    }
}

impl Trainable for BiasTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.bias]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.bias]
    }
}

impl WeightTuner for BiasTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let weight = tape.constant(base.weight.to_matrix());
        Tuned { weight, bias: Some(self.whole(tape, base)) }
    }

    fn affine(&self, tape: &mut Tape, base: Base<'_>, _x: &Var) -> Affine {
        Affine { bias: Some(self.whole(tape, base)), ..Affine::frozen() }
    }

    fn replacement(&self, tape: &mut Tape, base: Base<'_>) -> Option<Replacement> {
        Some(Replacement { weight: None, bias: Some(self.whole(tape, base)) })
    }
}

/// Which biases are asked for, and the sites that train theirs by other tuners.
pub(crate) struct Biases<'a> {
    pub(crate) bias: Bias,
    pub(crate) targeted: &'a [SiteId],
    pub(crate) saved: &'a [SiteId],
}

/// The sites that need a [`BiasTuner`]. In training it is an error if no bias at all would be trained.
pub(crate) fn sites(
    biases: &Biases<'_>,
    model: &ModelDescription<'_>,
    purpose: Purpose,
) -> Result<Vec<SiteId>, MethodError> {
    let with_bias: Vec<SiteId> = model.weight_sites().filter(|(_, site)| site.has_bias).map(|(id, _)| id).collect();
    let (wanted, whose): (Vec<SiteId>, _) = match biases.bias {
        Bias::None => return Ok(Vec::new()),
        Bias::All => (with_bias.clone(), format!("this {} model has", model.model_type)),
        Bias::LoraOnly => {
            let targeted = biases.targeted.iter().filter(|site| with_bias.contains(site));
            (targeted.copied().collect(), "the targeted modules have".to_owned())
        }
    };
    if wanted.is_empty() && purpose == Purpose::Training {
        let instead = if with_bias.is_empty() {
            "Leave bias at none; to train norms too, name them in modules_to_save".to_owned()
        } else {
            let paths: Vec<&str> = with_bias.iter().take(3).map(|site| model.sites[site.0].path.as_str()).collect();
            format!("Use bias: all, or target modules that have one, such as {}", paths.join(", "))
        };
        return Err(MethodError::NoBias { bias: biases.bias.name(), whose, instead });
    }
    Ok(wanted.into_iter().filter(|site| !biases.targeted.contains(site) && !biases.saved.contains(site)).collect())
}

pub(crate) fn add_tuners(
    adapter: &mut Adapter,
    sites: &[SiteId],
    model: &ModelDescription<'_>,
) -> Result<(), MethodError> {
    for id in sites {
        if let Some(bias) = model.base(*id)?.bias {
            adapter.insert_weight(*id, Box::new(BiasTuner::new(&model.sites[id.0], bias)));
        }
    }
    Ok(())
}
