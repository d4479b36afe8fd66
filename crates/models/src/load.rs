//! Models as users name them: a Hugging Face folder or a GGUF file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tunesmith_tensor::Precision;

use crate::architectures::llama::{LlamaConfig, MODEL_TYPES};
use crate::architectures::{Configured, configure};
use crate::bitsandbytes::{self, FourBitCheckpoint};
use crate::error::ModelError;
use crate::generation_defaults::GenerationDefaults;
use crate::gguf::{Gguf, tokenizer as gguf_tokenizer};
use crate::json;
use crate::model::Model;
use crate::number_format::NumberFormat;
use crate::quantization::{Kept, QuantizationOptions};
use crate::safetensors::Safetensors;
use crate::task::HeadOptions;
use crate::tokenizer::TextTokenizer;

const CONFIG: &str = "config.json";

/// What to use in place of the model's own files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// A `tokenizer.json`, or a folder that holds one (`tokenizer_name_or_path`).
    pub tokenizer: Option<PathBuf>,
    /// A file with a Jinja chat template (`chat_template`).
    pub chat_template: Option<PathBuf>,
    /// The precision that weights are kept in, which the workspace's should be too. Default: float32.
    pub precision: Precision,
    /// What the model shall end in.
    pub head: HeadOptions,
    /// How its matrices are kept in memory.
    pub quantization: QuantizationOptions,
    /// What rotary positions are divided by (`rope_scaling` of type `linear`), in place of what the model's own
    /// configuration says; it then takes as many times the positions.
    pub rope_factor: Option<f64>,
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
    /// The precision that its weights are kept in.
    pub precision: Precision,
}

/// Loads a model and its tokenizer from a Hugging Face folder or a GGUF file. The tokenizer comes first, because it is
/// read sooner and fails more often.
///
/// # Errors
/// Everything that can be wrong with the files; see [`ModelError`].
pub fn load(path: &Path, options: &LoadOptions) -> Result<Pretrained, ModelError> {
    let opened = Opened::open(path, &options.head, options.rope_factor)?;
    let tokenizer = match (&options.tokenizer, &opened) {
        (Some(tokenizer), _) => TextTokenizer::open(tokenizer)?,
        (None, Opened::Folder { folder, .. }) => TextTokenizer::open(folder)?,
        (None, Opened::Gguf { gguf, .. }) => gguf_tokenizer::from_gguf(gguf)?,
    };
    let tokenizer = match &options.chat_template {
        Some(template) => tokenizer.with_chat_template(template)?,
        None => tokenizer,
    };
    let LoadedModel { model, generation, format } = opened.load(options.precision, &options.quantization)?;
    let tokenizer = tokenizer.for_embeddings(model.info().vocab_size);
    let generation = generation.or_from(&tokenizer);
    let precision = options.precision;
    Ok(Pretrained { model, tokenizer, generation, format, source: path.to_path_buf(), precision })
}

/// Loads a model alone, in float32, for work on token ids, with the head that its files describe.
///
/// # Errors
/// As [`load`].
pub fn load_model(path: &Path) -> Result<LoadedModel, ModelError> {
    load_model_in(path, Precision::Float32)
}

/// The same with its weights kept in `precision`.
///
/// # Errors
/// As [`load`].
pub fn load_model_in(path: &Path, precision: Precision) -> Result<LoadedModel, ModelError> {
    load_model_with(path, precision, &HeadOptions::default())
}

/// The same with a head of one's own choice.
///
/// # Errors
/// As [`load`].
pub fn load_model_with(path: &Path, precision: Precision, head: &HeadOptions) -> Result<LoadedModel, ModelError> {
    Opened::open(path, head, None)?.load(precision, &QuantizationOptions::default())
}

/// A model alone whose matrices are kept as `options` say.
///
/// # Errors
/// As [`load`].
pub fn load_model_quantized(
    path: &Path,
    precision: Precision,
    options: &QuantizationOptions,
) -> Result<LoadedModel, ModelError> {
    Opened::open(path, &HeadOptions::default(), None)?.load(precision, options)
}

