//! What a model is for, and the head that goes with it.

use serde_json::{Map, Value, json};
use tunesmith_tensor::Seed;

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// The next token of a sequence.
    CausalLm,
    /// Classes of, or a number for, whole sequences of one or two texts.
    SeqCls,
    /// A class for each token.
    TokenCls,
    /// The part of a text that answers a question.
    QuestionAns,
    /// The tokens of another sequence.
    Seq2SeqLm,
    /// Hidden states, without a head.
    FeatureExtraction,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::CausalLm, Self::SeqCls, Self::TokenCls, Self::QuestionAns, Self::Seq2SeqLm, Self::FeatureExtraction];

    /// PEFT's word for it (`task_type`).
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::SeqCls => "SEQ_CLS",
            Self::TokenCls => "TOKEN_CLS",
            Self::QuestionAns => "QUESTION_ANS",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
        }
    }

    /// Whether its answers are texts, which the model generates, and not what a head says.
    pub fn is_of_texts(self) -> bool {
        matches!(self, Self::CausalLm | Self::Seq2SeqLm)
    }

    /// The task of a class of transformers, such as `BertForSequenceClassification`.
    pub(crate) fn of_class(class: &str) -> Option<Self> {
        let ends = [
            ("ForCausalLM", Self::CausalLm),
            ("LMHeadModel", Self::CausalLm),
            ("ForSequenceClassification", Self::SeqCls),
            ("ForTokenClassification", Self::TokenCls),
            ("ForQuestionAnswering", Self::QuestionAns),
            ("ForConditionalGeneration", Self::Seq2SeqLm),
            ("Model", Self::FeatureExtraction),
        ];
        ends.into_iter().find(|(end, _)| class.ends_with(end)).map(|(_, task)| task)
    }

    /// How transformers ends the names of its classes for this task.
    pub(crate) fn class_ending(self) -> &'static str {
        match self {
            Self::CausalLm => "ForCausalLM",
            Self::SeqCls => "ForSequenceClassification",
            Self::TokenCls => "ForTokenClassification",
            Self::QuestionAns => "ForQuestionAnswering",
            Self::Seq2SeqLm => "ForConditionalGeneration",
            Self::FeatureExtraction => "Model",
        }
    }

    /// Whether its head gives values that are called labels.
    pub fn has_labels(self) -> bool {
        matches!(self, Self::SeqCls | Self::TokenCls)
    }
}

/// What the outputs of a sequence classifier mean (transformers' `problem_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// One of several classes.
    SingleLabelClassification,
    /// Any number of several classes.
    MultiLabelClassification,
    /// A number for each output.
    Regression,
}

impl ProblemType {
    /// transformers' word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLabelClassification => "single_label_classification",
            Self::MultiLabelClassification => "multi_label_classification",
            Self::Regression => "regression",
        }
    }

    /// The one that transformers calls `name`.
    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::SingleLabelClassification, Self::MultiLabelClassification, Self::Regression];
        all.into_iter().find(|problem| problem.name() == name)
    }
}

/// What a model ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadInfo {
    /// What it is for.
    pub task: Task,
    /// Names of the outputs, in their order (`id2label`); empty for tasks without labels.
    pub labels: Vec<String>,
    /// What the outputs mean, where the files or the options say so. transformers otherwise takes one output for
    /// regression and several for classes.
    pub problem_type: Option<ProblemType>,
    /// Hugging Face paths of modules that the files lack and that start random: to be trained and to be kept with the
    /// adapter (`modules_to_save`).
    pub new_modules: Vec<String>,
}

impl HeadInfo {
    /// A language model's.
    pub fn language_model(task: Task) -> Self {
        Self { task, labels: Vec::new(), problem_type: None, new_modules: Vec::new() }
    }

    /// What the outputs mean, as transformers decides where nothing is said.
    pub fn problem(&self) -> ProblemType {
        let by_count =
            if self.labels.len() == 1 { ProblemType::Regression } else { ProblemType::SingleLabelClassification };
        self.problem_type.unwrap_or(by_count)
    }
}

/// What a model shall end in, where that is not for its files to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadOptions {
    /// The task; by default that of the files' `architectures`.
    pub task: Option<Task>,
    /// Names of the outputs; by default the files' `id2label`. A head of another size in the files is replaced by a new
    /// one only with [`HeadOptions::ignore_mismatched_sizes`].
    pub labels: Option<Vec<String>>,
    /// What the outputs mean; by default the files' `problem_type`.
    pub problem_type: Option<ProblemType>,
    /// Whether a stored head of another size is replaced by a new one, as in transformers. Otherwise it is an error.
    pub ignore_mismatched_sizes: bool,
    /// What a new head is drawn from.
    pub seed: u64,
}

impl HeadOptions {
    /// For one task, all else by the files.
    pub fn for_task(task: Task) -> Self {
        Self { task: Some(task), ..Self::default() }
    }

    /// The seed of new heads.
    pub(crate) fn seed(&self) -> Seed {
        Seed(self.seed)
    }

    /// The task: the one asked for, or that of the `architectures` in `config.json`, or `otherwise`.
    pub(crate) fn task_of(&self, config: &Map<String, Value>, otherwise: Task) -> Task {
        let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
        self.task.or_else(|| Task::of_class(class?)).unwrap_or(otherwise)
    }

