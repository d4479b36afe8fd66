//! How frozen matrices are kept in memory: as in the file, in the run's precision, or quantised to 4 bits while loading,
//! one tensor after the other.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use tunesmith_tensor::{FourBitOptions, FourBitWeight, FrozenWeight, Matrix, Precision};

use crate::error::ModelError;
use crate::weights::{StoredTensor, WeightSource};

/// Expanded, weights of a quantised file are small enough up to this size; larger ones stay as they are.
const EXPANDED_BYTES: usize = 2 << 30;

/// The choice of storage for a model's matrices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantizationOptions {
    /// Quantises the linears to 4 bits (`load_in_4bit`, `bnb_4bit_quant_type`, `bnb_4bit_use_double_quant`), all but the
    /// output embedding and heads.
    pub load_in_4bit: Option<FourBitOptions>,
    /// Linears that are not quantised (`llm_int8_skip_modules`): the beginning of a module path, the end of one, or a
    /// regular expression for the beginning.
    pub skip_modules: Vec<String>,
    /// Whether weights that the files hold quantised are expanded to the run's precision. Default: GGUF blocks that are
    /// slower than floats, where all comes to at most 2 GiB; 4-bit weights of bitsandbytes never.
    pub dequantize: Option<bool>,
}

/// A source with the choice of how its matrices are kept.
pub(crate) struct Kept<'a> {
    source: &'a mut dyn WeightSource,
    precision: Precision,
    four_bit: Option<FourBitOptions>,
    skip: Vec<Skip>,
    expand: Expand,
}

/// Which quantised weights become floats: in float32 none is fast as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expand {
    All,
    Slow,
    None,
}

/// Modules to leave in floats.
struct Skip {
    pattern: Option<Regex>,
    end: String,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(
        source: &'a mut dyn WeightSource,
        precision: Precision,
        options: &QuantizationOptions,
        expand_small: bool,
    ) -> Self {
        let width = if precision == Precision::Bf16 { 2 } else { 4 };
        let values: usize = source.stored().values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let small = values.saturating_mul(width) <= EXPANDED_BYTES;
        let skip = options
            .skip_modules
            .iter()
            .map(|text| Skip { pattern: Regex::new(&format!(r"^(?:{text})(?:\.|$)")).ok(), end: text.clone() });
        Self {
            precision,
            four_bit: options.load_in_4bit,
            skip: skip.collect(),
            expand: match options.dequantize {
                Some(true) => Expand::All,
                None if expand_small && small && precision == Precision::Bf16 => Expand::Slow,
                None if expand_small && small => Expand::All,
                _ => Expand::None,
            },
            source,
        }
    }

    fn is_quantized(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".weight") else { return false };
        let skipped = |skip: &Skip| {
            module.ends_with(&skip.end) || skip.pattern.as_ref().is_some_and(|pattern| pattern.is_match(module))
        };
        is_inner_linear(module) && !self.skip.iter().any(skipped)
    }
}

/// Whether a module with a matrix is a linear within the network: no table of embeddings, no output, no head.
pub(crate) fn is_inner_linear(module: &str) -> bool {
    const TABLES: [&str; 4] = ["wte", "wpe", "shared", "relative_attention_bias"];
    const HEADS: [&str; 8] = [
        "lm_head",
        "score",
        "classifier",
        "qa_outputs",
        "classification_head",
        "cls.",
        "vocab_projector",
        "pre_classifier",
    ];
    let last = module.rsplit('.').next().unwrap_or(module);
    // transformers keeps T5's `wo` in floats, too.
    !(HEADS.iter().any(|head| module.starts_with(head))
        || TABLES.contains(&last)
        || last.contains("embed")
        || last == "wo")
}

