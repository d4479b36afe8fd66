//! What is wrong with a data file, collected over the whole of it.

/// What is wrong with one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataProblem {
    /// The line at which the record begins, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}
