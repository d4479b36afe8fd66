//! Running a study: what is missing, one run after the other, each kept in a file as soon as it has ended.

use std::collections::BTreeSet;
use std::path::Path;

use crate::StudyError;
use crate::plan::{Kind, Plan, PlannedRow, PlannedTask, RunSpec};
use crate::result::{Environment, FORMAT, Measured, Outcome, RunResult};
use crate::search::{RateSearch, Trial};

/// Who carries runs out.
pub trait Workbench {
    /// Why the runs of such a row could not work; nothing where they can. Called before the first run of a study.
    fn problems(&mut self, spec: &RunSpec) -> Vec<String>;

    /// Carries runs out, in one pass over the base where they can share one, and says what each came to or why it has no
    /// result.
    fn run(&mut self, specs: &[RunSpec]) -> Vec<Result<Measured, RunFailure>>;

    /// What the results say of where they were made.
    fn environment(&self) -> Environment;

    /// The time, in UTC.
    fn now(&self) -> String;

    /// Says how the study goes.
    fn note(&self, text: &str);
}

/// Why a run has no result.
#[derive(Debug)]
pub enum RunFailure {
    /// The same run would fail again: it diverged, or the method cannot be used so. The study goes on.
    Failed(String),
    /// The user wants to stop, or something failed that may not fail again. The study ends here.
    Ended(Box<dyn std::error::Error + Send + Sync>),
}

/// How a study ended.
#[derive(Debug)]
pub enum StudyEnding {
    /// Every run has a result.
    Finished {
        /// Runs that were made now.
        made: usize,
        /// Runs that failed, now or before.
        failed: usize,
    },
    /// A run ended the study.
    Ended(Box<dyn std::error::Error + Send + Sync>),
}

/// The runs of one row on one data set.
#[derive(Clone, Debug, Default)]
pub struct RowRuns {
    /// The learning rate that the search chose; none where there is none to choose, or every candidate failed.
    pub learning_rate: Option<f64>,
    /// The candidates and what they came to on the held-out set.
    pub trials: Vec<Trial>,
    /// Whether the chosen rate lies at an end of the candidates.
    pub at_an_end: bool,
    /// The runs that count, one a seed, in the seeds' order, as far as they have results.
    pub results: Vec<RunResult>,
    /// The runs to make next, together, if some are missing. Who stops between the results of one pass makes it again: what
    /// runs come to must not depend on where a study was stopped.
    pub missing: Vec<RunSpec>,
}

impl RowRuns {
    /// What a folder holds of a row's runs.
    ///
    /// # Errors
    /// [`StudyError::Changed`] where a result was made with other settings; files that cannot be read.
    pub fn read(study: &Path, plan: &Plan, task: &PlannedTask, row: &PlannedRow) -> Result<Self, StudyError> {
        let mut runs = Self::default();
        let search = (!row.learning_rates.is_empty())
            .then(|| RateSearch::new(&row.learning_rates, plan.search_extensions, task.metric.higher_is_better));
        if let (Some(search), Some(first)) = (&search, plan.seeds.first()) {
            loop {
                let rates = search.next(&runs.trials, plan.runs_per_pass);
                if rates.is_empty() {
                    break;
                }
                let specs: Vec<RunSpec> = rates.iter().map(|rate| plan.run(task, row, *first, Some(*rate))).collect();
                let Some(results) = read_all(study, &specs)? else {
                    runs.missing = specs;
                    return Ok(runs);
                };
                runs.trials.extend(rates.into_iter().zip(results.iter().map(RunResult::validation_score)));
            }
            runs.learning_rate = search.best(&runs.trials);
            runs.at_an_end = search.is_at_an_end(&runs.trials);
            if runs.learning_rate.is_none() {
                // Every candidate failed: the results say why.
                for (rate, _) in runs.trials.clone() {
                    runs.results.extend(read_same(study, &plan.run(task, row, *first, Some(rate)))?);
                }
                return Ok(runs);
            }
        }
        // Without training the base has no randomness.
        let seeds = if row.kind == Kind::Base { &plan.seeds[..plan.seeds.len().min(1)] } else { &plan.seeds[..] };
        // The search has made the first one.
        let (searched, left) = seeds.split_at(usize::from(search.is_some()).min(seeds.len()));
        for seeds in searched.chunks(1).chain(left.chunks(plan.runs_per_pass)) {
            let specs: Vec<RunSpec> = seeds.iter().map(|seed| plan.run(task, row, *seed, runs.learning_rate)).collect();
            match read_all(study, &specs)? {
                Some(results) => runs.results.extend(results),
                None => {
                    for spec in &specs {
                        runs.results.extend(read_same(study, spec)?);
                    }
                    runs.missing = specs;
                    break;
                }
            }
        }
        Ok(runs)
    }
}

