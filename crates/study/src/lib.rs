//! Studies: which method, what rank, how long a prompt, for one's own model and data.
//!
//! A [`StudyFile`] says what is varied; a [`Plan`] works out its runs; [`run_study`] makes those that are missing through
//! a [`Workbench`]; every run is a file of its own ([`RunResult`]), and reports are made of these files alone.

mod assign;
mod error;
mod file;
mod icl;
mod log;
mod plan;
pub mod plot;
pub mod published;
mod report;
mod result;
mod runner;
mod search;
mod similarity;
mod studies;
mod vary;

pub use assign::{assign, look_up};
pub use error::StudyError;
pub use file::{METHOD_KEYS, SimilarityRequest, StudyFile, TASK_KEYS};
pub use icl::{DemonstrationLabels, IclOptions, InContext, InContextResult, Scoring};
pub use log::LoggedRun;
pub use plan::{Kind, Plan, PlannedRow, PlannedTask, RunSpec};
pub use report::{REPORT_FOLDER, Report, STUDY_FILE};
pub use result::{Cost, Curve, CurvePoint, Environment, FORMAT, Measured, Outcome, RunResult};
pub use runner::{RowRuns, RunFailure, StudyEnding, Workbench, run_study};
pub use search::{RateSearch, Trial};
pub use similarity::Similarity;
pub use studies::{STUDIES, Study};
pub use vary::{Combination, Range, Scale, Values, grid, random};
