//! Evaluation: the loss over a data set, and metrics over generations.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use tunesmith_models::{GenerationOptions, generate};
use tunesmith_tensor::{Seed, Tape};

use crate::metrics::{METRICS, Metric, MetricValue, Scorer};
use crate::tasks::majority;
use crate::{BatchLimit, BatchPlan, Example, GenerationCase, SamplingStrategy, Subject, TrainError, TrainingSet};

/// Prompts that are continued together.
const GENERATION_BATCH: usize = 32;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What was measured, by the metrics' keys, in the order of the report.
    pub metrics: IndexMap<String, f64>,
    /// Labelled tokens.
    pub tokens: usize,
}

impl Evaluation {
    /// What a mean `loss` over `tokens` labelled tokens tells.
    pub fn of_loss(loss: f64, tokens: usize) -> Self {
        let metrics = METRICS.iter().filter_map(|metric| match metric.scorer {
            Scorer::Loss(score) => Some(metric.named(vec![score(loss)])),
            _ => None,
        });
        Self { metrics: metrics.flatten().collect(), tokens }
    }

    /// The metric with that key, if it was measured.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.metrics.get(key).copied()
    }
}

/// What a model makes of one example, for people to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What it read.
    pub input: String,
    /// What would be right; several answers are separated by lines.
    pub expected: String,
    /// What it says.
    pub output: String,
}

/// A held-out set of any task.
pub trait HeldOut {
    /// Number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys of what [`HeldOut::evaluate`] measures.
    fn keys(&self) -> Vec<String>;

