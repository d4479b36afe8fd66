//! The configuration of a run: a YAML file with Hugging Face's names, flat but for `peft:`, and `key=value` overrides.
//!
//! Two stages: reading the text (what was written, and where), then building (what it means). Building reports
//! everything that is wrong at once.

mod written;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_methods::{ConfigProblem, DyLoraConfig, LoraPlus, MethodConfig, MethodError, load_config};
use tunesmith_models::Task;
use tunesmith_tensor::Precision;
use tunesmith_train::metrics::{METRICS, Metric};
use tunesmith_train::{DataOptions, TaskOptions, TrainError, TrainingArguments};

use crate::quantization::{ComputeDtype, QuantizationKeys};

pub(crate) use written::Written;
use written::{Problems, as_map, in_plain_words, keys};

/// A run, ready to start.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunConfig {
    /// The base model and where results go.
    pub(crate) run: RunOptions,
    /// What the data is.
    pub(crate) data: DataOptions,
    /// What the run is for.
    pub(crate) task: TaskOptions,
    /// How the base model's weights are kept.
    pub(crate) quantization: QuantizationKeys,
    /// How to train.
    pub(crate) arguments: TrainingArguments,
    /// The method.
    pub(crate) peft: MethodConfig,
}

/// Keys of a run that belong to the program itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunOptions {
    /// The base model: a pulled name, a Hugging Face folder, or a `.gguf` file.
    pub(crate) model_name_or_path: String,
    /// A folder with, or the path of, another `tokenizer.json`. Default: the model's.
    pub(crate) tokenizer_name_or_path: Option<PathBuf>,
    /// A file with another chat template, in Jinja. Default: the model's.
    pub(crate) chat_template: Option<PathBuf>,
    /// A folder with an adapter that training goes on from, and whose method is the run's. Default: a new adapter, as
    /// `peft` says.
    pub(crate) adapter_name_or_path: Option<PathBuf>,
    /// Where the adapter, the checkpoints and the log go.
    pub(crate) output_dir: PathBuf,
    /// Arithmetic of matrix products. Default: bf16 where the processor has a unit for it, otherwise float32.
    pub(crate) precision: PrecisionKey,
    /// Whether evaluation also generates continuations and scores them; with BLEU, unless `metrics` names metrics of
    /// texts, which make it generate in any case. Default false.
    pub(crate) predict_with_generate: bool,
    /// New tokens of such a continuation, at most. Default 128.
    pub(crate) generation_max_new_tokens: usize,
    /// LoRA+: learning rate of `B` as a multiple of that of `A`. Default none: the same.
    pub(crate) loraplus_lr_ratio: Option<f64>,
    /// LoRA+: learning rate of LoRA at embeddings. Default 1e-6; without LoRA+ they learn like the rest.
    pub(crate) loraplus_lr_embedding: f64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            model_name_or_path: String::new(),
            tokenizer_name_or_path: None,
            chat_template: None,
            adapter_name_or_path: None,
            output_dir: PathBuf::new(),
            precision: PrecisionKey::default(),
            predict_with_generate: false,
            generation_max_new_tokens: 128,
            loraplus_lr_ratio: None,
            loraplus_lr_embedding: LoraPlus::LR_EMBEDDING,
        }
    }
}

/// A precision as configurations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrecisionKey {
    Float32,
    Bf16,
}

