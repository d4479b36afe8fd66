//! An adapter in memory.

use std::time::{Duration, Instant};

use serde_json::Value;
use tunesmith_methods::{BuiltAdapter, adapter_from};
use tunesmith_tensor::{Adapter, SiteKind};

use super::files::{AdapterError, ReadAdapter, check_sizes};
use crate::base::{BaseModel, now};

/// One generation of an adapter, ready to run. Requests hold it for as long as they need it.
pub struct Resident {
    /// What requests called it when it was loaded.
    pub name: String,
    /// SHA-256 of its configuration and weights.
    pub generation: String,
    /// Its method, as PEFT names it; several joined by `+`.
    pub method: String,
    /// The rank, where its configuration has one.
    pub rank: Option<u64>,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bytes of its tensors in memory.
    pub bytes: usize,
    /// How long reading and making it took.
    pub load_time: Duration,
    /// When, in seconds since 1970.
    pub loaded: u64,
    /// The tuners.
    pub adapter: Adapter,
}

impl Resident {
    /// Makes an adapter of what was read.
    pub(crate) fn new(base: &BaseModel, name: &str, read: ReadAdapter, started: Instant) -> Result<Self, AdapterError> {
        for (config, weights) in &read.files.parts {
            check_sizes(name, config, weights.len(), base.model().info().hidden_size)?;
        }
        let built = base.describe(|description| adapter_from(&read.files, description))?;
        let BuiltAdapter { mut adapter, config, .. } = built;
        let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if let Some(tensor) = adapter.parameters().iter().find(|tensor| !is_finite(tensor.value().data())) {
            return Err(AdapterError::NotFinite { path: name.to_owned(), tensor: tensor.name().to_owned() });
        }
        let (method, rank) = (config.peft_type(), rank(&read));
        let (model, sites) = (base.model(), base.model().sites());
        adapter.freeze(
            &base.workspace,
            |site| {
                if sites[site.0].kind == SiteKind::Linear { model.base(site) } else { None }
            },
        );
        Ok(Self {
            name: name.to_owned(),
            generation: read.generation,
            method,
            rank,
            file_bytes: read.bytes,
            bytes: adapter.bytes(),
            load_time: started.elapsed(),
            loaded: now(),
            adapter,
        })
    }
}

/// The first rank that the configurations name.
fn rank(read: &ReadAdapter) -> Option<u64> {
    let configs = read.files.parts.iter().filter_map(|(config, _)| serde_json::from_slice::<Value>(config).ok());
    configs.into_iter().find_map(|config| config["r"].as_u64())
}