    /// Loss and metrics.
    ///
    /// # Errors
    /// [`TrainError::ExceedsBudget`], [`TrainError::References`], or that a metric cannot be computed.
    fn evaluate(&self, subject: &Subject<'_>, limit: BatchLimit) -> Result<Evaluation, TrainError>;

    /// Tokens of every example that a prediction reads.
    fn lengths(&self) -> Vec<usize>;

    /// What the model makes of the first `count` examples; of a set of texts without prompts, nothing.
    ///
    /// # Errors
    /// [`TrainError::ExceedsBudget`].
    fn samples(&self, subject: &Subject<'_>, count: usize) -> Result<Vec<Sample>, TrainError>;
}

/// A held-out set of texts: examples for the loss and perhaps prompts for generations.
#[derive(Clone, Debug)]
pub struct Validation {
    /// Tokenised examples.
    pub examples: Vec<Example>,
    /// What to generate, for the metrics of texts.
    pub generation: Option<GenerationTask>,
}

/// Prompts with their references.
#[derive(Clone, Debug)]
pub struct GenerationTask {
    /// Prompts, each with at least one reference.
    pub cases: Vec<GenerationCase>,
    /// How to continue them.
    pub options: GenerationOptions,
    /// What to measure of the continuations; metrics that need something else are passed over.
    pub metrics: Vec<&'static Metric>,
}

impl GenerationTask {
    /// Continues every prompt and scores the texts against the references. `on_done(n)` says how many are done.
    ///
    /// # Errors
    /// [`TrainError::References`].
    pub fn score(
        &self,
        subject: &Subject<'_>,
        on_done: impl FnMut(usize),
    ) -> Result<(IndexMap<String, f64>, Vec<String>), TrainError> {
        let prompts: Vec<Vec<u32>> = self.cases.iter().map(|case| case.prompt_ids.clone()).collect();
        let texts = generate_all(subject, &prompts, &self.options, on_done);
        let references: Vec<Vec<String>> = self.cases.iter().map(|case| case.references.clone()).collect();
        let mut measured = IndexMap::new();
        for metric in &self.metrics {
            if let Scorer::Texts(score) = metric.scorer {
                measured.extend(metric.named(score(&texts, &references)?));
            }
        }
        Ok((measured, texts))
    }

    /// Continues the first `count` prompts.
    pub(crate) fn samples(&self, subject: &Subject<'_>, count: usize) -> Vec<Sample> {
        let cases = &self.cases[..count.min(self.cases.len())];
        let prompts: Vec<Vec<u32>> = cases.iter().map(|case| case.prompt_ids.clone()).collect();
        let texts = generate_all(subject, &prompts, &self.options, |_| {});
        let sample = |(case, output): (&GenerationCase, String)| Sample {
            input: case.prompt.clone(),
            expected: case.references.join("\n"),
            output,
        };
        cases.iter().zip(texts).map(sample).collect()
    }

    /// Tokens of every prompt.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.cases.iter().map(|case| case.prompt_ids.len()).collect()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &'static MetricValue> {
        self.metrics.iter().filter(|metric| metric.needs_texts()).flat_map(|metric| metric.values)
    }
}

/// The mean loss over `examples`, in batches within `limit`.
///
/// # Errors
/// [`TrainError::ExceedsBudget`] if an example exceeds the limit; [`TrainError::NoExamples`].
pub fn evaluate_loss(
    subject: &Subject<'_>,
    examples: &dyn TrainingSet,
    limit: BatchLimit,
) -> Result<Evaluation, TrainError> {
    let Subject { model, adapters, workspace, .. } = *subject;
    let lengths = examples.lengths();
    if lengths.is_empty() {
        return Err(TrainError::NoExamples { purpose: "evaluate on" });
    }
    let plan = BatchPlan::new(lengths, limit, SamplingStrategy::Sequential, Seed(0))?;
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in plan.epoch(0) {
        let batch = examples.batch(&batch);
        for adapter in adapters {
            sum += workspace.run(|| batch.loss(&mut Tape::evaluating(workspace), model, *adapter).total);
        }
        tokens += batch.labelled();
    }
    let loss = sum / (tokens * adapters.len()).max(1) as f64;
    Ok(Evaluation::of_loss(loss, tokens))
}

/// Continues every prompt and returns the texts, in the prompts' order: of several adapters, which run side by side in one
/// batch, the text that most of them write, and the first's among equals. Prompts of similar length run together.
pub fn generate_all(
    subject: &Subject<'_>,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    mut on_done: impl FnMut(usize),
) -> Vec<String> {
    let Subject { model, tokenizer, adapters, workspace } = *subject;
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| prompts[*index].len());
    let mut texts = vec![String::new(); prompts.len()];
    let together = (GENERATION_BATCH / adapters.len()).max(1);
    for (done, batch) in order.chunks(together).enumerate() {
        let inputs: Vec<Vec<u32>> =
            adapters.iter().flat_map(|_| batch.iter().map(|index| prompts[*index].clone())).collect();
        let each: Vec<_> = adapters.iter().flat_map(|adapter| vec![*adapter; batch.len()]).collect();
        let generated = generate(model, tokenizer, workspace, &inputs, &each, options, |_, _| {});
        for (place, index) in batch.iter().enumerate() {
            let votes: Vec<&str> =
                generated.iter().skip(place).step_by(batch.len()).map(|generated| generated.text.trim()).collect();
            texts[*index] = votes[majority(&votes, |_| 0.0)].to_owned();
        }
        on_done((done * together + batch.len()).min(prompts.len()));
    }
    texts
}

impl HeldOut for Validation {
    fn len(&self) -> usize {
        self.examples.len()
    }

    fn keys(&self) -> Vec<String> {
        let generated = self.generation.iter().flat_map(GenerationTask::values).map(|value| value.key.to_owned());
        Evaluation::of_loss(0.0, 0).metrics.into_keys().chain(generated).collect()
    }

    fn evaluate(&self, subject: &Subject<'_>, limit: BatchLimit) -> Result<Evaluation, TrainError> {
        let mut evaluation = evaluate_loss(subject, &self.examples, limit)?;
        if let Some(task) = &self.generation {
            evaluation.metrics.extend(task.score(subject, |_| {})?.0);
        }
        Ok(evaluation)
    }

    fn lengths(&self) -> Vec<usize> {
        match &self.generation {
            Some(task) => task.lengths(),
            None => self.examples.iter().map(|example| example.ids.len()).collect(),
        }
    }

    fn samples(&self, subject: &Subject<'_>, count: usize) -> Result<Vec<Sample>, TrainError> {
        Ok(self.generation.iter().flat_map(|task| task.samples(subject, count)).collect())
    }
}
