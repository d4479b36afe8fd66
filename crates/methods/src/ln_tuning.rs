//! LN tuning: training the norms alone (Zhao et al. 2023, <https://arxiv.org/abs/2312.11420>), as PEFT has it: a copy of the
//! weight and bias of each norm, in the place of the frozen ones.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Adapter, SiteKind};

use crate::common::{CommonConfig, Modules, Purpose};
use crate::error::ConfigProblem;
use crate::full::FullTuner;
use crate::method::{Built, Method, Place};
use crate::placement::{self, Placement, Wanted};
use crate::{MethodError, target_defaults};

/// Configuration of LN tuning, with PEFT's field names and defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LnTuningConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// The norms to train; `None` takes the defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Modules not to train although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
}

impl LnTuningConfig {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            kinds: &[SiteKind::Norm],
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Wanted::default()
        }
    }
}

impl Method for LnTuningConfig {
    const PEFT_TYPE: &'static str = "LN_TUNING";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        placement::problems(&self.wanted())
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let model = place.model;
        let defaults = target_defaults::ln_tuning(model.model_type);
        let placement = Placement::find(&Wanted { defaults, ..self.wanted() }, place)?;
        let mut adapter = Adapter::new();
        for id in &placement.targeted {
            let tuner = FullTuner::within(&model.sites[id.0], model.base(*id)?, "ln_tuning_layers.");
            adapter.insert_weight(*id, Box::new(tuner));
        }
        placement.add_common(&mut adapter, model)?;
        let Placement { targets, warnings, .. } = placement;
        let config = Self { target_modules: Some(targets), ..self.clone() };
        Ok(Built { config, adapter, warnings, routine: None })
    }
}
