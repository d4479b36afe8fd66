//! The tables of a report.

use tunesmith_train::statistics::Summary;

use super::scores::{Scores, shown, shown_summary};
use super::table::{Cell, Table};
use crate::plan::Kind;
use crate::plot::si;
use crate::published::PublishedTable;
use crate::result::{Measured, Outcome, RunResult};

/// Where nothing was measured.
pub(super) const NOTHING: &str = "–";

/// Rows by data sets: mean ± standard deviation over seeds, the best mean marked.
pub(super) fn main(scores: &Scores) -> Table {
    let mut head = vec!["method".to_owned(), "trained parameters".to_owned()];
    head.extend(scores.columns.iter().map(|column| column.head.clone()));
    let row = |row: &super::scores::Row| {
        let mut cells: Vec<Cell> = vec![row.name.as_str().into(), parameters(row).into()];
        for column in &scores.columns {
            let values = scores.values(row, column);
            let (own, best) = (scores.mean(row, column), scores.best(column));
            let failed = scores.runs(row, column).results.iter().any(|result| result.measured().is_none());
            let text = shown_summary(column.metric.key, &values);
            let text = text.unwrap_or_else(|| if failed { "failed".to_owned() } else { NOTHING.to_owned() });
            cells.push(Cell { text, best: own.is_some() && own == best && scores.rows.len() > 1 });
        }
        cells
    };
    let seeds = scores.rows.iter().flat_map(|row| &row.runs).map(|runs| runs.results.len()).max().unwrap_or(0);
    let arrows: Vec<&str> =
        scores.columns.iter().map(|column| if column.metric.higher_is_better { "higher" } else { "lower" }).collect();
    let better = if arrows.windows(2).all(|pair| pair[0] == pair[1]) {
        arrows.first().copied().unwrap_or("higher")
    } else {
        "as the metric says"
    };
    Table {
        title: "Scores".to_owned(),
        note: format!("Mean ± standard deviation of up to {seeds} runs; {better} is better, the best mean is bold."),
        head,
        rows: scores.rows.iter().map(row).collect(),
    }
}

fn measured(row: &super::scores::Row) -> impl Iterator<Item = &Measured> {
    row.runs.iter().flat_map(|runs| &runs.results).filter_map(RunResult::measured)
}

/// Trained values, and their share of the base's.
fn parameters(row: &super::scores::Row) -> String {
    match measured(row).next() {
        Some(_) if row.kind != Kind::Train => "0".to_owned(),
        Some(run) => {
            let share = 100.0 * run.trainable_parameters as f64 / run.base_parameters.max(1) as f64;
            let digits = if share >= 1.0 { 1 } else { 3 };
            format!("{} ({share:.digits$} %)", si(run.trainable_parameters as f64))
        }
        None => NOTHING.to_owned(),
    }
}

/// What training and prediction cost.
pub(super) fn cost(scores: &Scores) -> Table {
    let head = [
        "method",
        "tokens trained on",
        "seconds of training",
        "tokens/s",
        "peak memory",
        "adapter file",
        "tokens a prediction",
        "ms a prediction",
    ];
    let mean = |row: &super::scores::Row, value: &dyn Fn(&Measured) -> Option<f64>| {
        let values: Vec<f64> = measured(row).filter_map(value).filter(|value| *value > 0.0).collect();
        Summary::of(&values).map(|summary| summary.mean)
    };
    let row = |row: &super::scores::Row| {
        let text = |value: Option<f64>, write: &dyn Fn(f64) -> String| value.map_or_else(|| NOTHING.to_owned(), write);
        let one = |value: f64| format!("{value:.1}");
        let speed = |run: &Measured| (run.train_seconds > 0.0).then(|| run.train_tokens as f64 / run.train_seconds);
        vec![
            row.name.as_str().into(),
            text(mean(row, &|run| Some(run.train_tokens as f64)), &si).into(),
            text(mean(row, &|run| Some(run.train_seconds)), &one).into(),
            text(mean(row, &speed), &|value| format!("{value:.0}")).into(),
            text(mean(row, &|run| run.peak_memory.map(|bytes| bytes as f64)), &bytes).into(),
            text(mean(row, &|run| Some(run.file_size as f64)), &bytes).into(),
            text(mean(row, &|run| Some(run.prediction.tokens)), &one).into(),
            text(mean(row, &|run| Some(1e3 * run.prediction.seconds)), &one).into(),
        ]
    };
    let mut note = "Means over data sets and seeds. Peak memory is that of the process while training, the base included; a \
                    prediction counts what the model reads, demonstrations and virtual tokens included, without a cache."
        .to_owned();
    if scores.rows.iter().flat_map(measured).any(|run| run.trained_beside > 0) {
        note += " Runs that were trained in one pass share its seconds evenly; each is given the pass's peak memory.";
    }
    Table {
        title: "Cost".to_owned(),
        note,
        head: head.map(str::to_owned).to_vec(),
        rows: scores.rows.iter().map(row).collect(),
    }
}

