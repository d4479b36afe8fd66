//! What can go wrong between a configuration, a model and an adapter's files.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// An error of this crate. All problems of a kind are reported together, each with what to do about it.
#[derive(Debug, Error)]
pub enum MethodError {
    /// Configuration that cannot be used.
    #[error("{place} cannot be used:{}", lines(problems))]
    Config {
        /// The file or section that holds it.
        place: String,
        /// Everything that is wrong with it.
        problems: Vec<ConfigProblem>,
    },

    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// An `adapter_config.json` that is not JSON.
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },

    /// A folder without an adapter.
    #[error("no adapter_config.json in {}{}", folder.display(), hint_nested(nested))]
    NoAdapter {
        /// The folder.
        folder: PathBuf,
        /// Its folders that do hold an adapter.
        nested: Vec<String>,
    },

    /// A folder with `adapter_config.json` but without weights.
    #[error(
        "no adapter_model.safetensors in {}, only the configuration: copy the weights there too, \
         or point to the folder that holds both", folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },

    /// Weights as a Python pickle, which can run any code when it is read.
    #[error(
        "{} is a Python pickle, which can run any code when it is read, and is refused. Convert it once, if you trust \
         it, with: python -c \"import torch; from safetensors.torch import save_file; \
         save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors', \
         metadata={{'format': 'pt'}})\"", file.display()
    )]
    PickledWeights {
        /// The file.
        file: PathBuf,
    },

    /// A weights file that is truncated or not safetensors.
    #[error("{} is truncated or not a safetensors file: {source}", file.display())]
    DamagedWeights {
        /// The file.
        file: PathBuf,
        /// What the reader stumbled over.
        source: safetensors::SafeTensorError,
    },

    /// An adapter whose configuration asks for what the model does not have.
    #[error("the adapter in {}, made for {}, does not fit this model: {source}", folder.display(), named(made_for))]
    AnotherModel {
        /// The folder.
        folder: PathBuf,
        /// `base_model_name_or_path` in its configuration.
        made_for: Option<String>,
        /// What does not fit.
        source: Box<MethodError>,
    },

    /// Tensors in an adapter file that do not fit the configuration and the model.
    #[error("{0}")]
    Tensors(Box<TensorProblems>),

    /// A configuration without targets, for a model type without default ones.
    #[error(
        "there are no default target_modules for model_type '{model_type}': name them in target_modules. \
         The linear modules are {}",
        comma(linears)
    )]
    NoDefaultTargets {
        /// `model_type` of the model's configuration.
        model_type: String,
        /// Last names of the model's linear modules.
        linears: Vec<String>,
    },

    /// Entries of a list of modules that match none of the model's modules.
    #[error("{key} has entries that match no module of this {model_type} model:{}", lines(entries))]
    UnmatchedModules {
        /// The configuration's key.
        key: &'static str,
        /// `model_type` of the model's configuration.
        model_type: String,
        /// The entries.
        entries: Vec<UnmatchedEntry>,
    },

    /// Blocks that the model does not have, or not with targeted modules.
    #[error(
        "layers_to_transform names {}, but target_modules match only in the layers {}",
        comma(layers),
        comma(present)
    )]
    UnmatchedLayers {
        /// Layers asked for in vain.
        layers: Vec<usize>,
        /// Layers that hold modules that the targets match.
        present: Vec<usize>,
    },

    /// A configuration that selects no module at all.
    #[error("no module of this {model_type} model is targeted: {reason}")]
    NothingTargeted {
        /// `model_type` of the model's configuration.
        model_type: String,
        /// Why, and what to change.
        reason: String,
    },

    /// Targets of a kind that the method cannot act on.
    #[error(
        "this method tunes {kinds} only, but target_modules also match:{}\n\
         Exclude them with exclude_modules, or train a full copy of an embedding or norm with modules_to_save.",
        lines(modules)
    )]
    NotTunable {
        /// What the method can act on.
        kinds: String,
        /// Each module with what it is.
        modules: Vec<String>,
    },

    /// A regular expression that cannot be used.
    #[error("'{pattern}' in {key} cannot be used as a regular expression: {reason}")]
    Pattern {
        /// The configuration's key.
        key: &'static str,
        /// The expression.
        pattern: String,
        /// Why.
        reason: String,
    },

    /// Modules that the adapter should tune and also train in full.
    #[error(
        "modules_to_save (whose entries match every module whose name ends with them) and target_modules both match:{}\n\
         Make the entries of modules_to_save longer, up to the full name.",
        lines(modules)
    )]
    TargetedAndSaved {
        /// The modules.
        modules: Vec<String>,
    },

    /// Entries of `modules_to_save` that stand for a list of modules.
    #[error("modules_to_save names lists of modules, not modules; name what they hold:{}", lines(modules))]
    SavedList {
        /// The lists.
        modules: Vec<String>,
    },

    /// Biases were to be trained in a model, or at targets, that have none.
    #[error("bias: {bias} asks to train biases, but {whose} no bias. {instead}")]
    NoBias {
        /// The configuration's value.
        bias: &'static str,
        /// "this llama model has" or "the targeted modules have".
        whose: String,
        /// What to do instead.
        instead: String,
    },

    /// A site that holds a weight by its kind, but for which the model gives none.
    #[error("the model announces {path} as a weight but gives no weight for it")]
    NoWeight {
        /// Path of the site.
        path: String,
    },

    /// Methods that act at the same places.
    #[error(
        "two of the methods under peft: act at the same sites, where only one can:{}\n\
         Change target_modules or modules_to_save so that each site has one method.",
        lines(sites)
    )]
    Clash {
        /// Paths of the sites.
        sites: Vec<String>,
    },

    /// A checkpoint that does not hold what the run trains.
    #[error("{} does not hold what this run trains:{}", folder.display(), lines(problems))]
    Checkpoint {
        /// The folder.
        folder: PathBuf,
        /// Each tensor that is missing or has another shape.
        problems: Vec<String>,
    },

    /// A model without a kind of place that the method needs.
    #[error("this {model_type} model has no {what}, which the method needs")]
    NoSite {
        /// `model_type` of the model's configuration.
        model_type: String,
        /// What is missing.
        what: &'static str,
    },

    /// A text that virtual tokens were to begin from, without tokens.
    #[error(
        "there are no tokens in '{text}' for virtual tokens to begin from: give a text, and a model with a tokenizer"
    )]
    NoTokens {
        /// The text.
        text: String,
    },

    /// An adapter that changes more than weights.
    #[error(
        "this adapter cannot be merged: it changes hidden states, keys and values or the input, not only weights. \
         Use it beside its base model instead"
    )]
    NotMergeable,

    /// A trained bias where the base model has none to merge it into.
    #[error(
        "these modules have a trained bias, but none in the base model to merge it into:{}\n\
         Use the adapter beside its base model instead, or train without lora_bias.",
        lines(modules)
    )]
    NoPlaceForBias {
        /// The modules.
        modules: Vec<String>,
    },

    /// A method that this model, or another option, rules out.
    #[error("{what}: {why}. {instead}")]
    Impossible {
        /// The method or option.
        what: String,
        /// Why it cannot be had.
        why: String,
        /// The nearest that works.
        instead: String,
    },

    /// Merged weights with values that are not finite.
    #[error(
        "the merged weights hold NaN or infinite values, so nothing was merged; the adapter seems to be broken at:{}\n\
         Use an earlier checkpoint, or train again with a lower learning rate.",
        lines(modules)
    )]
    NotFinite {
        /// Modules with such values.
        modules: Vec<String>,
    },
}

