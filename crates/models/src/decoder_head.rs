//! Decoders with another head than a language model's, or with none: the body of any decoder, and a linear on top, as
//! transformers' generic classes have them.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, CrossEntropy, Forward, FrozenWeight, Role, Segments, Site, SiteId, Var};

use crate::architectures::Configured;
use crate::cache::Cache;
use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{Head, HeadPlan, Pooling, plan_head};
use crate::model::{Inputs, Model, ModelInfo};
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads, SiteTable};
use crate::task::{HeadInfo, HeadOptions, Task};
use crate::weights::WeightSource;

/// The tasks that every decoder has.
pub(crate) const TASKS: &[Task] =
    &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::QuestionAns, Task::FeatureExtraction];

/// What a family of decoders calls its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderNames {
    /// What stands before the names of the language model's body.
    pub(crate) prefix: &'static str,
    /// How the names of the body's parts begin after that.
    pub(crate) parts: &'static [&'static str],
    /// The linear of a head over every token.
    pub(crate) token_head: &'static str,
    /// How transformers' classes begin, by model type.
    pub(crate) class: fn(&str) -> &'static str,
    /// What stands before the body's names in the class for question answering, by model type.
    pub(crate) question_prefix: fn(&str) -> &'static str,
}

/// How a family makes a language model of a configuration.
type LanguageModel = fn(Map<String, Value>, &Path) -> Result<Box<dyn Configured>, ModelError>;

/// The language model of a configuration, or its body with the head that the options and files ask for.
///
/// # Errors
/// [`ModelError::Config`] with every problem found.
pub(crate) fn configure(
    json: Map<String, Value>,
    path: &Path,
    options: &HeadOptions,
    names: &DecoderNames,
    language_model: LanguageModel,
) -> Result<Box<dyn Configured>, ModelError> {
    if options.task_of(&json, Task::CausalLm) == Task::CausalLm {
        return language_model(json, path);
    }
    let mut fields = Fields::new(&json);
    let model_type = fields.text("model_type", "");
    let class = (names.class)(&model_type);
    let plan = |task, fields: &mut Fields<'_>| head(names, task, fields);
    let (head, head_info, saved_json) = plan_head(&mut fields, options, class, Task::CausalLm, &plan);
    let deviation = fields.positive("initializer_range", 0.02) as f32;
    if !fields.problems.is_empty() {
        return Err(ModelError::Config { path: path.to_path_buf(), problems: fields.problems });
    }
    let prefix = match head_info.task {
        Task::FeatureExtraction => "",
        Task::QuestionAns => (names.question_prefix)(&model_type),
        _ => names.prefix,
    };
    // The body needs no output embedding of its own.
    let mut body = json.clone();
    body.insert("tie_word_embeddings".to_owned(), Value::Bool(true));
    let body = language_model(body, path)?;
    let new = NewHeads::of(options, deviation);
    Ok(Box::new(Configuration { body, json: saved_json, names: *names, prefix, head, head_info, new }))
}

fn head(names: &DecoderNames, task: Task, fields: &mut Fields<'_>) -> Option<HeadPlan> {
    match task {
        Task::SeqCls => {
            let padding = fields.value("pad_token_id").is_some().then(|| fields.token_id("pad_token_id", 0));
            Some(HeadPlan {
                pooling: Pooling::LastBut(padding),
                output_bias: false,
                ..HeadPlan::of_tokens("score", 0.0)
            })
        }
        Task::TokenCls => {
            let dropout = fields.fraction("hidden_dropout", 0.1);
            let dropout = fields.fraction("classifier_dropout", dropout);
            let output_bias = fields.flag("token_classification_bias", true);
            Some(HeadPlan { output_bias, ..HeadPlan::of_tokens(names.token_head, dropout) })
        }
        Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", 0.0)),
        _ => None,
    }
}

