//! The intrinsic dimension of a data set: the smallest `d` of those tried that is enough.

use super::scores::{Column, Scores, shown};
use super::table::Table;
use super::tables::NOTHING;
use crate::plan::Kind;

/// The key that `d` is written under.
const KEY: &str = "peft.intrinsic_dimension";
/// How much of what training everything reaches is enough (Li et al. 2018).
const ENOUGH: f64 = 0.9;

/// d90 of every structure on every data set; none where no row trains in a subspace.
pub(super) fn table(scores: &Scores, reference: Option<&str>) -> Option<Table> {
    let reference = scores.reference(reference)?;
    let base = scores.rows.iter().find(|row| row.kind == Kind::Base);
    let mut rows = Vec::new();
    for column in scores.main_columns().filter(|column| column.metric.higher_is_better) {
        let Some(full) = scores.mean(reference, column) else { continue };
        let metric = column.metric.key;
        for (structure, mut curve) in curves(scores, column) {
            curve.sort_by(|left, right| left.0.total_cmp(&right.0));
            let least = curve.iter().find(|(_, score)| *score >= ENOUGH * full);
            let (dimension, score) = match (least, curve.last()) {
                (Some((dimension, score)), _) => (dimension.to_string(), shown(metric, *score)),
                (None, Some((largest, score))) => (format!("above {largest}"), shown(metric, *score)),
                (None, None) => continue,
            };
            let untrained = base.and_then(|base| scores.mean(base, column));
            rows.push(vec![
                structure.into(),
                column.head.clone().into(),
                shown(metric, full).into(),
                shown(metric, ENOUGH * full).into(),
                untrained.map_or_else(|| NOTHING.to_owned(), |score| shown(metric, score)).into(),
                dimension.into(),
                score.into(),
            ]);
        }
    }
    (!rows.is_empty()).then(|| Table {
        title: "Intrinsic dimension: d90".to_owned(),
        note: format!(
            "The smallest of the dimensions tried whose mean reaches 90 % of {}; the true one lies between it and the next \
             smaller one. Where answering at random nearly reaches 90 % as well, d90 says little.",
            reference.name
        ),
        head: ["structure", "data", "everything trained", "90 % of it", "base", "d90", "score there"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    })
}

/// Dimensions and mean scores of every group of rows that train in subspaces.
fn curves(scores: &Scores, column: &Column) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut curves: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in &scores.rows {
        let dimension = scores.runs(row, column).results.first().and_then(|result| result.spec.number(KEY));
        let (Some(dimension), Some(score)) = (dimension, scores.mean(row, column)) else { continue };
        match curves.iter_mut().find(|(group, _)| *group == row.group) {
            Some((_, curve)) => curve.push((dimension, score)),
            None => curves.push((row.group.clone(), vec![(dimension, score)])),
        }
    }
    curves
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde_json::{Value, json};
    use tunesmith_train::metrics::MetricValue;

    use super::*;
    use crate::plan::RunSpec;
    use crate::report::scores::Row;
    use crate::result::{Environment, FORMAT, Measured, Outcome, RunResult};
    use crate::runner::RowRuns;

    /// A row with one run for each score.
    fn row(name: &str, group: &str, dimension: Option<u64>, accuracies: &[f64]) -> Row {
        let config = match dimension {
            Some(dimension) => json!({"peft": {"intrinsic_dimension": dimension}}),
            None => json!({}),
        };
        let Value::Object(config) = config else { unreachable!() };
        let result = |(seed, accuracy): (usize, &f64)| RunResult {
            format: FORMAT,
            spec: RunSpec { row: name.to_owned(), seed: seed as u64, config: config.clone(), ..RunSpec::default() },
            environment: Environment::default(),
            ended: String::new(),
            outcome: Outcome::Measured(Box::new(Measured {
                tests: IndexMap::from([("test".to_owned(), IndexMap::from([("accuracy".to_owned(), *accuracy)]))]),
                ..Measured::default()
            })),
        };
        let results = accuracies.iter().enumerate().map(result).collect();
        Row {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: Kind::Train,
            runs: vec![RowRuns { results, ..RowRuns::default() }],
        }
    }

    #[test]
    fn the_smallest_dimension_whose_mean_is_enough_is_found_for_each_structure() {
        let metric: MetricValue = serde_json::from_value("accuracy".into()).unwrap();
        let column = Column { task: "MRPC".to_owned(), test: "test".to_owned(), metric, head: "MRPC".to_owned() };
        let rows = vec![
            row("everything", "everything", None, &[0.82, 0.78]),
            row("SAID, 1000", "SAID", Some(1000), &[0.75]),
            row("SAID, 200", "SAID", Some(200), &[0.74, 0.72]),
            row("SAID, 50", "SAID", Some(50), &[0.75, 0.68]),
            row("ID, 50", "ID", Some(50), &[0.6]),
            row("ID, 200", "ID", Some(200), &[0.7]),
        ];
        let scores = Scores { columns: vec![column], rows, tasks: vec!["MRPC".to_owned()] };
        let table = table(&scores, None).unwrap();
        let cells = |row: usize| table.rows[row].iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>();
        assert_eq!(cells(0), ["SAID", "MRPC", "80.0", "72.0", "–", "200", "73.0"]);
        assert_eq!(cells(1), ["ID", "MRPC", "80.0", "72.0", "–", "above 200", "70.0"]);
    }

    #[test]
    fn studies_without_subspaces_have_no_such_table() {
        let metric: MetricValue = serde_json::from_value("accuracy".into()).unwrap();
        let column = Column { task: String::new(), test: "test".to_owned(), metric, head: String::new() };
        let rows = vec![row("LoRA", "LoRA", None, &[0.8])];
        assert_eq!(table(&Scores { columns: vec![column], rows, tasks: vec![String::new()] }, None), None);
    }
}