fn bytes(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} GB", value / 1e9),
        value if value >= 1e6 => format!("{:.1} MB", value / 1e6),
        value => format!("{:.1} kB", value / 1e3),
    }
}

/// Everything that was measured on a column's test.
pub(super) fn details(scores: &Scores) -> Vec<Table> {
    let mut tables = Vec::new();
    for column in &scores.columns {
        let tests = |row| {
            let results = &scores.runs(row, column).results;
            results.iter().filter_map(RunResult::measured).filter_map(|run| run.tests.get(&column.test))
        };
        let mut metrics: Vec<String> = Vec::new();
        for key in scores.rows.iter().flat_map(tests).flat_map(|test| test.keys()) {
            if !metrics.contains(key) {
                metrics.push(key.clone());
            }
        }
        if metrics.len() < 2 {
            continue;
        }
        let row = |row| {
            let mut cells: Vec<Cell> = vec![Cell::from(scores_name(row))];
            for metric in &metrics {
                let values: Vec<f64> = tests(row).filter_map(|test| test.get(metric)).copied().collect();
                cells.push(shown_summary(metric, &values).unwrap_or_else(|| NOTHING.to_owned()).into());
            }
            cells
        };
        let mut head = vec!["method".to_owned()];
        head.extend(metrics.iter().cloned());
        tables.push(Table {
            title: format!("All metrics: {}", column.head),
            note: String::new(),
            head,
            rows: scores.rows.iter().map(row).collect(),
        });
    }
    tables
}

fn scores_name(row: &super::scores::Row) -> &str {
    &row.name
}

/// Every row against the row of reference.
pub(super) fn differences(scores: &Scores, reference: Option<&str>) -> Option<Table> {
    let reference = scores.reference(reference)?;
    let found = scores.differences(reference);
    let metrics: Vec<&str> = scores.main_columns().map(|column| column.metric.key).collect();
    let metric = *metrics.first()?;
    if found.is_empty() || metrics.iter().any(|other| *other != metric) {
        return None;
    }
    let p = |value: Option<f64>| value.map_or_else(|| NOTHING.to_owned(), |value| format!("{value:.3}"));
    let row = |of: &super::scores::Difference| {
        let sign = if of.mean > 0.0 { "+" } else { "" };
        vec![
            of.row.as_str().into(),
            format!("{sign}{}", shown(metric, of.mean)).into(),
            format!("{} to {}", shown(metric, of.interval.low), shown(metric, of.interval.high)).into(),
            of.pairs.to_string().into(),
            p(of.t_test.map(|test| test.p_value)).into(),
            p(of.wilcoxon.map(|test| test.p_value)).into(),
        ]
    };
    Some(Table {
        title: format!("Differences to {}", reference.name),
        note: format!(
            "{metric}, paired by data set and seed; the interval holds the mean of the pairs with 95 % (bootstrap). p values \
             are two-sided and not corrected for the number of rows."
        ),
        head: ["method", "mean difference", "95 % interval", "pairs", "p (t test)", "p (Wilcoxon)"]
            .map(str::to_owned)
            .to_vec(),
        rows: found.iter().map(row).collect(),
    })
}

/// The learning rates that were tried.
pub(super) fn rates(scores: &Scores) -> Option<Table> {
    let mut rows = Vec::new();
    for row in &scores.rows {
        for (task, runs) in scores.tasks.iter().zip(&row.runs).filter(|(_, runs)| !runs.trials.is_empty()) {
            let metric =
                scores.columns.iter().find(|column| column.task == *task).map_or("loss", |column| column.metric.key);
            let trial = |(rate, score): &(f64, Option<f64>)| {
                format!("{rate:e}: {}", score.map_or_else(|| "failed".to_owned(), |score| shown(metric, score)))
            };
            let chosen = runs.learning_rate.map_or_else(|| NOTHING.to_owned(), |rate| format!("{rate:e}"));
            let end = if runs.at_an_end { "yes" } else { "" };
            rows.push(vec![
                row.name.as_str().into(),
                task.as_str().into(),
                runs.trials.iter().map(trial).collect::<Vec<_>>().join("; ").into(),
                Cell { text: chosen, best: true },
                end.into(),
            ]);
        }
    }
    (!rows.is_empty()).then(|| Table {
        title: "Learning rates".to_owned(),
        note: "Tried with the first seed and judged on the held-out set, never on the test. Where the best one lies at an \
               end of what was tried, a better one may lie beyond."
            .to_owned(),
        head: ["method", "data", "tried: score", "chosen", "at an end"].map(str::to_owned).to_vec(),
        rows,
    })
}

