//! Models of the `llama` architecture in GGUF files: their metadata as a Hugging Face configuration, their tensors under
//! Hugging Face's names and in its layout, dequantised to float32.
//!
//! `candle-core` reads the container and dequantises the blocks. The format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value as Metadata};
use serde_json::{Map, Value, json};
use tunesmith_tensor::{FrozenWeight, GgmlFormat, GgmlWeight, MappedFile};

use crate::architectures::llama::{LlamaConfig, Rope, RopeScaling};
use crate::error::ModelError;
use crate::weights::{StoredTensor, WeightSource};

const ARCHITECTURE: &str = "llama";
const FORMATS: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";
/// Llama 3's frequency divisors, one a rotary pair.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// A GGUF file, open for reading.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    stored: BTreeMap<String, StoredTensor>,
    /// Hugging Face names to GGUF names.
    names: BTreeMap<String, String>,
    config: LlamaConfig,
    /// The file, once blocks are kept as they lie in it.
    mapped: Option<MappedFile>,
}

impl Gguf {
    /// Opens a GGUF file and reads its metadata.
    ///
    /// # Errors
    /// If it is not a GGUF file, is damaged, of another architecture, or of a kind that is not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source })?;
        let mut reader = BufReader::new(file);
        // The reader divides by a number in the file without looking at it; a damaged file must not end the program.
        let content = catch_unwind(AssertUnwindSafe(|| Content::read(&mut reader)))
            .map_err(|_| damaged(path, "its metadata are damaged; fetch it again"))?
            .map_err(|error| {
                damaged(path, format!("not a GGUF file that can be read: {error} (formats that can: {FORMATS})"))
            })?;
        let metadata = Fields { path, metadata: &content.metadata };
        let architecture = metadata.text("general.architecture")?.unwrap_or_default();
        if architecture != ARCHITECTURE {
            return Err(ModelError::UnknownModelType {
                path: path.to_path_buf(),
                found: architecture.to_owned(),
                known: vec![format!("{ARCHITECTURE} (in GGUF files; other architectures from Hugging Face folders)")],
            });
        }
        let mut stored = BTreeMap::new();
        let mut names = BTreeMap::new();
        let tensors: BTreeMap<_, _> = content.tensor_infos.iter().collect();
        for (gguf_name, info) in tensors.into_iter().filter(|(name, _)| *name != ROPE_FREQUENCIES) {
            let name = hugging_face_name(gguf_name).unwrap_or_else(|| gguf_name.clone());
            // Formats of intermediate products, which files do not hold and the reader does not read.
            let unsupported =
                matches!(info.ggml_dtype, GgmlDType::Q8_1 | GgmlDType::Q8K).then(|| format!("{:?}", info.ggml_dtype));
            let shape = info.shape.dims().to_vec();
            stored.insert(name.clone(), StoredTensor { shape, file: path.to_path_buf(), unsupported });
            names.insert(name, gguf_name.clone());
        }
        let json = config_json(&metadata, &stored)?;
        let mut this = Self {
            path: path.to_path_buf(),
            config: LlamaConfig::from_json(json, path)?,
            content,
            stored,
            names,
            mapped: None,
        };
        if let Some(frequencies) = this.content.tensor_infos.get(ROPE_FREQUENCIES) {
            if frequencies.shape.dims() != [this.config.head_dim / 2] {
                return Err(damaged(path, format!("{ROPE_FREQUENCIES} does not have a value for each rotary pair")));
            }
            this.read_rope_frequencies()?;
        }
        Ok(this)
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    pub(crate) fn metadata(&self) -> Fields<'_> {
        Fields { path: &self.path, metadata: &self.content.metadata }
    }

    /// Llama 3's rope scaling, which GGUF files hold as the divisors it comes to. They are taken back to the
    /// parameters, of which only `factor` ever varied, and compared.
    fn read_rope_frequencies(&mut self) -> Result<(), ModelError> {
        let divisors = self.dequantised(ROPE_FREQUENCIES)?;
        let factor = divisors.iter().copied().fold(1.0f32, f32::max);
        let scaling = RopeScaling::Llama3 {
            factor: f64::from(factor),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let head_dim = self.config.head_dim;
        let plain = Rope { theta: self.config.rope.theta, scaling: RopeScaling::Default };
        let scaled = Rope { scaling, ..plain }.inverse_frequencies(head_dim);
        let plain = plain.inverse_frequencies(head_dim);
        let close = |((plain, scaled), divisor): ((&f32, &f32), &f32)| (plain / scaled / divisor - 1.0).abs() < 1e-3;
        if !plain.iter().zip(&scaled).zip(&divisors).all(close) {
            return Err(damaged(
                &self.path,
                format!("{ROPE_FREQUENCIES} is not Llama 3's rope scaling, and no other kind is supported"),
            ));
        }
        self.config.rope.scaling = scaling;
        self.config.json.insert(
            "rope_scaling".to_owned(),
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }),
        );
        Ok(())
    }

    /// The heads of a query or key projection, whose rows are in another order than Hugging Face's.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        if name.contains(".self_attn.q_proj.") {
            Some(self.config.num_attention_heads)
        } else if name.contains(".self_attn.k_proj.") {
            Some(self.config.num_key_value_heads)
        } else {
            None
        }
    }

    /// The values of a tensor in GGUF's layout.
    fn dequantised(&self, gguf_name: &str) -> Result<Vec<f32>, ModelError> {
        let mut file = File::open(&self.path).map_err(|source| ModelError::Read { path: self.path.clone(), source })?;
        let values = self
            .content
            .tensor(&mut file, gguf_name, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu))
            .and_then(|tensor| tensor.flatten_all())
            .and_then(|tensor| tensor.to_vec1::<f32>());
        values.map_err(|error| {
            damaged(&self.path, format!("tensor {gguf_name} cannot be read: {error}; fetch the file again"))
        })
    }
}

