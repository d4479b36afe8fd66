//! The plots of a report.

use tunesmith_train::statistics::{Summary, quantile};

use super::scores::{Column, Row, Scores, factor, scaled, unit};
use crate::plan::{Kind, slug};
use crate::plot::{Chart, Figure, Heat, Plot, Point, Series, Spacing, Strip, Style, si, smoothed};
use crate::result::RunResult;
use crate::similarity::Similarity;

/// Series in one plot, at most: more cannot be told apart.
const MOST_SERIES: usize = 8;

/// Scores against trained parameters. With several data sets, points under the row of reference, at the quantiles that
/// Houlsby et al. 2019 show (figure 4).
pub(super) fn parameters(scores: &Scores, reference: Option<&str>) -> Option<Plot> {
    let columns: Vec<&Column> = scores.main_columns().collect();
    let metric = columns.first()?.metric.key;
    if columns.iter().any(|column| column.metric.key != metric) {
        return None;
    }
    let relative = (columns.len() > 1).then(|| scores.reference(reference)).flatten();
    let mut series: Vec<Series> = Vec::new();
    for row in scores.rows.iter().filter(|row| row.kind == Kind::Train) {
        let count =
            row.runs.iter().flat_map(|runs| &runs.results).find_map(|run| Some(run.measured()?.trainable_parameters));
        let Some(count) = count.filter(|count| *count > 0) else { continue };
        let mut values = Vec::new();
        for column in &columns {
            let zero = relative.map_or(Some(0.0), |row| scores.mean(row, column));
            values.extend(
                zero.iter().flat_map(|zero| scores.values(row, column).into_iter().map(move |value| value - zero)),
            );
        }
        if values.is_empty() {
            continue;
        }
        let at = |q: f64| scaled(metric, quantile(&values, q));
        let (low, middle, high) = (at(0.2), at(0.5), at(0.8));
        let title = format!("{}: {middle} ({low} to {high}), {} parameters", row.name, si(count as f64));
        let point = Point { x: count as f64, y: middle, span: (values.len() > 1).then_some((low, high)), title };
        match series.iter_mut().find(|series| series.name == row.group) {
            Some(known) => known.points.push(point),
            None => series.push(Series { name: row.group.clone(), points: vec![point], style: Style::Band }),
        }
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|left, right| left.x.total_cmp(&right.x)));
    let mut counts: Vec<f64> = series.iter().flat_map(|series| &series.points).map(|point| point.x).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    if counts.len() < 2 {
        return None;
    }
    let of_what = match relative {
        Some(row) => format!("points above {}", row.name),
        None => unit(metric),
    };
    let under = relative.map_or("seeds", |_| "data sets and seeds");
    Some(Plot {
        name: "parameters".to_owned(),
        caption: format!(
            "{metric} against trained parameters: the median over {under}, and the 20th to the 80th percentile."
        ),
        figure: Figure::Chart(Chart {
            title: format!("{metric} against trained parameters"),
            x: "trained parameters".to_owned(),
            y: of_what,
            x_spacing: Spacing::Log,
            series,
        }),
    })
}

/// Scores against a number of the runs' configuration, a plot for each column.
pub(super) fn over(scores: &Scores, key: &str) -> Vec<Plot> {
    let short = key.rsplit('.').next().unwrap_or(key);
    let mut plots = Vec::new();
    for column in &scores.columns {
        let metric = column.metric.key;
        let mut series: Vec<Series> = Vec::new();
        for row in &scores.rows {
            let number = scores.runs(row, column).results.first().and_then(|result| result.spec.number(key));
            let values: Vec<f64> = scores.values(row, column).into_iter().map(|value| scaled(metric, value)).collect();
            let (Some(x), Some(of)) = (number, Summary::of(&values)) else { continue };
            let span = of.standard_deviation.map(|deviation| (of.mean - deviation, of.mean + deviation));
            let point = Point { x, y: of.mean, span, title: format!("{}: {of:.2}", row.name) };
            match series.iter_mut().find(|series| series.name == row.group) {
                Some(known) => known.points.push(point),
                None => series.push(Series { name: row.group.clone(), points: vec![point], style: Style::Bars }),
            }
        }
        series.iter_mut().for_each(|series| series.points.sort_by(|left, right| left.x.total_cmp(&right.x)));
        series.retain(|series| series.points.len() > 1);
        series.truncate(MOST_SERIES);
        let numbers = || series.iter().flat_map(|series| &series.points).map(|point| point.x);
        let (low, high) = numbers().fold((f64::INFINITY, 0.0), |(low, high), x| (x.min(low), x.max(high)));
        if series.is_empty() || high <= low {
            continue;
        }
        plots.push(Plot {
            name: slug(&format!("{short} {} {}", column.task, column.test)),
            caption: format!("{}: mean and standard deviation over seeds, by {short}.", column.head),
            figure: Figure::Chart(Chart {
                title: format!("{} by {short}", column.head),
                x: short.to_owned(),
                y: unit(metric),
                x_spacing: if low > 0.0 && high / low >= 8.0 { Spacing::Log } else { Spacing::Even },
                series,
            }),
        });
    }
    plots
}

