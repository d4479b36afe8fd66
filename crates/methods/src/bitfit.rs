//! BitFit: training the biases alone (Ben Zaken, Ravfogel and Goldberg 2022, <https://arxiv.org/abs/2106.10199>). All of them,
//! or those of the queries and of the first linear of the feed-forwards, which the paper finds nearly as good (its
//! section 3). The weights of norms stay frozen. Not in PEFT: the file holds the biases under their modules' names.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Adapter, Role, SiteId, SiteKind};

use crate::bias::BiasTuner;
use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::full;
use crate::method::{Built, Method, Place};
use crate::placement::{self, Wanted};
use crate::{MethodError, ModelDescription};

/// Configuration of BitFit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitFitConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Which biases are trained.
    pub biases: BitFitBiases,
    /// Modules of which full copies are trained, such as a head.
    pub modules_to_save: Option<Vec<String>>,
}

/// Which biases BitFit trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BitFitBiases {
    /// All.
    #[default]
    All,
    /// Those of queries and of the first linear of feed-forwards (`b_q` and `b_m2`).
    QueryAndFeedforward,
}

impl Method for BitFitConfig {
    const PEFT_TYPE: &'static str = "BITFIT";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        placement::problems(&Wanted { modules_to_save: self.modules_to_save.as_deref(), ..Wanted::default() })
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, purpose, .. } = *place;
        let saved = full::sites_to_save(self.modules_to_save.as_deref().unwrap_or_default(), &[], model, purpose)?;
        let mut adapter = Adapter::new();
        for (id, site) in model.weight_sites().filter(|(id, site)| site.has_bias && !saved.contains(id)) {
            let Some(bias) = model.base(id)?.bias else { continue };
            let tuner = match (self.biases, site.role) {
                (_, Role::Head) => continue,
                (BitFitBiases::All, _) | (_, Role::Query | Role::FeedForwardUp) => BiasTuner::new(site, bias),
                // The queries come first in a fused projection.
                (_, Role::QueryKeyValue) => BiasTuner::of_first(site, bias, queries(site.rows, site.cols)),
                _ => continue,
            };
            adapter.insert_weight(id, Box::new(tuner));
        }
        if adapter.weight_sites().next().is_none() {
            return Err(no_biases(model));
        }
        full::add_tuners(&mut adapter, &saved, model)?;
        Ok(Built { config: self.clone(), adapter, warnings: Vec::new(), routine: None })
    }
}

/// How many of the rows of a fused projection are queries: as many as the model is wide.
fn queries(rows: usize, cols: usize) -> usize {
    cols.min(rows)
}

fn no_biases(model: &ModelDescription<'_>) -> MethodError {
    let with_bias: Vec<SiteId> = model.weight_sites().filter(|(_, site)| site.has_bias).map(|(id, _)| id).collect();
    let has_norms = model.weight_sites().any(|(_, site)| site.kind == SiteKind::Norm);
    let instead = match with_bias.first() {
        Some(site) => format!("Use biases: all; {} is one that has a bias", model.sites[site.0].path),
        None if has_norms => "Train the norms with LN_TUNING, or scales with IA3, which are as small".to_owned(),
        None => "Train scales with IA3, which are as small".to_owned(),
    };
    MethodError::Impossible {
        what: "BITFIT".into(),
        why: format!("this {} model has no such bias to train", model.model_type),
        instead,
    }
}