/// Something wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigProblem {
    /// Not a mapping of keys to values.
    #[error("it must be a mapping of keys to values, not {found}")]
    NotAMapping {
        /// What it is.
        found: &'static str,
    },
    /// The method is not named.
    #[error("peft_type is missing; it names the method: {}", comma(methods))]
    NoMethod {
        /// The methods there are.
        methods: Vec<&'static str>,
    },
    /// The method is not one of ours.
    #[error("peft_type is '{peft_type}', which this version does not have; it has {}", comma(methods))]
    UnknownMethod {
        /// What was asked for.
        peft_type: String,
        /// The methods there are.
        methods: Vec<&'static str>,
    },
    /// A problem of one method of several.
    #[error("method {place} of the list: {problem}")]
    Within {
        /// The method's place in the list, counted from 1.
        place: usize,
        /// The problem.
        problem: Box<ConfigProblem>,
    },
    /// A key that does not exist.
    #[error("unknown key '{key}'{}", nearest.as_ref().map(|near| format!("; did you mean '{near}'?")).unwrap_or_default())]
    UnknownKey {
        /// The key.
        key: String,
        /// The nearest key that exists.
        nearest: Option<String>,
    },
    /// A value that cannot be read.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that PEFT offers and this version does not.
    #[error("{key}: {value} is not supported: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why it cannot be ignored.
        reason: &'static str,
    },
}

/// An entry of a list of modules that matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmatchedEntry {
    /// The entry.
    pub entry: String,
    /// Names that do match something, the nearest first.
    pub nearest: Vec<String>,
}

impl Display for UnmatchedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.entry)?;
        if self.nearest.is_empty() { Ok(()) } else { write!(f, " (near names: {})", comma(&self.nearest)) }
    }
}

