//! What must hold of every method on every architecture, and what papers say of methods for which there are no reference
//! numbers.

mod closed_forms;
mod finite_differences;
mod intrinsic_toy;
mod prefix_start;
mod round_trips;
mod scene;
