//! Predictions of tasks, and their scores.

use indexmap::IndexMap;
use tunesmith_models::{HeadInfo, ProblemType, Task, TextTokenizer};
use tunesmith_tensor::{IGNORED_TARGET, Matrix};

use crate::evaluate::{Evaluation, GenerationTask, HeldOut, Sample, evaluate_loss};
use crate::metrics::{Metric, Scorer};
use crate::tasks::outputs::{Outputs, outputs};
use crate::tasks::vote::elect;
use crate::tasks::{Target, TaskDataset, TaskOptions, spans};
use crate::{BatchLimit, Subject, TrainError};

/// What a model says of one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// The most probable class, and the probability of each.
    Class(usize, Vec<f64>),
    /// Whether each label holds, and its probability.
    Flags(Vec<bool>, Vec<f64>),
    /// A number for each output.
    Numbers(Vec<f64>),
    /// The class of each word.
    Tags(Vec<usize>),
    /// The answer to a question, empty where there is none, and its probability.
    Answer(String, f64),
    /// The mean of the hidden states.
    Features(Vec<f32>),
}

/// A held-out set of a task.
pub struct TaskValidation {
    /// Its examples.
    pub dataset: TaskDataset,
    /// The task's options.
    pub options: TaskOptions,
    /// What to measure beside the loss; metrics that need something else are passed over. Empty: what is usual.
    pub metrics: Vec<&'static Metric>,
    /// `SEQ_2_SEQ_LM`: what to generate.
    pub generation: Option<GenerationTask>,
    /// What it is for.
    pub task: Task,
    /// What the outputs of a sequence classifier mean.
    pub problem: ProblemType,
    /// Names of the labels.
    pub labels: Vec<String>,
}

impl TaskValidation {
    /// A set for a model with `head`.
    pub fn new(dataset: TaskDataset, options: TaskOptions, metrics: Vec<&'static Metric>, head: &HeadInfo) -> Self {
        let (task, problem, labels) = (head.task, head.problem(), head.labels.clone());
        Self { dataset, options, metrics, generation: None, task, problem, labels }
    }

    /// What the model says of each example, of each question where there are questions. Several adapters run side by side in
    /// one batch.
    ///
    /// # Errors
    /// [`TrainError::ExceedsBudget`].
    pub fn predict(&self, subject: &Subject<'_>, limit: BatchLimit) -> Result<Vec<Prediction>, TrainError> {
        Ok(self.predictions(&outputs(&self.dataset, subject, limit)?))
    }

    fn predictions(&self, outputs: &Outputs) -> Vec<Prediction> {
        let mut voters: Vec<_> = outputs.rows.iter().map(|rows| self.predictions_of(rows).into_iter()).collect();
        let next = || voters.iter_mut().map(Iterator::next).collect::<Option<Vec<Prediction>>>();
        std::iter::from_fn(next).map(elect).collect()
    }

    fn predictions_of(&self, outputs: &[Matrix]) -> Vec<Prediction> {
        match self.task {
            Task::QuestionAns => {
                let answer = |question: &crate::tasks::Question| {
                    let scores: Vec<&[f32]> =
                        question.windows.iter().map(|window| outputs[window.example].data()).collect();
                    let answer = spans::answer(question, &scores, &self.options);
                    Prediction::Answer(answer.text, answer.probability)
                };
                self.dataset.questions.iter().map(answer).collect()
            }
            Task::TokenCls => {
                let rows = outputs.iter().zip(&self.dataset.examples);
                rows.map(|(rows, example)| Prediction::Tags(tags(rows, &example.target))).collect()
            }
            Task::FeatureExtraction => outputs.iter().map(|row| Prediction::Features(row.row(0).to_vec())).collect(),
            _ => outputs.iter().map(|row| self.of_sequence(row.row(0))).collect(),
        }
    }

