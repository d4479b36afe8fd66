//! Chores of the repository: `cargo xtask COMMAND`.

mod glue;
mod glue_results;
mod method_results;
mod methods;
mod peers;
mod readme;
mod results;
mod serving;

use std::path::{Path, PathBuf};

use clap::Parser;

/// Chores of the repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Measures training and generation against HF PEFT on PyTorch, in turns, and writes bench/results/DATE.json
    BenchPeers(peers::BenchPeers),
    /// Trains each method on the E2E sample with the same small budget, and writes bench/results/methods-DATE.json
    BenchMethods(methods::BenchMethods),
    /// Measures quality on tasks of GLUE beside HF PEFT, and writes bench/results/glue-DATE.json; what stands there already is
    /// not measured again
    BenchGlue(glue::BenchGlue),
    /// Measures the serving engine with many adapters
    BenchServe(serving::BenchServe),
    /// Writes the tables of the latest results into README.md
    Readme,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BenchPeers(arguments) => peers::run(&arguments),
        Command::BenchMethods(arguments) => methods::run(&arguments),
        Command::BenchGlue(arguments) => glue::run(&arguments),
        Command::BenchServe(arguments) => serving::run(&arguments),
        Command::Readme => readme::write(&repository()),
    }
}

/// The repository's folder.
fn repository() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}
