//! The scores of a study: rows by data sets, over seeds.

use std::path::Path;

use tunesmith_tensor::Seed;
use tunesmith_train::metrics::MetricValue;
use tunesmith_train::statistics::{
    Comparison, Interval, Summary, bootstrap_interval, paired_t_test, wilcoxon_signed_rank,
};

use crate::StudyError;
use crate::plan::{Kind, Plan};
use crate::result::RunResult;
use crate::runner::RowRuns;

/// A column of scores: a data set's test.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) task: String,
    pub(super) test: String,
    pub(super) metric: MetricValue,
    /// How it is headed.
    pub(super) head: String,
}

/// A row with its runs on every data set.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) kind: Kind,
    /// In the plan's order of tasks.
    pub(super) runs: Vec<RowRuns>,
}

/// All scores.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
    /// The tasks' names, in the order of a row's runs.
    pub(super) tasks: Vec<String>,
}

/// A row's difference to the row of reference.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    pub(super) row: String,
    pub(super) pairs: usize,
    pub(super) mean: f64,
    pub(super) interval: Interval,
    pub(super) t_test: Option<Comparison>,
    pub(super) wilcoxon: Option<Comparison>,
}

impl Scores {
    /// What a study's folder holds.
    pub(super) fn read(study: &Path, plan: &Plan) -> Result<Self, StudyError> {
        let mut rows = Vec::new();
        for row in &plan.rows {
            let runs = plan.tasks.iter().map(|task| RowRuns::read(study, plan, task, row)).collect::<Result<_, _>>()?;
            rows.push(Row { name: row.name.clone(), group: row.group.clone(), kind: row.kind, runs });
        }
        let mut columns: Vec<Column> = Vec::new();
        for (place, task) in plan.tasks.iter().enumerate() {
            let mut tests: Vec<String> = task.tests.keys().cloned().collect();
            for run in rows.iter().flat_map(|row| &row.runs[place].results).filter_map(RunResult::measured) {
                tests.extend(run.tests.keys().filter(|test| !tests.contains(test)).cloned().collect::<Vec<_>>());
            }
            for test in &tests {
                let parts = [task.name.as_str(), if tests.len() > 1 { test } else { "" }, task.metric.key];
                let head = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
                columns.push(Column { task: task.name.clone(), test: test.clone(), metric: task.metric, head });
            }
        }
        Ok(Self { columns, rows, tasks: plan.tasks.iter().map(|task| task.name.clone()).collect() })
    }

    /// A row's runs on a column's data set.
    pub(super) fn runs<'a>(&self, row: &'a Row, column: &Column) -> &'a RowRuns {
        let place = self.tasks.iter().position(|task| *task == column.task).unwrap_or(0);
        &row.runs[place]
    }

    /// A row's scores in a column with their seeds.
    pub(super) fn seeded(&self, row: &Row, column: &Column) -> Vec<(u64, f64)> {
        let score = |result: &RunResult| {
            let value = *result.measured()?.tests.get(&column.test)?.get(column.metric.key)?;
            value.is_finite().then_some((result.spec.seed, value))
        };
        self.runs(row, column).results.iter().filter_map(score).collect()
    }

    /// The same without seeds.
    pub(super) fn values(&self, row: &Row, column: &Column) -> Vec<f64> {
        self.seeded(row, column).into_iter().map(|(_, value)| value).collect()
    }

    /// The mean of a row's scores in a column.
    pub(super) fn mean(&self, row: &Row, column: &Column) -> Option<f64> {
        Summary::of(&self.values(row, column)).map(|summary| summary.mean)
    }

    /// The largest number of rows whose mean is the best of a column: more than one where they are equal.
    pub(super) fn best(&self, column: &Column) -> Option<f64> {
        let means = self.rows.iter().filter_map(|row| self.mean(row, column));
        let better = |best: f64, mean: f64| if column.metric.improves(mean, Some(best)) { mean } else { best };
        means.reduce(better)
    }

    /// The first columns of each data set: those that rows are judged by.
    pub(super) fn main_columns(&self) -> impl Iterator<Item = &Column> {
        let is_first =
            |(place, column): &(usize, &Column)| self.columns[..*place].iter().all(|other| other.task != column.task);
        self.columns.iter().enumerate().filter(is_first).map(|(_, column)| column)
    }

    /// The row that others are compared with: the named one, or the first that is trained.
    pub(super) fn reference(&self, name: Option<&str>) -> Option<&Row> {
        match name {
            Some(name) => self.rows.iter().find(|row| row.name == name),
            None => self.rows.iter().find(|row| row.kind == Kind::Train),
        }
    }

    /// Every row against the row of reference, paired by data set and seed.
    pub(super) fn differences(&self, reference: &Row) -> Vec<Difference> {
        let mut found = Vec::new();
        for row in self.rows.iter().filter(|row| row.name != reference.name) {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for column in self.main_columns() {
                let other = self.seeded(reference, column);
                for (seed, value) in self.seeded(row, column) {
                    // A row without seeds, such as the base, is paired with each.
                    let alone = row.kind == Kind::Base;
                    for (_, twin) in other.iter().filter(|(of, _)| alone || *of == seed) {
                        left.push(value);
                        right.push(*twin);
                    }
                }
            }
            if left.len() < 2 {
                continue;
            }
            let differences: Vec<f64> = left.iter().zip(&right).map(|(left, right)| left - right).collect();
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            found.push(Difference {
                row: row.name.clone(),
                pairs: left.len(),
                mean: mean(&differences),
                interval: bootstrap_interval(&differences, mean, 0.95, 2000, Seed(0)),
                t_test: paired_t_test(&left, &right).filter(|test| test.p_value.is_finite()),
                wilcoxon: wilcoxon_signed_rank(&left, &right),
            });
        }
        found
    }
}

/// Metrics on a scale from 0 to 1, which papers print in percent.
const SHARES: [&str; 9] = [
    "accuracy",
    "f1",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "overall_f1",
    "overall_accuracy",
    "overall_precision",
    "overall_recall",
];

/// What a metric's values are multiplied by where people read them.
pub(super) fn factor(metric: &str) -> f64 {
    if SHARES.contains(&metric) { 100.0 } else { 1.0 }
}

/// How many decimals people want of a metric.
pub(super) fn decimals(metric: &str) -> usize {
    match metric {
        metric if factor(metric) > 1.0 || metric.starts_with("bleu") || metric.starts_with("rouge") => 1,
        _ => 3,
    }
}

/// A number of a metric, as people read it.
pub(super) fn shown(metric: &str, value: f64) -> String {
    let decimals = decimals(metric);
    format!("{:.decimals$}", factor(metric) * value).replace('-', "−")
}

/// Mean and deviation of a metric's values, as people read them.
pub(super) fn shown_summary(metric: &str, values: &[f64]) -> Option<String> {
    let scaled: Vec<f64> = values.iter().map(|value| factor(metric) * value).collect();
    let summary = Summary::of(&scaled)?;
    let decimals = decimals(metric);
    Some(format!("{summary:.decimals$}").replace('-', "−"))
}

/// The unit of a metric where people read it.
pub(super) fn unit(metric: &str) -> String {
    if factor(metric) > 1.0 { format!("{metric}, %") } else { metric.to_owned() }
}

/// Rounded as people read a metric, for plots.
pub(super) fn scaled(metric: &str, value: f64) -> f64 {
    let digits = 10f64.powi(decimals(metric) as i32 + 3);
    (factor(metric) * value * digits).round() / digits
}
