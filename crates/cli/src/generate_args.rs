//! The options of `tunesmith generate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::args::{ModelArgs, PrecisionArgs};

pub(crate) const GENERATE_EXAMPLES: &str = "\
Examples:
  tunesmith generate -m smollm2-135m-instruct 'The capital of France is'
  tunesmith generate -m smollm2-135m-instruct --chat                     a conversation
  tunesmith generate -m smollm2-135m-instruct --chat 'Who are you?'      one answer
  tunesmith generate -a runs/first --temperature 0.8 --top-p 0.95 'Once upon a time'
  tunesmith generate -a runs/first --prompts-file prompts.txt            a prompt a line, one batch
  tunesmith generate -a runs/first --num-beams 4 --no-repeat-ngram-size 3 'name : Blue Spice'
  echo 'Dear' | tunesmith generate -m smollm2-135m-instruct";

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) arithmetic: PrecisionArgs,
    /// Texts to continue; without one, standard input is read
    #[arg(value_name = "PROMPT")]
    pub(crate) prompts: Vec<String>,
    /// A file with a prompt a line
    #[arg(long, alias = "prompts_file", value_name = "FILE", conflicts_with = "prompts")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Take prompts as a user's messages, through the model's chat template; without a prompt, a conversation
    #[arg(long)]
    pub(crate) chat: bool,
    /// The system message of --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Write a JSON object a prompt: prompt, text, finish_reason
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// How tokens are chosen, with the names of Hugging Face's `generate`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// New tokens, at most
    #[arg(long, alias = "max_new_tokens", value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Choose among the K likeliest tokens; 0 among all
    #[arg(long, alias = "top_k", value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, alias = "top_p", value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Choose among tokens at least this fraction as likely as the likeliest
    #[arg(long, alias = "min_p", value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Makes tokens that have occurred less likely; 1 is off
    #[arg(long, alias = "repetition_penalty", value_name = "FACTOR", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Never repeats a run of this many tokens; 0 is off
    #[arg(long, alias = "no_repeat_ngram_size", value_name = "N", default_value_t = 0)]
    pub(crate) no_repeat_ngram_size: usize,
    /// Search for the likeliest text with this many beams, instead of taking token after token
    #[arg(long, alias = "num_beams", value_name = "N", default_value_t = 1)]
    pub(crate) num_beams: usize,
    /// With beams: above 0 favours long texts, below 0 short ones
    #[arg(long, alias = "length_penalty", value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    pub(crate) length_penalty: f64,
    /// With beams: whether to stop at as many finished texts as beams (true), when a better one is unlikely (false), or
    /// when there can be none (never)
    #[arg(long, alias = "early_stopping", value_name = "WHEN", default_value = "false")]
    pub(crate) early_stopping: EarlyStoppingArg,
    /// Texts for each prompt: the best of the beams, or so many draws
    #[arg(long, alias = "num_return_sequences", value_name = "N", default_value_t = 1)]
    pub(crate) num_return_sequences: usize,
    /// Stop where this text appears; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
}

/// Hugging Face's values of `early_stopping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EarlyStoppingArg {
    True,
    False,
    Never,
}
