//! `tunesmith evaluate --ranks`: a DyLoRA adapter at each of its ranks, and the smallest that is good enough.

use std::io::{self, Write};
use std::path::PathBuf;

use tunesmith_methods::{BuiltAdapter, DyLoraConfig, at_rank, save_adapter};
use tunesmith_tensor::Adapter;
use tunesmith_train::metrics::MetricValue;
use tunesmith_train::{Evaluation, TrainError};

use crate::args::EvaluateArgs;
use crate::base::Base;
use crate::failure::Misuse;
use crate::rank_choice::{ChosenRank, measure_ranks};
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
    /// [`Misuse`] without one adapter; whatever evaluation or files run into.
    pub(crate) fn run(
        &self,
        base: &Base,
        adapters: &[BuiltAdapter],
        evaluate: impl Fn(&Adapter) -> Result<Evaluation, TrainError>,
    ) -> anyhow::Result<()> {
        let [built] = adapters else {
            return Err(Misuse("--ranks needs one adapter: give it with --adapter".into()).into());
        };
        let config = built.config.get::<DyLoraConfig>();
        let all = || config.map_or_else(|| vec![1], |config| config.ranks().collect());
        let ranks = self.wanted.clone().unwrap_or_else(all);
        let mut out = io::stdout().lock();
        let measured = measure_ranks(base, built, ranks, evaluate)?;
        for (rank, evaluation) in &measured {
            let values: Vec<String> =
                evaluation.metrics.iter().map(|(key, value)| format!("{key} {}", rounded(*value))).collect();
            writeln!(out, "rank {rank:<6} {}", values.join("  "))?;
        }
        let loss = MetricValue { key: "loss", higher_is_better: false };
        let recommended = ChosenRank::of(&measured, loss, self.tolerance)?.rank;
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
