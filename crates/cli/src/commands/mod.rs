//! The commands, one file each.

mod bench;
mod compare;
mod completions;
mod evaluate;
mod generate;
mod icl;
mod inspect;
mod intrinsic_dimension;
mod merge;
mod predict;
mod pull;
mod quickstart;
mod ranks;
mod report;
mod serve;
mod study;
mod sweep;
mod together;
mod train;

pub(crate) use intrinsic_dimension::IntrinsicDimensionArgs;

use tunesmith_tensor::Instructions;

use crate::args::{Cli, Command};
use crate::failure::Misuse;

/// Runs the command of a command line.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    Instructions::from_environment().map_err(|error| Misuse(error.to_string()))?;
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Icl(args) => icl::run(&args),
        Command::Study(args) => study::run(&args),
        Command::Report(args) => report::run(&args),
        Command::IntrinsicDimension(args) => intrinsic_dimension::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