    /// The names of the outputs: those asked for, or `id2label`, or transformers' two. Adds what is wrong to `problems`.
    pub(crate) fn labels_of(&self, config: &Map<String, Value>, problems: &mut Vec<String>) -> Vec<String> {
        if let Some(labels) = &self.labels {
            if labels.is_empty() {
                problems.push("the head has no labels: name at least one".to_owned());
            }
            return labels.clone();
        }
        let numbered = |count: usize| (0..count).map(|label| format!("LABEL_{label}")).collect();
        match (config.get("id2label"), config.get("num_labels").and_then(Value::as_u64)) {
            (Some(Value::Object(names)), _) => {
                let name = |id: usize| names.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned);
                let labels: Option<Vec<String>> = (0..names.len()).map(name).collect();
                labels.unwrap_or_else(|| {
                    problems.push(format!(
                        "id2label does not name the labels 0 to {}: {}",
                        names.len().saturating_sub(1),
                        Value::Object(names.clone())
                    ));
                    numbered(names.len())
                })
            }
            (_, Some(count @ 1..=1_000_000)) => numbered(count as usize),
            _ => numbered(2),
        }
    }

    /// What the outputs mean, where anybody says so. Adds what is wrong to `problems`.
    pub(crate) fn problem_type_of(
        &self,
        config: &Map<String, Value>,
        problems: &mut Vec<String>,
    ) -> Option<ProblemType> {
        let stored = config.get("problem_type").filter(|value| !value.is_null());
        self.problem_type.or_else(|| {
            let found = stored.and_then(Value::as_str).and_then(ProblemType::of_name);
            if let (None, Some(value)) = (found, stored) {
                problems.push(format!(
                    "problem_type {value} is not supported; known are regression, single_label_classification and \
                     multi_label_classification"
                ));
            }
            found
        })
    }
}

/// Writes a head into `config.json`, as transformers does.
pub(crate) fn describe_head(config: &mut Map<String, Value>, head: &HeadInfo, class: &str) {
    config.insert("architectures".to_owned(), json!([class]));
    if !head.task.has_labels() {
        return;
    }
    let by_id = head.labels.iter().enumerate().map(|(id, label)| (id.to_string(), Value::from(label.as_str())));
    config.insert("id2label".to_owned(), Value::Object(by_id.collect()));
    let by_label = head.labels.iter().enumerate().map(|(id, label)| (label.clone(), Value::from(id)));
    config.insert("label2id".to_owned(), Value::Object(by_label.collect()));
    if let Some(problem) = head.problem_type {
        config.insert("problem_type".to_owned(), problem.name().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn the_task_is_the_one_asked_for_or_that_of_the_class() {
        let task = |options: &HeadOptions, class: &str| {
            options.task_of(&config(json!({"architectures": [class]})), Task::FeatureExtraction)
        };
        let by_files = HeadOptions::default();
        assert_eq!(task(&by_files, "BertForSequenceClassification"), Task::SeqCls);
        assert_eq!(task(&by_files, "GPT2LMHeadModel"), Task::CausalLm);
        assert_eq!(task(&by_files, "BertModel"), Task::FeatureExtraction);
        assert_eq!(task(&by_files, "BertForMaskedLM"), Task::FeatureExtraction);
        assert_eq!(task(&HeadOptions::for_task(Task::TokenCls), "BertModel"), Task::TokenCls);
        for task in Task::ALL {
            assert_eq!(Task::of_class(&format!("Some{}", task.class_ending())), Some(task));
        }
    }

    #[test]
    fn labels_come_from_the_options_or_the_files() {
        let labels = |options: &HeadOptions, value: Value| {
            let mut problems = Vec::new();
            (options.labels_of(&config(value), &mut problems), problems)
        };
        let own = HeadOptions { labels: Some(vec!["no".into(), "yes".into()]), ..HeadOptions::default() };
        assert_eq!(labels(&own, json!({"id2label": {"0": "a"}})), (vec!["no".into(), "yes".into()], vec![]));
        let files = HeadOptions::default();
        let named = json!({"id2label": {"1": "b", "0": "a"}});
        assert_eq!(labels(&files, named).0, ["a", "b"]);
        assert_eq!(labels(&files, json!({})).0, ["LABEL_0", "LABEL_1"]);
        let (_, problems) = labels(&files, json!({"id2label": {"1": "b", "2": "a"}}));
        assert!(problems[0].contains("does not name the labels 0 to 1"), "{problems:?}");
    }

    #[test]
    fn the_problem_follows_from_the_number_of_outputs_unless_said() {
        let head = |labels: usize, problem_type| HeadInfo {
            task: Task::SeqCls,
            labels: vec![String::new(); labels],
            problem_type,
            new_modules: Vec::new(),
        };
        assert_eq!(head(1, None).problem(), ProblemType::Regression);
        assert_eq!(head(3, None).problem(), ProblemType::SingleLabelClassification);
        let said = Some(ProblemType::MultiLabelClassification);
        assert_eq!(head(3, said).problem(), ProblemType::MultiLabelClassification);
        let mut problems = Vec::new();
        let unknown = config(json!({"problem_type": "ranking"}));
        assert_eq!(HeadOptions::default().problem_type_of(&unknown, &mut problems), None);
        assert!(problems[0].contains("problem_type \"ranking\" is not supported"));
    }
}
