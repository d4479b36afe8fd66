//! Methods against Hugging Face PEFT: the modules it tunes, and the files it reads and writes.

// Functions that tests share unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod broken_files;
mod every_method;
mod fixtures;
mod merging;
mod model;
mod round_trip;
mod targets;
