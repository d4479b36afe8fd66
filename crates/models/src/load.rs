//! Models as users name them: a Hugging Face folder or a GGUF file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ModelError;
use crate::generation_defaults::GenerationDefaults;
use crate::gguf::Gguf;
use crate::gguf_tokenizer;
use crate::json;
use crate::llama::{Llama, LlamaConfig};
use crate::model::Model;
use crate::number_format::NumberFormat;
use crate::safetensors::Safetensors;
use crate::tokenizer::TextTokenizer;

const CONFIG: &str = "config.json";

/// What to use in place of the model's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// A `tokenizer.json`, or a folder that holds one (`tokenizer_name_or_path`).
    pub tokenizer: Option<PathBuf>,
    /// A file with a Jinja chat template (`chat_template`).
    pub chat_template: Option<PathBuf>,
}

/// A model without a tokenizer.
pub struct LoadedModel {
    /// The model.
    pub model: Arc<dyn Model>,
    /// Which tokens end a text.
    pub generation: GenerationDefaults,
    /// The numbers its weights were stored in; float32 for quantised ones.
    pub format: NumberFormat,
}

/// A model with its tokenizer.
pub struct Pretrained {
    /// The model.
    pub model: Arc<dyn Model>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// Which tokens end a text.
    pub generation: GenerationDefaults,
    /// The numbers its weights were stored in; float32 for quantised ones.
    pub format: NumberFormat,
    /// The folder or file it came from.
    pub source: PathBuf,
}

/// Loads a model and its tokenizer from a Hugging Face folder or a GGUF file. The tokenizer comes first, because it is
/// read sooner and fails more often.
///
/// # Errors
/// Everything that can be wrong with the files; see [`ModelError`].
pub fn load(path: &Path, options: &LoadOptions) -> Result<Pretrained, ModelError> {
    let opened = Opened::open(path)?;
    let tokenizer = match (&options.tokenizer, &opened) {
        (Some(tokenizer), _) => TextTokenizer::open(tokenizer)?,
        (None, Opened::Folder { folder, .. }) => TextTokenizer::open(folder)?,
        (None, Opened::Gguf(gguf)) => gguf_tokenizer::from_gguf(gguf)?,
    };
    let tokenizer = match &options.chat_template {
        Some(template) => tokenizer.with_chat_template(template)?,
        None => tokenizer,
    };
    let LoadedModel { model, generation, format } = opened.load()?;
    let tokenizer = tokenizer.for_embeddings(model.info().vocab_size);
    let generation = generation.or_from(&tokenizer);
    Ok(Pretrained { model, tokenizer, generation, format, source: path.to_path_buf() })
}

/// Loads a model alone, for work on token ids.
///
/// # Errors
/// As [`load`].
pub fn load_model(path: &Path) -> Result<LoadedModel, ModelError> {
    Opened::open(path)?.load()
}

/// A model whose small files have been read.
enum Opened {
    Folder { folder: PathBuf, config: LlamaConfig },
    Gguf(Gguf),
}

impl Opened {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let not_a_model =
            |reason: &str| Err(ModelError::NotAModel { path: path.to_path_buf(), reason: reason.to_owned() });
        if path.is_file() {
            if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                return Ok(Self::Gguf(Gguf::open(path)?));
            }
            return not_a_model("it is a file of another kind");
        }
        if !path.is_dir() {
            return not_a_model("there is nothing under this name");
        }
        let config = path.join(CONFIG);
        if !config.is_file() {
            return not_a_model("it has no config.json");
        }
        let config = LlamaConfig::from_json(json::read_object(&config)?, &config)?;
        Ok(Self::Folder { folder: path.to_path_buf(), config })
    }

    fn load(self) -> Result<LoadedModel, ModelError> {
        match self {
            Self::Folder { folder, config } => {
                let generation = GenerationDefaults::from_folder(&folder, &config.json)?;
                let mut source = Safetensors::open(&folder)?;
                let format = source.format();
                let model: Arc<dyn Model> = Arc::new(Llama::from_source(config, &mut source)?);
                Ok(LoadedModel { model, generation, format })
            }
            Self::Gguf(mut gguf) => {
                let generation = GenerationDefaults::from_gguf(&gguf)?;
                let model = Llama::from_source(gguf.config().clone(), &mut gguf)?;
                Ok(LoadedModel { model: Arc::new(model), generation, format: NumberFormat::F32 })
            }
        }
    }
}
