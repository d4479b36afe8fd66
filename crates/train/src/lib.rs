//! Training: data, batches, optimisers, schedules, checkpoints, metrics, and the loop.

mod arguments;
pub mod atomic;
mod batches;
mod checkpoint;
mod data;
mod error;
mod memory;
pub mod metrics;
mod optimizer;
mod run_log;
mod schedule;

pub use arguments::{BestMetric, TrainingArguments};
pub use batches::{BatchLimit, BatchPlan, SamplingStrategy};
pub use checkpoint::{Checkpoints, Difference, OPTIMIZER_FILE, STATE_FILE, TrainerState};
pub use data::{
    DataOptions, DataProblem, Dataset, Encode, Example, GenerationCase, Message, Record, Records, generation_cases,
    read_records, tokenize,
};
pub use error::TrainError;
pub use memory::peak_memory;
pub use optimizer::{AdamW, AdamWOptions, ParameterGroup, clip_grad_norm, grad_norm};
pub use run_log::{EvaluationLine, RunLog, TrainingLine};
pub use schedule::{LearningRateSchedule, SchedulerType};
