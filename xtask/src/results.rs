//! Results of benchmarks against peers, a file a day in `bench/results/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What was measured on one machine in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// When, as `YYYY-MM-DD`.
    pub(crate) date: String,
    /// The machine, in words.
    pub(crate) machine: String,
    /// Versions of the peers.
    pub(crate) peers: String,
    /// One measurement each.
    pub(crate) cases: Vec<Case>,
}

/// One thing that both did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// What.
    pub(crate) case: String,
    /// Tunesmith's median.
    pub(crate) ours: f64,
    /// The peer's median.
    pub(crate) peer: f64,
    /// How many times better ours is; less than 1 where it is worse.
    pub(crate) ratio: f64,
    /// The unit of both: `tokens/s`, of which more is better, or `GB`, of which less is.
    pub(crate) unit: String,
}

/// The unit of memory: less is better.
pub(crate) const MEMORY: &str = "GB";
/// Units of which less is better.
const LESS: [&str; 3] = [MEMORY, "MB", "ms"];

impl Case {
    pub(crate) fn new(case: String, unit: &str, ours: &[f64], peer: &[f64]) -> Self {
        let (ours, peer) = (median(ours), median(peer));
        let ratio = if LESS.contains(&unit) { peer / ours } else { ours / peer };
        Self { case, ours: rounded(ours), peer: rounded(peer), ratio: rounded(ratio), unit: unit.to_owned() }
    }
}

/// The middle value; of an even number, the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// To two places behind the point.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Where results lie.
pub(crate) fn results_folder(repository: &Path) -> PathBuf {
    repository.join("bench").join("results")
}

/// The latest results of a kind, whose files are named `PREFIX` and a date; `None` where nothing has been measured.
pub(crate) fn latest_named<T: DeserializeOwned>(repository: &Path, prefix: &str) -> anyhow::Result<Option<T>> {
    let entries = fs::read_dir(results_folder(repository)).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_date = |rest: &str| rest.ends_with(".json") && rest.starts_with(|first: char| first.is_ascii_digit());
    // Dates sort as text does.
    let Some(name) = names.filter(|name| name.strip_prefix(prefix).is_some_and(is_date)).max() else { return Ok(None) };
    let path = results_folder(repository).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display())).map(Some)
}

impl Results {
    /// Writes them, and returns where.
    pub(crate) fn save(&self, repository: &Path) -> anyhow::Result<PathBuf> {
        self.save_as(repository, &self.date)
    }

    /// The same under a name; results of something else than training have a word before the date.
    pub(crate) fn save_as(&self, repository: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let folder = results_folder(repository);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The latest ones; `None` where nothing has been measured.
    pub(crate) fn latest(repository: &Path) -> anyhow::Result<Option<Self>> {
        latest_named(repository, "")
    }

    /// A table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "Measured on {} ({}), against {}; medians of runs in turns.\n\n| | Tunesmith | peer | times better |\n|---|---|---|---|\n",
            self.machine, self.date, self.peers
        );
        for Case { case, ours, peer, ratio, unit } in &self.cases {
            table += &format!("| {case} | {} {unit} | {} {unit} | {ratio:.1} |\n", shown(*ours), shown(*peer));
        }
        table
    }
}

/// Three digits that count.
fn shown(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_many_times_better_ours_is() {
        let speed = Case::new("speed".into(), "tokens/s", &[300.0, 100.0, 200.0], &[50.0, 150.0]);
        assert_eq!((speed.ours, speed.peer, speed.ratio), (200.0, 100.0, 2.0));
        let memory = Case::new("memory".into(), MEMORY, &[1.0], &[3.0]);
        assert_eq!(memory.ratio, 3.0);
    }

    #[test]
    fn the_table_has_a_row_a_case() {
        let cases = vec![Case::new("training".into(), "tokens/s", &[1234.4], &[10.25])];
        let (date, machine, peers) = ("2026-01-02".into(), "2 cores".into(), "PEFT 1".into());
        let table = Results { date, machine, peers, cases }.table();
        assert!(table.ends_with("| training | 1234 tokens/s | 10.2 tokens/s | 120.4 |\n"), "{table}");
        assert!(table.starts_with("Measured on 2 cores (2026-01-02), against PEFT 1;"), "{table}");
    }
}