impl Default for PrecisionKey {
    fn default() -> Self {
        match Precision::detect() {
            Precision::Float32 => Self::Float32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl From<PrecisionKey> for Precision {
    fn from(key: PrecisionKey) -> Self {
        match key {
            PrecisionKey::Float32 => Self::Float32,
            PrecisionKey::Bf16 => Self::Bf16,
        }
    }
}

const PEFT: &str = "peft";
const REQUIRED: [(&str, &str); 3] =
    [("model_name_or_path", "the base model"), ("output_dir", "where the results go"), ("train_file", "the data")];

impl RunConfig {
    /// Every key with its value, defaults included, as JSON; of an adapter that was there before, its folder says the method.
    pub(crate) fn resolved(&self) -> Map<String, Value> {
        let mut all = as_map(&self.run);
        all.extend(as_map(&self.data));
        all.extend(as_map(&self.task));
        all.extend(as_map(&self.quantization));
        all.extend(as_map(&self.arguments));
        if self.run.adapter_name_or_path.is_some() {
            return all;
        }
        let peft = serde_json::from_str(&self.peft.to_adapter_config());
        let mut peft: Value = peft.expect("a method's configuration is written as JSON");
        for method in methods_mut(&mut peft) {
            method.remove("inference_mode");
        }
        all.insert(PEFT.to_owned(), peft);
        all
    }

    /// The keys that say how the base's weights are kept.
    pub(crate) fn quantization_keys(&self) -> Vec<String> {
        as_map(&self.quantization).into_iter().map(|(key, _)| key).collect()
    }

    /// The same as YAML, without the keys that are not set: a configuration that gives this run again.
    pub(crate) fn to_yaml(&self) -> anyhow::Result<String> {
        let mut all = self.resolved();
        all.retain(|_, value| !value.is_null());
        for method in all.get_mut(PEFT).into_iter().flat_map(methods_mut) {
            method.retain(|_, value| !value.is_null());
        }
        serde_saphyr::to_string(&all).context("cannot write the configuration as YAML")
    }
}

/// The mappings under `peft:`: one, or a list of them.
fn methods_mut(peft: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let methods = match peft {
        Value::Array(methods) => methods.iter_mut(),
        method => std::slice::from_mut(method).iter_mut(),
    };
    methods.filter_map(Value::as_object_mut)
}

impl Written {
    /// The whole run.
    ///
    /// # Errors
    /// [`Misuse`](crate::failure::Misuse) with every problem: unknown keys, missing keys, wrong types, values that cannot
    /// be.
    pub(crate) fn build(self) -> anyhow::Result<RunConfig> {
        let mut problems = Problems::default();
        for (key, meaning) in REQUIRED {
            if self.values.get(key).is_none_or(Value::is_null) {
                problems.0.push((None, format!("{key} is missing: {meaning}")));
            }
        }
        let mut run: RunOptions = self.section(&mut problems);
        let data = self.section(&mut problems);
        let task = self.task(&mut problems);
        let quantization: QuantizationKeys = self.section(&mut problems);
        if let Some(dtype) = quantization.bnb_4bit_compute_dtype {
            let precision = match dtype {
                ComputeDtype::Float32 => PrecisionKey::Float32,
                ComputeDtype::Bfloat16 => PrecisionKey::Bf16,
            };
            if self.values.contains_key("precision") && run.precision != precision {
                let key = "bnb_4bit_compute_dtype";
                self.add(&mut problems, key, format!("{key}: precision says otherwise: keep one of them"));
            }
            run.precision = precision;
        }
        let arguments: TrainingArguments = self.section(&mut problems);
        let (run_keys, data_keys, task_keys) = (keys::<RunOptions>(), keys::<DataOptions>(), keys::<TaskOptions>());
        let quantization_keys = keys::<QuantizationKeys>();
        let own = [keys::<TrainingArguments>(), vec![PEFT.to_owned()]].concat();
        let sections = [run_keys, data_keys, task_keys, quantization_keys, own];
        self.check_keys(&sections, &mut problems);
        if let Err(TrainError::InvalidArguments { problems: wrong }) = arguments.validate() {
            for text in wrong {
                let key = text.split([' ', ':']).next().unwrap_or_default();
                problems.0.push((self.lines.get(key).copied(), text.clone()));
            }
        }
        self.check_evaluation(&run, &data, &task, &arguments, &mut problems);
        if let Some(key) = quantization.without_effect() {
            self.add(&mut problems, key, format!("{key}: needs load_in_4bit: true"));
        }
        let peft = self.method(run.adapter_name_or_path.as_deref(), &mut problems);
        for problem in peft.iter().flat_map(|peft| rank_problems(peft, data.has_validation())) {
            self.add(&mut problems, "peft.rank", problem);
        }
        problems.into_result(&self.source)?;
        let peft = peft.context("the method's configuration has neither value nor problem")?;
        Ok(RunConfig { run, data, task, quantization, arguments, peft })
    }

    /// The options of data and task alone.
    ///
    /// # Errors
    /// [`Misuse`](crate::failure::Misuse) with every problem.
    pub(crate) fn build_data_options(self) -> anyhow::Result<(DataOptions, TaskOptions)> {
        let mut problems = Problems::default();
        let data = self.section(&mut problems);
        let task = self.task(&mut problems);
        self.check_keys(&[keys::<DataOptions>(), keys::<TaskOptions>()], &mut problems);
        problems.into_result(&self.source)?;
        Ok((data, task))
    }

    /// The task's options, which make sense together.
    fn task(&self, problems: &mut Problems) -> TaskOptions {
        let task: TaskOptions = self.section(problems);
        if let Err(TrainError::InvalidDataOptions { problems: wrong }) = task.validate() {
            for text in wrong {
                let key = text.split(' ').next().unwrap_or_default();
                problems.0.push((self.lines.get(key).copied(), text.clone()));
            }
        }
        task
    }

    /// What only makes sense together with something else.
    fn check_evaluation(
        &self,
        run: &RunOptions,
        data: &DataOptions,
        task: &TaskOptions,
        arguments: &TrainingArguments,
        problems: &mut Problems,
    ) {
        let no_file = !data.has_validation();
        let metrics = text_metrics(run, arguments);
        let best = arguments.metric_for_best_model;
        let measured = METRICS.iter().filter(|metric| !metric.needs_texts()).chain(metrics.iter().copied());
        // What else a task measures is known once its labels are.
        let is_of_texts = task.task().is_ok_and(Task::is_of_texts);
        let no_best = is_of_texts && !measured.flat_map(|metric| metric.values).any(|value| *value == best);
        let best_reason = format!("an evaluation measures {} only if metrics names it", best.key);
        let ratio = run.loraplus_lr_ratio;
        for (wrong, key, reason) in [
            (no_file && arguments.eval_steps.is_some(), "eval_steps", "needs a validation_file"),
            (no_file && run.predict_with_generate, "predict_with_generate", "needs a validation_file"),
            (no_file && arguments.load_best_model_at_end, "load_best_model_at_end", "needs a validation_file"),
            (
                no_file && arguments.early_stopping_patience.is_some(),
                "early_stopping_patience",
                "needs a validation_file",
            ),
            (no_file && !arguments.metrics.is_empty(), "metrics", "needs a validation_file"),
            (no_best, "metric_for_best_model", best_reason.as_str()),
            (
                ratio.is_some_and(|ratio| !ratio.is_finite() || ratio <= 0.0),
                "loraplus_lr_ratio",
                "must be more than 0, and is 16 in the paper",
            ),
            (
                !(run.loraplus_lr_embedding.is_finite() && run.loraplus_lr_embedding >= 0.0),
                "loraplus_lr_embedding",
                "must be a number from 0",
            ),
        ] {
            if wrong {
                self.add(problems, key, format!("{key}: {reason}"));
            }
        }
    }

    /// The method, which either `peft` or an adapter says.
    fn method(&self, adapter: Option<&Path>, problems: &mut Problems) -> Option<MethodConfig> {
        let written = self.values.get(PEFT).filter(|value| !value.is_null());
        let key = "adapter_name_or_path";
        match (written, adapter) {
            (Some(value), None) => return self.peft(value, problems),
            (None, Some(folder)) => match load_config(folder) {
                Ok((config, _)) => return Some(config),
                Err(error) => self.add(problems, key, format!("{key}: {error}")),
            },
            (Some(_), Some(_)) => {
                self.add(
                    problems,
                    PEFT,
                    format!("{PEFT}: the adapter that {key} names has a method: keep one of them"),
                );
            }
            (None, None) => {
                let text = format!("{PEFT} is missing: the method, such as {{peft_type: LORA, r: 8}}");
                problems.0.push((None, text));
            }
        }
        None
    }

    fn peft(&self, value: &Value, problems: &mut Problems) -> Option<MethodConfig> {
        let found = match MethodConfig::from_run_file(value) {
            Ok(config) => return Some(config),
            Err(MethodError::Config { problems, .. }) => problems,
            Err(other) => {
                self.add(problems, PEFT, other.to_string());
                return None;
            }
        };
        for problem in found {
            let (key, text) = match &problem {
                ConfigProblem::UnknownKey { key, nearest: None } if keys::<TrainingArguments>().contains(key) => {
                    (key.clone(), format!("unknown key '{key}': it belongs at the left margin, not under {PEFT}:"))
                }
                ConfigProblem::Value { key, reason } => {
                    (key.clone(), format!("{PEFT}.{key}: {}", in_plain_words(reason)))
                }
                ConfigProblem::UnknownKey { key, .. } => (key.clone(), format!("{PEFT}: {problem}")),
                ConfigProblem::Unsupported { key, .. } => (key.clone(), format!("{PEFT}.{problem}")),
                _ => (String::new(), format!("{PEFT}: {problem}")),
            };
            let place = if key.is_empty() { PEFT.to_owned() } else { format!("{PEFT}.{key}") };
            let line = self.lines.get(&place);
            problems.0.push((line.copied(), text));
        }
        None
    }
}

/// What the choice of a rank at the end of training lacks.
fn rank_problems(peft: &MethodConfig, has_validation: bool) -> Vec<String> {
    let chooses = |method: &MethodConfig| method.get::<DyLoraConfig>().is_some_and(DyLoraConfig::chooses_rank);
    if !peft.each().any(|method| chooses(&method)) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if !has_validation {
        problems.push("peft.rank: auto needs a validation_file, on which ranks are compared".to_owned());
    }
    if peft.each().len() > 1 {
        let text = "peft.rank: auto needs DYLORA to be the only method: give a number, or leave rank out for r";
        problems.push(text.to_owned());
    }
    problems
}

/// The metrics of generated texts that an evaluation measures.
pub(crate) fn text_metrics(run: &RunOptions, arguments: &TrainingArguments) -> Vec<&'static Metric> {
    let named: Vec<_> = arguments.metrics.iter().copied().filter(|metric| metric.needs_texts()).collect();
    match Metric::by_name("bleu") {
        Ok(bleu) if named.is_empty() && run.predict_with_generate => vec![bleu],
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_methods::LoraConfig;

    use super::*;

    const SMALLEST: &str = "\
model_name_or_path: some/model
output_dir: out
train_file: data.jsonl
learning_rate: 5e-4
peft:
  peft_type: LORA
  r: 4
";

    fn build(text: &str, overrides: &[&str]) -> anyhow::Result<RunConfig> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Written::parse("run.yaml", text, &overrides)?.build()
    }

    fn problem(text: &str, overrides: &[&str]) -> String {
        build(text, overrides).unwrap_err().to_string()
    }

    fn rank(config: &RunConfig) -> usize {
        let config = config.peft.get::<LoraConfig>().unwrap();
        config.r
    }

    #[test]
    fn the_smallest_configuration() {
        let config = build(SMALLEST, &[]).unwrap();
        assert_eq!(config.run.model_name_or_path, "some/model");
        assert_eq!(config.data.train_file, PathBuf::from("data.jsonl"));
        assert_eq!(config.arguments, TrainingArguments { learning_rate: 5e-4, ..TrainingArguments::default() });
        assert_eq!(rank(&config), 4);
    }

    #[test]
    fn overrides_win_and_are_yaml() {
        let overrides = [
            "learning_rate=1e-3",
            "peft.r=16",
            "peft.target_modules=[q_proj, v_proj]",
            "delimiter=||",
            "columns=[a, b]",
            "prompt_suffix=\"\\n\"",
            "max_steps=-1",
            "validation_file=",
            "lr_scheduler_type=cosine",
        ];
        let config = build(SMALLEST, &overrides).unwrap();
        assert_eq!((config.arguments.learning_rate, rank(&config), config.arguments.max_steps), (1e-3, 16, None));
        assert_eq!(config.data.delimiter.as_deref(), Some("||"));
        assert_eq!(config.data.columns, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(config.data.prompt_suffix, "\n");
        assert_eq!(config.data.validation_file, None);
        assert!(problem(SMALLEST, &["learning_rate"]).contains("'learning_rate' is not KEY=VALUE"));
        assert!(problem(SMALLEST, &["seed.x=1", "seed.x.y=1"]).contains("reaches into 'seed'"));
    }

    #[test]
    fn several_methods_are_a_list() {
        let text =
            SMALLEST.replace("  peft_type: LORA\n  r: 4\n", "  - {peft_type: LORA}\n  - {peft_type: LORA, r: 2}\n");
        let config = build(&text, &["peft.0.r=16"]).unwrap();
        let ranks: Vec<usize> = config.peft.each().map(|method| method.get::<LoraConfig>().unwrap().r).collect();
        assert_eq!(ranks, [16, 2]);
        assert_eq!(build(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        assert!(problem(&text, &["peft.2.r=16"]).contains("reaches into 'peft'"));
        assert!(problem(&text, &["peft.1.rr=16"]).contains("peft: method 2 of the list: unknown key 'rr'"));
    }

    #[test]
    fn what_was_resolved_gives_the_same_run() {
        let config = build(SMALLEST, &["peft.rank_pattern={q_proj: 2}", "save_steps=5", "delimiter='||'"]).unwrap();
        assert_eq!(build(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        let resolved = config.resolved();
        assert_eq!(resolved["seed"], 42);
        assert_eq!(resolved["peft"]["rank_pattern"]["q_proj"], 2);
    }

    #[test]
    fn every_unknown_key_is_named_with_its_line_and_the_nearest_key() {
        let text = format!("{SMALLEST}  lora_alhpa: 8\nlora_alpha: 16\nlearning_rte: 1\nbf16: true\n");
        assert_eq!(
            problem(&text, &["sead=1", "peft.seed=1"]),
            "run.yaml cannot be used, for 6 reasons:\n  \
             line 8: peft: unknown key 'lora_alhpa'; did you mean 'lora_alpha'?\n  \
             line 9: unknown key 'lora_alpha'; it belongs under peft:, as peft.lora_alpha\n  \
             line 10: unknown key 'learning_rte'; did you mean 'learning_rate'?\n  \
             line 11: unknown key 'bf16'; see `tunesmith train --help` for an example\n  \
             unknown key 'sead'; did you mean 'seed'?\n  \
             unknown key 'seed': it belongs at the left margin, not under peft:"
        );
    }

    #[test]
    fn every_wrong_type_is_named_with_what_was_expected_and_found() {
        let text = "model_name_or_path: 7\nlearning_rate: fast\nseed: -1\nsave_steps: 1.5\ntruncate: maybe\n\
                    columns: a\nlr_scheduler_type: liner\npeft: {peft_type: LORA, r: eight}\n";
        let found = problem(text, &[]);
        for line in [
            "line 1: model_name_or_path: expected text, found the number 7",
            "line 2: learning_rate: expected a number, found the text \"fast\"",
            "line 3: seed: expected a whole number from 0, found the number -1",
            "line 4: save_steps: expected a whole number from 0, found the number 1.5",
            "line 5: truncate: expected true or false, found the text \"maybe\"",
            "line 6: columns: expected a list, found the text \"a\"",
            "line 7: lr_scheduler_type: expected one of constant, constant_with_warmup, linear, cosine, ",
            "warmup_stable_decay, found liner",
            "line 8: peft.r: expected a whole number from 0, found the text \"eight\"",
            "output_dir is missing",
            "train_file is missing",
        ] {
            assert!(found.contains(line), "{line:?} is not in:\n{found}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_named_too() {
        let found = problem(SMALLEST, &["warmup_ratio=2", "per_device_train_batch_size=0", "peft.lora_dropout=1"]);
        assert!(found.contains("warmup_ratio is 2, must lie between 0 and 1"), "{found}");
        assert!(found.contains("per_device_train_batch_size is 0, must be at least 1"), "{found}");
        assert!(found.contains("peft.lora_dropout: a probability"), "{found}");
    }

    #[test]
    fn metrics_are_named_and_one_of_them_says_what_is_best() {
        let evaluating = ["validation_file=v.jsonl", "eval_steps=5", "metrics=[bleu, perplexity]"];
        let best = |name| [&evaluating[..], &[name]].concat();
        let config = build(SMALLEST, &best("metric_for_best_model=eval_bleu")).unwrap();
        assert_eq!(text_metrics(&config.run, &config.arguments), [Metric::by_name("bleu").unwrap()]);
        assert_eq!(build(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        let found = problem(SMALLEST, &best("metric_for_best_model=eval_blue"));
        assert!(found.contains("metric_for_best_model: there is no metric 'blue'; did you mean 'bleu'?"), "{found}");
        assert!(problem(SMALLEST, &["metrics=[blue]"]).contains("metrics: there is no metric 'blue'"));
        let found = problem(SMALLEST, &["metrics=[loss]", "metric_for_best_model=bleu"]);
        assert!(found.contains("metrics: needs a validation_file"), "{found}");
        assert!(found.contains("an evaluation measures bleu only if metrics names it"), "{found}");
        assert!(
            build(SMALLEST, &["validation_file=v", "predict_with_generate=true", "metric_for_best_model=bleu"]).is_ok()
        );
    }

    #[test]
    fn precision_has_two_names_over_4_bit_weights_and_one_meaning() {
        let precision = |overrides: &[&str]| build(SMALLEST, overrides).unwrap().run.precision;
        assert_eq!(precision(&["precision=bf16"]), PrecisionKey::Bf16);
        assert_eq!(precision(&["precision=float32"]), PrecisionKey::Float32);
        assert_eq!(precision(&["load_in_4bit=true", "bnb_4bit_compute_dtype=bfloat16"]), PrecisionKey::Bf16);
        assert_eq!(precision(&["load_in_4bit=true", "bnb_4bit_compute_dtype=float32"]), PrecisionKey::Float32);
        let both = ["load_in_4bit=true", "bnb_4bit_compute_dtype=float32", "precision=bf16"];
        assert!(problem(SMALLEST, &both).contains("bnb_4bit_compute_dtype: precision says otherwise"));
        assert!(problem(SMALLEST, &["precision=float16"]).contains("precision: expected float32 or bf16"));
        let found = problem(SMALLEST, &["bnb_4bit_quant_type=nf4"]);
        assert!(found.contains("bnb_4bit_quant_type: needs load_in_4bit: true"), "{found}");
        let found = problem(SMALLEST, &["load_in_4bit=true", "bnb_4bit_quant_type=int4"]);
        assert!(found.contains("expected nf4 or fp4, found int4"), "{found}");
    }

    #[test]
    fn text_that_is_no_mapping_is_refused() {
        assert!(problem("- a\n- b\n", &[]).contains("run.yaml must hold `key: value` lines"));
        assert!(problem("a: [1\n", &[]).contains("run.yaml is not valid YAML"));
        assert!(problem("seed: 1\nseed: 2\n", &[]).contains("not valid YAML"));
        assert!(problem("", &[]).contains("model_name_or_path is missing"));
    }

    #[test]
    fn data_options_stand_alone_for_evaluation() {
        let overrides = ["prompt_column=q".to_owned(), "completion_column=a".to_owned()];
        let data = Written::command_line(&overrides).unwrap().build_data_options().unwrap();
        assert_eq!(data.0.prompt_column.as_deref(), Some("q"));
        let error = Written::command_line(&["prompt_colum=q".to_owned()]).unwrap().build_data_options().unwrap_err();
        assert!(error.to_string().contains("did you mean 'prompt_column'?"), "{error}");
    }
}
