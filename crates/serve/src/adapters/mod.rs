//! The adapters of a folder: found by name, loaded when first asked for, and given up again when memory runs short.

mod files;
mod resident;
mod store;

pub use files::{AdapterError, AdapterLimits};
pub use resident::Resident;
pub use store::{AdapterStatus, Adapters, StoreState};