/// The format of blocks that can be kept as they are; `None` for floats.
fn block_format(dtype: GgmlDType) -> Option<GgmlFormat> {
    Some(match dtype {
        GgmlDType::F16 => GgmlFormat::F16,
        GgmlDType::BF16 => GgmlFormat::Bf16,
        GgmlDType::Q4_0 => GgmlFormat::Q4_0,
        GgmlDType::Q4_1 => GgmlFormat::Q4_1,
        GgmlDType::Q5_0 => GgmlFormat::Q5_0,
        GgmlDType::Q5_1 => GgmlFormat::Q5_1,
        GgmlDType::Q8_0 => GgmlFormat::Q8_0,
        GgmlDType::Q2K => GgmlFormat::Q2_K,
        GgmlDType::Q3K => GgmlFormat::Q3_K,
        GgmlDType::Q4K => GgmlFormat::Q4_K,
        GgmlDType::Q5K => GgmlFormat::Q5_K,
        GgmlDType::Q6K => GgmlFormat::Q6_K,
        _ => return None,
    })
}

impl WeightSource for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    fn supported_formats(&self) -> &'static str {
        FORMATS
    }

    /// The tensor's blocks, mapped from the file; those of queries and keys are copied, because their rows are in
    /// another order.
    fn encoded(&mut self, name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        let gguf_name = self.names.get(name).ok_or_else(|| damaged(&self.path, format!("it has no tensor {name}")))?;
        let Some(info) = self.content.tensor_infos.get(gguf_name) else { return Ok(None) };
        let (Some(format), [rows, cols]) = (block_format(info.ggml_dtype), info.shape.dims()) else { return Ok(None) };
        let (rows, cols) = (*rows, *cols);
        if !cols.is_multiple_of(format.block_values()) {
            return Ok(None);
        }
        let unreadable = |source| ModelError::Read { path: self.path.clone(), source };
        let file = match &self.mapped {
            Some(file) => file.clone(),
            None => File::open(&self.path).and_then(|file| MappedFile::open(&file)).map_err(unreadable)?,
        };
        let start = (self.content.tensor_data_offset as usize).saturating_add(info.offset as usize);
        let length = rows * (cols / format.block_values()) * format.block_bytes();
        let blocks = file.slice(start..start.saturating_add(length)).ok_or_else(|| {
            damaged(&self.path, format!("tensor {gguf_name} reaches beyond the end of the file; fetch the file again"))
        })?;
        self.mapped = Some(file);
        let blocks = match self.interleaved_heads(name) {
            Some(heads) => unpermuted(&blocks, heads, rows).into(),
            None => blocks,
        };
        let weight = GgmlWeight::new((rows, cols), format, blocks);
        let weight = weight.map_err(|error| damaged(&self.path, format!("tensor {gguf_name}: {error}")))?;
        Ok(Some(FrozenWeight::stored(weight)))
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let gguf_name = self.names.get(name).ok_or_else(|| damaged(&self.path, format!("it has no tensor {name}")))?;
        let values = self.dequantised(gguf_name)?;
        match self.interleaved_heads(name) {
            Some(heads) => Ok(unpermuted(&values, heads, heads * self.config.head_dim)),
            None => Ok(values),
        }
    }
}

