//! Training: data, batches, optimisers, schedules, checkpoints, metrics, and the loop.

mod arguments;
mod batch;
mod batches;
mod checkpoint;
mod data;
mod error;
mod evaluate;
mod intrinsic_dimension;
mod joint;
mod losses;
mod memory;
mod memory_plan;
mod merge;
pub mod metrics;
mod nearest;
mod optimizer;
mod run_log;
mod schedule;
pub mod statistics;
mod step_benchmark;
mod subject;
mod tasks;
mod trainer;

pub use arguments::TrainingArguments;
pub use batch::{Batch, DecoderBatch, TrainingSet, mean_loss};
pub use batches::{BatchLimit, BatchPlan, SamplingStrategy};
pub use checkpoint::{Checkpoints, Difference, OPTIMIZER_FILE, STATE_FILE, TrainerState};
pub use data::{
    DataOptions, DataProblem, Dataset, Encode, Example, GenerationCase, Record, Records, generation_cases,
    read_records, tokenize,
};
pub use error::TrainError;
pub use evaluate::{Evaluation, GenerationTask, HeldOut, Sample, Validation, evaluate_loss, generate_all};
pub use intrinsic_dimension::{Candidate, CurvePoint, DimensionSearch, IntrinsicDimension, NextTrial, Trial};
pub use joint::{Part, joint_loss};
pub use losses::{Loss, Targets};
pub use memory::{page_faults, peak_memory, reset_peak_memory};
pub use memory_plan::{ByteSize, GradientCheckpointing, MemoryEstimate};
pub use merge::merged_tensors;
pub use nearest::nearest;
pub use optimizer::{
    Adafactor, AdamW, AdamW8bit, Optimizer, OptimizerName, ParameterGroup, Sgd, StateTensor, StateValues, Update,
    UpdateRule, clip_factor, grad_norm,
};
pub use run_log::{EvaluationLine, LogLine, RunLog, TrainingLine, read_log};
pub use schedule::{LearningRateSchedule, Ramp, SchedulerOptions, SchedulerType};
pub use step_benchmark::{OperationTime, StepBenchmark, StepMeasurement};
pub use subject::Subject;
pub use tasks::{
    Prediction, Question, Target, TaskContext, TaskDataset, TaskExample, TaskOptions, TaskRows, TaskValidation, Window,
    read_task_rows, task_dataset, task_labels,
};
pub use trainer::{Ending, LOG_FILE, Observer, Progress, Report, Run, Start, Trainee, train_together};
pub use tunesmith_describe::describe;
