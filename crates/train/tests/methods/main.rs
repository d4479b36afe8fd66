//! What must hold of every method on every architecture, and what papers say of methods for which there are no reference
//! numbers.

// Functions that tests share unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod adalora;
mod closed_forms;
mod finite_differences;
mod intrinsic_toy;
mod prefix_start;
mod round_trips;
mod scene;
