//! In-context learning: a base model judged by what it makes of demonstrations in its prompt.

mod likelihood;
mod options;
mod prompt;
mod scoring;

use std::collections::HashMap;
use std::time::Instant;

use indexmap::IndexMap;
use serde_json::{Map, Value};
use tunesmith_models::{GenerationDefaults, GenerationOptions, Model, ModelKind, TextTokenizer};
use tunesmith_tensor::{Seed, Workspace};
use tunesmith_train::metrics::{Metric, Scorer};
use tunesmith_train::{Sample, Subject, generate_all};

pub use options::{DemonstrationLabels, IclOptions, Scoring};

use crate::StudyError;
use crate::result::Cost;
use likelihood::likelihoods;
use prompt::Row;
use scoring::Reference;

/// A model that is shown demonstrations.
pub struct InContext<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// What ends its texts.
    pub generation: &'a GenerationDefaults,
    /// Buffers.
    pub workspace: &'a Workspace,
    /// How it is asked.
    pub options: IclOptions,
    /// Rows that demonstrations are drawn from.
    pub train: Vec<Map<String, Value>>,
}

/// What a model made of the questions of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InContextResult {
    /// Metrics, the mean over the orders.
    pub metrics: IndexMap<String, f64>,
    /// Metrics of each order.
    pub orders: Vec<IndexMap<String, f64>>,
    /// What a prediction cost.
    pub cost: Cost,
    /// The first outputs of the first order.
    pub samples: Vec<Sample>,
}

/// Questions, and what would be right.
struct Questions {
    texts: Vec<String>,
    /// Places of labels.
    labels: Vec<usize>,
    /// Right texts.
    references: Vec<Vec<String>>,
}

