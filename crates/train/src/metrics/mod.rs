//! Metrics, one a file, each equal to the scorer that people use for it.

mod bleu;
mod registry;

pub use bleu::{Bleu, corpus_bleu};
pub use registry::{METRICS, Metric, MetricValue, Scorer};
