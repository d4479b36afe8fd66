//! Tunesmith: train.
