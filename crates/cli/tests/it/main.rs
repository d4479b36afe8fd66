//! The program from outside: what it prints, what it writes, and how it ends.

// Functions that tests share unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod commands;
mod dimensions;
mod resume;
mod scene;
mod studies;
mod task_errors;
mod tasks;
mod together;