/// Query or key rows in Hugging Face's order. llama.cpp rotates neighbouring pairs and therefore interleaves the two
/// halves of each head: its row `2i + j` of a head is Hugging Face's row `j·d/2 + i`.
fn unpermuted<T: Copy>(values: &[T], heads: usize, rows: usize) -> Vec<T> {
    let width = values.len() / rows;
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for j in 0..2 {
            for i in 0..half {
                let row = head * 2 * half + 2 * i + j;
                out.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

/// The Hugging Face name of a tensor; `None` for one that a Llama does not have.
fn hugging_face_name(gguf_name: &str) -> Option<String> {
    match gguf_name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (block, rest) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    if !block.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        // Frequencies that old files stored and nothing reads.
        "attn_rot_embd" => return Some(format!("model.layers.{block}.self_attn.rotary_emb.inv_freq")),
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{block}.{module}.{kind}"))
}

/// The metadata as Hugging Face's `config.json`.
fn config_json(
    metadata: &Fields<'_>,
    stored: &BTreeMap<String, StoredTensor>,
) -> Result<Map<String, Value>, ModelError> {
    let mut problems = Vec::new();
    let mut required = |key: &str| {
        let value = metadata.unsigned(&format!("{ARCHITECTURE}.{key}"));
        value.unwrap_or_else(|error| {
            problems.push(error.to_string());
            None
        })
    };
    let (blocks, context) = (required("block_count"), required("context_length"));
    let (hidden, inner) = (required("embedding_length"), required("feed_forward_length"));
    let heads = required("attention.head_count");
    let kv_heads = required("attention.head_count_kv").or(heads);
    let (rotary, key_length) = (required("rope.dimension_count"), required("attention.key_length"));
    let experts = required("expert_count").unwrap_or(0);
    let head_dim = key_length.or_else(|| hidden?.checked_div(heads?));
    let missing = [
        ("block_count", blocks),
        ("context_length", context),
        ("embedding_length", hidden),
        ("feed_forward_length", inner),
        ("attention.head_count", heads),
    ];
    problems.extend(
        missing.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| format!("{ARCHITECTURE}.{key} is missing")),
    );
    if experts > 0 {
        problems.push(format!("it is a mixture of {experts} experts, which is not supported"));
    }
    if rotary.is_some_and(|rotary| head_dim.is_some_and(|head_dim| head_dim != rotary)) {
        problems.push("it rotates only a part of each head, which is not supported".to_owned());
    }
    if !problems.is_empty() {
        return Err(ModelError::Config { path: metadata.path.to_path_buf(), problems });
    }
    let number = |key: &str| metadata.number(&format!("{ARCHITECTURE}.{key}"));
    let vocabulary = stored.get("model.embed_tokens.weight").and_then(|tensor| tensor.shape.first().copied());
    let window = metadata.unsigned(&format!("{ARCHITECTURE}.attention.sliding_window"))?.filter(|window| *window > 0);
    let rope_scaling = match metadata.text(&format!("{ARCHITECTURE}.rope.scaling.type"))? {
        None | Some("none") => Value::Null,
        Some(kind) => json!({"rope_type": kind, "factor": number("rope.scaling.factor")?}),
    };
    let has = |name: &str| stored.contains_key(name);
    let (model_type, class) =
        if window.is_some() { ("mistral", "MistralForCausalLM") } else { ("llama", "LlamaForCausalLM") };
    let token = |key: &str| metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"));
    let config = json!({
        "architectures": [class],
        "attention_bias": has("model.layers.0.self_attn.q_proj.bias"),
        "attention_dropout": 0.0,
        "bos_token_id": token("bos")?,
        "eos_token_id": token("eos")?,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": context,
        "mlp_bias": has("model.layers.0.mlp.gate_proj.bias"),
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": blocks,
        "num_key_value_heads": kv_heads,
        "pad_token_id": token("padding")?,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        "rope_scaling": rope_scaling,
        "rope_theta": number("rope.freq_base")?.unwrap_or(10_000.0),
        "sliding_window": window,
        "tie_word_embeddings": !has("lm_head.weight"),
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": vocabulary,
    });
    let Value::Object(mut config) = config else { unreachable!("the literal above is an object") };
    config.retain(|_, value| !value.is_null());
    Ok(config)
}

/// Typed reading of metadata. A missing key is `None`; a value of another type is an error.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    metadata: &'a std::collections::HashMap<String, Metadata>,
}

impl<'a> Fields<'a> {
    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        damaged(self.path, format!("its metadata value {key} is not {expected}"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => integer(value).and_then(|value| u64::try_from(value).ok()).map(Some).ok_or_else(|| {
                self.wrong(key, "one positive whole number (values that differ by block are not supported)")
            }),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::F32(number)) => Ok(Some(f64::from(*number))),
            Some(Metadata::F64(number)) => Ok(Some(*number)),
            Some(value) => integer(value).map(|number| Some(number as f64)).ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Metadata::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.array(key, "a list of texts", |value| match value {
            Metadata::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.array(key, "a list of whole numbers", integer)
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Metadata) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Metadata::Array(values) = value else { return Err(self.wrong(key, expected)) };
        values.iter().map(read).collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }
}

fn integer(value: &Metadata) -> Option<i64> {
    match value {
        Metadata::U8(value) => Some((*value).into()),
        Metadata::I8(value) => Some((*value).into()),
        Metadata::U16(value) => Some((*value).into()),
        Metadata::I16(value) => Some((*value).into()),
        Metadata::U32(value) => Some((*value).into()),
        Metadata::I32(value) => Some((*value).into()),
        Metadata::U64(value) => i64::try_from(*value).ok(),
        Metadata::I64(value) => Some(*value),
        _ => None,
    }
}

fn damaged(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Damaged { path: path.to_path_buf(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::architectures::llama::Llama;
    use crate::error::TensorProblem;
    use crate::fixtures::{self, GgufFile};

    fn load(file: &GgufFile) -> Result<Llama, ModelError> {
        let mut gguf = Gguf::open(&file.path)?;
        Llama::from_source(gguf.config().clone(), &mut gguf)
    }

    fn refusal(change: impl FnOnce(&mut GgufFile)) -> String {
        let mut file = GgufFile::llama();
        change(&mut file);
        load(&file.written()).unwrap_err().to_string()
    }

    #[test]
    fn a_converted_model_is_the_model_again() {
        let file = GgufFile::llama().written();
        let (found, expected) = (load(&file).unwrap(), fixtures::llama("llama"));
        assert_eq!(found.info, expected.info);
        for (found, expected) in found.named_tensors().iter().zip(expected.named_tensors()) {
            assert_eq!((&found.0, &found.2), (&expected.0, &expected.2));
            assert_eq!(found.1.to_matrix(), expected.1.to_matrix(), "{}", found.0);
        }
        assert_eq!(found.config.rope, expected.config.rope);
        assert_eq!(found.config.rms_norm_eps as f32, expected.config.rms_norm_eps as f32);
    }

    #[test]
    fn an_untied_head_and_biases_are_found() {
        let mut file = GgufFile::llama();
        let head: Vec<f32> = (0..96 * 32).map(|value| value as f32).collect();
        file.tensor("output.weight", &[96, 32], head.clone());
        for block in 0..2 {
            for (name, width) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32)] {
                file.tensor(&format!("blk.{block}.{name}.bias"), &[width], (0..width).map(|v| v as f32).collect());
            }
        }
        let model = load(&file.written()).unwrap();
        assert!(!model.info.tied && model.config.output_bias);
        assert_eq!(model.lm_head.weight.to_matrix().to_vec(), head);
        let key = model.layers[1].k_proj.bias.as_ref().unwrap().to_matrix().to_vec();
        assert_eq!(key, [0., 2., 4., 6., 1., 3., 5., 7., 8., 10., 12., 14., 9., 11., 13., 15.]);
    }

    #[test]
    fn blocks_are_dequantised_as_by_the_reference() {
        let reference = fs::read(fixtures::path("gguf/blocks.safetensors")).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
        let formats = [
            (GgmlDType::F16, "F16"),
            (GgmlDType::BF16, "BF16"),
            (GgmlDType::Q4_0, "Q4_0"),
            (GgmlDType::Q4_1, "Q4_1"),
            (GgmlDType::Q5_0, "Q5_0"),
            (GgmlDType::Q5_1, "Q5_1"),
            (GgmlDType::Q8_0, "Q8_0"),
            (GgmlDType::Q2K, "Q2_K"),
            (GgmlDType::Q3K, "Q3_K"),
            (GgmlDType::Q4K, "Q4_K"),
            (GgmlDType::Q5K, "Q5_K"),
            (GgmlDType::Q6K, "Q6_K"),
        ];
        let mut file = GgufFile::llama();
        for (format, name) in formats {
            let blocks = reference.tensor(&format!("{name}.blocks")).unwrap().data().to_vec();
            file.blocks(name, &[1, 256], format, blocks);
        }
        let file = file.written();
        let mut gguf = Gguf::open(&file.path).unwrap();
        for (_, name) in formats {
            let values = gguf.read(name).unwrap();
            let kept = gguf.encoded(name).unwrap().unwrap().to_matrix();
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(kept.data()), bits(&values), "{name}");
            let expected = reference.tensor(&format!("{name}.values")).unwrap();
            let expected = expected.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let largest = expected.clone().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (index, (found, expected)) in values.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() <= 1e-6 * largest, "{name}[{index}]: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn llama3_scaling_is_taken_back_from_its_divisors() {
        let mut file = GgufFile::llama();
        file.set("llama.rope.freq_base", Metadata::F32(500_000.0));
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let scaled = Rope { theta: 500_000.0, scaling };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::Default };
        let divisors = plain.inverse_frequencies(8).into_iter().zip(scaled.inverse_frequencies(8)).map(|(p, s)| p / s);
        let divisors: Vec<f32> = divisors.collect();
        file.tensor(ROPE_FREQUENCIES, &[4], divisors);
        let config = load(&file.written()).unwrap().config;
        assert_eq!(config.rope, scaled);
        let again = LlamaConfig::from_json(config.json.clone(), Path::new("config.json")).unwrap();
        assert_eq!(again.rope, scaled);

        let text = refusal(|file| file.tensor(ROPE_FREQUENCIES, &[4], vec![1.0, 2.0, 3.0, 4.0]));
        assert!(text.contains("not Llama 3's rope scaling"), "{text}");
    }

    #[test]
    fn linear_scaling_and_windows_are_read() {
        let mut file = GgufFile::llama();
        file.set("llama.rope.scaling.type", Metadata::String("linear".to_owned()));
        file.set("llama.rope.scaling.factor", Metadata::F32(4.0));
        file.set("llama.attention.sliding_window", Metadata::U32(6));
        let config = load(&file.written()).unwrap().config;
        assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
        assert_eq!((config.model_type.as_str(), &config.sliding_windows[..]), ("mistral", &[Some(6); 2][..]));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let text = refusal(|file| file.set("general.architecture", Metadata::String("gpt2".to_owned())));
        assert!(text.contains("\"gpt2\"") && text.contains("llama (in GGUF files"), "{text}");
        let text = refusal(|file| file.set("llama.expert_count", Metadata::U32(8)));
        assert!(text.contains("a mixture of 8 experts"), "{text}");
        let text = refusal(|file| file.set("llama.rope.dimension_count", Metadata::U32(4)));
        assert!(text.contains("rotates only a part"), "{text}");
        let text = refusal(|file| file.set("llama.rope.scaling.type", Metadata::String("yarn".to_owned())));
        assert!(text.contains("rope_type \"yarn\" is not supported"), "{text}");
        let text = refusal(|file| {
            file.unset("llama.block_count");
            file.set("llama.attention.head_count", Metadata::Array(vec![Metadata::U32(4)]));
        });
        assert!(text.contains("llama.block_count is missing") && text.contains("head_count is not one"), "{text}");
    }

    #[test]
    fn tensors_that_do_not_fit_are_reported_with_hugging_face_names() {
        let mut file = GgufFile::llama();
        file.set("llama.feed_forward_length", Metadata::U32(40));
        let ModelError::Tensors { problems, .. } = load(&file.written()).unwrap_err() else { panic!() };
        assert_eq!(problems.len(), 6);
        let TensorProblem::Shape { name, expected, found, .. } = &problems[0] else { panic!("{problems:?}") };
        assert_eq!(name, "model.layers.0.mlp.gate_proj.weight");
        assert_eq!((&expected[..], &found[..]), (&[40, 32][..], &[48, 32][..]));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let file = GgufFile::llama().written();
        let whole = fs::read(&file.path).unwrap();
        for length in (0..whole.len() - 64).step_by(97).chain([whole.len() - 64]) {
            fs::write(&file.path, &whole[..length]).unwrap();
            let error = load(&file).unwrap_err();
            assert!(matches!(error, ModelError::Damaged { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn garbage_is_an_error() {
        let file = GgufFile::llama().written();
        let whole = fs::read(&file.path).unwrap();
        fs::write(&file.path, "<html>not found</html>".repeat(100)).unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("not a GGUF file"));
        let mut stream = tunesmith_tensor::Seed(1).stream("garbage", 0);
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..8 {
                bytes[stream.below(2000) as usize] = stream.below(256) as u8;
            }
            fs::write(&file.path, bytes).unwrap();
            // Whatever it makes of the file, it returns.
            let _ = load(&file);
        }
        let mut file = GgufFile::llama();
        file.set("general.alignment", Metadata::U32(0));
        let text = load(&file.written()).unwrap_err().to_string();
        assert!(text.contains("its metadata are damaged"), "{text}");
    }
}