    fn of_sequence(&self, row: &[f32]) -> Prediction {
        match self.problem {
            ProblemType::Regression => Prediction::Numbers(row.iter().map(|value| f64::from(*value)).collect()),
            ProblemType::MultiLabelClassification => {
                let probability = |value: &f32| 1.0 / (1.0 + (-f64::from(*value)).exp());
                Prediction::Flags(row.iter().map(|value| *value > 0.0).collect(), row.iter().map(probability).collect())
            }
            ProblemType::SingleLabelClassification => {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f64> = row.iter().map(|value| f64::from(value - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                Prediction::Class(likeliest(row), weights.into_iter().map(|weight| weight / total).collect())
            }
        }
    }

    /// The metrics that this set is measured by.
    fn measured(&self) -> Vec<&'static Metric> {
        let usual: &[&str] = match (self.task, self.problem) {
            (Task::SeqCls, ProblemType::Regression) => &["pearson", "spearmanr", "mse"],
            (Task::SeqCls, ProblemType::MultiLabelClassification) => &["accuracy", "f1"],
            (Task::SeqCls, _) if self.labels.len() == 2 => &["accuracy", "f1"],
            (Task::SeqCls, _) => &["accuracy", "f1_macro"],
            (Task::TokenCls, _) => &["seqeval"],
            (Task::QuestionAns, _) => &["squad"],
            _ => &[],
        };
        if self.metrics.is_empty() {
            return usual.iter().filter_map(|name| Metric::by_name(name).ok()).collect();
        }
        self.metrics.iter().copied().filter(|metric| self.fits(metric)).collect()
    }

    /// Whether a metric can be computed of this task's predictions.
    fn fits(&self, metric: &Metric) -> bool {
        match metric.scorer {
            Scorer::Loss(_) => false,
            Scorer::Classes(_) => {
                self.task == Task::TokenCls || (self.task == Task::SeqCls && self.problem != ProblemType::Regression)
            }
            Scorer::Scores(_) => self.task == Task::SeqCls && self.problem == ProblemType::Regression,
            Scorer::Tags(_) => self.task == Task::TokenCls,
            Scorer::Texts(_) => self.task == Task::QuestionAns,
        }
    }

    fn score(&self, predictions: &[Prediction]) -> Result<IndexMap<String, f64>, TrainError> {
        let (mut classes, mut labels) = (Vec::new(), Vec::new());
        let (mut numbers, mut known) = (Vec::new(), Vec::new());
        let (mut tags, mut known_tags) = (Vec::new(), Vec::new());
        let name = |place: &usize| self.labels.get(*place).cloned().unwrap_or_default();
        for (prediction, example) in predictions.iter().zip(&self.dataset.examples) {
            match (prediction, &example.target) {
                (Prediction::Class(class, _), Target::Class(label)) => {
                    classes.push(*class);
                    labels.push(*label as usize);
                }
                (Prediction::Flags(flags, _), Target::Flags(truth)) => {
                    classes.extend(flags.iter().map(|flag| usize::from(*flag)));
                    labels.extend(truth.iter().map(|flag| usize::from(*flag > 0.5)));
                }
                (Prediction::Numbers(found), Target::Numbers(truth)) => {
                    numbers.extend(found);
                    known.extend(truth.iter().map(|number| f64::from(*number)));
                }
                (Prediction::Tags(found), Target::Tags(truth)) => {
                    let truth: Vec<usize> =
                        truth.iter().filter(|class| **class != IGNORED_TARGET).map(|class| *class as usize).collect();
                    tags.push(found.iter().map(name).collect::<Vec<String>>());
                    known_tags.push(truth.iter().map(name).collect::<Vec<String>>());
                    classes.extend(found);
                    labels.extend(truth);
                }
                _ => {}
            }
        }
        let (texts, references) = self.texts(predictions);
        let mut measured = IndexMap::new();
        for metric in self.measured() {
            measured.extend(metric.named(match metric.scorer {
                Scorer::Loss(_) => continue,
                Scorer::Classes(score) => score(&classes, &labels)?,
                Scorer::Scores(score) => score(&numbers, &known),
                Scorer::Tags(score) => score(&tags, &known_tags),
                Scorer::Texts(score) => score(&texts, &references)?,
            }));
        }
        Ok(measured)
    }

    /// Answers, and the right ones of each question; an empty one where there is none.
    fn texts(&self, predictions: &[Prediction]) -> (Vec<String>, Vec<Vec<String>>) {
        let answered = predictions.iter().zip(&self.dataset.questions).filter_map(|(prediction, question)| {
            let Prediction::Answer(answer, _) = prediction else { return None };
            let mut right = question.answers.clone();
            if right.is_empty() {
                right.push(String::new());
            }
            Some((answer.clone(), right))
        });
        answered.unzip()
    }
}

/// Examples of which samples are shown run together.
const SAMPLE_BATCH: usize = 16;

impl TaskValidation {
    /// A prediction beside what was read and what is right, in words; none of what has none.
    fn sample(&self, place: usize, prediction: &Prediction, tokenizer: &TextTokenizer) -> Option<Sample> {
        let names = |places: &mut dyn Iterator<Item = usize>| {
            places.map(|place| self.labels.get(place).cloned().unwrap_or_default()).collect::<Vec<_>>().join(" ")
        };
        if let (Prediction::Answer(output, _), Some(question)) = (prediction, self.dataset.questions.get(place)) {
            let window = self.dataset.examples.get(question.windows.first()?.example)?;
            let (input, expected) = (tokenizer.decode(&window.ids, true), question.answers.join("\n"));
            return Some(Sample { input, expected, output: output.clone() });
        }
        let example = self.dataset.examples.get(place)?;
        let set = |flags: &mut dyn Iterator<Item = bool>| {
            names(&mut flags.enumerate().filter(|(_, on)| *on).map(|(at, _)| at))
        };
        let (expected, output) = match (prediction, &example.target) {
            (Prediction::Class(class, _), Target::Class(label)) => {
                (names(&mut std::iter::once(*label as usize)), names(&mut std::iter::once(*class)))
            }
            (Prediction::Flags(flags, _), Target::Flags(truth)) => {
                (set(&mut truth.iter().map(|flag| *flag > 0.5)), set(&mut flags.iter().copied()))
            }
            (Prediction::Numbers(found), Target::Numbers(truth)) => {
                let shown = |values: &mut dyn Iterator<Item = f64>| {
                    values.map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(" ")
                };
                (shown(&mut truth.iter().map(|value| f64::from(*value))), shown(&mut found.iter().copied()))
            }
            (Prediction::Tags(found), Target::Tags(truth)) => {
                let truth = truth.iter().filter(|class| **class != IGNORED_TARGET).map(|class| *class as usize);
                (names(&mut { truth }), names(&mut found.iter().copied()))
            }
            _ => return None,
        };
        Some(Sample { input: self.dataset.text(place, tokenizer), expected, output })
    }
}

/// The class of each word, by its first token.
fn tags(rows: &Matrix, target: &Target) -> Vec<usize> {
    let Target::Tags(classes) = target else { return Vec::new() };
    let labelled = classes.iter().enumerate().filter(|(_, class)| **class != IGNORED_TARGET);
    labelled.map(|(row, _)| likeliest(rows.row(row))).collect()
}

/// The place of the largest value, the first of equals.
fn likeliest(row: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = place;
        }
    }
    best
}

