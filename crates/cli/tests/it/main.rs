//! The program from outside: what it prints, what it writes, and how it ends.

mod bad_input;
mod commands;
mod resume;
mod scene;
