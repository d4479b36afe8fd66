//! Every metric by name: what it needs, what values it gives, and which way is better.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Average, Words, accuracy, corpus_bleu, corpus_chrf, corpus_chrf_plus_plus, corpus_cider, corpus_nist, corpus_rouge,
    exact_match, f1, logical_form_accuracy, matthews_correlation, mean_meteor, mean_squared_error, pearson, seqeval,
    spearman, squad,
};
use crate::{TrainError, nearest};

/// A metric, as configurations, logs and reports name it.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Other names it goes by.
    pub aliases: &'static [&'static str],
    /// What it is, in a sentence for people who choose one.
    pub description: &'static str,
    /// What it gives, in order. No two metrics share a key.
    pub values: &'static [MetricValue],
    /// How it is computed, and from what.
    pub scorer: Scorer,
}

/// One number that a metric gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricValue {
    /// Its name in results; in logs `eval_` stands before it.
    pub key: &'static str,
    /// Which of two values is better.
    pub higher_is_better: bool,
}

/// Scores predicted classes against labels.
pub type ClassScorer = fn(&[usize], &[usize]) -> Result<Vec<f64>, TrainError>;
/// Scores the predicted tags of sentences against the labels.
pub type TagScorer = fn(&[Vec<String>], &[Vec<String>]) -> Vec<f64>;
/// Scores texts against the references of each.
pub type TextScorer = fn(&[String], &[Vec<String>]) -> Result<Vec<f64>, TrainError>;

/// What a metric needs, with the function that makes its values of it, one for each of [`Metric::values`].
#[derive(Clone, Copy, Debug)]
pub enum Scorer {
    /// The mean loss of a labelled token, in nats.
    Loss(fn(f64) -> f64),
    /// Predicted classes, and labels.
    Classes(ClassScorer),
    /// Predicted numbers, and labels.
    Scores(fn(&[f64], &[f64]) -> Vec<f64>),
    /// Tags of the tokens of each sentence, predicted and labelled.
    Tags(TagScorer),
    /// Generated texts, each with its references.
    Texts(TextScorer),
}

const fn higher(key: &'static str) -> MetricValue {
    MetricValue { key, higher_is_better: true }
}

const fn lower(key: &'static str) -> MetricValue {
    MetricValue { key, higher_is_better: false }
}

