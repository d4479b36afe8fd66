//! The options of the commands about studies: `tunesmith compare`, `sweep`, `icl`, `study` and `report`.

use std::path::PathBuf;

use clap::Args;

pub(crate) const COMPARE_EXAMPLES: &str = "\
Examples:
  tunesmith compare study.yaml                     stop it at any time: the same command goes on
  tunesmith compare study.yaml --smoke             a few updates of everything, to see that it works
  tunesmith compare study.yaml 'seeds=[1,2,3]' run.model_name_or_path=smollm2-135m-instruct

A small study.yaml:
  output_dir: studies/first
  metric: accuracy
  seeds: [1, 2, 3]
  learning_rates: [3e-4, 1e-3, 3e-3]       # tried with the first seed, on the held-out set
  train_tokens: 200000                     # the same for every method
  test_file: dev.tsv                       # what the table's numbers are measured on
  run:                                     # keys of `tunesmith train`
    model_name_or_path: minilm-l6
    task_type: SEQ_CLS
    text_column: sentence
    train_file: train.tsv
    validation_split_percentage: 10
  methods:
    base: {base: true}
    full fine-tuning: {peft: {peft_type: FULL}, learning_rates: [3e-5, 1e-4, 3e-4]}
    LoRA: {peft: {peft_type: LORA, r: 8, lora_alpha: 16}}
    BitFit: {peft: {peft_type: BITFIT}}";

pub(crate) const SWEEP_EXAMPLES: &str = "\
Examples:
  tunesmith sweep study.yaml
  tunesmith sweep study.yaml 'vary={peft.r: [1, 4, 16], learning_rate: [1e-4, 1e-3]}'
  tunesmith sweep study.yaml draws=20 'vary.learning_rate={from: 1e-5, to: 1e-2, scale: log}'

The file is that of `tunesmith compare`, with `vary:` in place of, or beside, `methods:`.";

pub(crate) const ICL_EXAMPLES: &str = "\
Examples:
  tunesmith icl study.yaml
  tunesmith icl study.yaml 'vary={icl.demonstrations: [0, 4, 16], icl.scoring: [likelihood, calibrated]}'

A small study.yaml:
  output_dir: studies/icl
  metric: accuracy
  seeds: [1, 2, 3]                         # each draws demonstrations of its own
  test_file: dev.tsv
  run:
    model_name_or_path: smollm2-135m-instruct
    train_file: train.tsv
    max_eval_samples: 200
    icl:
      template: \"Review: {sentence}\\nSentiment:{answer}\"
      answer_column: label
      answers: {'0': ' negative', '1': ' positive'}
      orders: 3
  vary:
    icl.demonstrations: [0, 2, 8]
    icl.demonstration_labels: [gold, random]";

pub(crate) const STUDY_EXAMPLES: &str = "\
Examples:
  tunesmith study list
  tunesmith study lora-rank data_dir=FOLDER        FOLDER holds mrpc/, rte/ and sst2/ of GLUE, e2e/, stsb/
  tunesmith study lora-rank data_dir=FOLDER --smoke
  tunesmith study lora-rank --print > mine.yaml    to change it, and run it with `tunesmith compare mine.yaml`";

pub(crate) const REPORT_EXAMPLES: &str = "\
Examples:
  tunesmith report studies/lora-rank               writes studies/lora-rank/report/index.html and what belongs to it
  tunesmith report studies/lora-rank -o pages";

#[derive(Debug, Args)]
pub(crate) struct StudyFileArgs {
    /// The study's configuration, a YAML file
    #[arg(value_name = "CONFIG.yaml")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) options: StudyOptions,
}

#[derive(Debug, Args)]
pub(crate) struct StudyArgs {
    /// A study's name, or list
    pub(crate) name: String,
    /// Print its configuration
    #[arg(long)]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) options: StudyOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The study's folder, its output_dir
    #[arg(value_name = "DIR")]
    pub(crate) study: PathBuf,
    /// Where the report goes [default: report, within the study's folder]
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
}

/// How a study is run.
#[derive(Debug, Args)]
pub(crate) struct StudyOptions {
    /// Values in place of the file's, such as run.max_steps=50
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// A few examples and updates of every run, to see that everything works
    #[arg(long)]
    pub(crate) smoke: bool,
    /// Run again what failed
    #[arg(long, alias = "retry_failed")]
    pub(crate) retry_failed: bool,
}
