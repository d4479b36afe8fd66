//! Adapters after attention and after the feed-forward (Houlsby et al. 2019, <https://arxiv.org/abs/1902.00751>,
//! section 2.1; AdapterHub's `DoubleSeqBnConfig`), with the norms of the model trained.
//!
//! ```text
//! y = LN(U·σ(D·h + d) + u + h + x)
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::MethodError;
use crate::adapter_hub;
use crate::bottleneck_config::{BottleneckConfig, BottleneckInit, NonLinearity, UNINTERPRETED};
use crate::common::{CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};

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

impl Method for HoulsbyConfig {
    const PEFT_TYPE: &'static str = "HOULSBY";

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
