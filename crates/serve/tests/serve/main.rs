//! Serving, from the engine to HTTP.

mod clients;
mod faults;
mod http;
mod mixed;
mod model;
mod schedule;
