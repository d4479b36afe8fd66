//! One adapter beside the feed-forward (He et al. 2022, <https://arxiv.org/abs/2110.04366>, table 1; AdapterHub's
//! `ParBnConfig`).
//!
//! ```text
//! y = LN(s·(U·σ(D·x + d) + u) + h + x),   s = 4
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::MethodError;
use crate::adapter_hub;
use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, ReductionFactor, Scaling, UNINTERPRETED};
use crate::common::{CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};

/// Configuration of the method: AdapterHub's keys with its own defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ParallelConfig(pub BottleneckConfig);

impl Default for ParallelConfig {
    fn default() -> Self {
        Self(BottleneckConfig {
            is_parallel: true,
            reduction_factor: ReductionFactor::One(2.into()),
            scaling: Scaling::Constant(4.0),
            init_weights: BottleneckInit::MamAdapter,
            ..BottleneckConfig::default()
        })
    }
}

impl Method for ParallelConfig {
    const PEFT_TYPE: &'static str = "PARALLEL";

    fn uninterpreted() -> &'static [Uninterpreted] {
        &UNINTERPRETED
    }

    fn common(&self) -> &CommonConfig {
        &self.0.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.0.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        self.0.problems()
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let (config, adapter) = self.0.tuners(place)?;
        Ok(Built { config: Self(config), adapter, warnings: Vec::new(), routine: None })
    }

    fn foreign_file(&self) -> Option<Map<String, Value>> {
        Some(adapter_hub::to_file(&self.0))
    }
}
