//! `tunesmith study`: the studies that come with the program; and running a study's file, which `compare`, `sweep` and
//! `icl` share.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use tunesmith_study::{
    Plan, REPORT_FOLDER, Report, RowRuns, RunResult, STUDIES, STUDY_FILE, Similarity, StudyEnding, StudyFile, run_study,
};
use tunesmith_train::nearest;

use crate::config::Written;
use crate::failure::Misuse;
use crate::study_args::{StudyArgs, StudyOptions};
use crate::subspaces;
use crate::terminal;
use crate::workbench::Bench;

/// The name that lists all studies.
const LIST: &str = "list";

pub(crate) fn run(args: &StudyArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if args.name == LIST {
        let lines: String = STUDIES.iter().map(|study| format!("{:<20} {}\n", study.name, study.question())).collect();
        return out.write_all(lines.as_bytes()).context("cannot write to standard output");
    }
    let Some(study) = STUDIES.iter().find(|study| study.name == args.name) else {
        let near = nearest(&args.name, STUDIES.iter().map(|study| study.name));
        let hint = near
            .map_or_else(|| "`tunesmith study list` names all".to_owned(), |near| format!("did you mean '{near}'?"));
        return Err(Misuse(format!("there is no study '{}'; {hint}", args.name)).into());
    };
    if args.print {
        return out.write_all(study.text.as_bytes()).context("cannot write to standard output");
    }
    drop(out);
    let written = Written::parse(&format!("the study {}", study.name), study.text, &args.options.overrides)?;
    let (origin, file) = settle(written, &args.options)?;
    run_file(&origin, &file, &args.options)
}

/// Reads a study's file, with what the command line puts over it.
pub(crate) fn read_study(path: &Path, options: &StudyOptions) -> anyhow::Result<(String, StudyFile)> {
    settle(Written::read(path, &options.overrides)?, options)
}

/// What was written as a study.
fn settle(written: Written, options: &StudyOptions) -> anyhow::Result<(String, StudyFile)> {
    let (origin, values) = written.into_values();
    let file = StudyFile::read(&origin, &values)?;
    Ok((origin, if options.smoke { file.smoke() } else { file }))
}

/// Makes the runs that a study lacks, and its report.
pub(crate) fn run_file(origin: &str, file: &StudyFile, options: &StudyOptions) -> anyhow::Result<()> {
    let plan = Plan::new(origin, file)?;
    let study = &file.output_dir;
    if options.retry_failed {
        forget_failures(study, &plan)?;
    }
    let kept = file.similarities.iter().flat_map(|request| [&request.left.0, &request.right.0]).cloned();
    let mut bench = Bench::new(study, kept.collect())?;
    let (made, failed) = match run_study(origin, study, &plan, &mut bench, &|| write_study(file))? {
        StudyEnding::Finished { made, failed } => (made, failed),
        StudyEnding::Ended(reason) => return Err(anyhow::Error::from_boxed(reason)),
    };
    if !file.similarities.is_empty() && (made > 0 || Similarity::read(study)?.is_empty()) {
        Similarity::write(study, &subspaces::compare(study, &plan, file, &mut bench)?)?;
    }
    terminal::note(format_args!("{made} runs made; the study is finished, {failed} of its runs failed"));
    let report = Report::of(study)?;
    let page = report.write(&study.join(REPORT_FOLDER))?;
    let mut out = io::stdout().lock();
    write!(out, "{}\n{}\n", report.main_table(), page.display()).context("cannot write to standard output")
}

/// Keeps the study beside its results, which are read by it.
fn write_study(file: &StudyFile) -> Result<(), io::Error> {
    let text = serde_saphyr::to_string(file).map_err(io::Error::other)?;
    fs::create_dir_all(&file.output_dir)?;
    fs::write(file.output_dir.join(STUDY_FILE), text)
}

/// Removes the results of runs that failed.
fn forget_failures(study: &Path, plan: &Plan) -> anyhow::Result<()> {
    for (task, row) in plan.tasks.iter().flat_map(|task| plan.rows.iter().map(move |row| (task, row))) {
        let runs = RowRuns::read(study, plan, task, row)?;
        let seed = plan.seeds.first().copied().unwrap_or_default();
        let tried = runs.trials.iter().map(|(rate, _)| plan.run(task, row, seed, Some(*rate)).id);
        for id in tried.chain(runs.results.iter().map(|result| result.spec.id.clone())) {
            let failed = RunResult::read(study, &id)?.is_some_and(|result| result.measured().is_none());
            if failed {
                let path = RunResult::path(study, &id);
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}
