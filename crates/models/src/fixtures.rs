//! Model files for tests.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Value as Metadata};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::architectures::llama::{Llama, LlamaConfig};
use crate::error::ModelError;
use crate::safetensors::Safetensors;
use crate::{Model, Pretrained, json, load};

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

/// A GGUF file to be written to a folder of its own.
pub(crate) struct GgufFile {
    pub(crate) path: PathBuf,
    _folder: tempfile::TempDir,
    metadata: Vec<(String, Metadata)>,
    tensors: Vec<(String, QTensor)>,
}

impl GgufFile {
    /// The llama fixture, as llama.cpp converts it, with a tokenizer of bytes and a few words.
    pub(crate) fn llama() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut file = Self { path, _folder: folder, metadata: Vec::new(), tensors: Vec::new() };
        file.set("general.architecture", Metadata::String("llama".to_owned()));
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 48),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("rope.dimension_count", 8),
        ] {
            file.set(&format!("llama.{key}"), Metadata::U32(value));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", Metadata::F32(1e-5));
        file.set("llama.rope.freq_base", Metadata::F32(10_000.0));
        for (name, weight, shape) in llama("llama").tensors() {
            let values = weight.to_matrix().to_vec();
            let (name, values) = converted(&name, values);
            file.tensor(&name, &shape, values);
        }
        file
    }

    /// Adds a tokenizer: three special tokens, a word of the user's, all bytes, `he` and `hel`.
    pub(crate) fn with_tokenizer(mut self, pre: &str) -> Self {
        let mut tokens = vec!["<s>".to_owned(), "</s>".to_owned(), "<pad>".to_owned(), "two words".to_owned()];
        let mut types = vec![3, 3, 3, 4];
        let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        bytes.sort_unstable();
        tokens.extend(bytes.into_iter().map(String::from));
        tokens.extend(["he".to_owned(), "hel".to_owned()]);
        types.resize(tokens.len(), 1);
        let texts = |texts: Vec<String>| Metadata::Array(texts.into_iter().map(Metadata::String).collect());
        self.set("tokenizer.ggml.model", Metadata::String("gpt2".to_owned()));
        self.set("tokenizer.ggml.pre", Metadata::String(pre.to_owned()));
        self.set("tokenizer.ggml.tokens", texts(tokens));
        self.set("tokenizer.ggml.merges", texts(vec!["h e".to_owned(), "he l".to_owned()]));
        self.set("tokenizer.ggml.token_type", Metadata::Array(types.into_iter().map(Metadata::I32).collect()));
        for (id, name) in ["bos", "eos", "padding"].into_iter().enumerate() {
            self.set(&format!("tokenizer.ggml.{name}_token_id"), Metadata::U32(id as u32));
        }
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: Metadata) {
        self.unset(key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.blocks(name, shape, GgmlDType::F32, bytes);
    }

    pub(crate) fn blocks(&mut self, name: &str, shape: &[usize], format: GgmlDType, blocks: Vec<u8>) {
        let storage = QStorage::from_data(Cow::Owned(blocks), &Device::Cpu, format).unwrap();
        self.tensors.push((name.to_owned(), QTensor::new(storage, shape.to_vec()).unwrap()));
    }

    pub(crate) fn written(self) -> Self {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut File::create(&self.path).unwrap(), &metadata, &tensors).unwrap();
        self
    }
}

/// What llama.cpp's converter makes of a tensor of the llama fixture: its name, and for queries and keys
/// `w.reshape(heads, 2, 4, -1).swapaxes(1, 2)`.
fn converted(name: &str, values: Vec<f32>) -> (String, Vec<f32>) {
    let gguf_name = name
        .replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("model.layers", "blk")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("self_attn.o_proj", "attn_output")
        .replace("self_attn.", "attn_")
        .replace("mlp.", "ffn_")
        .replace("_proj", "");
    if !name.contains("q_proj") && !name.contains("k_proj") {
        return (gguf_name, values);
    }
    let (half, width) = (4, 32);
    let mut out = Vec::new();
    for head in values.chunks(2 * half * width) {
        for pair in 0..half {
            for part in 0..2 {
                let row = part * half + pair;
                out.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    (gguf_name, out)
}
