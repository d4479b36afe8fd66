//! What a model's files say about generation: above all, which tokens end it.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::gguf::Gguf;
use crate::json;
use crate::tokenizer::TextTokenizer;

const FILE: &str = "generation_config.json";

/// Token ids that generation needs, and the file they came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The token that an encoder-decoder's texts begin with.
    pub forced_bos_token_id: Option<u32>,
    /// The token that texts of the greatest length end with.
    pub forced_eos_token_id: Option<u32>,
    /// `generation_config.json`, for saving.
    pub json: Option<Map<String, Value>>,
}

impl GenerationDefaults {
    /// From `generation_config.json`; what it does not say, from `config.json`.
    ///
    /// # Errors
    /// If a file is damaged, or an id is not one.
    pub(crate) fn from_folder(folder: &Path, config: &Map<String, Value>) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        let json = json::read_object_if_any(&path)?;
        let value = |key: &str| {
            let given = json.as_ref().and_then(|json| json.get(key)).filter(|value| !value.is_null());
            given.or_else(|| config.get(key)).unwrap_or(&Value::Null)
        };
        let ids = |key: &str| {
            token_ids(value(key)).ok_or_else(|| ModelError::Config {
                path: if path.is_file() { path.clone() } else { folder.join("config.json") },
                problems: vec![format!("{key} is {}, expected a token id or a list of them", value(key))],
            })
        };
        let bos_token_id = ids("bos_token_id")?.first().copied();
        let eos_token_ids = ids("eos_token_id")?;
        let forced_bos_token_id = ids("forced_bos_token_id")?.first().copied();
        let forced_eos_token_id = ids("forced_eos_token_id")?.first().copied();
        Ok(Self { eos_token_ids, bos_token_id, forced_bos_token_id, forced_eos_token_id, json })
    }

    /// From GGUF metadata, which may name an end of turn beside the end of text.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let token = |name: &str| -> Result<Option<u32>, ModelError> {
            let id = gguf.metadata().unsigned(&format!("tokenizer.ggml.{name}_token_id"))?;
            Ok(id.and_then(|id| u32::try_from(id).ok()))
        };
        let mut eos_token_ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            eos_token_ids.extend(token(name)?.filter(|id| !eos_token_ids.contains(id)));
        }
        let bos_token_id = token("bos")?;
        let saved = json!({
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_ids,
            "pad_token_id": token("padding")?,
        });
        Ok(Self { eos_token_ids, bos_token_id, json: saved.as_object().cloned(), ..Self::default() })
    }

    /// Fills in from the tokenizer what the model's files do not say.
    pub(crate) fn or_from(mut self, tokenizer: &TextTokenizer) -> Self {
        if self.eos_token_ids.is_empty() {
            self.eos_token_ids.extend(tokenizer.eos());
        }
        self.bos_token_id = self.bos_token_id.or_else(|| tokenizer.bos());
        self
    }

    /// The file to save, where there is one.
    pub(crate) fn file(&self) -> Option<(&'static str, Vec<u8>)> {
        self.json.as_ref().map(|json| (FILE, json::to_bytes(json)))
    }
}

/// A token id, a list of them, or none.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => Some(vec![id(value)?]),
    }
}
