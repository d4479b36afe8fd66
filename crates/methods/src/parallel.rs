//! One adapter beside the feed-forward (He et al. 2022, <https://arxiv.org/abs/2110.04366>, table 1; AdapterHub's
//! `ParBnConfig`).
//!
//! ```text
//! y = LN(s·(U·σ(D·x + d) + u) + h + x),   s = 4
//! ```

use serde::{Deserialize, Serialize};

use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, ReductionFactor, Scaling};
use crate::bottleneck_method::BottleneckMethod;

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

impl BottleneckMethod for ParallelConfig {
    const PEFT_TYPE: &'static str = "PARALLEL";

    fn config(&self) -> &BottleneckConfig {
        &self.0
    }

    fn config_mut(&mut self) -> &mut BottleneckConfig {
        &mut self.0
    }
}
