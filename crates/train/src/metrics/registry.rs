//! Every metric by name: what it needs, what values it gives, and which way is better.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::corpus_bleu;
use crate::TrainError;

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

/// What a metric needs, with the function that makes its values of it, one for each of [`Metric::values`].
#[derive(Clone, Copy, Debug)]
pub enum Scorer {
    /// The mean loss of a labelled token, in nats.
    Loss(fn(f64) -> f64),
    /// Generated texts, each with its references.
    Texts(fn(&[String], &[Vec<String>]) -> Result<Vec<f64>, TrainError>),
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
        name: "bleu",
        aliases: &["sacrebleu"],
        description: "corpus BLEU, 0 to 100, as sacrebleu computes it",
        values: &[higher("bleu")],
        scorer: Scorer::Texts(|texts, references| Ok(vec![corpus_bleu(texts, references)?.score])),
    },
];

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
    pub(crate) fn named(&self, values: Vec<f64>) -> impl Iterator<Item = (String, f64)> {
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

/// Likeness below which a name is not what was meant.
const NEAR: f64 = 0.5;

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> TrainError {
    let known: Vec<&str> = known.collect();
    let lower = name.to_lowercase();
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&lower, &known.to_lowercase());
    let near = known.iter().map(|known| (likeness(known), *known)).filter(|(likeness, _)| *likeness >= NEAR);
    let nearest = near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known);
    TrainError::UnknownMetric { name: name.to_owned(), nearest, known }
}

#[cfg(test)]
mod tests {
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