/// How the order of demonstrations matters.
pub(super) fn orders(scores: &Scores) -> Option<Table> {
    let column = scores.columns.first()?;
    let metric = column.metric.key;
    let mut rows = Vec::new();
    for row in scores.rows.iter().filter(|row| row.kind == Kind::Icl) {
        let results = &scores.runs(row, column).results;
        let runs: Vec<Vec<f64>> = results
            .iter()
            .filter_map(RunResult::measured)
            .map(|run| run.orders.iter().filter_map(|order| order.get(metric)).copied().collect())
            .filter(|values: &Vec<f64>| values.len() > 1)
            .collect();
        if runs.is_empty() {
            continue;
        }
        let all: Vec<f64> = runs.concat();
        let within: Vec<f64> = runs.iter().filter_map(|values| Summary::of(values)?.standard_deviation).collect();
        let means: Vec<f64> = runs.iter().filter_map(|values| Some(Summary::of(values)?.mean)).collect();
        let deviation = |value: Option<f64>| value.map_or_else(|| NOTHING.to_owned(), |value| shown(metric, value));
        let Some(summary) = Summary::of(&all) else { continue };
        rows.push(vec![
            row.name.as_str().into(),
            shown(metric, summary.mean).into(),
            shown(metric, summary.least).into(),
            shown(metric, summary.most).into(),
            deviation(Summary::of(&within).map(|of| of.mean)).into(),
            deviation(Summary::of(&means).and_then(|of| of.standard_deviation)).into(),
        ]);
    }
    (!rows.is_empty()).then(|| Table {
        title: "Orders and samples of demonstrations".to_owned(),
        note: format!("{metric} over every order of every sample; deviations apart."),
        head: ["method", "mean", "worst", "best", "deviation over orders", "deviation over samples"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    })
}

/// Runs that have no score, and why.
pub(super) fn failures(scores: &Scores) -> Option<Table> {
    let mut rows = Vec::new();
    for (row, runs) in scores.rows.iter().flat_map(|row| row.runs.iter().map(move |runs| (row, runs))) {
        for result in &runs.results {
            if let Outcome::Failed { reason } = &result.outcome {
                let (id, reason) = (result.spec.id.as_str(), reason.as_str());
                rows.push(vec![row.name.as_str().into(), id.into(), reason.into()]);
            }
        }
        let ended = |id: &str| runs.results.iter().any(|result| result.spec.id == id);
        for missing in runs.missing.iter().filter(|missing| !ended(&missing.id)) {
            rows.push(vec![row.name.as_str().into(), missing.id.as_str().into(), "not run yet".into()]);
        }
    }
    (!rows.is_empty()).then(|| Table {
        title: "Failed and missing runs".to_owned(),
        note: String::new(),
        head: ["method", "run", "reason"].map(str::to_owned).to_vec(),
        rows,
    })
}

/// A table of a paper.
pub(super) fn published(table: &PublishedTable) -> Table {
    let row = |row: &Vec<String>| row.iter().map(|text| Cell::from(text.as_str())).collect();
    Table {
        title: table.title.clone(),
        note: format!("{}. {}", table.source, table.note),
        head: table.columns.clone(),
        rows: table.rows.iter().map(row).collect(),
    }
}

/// One line a run that counts: all numbers, unrounded.
pub(super) fn csv(scores: &Scores) -> String {
    let mut metrics: Vec<(String, String)> = Vec::new();
    let results = || scores.rows.iter().flat_map(|row| &row.runs).flat_map(|runs| &runs.results);
    for (test, values) in results().filter_map(RunResult::measured).flat_map(|run| &run.tests) {
        for metric in values.keys() {
            let pair = (test.clone(), metric.clone());
            if !metrics.contains(&pair) {
                metrics.push(pair);
            }
        }
    }
    let quoted = |text: &str| {
        if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
    };
    let mut head: Vec<String> = [
        "task",
        "method",
        "group",
        "seed",
        "learning_rate",
        "trainable_parameters",
        "base_parameters",
        "file_size",
        "steps",
        "train_tokens",
        "trained_beside",
        "train_seconds",
        "peak_memory",
        "prediction_tokens",
        "prediction_seconds",
        "failed",
    ]
    .map(str::to_owned)
    .to_vec();
    head.extend(metrics.iter().map(|(test, metric)| quoted(&format!("{test}.{metric}"))));
    let mut text = head.join(",") + "\n";
    for result in results() {
        let spec = &result.spec;
        let none = Measured::default();
        let (run, failed) = match &result.outcome {
            Outcome::Measured(run) => (run.as_ref(), String::new()),
            Outcome::Failed { reason } => (&none, reason.clone()),
        };
        let optional = |value: Option<String>| value.unwrap_or_default();
        let mut cells = vec![
            quoted(&spec.task),
            quoted(&spec.row),
            quoted(&spec.group),
            spec.seed.to_string(),
            optional(spec.learning_rate.map(|rate| rate.to_string())),
            run.trainable_parameters.to_string(),
            run.base_parameters.to_string(),
            run.file_size.to_string(),
            run.steps.to_string(),
            run.train_tokens.to_string(),
            run.trained_beside.to_string(),
            run.train_seconds.to_string(),
            optional(run.peak_memory.map(|bytes| bytes.to_string())),
            run.prediction.tokens.to_string(),
            run.prediction.seconds.to_string(),
            quoted(&failed),
        ];
        let value = |(test, metric): &(String, String)| run.tests.get(test).and_then(|values| values.get(metric));
        cells.extend(metrics.iter().map(|pair| optional(value(pair).map(f64::to_string))));
        text += &(cells.join(",") + "\n");
    }
    text
}