/// All metrics.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "loss",
        aliases: &[],
        description: "mean cross-entropy of a labelled token, in nats",
        values: &[lower("loss")],
        scorer: Scorer::Loss(|loss| loss),
    },
    Metric {
        name: "perplexity",
        aliases: &["ppl"],
        description: "the exponential of the loss",
        values: &[lower("perplexity")],
        scorer: Scorer::Loss(f64::exp),
    },
    Metric {
        name: "accuracy",
        aliases: &[],
        description: "share of right classes",
        values: &[higher("accuracy")],
        scorer: Scorer::Classes(|found, labels| Ok(vec![accuracy(found, labels)])),
    },
    Metric {
        name: "f1",
        aliases: &["f1_binary"],
        description: "F1 of class 1, of two classes, as scikit-learn computes it",
        values: &[higher("f1")],
        scorer: Scorer::Classes(binary_f1),
    },
    Metric {
        name: "f1_macro",
        aliases: &[],
        description: "mean F1 of the classes, as scikit-learn computes it",
        values: &[higher("f1_macro")],
        scorer: Scorer::Classes(|found, labels| Ok(vec![f1(found, labels, Average::Macro)])),
    },
    Metric {
        name: "f1_micro",
        aliases: &[],
        description: "F1 of all decisions together, as scikit-learn computes it",
        values: &[higher("f1_micro")],
        scorer: Scorer::Classes(|found, labels| Ok(vec![f1(found, labels, Average::Micro)])),
    },
    Metric {
        name: "f1_weighted",
        aliases: &[],
        description: "mean F1 of the classes, each weighed by its number of labels, as scikit-learn computes it",
        values: &[higher("f1_weighted")],
        scorer: Scorer::Classes(|found, labels| Ok(vec![f1(found, labels, Average::Weighted)])),
    },
    Metric {
        name: "matthews_correlation",
        aliases: &["mcc", "matthews"],
        description: "Matthews' correlation coefficient, -1 to 1",
        values: &[higher("matthews_correlation")],
        scorer: Scorer::Classes(|found, labels| Ok(vec![matthews_correlation(found, labels)])),
    },
    Metric {
        name: "pearson",
        aliases: &["pearsonr"],
        description: "Pearson's correlation of numbers, -1 to 1",
        values: &[higher("pearson")],
        scorer: Scorer::Scores(|found, labels| vec![pearson(found, labels)]),
    },
    Metric {
        name: "spearmanr",
        aliases: &["spearman"],
        description: "Spearman's correlation of ranks, -1 to 1",
        values: &[higher("spearmanr")],
        scorer: Scorer::Scores(|found, labels| vec![spearman(found, labels)]),
    },
    Metric {
        name: "mse",
        aliases: &["mean_squared_error"],
        description: "mean squared error of numbers",
        values: &[lower("mse")],
        scorer: Scorer::Scores(|found, labels| vec![mean_squared_error(found, labels)]),
    },
    Metric {
        name: "seqeval",
        aliases: &["entities"],
        description: "precision, recall and F1 of entities, 0 to 1, as seqeval computes them",
        values: &[
            higher("overall_precision"),
            higher("overall_recall"),
            higher("overall_f1"),
            higher("overall_accuracy"),
        ],
        scorer: Scorer::Tags(|found, labels| {
            let entities = seqeval(found, labels);
            vec![entities.precision, entities.recall, entities.f1, entities.accuracy]
        }),
    },
    Metric {
        name: "bleu",
        aliases: &["sacrebleu"],
        description: "corpus BLEU, 0 to 100, as sacrebleu computes it",
        values: &[higher("bleu")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_bleu(texts, references)?.score])),
    },
    Metric {
        name: "nist",
        aliases: &["nist_mt"],
        description: "NIST of the corpus, from 0, as mteval-13a and the E2E challenge compute it",
        values: &[higher("nist")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_nist(texts, references)?])),
    },
    Metric {
        name: "chrf",
        aliases: &["chrf2"],
        description: "chrF of the corpus, 0 to 100, as sacrebleu computes it",
        values: &[higher("chrf")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_chrf(texts, references)?])),
    },
    Metric {
        name: "chrf++",
        aliases: &["chrf2++"],
        description: "chrF++ of the corpus, 0 to 100, as sacrebleu computes it",
        values: &[higher("chrf++")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_chrf_plus_plus(texts, references)?])),
    },
    Metric {
        name: "rouge",
        aliases: &[],
        description: "ROUGE-1, 2, L and Lsum, 0 to 1, as rouge_score computes them",
        values: &[higher("rouge1"), higher("rouge2"), higher("rougeL"), higher("rougeLsum")],
        scorer: Scorer::Texts(|texts, references| rouge(texts, references, Words::Whole)),
    },
    Metric {
        name: "rouge_stemmed",
        aliases: &[],
        description: "the same of Porter stems",
        values: &[
            higher("rouge1_stemmed"),
            higher("rouge2_stemmed"),
            higher("rougeL_stemmed"),
            higher("rougeLsum_stemmed"),
        ],
        scorer: Scorer::Texts(|texts, references| rouge(texts, references, Words::Stemmed)),
    },
    Metric {
        name: "meteor",
        aliases: &[],
        description: "mean METEOR, 0 to 1, as NLTK computes it without WordNet",
        values: &[higher("meteor")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![mean_meteor(texts, references)?])),
    },
    Metric {
        name: "cider",
        aliases: &[],
        description: "CIDEr of the corpus, 0 to 10, as pycocoevalcap computes it",
        values: &[higher("cider")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_cider(texts, references)?])),
    },
    Metric {
        name: "exact_match",
        aliases: &["em"],
        description: "share of texts equal to a reference but for case and white space",
        values: &[higher("exact_match")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![exact_match(texts, references)?])),
    },
    Metric {
        name: "squad",
        aliases: &["squad_v2"],
        description: "exact match and F1 of answers, 0 to 100, as SQuAD's script computes them",
        values: &[higher("squad_em"), higher("squad_f1")],
        scorer: Scorer::Texts(|texts, references| {
            let measured = squad(texts, references)?;
            Ok(vec![measured.exact_match, measured.f1])
        }),
    },
    Metric {
        name: "logical_form",
        aliases: &["wikisql"],
        description: "share of queries that mean the same as a reference, as WikiSQL decides it",
        values: &[higher("logical_form")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![logical_form_accuracy(texts, references)?])),
    },
];

fn binary_f1(found: &[usize], labels: &[usize]) -> Result<Vec<f64>, TrainError> {
    match found.iter().chain(labels).max() {
        Some(class @ 2..) => Err(TrainError::MetricInput {
            metric: "f1",
            reason: format!("it is for the classes 0 and 1, and there is a class {class}: use f1_macro or f1_micro"),
        }),
        _ => Ok(vec![f1(found, labels, Average::Binary)]),
    }
}