impl HeldOut for TaskValidation {
    fn len(&self) -> usize {
        self.dataset.examples.len()
    }

    fn keys(&self) -> Vec<String> {
        let measured = self.measured();
        let own = measured.iter().flat_map(|metric| metric.values).map(|value| value.key.to_owned());
        let generated = self.generation.iter().flat_map(GenerationTask::values).map(|value| value.key.to_owned());
        std::iter::once("loss".to_owned()).chain(own).chain(generated).collect()
    }

    fn evaluate(&self, subject: &Subject<'_>, limit: BatchLimit) -> Result<Evaluation, TrainError> {
        if self.task == Task::Seq2SeqLm {
            let mut evaluation = evaluate_loss(subject, &self.dataset, limit)?;
            evaluation.metrics.retain(|key, _| key == "loss");
            if let Some(task) = &self.generation {
                evaluation.metrics.extend(task.score(subject, |_| {})?.0);
            }
            return Ok(evaluation);
        }
        let outputs = outputs(&self.dataset, subject, limit)?;
        let mut metrics = IndexMap::new();
        metrics.insert("loss".to_owned(), outputs.loss / outputs.labelled.max(1) as f64);
        metrics.extend(self.score(&self.predictions(&outputs))?);
        Ok(Evaluation { metrics, tokens: outputs.labelled / subject.adapters.len() })
    }

    fn lengths(&self) -> Vec<usize> {
        match &self.generation {
            Some(task) => task.lengths(),
            None => self.dataset.examples.iter().map(|example| example.ids.len()).collect(),
        }
    }

    fn samples(&self, subject: &Subject<'_>, count: usize) -> Result<Vec<Sample>, TrainError> {
        if self.task == Task::Seq2SeqLm {
            return Ok(self.generation.iter().flat_map(|task| task.samples(subject, count)).collect());
        }
        let first = self.dataset.first(count);
        let outputs = outputs(&first, subject, BatchLimit::Sequences(SAMPLE_BATCH))?;
        let set = Self {
            dataset: first,
            options: self.options.clone(),
            metrics: Vec::new(),
            generation: None,
            labels: self.labels.clone(),
            ..*self
        };
        let predictions = set.predictions(&outputs);
        Ok(predictions
            .iter()
            .enumerate()
            .filter_map(|(place, found)| set.sample(place, found, subject.tokenizer))
            .collect())
    }
}
