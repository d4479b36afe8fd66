//! The program `tunesmith`.

mod args;
mod base;
mod commands;
mod config;
mod dimension_plot;
mod e2e_sample;
mod failure;
mod generate_args;
mod hub;
mod interrupt;
mod names;
mod pass;
mod plot;
mod progress;
mod pull;
mod quantization;
mod rank_choice;
mod serve_args;
mod study_args;
mod subspaces;
mod task_file;
mod terminal;
mod training;
mod watcher;
mod workbench;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match commands::run(args::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(format_args!("error: {}", failure::told(&error)));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}
