//! Results on tasks of GLUE, a file a day in `bench/results/`.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::glue::{Method, Side};
use crate::results::{latest_named, results_folder};

const PREFIX: &str = "glue-";

/// What was measured on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GlueResults {
    /// When, as `YYYY-MM-DD`.
    pub(crate) date: String,
    /// The machine, in words.
    pub(crate) machine: String,
    /// Versions of the peers.
    pub(crate) peers: String,
    /// In the order in which they ran.
    pub(crate) runs: Vec<GlueRun>,
}

/// What came of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GlueRun {
    pub(crate) method: String,
    pub(crate) task: String,
    pub(crate) seed: u64,
    pub(crate) side: Side,
    /// The score that counts, such as `accuracy`.
    pub(crate) metric: String,
    /// Its value, mostly of 1.
    pub(crate) score: f64,
    pub(crate) trainable_parameters: u64,
    /// Seconds of training, without evaluation.
    pub(crate) train_seconds: f64,
}

impl GlueRun {
    /// Of what a run measured, under the names of `all_results.json`.
    pub(crate) fn new(
        method: &str,
        task: &str,
        seed: u64,
        side: Side,
        metric: &str,
        measured: &Value,
    ) -> anyhow::Result<Self> {
        let value = |key: &str| measured.get(key).with_context(|| format!("the run has no {key}: {measured}"));
        let number = |key: &str| value(key)?.as_f64().with_context(|| format!("{key} is no number: {measured}"));
        Ok(Self {
            method: method.to_owned(),
            task: task.to_owned(),
            seed,
            side,
            metric: metric.to_owned(),
            score: number(&format!("eval_{metric}"))?,
            trainable_parameters: value("trainable_parameters")?.as_u64().context("parameters are counted")?,
            train_seconds: number("train_runtime")?,
        })
    }
}

impl GlueResults {
    /// Those of a day, to which runs can be added.
    pub(crate) fn of_day(repository: &Path, date: String, machine: String, peers: String) -> anyhow::Result<Self> {
        let known = Self::latest(repository)?.filter(|known| known.date == date);
        let runs = known.map(|known| known.runs).unwrap_or_default();
        Ok(Self { date, machine, peers, runs })
    }

    pub(crate) fn has(&self, method: &str, task: &str, seed: u64, side: Side) -> bool {
        self.of(method, task, side).any(|run| run.seed == seed)
    }

    fn of<'a>(&'a self, method: &'a str, task: &'a str, side: Side) -> impl Iterator<Item = &'a GlueRun> {
        self.runs.iter().filter(move |run| run.method == method && run.task == task && run.side == side)
    }

    pub(crate) fn save(&self, repository: &Path) -> anyhow::Result<()> {
        let path = results_folder(repository).join(format!("{PREFIX}{}.json", self.date));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The latest ones; `None` where nothing has been measured.
    pub(crate) fn latest(repository: &Path) -> anyhow::Result<Option<Self>> {
        latest_named(repository, PREFIX)
    }

    /// A table in Markdown, a row for each method and task that was measured, in the order of `methods`.
    pub(crate) fn table(&self, methods: &[Method]) -> String {
        let mut table = format!(
            "Measured on {} ({}), beside {}.\n\n| method | task | Tunesmith | peer | difference | seconds | peer's seconds |\n\
             |---|---|---|---|---|---|---|\n",
            self.machine, self.date, self.peers
        );
        for (method, task) in methods.iter().flat_map(|method| method.tasks.iter().map(|task| (&method.name, task))) {
            let [ours, peer] = [Side::Ours, Side::Peer].map(|side| Cell::of(self.of(method, task, side)));
            let Some(metric) = self.runs.iter().find(|run| run.method == *method && run.task == *task) else {
                continue;
            };
            let difference =
                ours.as_ref().zip(peer.as_ref()).map(|(ours, peer)| format!("{:+.1}", ours.mean - peer.mean));
            let score = |cell: &Option<Cell>| cell.as_ref().map_or(String::new(), Cell::score);
            let seconds =
                |cell: &Option<Cell>| cell.as_ref().map_or(String::new(), |cell| format!("{:.0}", cell.seconds));
            table += &format!(
                "| {method} | {task}, {} | {} | {} | {} | {} | {} |\n",
                metric.metric,
                score(&ours),
                score(&peer),
                difference.unwrap_or_default(),
                seconds(&ours),
                seconds(&peer)
            );
        }
        table
    }
}

/// The runs of one method on one task, ours or the peer's.
struct Cell {
    /// Mean score, of 100.
    mean: f64,
    /// Standard deviation of the scores (with `n − 1`); none of one run.
    deviation: Option<f64>,
    /// Mean seconds of training.
    seconds: f64,
}

impl Cell {
    fn of<'a>(runs: impl Iterator<Item = &'a GlueRun>) -> Option<Self> {
        let runs: Vec<&GlueRun> = runs.collect();
        if runs.is_empty() {
            return None;
        }
        let count = runs.len() as f64;
        let mean = runs.iter().map(|run| 100.0 * run.score).sum::<f64>() / count;
        let squares: f64 = runs.iter().map(|run| (100.0 * run.score - mean).powi(2)).sum();
        let deviation = (runs.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        Some(Self { mean, deviation, seconds: runs.iter().map(|run| run.train_seconds).sum::<f64>() / count })
    }

    fn score(&self) -> String {
        let deviation = self.deviation.map_or(String::new(), |deviation| format!(" ± {deviation:.1}"));
        format!("{:.1}{deviation}", self.mean)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(side: Side, seed: u64, score: f64) -> GlueRun {
        let measured = json!({"eval_accuracy": score, "trainable_parameters": 7, "train_runtime": 3.0 + score});
        GlueRun::new("LoRA", "MRPC", seed, side, "accuracy", &measured).unwrap()
    }

    #[test]
    fn the_table_has_means_and_deviations_over_seeds() {
        let methods = crate::glue::methods(&crate::repository()).unwrap();
        let runs = vec![run(Side::Ours, 0, 0.8), run(Side::Ours, 1, 0.82), run(Side::Peer, 0, 0.79)];
        let results = GlueResults { date: "2026-01-02".into(), machine: "2 cores".into(), peers: "PEFT".into(), runs };
        let table = results.table(&methods);
        assert!(table.ends_with("|\n| LoRA | MRPC, accuracy | 81.0 ± 1.4 | 79.0 | +2.0 | 4 | 4 |\n"), "{table}");
        assert!(results.has("LoRA", "MRPC", 1, Side::Ours) && !results.has("LoRA", "MRPC", 1, Side::Peer));
    }

    #[test]
    fn a_run_without_its_score_is_an_error() {
        let measured = json!({"eval_f1": 1.0, "trainable_parameters": 7, "train_runtime": 3.0});
        assert!(GlueRun::new("LoRA", "MRPC", 0, Side::Peer, "accuracy", &measured).is_err());
    }
}
