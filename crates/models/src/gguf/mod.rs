//! Models of the Llama family in GGUF files: their metadata as a Hugging Face configuration, their tensors under Hugging
//! Face's names and in its layout, dequantised to float32 or kept as they are.
//!
//! `candle-core` reads the container and dequantises the blocks. The format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod config;
mod metadata;
mod names;
pub(crate) mod tokenizer;

pub(crate) use metadata::Fields;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
use serde_json::json;
use tunesmith_tensor::{FrozenWeight, GgmlFormat, GgmlWeight, MappedFile};

use crate::architectures::llama::{LlamaConfig, Rope, RopeScaling};
use crate::error::ModelError;
use crate::weights::{StoredTensor, WeightSource};
use config::config_json;
use names::{FAMILIES, Family};

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
    family: &'static Family,
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
        let Some(family) = FAMILIES.iter().find(|family| family.name == architecture) else {
            let mut known: Vec<String> = FAMILIES.iter().map(|family| family.name.to_owned()).collect();
            if let Some(last) = known.last_mut() {
                last.push_str(" (in GGUF files; other architectures from Hugging Face folders)");
            }
            return Err(ModelError::UnknownModelType {
                path: path.to_path_buf(),
                found: architecture.to_owned(),
                known,
            });
        };
        let mut stored = BTreeMap::new();
        let mut names = BTreeMap::new();
        let tensors: BTreeMap<_, _> = content.tensor_infos.iter().collect();
        for (gguf_name, info) in tensors.into_iter().filter(|(name, _)| *name != ROPE_FREQUENCIES) {
            let name = family.hugging_face_name(gguf_name).unwrap_or_else(|| gguf_name.clone());
            // Formats of intermediate products, which files do not hold and the reader does not read.
            let unsupported =
                matches!(info.ggml_dtype, GgmlDType::Q8_1 | GgmlDType::Q8K).then(|| format!("{:?}", info.ggml_dtype));
            let shape = info.shape.dims().to_vec();
            stored.insert(name.clone(), StoredTensor { shape, file: path.to_path_buf(), unsupported });
            names.insert(name, gguf_name.clone());
        }
        let json = config_json(&metadata, family, &stored)?;
        let mut this = Self {
            path: path.to_path_buf(),
            config: LlamaConfig::from_json(json, path)?,
            content,
            stored,
            names,
            family,
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
        if !self.family.is_interleaved {
            None
        } else if name.contains(".self_attn.q_proj.") {
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
        Ok(Some(FrozenWeight::from(weight)))
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let gguf_name = self.names.get(name).ok_or_else(|| damaged(&self.path, format!("it has no tensor {name}")))?;
        let mut values = self.dequantised(gguf_name)?;
        if self.family.has_whole_norms && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
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

fn damaged(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Damaged { path: path.to_path_buf(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use candle_core::quantized::gguf_file::Value as Metadata;
    use tunesmith_tensor::{Forward, Precision, Segments, Tape, Workspace};

    use super::*;
    use crate::architectures::llama::Llama;
    use crate::error::TensorProblem;
    use crate::fixtures::{self, GgufFile};
    use crate::{HeadOptions, Inputs, Model, QuantizationOptions, Task};

    fn load(file: &GgufFile) -> Result<Llama, ModelError> {
        let mut gguf = Gguf::open(&file.path)?;
        Llama::from_source(gguf.config().clone(), &mut gguf)
    }

    /// The values of a tensor.
    fn tensor(model: &Llama, name: &str) -> Vec<f32> {
        let tensor = model.tensors().into_iter().find(|(other, ..)| other == name);
        tensor.unwrap().1.to_matrix().to_vec()
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
        assert_eq!(found.info(), expected.info());
        for (found, expected) in found.tensors().iter().zip(expected.tensors()) {
            assert_eq!((&found.0, &found.2), (&expected.0, &expected.2));
            assert_eq!(found.1.to_matrix(), expected.1.to_matrix(), "{}", found.0);
        }
        assert_eq!(found.config().rope, expected.config().rope);
        assert_eq!(found.config().rms_norm_eps as f32, expected.config().rms_norm_eps as f32);
    }

    /// Files that the Python package gguf wrote, with the tensor names it knows and transformers' logits of their weights.
    #[test]
    fn other_architectures_compute_what_transformers_computes() {
        for (name, model_type, sites) in [("qwen2", "qwen2", 28), ("qwen3", "qwen3", 32), ("gemma3", "gemma3_text", 52)]
        {
            let file = fixtures::path(&format!("gguf/{name}.gguf"));
            // As it lies in the file.
            let options = QuantizationOptions { dequantize: Some(false), ..QuantizationOptions::default() };
            let loaded = crate::load_model_quantized(&file, Precision::Float32, &options);
            let model = loaded.unwrap_or_else(|error| panic!("{name}: {error}")).model;
            assert_eq!((&model.info().model_type[..], model.sites().len()), (model_type, sites));
            let reference = fs::read(file.with_extension("safetensors")).unwrap();
            let reference = safetensors::SafeTensors::deserialize(&reference).unwrap();
            let ids = reference.tensor("input_ids").unwrap();
            let ids: Vec<u32> =
                ids.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect();
            let mut tape = Tape::evaluating(&Workspace::new());
            let mut forward = Forward::new(&mut tape, Segments::from_lengths([ids.len()]), None);
            let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&ids), None);
            let rows = forward.segments().clone();
            let found = model.logits(&mut forward, &hidden, &rows).value().to_vec();
            let expected = reference.tensor("logits").unwrap();
            let expected: Vec<f32> =
                expected.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert_eq!(found.len(), expected.len());
            for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!((found - expected).abs() <= 1e-4 * largest, "{name}[{place}]: {found} is not {expected}");
            }
            let kept =
                model.tensors().into_iter().filter(|(_, weight, _)| weight.bytes() < 4 * weight.rows() * weight.cols());
            assert_eq!(kept.count(), if name == "gemma3" { 6 } else { 4 }, "{name}");
            // The configuration is one that a folder may have.
            let json = model.config_json().clone();
            assert_eq!(&LlamaConfig::from_json(json.clone(), &file).unwrap().json, &json);
        }
    }

    #[test]
    fn a_file_may_have_any_head() {
        let labels = Some(vec!["no".to_owned(), "yes".to_owned(), "perhaps".to_owned()]);
        let options = HeadOptions { labels, ..HeadOptions::for_task(Task::SeqCls) };
        for name in ["qwen3", "gemma3"] {
            let file = fixtures::path(&format!("gguf/{name}.gguf"));
            let model = crate::load_model_with(&file, Precision::Float32, &options).unwrap().model;
            assert_eq!((&model.info().head.new_modules[..], model.info().vocab_size), (&["score".to_owned()][..], 96));
            let whole = crate::load_model(&file).unwrap().model;
            assert_eq!(model.sites().len(), whole.sites().len());
        }
        let text = crate::load_model_with(
            &fixtures::path("gguf/qwen3.gguf"),
            Precision::Float32,
            &HeadOptions::for_task(Task::Seq2SeqLm),
        );
        let text = text.map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("models of type \"qwen3\" have no head for SEQ_2_SEQ_LM"), "{text}");
    }

    #[test]
    fn windows_of_gemma_are_read_in_every_way_that_files_have() {
        let types = |pattern: Option<Metadata>| {
            let metadata: std::collections::HashMap<String, Metadata> = pattern
                .map(|pattern| ("gemma3.attention.sliding_window_pattern".to_owned(), pattern))
                .into_iter()
                .chain(
                    [
                        ("block_count", 7),
                        ("context_length", 64),
                        ("embedding_length", 32),
                        ("feed_forward_length", 48),
                        ("attention.head_count", 4),
                        ("attention.sliding_window", 5),
                    ]
                    .map(|(key, value)| (format!("gemma3.{key}"), Metadata::U32(value))),
                )
                .collect();
            let fields = Fields { path: Path::new("model.gguf"), metadata: &metadata };
            let json = config_json(&fields, &FAMILIES[3], &BTreeMap::new()).unwrap();
            LlamaConfig::from_json(json, Path::new("model.gguf")).unwrap().sliding_windows
        };
        let windows = |full: &[usize]| (0..7).map(|block| (!full.contains(&block)).then_some(5)).collect::<Vec<_>>();
        assert_eq!(types(None), windows(&[5]));
        assert_eq!(types(Some(Metadata::U32(3))), windows(&[2, 5]));
        let flags = [true, false, true, true, true, true, false].map(Metadata::Bool).to_vec();
        assert_eq!(types(Some(Metadata::Array(flags))), windows(&[1, 6]));
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
        assert!(!model.info().tied && model.config().output_bias);
        assert_eq!(tensor(&model, "lm_head.weight"), head);
        let key = tensor(&model, "model.layers.1.self_attn.k_proj.bias");
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
        let config = load(&file.written()).unwrap().config().clone();
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
        let config = load(&file.written()).unwrap().config().clone();
        assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
        assert_eq!((config.model_type.as_str(), &config.sliding_windows[..]), ("mistral", &[Some(6); 2][..]));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let text = refusal(|file| file.set("general.architecture", Metadata::String("gpt2".to_owned())));
        assert!(text.contains("\"gpt2\"") && text.contains("llama, qwen2, qwen3, gemma3 (in GGUF files"), "{text}");
        let text = refusal(|file| file.set("llama.expert_count", Metadata::U32(8)));
        assert!(text.contains("a mixture of 8 experts"), "{text}");
        let text = refusal(|file| file.set("llama.rope.dimension_count", Metadata::U32(4)));
        assert!(text.contains("rotates only a part"), "{text}");
        let text = refusal(|file| file.set("llama.rope.scaling.type", Metadata::String("longrope".to_owned())));
        assert!(text.contains("rope_type \"longrope\" is not supported"), "{text}");
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
