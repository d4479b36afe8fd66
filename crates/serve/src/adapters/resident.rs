//! An adapter in memory.

use std::panic::resume_unwind;
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
    /// Makes an adapter of what was read. Its hash takes as long as everything else, so it is made beside that.
    pub(crate) fn new(base: &BaseModel, name: &str, read: ReadAdapter, started: Instant) -> Result<Self, AdapterError> {
        std::thread::scope(|scope| {
            let generation = scope.spawn(|| read.generation());
            let (adapter, method) = ready(base, name, &read)?;
            let generation = generation.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok(Self {
                name: name.to_owned(),
                generation,
                method,
                rank: rank(&read),
                file_bytes: read.bytes,
                bytes: adapter.bytes(),
                load_time: started.elapsed(),
                loaded: now(),
                adapter,
            })
        })
    }
}

/// The tuners, as small as they become, and what their method is called.
fn ready(base: &BaseModel, name: &str, read: &ReadAdapter) -> Result<(Adapter, String), AdapterError> {
    for (config, weights) in &read.files.parts {
        check_sizes(name, config, weights.len(), base.model().info().hidden_size)?;
    }
    let built = base.describe(|description| adapter_from(&read.files, description))?;
    let BuiltAdapter { mut adapter, config, .. } = built;
    if let Some(tensor) = adapter.parameters().iter().find(|tensor| !is_finite(tensor.value().data())) {
        return Err(AdapterError::NotFinite { path: name.to_owned(), tensor: tensor.name().to_owned() });
    }
    let (model, sites) = (base.model(), base.model().sites());
    adapter.freeze(
        &base.workspace,
        |site| {
            if sites[site.0].kind == SiteKind::Linear { model.base(site) } else { None }
        },
    );
    Ok((adapter, config.peft_type()))
}

/// Whether all values are finite. Many are looked at together, for which there are vector instructions.
fn is_finite(values: &[f32]) -> bool {
    values.chunks(256).all(|values| values.iter().fold(true, |all, value| all & value.is_finite()))
}

/// The first rank that the configurations name.
fn rank(read: &ReadAdapter) -> Option<u64> {
    let configs = read.files.parts.iter().filter_map(|(config, _)| serde_json::from_slice::<Value>(config).ok());
    configs.into_iter().find_map(|config| config["r"].as_u64())
}
