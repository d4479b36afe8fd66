//! Methods: what tunes a frozen model, how it is configured, saved, loaded and merged.
//!
//! A method turns a [`MethodConfig`] and a [`ModelDescription`] into an adapter: tuners by site, which the model asks as
//! it runs. Names and files are those of Hugging Face PEFT.
//!
//! To add a method: a file with its tuner and its configuration, with PEFT's fields, which implements the trait `Method`,
//! and a row in the list in `method.rs`.

mod adalora;
mod adalora_budget;
mod adalora_tuner;
mod adapter_hub;
mod bias;
mod bitfit;
mod bottleneck;
mod bottleneck_config;
mod bottleneck_frozen;
mod bottleneck_method;
mod build;
mod checkpoint;
#[cfg(test)]
mod checks;
mod common;
mod config;
mod decomposition;
mod description;
mod dylora;
mod error;
mod files;
mod full;
mod full_fine_tuning;
mod houlsby;
mod ia3;
mod intrinsic;
mod intrinsic_projection;
mod ln_tuning;
mod long_lora;
mod lora;
mod lora_config;
mod lora_embedding;
mod lora_patterns;
mod lora_plus;
mod lora_start;
mod lora_tuner;
mod merge;
mod method;
mod nearest;
mod p_tuning;
mod parallel;
mod pattern;
mod pfeiffer;
mod placement;
mod pre_embed;
mod pre_layer;
mod prefix_start;
mod prefix_tuning;
mod prompt_tuning;
mod special_tokens;
mod target;
mod target_defaults;
mod token_rows;
mod trainable_tokens;
mod vera;
mod virtual_tokens;

pub use adalora::AdaLoraConfig;
pub use adalora_tuner::AdaLoraTuner;
pub use bias::BiasTuner;
pub use bitfit::{BitFitBiases, BitFitConfig};
pub use bottleneck::BottleneckTuner;
pub use bottleneck_config::{BottleneckConfig, BottleneckInit, NonLinearity, ReductionFactor, Scaling};
pub use build::{BuiltAdapter, build};
pub use checkpoint::{load_checkpoint, save_checkpoint};
pub use common::{Bias, CommonConfig, Modules, OneOrMany, PEFT_VERSION, RopeScaling, RopeType, TaskType};
pub use config::MethodConfig;
pub use description::{KeysAndValues, ModelDescription, Tokenize};
pub use dylora::{Auto, DyLoraConfig, DyLoraTuner, RankKey, at_rank, with_rank};
pub use error::{ConfigProblem, MethodError, Misshapen, TensorProblems, UnmatchedEntry};
pub use files::{AdapterFiles, adapter_from, adapter_paths, load_adapter, load_config, save_adapter};
pub use full::FullTuner;
pub use full_fine_tuning::FullConfig;
pub use houlsby::HoulsbyConfig;
pub use ia3::{Ia3Config, Ia3Tuner};
pub use intrinsic::{IntrinsicConfig, IntrinsicTuner, SaidConfig};
pub use intrinsic_projection::{ProjectionKind, ProjectionScope};
pub use ln_tuning::LnTuningConfig;
pub use long_lora::{Ends, LongLoraConfig};
pub use lora_config::{LoraConfig, LoraInit, TokenIndices};
pub use lora_embedding::LoraEmbeddingTuner;
pub use lora_plus::LoraPlus;
pub use lora_tuner::LoraTuner;
pub use merge::{MergedWeight, merged};
pub use method::Routine;
pub use p_tuning::{EncodedPromptTuner, EncoderType, PTuningConfig};
pub use parallel::ParallelConfig;
pub use pfeiffer::PfeifferConfig;
pub use pre_embed::PreEmbedConfig;
pub use pre_layer::PreLayerConfig;
pub use prefix_tuning::{PrefixPlace, PrefixStart, PrefixTuner, PrefixTuningConfig};
pub use prompt_tuning::{PromptInit, PromptTuner, PromptTuningConfig};
pub use special_tokens::{ActivationsTuner, SpecialTokens, SpecialTokensTuner};
pub use token_rows::TokenRowsTuner;
pub use trainable_tokens::TrainableTokensConfig;
pub use vera::{VeraBias, VeraConfig, VeraTuner};
pub use virtual_tokens::VirtualTokens;
