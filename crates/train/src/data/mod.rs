//! Data: files of records, and the tokenised examples made of them.

mod encode;
mod example;
mod generation;
mod options;
pub(crate) mod problems;
mod records;
pub(crate) mod rows;

pub use encode::Encode;
pub use example::{Dataset, Example, tokenize};
pub use generation::{GenerationCase, generation_cases};
pub use options::DataOptions;
pub use problems::DataProblem;
pub use records::{Record, Records, read_records};

#[cfg(test)]
mod tests;
