//! One adapter after the feed-forward, behind the norm of the block (Pfeiffer et al. 2021,
//! <https://arxiv.org/abs/2005.00247>, section 3.1; AdapterHub's `SeqBnConfig`).
//!
//! ```text
//! y = LN(U·σ(D·LN(h + x) + d) + u + h + x)
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::MethodError;
use crate::adapter_hub;
use crate::bottleneck_config::{BottleneckConfig, UNINTERPRETED};
use crate::common::{CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};

/// Configuration of the method: AdapterHub's keys with its own defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PfeifferConfig(pub BottleneckConfig);

impl Default for PfeifferConfig {
    fn default() -> Self {
        Self(BottleneckConfig { original_ln_before: true, ..BottleneckConfig::default() })
    }
}

impl Method for PfeifferConfig {
    const PEFT_TYPE: &'static str = "PFEIFFER";

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
