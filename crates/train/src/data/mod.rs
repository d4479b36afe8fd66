//! Data: files of records, and the tokenised examples made of them.

mod problems;

pub use problems::DataProblem;