/// A model whose small files have been read.
enum Opened {
    Folder { folder: PathBuf, json: Map<String, Value>, config: Box<dyn Configured> },
    Gguf { gguf: Box<Gguf>, config: Box<dyn Configured> },
}

impl Opened {
    fn open(path: &Path, head: &HeadOptions, rope_factor: Option<f64>) -> Result<Self, ModelError> {
        let not_a_model =
            |reason: &str| Err(ModelError::NotAModel { path: path.to_path_buf(), reason: reason.to_owned() });
        if path.is_file() {
            if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                let gguf = Box::new(Gguf::open(path)?);
                let mut json = gguf.config().json.clone();
                if let Some(factor) = rope_factor {
                    json = interpolated(json, factor, path)?;
                }
                let config = configure(json, path, head)?;
                return Ok(Self::Gguf { gguf, config });
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
        let mut json = json::read_object(&config)?;
        bitsandbytes::take_config(&mut json);
        if let Some(factor) = rope_factor {
            json = interpolated(json, factor, &config)?;
        }
        let config = configure(json.clone(), &config, head)?;
        Ok(Self::Folder { folder: path.to_path_buf(), json, config })
    }

    fn load(self, precision: Precision, options: &QuantizationOptions) -> Result<LoadedModel, ModelError> {
        match self {
            Self::Folder { folder, json, config } => {
                let generation = GenerationDefaults::from_folder(&folder, &json)?;
                let mut source = FourBitCheckpoint::over(Safetensors::open(&folder)?)?;
                let format = source.format();
                let model = config.read(&mut Kept::new(&mut source, precision, options, false))?;
                Ok(LoadedModel { model, generation, format })
            }
            Self::Gguf { mut gguf, config } => {
                let generation = GenerationDefaults::from_gguf(&gguf)?;
                let model = config.read(&mut Kept::new(&mut *gguf, precision, options, true))?;
                Ok(LoadedModel { model, generation, format: NumberFormat::F32 })
            }
        }
    }
}

/// The configuration with rotary positions divided by `factor`.
fn interpolated(json: Map<String, Value>, factor: f64, path: &Path) -> Result<Map<String, Value>, ModelError> {
    let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if !MODEL_TYPES.contains(&model_type) {
        let known = MODEL_TYPES.join(", ");
        let problem = format!(
            "rope_scaling needs rotary positions, which models of type {model_type:?} have not; take one of {known}, or \
             leave rope_scaling out"
        );
        return Err(ModelError::Config { path: path.to_path_buf(), problems: vec![problem] });
    }
    Ok(LlamaConfig::from_json(json, path)?.interpolated(factor, path)?.json)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tunesmith_tensor::{Forward, Segments, Tape, Workspace};

    use super::*;
    use crate::architectures::llama::rope_factor;
    use crate::fixtures::{self, GgufFile, copied};
    use crate::model::Inputs;

    fn refusal(path: &Path) -> String {
        load_model(path).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_model_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(&folder.path().join("absent")).contains("there is nothing under this name"));
        assert!(refusal(folder.path()).contains("it has no config.json"));
        let file = folder.path().join("model.onnx");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("it is a file of another kind"));
        fs::write(folder.path().join(CONFIG), "{").unwrap();
        assert!(refusal(folder.path()).contains("config.json is not a JSON object"));
    }

    #[test]
    fn tokens_that_end_a_text_are_found_wherever_they_are_said() {
        let folder = copied("llama");
        let eos = || load_model(folder.path()).map(|loaded| loaded.generation.eos_token_ids);
        assert_eq!(eos().unwrap(), [2]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 9]}"#).unwrap();
        assert_eq!(eos().unwrap(), [7, 9]);
        fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
        assert_eq!(eos().unwrap(), [2]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
        let text = eos().unwrap_err().to_string();
        assert!(text.contains("eos_token_id is \"</s>\", expected a token id"), "{text}");
    }

    #[test]
    fn a_tokenizer_and_a_template_of_ones_own_come_first() {
        let file = GgufFile::llama().with_tokenizer("viking").written();
        let options = LoadOptions::default();
        let text = load(&file.path, &options).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("tokenizer_name_or_path"), "{text}");

        let other = GgufFile::llama().with_tokenizer("gpt-2").written();
        let other = load(&other.path, &options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in other.tokenizer.files().unwrap() {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let template = folder.path().join("own.jinja");
        fs::write(&template, "{{ messages[0].content }}").unwrap();
        let tokenizer = Some(folder.path().join("tokenizer.json"));
        let options = LoadOptions { tokenizer, chat_template: Some(template), ..LoadOptions::default() };
        let loaded = load(&file.path, &options).unwrap();
        assert!(loaded.tokenizer.has_chat_template());
        let text = loaded.tokenizer.encode("hel", true).unwrap_err().to_string();
        assert!(text.contains("the model has 96 token embeddings"), "{text}");
    }

    #[test]
    fn interpolated_positions_are_those_of_a_configuration_that_says_so() {
        let folder = copied("llama");
        let said = copied("llama");
        let mut json = json::read_object(&said.path().join(CONFIG)).unwrap();
        let positions = json["max_position_embeddings"].as_u64().unwrap();
        json.remove("rope_parameters");
        json.insert("rope_scaling".to_owned(), serde_json::json!({"type": "linear", "factor": 4.0}));
        fs::write(said.path().join(CONFIG), json::to_bytes(&json)).unwrap();
        let outputs = |model: &dyn Model| {
            let workspace = Workspace::new();
            let mut tape = Tape::evaluating(&workspace);
            let mut forward = Forward::new(&mut tape, Segments::from_lengths([9]), None);
            let inputs = Inputs::tokens(&[3, 1, 4, 1, 5, 9, 2, 6, 5]);
            model.hidden_states(&mut forward, &inputs, None).value().data().to_vec()
        };
        let open = |path: &Path, factor| {
            let head = HeadOptions::default();
            let opened = Opened::open(path, &head, factor)?;
            Ok::<_, ModelError>(opened.load(Precision::Float32, &QuantizationOptions::default())?.model)
        };
        let plain = open(folder.path(), None).unwrap();
        let scaled = open(folder.path(), Some(4.0)).unwrap();
        let expected = open(said.path(), None).unwrap();
        assert_eq!(outputs(&*scaled), outputs(&*expected));
        assert_ne!(outputs(&*scaled), outputs(&*plain));
        assert_eq!(scaled.info().max_positions as u64, 4 * positions);
        for (model, factor) in [(&plain, 1.0), (&scaled, 4.0), (&expected, 4.0)] {
            assert_eq!(rope_factor(model.config_json()), factor);
        }
        // Of one that is interpolated already the context grows by what the factor does.
        let more = open(said.path(), Some(8.0)).unwrap();
        assert_eq!(more.info().max_positions as u64, 2 * positions);
        let text = open(copied("bert").path(), Some(2.0)).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("needs rotary positions, which models of type \"bert\" have not"), "{text}");
        let file = GgufFile::llama().with_tokenizer("gpt-2").written();
        let gguf = open(&file.path, Some(2.0)).unwrap();
        assert_eq!(rope_factor(gguf.config_json()), 2.0);
    }

    #[test]
    fn smollm2_loads_whole() {
        let Some(model) = fixtures::real_smollm2() else { return };
        let info = model.model.info();
        assert_eq!((info.blocks, info.heads, info.kv_heads, info.head_dim, info.vocab_size), (30, 9, 3, 64, 49_152));
        assert!(info.tied);
        assert_eq!((&model.generation.eos_token_ids[..], model.generation.bos_token_id), (&[2][..], Some(1)));
        assert_eq!(model.model.sites().len(), 2 + 30 * 12 + 2);
    }
}
