//! Reports: one page, Markdown, CSV, JSON and plots, made of a study's result files alone. The same files give the same
//! bytes.

mod dimensions;
mod markdown;
mod page;
mod plots;
mod scores;
mod table;
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::StudyError;
use crate::file::StudyFile;
use crate::plan::Plan;
use crate::plot::{Plot, Theme, png};
use crate::published;
use crate::result::RunResult;
use crate::similarity::Similarity;
use scores::Scores;
use table::Table;

/// A report, worked out.
pub struct Report {
    title: String,
    question: String,
    made_by: String,
    main: Table,
    plots: Vec<Plot>,
    /// What else the scores tell, each table under a title of its own.
    more: Vec<Table>,
    published: Vec<Table>,
    cost: Table,
    curves: Vec<Plot>,
    heat_maps: Vec<Plot>,
    samples: Vec<SampleRow>,
    details: Vec<Table>,
    rates: Option<Table>,
    failures: Option<Table>,
    how_to_repeat: String,
    configuration: String,
    csv: String,
    json: Value,
}

/// What every row makes of one example.
struct SampleRow {
    task: String,
    input: String,
    expected: String,
    outputs: Vec<(String, String)>,
}

/// The study's file within its folder.
pub const STUDY_FILE: &str = "study.yaml";
/// The report's folder within the study's.
pub const REPORT_FOLDER: &str = "report";

impl Report {
    /// Makes the report of the study in a folder; runs that are missing are named in it.
    ///
    /// # Errors
    /// [`StudyError::NoStudy`]; what the study's files run into.
    pub fn of(study: &Path) -> Result<Self, StudyError> {
        let path = study.join(STUDY_FILE);
        if !path.is_file() {
            return Err(StudyError::NoStudy { path: study.to_path_buf(), file: STUDY_FILE });
        }
        let configuration = fs::read_to_string(&path).map_err(StudyError::io("read", &path))?;
        let values: serde_json::Map<String, Value> = serde_saphyr::from_str(&configuration)
            .map_err(|error| StudyError::Damaged { path: path.clone(), reason: error.to_string() })?;
        let origin = path.display().to_string();
        let file = StudyFile::read(&origin, &values)?;
        let plan = Plan::new(&origin, &file)?;
        let scores = Scores::read(study, &plan)?;
        let similarities = Similarity::read(study)?;
        Ok(Self::new(&file, &scores, &similarities, configuration))
    }

    fn new(file: &StudyFile, scores: &Scores, similarities: &[Similarity], configuration: String) -> Self {
        let reference = file.reference.as_deref();
        let keys = if file.plot_over.is_empty() { file.vary.keys().cloned().collect() } else { file.plot_over.clone() };
        let mut all = Vec::new();
        all.extend(plots::parameters(scores, reference));
        all.extend(keys.iter().flat_map(|key| plots::over(scores, key)));
        all.extend(plots::strips(scores));
        let more =
            [tables::orders(scores), dimensions::table(scores, reference), tables::differences(scores, reference)];
        let quoted = file.published.iter().filter_map(|name| published::find(name));
        Self {
            title: if file.title.is_empty() { "A study".to_owned() } else { file.title.clone() },
            question: file.question.clone(),
            made_by: made_by(scores),
            main: tables::main(scores),
            plots: all,
            more: more.into_iter().flatten().collect(),
            published: quoted.map(tables::published).collect(),
            cost: tables::cost(scores),
            curves: plots::curves(scores),
            heat_maps: plots::heat_maps(similarities),
            samples: samples(scores),
            details: tables::details(scores),
            rates: tables::rates(scores),
            failures: tables::failures(scores),
            how_to_repeat:
                "Save the configuration below as study.yaml and run `tunesmith compare study.yaml`, `sweep` or \
                            `icl`; data_dir says where the data lies. Runs that have results are not repeated."
                    .to_owned(),
            configuration,
            csv: tables::csv(scores),
            json: as_json(file, scores, similarities),
        }
    }

    /// The main table as Markdown.
    pub fn main_table(&self) -> String {
        self.main.markdown()
    }