/// The results of all of these runs; none if one is missing.
fn read_all(study: &Path, specs: &[RunSpec]) -> Result<Option<Vec<RunResult>>, StudyError> {
    specs.iter().map(|spec| read_same(study, spec)).collect()
}

fn read_same(study: &Path, spec: &RunSpec) -> Result<Option<RunResult>, StudyError> {
    let Some(result) = RunResult::read(study, &spec.id)? else { return Ok(None) };
    match spec.difference(&result.spec) {
        // Names of rows may be put otherwise.
        None => Ok(Some(RunResult { spec: spec.clone(), ..result })),
        Some(differences) => Err(StudyError::Changed { path: RunResult::path(study, &spec.id), differences }),
    }
}

/// Runs all that a study's folder lacks. What was finished before is not repeated. `begin` is called once it is sure that
/// the runs can work, before the first one.
///
/// # Errors
/// [`StudyError::Invalid`] before the first run, with all problems of all rows; files that cannot be read or written.
pub fn run_study(
    origin: &str,
    study: &Path,
    plan: &Plan,
    workbench: &mut dyn Workbench,
    begin: &dyn Fn() -> std::io::Result<()>,
) -> Result<StudyEnding, StudyError> {
    let pairs = || plan.tasks.iter().flat_map(|task| plan.rows.iter().map(move |row| (task, row)));
    let (mut problems, mut rows_left) = (BTreeSet::new(), 0);
    let mut listed = Vec::new();
    for (task, row) in pairs() {
        let missing = RowRuns::read(study, plan, task, row)?.missing;
        let Some(first) = missing.first() else { continue };
        rows_left += 1;
        for problem in workbench.problems(first) {
            if problems.insert(problem.clone()) {
                listed.push(format!("{}: {problem}", label(first)));
            }
        }
    }
    if !listed.is_empty() {
        return Err(StudyError::Invalid { origin: origin.to_owned(), problems: listed });
    }
    begin().map_err(StudyError::io("begin the study in", study))?;
    if rows_left > 0 {
        workbench.note(&format!("{rows_left} of {} rows have runs to make", pairs().count()));
    }
    let mut made = 0;
    for (task, row) in pairs() {
        loop {
            let specs = RowRuns::read(study, plan, task, row)?.missing;
            let Some(first) = specs.first() else { break };
            let ids: Vec<&str> = specs.iter().map(|spec| spec.id.as_str()).collect();
            workbench.note(&format!("{}: {}", label(first), ids.join(", ")));
            let ended = workbench.run(&specs);
            for (spec, ended) in specs.into_iter().zip(ended) {
                let outcome = match ended {
                    Ok(measured) => Outcome::Measured(Box::new(measured)),
                    Err(RunFailure::Failed(reason)) => Outcome::Failed { reason },
                    Err(RunFailure::Ended(reason)) => return Ok(StudyEnding::Ended(reason)),
                };
                if let Outcome::Failed { reason } = &outcome {
                    workbench.note(&format!("failed: {reason}"));
                }
                let (environment, ended) = (workbench.environment(), workbench.now());
                RunResult { format: FORMAT, spec, environment, ended, outcome }.write(study)?;
                made += 1;
            }
        }
    }
    let mut failed = 0;
    for (task, row) in pairs() {
        let runs = RowRuns::read(study, plan, task, row)?;
        failed += runs.results.iter().filter(|result| result.measured().is_none()).count();
    }
    Ok(StudyEnding::Finished { made, failed })
}

