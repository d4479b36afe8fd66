//! `tunesmith evaluate --ranks`: a DyLoRA adapter at each of its ranks, and the smallest that is good enough.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use tunesmith_methods::{BuiltAdapter, DyLoraConfig, at_rank, save_adapter};
use tunesmith_tensor::Adapter;
use tunesmith_train::{Evaluation, TrainError};

use crate::args::EvaluateArgs;
use crate::base::Base;
use crate::failure::Misuse;
use crate::training::rounded;

/// What the command line asks of the ranks.
pub(crate) struct Ranks {
    /// None means all.
    wanted: Option<Vec<usize>>,
    tolerance: f64,
    export: Option<Export>,
}

/// A rank to write, and where.
struct Export {
    /// None means the recommended one.
    rank: Option<usize>,
    folder: PathBuf,
}

impl Ranks {
    /// What `--ranks`, `--tolerance` and `--export` say.
    ///
    /// # Errors
    /// [`Misuse`] if they cannot be read.
    pub(crate) fn of(args: &EvaluateArgs) -> anyhow::Result<Option<Self>> {
        let Some(ranks) = &args.ranks else { return Ok(None) };
        let number = |text: &str| {
            let rank = text.trim().parse::<usize>().ok().filter(|rank| *rank > 0);
            rank.ok_or_else(|| Misuse(format!("'{text}' is not a rank: give all, or numbers from 1 such as 1,2,8")))
        };
        let wanted = match ranks.as_str() {
            "all" => None,
            list => Some(list.split(',').map(number).collect::<Result<Vec<_>, _>>()?),
        };
        if !(args.tolerance.is_finite() && args.tolerance >= 0.0) {
            return Err(Misuse(format!("--tolerance is {}, must be a number from 0", args.tolerance)).into());
        }
        let export = args.export.as_deref().map(|text| {
            let (rank, folder) = text
                .split_once('=')
                .filter(|(_, folder)| !folder.is_empty())
                .ok_or_else(|| Misuse(format!("--export {text} is not RANK=FOLDER, such as auto=out/rank")))?;
            let rank = if rank == "auto" { None } else { Some(number(rank)?) };
            anyhow::Ok(Export { rank, folder: folder.into() })
        });
        Ok(Some(Self { wanted, tolerance: args.tolerance, export: export.transpose()? }))
    }

    /// Evaluates each rank, says which is the smallest within the tolerance, and writes what is to be written.
    ///
    /// # Errors
    /// [`Misuse`] without an adapter; whatever evaluation or files run into.
    pub(crate) fn run(
        &self,
        base: &Base,
        built: Option<&BuiltAdapter>,
        evaluate: impl Fn(&Adapter) -> Result<Evaluation, TrainError>,
    ) -> anyhow::Result<()> {
        let built = built.ok_or_else(|| Misuse("--ranks needs an adapter: give it with --adapter".into()))?;
        let config = built.config.get::<DyLoraConfig>();
        let all = || config.map_or_else(|| vec![1], |config| (config.min_r..=config.r).collect());
        let ranks = self.wanted.clone().unwrap_or_else(all);
        let mut out = io::stdout().lock();
        let mut losses = Vec::new();
        for rank in ranks {
            let plain = base.describe(|description| at_rank(built, rank, description))?;
            let evaluation = evaluate(&plain.adapter)?;
            let values: Vec<String> =
                evaluation.metrics.iter().map(|(key, value)| format!("{key} {}", rounded(*value))).collect();
            writeln!(out, "rank {rank:<6} {}", values.join("  "))?;
            losses.push((rank, evaluation.get("loss").context("an evaluation measures the loss")?));
        }
        let recommended = smallest_within(&losses, self.tolerance).context("there is at least one rank")?;
        writeln!(out, "recommended {recommended}, the smallest within {} % of the best", 100.0 * self.tolerance)?;
        if let Some(Export { rank, folder }) = &self.export {
            let rank = rank.unwrap_or(recommended);
            let plain = base.describe(|description| at_rank(built, rank, description))?;
            save_adapter(folder, &plain)?;
            writeln!(out, "rank {rank:<6} {}", folder.display())?;
        }
        Ok(())
    }
}

/// The smallest rank whose loss is at most the best one's, plus a fraction of it.
fn smallest_within(losses: &[(usize, f64)], tolerance: f64) -> Option<usize> {
    let best = losses.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    losses.iter().filter(|(_, loss)| *loss <= best * (1.0 + tolerance)).map(|(rank, _)| *rank).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_rank_that_is_good_enough_is_recommended() {
        let losses = [(1, 2.5), (2, 2.02), (3, 2.0), (4, 2.01)];
        assert_eq!(smallest_within(&losses, 0.01), Some(2));
        assert_eq!(smallest_within(&losses, 0.0), Some(3));
        assert_eq!(smallest_within(&losses, 0.3), Some(1));
        assert_eq!(smallest_within(&[], 0.1), None);
    }
}
