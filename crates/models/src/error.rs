//! What can go wrong with a model's files, said so that the reader knows what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::atomic::FileError;
use crate::task::Task;

/// An error of this crate. Problems of one kind are reported together.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The path is neither a model folder nor a GGUF file.
    #[error(
        "{} is not a model: expected a Hugging Face folder (config.json and model.safetensors) or a .gguf file; {reason}",
        path.display()
    )]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not JSON, or not a JSON object.
    #[error("{} is not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// The configuration names an architecture that this crate does not have.
    #[error("{}: model_type {found:?} is not supported; known model types: {}", path.display(), known.join(", "))]
    UnknownModelType {
        /// The file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What it may name.
        known: Vec<String>,
    },
    /// The architecture has no head for a task.
    #[error(
        "{}: models of type {model_type:?} have no head for {}; they have heads for {}",
        path.display(), task.name(), known.iter().map(|task| task.name()).collect::<Vec<_>>().join(", ")
    )]
    NoSuchHead {
        /// The configuration.
        path: PathBuf,
        /// Its model type.
        model_type: String,
        /// The task that was asked for.
        task: Task,
        /// The tasks it has heads for.
        known: Vec<Task>,
    },
    /// The configuration has values that make no sense or ask for what is not supported.
    #[error("{}: {}", path.display(), listed(problems))]
    Config {
        /// The file.
        path: PathBuf,
        /// One sentence a problem.
        problems: Vec<String>,
    },
    /// Weights are there, but pickled.
    #[error(
        "{} holds only pickled weights ({}), which can run any code when opened and are not read. Convert them once: \
         python -c \"import transformers as t; M = getattr(t, t.AutoConfig.from_pretrained('{}').architectures[0]); \
         M.from_pretrained('{}', weights_only=True).save_pretrained('{}-safetensors', safe_serialization=True)\", then use \
         that folder",
        folder.display(), files.join(", "), folder.display(), folder.display(), folder.display()
    )]
    Pickled {
        /// The model folder.
        folder: PathBuf,
        /// The pickled files.
        files: Vec<String>,
    },
    /// A weight file is damaged, incomplete or of a wrong format.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// There is no tokenizer, or it cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file, or the model that lacks one.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The model has no chat template and one is needed.
    #[error(
        "{}: no chat template; give one with chat_template (a file with a Jinja template), or use prompts without roles",
        path.display()
    )]
    NoChatTemplate {
        /// The tokenizer's file.
        path: PathBuf,
    },
    /// A chat template that cannot be parsed, or a conversation that it cannot render.
    #[error("chat template of {}: {reason}", path.display())]
    ChatTemplate {
        /// The template's file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A model is never written over something else.
    #[error("{} exists and is not an empty folder; choose another output folder or remove it", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The files hold a head of another size than the labels ask for.
    #[error(
        "{}: {name} has the shape {stored:?}, but the labels ask for {expected:?}: give the labels that the stored head \
         was trained for, or set ignore_mismatched_sizes to begin with a new head",
        path.display()
    )]
    HeadMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        stored: Vec<usize>,
        /// The shape that it should have.
        expected: Vec<usize>,
    },
    /// Tensors do not fit the configuration.
    #[error(
        "{}: the tensors do not fit the configuration; the weights and the configuration are of different models, or \
         files are missing:{}",
        path.display(), bulleted(problems)
    )]
    Tensors {
        /// The model's folder or file.
        path: PathBuf,
        /// Every tensor that does not fit.
        problems: Vec<TensorProblem>,
    },
}

/// One tensor that does not fit the configuration. Shapes are as saved, `[out, in]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorProblem {
    /// The model needs it and no file has it.
    Missing {
        /// Hugging Face name.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// Its shape is another.
    Shape {
        /// Hugging Face name.
        name: String,
        /// The file it is in.
        file: PathBuf,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// Its number format is not supported.
    Format {
        /// Hugging Face name.
        name: String,
        /// The file it is in.
        file: PathBuf,
        /// The format it has.
        found: String,
        /// The formats it may have.
        supported: &'static str,
    },
    /// The model has no place for it.
    Unexpected {
        /// Name in the file.
        name: String,
        /// The file it is in.
        file: PathBuf,
        /// The shape it has.
        found: Vec<usize>,
    },
}

/// Models are only ever written.
impl From<FileError> for ModelError {
    fn from(FileError { path, source, .. }: FileError) -> Self {
        Self::Write { path, source }
    }
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, expected } => write!(f, "{name}: missing, expected {expected:?}"),
            Self::Shape { name, file, expected, found } => {
                write!(f, "{name} in {}: expected {expected:?}, found {found:?}", file.display())
            }
            Self::Format { name, file, found, supported } => {
                write!(f, "{name} in {}: stored as {found}, supported are {supported}", file.display())
            }
            Self::Unexpected { name, file, found } => {
                write!(f, "{name} in {}: unexpected, {found:?}", file.display())
            }
        }
    }
}

fn listed(problems: &[String]) -> String {
    problems.join("; ")
}

/// Problems as a list, cut where it would fill the screen.
fn bulleted(problems: &[TensorProblem]) -> String {
    const SHOWN: usize = 24;
    let mut text: String = problems.iter().take(SHOWN).map(|problem| format!("\n  {problem}")).collect();
    if problems.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", problems.len() - SHOWN));
    }
    text
}