impl InContext<'_> {
    /// Why it cannot work with such data; nothing where it can.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !matches!(self.model.info().kind, ModelKind::Decoder) {
            problems.push("icl needs a model that continues texts, a decoder".to_owned());
        }
        let Some(row) = self.train.first() else { return problems };
        let known = row.keys().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
        for column in self.options.columns().into_iter().chain([self.options.answer_column.as_str()]) {
            if !row.contains_key(column) {
                problems.push(format!("icl: the data has no column '{column}' (it has {known})"));
            }
        }
        if let (true, Some(answers)) = (problems.is_empty(), &self.options.answers) {
            let unknown = self.train.iter().find(|row| prompt::label(&self.options, row).is_none());
            if let Some(found) = unknown.and_then(|row| row.get(&self.options.answer_column)) {
                let known: Vec<&str> = answers.keys().map(String::as_str).collect();
                problems.push(format!("icl.answers has no words for the label {found}; it has {}", known.join(", ")));
            }
        }
        problems
    }

    /// Asks the questions in `rows`, with demonstrations of that seed in each of the orders.
    ///
    /// # Errors
    /// [`StudyError::Invalid`] if a prompt is longer than the model's context; what tokenizer and metrics run into.
    pub fn ask(
        &self,
        rows: &[Map<String, Value>],
        seed: u64,
        metrics: &[&'static Metric],
        samples: usize,
    ) -> Result<InContextResult, StudyError> {
        let seed = Seed(seed);
        let questions = self.questions(rows);
        let demonstrations = prompt::draw(&self.options, &self.train, seed);
        let mut result = InContextResult::default();
        let (mut tokens, mut seconds) = (0, 0.0);
        for order in 0..self.options.orders {
            let preamble = prompt::preamble(&self.options, &demonstrations, seed, order);
            let start = Instant::now();
            let (measured, read, outputs) = if self.options.scoring == Scoring::Generation {
                self.generated(&preamble, &questions, metrics)?
            } else {
                self.chosen(&preamble, &questions, metrics)?
            };
            seconds += start.elapsed().as_secs_f64();
            tokens += read;
            result.orders.push(measured);
            if order == 0 {
                result.samples = self.samples(&preamble, &questions, outputs, samples);
            }
        }
        let count = self.options.orders as f64;
        if let Some(first) = result.orders.first() {
            let mean = |key: &String| result.orders.iter().filter_map(|order| order.get(key)).sum::<f64>() / count;
            result.metrics = first.keys().map(|key| (key.clone(), mean(key))).collect();
        }
        let asked = questions.texts.len();
        let predictions = (asked * self.options.orders).max(1) as f64;
        result.cost =
            Cost { examples: asked as u64, tokens: tokens as f64 / predictions, seconds: seconds / predictions };
        Ok(result)
    }

    fn questions(&self, rows: &[Row]) -> Questions {
        let mut questions = Questions { texts: Vec::new(), labels: Vec::new(), references: Vec::new() };
        let mut known: HashMap<String, usize> = HashMap::new();
        for row in rows {
            let text = prompt::question(&self.options, row);
            if self.options.answers.is_some() {
                questions.texts.push(text);
                questions.labels.push(prompt::label(&self.options, row).unwrap_or(usize::MAX));
                continue;
            }
            let answer = row.get(&self.options.answer_column).map(prompt::plain).unwrap_or_default();
            match known.get(&text) {
                Some(place) => questions.references[*place].push(answer),
                None => {
                    known.insert(text.clone(), questions.texts.len());
                    questions.texts.push(text);
                    questions.references.push(vec![answer]);
                }
            }
        }
        questions
    }

    fn encode(&self, preamble: &str, question: &str, spare: usize) -> Result<Vec<u32>, StudyError> {
        let ids = self.tokenizer.encode(&format!("{preamble}{question}"), true)?;
        let most = self.model.info().max_positions;
        if ids.len() + spare <= most {
            return Ok(ids);
        }
        let problem = format!(
            "a prompt has {} tokens and its answer {spare}, more than the model's {most}: use fewer demonstrations",
            ids.len()
        );
        Err(StudyError::Invalid { origin: "icl".to_owned(), problems: vec![problem] })
    }

    /// Chooses among the answers. Returns metrics, tokens read, and the chosen words.
    fn chosen(
        &self,
        preamble: &str,
        questions: &Questions,
        metrics: &[&'static Metric],
    ) -> Result<Answered, StudyError> {
        let words: Vec<&String> = self.options.answers.iter().flat_map(IndexMap::values).collect();
        let answers = words.iter().map(|words| self.tokenizer.encode(words, false)).collect::<Result<Vec<_>, _>>()?;
        let spare = answers.iter().map(Vec::len).max().unwrap_or(0);
        let encode_all = |preamble: &str, texts: &[String]| -> Result<Vec<Vec<u32>>, StudyError> {
            texts.iter().map(|text| self.encode(preamble, text, spare)).collect()
        };
        let mut reference = Reference { lengths: answers.iter().map(Vec::len).collect(), ..Reference::default() };
        match self.options.scoring {
            Scoring::Calibrated => {
                let free = self.options.content_free.iter().map(|text| prompt::without_content(&self.options, text));
                let prompts = encode_all(preamble, &free.collect::<Vec<_>>())?;
                reference.content_free = likelihoods(self.model, self.workspace, &prompts, &answers).values;
            }
            Scoring::AnswerContext => {
                let prompts = encode_all("", &[prompt::answer_context(&self.options)])?;
                let mut found = likelihoods(self.model, self.workspace, &prompts, &answers).values;
                reference.answer_context = found.swap_remove(0);
            }
            _ => {}
        }
        let prompts = encode_all(preamble, &questions.texts)?;
        let found = likelihoods(self.model, self.workspace, &prompts, &answers);
        let choose = |values: &Vec<f64>| scoring::choice(&scoring::scores(self.options.scoring, values, &reference));
        let choices: Vec<usize> = found.values.iter().map(choose).collect();
        let measured = of_classes(&choices, &questions.labels, metrics)?;
        Ok((measured, found.tokens, choices.into_iter().map(|place| words[place].trim().to_owned()).collect()))
    }

    /// Lets the model write. Returns metrics, tokens read, and the texts.
    fn generated(
        &self,
        preamble: &str,
        questions: &Questions,
        metrics: &[&'static Metric],
    ) -> Result<Answered, StudyError> {
        let spare = self.options.max_new_tokens;
        let prompts: Vec<Vec<u32>> =
            questions.texts.iter().map(|text| self.encode(preamble, text, spare)).collect::<Result<_, _>>()?;
        let mut options = GenerationOptions::greedy(spare, self.generation);
        options.stop = vec!["\n".to_owned(), self.options.separator.clone()];
        options.stop.retain(|text| !text.is_empty());
        let Self { model, tokenizer, workspace, .. } = *self;
        let subject = Subject { model, tokenizer, adapters: &[None], workspace };
        let texts = generate_all(&subject, &prompts, &options, |_| {});
        let tokens = prompts.iter().map(Vec::len).sum();
        let Some(answers) = &self.options.answers else {
            let mut measured = IndexMap::new();
            for metric in metrics {
                if let Scorer::Texts(score) = metric.scorer {
                    measured.extend(metric.named(score(&texts, &questions.references)?));
                }
            }
            return Ok((measured, tokens, texts));
        };
        // What is no answer is wrong.
        let wrong = |label: usize| (label + 1) % answers.len();
        let choice = |(text, label): (&String, &usize)| {
            scoring::written(text, answers.values()).unwrap_or_else(|| wrong(*label % answers.len()))
        };
        let choices: Vec<usize> = texts.iter().zip(&questions.labels).map(choice).collect();
        Ok((of_classes(&choices, &questions.labels, metrics)?, tokens, texts))
    }

    fn samples(&self, preamble: &str, questions: &Questions, outputs: Vec<String>, count: usize) -> Vec<Sample> {
        let expected = |place: usize| match &self.options.answers {
            Some(answers) => questions
                .labels
                .get(place)
                .and_then(|label| answers.get_index(*label))
                .map(|(_, words)| words.trim().to_owned()),
            None => questions.references.get(place).map(|texts| texts.join("\n")),
        };
        let sample = |(place, output): (usize, String)| Sample {
            // The demonstrations are the same for all.
            input: if place == 0 {
                format!("{preamble}{}", questions.texts[0])
            } else {
                questions.texts[place].clone()
            },
            expected: expected(place).unwrap_or_default(),
            output,
        };
        outputs.into_iter().enumerate().take(count).map(sample).collect()
    }
}

/// Metrics, tokens read, and what was chosen or written.
type Answered = (IndexMap<String, f64>, usize, Vec<String>);

fn of_classes(
    choices: &[usize],
    labels: &[usize],
    metrics: &[&'static Metric],
) -> Result<IndexMap<String, f64>, StudyError> {
    let mut measured = IndexMap::new();
    for metric in metrics {
        if let Scorer::Classes(score) = metric.scorer {
            measured.extend(metric.named(score(choices, labels)?));
        }
    }
    Ok(measured)
}