    /// The report's files: names and contents.
    ///
    /// # Errors
    /// [`StudyError::Picture`].
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>, StudyError> {
        let mut files = vec![
            ("index.html".to_owned(), page::html(self).into_bytes()),
            ("report.md".to_owned(), markdown::markdown(self).into_bytes()),
            ("runs.csv".to_owned(), self.csv.clone().into_bytes()),
            ("report.json".to_owned(), format!("{:#}\n", self.json).into_bytes()),
        ];
        for plot in self.plots.iter().chain(&self.curves).chain(&self.heat_maps) {
            let svg = plot.svg(Theme::Paper);
            files.push((format!("{}.png", plot.name), png(&plot.name, &svg)?));
            files.push((format!("{}.svg", plot.name), (svg + "\n").into_bytes()));
        }
        Ok(files)
    }

    /// Writes the report's files into a folder, and returns the page.
    ///
    /// # Errors
    /// [`StudyError::Io`], [`StudyError::Picture`].
    pub fn write(&self, folder: &Path) -> Result<PathBuf, StudyError> {
        fs::create_dir_all(folder).map_err(StudyError::io("make", folder))?;
        for (name, contents) in self.files()? {
            let path = folder.join(name);
            fs::write(&path, contents).map_err(StudyError::io("write", &path))?;
        }
        Ok(folder.join("index.html"))
    }
}

/// By what, where and when the runs were made.
fn made_by(scores: &Scores) -> String {
    let results = || scores.rows.iter().flat_map(|row| &row.runs).flat_map(|runs| &runs.results);
    let places: BTreeSet<String> = results()
        .map(|result| {
            let of = &result.environment;
            format!(
                "tunesmith {} ({}) on {} threads of {}, {}",
                of.version, of.commit, of.threads, of.processor, of.platform
            )
        })
        .collect();
    let dates: BTreeSet<&str> = results().filter_map(|result| result.ended.split('T').next()).collect();
    let span = match (dates.first(), dates.last()) {
        (Some(first), Some(last)) if first == last => format!(", {first}"),
        (Some(first), Some(last)) => format!(", {first} to {last}"),
        _ => String::new(),
    };
    let places = places.into_iter().collect::<Vec<_>>().join("; ");
    format!("{} runs with {places}{span}.", results().count())
}

/// Outputs of the first seed of every row, by example.
fn samples(scores: &Scores) -> Vec<SampleRow> {
    let mut rows: Vec<SampleRow> = Vec::new();
    for (place, task) in scores.tasks.iter().enumerate() {
        let begin = rows.len();
        for row in &scores.rows {
            let Some(run) = row.runs[place].results.first().and_then(RunResult::measured) else { continue };
            // In-context prompts hold demonstrations, too: examples are told apart by their place.
            for (number, sample) in run.samples.iter().enumerate() {
                if rows.len() <= begin + number {
                    rows.push(SampleRow {
                        task: task.clone(),
                        input: sample.input.clone(),
                        expected: sample.expected.clone(),
                        outputs: Vec::new(),
                    });
                }
                rows[begin + number].outputs.push((row.name.clone(), sample.output.clone()));
            }
        }
    }
    rows
}

fn as_json(file: &StudyFile, scores: &Scores, similarities: &[Similarity]) -> Value {
    let row = |row: &scores::Row| {
        let cell = |column: &scores::Column| {
            let runs = scores.runs(row, column);
            let results: Vec<Value> =
                scores.seeded(row, column).iter().map(|(seed, score)| json!({"seed": seed, "score": score})).collect();
            json!({
                "task": column.task, "test": column.test, "metric": column.metric.key,
                "learning_rate": runs.learning_rate, "runs": results,
            })
        };
        json!({"method": row.name, "group": row.group, "kind": row.kind, "scores": scores.columns.iter().map(cell).collect::<Vec<_>>()})
    };
    json!({
        "title": file.title, "study": file, "rows": scores.rows.iter().map(row).collect::<Vec<_>>(), "similarities": similarities,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures in pixels are left out: how they are drawn may depend on the processor.
    #[test]
    fn committed_reports_are_what_their_results_give_byte_for_byte() {
        let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/studies");
        let mut compared = 0;
        for entry in fs::read_dir(&studies).unwrap() {
            let study = entry.unwrap().path();
            let files =
                Report::of(&study).unwrap_or_else(|error| panic!("{}: {error}", study.display())).files().unwrap();
            for (name, contents) in files.iter().filter(|(name, _)| !name.ends_with(".png")) {
                let path = study.join(REPORT_FOLDER).join(name);
                assert!(fs::read(&path).is_ok_and(|known| known == *contents), "{} differs", path.display());
                compared += 1;
            }
        }
        assert!(compared > 0, "{} holds no study", studies.display());
    }
}
