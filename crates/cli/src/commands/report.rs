//! `tunesmith report`: the page, tables and plots of a study.

use std::io::{self, Write};

use anyhow::Context;
use tunesmith_study::{REPORT_FOLDER, Report};

use crate::study_args::ReportArgs;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let report = Report::of(&args.study)?;
    let folder = args.output.clone().unwrap_or_else(|| args.study.join(REPORT_FOLDER));
    let page = report.write(&folder)?;
    let mut out = io::stdout().lock();
    write!(out, "{}\n{}\n", report.main_table(), page.display()).context("cannot write to standard output")
}
