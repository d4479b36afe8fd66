//! Training arguments: the keys of a run that say how to train, under the names of `transformers.TrainingArguments`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::TrainError;
use crate::batches::{BatchLimit, SamplingStrategy};
use crate::memory_plan::{ByteSize, GradientCheckpointing};
use crate::metrics::{Metric, MetricValue};
use crate::optimizer::{AdamW, OptimizerName, UpdateRule};
use crate::schedule::{LearningRateSchedule, SchedulerOptions, SchedulerType};

/// How to train. Every field is honoured; defaults are those of `transformers` except where a field says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingArguments {
    /// The peak learning rate. Default 5e-5.
    pub learning_rate: f64,
    /// Passes over the data; may be fractional. Default 3.
    pub num_train_epochs: f64,
    /// Number of updates, in place of `num_train_epochs`. Default none; a negative number means none, too.
    #[serde(deserialize_with = "negative_is_none")]
    pub max_steps: Option<u64>,
    /// Sequences in a batch. Default 8, unless `max_tokens_per_batch` is given.
    pub per_device_train_batch_size: Option<usize>,
    /// Tokens in a batch, at most; in place of `per_device_train_batch_size`. Not in `transformers`.
    pub max_tokens_per_batch: Option<usize>,
    /// Sequences in a batch of evaluation. Default: as in training.
    pub per_device_eval_batch_size: Option<usize>,
    /// Batches whose gradients make one update. Default 1.
    pub gradient_accumulation_steps: usize,
    /// The order of examples. Default `random`, or `group_by_length` where `max_tokens_per_batch` is given.
    pub train_sampling_strategy: Option<SamplingStrategy>,
    /// The shape of the learning rate over the run. Default `linear`.
    pub lr_scheduler_type: SchedulerType,
    /// Options of that shape, such as `{num_cycles: 2}`. Default none.
    pub lr_scheduler_kwargs: SchedulerOptions,
    /// The part of the run during which the learning rate rises, in `[0, 1]`. Default 0.
    pub warmup_ratio: f64,
    /// Updates during which the learning rate rises, in place of `warmup_ratio`. Default 0.
    pub warmup_steps: u64,
    /// The optimiser: `adamw` (also `adamw_torch`), `adafactor`, `sgd`, `adamw_8bit` (also `adamw_bnb_8bit`). Default
    /// `adamw`.
    pub optim: OptimizerName,
    /// Options of the optimiser, `name=value` with commas between. `adafactor`: `eps1`, `eps2`, `clip_threshold`,
    /// `decay_rate`, `beta1`, `scale_parameter`; `sgd`: `momentum`, `dampening`, `nesterov`; `adamw_8bit`:
    /// `min_8bit_size`. Default none.
    pub optim_args: Option<String>,
    /// Weight decay: decoupled, but for `sgd`, whose gradient it joins. Default 0.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean. Default 0.9.
    pub adam_beta1: f64,
    /// Decay of the squared gradient's running mean. Default 0.999.
    pub adam_beta2: f64,
    /// Added to the denominator of the update. Default 1e-8.
    pub adam_epsilon: f64,
    /// Gradients of a larger global norm are scaled down to it; 0 turns clipping off. Default 1.
    pub max_grad_norm: f64,
    /// Updates between two lines of the log. Default 10 (`transformers`: 500).
    pub logging_steps: u64,
    /// Updates between two evaluations; one more follows the last update. Default none: only that one.
    pub eval_steps: Option<u64>,
    /// Updates between two checkpoints; one more follows the last update. Default 500.
    pub save_steps: u64,
    /// Checkpoints kept, at least 1; the best one is kept besides. Default none: all.
    pub save_total_limit: Option<usize>,
    /// Whether the result is the checkpoint with the best metric in place of the last one. Default false.
    pub load_best_model_at_end: bool,
    /// The metric that says which checkpoint is best, by the key it has in the log (`eval_` may be left out). Default
    /// `loss`.
    pub metric_for_best_model: MetricValue,
    /// Stop after this many evaluations in a row without a better metric (`transformers`: an argument of its
    /// `EarlyStoppingCallback`). Default none: never.
    pub early_stopping_patience: Option<u64>,
    /// How much better, more than which counts. Default 0.
    pub early_stopping_threshold: f64,
    /// What an evaluation measures, beside the loss and the perplexity. A metric of texts makes it generate
    /// continuations. Default nothing more. Not in `transformers`, where it is code.
    pub metrics: Vec<&'static Metric>,
    /// Whether to take less memory and more time. Default `none`.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Memory that a step may take, in bytes or like `4GB`; a run that would take more is refused. Default none. Not in
    /// `transformers`.
    pub memory_budget: Option<ByteSize>,
    /// The seed of all randomness: initial values, order of examples, dropout. Default 42.
    pub seed: u64,
}

