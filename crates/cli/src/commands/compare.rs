//! `tunesmith compare`: compares methods on one model and data.

use crate::commands::study::{read_study, run_file};
use crate::failure::Misuse;
use crate::study_args::StudyFileArgs;

pub(crate) fn run(args: &StudyFileArgs) -> anyhow::Result<()> {
    let (origin, file) = read_study(&args.config, &args.options)?;
    if file.methods.is_empty() {
        return Err(Misuse(format!("{origin} names no methods: `tunesmith compare --help` shows how")).into());
    }
    run_file(&origin, &file, &args.options)
}
