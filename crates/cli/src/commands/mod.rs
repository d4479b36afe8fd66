//! The commands, one file each.

mod bench;
mod completions;
mod evaluate;
mod generate;
mod inspect;
mod merge;
mod predict;
mod pull;
mod quickstart;
mod ranks;
mod train;

use crate::args::{Cli, Command};

/// Runs the command of a command line.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
