//! Tunesmith: methods.