/// Every run of every row, a plot for each column.
pub(super) fn strips(scores: &Scores) -> Vec<Plot> {
    let plot = |column: &Column| {
        let metric = column.metric.key;
        let rows: Vec<(String, Vec<f64>)> = scores
            .rows
            .iter()
            .map(|row| {
                (row.name.clone(), scores.values(row, column).iter().map(|value| scaled(metric, *value)).collect())
            })
            .filter(|(_, values): &(String, Vec<f64>)| !values.is_empty())
            .collect();
        (rows.len() > 1).then(|| Plot {
            name: slug(&format!("runs {} {}", column.task, column.test)),
            caption: format!("{}: a point for each seed, a stroke at the mean.", column.head),
            figure: Figure::Strip(Strip { title: format!("runs, {}", column.head), x: unit(metric), rows }),
        })
    };
    scores.columns.iter().filter_map(plot).collect()
}

/// Training losses, and scores of the held-out set where there are several of a run, of the first seed of every row.
pub(super) fn curves(scores: &Scores) -> Vec<Plot> {
    let mut plots = Vec::new();
    for (place, task) in scores.tasks.iter().enumerate() {
        let first = |row: &Row| row.runs[place].results.first().cloned();
        let named = |name: &str| if task.is_empty() { name.to_owned() } else { format!("{name}, {task}") };
        let metric =
            scores.columns.iter().find(|column| column.task == *task).map_or("loss", |column| column.metric.key);
        let losses = |result: &RunResult| -> Vec<(f64, f64)> {
            let run = result.measured();
            let train = run.map(|run| run.curve.train.clone()).unwrap_or_default();
            smoothed(&train, train.len() / 20)
        };
        let held_out = |result: &RunResult| -> Vec<(f64, f64)> {
            let points = result.measured().map(|run| run.curve.evaluations.clone()).unwrap_or_default();
            let value = |point: &crate::result::CurvePoint| {
                Some((point.tokens as f64, factor(metric) * point.metrics.get(metric)?))
            };
            points.iter().filter_map(value).collect()
        };
        type Points<'a> = &'a dyn Fn(&RunResult) -> Vec<(f64, f64)>;
        let kinds: [(&str, String, Points<'_>); 2] =
            [("training loss", "loss".to_owned(), &losses), ("held-out set", unit(metric), &held_out)];
        for (name, y, points) in kinds {
            let series = scores.rows.iter().filter_map(|row| {
                let points = points(&first(row)?);
                (points.len() > 1).then(|| Series::new(&row.name, Style::Line, points))
            });
            let series: Vec<Series> = series.take(MOST_SERIES).collect();
            if series.is_empty() {
                continue;
            }
            plots.push(Plot {
                name: slug(&named(name)),
                caption: format!("{}: the first seed of the first {MOST_SERIES} rows at most.", named(name)),
                figure: Figure::Chart(Chart {
                    title: named(name),
                    x: "tokens trained on".to_owned(),
                    y,
                    x_spacing: Spacing::Even,
                    series,
                }),
            });
        }
    }
    plots
}

/// Subspaces that two runs' adapters share.
pub(super) fn heat_maps(similarities: &[Similarity]) -> Vec<Plot> {
    let plot = |(number, found): (usize, &Similarity)| Plot {
        name: format!("similarity-{}", number + 1),
        caption: format!(
            "φ(A, A′, i, j) at {}: how much of the first i directions of {} lies in the first j of {}.",
            found.module, found.left, found.right
        ),
        figure: Figure::Heat(Heat {
            title: found.module.clone(),
            x: format!("j: {}", found.right),
            y: format!("i: {}", found.left),
            values: found.values.clone(),
        }),
    };
    similarities.iter().enumerate().map(plot).collect()
}
