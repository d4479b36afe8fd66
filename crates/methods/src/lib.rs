//! Methods: what tunes a frozen model, how it is configured, saved, loaded and merged.
//!
//! A method turns a [`MethodConfig`] and a [`ModelDescription`] into an adapter: tuners by site, which the model asks as
//! it runs. Names and files are those of Hugging Face PEFT.
//!
//! To add a method: its configuration with PEFT's fields, a file with its tuner, a variant of [`MethodConfig`] and a row
//! in the list of methods in `config.rs`.

mod bias;
mod build;
mod config;
mod description;
mod error;
mod files;
mod full;
mod lora;
mod lora_config;
mod lora_plus;
mod merge;
mod nearest;
mod pattern;
mod target;
mod target_defaults;

pub use bias::BiasTuner;
pub use build::{BuiltAdapter, build};
pub use config::{Bias, CommonConfig, MethodConfig, Modules, OneOrMany, PEFT_VERSION, TaskType};
pub use description::ModelDescription;
pub use error::{ConfigProblem, MethodError, Misshapen, TensorProblems, UnmatchedEntry};
pub use files::{load_adapter, load_config, save_adapter};
pub use full::FullTuner;
pub use lora::LoraTuner;
pub use lora_config::{LoraConfig, LoraInit};
pub use lora_plus::LoraPlus;
pub use merge::{MergedWeight, merged};