impl WeightSource for Kept<'_> {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        self.source.stored()
    }

    fn supported_formats(&self) -> &'static str {
        self.source.supported_formats()
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.source.read(name)
    }

    fn encoded(&mut self, name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        if self.expand == Expand::All {
            return Ok(None);
        }
        let fast_enough = |weight: &FrozenWeight| self.expand == Expand::None || weight.unpacks_fast();
        let quantize_again = self.four_bit.is_some() && self.is_quantized(name);
        let weight = self.source.encoded(name)?.filter(fast_enough);
        Ok(weight.filter(|weight| !quantize_again || weight.as_four_bit().is_some()))
    }

    fn keep(&self, name: &str, matrix: Matrix) -> Result<FrozenWeight, ModelError> {
        let Some(options) = self.four_bit.filter(|_| self.is_quantized(name)) else {
            return Ok(FrozenWeight::in_precision(matrix, self.precision));
        };
        let weight = FourBitWeight::quantize(matrix.data(), matrix.shape(), options);
        let weight = weight.map_err(|error| ModelError::Damaged {
            path: self.path().to_path_buf(),
            reason: format!("tensor {name} cannot be quantised: {error}"),
        })?;
        Ok(FrozenWeight::from(weight))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tunesmith_tensor::{FourBitType, FrozenWeight};

    use super::*;
    use crate::fixtures;
    use crate::load::load_model_quantized;

    const NF4: FourBitOptions = FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true };

    fn weights(folder: &Path, options: &QuantizationOptions) -> BTreeMap<String, FrozenWeight> {
        let loaded = load_model_quantized(folder, Precision::Float32, options).unwrap();
        loaded.model.tensors().into_iter().map(|(name, weight, _)| (name, weight)).collect()
    }

    #[test]
    fn quantising_while_loading_gives_the_bytes_that_bitsandbytes_saved() {
        let options = QuantizationOptions { load_in_4bit: Some(NF4), ..QuantizationOptions::default() };
        let ours = weights(&fixtures::path("qlora/model"), &options);
        let theirs = weights(&fixtures::path("qlora/model-4bit"), &QuantizationOptions::default());
        assert_eq!(ours.len(), theirs.len());
        for (name, ours) in &ours {
            let theirs = &theirs[name];
            assert_eq!(ours.as_four_bit().is_some(), theirs.as_four_bit().is_some(), "{name}");
            if let (Some(ours), Some(theirs)) = (ours.as_four_bit(), theirs.as_four_bit()) {
                assert_eq!((ours.codes(), ours.absmax()), (theirs.codes(), theirs.absmax()), "{name}");
            }
            assert_eq!(ours.to_matrix(), theirs.to_matrix(), "{name}");
        }
        assert_eq!(ours.values().filter(|weight| weight.as_four_bit().is_some()).count(), 14);
    }

    #[test]
    fn modules_that_are_named_stay_in_floats() {
        let folder = fixtures::path("qlora/model");
        let quantized = |skip: &[&str]| -> Vec<String> {
            let skip_modules = skip.iter().map(|text| (*text).to_owned()).collect();
            let options = QuantizationOptions { load_in_4bit: Some(NF4), skip_modules, dequantize: None };
            let weights = weights(&folder, &options).into_iter();
            weights.filter(|(_, weight)| weight.as_four_bit().is_some()).map(|(name, _)| name).collect()
        };
        assert_eq!(quantized(&["model.layers.0", "down_proj"]).len(), 6);
        assert_eq!(quantized(&["model.layers.*"]).len(), 0);
        assert_eq!(quantized(&["model.layers.0.mlp.gate"]).len(), 14);
        assert!(quantized(&["q_proj"]).iter().all(|name| !name.contains("q_proj")));
    }

    #[test]
    fn dequantised_weights_have_the_same_values() {
        let folder = fixtures::path("qlora/model-4bit");
        let kept = weights(&folder, &QuantizationOptions::default());
        let options = QuantizationOptions { dequantize: Some(true), ..QuantizationOptions::default() };
        for (name, weight) in weights(&folder, &options) {
            assert!(weight.as_four_bit().is_none(), "{name}");
            assert_eq!(weight.to_matrix(), kept[&name].to_matrix(), "{name}");
        }
    }

    #[test]
    fn damaged_states_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixtures::path("qlora/model-4bit").join(file), folder.path().join(file)).unwrap();
        }
        let file = folder.path().join("model.safetensors");
        let whole = fs::read(&file).unwrap();
        let replaced = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let mut bytes = whole.clone();
            let from = from.as_bytes();
            let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes[place..place + from.len()].copy_from_slice(to.as_bytes());
            fs::write(&file, bytes).unwrap();
            load_model_quantized(folder.path(), Precision::Float32, &QuantizationOptions::default())
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        let text = replaced("model.layers.0.mlp.up_proj.weight.absmax", "model.layers.0.mlp.up_proj.weight.abzmax");
        assert!(text.contains("model.layers.0.mlp.up_proj.weight lacks absmax"), "{text}");
        let text = replaced("\"blocksize\": 64,", "\"blocksize\": 48,");
        assert!(text.contains("blocks of 48 values") && text.contains("tensor model.layers."), "{text}");
        let text = replaced("{\"quant_type\": \"nf4\"", "[\"quant_type\": \"nf4\"");
        assert!(text.contains("is not what bitsandbytes writes"), "{text}");
    }
}