impl Default for TrainingArguments {
    fn default() -> Self {
        Self {
            learning_rate: 5e-5,
            num_train_epochs: 3.0,
            max_steps: None,
            per_device_train_batch_size: None,
            max_tokens_per_batch: None,
            per_device_eval_batch_size: None,
            gradient_accumulation_steps: 1,
            train_sampling_strategy: None,
            lr_scheduler_type: SchedulerType::Linear,
            lr_scheduler_kwargs: SchedulerOptions::default(),
            warmup_ratio: 0.0,
            warmup_steps: 0,
            optim: OptimizerName::Adamw,
            optim_args: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            logging_steps: 10,
            eval_steps: None,
            save_steps: 500,
            save_total_limit: None,
            load_best_model_at_end: false,
            metric_for_best_model: MetricValue::default(),
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            metrics: Vec::new(),
            gradient_checkpointing: GradientCheckpointing::None,
            memory_budget: None,
            seed: 42,
        }
    }
}

const DEFAULT_BATCH_SIZE: usize = 8;

impl TrainingArguments {
    /// Checks every value.
    ///
    /// # Errors
    /// [`TrainError::InvalidArguments`] with all problems.
    pub fn validate(&self) -> Result<(), TrainError> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let finite_from_zero = |value: f64| value.is_finite() && value >= 0.0;

        let rate = self.learning_rate;
        check(finite_from_zero(rate), format!("learning_rate is {rate}, must be a number from 0"));
        let epochs = self.num_train_epochs;
        check(
            self.max_steps.is_some() || (epochs.is_finite() && epochs > 0.0),
            format!("num_train_epochs is {epochs}, must be more than 0"),
        );
        check(self.max_steps != Some(0), "max_steps is 0, must be at least 1 (or left out)".into());
        for (name, value) in [
            ("per_device_train_batch_size", self.per_device_train_batch_size),
            ("max_tokens_per_batch", self.max_tokens_per_batch),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("save_total_limit", self.save_total_limit),
        ] {
            check(value != Some(0), format!("{name} is 0, must be at least 1"));
        }
        for (name, value) in [
            ("logging_steps", Some(self.logging_steps)),
            ("eval_steps", self.eval_steps),
            ("save_steps", Some(self.save_steps)),
            ("early_stopping_patience", self.early_stopping_patience),
        ] {
            check(value != Some(0), format!("{name} is 0, must be at least 1"));
        }
        check(
            self.per_device_train_batch_size.is_none() || self.max_tokens_per_batch.is_none(),
            "per_device_train_batch_size and max_tokens_per_batch are both given: keep one".into(),
        );
        let ratio = self.warmup_ratio;
        check((0.0..=1.0).contains(&ratio), format!("warmup_ratio is {ratio}, must lie between 0 and 1"));
        check(ratio == 0.0 || self.warmup_steps == 0, "warmup_ratio and warmup_steps are both given: keep one".into());
        check(
            self.lr_scheduler_type != SchedulerType::Constant || (ratio == 0.0 && self.warmup_steps == 0),
            "lr_scheduler_type is constant, which has no warm-up: use constant_with_warmup".into(),
        );
        for (name, value) in [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("adam_epsilon", self.adam_epsilon),
            ("early_stopping_threshold", self.early_stopping_threshold),
        ] {
            check(finite_from_zero(value), format!("{name} is {value}, must be a number from 0"));
        }
        for (name, value) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            check((0.0..1.0).contains(&value), format!("{name} is {value}, must be at least 0 and less than 1"));
        }
        check(
            !self.load_best_model_at_end || self.eval_steps.is_some(),
            "load_best_model_at_end is true, which needs eval_steps".into(),
        );
        check(
            self.gradient_checkpointing != GradientCheckpointing::Auto || self.memory_budget.is_some(),
            "gradient_checkpointing is auto, which needs memory_budget".into(),
        );
        check(
            self.early_stopping_patience.is_none() || self.eval_steps.is_some(),
            "early_stopping_patience is given, which needs eval_steps".into(),
        );
        let misfits = self.lr_scheduler_kwargs.misfits(self.lr_scheduler_type, rate);
        problems.extend(misfits.into_iter().map(|problem| format!("lr_scheduler_kwargs: {problem}")));
        if let Err(TrainError::InvalidArguments { problems: wrong }) = self.optimizer() {
            problems.extend(wrong);
        }
        if problems.is_empty() { Ok(()) } else { Err(TrainError::InvalidArguments { problems }) }
    }

    /// What bounds a batch of training.
    pub fn batch_limit(&self) -> BatchLimit {
        match self.max_tokens_per_batch {
            Some(tokens) => BatchLimit::Tokens(tokens),
            None => BatchLimit::Sequences(self.per_device_train_batch_size.unwrap_or(DEFAULT_BATCH_SIZE)),
        }
    }

    /// What bounds a batch of evaluation.
    pub fn eval_batch_limit(&self) -> BatchLimit {
        self.per_device_eval_batch_size.map_or(self.batch_limit(), BatchLimit::Sequences)
    }

    /// The order of examples.
    pub fn sampling(&self) -> SamplingStrategy {
        self.train_sampling_strategy.unwrap_or(match self.batch_limit() {
            BatchLimit::Sequences(_) => SamplingStrategy::Random,
            BatchLimit::Tokens(_) => SamplingStrategy::GroupByLength,
        })
    }

    /// The learning-rate schedule of a run of `total_steps` updates.
    pub fn schedule(&self, total_steps: u64) -> LearningRateSchedule {
        let warmup_steps = match self.warmup_steps {
            0 => (total_steps as f64 * self.warmup_ratio).ceil() as u64,
            steps => steps,
        };
        LearningRateSchedule {
            kind: self.lr_scheduler_type,
            options: self.lr_scheduler_kwargs,
            learning_rate: self.learning_rate,
            warmup_steps,
            total_steps,
        }
    }

    /// The optimiser's rule with its constants.
    ///
    /// # Errors
    /// [`TrainError::InvalidArguments`] with everything that is wrong with `optim_args`.
    pub fn optimizer(&self) -> Result<Box<dyn UpdateRule>, TrainError> {
        let adamw = AdamW { beta1: self.adam_beta1, beta2: self.adam_beta2, epsilon: self.adam_epsilon };
        let args = self.optim_args.as_deref().unwrap_or_default();
        self.optim.rule(adamw, args).map_err(|problems| TrainError::InvalidArguments { problems })
    }
}