/// How the tensors of an adapter file differ from what the configuration and the model ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorProblems {
    /// The adapter file.
    pub file: PathBuf,
    /// `model_type` of the model at hand.
    pub model_type: String,
    /// The model at hand, as named when it was loaded.
    pub model: Option<String>,
    /// `base_model_name_or_path` in `adapter_config.json`.
    pub made_for: Option<String>,
    /// Tensors that the file lacks.
    pub missing: Vec<String>,
    /// Tensors that belong nowhere, each with its reason if there is one to give.
    pub unexpected: Vec<String>,
    /// Tensors of another shape.
    pub misshapen: Vec<Misshapen>,
    /// Tensors of a type that is not read.
    pub unreadable: Vec<String>,
}

/// A tensor of another shape than expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name.
    pub name: String,
    /// Its shape in the file.
    pub found: Vec<usize>,
    /// The shape that the configuration and the model ask for.
    pub expected: Vec<usize>,
    /// Whether the two agree but for the rank, which comes from the configuration.
    pub rank_only: bool,
}

impl TensorProblems {
    /// Whether the file and the model fit each other.
    pub fn is_empty(&self) -> bool {
        let names = [&self.missing, &self.unexpected, &self.unreadable];
        names.iter().all(|names| names.is_empty()) && self.misshapen.is_empty()
    }
}

impl Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not fit its configuration and this {} model", self.file.display(), self.model_type)?;
        if let Some(model) = &self.model {
            write!(f, " ({model})")?;
        }
        let section = |f: &mut fmt::Formatter<'_>, title: &str, lines: Vec<String>| {
            if lines.is_empty() { Ok(()) } else { write!(f, "\n{title} ({}):{}", lines.len(), all_lines(&lines)) }
        };
        section(f, "missing", self.missing.clone())?;
        section(f, "unexpected", self.unexpected.clone())?;
        section(f, "of a type other than float32, float16 and bfloat16", self.unreadable.clone())?;
        let misshapen = self
            .misshapen
            .iter()
            .map(|tensor| format!("{} is {:?} in the file, {:?} expected", tensor.name, tensor.found, tensor.expected));
        section(f, "of another shape", misshapen.collect())?;
        let ranks = !self.misshapen.is_empty() && self.misshapen.iter().all(|tensor| tensor.rank_only);
        if ranks && self.missing.is_empty() && self.unexpected.is_empty() {
            return f.write_str("\nOnly ranks differ: r and rank_pattern in adapter_config.json are not this file's.");
        }
        match &self.made_for {
            Some(base) => write!(f, "\nThe adapter was made for the base model '{base}': is this the same?"),
            None => f.write_str("\nIts configuration does not say which base model it was made for."),
        }
    }
}

/// Longest list of sites or modules shown in one message; the rest is only counted.
const SHOWN: usize = 12;

/// Every item on a line of its own.
fn all_lines<T: Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

fn lines<T: Display>(items: &[T]) -> String {
    let mut text = all_lines(&items[..items.len().min(SHOWN)]);
    if items.len() > SHOWN {
        text += &format!("\n  … and {} more", items.len() - SHOWN);
    }
    text
}

fn comma<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn named(made_for: &Option<String>) -> String {
    made_for.as_ref().map_or_else(|| "a base model that it does not name".to_owned(), |base| format!("'{base}'"))
}

fn hint_nested(nested: &[String]) -> String {
    if nested.is_empty() { String::new() } else { format!("; these folders in it hold adapters: {}", comma(nested)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let problems: Vec<u32> = (0..15).collect();
        assert!(lines(&problems).ends_with("\n  11\n  … and 3 more"));
        assert_eq!(lines(&[1, 2]), "\n  1\n  2");
    }

    #[test]
    fn tensor_problems_name_the_base_unless_only_ranks_differ() {
        let misshapen = |rank_only| Misshapen { name: "a".into(), found: vec![4, 2], expected: vec![8, 2], rank_only };
        let problems = |rank_only| TensorProblems {
            file: "x/adapter_model.safetensors".into(),
            model_type: "llama".into(),
            model: None,
            made_for: Some("org/base".into()),
            missing: Vec::new(),
            unexpected: Vec::new(),
            misshapen: vec![misshapen(rank_only)],
            unreadable: Vec::new(),
        };
        assert!(problems(false).to_string().contains("made for the base model 'org/base'"));
        assert!(problems(true).to_string().contains("rank_pattern"));
        assert!(problems(true).to_string().contains("a is [4, 2] in the file, [8, 2] expected"));
        let missing: Vec<String> = (0..40).map(|number| format!("tensor {number}")).collect();
        let text = TensorProblems { missing: missing.clone(), ..problems(false) }.to_string();
        assert!(text.contains("missing (40):") && missing.iter().all(|name| text.contains(name)), "{text}");
    }
}
