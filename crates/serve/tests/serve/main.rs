//! Serving, from the engine to HTTP.

// Functions that tests share unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod clients;
mod faults;
mod http;
mod mixed;
mod model;
mod schedule;
