//! Adapters after attention and after the feed-forward (Houlsby et al. 2019, <https://arxiv.org/abs/1902.00751>,
//! section 2.1; AdapterHub's `DoubleSeqBnConfig`), with the norms of the model trained.
//!
//! ```text
//! y = LN(U·σ(D·h + d) + u + h + x)
//! ```

use serde::{Deserialize, Serialize};

use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, NonLinearity};
use crate::bottleneck_method::BottleneckMethod;

/// Configuration of the method: AdapterHub's keys with its own defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HoulsbyConfig(pub BottleneckConfig);

impl Default for HoulsbyConfig {
    fn default() -> Self {
        Self(BottleneckConfig {
            mh_adapter: true,
            non_linearity: NonLinearity::Swish,
            init_weights: BottleneckInit::Houlsby,
            train_layer_norms: true,
            ..BottleneckConfig::default()
        })
    }
}

impl BottleneckMethod for HoulsbyConfig {
    const PEFT_TYPE: &'static str = "HOULSBY";

    fn config(&self) -> &BottleneckConfig {
        &self.0
    }

    fn config_mut(&mut self) -> &mut BottleneckConfig {
        &mut self.0
    }
}
