//! Reading a configuration key by key, so that all problems of a file are reported together.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::error::ModelError;

/// Larger sizes are typing mistakes, and their products could overflow.
const LARGEST_SIZE: u64 = 1 << 31;
/// More blocks than any model has.
pub(crate) const MOST_BLOCKS: usize = 10_000;

/// Typed reading of keys; a wrong value is noted and replaced by the default, so that reading goes on.
pub(crate) struct Fields<'a> {
    pub(crate) json: &'a Map<String, Value>,
    pub(crate) problems: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(json: &'a Map<String, Value>) -> Self {
        Self { json, problems: Vec::new() }
    }

    /// Notes a number of blocks that no model has.
    pub(crate) fn check_blocks(&mut self, key: &str, blocks: usize) {
        if blocks > MOST_BLOCKS {
            self.problems.push(format!("{key} {blocks} is more than {MOST_BLOCKS}"));
        }
    }

    /// Notes a width that does not divide into heads.
    pub(crate) fn check_heads(&mut self, width: (&str, usize), heads: (&str, usize)) {
        if !width.1.is_multiple_of(heads.1) {
            self.problems.push(format!("{} {} is not a multiple of {} {}", width.0, width.1, heads.0, heads.1));
        }
    }

    /// What was read from the file at `path`.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem that was noted.
    pub(crate) fn finish<T>(self, config: T, path: &Path) -> Result<T, ModelError> {
        match self.problems {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ModelError::Config { path: path.to_path_buf(), problems }),
        }
    }

    /// The class of transformers that the files are of.
    pub(crate) fn class(&self) -> Option<&'a str> {
        self.json.get("architectures")?.get(0)?.as_str()
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn optional_size(&mut self, key: &str) -> Option<usize> {
        let value = self.value(key)?;
        match value.as_u64() {
            Some(size @ 1..=LARGEST_SIZE) => Some(size as usize),
            _ => {
                let problem = format!("{key} is {value}, expected a positive whole number up to {LARGEST_SIZE}");
                self.problems.push(problem);
                None
            }
        }
    }

    pub(crate) fn size(&mut self, key: &str, default: usize) -> usize {
        self.optional_size(key).unwrap_or(default)
    }

    pub(crate) fn positive(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.value(key) else { return default };
        let number = value.as_f64();
        if number.is_none_or(|number| number <= 0.0) {
            let problem = format!("{key} is {value}, expected a positive number");
            self.problems.push(problem);
        }
        number.unwrap_or(default)
    }

    /// A share, such as a dropout probability: at least 0 and less than 1.
    pub(crate) fn fraction(&mut self, key: &str, default: f32) -> f32 {
        let Some(value) = self.value(key) else { return default };
        let number = value.as_f64().filter(|number| (0.0..1.0).contains(number));
        if number.is_none() {
            let problem = format!("{key} is {value}, expected a number from 0 to less than 1");
            self.problems.push(problem);
        }
        number.map_or(default, |number| number as f32)
    }

    pub(crate) fn token_id(&mut self, key: &str, default: u32) -> u32 {
        let Some(value) = self.value(key) else { return default };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < 1 << 31);
        if id.is_none() {
            let problem = format!("{key} is {value}, expected a token id");
            self.problems.push(problem);
        }
        id.unwrap_or(default)
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        let flag = value.as_bool();
        if flag.is_none() {
            let problem = format!("{key} is {value}, expected true or false");
            self.problems.push(problem);
        }
        flag.unwrap_or(default)
    }

    pub(crate) fn text(&mut self, key: &str, default: &str) -> String {
        let Some(value) = self.value(key) else { return default.to_owned() };
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    pub(crate) fn required(&mut self, key: &str) -> f64 {
        if self.value(key).is_none() {
            self.problems.push(format!("{key} is missing"));
        }
        self.positive(key, 1.0)
    }

    /// An activation by transformers' name for it.
    pub(crate) fn activation(&mut self, key: &str, default: &str) -> Activation {
        let name = self.text(key, default);
        match name.as_str() {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_accurate" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            _ => {
                self.problems.push(format!(
                    "{key} {name:?} is not supported; known: gelu, gelu_new, gelu_pytorch_tanh, silu, relu, tanh"
                ));
                Activation::Gelu
            }
        }
    }

    /// Notes a checkpoint that is quantised in a way that is not read.
    pub(crate) fn refuse_quantisation(&mut self) {
        if self.value("quantization_config").is_some() {
            self.problems.push(
                "quantization_config is set: of the quantised formats of Hugging Face only 4-bit weights of \
                 bitsandbytes are read; use the float checkpoint or a GGUF file"
                    .to_owned(),
            );
        }
    }
}