fn rouge(texts: &[String], references: &[Vec<String>], words: Words) -> Result<Vec<f64>, TrainError> {
    let rouge = corpus_rouge(texts, references, words)?;
    Ok(vec![rouge.rouge1, rouge.rouge2, rouge.rouge_l, rouge.rouge_lsum])
}

impl Metric {
    /// The metric of that name or alias, whatever its case.
    ///
    /// # Errors
    /// [`TrainError::UnknownMetric`] with the nearest name.
    pub fn by_name(name: &str) -> Result<&'static Self, TrainError> {
        let named = |metric: &&Self| metric.names().any(|known| known.eq_ignore_ascii_case(name));
        METRICS.iter().find(named).ok_or_else(|| unknown(name, METRICS.iter().flat_map(Self::names)))
    }

    /// Whether it is computed of generated texts.
    pub fn needs_texts(&self) -> bool {
        matches!(self.scorer, Scorer::Texts(_))
    }

    /// Its values with their keys.
    pub fn named(&self, values: Vec<f64>) -> impl Iterator<Item = (String, f64)> {
        debug_assert_eq!(values.len(), self.values.len(), "{}", self.name);
        self.values.iter().map(|value| value.key.to_owned()).zip(values)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Metric::by_name(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl MetricValue {
    /// The value of that key, whatever its case, with or without `eval_` before it; a metric that gives a single value
    /// may be named in its place.
    ///
    /// # Errors
    /// [`TrainError::UnknownMetric`] with the nearest key.
    pub fn by_key(key: &str) -> Result<Self, TrainError> {
        let key = key.strip_prefix("eval_").unwrap_or(key);
        let values = || METRICS.iter().flat_map(|metric| metric.values);
        if let Some(value) = values().find(|value| value.key.eq_ignore_ascii_case(key)) {
            return Ok(*value);
        }
        match Metric::by_name(key) {
            Ok(Metric { values: [value], .. }) => Ok(*value),
            Ok(Metric { values, .. }) => Err(unknown(key, values.iter().map(|value| value.key))),
            Err(_) => Err(unknown(key, values().map(|value| value.key))),
        }
    }

    /// Whether `value` is better than `best`, the best so far. NaN never is.
    pub fn improves(self, value: f64, best: Option<f64>) -> bool {
        match best {
            _ if value.is_nan() => false,
            None => true,
            Some(best) => (value > best) == self.higher_is_better && value != best,
        }
    }
}

/// The loss.
impl Default for MetricValue {
    fn default() -> Self {
        lower("loss")
    }
}

impl Serialize for MetricValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.key)
    }
}