/// `-1` is how `transformers` writes "not given".
fn negative_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<i64>::deserialize(deserializer)?.and_then(|steps| u64::try_from(steps).ok()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(values: serde_json::Value) -> TrainingArguments {
        serde_json::from_value(values).unwrap()
    }

    #[test]
    fn names_and_values_are_those_of_transformers() {
        let given = arguments(json!({
            "learning_rate": 2e-4, "max_steps": -1, "lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1,
            "metric_for_best_model": "eval_loss", "train_sampling_strategy": "group_by_length",
        }));
        assert_eq!(given.max_steps, None);
        assert_eq!(given.metric_for_best_model, MetricValue::default());
        assert_eq!(given.sampling(), SamplingStrategy::GroupByLength);
        assert_eq!(given.batch_limit(), BatchLimit::Sequences(8));
        assert_eq!(given.schedule(101).warmup_steps, 11);
        assert_eq!(arguments(json!({"warmup_steps": 30})).schedule(584).warmup_steps, 30);
        given.validate().unwrap();
    }

    #[test]
    fn a_token_budget_sets_the_order_and_the_batches_of_evaluation() {
        let given = arguments(json!({"max_tokens_per_batch": 2048}));
        assert_eq!(given.batch_limit(), BatchLimit::Tokens(2048));
        assert_eq!(given.eval_batch_limit(), BatchLimit::Tokens(2048));
        assert_eq!(given.sampling(), SamplingStrategy::GroupByLength);
        let both = arguments(json!({"max_tokens_per_batch": 2048, "per_device_eval_batch_size": 3}));
        assert_eq!(both.eval_batch_limit(), BatchLimit::Sequences(3));
    }

    #[test]
    fn written_and_read_again_they_are_the_same() {
        let given = arguments(json!({"learning_rate": 0.1 + 0.2, "max_steps": 7, "save_total_limit": 2}));
        assert_eq!(arguments(serde_json::to_value(&given).unwrap()), given);
        assert_eq!(arguments(json!({})), TrainingArguments::default());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let given = arguments(json!({
            "learning_rate": -1.0, "num_train_epochs": 0.0, "per_device_train_batch_size": 0,
            "max_tokens_per_batch": 100, "gradient_accumulation_steps": 0, "warmup_ratio": 1.5, "warmup_steps": 3,
            "adam_beta2": 1.0, "load_best_model_at_end": true,
        }));
        let TrainError::InvalidArguments { problems } = given.validate().unwrap_err() else { panic!() };
        assert_eq!(
            problems,
            [
                "learning_rate is -1, must be a number from 0",
                "num_train_epochs is 0, must be more than 0",
                "per_device_train_batch_size is 0, must be at least 1",
                "gradient_accumulation_steps is 0, must be at least 1",
                "per_device_train_batch_size and max_tokens_per_batch are both given: keep one",
                "warmup_ratio is 1.5, must lie between 0 and 1",
                "warmup_ratio and warmup_steps are both given: keep one",
                "adam_beta2 is 1, must be at least 0 and less than 1",
                "load_best_model_at_end is true, which needs eval_steps",
            ]
        );
    }

    #[test]
    fn a_mistyped_key_is_an_error_that_lists_the_keys() {
        let error = serde_json::from_value::<TrainingArguments>(json!({"learning_rat": 1.0})).unwrap_err().to_string();
        assert!(error.contains("unknown field `learning_rat`, expected one of `learning_rate`"), "{error}");
    }
}
