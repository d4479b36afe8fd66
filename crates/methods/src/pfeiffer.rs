//! One adapter after the feed-forward, behind the norm of the block (Pfeiffer et al. 2021,
//! <https://arxiv.org/abs/2005.00247>, section 3.1; AdapterHub's `SeqBnConfig`).
//!
//! ```text
//! y = LN(U·σ(D·LN(h + x) + d) + u + h + x)
//! ```

use serde::{Deserialize, Serialize};

use crate::bottleneck_config::BottleneckConfig;
use crate::bottleneck_method::BottleneckMethod;

/// Configuration of the method: AdapterHub's keys with its own defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PfeifferConfig(pub BottleneckConfig);

impl Default for PfeifferConfig {
    fn default() -> Self {
        Self(BottleneckConfig { original_ln_before: true, ..BottleneckConfig::default() })
    }
}

impl BottleneckMethod for PfeifferConfig {
    const PEFT_TYPE: &'static str = "PFEIFFER";

    fn config(&self) -> &BottleneckConfig {
        &self.0
    }

    fn config_mut(&mut self) -> &mut BottleneckConfig {
        &mut self.0
    }
}
