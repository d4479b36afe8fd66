//! Tunesmith: models.