struct Configuration {
    body: Box<dyn Configured>,
    json: Map<String, Value>,
    names: DecoderNames,
    /// What stands before the body's names in this class.
    prefix: &'static str,
    head: Option<HeadPlan>,
    head_info: HeadInfo,
    new: NewHeads,
}

impl Configured for Configuration {
    fn read(self: Box<Self>, source: &mut dyn WeightSource) -> Result<Arc<dyn Model>, ModelError> {
        let body = self.body.read(&mut Renamed::new(source, |name| body_name(&self.names, name)))?;
        let own = |path: &str| renamed(path, self.names.prefix, self.prefix);
        let mut sites: Vec<Site> =
            body.sites().iter().filter(|site| site.role != Role::OutputEmbedding).cloned().collect();
        sites.iter_mut().for_each(|site| site.path = own(&site.path));
        let body_sites = sites.len();
        let mut layout = Layout::after(body_sites);
        let hidden = body.info().hidden_size;
        let head = self.head.as_ref().map(|plan| Head::lay_out(plan, hidden, &mut layout));
        let is_head = |name: &str| self.head.as_ref().is_some_and(|head| head.has_tensor(name));
        let table = layout.read(&mut Renamed::new(source, |name| is_head(name).then(|| name.to_owned())), &self.new)?;
        sites.extend_from_slice(table.sites());
        let tensors = body.tensors().into_iter().map(|(name, weight, shape)| (own(&name), weight, shape));
        let tensors = tensors.chain(table.tensors()).collect();
        let info = ModelInfo {
            tied: false,
            head: HeadInfo { new_modules: table.new_modules().to_vec(), ..self.head_info },
            ..body.info().clone()
        };
        Ok(Arc::new(DecoderWithHead { info, json: self.json, body, sites, body_sites, head, table, tensors }))
    }
}

/// The name that a language model's body has for a tensor of a checkpoint; `None` for those of heads.
fn body_name(names: &DecoderNames, name: &str) -> Option<String> {
    let bare = ["model.", "transformer."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    names.parts.iter().any(|part| bare.starts_with(part)).then(|| format!("{}{bare}", names.prefix))
}

/// A path with another prefix; the prefix alone is the body itself.
fn renamed(path: &str, from: &str, to: &str) -> String {
    match path.strip_prefix(from) {
        Some(rest) => format!("{to}{rest}"),
        None => to.trim_end_matches('.').to_owned(),
    }
}

/// A decoder's body with a head.
struct DecoderWithHead {
    info: ModelInfo,
    json: Map<String, Value>,
    body: Arc<dyn Model>,
    /// Those of the body, then those of the head.
    sites: Vec<Site>,
    body_sites: usize,
    head: Option<Head>,
    table: SiteTable,
    tensors: Vec<(String, FrozenWeight, Vec<usize>)>,
}

impl Model for DecoderWithHead {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn base(&self, site: SiteId) -> Option<Base<'_>> {
        if site.0 < self.body_sites { self.body.base(site) } else { self.table.get(site) }
    }

    fn hidden_states(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var {
        let hidden = self.body.hidden_states(forward, inputs, cache);
        match &self.head {
            Some(head) => head.pool(forward, hidden, inputs.ids),
            None => hidden,
        }
    }

    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        match &self.head {
            Some(head) => head.logits(&self.table, forward, hidden, rows),
            None => hidden.clone(),
        }
    }

    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy {
        let rows = Head::rows(self.head.as_ref(), forward.segments());
        let logits = self.logits(forward, hidden, &rows);
        forward.tape().softmax_cross_entropy(&logits, targets)
    }

    fn config_json(&self) -> &Map<String, Value> {
        &self.json
    }

    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        self.tensors.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_exchanged() {
        assert_eq!(renamed("model.layers.0.mlp", "model.", "transformer."), "transformer.layers.0.mlp");
        assert_eq!(renamed("model", "model.", "transformer."), "transformer");
        assert_eq!(renamed("model.norm", "model.", ""), "norm");
        assert_eq!(renamed("model", "model.", ""), "");
    }
}
