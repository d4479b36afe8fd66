//! Model files for tests.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::ModelError;
use crate::llama::{Llama, LlamaConfig};
use crate::safetensors::Safetensors;
use crate::{Pretrained, json, load};

/// A path below the repository's `fixtures`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The small random model of an architecture.
pub(crate) fn llama(architecture: &str) -> Llama {
    read_llama(&path(architecture).join("model")).unwrap()
}

/// The model in a folder.
pub(crate) fn read_llama(folder: &Path) -> Result<Llama, ModelError> {
    let path = folder.join("config.json");
    let config = LlamaConfig::from_json(json::read_object(&path)?, &path)?;
    Llama::from_source(config, &mut Safetensors::open(folder)?)
}

/// A copy of a fixture model that a test may damage.
pub(crate) fn copied(architecture: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in path(architecture).join("model").read_dir().unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// What the reference says about SmolLM2.
pub(crate) fn smollm2() -> Value {
    serde_json::from_slice(&fs::read(path("real/smollm2.json")).unwrap()).unwrap()
}

/// The folder that `TUNESMITH_MODELS` names, where real models lie; without it, tests that need them pass.
pub(crate) fn real_gguf() -> Option<PathBuf> {
    let folder = std::env::var_os("TUNESMITH_MODELS")?;
    Some(PathBuf::from(folder).join("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// SmolLM2, where it lies.
pub(crate) fn real_smollm2() -> Option<Pretrained> {
    Some(load(&real_gguf()?, &crate::LoadOptions::default()).unwrap())
}
