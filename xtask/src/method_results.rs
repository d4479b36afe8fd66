//! Results of the table of methods, a file a day in `bench/results/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::results::{latest_named, results_folder};

/// What was measured on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MethodResults {
    /// When, as `YYYY-MM-DD`.
    pub(crate) date: String,
    /// The machine, in words.
    pub(crate) machine: String,
    /// The base model.
    pub(crate) base_model: String,
    /// A method each.
    pub(crate) cases: Vec<MethodCase>,
}

/// What came of a method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MethodCase {
    /// Its name in `bench/methods.yaml`; `none` for the untrained base.
    pub(crate) method: String,
    /// Values that were trained.
    pub(crate) trainable_parameters: u64,
    /// The size of the adapter's tensors on disk.
    pub(crate) adapter_bytes: u64,
    /// Mean loss of the held-out texts' tokens, in nats.
    pub(crate) eval_loss: f64,
    /// BLEU of the texts written for the held-out inputs.
    pub(crate) eval_bleu: f64,
    /// Seconds of training, without evaluation and saving.
    pub(crate) train_seconds: f64,
    /// The process's largest resident size when training ended, in bytes.
    pub(crate) peak_memory: u64,
}

const PREFIX: &str = "methods-";

impl MethodResults {
    /// Takes over today's other rows, and puts all into the order of `methods`, the base first.
    pub(crate) fn take_others(&mut self, repository: &Path, methods: &[&str]) -> anyhow::Result<()> {
        let today = Self::latest(repository)?.filter(|known| known.date == self.date);
        for case in today.into_iter().flat_map(|known| known.cases) {
            if self.cases.iter().all(|new| new.method != case.method) {
                self.cases.push(case);
            }
        }
        self.cases
            .sort_by_key(|case| methods.iter().position(|name| *name == case.method).map_or(0, |place| place + 1));
        Ok(())
    }

    /// Writes them, and returns where.
    pub(crate) fn save(&self, repository: &Path) -> anyhow::Result<PathBuf> {
        let path = results_folder(repository).join(format!("{PREFIX}{}.json", self.date));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The latest ones; `None` where nothing has been measured.
    pub(crate) fn latest(repository: &Path) -> anyhow::Result<Option<Self>> {
        latest_named(repository, PREFIX)
    }

    /// A table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "Base model {}, measured on {} ({}).\n\n| method | trained | file | dev loss | BLEU | seconds | peak memory |\n\
             |---|---|---|---|---|---|---|\n",
            self.base_model, self.machine, self.date
        );
        for case in &self.cases {
            let MethodCase { method, eval_loss, eval_bleu, train_seconds, .. } = case;
            table += &match case.trainable_parameters {
                0 => format!("| untrained base | | | {eval_loss:.3} | {eval_bleu:.1} | | |\n"),
                trained => format!(
                    "| {method} | {} | {} | {eval_loss:.3} | {eval_bleu:.1} | {train_seconds:.0} | {:.2} GB |\n",
                    grouped(trained),
                    size(case.adapter_bytes),
                    case.peak_memory as f64 / 1e9
                ),
            };
        }
        table
    }
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    (head > 0).then(|| digits[..head].to_owned()).into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// A size in the largest unit of which there is at least one.
fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.1} kB", bytes / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(method: &str, trainable_parameters: u64) -> MethodCase {
        MethodCase {
            method: method.to_owned(),
            trainable_parameters,
            adapter_bytes: 2_345_678,
            eval_loss: 1.5,
            eval_bleu: 40.25,
            train_seconds: 31.4,
            peak_memory: 1_230_000_000,
        }
    }

    fn results(cases: Vec<MethodCase>) -> MethodResults {
        MethodResults { date: "2026-01-02".into(), machine: "2 cores".into(), base_model: "model".into(), cases }
    }

    #[test]
    fn the_table_has_a_row_a_method() {
        let table = results(vec![case("none", 0), case("LoRA", 1_234_567)]).table();
        assert!(table.contains("\n| untrained base | | | 1.500 | 40.2 | | |\n"), "{table}");
        assert!(table.ends_with("| LoRA | 1,234,567 | 2.3 MB | 1.500 | 40.2 | 31 | 1.23 GB |\n"), "{table}");
        assert_eq!(["12", "123", "1234"].map(|text| grouped(text.parse().unwrap())), ["12", "123", "1,234"]);
    }

    #[test]
    fn rows_of_the_same_day_are_kept_in_the_order_of_the_list() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(results_folder(folder.path())).unwrap();
        results(vec![case("none", 0), case("b", 1), case("a", 2)]).save(folder.path()).unwrap();
        let mut again = results(vec![case("b", 3)]);
        again.take_others(folder.path(), &["a", "b"]).unwrap();
        let rows: Vec<(&str, u64)> =
            again.cases.iter().map(|case| (case.method.as_str(), case.trainable_parameters)).collect();
        assert_eq!(rows, [("none", 0), ("a", 2), ("b", 3)]);
        let mut other_day = MethodResults { date: "2026-01-03".into(), ..again };
        other_day.cases.truncate(1);
        other_day.take_others(folder.path(), &["a", "b"]).unwrap();
        assert_eq!(other_day.cases.len(), 1);
    }
}
