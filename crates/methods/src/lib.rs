//! Methods: what tunes a frozen model, how it is configured, saved, loaded and merged.
//!
//! A method turns a [`MethodConfig`] and a [`ModelDescription`] into an adapter: tuners by site, which the model asks as
//! it runs. Names and files are those of Hugging Face PEFT.
//!
//! To add a method: a file with its tuner and its configuration, with PEFT's fields, which implements the trait `Method`,
//! and a row in the list in `method.rs`.

mod bias;
mod build;
mod checkpoint;
mod common;
mod config;
mod description;
mod error;
mod files;
mod full;
mod lora;
mod lora_config;
mod lora_plus;
mod merge;
mod method;
mod nearest;
mod pattern;
mod target;
mod target_defaults;

pub use bias::BiasTuner;
pub use build::{BuiltAdapter, build};
pub use checkpoint::{load_checkpoint, save_checkpoint};
pub use common::{Bias, CommonConfig, Modules, OneOrMany, PEFT_VERSION, TaskType};
pub use config::MethodConfig;
pub use description::ModelDescription;
pub use error::{ConfigProblem, MethodError, Misshapen, TensorProblems, UnmatchedEntry};
pub use files::{load_adapter, load_config, save_adapter};
pub use full::FullTuner;
pub use lora::LoraTuner;
pub use lora_config::{LoraConfig, LoraInit};
pub use lora_plus::LoraPlus;
pub use merge::{MergedWeight, merged};
pub use method::Routine;
