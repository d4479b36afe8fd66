//! Optimisers, one a file, and what is done to gradients before an update.

mod adafactor;
mod adamw;
mod adamw_8bit;
mod choice;
mod clipping;
mod rule;
mod sgd;
mod state;
mod stateful;
#[cfg(test)]
mod tests;

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8bit;
pub use choice::OptimizerName;
pub use clipping::{clip_factor, grad_norm};
pub use rule::{Update, UpdateRule};
pub use sgd::Sgd;
pub use state::{StateTensor, StateValues};
pub use stateful::{Optimizer, ParameterGroup};
