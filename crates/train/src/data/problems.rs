//! What is wrong with a data file, collected over the whole of it.

use std::path::Path;

use crate::TrainError;
use crate::error::SHOWN_PROBLEMS;

/// What is wrong with one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataProblem {
    /// The line at which the record begins, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Collects the problems of a file: keeps those that will be shown, and counts all.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<DataProblem>,
    total: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, line: usize, message: impl Into<String>) {
        if self.kept.len() < SHOWN_PROBLEMS {
            self.kept.push(DataProblem { line, message: message.into() });
        }
        self.total += 1;
    }

    /// An error if there were any.
    pub(crate) fn into_result(mut self, path: &Path) -> Result<(), TrainError> {
        self.kept.sort_by_key(|problem| problem.line);
        match self.total {
            0 => Ok(()),
            total => Err(TrainError::Data { path: path.to_path_buf(), problems: self.kept, total }),
        }
    }
}