/// A row on a data set, in words.
fn label(spec: &RunSpec) -> String {
    let names = [spec.task.as_str(), spec.row.as_str()];
    names.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use indexmap::IndexMap;
    use serde_json::{Value, json};

    use super::*;
    use crate::StudyFile;

    /// Carries runs out by a formula, and ends the study where it is told to.
    #[derive(Default)]
    struct Formula {
        runs: Vec<String>,
        /// How many runs each pass had.
        passes: Vec<usize>,
        ends_after: Option<usize>,
        problems: Vec<String>,
    }

    impl Workbench for Formula {
        fn problems(&mut self, _: &RunSpec) -> Vec<String> {
            self.problems.clone()
        }

        fn run(&mut self, specs: &[RunSpec]) -> Vec<Result<Measured, RunFailure>> {
            self.passes.push(specs.len());
            specs.iter().map(|spec| self.run_one(spec)).collect()
        }

        fn environment(&self) -> Environment {
            Environment::default()
        }

        fn now(&self) -> String {
            "2026-01-01T00:00:00Z".to_owned()
        }

        fn note(&self, _: &str) {}
    }

    impl Formula {
        fn run_one(&mut self, spec: &RunSpec) -> Result<Measured, RunFailure> {
            if self.ends_after == Some(self.runs.len()) {
                return Err(RunFailure::Ended("stopped".into()));
            }
            self.runs.push(spec.id.clone());
            let rate = spec.learning_rate.unwrap_or(1e-3);
            if spec.row == "broken" || rate > 0.5 {
                return Err(RunFailure::Failed("diverged".to_owned()));
            }
            let score = 0.9 - 0.1 * (rate / 1e-2).log10().powi(2) + 0.001 * spec.seed as f64;
            let metrics = IndexMap::from([("accuracy".to_owned(), score)]);
            Ok(Measured {
                validation: metrics.clone(),
                tests: IndexMap::from([("test".into(), metrics)]),
                ..Measured::default()
            })
        }
    }

    fn plan() -> Plan {
        let Value::Object(values) = json!({
            "output_dir": "out", "metric": "accuracy", "seeds": [1, 2, 3], "learning_rates": [1e-3, 1e-2, 1e-1],
            "methods": {"LoRA": {}, "broken": {}, "base": {"base": true}},
        }) else {
            panic!()
        };
        Plan::new("study.yaml", &StudyFile::read("study.yaml", &values).unwrap()).unwrap()
    }

    fn files(study: &Path) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(study.join("runs")).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| {
                (
                    path.display().to_string().replace(&study.display().to_string(), ""),
                    std::fs::read_to_string(path).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn rates_are_searched_with_one_seed_and_the_best_runs_with_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut workbench = Formula::default();
        let ending = run_study("s", folder.path(), &plan(), &mut workbench, &|| Ok(())).unwrap();
        assert!(matches!(ending, StudyEnding::Finished { made: 9, failed: 3 }), "{ending:?}");
        let expected = [
            "lora--lr1e-3--seed1",
            "lora--lr1e-2--seed1",
            "lora--lr1e-1--seed1",
            "lora--lr1e-2--seed2",
            "lora--lr1e-2--seed3",
            "broken--lr1e-3--seed1",
            "broken--lr1e-2--seed1",
            "broken--lr1e-1--seed1",
            "base--seed1",
        ];
        assert_eq!(workbench.runs, expected);
        let plan = plan();
        let runs = RowRuns::read(folder.path(), &plan, &plan.tasks[0], &plan.rows[0]).unwrap();
        assert_eq!((runs.learning_rate, runs.at_an_end, runs.results.len()), (Some(1e-2), false, 3));
        // Nothing is left to do.
        let mut again = Formula::default();
        run_study("s", folder.path(), &plan, &mut again, &|| Ok(())).unwrap();
        assert!(again.runs.is_empty());
    }

    #[test]
    fn a_study_that_was_ended_anywhere_goes_on_to_the_same_files() {
        let straight = tempfile::tempdir().unwrap();
        run_study("s", straight.path(), &plan(), &mut Formula::default(), &|| Ok(())).unwrap();
        for ends_after in 0..9 {
            let folder = tempfile::tempdir().unwrap();
            let mut first = Formula { ends_after: Some(ends_after), ..Formula::default() };
            let ending = run_study("s", folder.path(), &plan(), &mut first, &|| Ok(())).unwrap();
            assert!(matches!(ending, StudyEnding::Ended(_)));
            let mut second = Formula::default();
            run_study("s", folder.path(), &plan(), &mut second, &|| Ok(())).unwrap();
            assert_eq!(first.runs.len() + second.runs.len(), 9);
            assert_eq!(files(folder.path()), files(straight.path()));
        }
    }

    #[test]
    fn rates_and_then_seeds_share_passes() {
        let plan = Plan { runs_per_pass: 2, ..plan() };
        let straight = tempfile::tempdir().unwrap();
        let mut workbench = Formula::default();
        run_study("s", straight.path(), &plan, &mut workbench, &|| Ok(())).unwrap();
        // Three rates and two more seeds, three rates that fail, and the base.
        assert_eq!(workbench.passes, [2, 1, 2, 2, 1, 1]);
        let alone = tempfile::tempdir().unwrap();
        run_study("s", alone.path(), &Plan { runs_per_pass: 1, ..plan.clone() }, &mut Formula::default(), &|| Ok(()))
            .unwrap();
        assert_eq!(files(alone.path()), files(straight.path()));
        // Stopped within a pass, the pass is made again as a whole.
        for ends_after in 0..9 {
            let folder = tempfile::tempdir().unwrap();
            let mut first = Formula { ends_after: Some(ends_after), ..Formula::default() };
            let ending = run_study("s", folder.path(), &plan, &mut first, &|| Ok(())).unwrap();
            assert!(matches!(ending, StudyEnding::Ended(_)));
            let mut second = Formula::default();
            run_study("s", folder.path(), &plan, &mut second, &|| Ok(())).unwrap();
            assert!(workbench.passes.ends_with(&second.passes), "{:?}", second.passes);
            assert_eq!(files(folder.path()), files(straight.path()));
        }
    }

    #[test]
    fn a_broken_study_fails_before_its_first_run() {
        let folder = tempfile::tempdir().unwrap();
        let problems = vec!["no such module".to_owned(), "no such file".to_owned()];
        let mut workbench = Formula { problems, ..Formula::default() };
        let text = run_study("study.yaml", folder.path(), &plan(), &mut workbench, &|| Ok(())).unwrap_err().to_string();
        assert_eq!(text, "study.yaml cannot be used:\n  LoRA: no such module\n  LoRA: no such file");
        assert!(workbench.runs.is_empty() && !folder.path().join("runs").exists());
    }

    #[test]
    fn a_result_of_other_settings_is_not_taken_for_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        run_study("s", folder.path(), &plan(), &mut Formula::default(), &|| Ok(())).unwrap();
        let mut changed = plan();
        changed.samples = 9;
        let error =
            run_study("s", folder.path(), &changed, &mut Formula::default(), &|| Ok(())).unwrap_err().to_string();
        assert!(
            error.contains("lora--lr1e-3--seed1.json was made with other settings (samples: 9 now, 4 then)"),
            "{error}"
        );
    }
}
