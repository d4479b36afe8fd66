//! Metrics of generated text, one a file.

mod bleu;

pub use bleu::{Bleu, corpus_bleu};
