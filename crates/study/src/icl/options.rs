//! The keys of in-context learning, which stand under `icl:`.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_train::nearest;

/// How a model is shown what to do instead of being trained (Brown et al. 2020, arXiv 2005.14165).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IclOptions {
    /// An example as text, with columns of the data in braces and `{answer}` at its end, such as
    /// `"Review: {sentence}\nSentiment:{answer}"`.
    pub template: String,
    /// Put before the demonstrations. Default nothing.
    pub instruction: String,
    /// Put between instruction, demonstrations and question. Default an empty line.
    pub separator: String,
    /// The column with the answer. Default `label`.
    pub answer_column: String,
    /// What stands for each label in the text, such as `{'0': ' negative', '1': ' positive'}`. Default none: the answer is
    /// a text, which is generated.
    pub answers: Option<IndexMap<String, String>>,
    /// Demonstrations in a prompt. Default 4.
    pub demonstrations: usize,
    /// Whether labels come equally often among them. Default true.
    pub balanced: bool,
    /// Labels that demonstrations have. Default `gold`.
    pub demonstration_labels: DemonstrationLabels,
    /// How many orders of each sample of demonstrations are measured. Default 1.
    pub orders: usize,
    /// How an answer is chosen. Default `likelihood`.
    pub scoring: Scoring,
    /// What stands for a question without content in `calibrated` scoring. Default that of Zhao et al.
    pub content_free: Vec<String>,
    /// `generation`: tokens of an answer, at most. Default 32.
    pub max_new_tokens: usize,
}

/// The labels of demonstrations: right ones, or controls (Min et al. 2022, arXiv 2202.12837).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DemonstrationLabels {
    /// Those of the data.
    #[default]
    Gold,
    /// Each drawn at random.
    Random,
    /// Each label replaced by the next one: all wrong.
    Permuted,
}

/// How the answer is chosen among the labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// The likeliest answer.
    #[default]
    Likelihood,
    /// The likeliest by the mean over its tokens (Brown et al. 2020).
    PerToken,
    /// The one that the question makes likelier than the words before the answer alone do (Brown et al. 2020).
    AnswerContext,
    /// The likeliest, each divided by its probability for questions without content (Zhao et al. 2021, arXiv 2102.09690).
    Calibrated,
    /// What the model writes, if it begins with an answer.
    Generation,
}

impl Default for IclOptions {
    fn default() -> Self {
        Self {
            template: String::new(),
            instruction: String::new(),
            separator: "\n\n".to_owned(),
            answer_column: "label".to_owned(),
            answers: None,
            demonstrations: 4,
            balanced: true,
            demonstration_labels: DemonstrationLabels::default(),
            orders: 1,
            scoring: Scoring::default(),
            content_free: ["N/A", "[MASK]", ""].map(str::to_owned).to_vec(),
            max_new_tokens: 32,
        }
    }
}

/// The place of the answer in a template.
pub(super) const ANSWER: &str = "{answer}";

impl IclOptions {
    /// Reads what stands under `icl:`.
    ///
    /// # Errors
    /// All problems.
    pub fn read(values: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let Ok(Value::Object(defaults)) = serde_json::to_value(Self::default()) else {
            unreachable!("options are a mapping")
        };
        let mut problems = Vec::new();
        let mut all = defaults.clone();
        for (key, value) in values.iter().filter(|(_, value)| !value.is_null()) {
            if !defaults.contains_key(key) {
                let near = nearest(key, defaults.keys().map(String::as_str));
                let hint = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
                problems.push(format!("icl: unknown key '{key}'{hint}"));
                continue;
            }
            let mut alone = defaults.clone();
            alone.insert(key.clone(), value.clone());
            match serde_json::from_value::<Self>(Value::Object(alone)) {
                Ok(_) => drop(all.insert(key.clone(), value.clone())),
                Err(reason) => problems.push(format!("icl.{key}: {reason}")),
            }
        }
        let options: Self = serde_json::from_value(Value::Object(all)).unwrap_or_default();
        options.check(&mut problems);
        if problems.is_empty() { Ok(options) } else { Err(problems) }
    }

    fn check(&self, problems: &mut Vec<String>) {
        let mut add = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        add(!self.template.is_empty(), "icl.template is missing: an example as text, with {column} and {answer}");
        let ends = self.template.ends_with(ANSWER) && self.template.matches(ANSWER).count() == 1;
        add(self.template.is_empty() || ends, "icl.template must have {answer} once, at its end");
        add(self.orders > 0, "icl.orders is 0, must be at least 1");
        add(self.max_new_tokens > 0, "icl.max_new_tokens is 0, must be at least 1");
        let scored = !matches!(self.scoring, Scoring::Generation);
        add(self.answers.is_some() || !scored, "icl.scoring needs icl.answers, or must be generation");
        if let Some(answers) = &self.answers {
            add(answers.len() > 1, "icl.answers must name at least two answers");
            let distinct: BTreeSet<&String> = answers.values().collect();
            add(distinct.len() == answers.len(), "icl.answers has two labels with the same words");
        }
        let content = self.scoring != Scoring::Calibrated || !self.content_free.is_empty();
        add(content, "icl.content_free is empty, which calibrated scoring needs");
        let gold = self.answers.is_some() || self.demonstration_labels == DemonstrationLabels::Gold;
        add(gold, "icl.demonstration_labels other than gold need icl.answers");
    }

    /// Columns that the template names.
    pub(super) fn columns(&self) -> Vec<&str> {
        let parts = self.template.split('{').skip(1);
        parts.filter_map(|part| part.split_once('}')).map(|(name, _)| name).filter(|name| *name != "answer").collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<IclOptions, Vec<String>> {
        let Value::Object(values) = value else { panic!() };
        IclOptions::read(&values)
    }

    #[test]
    fn all_problems_are_listed() {
        let problems = read(json!({"templat": "x", "orders": 0, "scoring": "best", "answers": {"0": "a", "1": "a"}}));
        let text = problems.unwrap_err().join("\n");
        for part in [
            "did you mean 'template'?",
            "icl.scoring: unknown variant",
            "template is missing",
            "orders is 0",
            "same words",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let wrong = read(json!({"template": "{answer} is the answer", "scoring": "generation"})).unwrap_err();
        assert_eq!(wrong, ["icl.template must have {answer} once, at its end"]);
        assert_eq!(read(json!({"template": "{a} {answer}"})).unwrap_err().len(), 1);
    }

    #[test]
    fn columns_are_what_stands_in_braces() {
        let options = read(json!({"template": "{a b}: {c}\n{answer}", "answers": {"0": "x", "1": "y"}})).unwrap();
        assert_eq!(options.columns(), ["a b", "c"]);
    }
}