impl<'de> Deserialize<'de> for MetricValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::by_key(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> TrainError {
    let known: Vec<&str> = known.collect();
    let nearest = nearest(name, known.iter().copied());
    TrainError::UnknownMetric { name: name.to_owned(), nearest, known }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn no_name_and_no_key_is_taken_twice() {
        let mut names: Vec<_> = METRICS.iter().flat_map(Metric::names).map(str::to_lowercase).collect();
        let mut keys: Vec<_> =
            METRICS.iter().flat_map(|metric| metric.values).map(|value| value.key.to_lowercase()).collect();
        for list in [&mut names, &mut keys] {
            let count = list.len();
            list.sort();
            list.dedup();
            assert_eq!(list.len(), count);
        }
    }

    #[test]
    fn every_metric_is_found_and_written_by_its_name() {
        for metric in METRICS {
            for name in metric.names() {
                assert_eq!(Metric::by_name(&name.to_uppercase()).unwrap(), metric);
            }
            let written = serde_json::to_string(metric).unwrap();
            assert_eq!(serde_json::from_str::<&'static Metric>(&written).unwrap(), metric);
            for value in metric.values {
                assert_eq!(MetricValue::by_key(&format!("eval_{}", value.key)).unwrap(), *value);
                let written = serde_json::to_string(value).unwrap();
                assert_eq!(serde_json::from_str::<MetricValue>(&written).unwrap(), *value);
            }
        }
    }

    fn table(text: &str) -> Vec<Case> {
        #[derive(Deserialize)]
        struct Table {
            cases: Vec<Case>,
        }
        serde_json::from_str::<Table>(text).unwrap().cases
    }

    /// Data and reference values; which fields it has depends on what the metrics need.
    #[derive(Deserialize)]
    struct Case {
        name: String,
        #[serde(default)]
        lines: Vec<Line>,
        #[serde(default)]
        predictions: serde_json::Value,
        #[serde(default)]
        labels: serde_json::Value,
        values: BTreeMap<String, Option<f64>>,
    }

    #[derive(Deserialize)]
    struct Line {
        hypothesis: String,
        references: Vec<String>,
    }

    impl Case {
        fn data<T: serde::de::DeserializeOwned>(&self) -> (T, T) {
            let read = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
            (read(&self.predictions), read(&self.labels))
        }

        /// The metric's values; none where it refuses the data.
        fn score(&self, metric: &Metric) -> Option<Vec<f64>> {
            match metric.scorer {
                Scorer::Loss(_) => None,
                Scorer::Classes(score) => {
                    let (predictions, labels) = self.data::<Vec<usize>>();
                    score(&predictions, &labels).ok()
                }
                Scorer::Scores(score) => {
                    let (predictions, labels) = self.data::<Vec<f64>>();
                    Some(score(&predictions, &labels))
                }
                Scorer::Tags(score) => {
                    let (predictions, labels) = self.data::<Vec<Vec<String>>>();
                    Some(score(&predictions, &labels))
                }
                Scorer::Texts(score) => {
                    let texts: Vec<String> = self.lines.iter().map(|line| line.hypothesis.clone()).collect();
                    let references: Vec<_> = self.lines.iter().map(|line| line.references.clone()).collect();
                    Some(score(&texts, &references).unwrap())
                }
            }
        }

        /// Checks every metric of which the table has values, and says how many values were compared.
        fn check(&self, compared: &mut BTreeMap<&'static str, usize>) {
            for metric in METRICS.iter().filter(|metric| self.values.contains_key(metric.values[0].key)) {
                let values = self.score(metric).unwrap_or_else(|| vec![f64::NAN; metric.values.len()]);
                for (value, found) in metric.values.iter().zip(values) {
                    match self.values[value.key] {
                        Some(expected) => {
                            // mteval prints four decimals; torchmetrics computes in float32.
                            let tolerance = match metric.name {
                                "nist" => 5.001e-5,
                                "squad" => 2e-5,
                                _ => 1e-9 * expected.abs().max(1.0),
                            };
                            let close = (found - expected).abs() <= tolerance;
                            assert!(close, "{}: {} is {found}, expected {expected}", self.name, value.key);
                            *compared.entry(value.key).or_default() += 1;
                        }
                        // CIDEr leaves out what its Java part cannot read, and NIST what makes mteval fail.
                        None if metric.needs_texts() => {}
                        None => assert!(!found.is_finite(), "{}: {} is {found}", self.name, value.key),
                    }
                }
            }
        }
    }

    #[test]
    fn every_metric_equals_the_scorer_that_people_use() {
        let mut compared = BTreeMap::new();
        for text in [
            include_str!("../../tests/data/metrics/texts.json"),
            include_str!("../../tests/data/metrics/classes.json"),
            include_str!("../../tests/data/metrics/scores.json"),
            include_str!("../../tests/data/metrics/tags.json"),
        ] {
            table(text).iter().for_each(|case| case.check(&mut compared));
        }
        for value in METRICS.iter().flat_map(|metric| metric.values) {
            let count = compared.get(value.key).copied().unwrap_or(0);
            let elsewhere = ["loss", "perplexity", "logical_form"].contains(&value.key);
            assert!(elsewhere || count >= 8, "{} has {count} reference values", value.key);
        }
    }

    #[test]
    fn the_f1_of_two_classes_refuses_a_third() {
        let Scorer::Classes(score) = Metric::by_name("f1").unwrap().scorer else { panic!() };
        let message = score(&[0, 2], &[0, 1]).unwrap_err().to_string();
        assert!(message.contains("f1") && message.contains("use f1_macro"), "{message}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let message = |name| Metric::by_name(name).unwrap_err().to_string();
        assert_eq!(message("blue"), "there is no metric 'blue'; did you mean 'bleu'?");
        assert!(message("quality").starts_with("there is no metric 'quality'; known are loss, perplexity, "));
        let message = MetricValue::by_key("eval_perplexty").unwrap_err().to_string();
        assert_eq!(message, "there is no metric 'perplexty'; did you mean 'perplexity'?");
    }

    #[test]
    fn better_is_what_the_metric_says() {
        let improves = |key, value, best| MetricValue::by_key(key).unwrap().improves(value, best);
        assert!(improves("loss", 1.0, Some(2.0)) && !improves("loss", 2.0, Some(1.0)));
        assert!(improves("bleu", 2.0, Some(1.0)) && !improves("bleu", 1.0, Some(2.0)));
        for key in ["loss", "bleu"] {
            assert!(improves(key, 1.0, None));
            assert!(!improves(key, 1.0, Some(1.0)) && !improves(key, f64::NAN, None));
        }
    }
}
