//! `tunesmith icl`: measures in-context learning.

use crate::commands::study::{read_study, run_file};
use crate::failure::Misuse;
use crate::study_args::StudyFileArgs;

pub(crate) fn run(args: &StudyFileArgs) -> anyhow::Result<()> {
    let (origin, mut file) = read_study(&args.config, &args.options)?;
    let in_rows = file.methods.values().any(|row| row.contains_key("icl"));
    if !file.run.contains_key("icl") && !file.tasks.values().any(|task| task.contains_key("icl")) && !in_rows {
        return Err(Misuse(format!("{origin} has no icl: section; `tunesmith icl --help` shows one")).into());
    }
    if file.methods.is_empty() {
        file.methods.insert(
            "in-context learning".to_owned(),
            [("icl".to_owned(), serde_json::json!({}))].into_iter().collect(),
        );
    }
    run_file(&origin, &file, &args.options)
}
