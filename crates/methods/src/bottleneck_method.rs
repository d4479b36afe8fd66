//! What the bottleneck adapters (`houlsby.rs`, `pfeiffer.rs`, `parallel.rs`) are to the rest of the crate: one description,
//! of which each method gives the defaults.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::MethodError;
use crate::adapter_hub;
use crate::bottleneck_config::{BottleneckConfig, UNINTERPRETED};
use crate::common::{CommonConfig, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};

/// A bottleneck adapter with defaults of its own.
pub(crate) trait BottleneckMethod:
    Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The method's name.
    const PEFT_TYPE: &'static str;

    /// The keys.
    fn config(&self) -> &BottleneckConfig;

    /// The keys.
    fn config_mut(&mut self) -> &mut BottleneckConfig;
}

impl<M: BottleneckMethod> Method for M {
    const PEFT_TYPE: &'static str = <M as BottleneckMethod>::PEFT_TYPE;

    fn uninterpreted() -> &'static [Uninterpreted] {
        &UNINTERPRETED
    }

    fn common(&self) -> &CommonConfig {
        &self.config().common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.config_mut().common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        self.config().problems()
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let (filled, adapter) = self.config().tuners(place)?;
        let mut config = self.clone();
        *config.config_mut() = filled;
        Ok(Built { config, adapter, warnings: Vec::new(), routine: None })
    }

    fn foreign_file(&self) -> Option<Map<String, Value>> {
        Some(adapter_hub::to_file(self.config()))
    }
}
